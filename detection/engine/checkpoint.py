"""Checkpoints: the model as safetensors with its config and class names, and the rest of the training state beside it.

    checkpoints/0005000.safetensors   weights to test with; metadata: config, class names, iteration
    checkpoints/0005000.state.pt      optimizer, scaler, random state, best metric; read with weights_only; where the
                                      weights are averaged (solver.ema_decay), also those that training goes on with
    checkpoints/best.safetensors      the weights with the best metric so far

A file is written under another name, synced and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones.weights import load_matching
from detection.config import Config
from detection.config_io import dump_config, parse_config
from detection.engine.train import TrainState
from detection.files import write_whole

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "load_detector_weights",
    "load_initial_weights",
    "read_checkpoint",
    "resolve_weights",
    "write_converted",
]

# The layers with rows for every class, and how many rows one has; the logits also have the background's, the last.
CLASS_ROWS = {"predictor.classes.": 1, "predictor.deltas.": 4, "mask_stage.head.masks.": 1}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A detector's weights and what belongs to them."""

    path: Path
    weights: dict[str, Tensor]
    config: Config
    class_names: tuple[str, ...]
    iteration: int


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: RUN/checkpoints.
        keep: how many of the newest stay.
        config, class_names: stored in every checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, config: Config, class_names: Sequence[str]) -> None:
        self.folder, self.keep = folder, keep
        self.config, self.class_names = config, tuple(class_names)

    def save(self, state: TrainState) -> Path:
        """Writes the checkpoint of ``state`` and removes all but the newest ones; the path of the weights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{state.iteration:07d}.safetensors"
        self._save_state(state, path)
        _write(Checkpoint(path, state.tested.state_dict(), self.config, self.class_names, state.iteration))
        for old in _numbered(self.folder)[: -self.keep]:
            old.unlink()
            _state_path(old).unlink(missing_ok=True)
        return path

    def keep_best(self, path: Path, state: TrainState) -> None:
        """Makes a copy of the weights at ``path`` the best of the run, and stores the metric that made them so."""
        write_whole(self.folder / "best.safetensors", lambda temporary: shutil.copyfile(path, temporary))
        self._save_state(state, path)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Weights file and training state of the newest checkpoint; None if there is none.

        Raises:
            ValueError: the state can't be read.
        """
        for path in reversed(_numbered(self.folder)):
            state = _state_path(path)
            if state.is_file():
                try:
                    return path, torch.load(state, map_location="cpu", weights_only=True)
                except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
                    raise ValueError(
                        f"checkpoint {state} can't be read: {error}; remove it to go on from the one before"
                    ) from error
        return None

    def _save_state(self, state: TrainState, weights: Path) -> None:
        write_whole(_state_path(weights), lambda temporary: torch.save(state.state_dict(), temporary))

    def restore(self, newest: tuple[Path, dict[str, Any]], state: TrainState) -> None:
        """Puts what ``newest`` returned back into ``state``."""
        path, saved = newest
        load_detector_weights(state.model, read_checkpoint(path), self.class_names)
        state.load_state_dict(saved)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``: a .safetensors file, or a run directory, whose newest one is meant.

    Raises:
        ValueError: no such file, a corrupt one, or one that is not a detector of this project.
    """
    file = resolve_weights(path)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {file} can't be read: {error}") from error
    missing = [key for key in ("config", "class_names", "iteration") if key not in metadata]
    if missing:
        raise ValueError(f"{file} is no detector checkpoint: its metadata lacks {missing}")
    return Checkpoint(
        file,
        weights,
        parse_config(Config, metadata["config"]),
        tuple(json.loads(metadata["class_names"])),
        int(metadata["iteration"]),
    )


def resolve_weights(path: str | Path) -> Path:
    """The weights file that ``path``, a file or a run directory, stands for.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    found = _numbered(path / "checkpoints") if path.is_dir() else []
    if not found:
        raise ValueError(f"no checkpoint at {path}: give a .safetensors file or the directory of a run")
    return found[-1]


