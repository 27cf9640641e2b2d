"""Mirrors detection/engine/manifest.py."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex, index_digest
from detection.engine.loop import TrainState
from detection.engine.manifest import manifest_entry, read_manifest

CPU = torch.device("cpu")


def make_state() -> TrainState:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return TrainState(model, SGD(model.parameters(), lr=0.1), GradScaler("cpu", enabled=False))


@pytest.fixture
def index(make_index: Callable[..., AnnotationIndex]) -> AnnotationIndex:
    return make_index([[((1, 2, 3, 4), 0, False)], []])


def test_entry_of_a_run_that_ends_well(index: AnnotationIndex, tmp_path: Path) -> None:
    state = make_state()
    with manifest_entry(tmp_path, DetectionConfig(seed=3), state, {"train": index}, CPU):
        (running,) = read_manifest(tmp_path)
        assert (running["ended"], running["exit"], running["last_iteration"]) == (None, None, None)
        state.iteration = 5
    (entry,) = read_manifest(tmp_path)
    assert (entry["exit"], entry["first_iteration"], entry["last_iteration"]) == ("finished", 0, 5)
    assert datetime.fromisoformat(entry["ended"]) >= datetime.fromisoformat(entry["started"])
    assert entry["data"] == {"train": {"images": 2, "objects": 1, "sha256": index_digest(index)}}
    assert torch.__version__.startswith(entry["versions"]["torch"])
    assert entry["world_size"] == 1
    assert entry["hardware"]["device"] == "cpu"
    assert entry["hardware"]["threads"] == torch.get_num_threads()


def test_every_start_adds_an_entry(index: AnnotationIndex, tmp_path: Path) -> None:
    state = make_state()
    for config in (DetectionConfig(), DetectionConfig(), DetectionConfig(seed=1)):
        with manifest_entry(tmp_path, config, state, {"train": index}, CPU):
            state.iteration += 1
            state.model.get_parameter("bias").data += 1
    entries = read_manifest(tmp_path)
    assert [entry["first_iteration"] for entry in entries] == [0, 1, 2]
    configs, weights = ([entry[f"{name}_sha256"] for entry in entries] for name in ("config", "weights"))
    assert configs[0] == configs[1] != configs[2]
    assert len(set(weights)) == 3


@pytest.mark.parametrize("error", [ValueError("no disk"), KeyboardInterrupt()])
def test_entry_of_a_run_that_fails_names_the_error(
    index: AnnotationIndex, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)), manifest_entry(tmp_path, DetectionConfig(), make_state(), {"train": index}, CPU):
        raise error
    assert read_manifest(tmp_path)[0]["exit"] == f"{type(error).__name__}: {error}"


def warnings_of_a_start(folder: Path, index: AnnotationIndex, *, iteration: int = 5) -> list[str]:
    state = make_state()
    state.iteration = iteration
    with manifest_entry(folder, DetectionConfig(), state, {"train": index, "val": index}, CPU) as warnings:
        return warnings


def test_data_that_changed_since_the_last_start_is_told_once(
    index: AnnotationIndex, make_index: Callable[..., AnnotationIndex], tmp_path: Path
) -> None:
    fewer = make_index([[((1, 2, 3, 4), 0, False)]])
    moved = make_index([[((1, 2, 3, 5), 0, False)]])
    assert warnings_of_a_start(tmp_path, index, iteration=0) == []
    train, val = warnings_of_a_start(tmp_path, fewer)
    assert train == "warning: data.train has changed since the last start: 2 -> 1 images"
    assert "data.val" in val
    assert warnings_of_a_start(tmp_path, fewer) == []
    assert "as many images and objects, but other" in warnings_of_a_start(tmp_path, moved)[0]
    assert warnings_of_a_start(tmp_path, index, iteration=0) == []  # a run that starts anew compares nothing


@pytest.mark.parametrize("content", ["", '[{"data": {', "[" * 100_000, "5", "[7]"])
def test_a_broken_manifest_is_put_aside(index: AnnotationIndex, tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    (warning,) = warnings_of_a_start(tmp_path, index)
    assert str(tmp_path / "manifest.json") in warning
    assert (tmp_path / "manifest.json.damaged").read_text() == content
    assert len(read_manifest(tmp_path)) == 1
