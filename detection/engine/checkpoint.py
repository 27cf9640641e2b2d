"""Checkpoints: the model as safetensors with its config and class names, and the training state in a second file.

    checkpoints/0005000.safetensors   weights to test with; metadata: format, program, config, class names, iteration
    checkpoints/0005000.state.pt      optimizer, scaler, random states, best metric; read with weights_only; where the
                                      weights are averaged (solver.ema_decay), also those that training goes on with
    checkpoints/best.safetensors      the weights with the best metric on data.val so far

A file is written under another name, synced and renamed, so that a reader never sees half of it.  It has a checksum of
its content, and the state also that of its weights, so that files of two iterations never form one checkpoint.  An
unreadable checkpoint is skipped for the one before, and renamed to end in ".damaged" when the run resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones.weights.load import load_matching, read_torch
from detection.config.compat import FORMAT
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, parse_config, parse_section
from detection.config.schema import flatten
from detection.config.sections import BackboneConfig, ProgramConfig
from detection.engine.distributed import gather, is_main, together
from detection.engine.loop import TrainState
from detection.files import digest, write_text, write_whole
from detection.hub import local_path

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "changed_keys",
    "describe_weights",
    "load_detector_weights",
    "read_checkpoint",
    "read_weights",
    "resolve_weights",
    "stored_backbone",
    "write_converted",
    "write_weights",
]

BEST = "best.safetensors"

ConfigT = TypeVar("ConfigT", bound=ProgramConfig, covariant=True)


@dataclass(frozen=True, slots=True)
class Checkpoint(Generic[ConfigT]):
    """A model's weights, with their config, class names and iteration."""

    path: Path
    weights: dict[str, Tensor]
    config: ConfigT
    class_names: tuple[str, ...]
    iteration: int
    best_f1_score: float | None = None  # least score of detections at which F1 was best on data.val; None: not known


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: RUN/checkpoints.
        keep: number of newest checkpoints to keep.
        config, class_names: stored in every checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, config: ProgramConfig, class_names: Sequence[str]) -> None:
        self.folder, self.keep = folder, keep
        self.config, self.class_names = config, tuple(class_names)

    def save(self, state: TrainState) -> Path:
        """Writes the checkpoint of ``state``, removes all but the newest ones, and returns the path of the weights.

        All processes call it, and the main one writes.

        Raises:
            OSError: the disk is full or read-only; existing checkpoints are kept.
        """
        path, saved = self._path(state), state.state_dict()
        with together("saving a checkpoint"):
            if is_main():
                self.folder.mkdir(parents=True, exist_ok=True)
                _write_state(path, saved, digest(state.tested.state_dict()))
                self._write_weights(path, state)
                for old in _numbered(self.folder)[: -self.keep]:
                    _remove(old)
        return path

    def best(self) -> Checkpoint[ProgramConfig] | None:
        """Returns the weights with the best metric on data.val; None if none were chosen."""
        path = self.folder / BEST
        if self.config.solver.best_metric is None or not self.config.data.val or not path.is_file():
            return None
        return read_checkpoint(path, type(self.config))

    def forget_best(self) -> None:
        """Puts aside best weights that this run did not choose, or chose by another metric or on other data."""
        with together("putting the best weights aside"):
            if is_main() and (path := self.folder / BEST).is_file():
                path.replace(path.with_name(BEST + ".old"))

    def save_evaluated(self, state: TrainState, *, best: bool, best_f1_score: float | None = None) -> None:
        """Marks the saved checkpoint of ``state`` as evaluated; with ``best``, keeps its weights as the best so far."""
        path, saved = self._path(state), state.state_dict()
        with together("saving a checkpoint"):
            if is_main():
                if best_f1_score is not None:
                    self._write_weights(path, state, best_f1_score)
                if best:
                    copy = self.folder / BEST
                    write_whole(copy, lambda temporary: shutil.copyfile(path, temporary))
                _write_state(path, saved, digest(read_weights(path)))

    def newest(self, say: Callable[[str], None]) -> tuple[Checkpoint[ProgramConfig], dict[str, Any]] | None:
        """Returns the newest checkpoint that can be read, and its training state; None if there is none.

        ``say`` gets a line for every newer one that is damaged.  The main process chooses for all.

        Raises:
            ValueError: there are checkpoints, and none can be read.
        """
        found = None
        with together("looking for a checkpoint"):
            if is_main():
                found = self._find(say)
        path = gather(found and found[0].path, doing="looking for a checkpoint")[0]
        if path is None or found is not None:
            return found
        checkpoint = read_checkpoint(path, type(self.config))
        return checkpoint, _read_state(checkpoint)

    def restore(self, newest: tuple[Checkpoint[ProgramConfig], dict[str, Any]], state: TrainState) -> None:
        """Restores ``state`` from the result of ``newest``; puts later checkpoints aside, as the run makes new ones."""
        checkpoint, saved = newest
        load_detector_weights(state.model, checkpoint, self.class_names)
        state.load_state_dict(saved)
        with together("putting damaged checkpoints aside"):
            if is_main():
                self._put_aside(state.iteration)

    def _find(self, say: Callable[[str], None]) -> tuple[Checkpoint[ProgramConfig], dict[str, Any]] | None:
        problems = []
        for path in reversed(_numbered(self.folder)):
            if _state_path(path).is_file():
                try:
                    checkpoint = read_checkpoint(path, type(self.config))
                    return checkpoint, _read_state(checkpoint)
                except ValueError as error:
                    problems.append(str(error))
                    say(f"warning: {error}; looking for the checkpoint before")
        if problems:
            raise ValueError(f"{'; '.join(problems)}: no other checkpoint is left; remove these to start anew")
        return None

    def _put_aside(self, iteration: int) -> None:
        """Renames the checkpoints after ``iteration``, and removes unfinished files of killed processes."""
        later = [path for path in _numbered(self.folder) if int(path.stem) > iteration]
        for file in (file for path in later for file in (path, _state_path(path)) if file.is_file()):
            file.replace(file.with_name(file.name + ".damaged"))
        for file in self.folder.glob("*.tmp"):
            file.unlink()
        for file in self.folder.glob("*.state.pt"):
            if not file.with_name(file.name.replace(".state.pt", ".safetensors")).is_file():
                file.unlink()

    def _path(self, state: TrainState) -> Path:
        return self.folder / f"{state.iteration:07d}.safetensors"

    def _write_weights(self, path: Path, state: TrainState, best_f1_score: float | None = None) -> None:
        weights = state.tested.state_dict()
        try:
            write_weights(Checkpoint(path, weights, self.config, self.class_names, state.iteration, best_f1_score))
        except OSError:
            if not path.is_file():
                _remove(path)  # its state only takes space
            raise


