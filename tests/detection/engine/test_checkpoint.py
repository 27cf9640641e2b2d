"""Mirrors detection/engine/checkpoint.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from detection.config import BackboneConfig, Config, DataConfig, SolverConfig
from detection.engine import checkpoint as checkpoint_module
from detection.engine.checkpoint import Checkpoints, load_detector_weights, read_checkpoint, resolve_weights
from detection.engine.train import TrainState

CONFIG = Config(
    backbone=BackboneConfig(name="vgg11", freeze_at=2),
    data=DataConfig(train=("a:train", "b:train"), augment=({"HorizontalFlip": {"p": 0.25}},)),
    solver=SolverConfig(base_lr=1e-5, clip_norm=35.0),
    seed=7,
)
CLASSES = ("cat", "dog", "naïve: \"quoted\" {'x'}")


def make_state(*, seed: int = 0, width: int = 4) -> TrainState:
    """After two steps, so that the optimizer has a momentum."""
    torch.manual_seed(seed)
    # The memory format of a detector.
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))
    model.to(memory_format=torch.channels_last)
    state = TrainState(model, SGD(model.parameters(), lr=0.1, momentum=0.9), GradScaler("cpu", enabled=False))
    for _ in range(2):
        take_step(state)
    return state


def take_step(state: TrainState) -> None:
    """Depends on torch's random state."""
    state.optimizer.zero_grad()
    state.model(torch.rand(4, 3, 3, 3)).square().sum().backward()
    state.optimizer.step()
    state.iteration += 1


def make_checkpoints(run: Path, *, keep: int = 2, **options: Any) -> Checkpoints:
    return Checkpoints(run / "checkpoints", keep=keep, **{"config": CONFIG, "class_names": CLASSES, **options})


