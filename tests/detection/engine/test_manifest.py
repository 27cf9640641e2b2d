from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex, index_digest
from detection.engine.loop import TrainState
from detection.engine.manifest import manifest_entry, read_manifest


@pytest.fixture
def index(make_index) -> AnnotationIndex:
    return make_index([[((1, 2, 3, 4), 0, False)], []])


def make_state(iteration: int = 0) -> TrainState:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    state = TrainState(model, SGD(model.parameters(), lr=0.1), GradScaler("cpu", enabled=False))
    state.iteration = iteration
    return state


def entry(folder: Path, state: TrainState, config: DetectionConfig | None = None, **indices: AnnotationIndex) -> Any:
    return manifest_entry(folder, config or DetectionConfig(), state, indices, torch.device("cpu"))


def test_entry_of_a_run_that_ends_well(index, tmp_path) -> None:
    state = make_state()
    with entry(tmp_path, state, train=index):
        (running,) = read_manifest(tmp_path)
        assert (running["ended"], running["exit"], running["last_iteration"]) == (None, None, None)
        state.iteration = 5
    (ended,) = read_manifest(tmp_path)
    assert (ended["exit"], ended["first_iteration"], ended["last_iteration"]) == ("finished", 0, 5)
    assert datetime.fromisoformat(ended["ended"]) >= datetime.fromisoformat(ended["started"])
    assert ended["data"] == {"train": {"images": 2, "objects": 1, "sha256": index_digest(index)}}
    assert torch.__version__.startswith(ended["versions"]["torch"])
    hardware = (ended["world_size"], ended["hardware"]["device"], ended["hardware"]["threads"])
    assert hardware == (1, "cpu", torch.get_num_threads())


def test_every_start_adds_an_entry_and_an_error_is_named(index, tmp_path) -> None:
    state = make_state()
    for config in (DetectionConfig(), DetectionConfig(), DetectionConfig(seed=1)):
        with entry(tmp_path, state, config, train=index):
            state.iteration += 1
            state.model.get_parameter("bias").data += 1
    entries = read_manifest(tmp_path)
    assert [one["first_iteration"] for one in entries] == [0, 1, 2]
    configs, weights = ([one[f"{name}_sha256"] for one in entries] for name in ("config", "weights"))
    assert configs[0] == configs[1] != configs[2]
    assert len(set(weights)) == 3
    for error in (ValueError("no disk"), KeyboardInterrupt()):
        with pytest.raises(type(error)), entry(tmp_path, state, train=index):
            raise error
        assert read_manifest(tmp_path)[-1]["exit"] == f"{type(error).__name__}: {error}"


def warnings_of_a_start(folder: Path, index: AnnotationIndex, *, iteration: int = 5) -> list[str]:
    with entry(folder, make_state(iteration), train=index, val=index) as warnings:
        return warnings


def test_data_that_changed_since_the_last_start_is_told_once(index, make_index, tmp_path) -> None:
    fewer, moved = make_index([[((1, 2, 3, 4), 0, False)]]), make_index([[((1, 2, 3, 5), 0, False)]])
    assert warnings_of_a_start(tmp_path, index, iteration=0) == []
    train, val = warnings_of_a_start(tmp_path, fewer)
    assert train == "warning: data.train has changed since the last start: 2 -> 1 images"
    assert "data.val" in val
    assert warnings_of_a_start(tmp_path, fewer) == []
    assert "equally many images and objects, but other" in warnings_of_a_start(tmp_path, moved)[0]
    assert warnings_of_a_start(tmp_path, index, iteration=0) == []  # a run that starts anew compares nothing


@pytest.mark.parametrize("content", ["", '[{"data": {', "[" * 100_000, "5", "[7]"])
def test_a_broken_manifest_is_put_aside(index, tmp_path, content) -> None:
    (tmp_path / "manifest.json").write_text(content)
    (warning,) = warnings_of_a_start(tmp_path, index)
    assert str(tmp_path / "manifest.json") in warning
    assert (tmp_path / "manifest.json.damaged").read_text() == content
    assert len(read_manifest(tmp_path)) == 1