def changed_keys(before: Any, after: Any) -> list[str]:
    """Returns a line "section.key: old -> new" for every key that differs between two configs."""
    old, new = flatten(before), flatten(after)
    changed = [key for key in new | old if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed]


@overload
def read_checkpoint(path: str | Path) -> Checkpoint[DetectionConfig]: ...
@overload
def read_checkpoint(path: str | Path, schema: type[ConfigT]) -> Checkpoint[ConfigT]: ...
def read_checkpoint(path: str | Path, schema: type[ProgramConfig] = DetectionConfig) -> Checkpoint[ProgramConfig]:
    """Returns the checkpoint at ``path``: a .safetensors file, or a run directory: its chosen weights, else the newest.

    Its config may be of an earlier version.

    Args:
        path: file, run directory, or address hf://NAME/REPO[@REVISION][/PATH].
        schema: config class of the program that trained it.

    Raises:
        ValueError: no such file, a corrupt one, or one of another project or program.
    """
    file = resolve_weights(path)
    weights, metadata = _read(file)
    program = metadata.get("program", _program_of_format_1(weights, schema))
    if program != schema.program:
        raise ValueError(f"{file} was trained by the program {program!r}, and a {schema.program} checkpoint is needed")
    if not metadata["iteration"].isdecimal():
        raise ValueError(f"{file} is no checkpoint: its iteration is {metadata['iteration']!r:.80}, and not a number")
    try:
        config = parse_config(schema, metadata["config"])
    except ValueError as error:
        raise ValueError(f"checkpoint {file} can't be read: its config: {error}") from error
    return Checkpoint(
        file,
        weights,
        config,
        _class_names(file, metadata["class_names"]),
        int(metadata["iteration"]),
        _fraction(metadata.get("best_f1_score", "")),
    )