def weights_of(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.model.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def names_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def saved(run: Path) -> Path:
    """A checkpoint of iteration 2."""
    return make_checkpoints(run).save(make_state())


class TestRoundTrip:
    """What goes in comes out."""

    def test_weights_config_classes_and_iteration(self, run: Path) -> None:
        state = make_state()
        path = make_checkpoints(run).save(state)
        assert path == run / "checkpoints" / "0000002.safetensors"
        read = read_checkpoint(path)
        assert_equal(read.weights, weights_of(state))
        assert (read.path, read.config, read.class_names, read.iteration) == (path, CONFIG, CLASSES, 2)

    def test_loading_gives_the_weights_back(self, saved: Path) -> None:
        expected, other = weights_of(make_state()), make_state(seed=1)
        load_detector_weights(other.model, read_checkpoint(saved), CLASSES)
        assert_equal(weights_of(other), expected)

    def test_restored_state_goes_on_as_if_never_stopped(self, run: Path) -> None:
        checkpoints = make_checkpoints(run)
        state = make_state()
        state.best = 0.25
        checkpoints.save(state)
        for _ in range(3):
            take_step(state)
        other = make_state(seed=1)
        newest = checkpoints.newest()
        assert newest is not None
        checkpoints.restore(newest, other)
        assert (other.iteration, other.best) == (2, 0.25)
        for _ in range(3):
            take_step(other)
        assert_equal(weights_of(other), weights_of(state))

    def test_no_best_yet(self, run: Path, saved: Path) -> None:
        newest = make_checkpoints(run).newest()
        assert newest is not None
        assert newest[0] == saved
        assert newest[1]["best"] is None


class TestFiles:
    """Which files there are."""

    def test_only_the_newest_stay(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run, keep=2), make_state()
        for state.iteration in (5, 10, 100):
            checkpoints.save(state)
        assert names_in(run) == [
            "0000010.safetensors",
            "0000010.state.pt",
            "0000100.safetensors",
            "0000100.state.pt",
        ]

    def test_best_stays_beside_them(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run, keep=1), make_state()
        best = weights_of(state)
        checkpoints.keep_best(checkpoints.save(state), state)
        for _ in range(2):
            take_step(state)
            checkpoints.save(state)
        assert names_in(run) == ["0000004.safetensors", "0000004.state.pt", "best.safetensors"]
        read = read_checkpoint(run / "checkpoints" / "best.safetensors")
        assert_equal(read.weights, best)
        assert read.iteration == 2

    def test_a_better_one_takes_its_place(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        for _ in range(2):
            checkpoints.keep_best(checkpoints.save(state), state)
            take_step(state)
        assert read_checkpoint(run / "checkpoints" / "best.safetensors").iteration == 3

    def test_run_directory_stands_for_its_newest(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        checkpoints.keep_best(checkpoints.save(state), state)
        take_step(state)
        newest = checkpoints.save(state)
        assert resolve_weights(run) == newest
        assert read_checkpoint(run).iteration == 3
        assert resolve_weights(str(newest)) == newest

    def test_nothing_saved_yet(self, run: Path) -> None:
        assert make_checkpoints(run).newest() is None

    def test_weights_without_their_state_cannot_be_resumed(self, run: Path, saved: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        take_step(state)
        checkpoints.save(state).with_name("0000003.state.pt").unlink()
        newest = checkpoints.newest()
        assert newest is not None
        assert newest[0] == saved


class TestInterruptedWrite:
    """The disk fills up in the middle of a file."""

    def test_of_the_weights(self, run: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = saved.read_bytes()

        def fails(weights: Any, path: Path, **options: Any) -> None:
            Path(path).write_bytes(before[: len(before) // 2])
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint_module, "save_file", fails)
        self.check(run, saved, before)

    def test_of_the_state(self, run: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = saved.read_bytes()

        def fails(state: Any, path: Path) -> None:
            Path(path).write_bytes(b"half of it")
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint_module.torch, "save", fails)
        self.check(run, saved, before)

    def check(self, run: Path, saved: Path, before: bytes) -> None:
        checkpoints, state = make_checkpoints(run, keep=1), make_state()
        take_step(state)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(state)
        assert not [name for name in names_in(run) if name.endswith(".tmp")]
        assert "0000003.safetensors" not in names_in(run)
        assert saved.read_bytes() == before
        newest = checkpoints.newest()
        assert newest is not None
        assert newest[0] == saved
        assert resolve_weights(run) == saved

    def test_of_the_best(self, run: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoints = make_checkpoints(run)
        checkpoints.keep_best(saved, make_state())
        before = names_in(run)

        def fails(source: Path, path: Path) -> None:
            Path(path).write_bytes(b"half of it")
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint_module.shutil, "copyfile", fails)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.keep_best(saved, make_state())
        assert names_in(run) == before
        assert read_checkpoint(run / "checkpoints" / "best.safetensors").iteration == 2


class TestRefusals:
    """ValueErrors say what is wrong with which file."""

    @pytest.mark.parametrize("kept", [0, 5, 200, -1])
    def test_damaged_weights(self, saved: Path, kept: int) -> None:
        saved.write_bytes(saved.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"can't be read") as error:
            read_checkpoint(saved)
        assert str(saved) in str(error.value)

    def test_damaged_state(self, run: Path, saved: Path) -> None:
        state = saved.with_name("0000002.state.pt")
        state.write_bytes(state.read_bytes()[:200])
        with pytest.raises(ValueError, match=r"state\.pt") as error:
            make_checkpoints(run).newest()
        assert str(state) in str(error.value)

    def test_file_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save({"a": torch.zeros(2)}, path)
        with pytest.raises(ValueError, match=r"weights\.pth can't be read"):
            read_checkpoint(path)

    def test_weights_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "plain.safetensors"
        save_file({"a": torch.zeros(2)}, path)
        with pytest.raises(ValueError, match=r"plain\.safetensors is no detector checkpoint.*'config', 'class_names'"):
            read_checkpoint(path)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no checkpoint at .*absent: give a \.safetensors file"):
            read_checkpoint(tmp_path / "absent")

    def test_run_directory_without_checkpoints(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(ValueError, match="no checkpoint at"):
            resolve_weights(tmp_path)

    def test_other_classes_are_named_with_ours(self, saved: Path) -> None:
        state = make_state()
        before = weights_of(state)
        with pytest.raises(ValueError, match="was trained on 3 classes") as error:
            load_detector_weights(state.model, read_checkpoint(saved), ("cat", "bird"))
        for part in (str(saved), "'dog'", "2: ('cat', 'bird')"):
            assert part in str(error.value)
        assert_equal(weights_of(state), before)

    def test_classes_in_another_order(self, saved: Path) -> None:
        with pytest.raises(ValueError, match="classes"):
            load_detector_weights(make_state().model, read_checkpoint(saved), (CLASSES[1], CLASSES[0], CLASSES[2]))

    def test_other_architectures_are_refused_with_names(self, saved: Path) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match="do not fit") as error:
            load_detector_weights(model, read_checkpoint(saved), CLASSES)
        for part in ("2.weight", "3.weight (module (3, 4), weights (2, 4))", str(saved)):
            assert part in str(error.value)
        assert_equal(model.state_dict(), before)