def write_converted(path: str | Path, config: Config, class_names: Sequence[str], state: Mapping[str, Tensor]) -> Path:
    """Writes a detector that was trained elsewhere, and its config; the path of the weights.

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
    file.parent.mkdir(parents=True, exist_ok=True)
    described = path.with_suffix(".yaml") if is_file else path / "config.yaml"
    described.write_text(dump_config(config))
    _write(Checkpoint(file, dict(state), config, tuple(class_names), iteration=0))
    return file


def load_detector_weights(model: nn.Module, checkpoint: Checkpoint, class_names: Sequence[str]) -> None:
    """Puts the weights of ``checkpoint`` into ``model``, all of them.

    Raises:
        ValueError: other classes than ``class_names``, or weights of another architecture (the names are listed).
    """
    if checkpoint.class_names != tuple(class_names):
        raise ValueError(
            f"{checkpoint.path} was trained on {len(checkpoint.class_names)} classes {checkpoint.class_names}, "
            f"the data set has {len(class_names)}: {tuple(class_names)}"
        )
    load_matching(model, checkpoint.weights, source=str(checkpoint.path))


def load_initial_weights(
    model: nn.Module, checkpoint: Checkpoint, class_names: Sequence[str], renamed: Mapping[str, str]
) -> tuple[str, ...]:
    """Puts the weights of ``checkpoint``, trained on other classes perhaps, into ``model`` as a start.

    Everything but the last layers of the stages must fit; of these, the rows of every class that both know are carried
    over, and the background's. A class that ``checkpoint`` lacks keeps the model's own rows.

    Args:
        model: a detector for ``class_names``.
        checkpoint: where to start from.
        class_names: K names.
        renamed: class name -> its name in ``checkpoint``, where they differ.

    Returns:
        The classes carried over.

    Raises:
        ValueError: weights of another architecture, a name in ``renamed`` that one side lacks, or no common class.
    """
    for here, there in renamed.items():
        if here not in class_names or there not in checkpoint.class_names:
            raise ValueError(
                f"init_classes maps {here!r} to {there!r}; the data set has {tuple(class_names)}, "
                f"{checkpoint.path} has {checkpoint.class_names}"
            )
    names = [renamed.get(name, name) for name in class_names]
    pairs = [(k, checkpoint.class_names.index(name)) for k, name in enumerate(names) if name in checkpoint.class_names]
    if not pairs:
        raise ValueError(f"{checkpoint.path} knows none of the classes {tuple(class_names)}: {checkpoint.class_names}")
    weights, own = dict(checkpoint.weights), model.state_dict()
    for name in weights.keys() & own.keys():
        for layer, per_class in CLASS_ROWS.items():
            if layer in name:
                weights[name] = _carried(weights[name], own[name], pairs, per_class, background="classes" in layer)
    load_matching(model, weights, source=str(checkpoint.path))
    return tuple(class_names[k] for k, _ in pairs)


def _carried(
    there: Tensor, here: Tensor, pairs: Sequence[tuple[int, int]], per_class: int, *, background: bool
) -> Tensor:
    """``here`` (rows, ...) with the rows of the classes in ``pairs`` taken from ``there``; class rows lie together."""
    if there.shape[1:] != here.shape[1:]:
        return there  # for load_matching to refuse with both shapes
    if len(there) == len(here) == per_class:
        return there  # one box for all classes, or one class
    result = here.detach().cpu().clone()
    for own, other in pairs:
        rows = slice(own * per_class, (own + 1) * per_class)
        result[rows] = there[other * per_class : (other + 1) * per_class]
    if background:
        result[-1] = there[-1]
    return result


def _write(checkpoint: Checkpoint) -> None:
    metadata = {
        "config": dump_config(checkpoint.config),
        "class_names": json.dumps(checkpoint.class_names),
        "iteration": str(checkpoint.iteration),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    write_whole(checkpoint.path, lambda temporary: save_file(weights, temporary, metadata=metadata))


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())


def _state_path(weights: Path) -> Path:
    return weights.with_name(f"{weights.stem}.state.pt")