def _fraction(text: str) -> float | None:
    """Returns the number ``text`` if it is one from 0 to 1; older checkpoints have none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _class_names(file: Path, text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint {file} can't be read: its class_names are no JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} is no detector checkpoint: its class_names are no list of names: {names!r:.80}")
    return tuple(names)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns only the weights of a checkpoint, of any program.

    Raises:
        ValueError: as ``read_checkpoint``.
    """
    return _read(resolve_weights(path))[0]


def resolve_weights(path: str | Path) -> Path:
    """Returns the weights file that ``path``, a file, a run directory or an address hf://NAME/REPO, means.

    A run directory means the weights that stand at the end of its training: the best ones on its data.val, if it has
    one, else the newest.  Runs of format 1 mean their newest.

    Raises:
        ValueError: there is none.
        ConnectionError, ImportError: as ``local_path``.
    """
    path = local_path(path)
    if path.is_file():
        return path
    best = path / "checkpoints" / BEST
    if "format" in _metadata(best):
        return best
    found = _numbered(path / "checkpoints") if path.is_dir() else []
    if not found:
        raise ValueError(f"no checkpoint at {path}: give a .safetensors file or the directory of a run")
    return found[-1]


def describe_weights(checkpoint: Checkpoint[ProgramConfig], test: Sequence[str]) -> dict[str, Any]:
    """Returns the facts about the weights for a result on ``test``: their iteration, and what chose them."""
    data, best = checkpoint.config.data, checkpoint.path.name == BEST
    return {
        "iteration": checkpoint.iteration,
        "chosen_by": checkpoint.config.solver.best_metric if best else None,
        "chosen_on": list(data.val) if best else [],
        "chosen_on_test": best and not set(data.val).isdisjoint(test),
    }


def stored_backbone(path: str | Path) -> BackboneConfig | None:
    """Returns the backbone's section of the config in ``path``; None if it is no checkpoint of this project."""
    metadata = _metadata(path)
    return parse_section(BackboneConfig, metadata["config"], "backbone") if "config" in metadata else None


def write_converted(
    path: str | Path, config: ProgramConfig, class_names: Sequence[str], state: Mapping[str, Tensor]
) -> Path:
    """Writes a model that was trained elsewhere, and its config; returns the path of the weights.

    Args:
        path: a .safetensors file, with the config at the same path as .yaml; or a directory, which becomes that of a
            run: config.yaml and checkpoints/0000000.safetensors.
        config: builds the detector.
        class_names: K names.
        state: the detector's state dict.
    """
    path = Path(path)
    is_file = path.suffix == ".safetensors"
    file = path if is_file else path / "checkpoints" / "0000000.safetensors"
    if not is_file and any(other != file for other in file.parent.glob("*.safetensors")):
        raise ValueError(f"{path} holds a run; choose another directory")
    file.parent.mkdir(parents=True, exist_ok=True)
    described = path.with_suffix(".yaml") if is_file else path / "config.yaml"
    write_text(described, dump_config(config))
    write_weights(Checkpoint(file, dict(state), config, tuple(class_names), iteration=0))
    return file


def write_weights(checkpoint: Checkpoint[ProgramConfig]) -> None:
    """Writes the file ``checkpoint.path``, which ``read_checkpoint`` reads."""
    metadata = {
        "format": str(FORMAT),
        "program": checkpoint.config.program,
        "config": dump_config(checkpoint.config),
        "class_names": json.dumps(checkpoint.class_names),
        "iteration": str(checkpoint.iteration),
    }
    if checkpoint.best_f1_score is not None:
        metadata["best_f1_score"] = str(checkpoint.best_f1_score)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    metadata["sha256"] = _digest(weights, metadata)
    write_whole(checkpoint.path, lambda temporary: save_file(weights, temporary, metadata=metadata))


