"""Initialises a detector from another one's weights, perhaps of other classes: every layer that fits is carried over.

The rows of a class are carried over if both detectors have the class; other classes keep their initial rows.  Class
names are compared without case, and with "_" and "-" as blanks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from backbones.weights.load import load_matching
from detection.config.schema import different_meaning
from detection.config.sections import ProgramConfig
from detection.data.problems import listed
from detection.engine.checkpoint import Checkpoint
from detection.model.architecture import class_rows
from detection.model.class_rows import ClassRows

__all__ = ["Carried", "differing_meaning", "load_initial_weights"]


@dataclass(frozen=True, slots=True)
class Carried:
    """The weights that a detector took from another one.

    Attributes:
        source: where the weights come from.
        classes: classes whose rows were carried over.
        new_classes: classes whose rows are new.
        layers: names of the tensors that were carried over, in part where they have rows of new classes.
        new_layers: names of the tensors with initial values, since the source has none of that name and shape.
        unused: names of the source's tensors that the detector has no place for.
    """

    source: str
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    layers: tuple[str, ...]
    new_layers: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """Lines for people: what was carried over, and what is new."""
        total = len(self.layers) + len(self.new_layers)
        lines = [
            f"starts from {self.source}: {len(self.layers)} of {total} tensors carried over",
            f"  classes kept: {listed(self.classes, most=20)}",
            f"  classes new: {listed(self.new_classes, most=20)}",
        ]
        if self.new_layers:
            lines.append(f"  layers that begin anew: {listed(self.new_layers)}")
        if self.unused:
            lines.append(f"  layers of the source without a place here: {listed(self.unused)}")
        return lines


def load_initial_weights(
    model: nn.Module,
    checkpoint: Checkpoint[ProgramConfig],
    class_names: Sequence[str],
    renamed: Mapping[str, str],
    *,
    row_names: Sequence[str] = (),
) -> Carried:
    """Loads the weights of ``checkpoint`` that fit into ``model``, and returns which they were.

    A tensor fits if its name and shape do.  Of layers with rows for classes, the rows of shared classes and of the
    background are carried over.

    Args:
        model: a detector for ``class_names``; unchanged if an error is raised.
        checkpoint: where to start from.
        class_names: K names.
        renamed: class name -> its name in ``checkpoint``, where they differ.
        row_names: names in ``checkpoint`` of the rows of layers whose rows have names of their own.

    Raises:
        ValueError: a name in ``renamed`` that one side lacks, no layer of the backbone that fits, or weights that are
            not finite.
    """
    for here, there in renamed.items():
        if here not in class_names or there not in checkpoint.class_names:
            raise ValueError(
                f"init_classes maps {here!r} to {there!r}; the data set has {tuple(class_names)}, "
                f"{checkpoint.path} has {checkpoint.class_names}"
            )
    pairs = _pairs(class_names, checkpoint.class_names, renamed)
    weights, rows = dict(checkpoint.weights), class_rows(model)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name in weights.keys() & rows.keys() & own.keys():
        names = rows[name].names
        theirs, same = (checkpoint.class_names, pairs) if names is None else (row_names, _pairs(names, row_names, {}))
        if len(weights[name]) == rows[name].count(len(theirs)):
            weights[name] = _with_rows(weights[name], own[name], same, rows[name])
    fitting = {name for name, value in own.items() if name in weights and weights[name].shape == value.shape}
    trunk = {name for name in own if name.startswith("backbone.") and not name.endswith("num_batches_tracked")}
    if trunk and not trunk & fitting:
        raise ValueError(_nothing_fits(checkpoint, own, weights))
    load_matching(model, own | {name: weights[name] for name in fitting}, source=str(checkpoint.path))
    kept = {k for k, _ in pairs}
    return Carried(
        str(checkpoint.path),
        tuple(name for k, name in enumerate(class_names) if k in kept),
        tuple(name for k, name in enumerate(class_names) if k not in kept),
        tuple(name for name in own if name in fitting),
        tuple(name for name in own if name not in fitting and not name.endswith("num_batches_tracked")),
        tuple(name for name in weights if name not in fitting and not name.endswith("num_batches_tracked")),
    )


def differing_meaning(config: ProgramConfig, checkpoint: Checkpoint[ProgramConfig]) -> list[str]:
    """Returns a line for each option under which the weights of ``checkpoint`` mean something else in ``config``."""
    return different_meaning(checkpoint.config, config)


def _pairs(here: Sequence[str], there: Sequence[str], renamed: Mapping[str, str]) -> list[tuple[int, int]]:
    """Returns pairs (class here, class there) of the shared classes; each of theirs is carried over to one of ours."""
    exact = {name: number for number, name in reversed([*enumerate(there)])}
    alike = {_plain(name): number for number, name in reversed([*enumerate(there)])}
    pairs, taken = list[tuple[int, int]](), {there.index(name) for name in renamed.values()}
    for k, name in enumerate(here):
        if name in renamed:
            pairs.append((k, exact[renamed[name]]))
            continue
        number = exact.get(name, alike.get(_plain(name)))
        if number is not None and number not in taken:
            taken.add(number)
            pairs.append((k, number))
    return pairs


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()


def _with_rows(there: Tensor, here: Tensor, pairs: Sequence[tuple[int, int]], rows: ClassRows) -> Tensor:
    """Returns ``here`` (rows, ...) with the rows of the classes in ``pairs`` taken from ``there``."""
    if there.shape[1:] != here.shape[1:]:
        return there  # which does not fit
    result = here.detach().cpu().clone()
    for own, other in pairs:
        of_class = slice(own * rows.per_class, (own + 1) * rows.per_class)
        result[of_class] = there[other * rows.per_class : (other + 1) * rows.per_class]
    if rows.background:
        result[-1] = there[-1]
    return result


def _nothing_fits(
    checkpoint: Checkpoint[ProgramConfig], own: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str:
    shapes = next(
        (
            f"; {name} is {tuple(own[name].shape)} here and {tuple(weights[name].shape)} there"
            for name in own
            if name in weights and name.startswith("backbone.")
        ),
        f"; its layers have other names, as under a feature pyramid: {_first(weights)} there and {_first(own)} here",
    )
    return (
        f"no layer of the backbone fits {checkpoint.path}, which has {checkpoint.config.backbone.name}{shapes}: "
        "use its config, RUN/config.yaml, or resdet train FOLDER --from it, which does so"
    )


def _first(weights: Mapping[str, Tensor]) -> str:
    """Returns the first layer of the backbone among ``weights``, by name."""
    return min((name for name in weights if name.startswith("backbone.")), default="none")