def load_detector_weights(model: nn.Module, checkpoint: Checkpoint[ProgramConfig], class_names: Sequence[str]) -> None:
    """Loads all weights of ``checkpoint`` into ``model``.

    Raises:
        ValueError: other classes than ``class_names``, or weights of another architecture (the names are listed).
    """
    if checkpoint.class_names != tuple(class_names):
        raise ValueError(
            f"{checkpoint.path} was trained on {len(checkpoint.class_names)} classes {checkpoint.class_names}, "
            f"the data set has {len(class_names)}: {tuple(class_names)}; give data of the same classes, or train with "
            "init=WEIGHTS, which carries over those that both know"
        )
    load_matching(model, checkpoint.weights, source=str(checkpoint.path))


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns weights and metadata of a checkpoint whose checksum is right."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {file} can't be read: {error}") from error
    missing = [key for key in ("config", "class_names", "iteration") if key not in metadata]
    if missing:
        raise ValueError(f"{file} is no detector checkpoint: its metadata lacks {missing}")
    if metadata.get("format", str(FORMAT)) not in map(str, range(2, FORMAT + 1)):  # files of format 1 have no key
        raise ValueError(
            f"{file} has the format {metadata['format']!r:.80}, and this version reads 1 to {FORMAT}; update resdet"
        )
    if "format" in metadata and "sha256" not in metadata:
        raise ValueError(f"checkpoint {file} can't be read: its checksum is missing, so the file was damaged")
    if metadata.get("sha256", expected := _digest(weights, metadata)) != expected:
        raise ValueError(f"checkpoint {file} can't be read: its checksum is wrong, so the file was damaged")
    return weights, metadata


def _metadata(path: str | Path) -> dict[str, str]:
    """Returns the metadata of a .safetensors file; none of other files."""
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _program_of_format_1(weights: Mapping[str, Tensor], schema: type[ProgramConfig]) -> str:
    """Returns the program that trained weights of format 1; layer names tell classifiers, as the file names none."""
    if any(name.startswith("network.") for name in weights):
        return "classification"
    return schema.program if schema.program != "classification" else "detection"


def _digest(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest([weights, {name: text for name, text in metadata.items() if name != "sha256"}])


def _write_state(weights: Path, state: Mapping[str, Any], weights_digest: str) -> None:
    content = {**state, "weights_sha256": weights_digest}
    content["sha256"] = digest(content)
    write_whole(_state_path(weights), lambda temporary: torch.save(content, temporary))


def _read_state(checkpoint: Checkpoint[ProgramConfig]) -> dict[str, Any]:
    """Returns the training state that belongs to the weights of ``checkpoint``.

    Raises:
        ValueError: it is damaged, or belongs to other weights.
    """
    path = _state_path(checkpoint.path)
    try:
        state = dict(read_torch(path))
    except Exception as error:  # damaged bytes can raise anything
        raise ValueError(f"checkpoint {path} can't be read: {error}") from error
    if "sha256" not in state:
        raise ValueError(f"checkpoint {path} can't be read: it has no checksum, so another version wrote it")
    if state.pop("sha256") != digest(state):
        raise ValueError(f"checkpoint {path} can't be read: its checksum is wrong, so the file was damaged")
    if state.get("iteration") != checkpoint.iteration:
        raise ValueError(
            f"checkpoint {path} can't be read: it is the state of iteration {state.get('iteration')!r:.80}, and "
            f"{checkpoint.path.name} has the weights of iteration {checkpoint.iteration}"
        )
    bound = state.pop("weights_sha256", None)
    if bound is None and "format" not in _metadata(checkpoint.path):
        return state  # format 1 has no checksum of the weights
    if bound != digest(checkpoint.weights):
        raise ValueError(f"checkpoint {path} can't be read: it belongs to other weights than {checkpoint.path.name}'s")
    return state


def _remove(weights: Path) -> None:
    weights.unlink(missing_ok=True)
    _state_path(weights).unlink(missing_ok=True)


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())


def _state_path(weights: Path) -> Path:
    return weights.with_name(f"{weights.stem}.state.pt")
