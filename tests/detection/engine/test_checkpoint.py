"""Mirrors detection/engine/checkpoint.py."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from detection.config.detection import (
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    DetectorSolverConfig,
    JitterConfig,
)
from detection.config.load import dump_config, load_config
from detection.config.sections import BackboneConfig
from detection.engine import checkpoint as checkpoint_module
from detection.engine.checkpoint import (
    Checkpoints,
    changed_keys,
    load_detector_weights,
    read_checkpoint,
    resolve_weights,
    stored_backbone,
    write_converted,
)
from detection.engine.ema import EMA
from detection.engine.loop import TrainState
from detection.files import digest

CONFIG = DetectionConfig(
    backbone=DetectorBackboneConfig(name="vgg11", freeze_at=2),
    data=DetectorDataConfig(train=("a:train", "b:train"), augment=({"HorizontalFlip": {"p": 0.25}},)),
    solver=DetectorSolverConfig(base_lr=1e-5, clip_norm=35.0),
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


def unexpected(text: str) -> None:
    """For checkpoints that nobody damaged."""
    pytest.fail(text)


def save_best(checkpoints: Checkpoints, state: TrainState) -> None:
    checkpoints.save(state)
    checkpoints.save_evaluated(state, best=True)


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
        newest = checkpoints.newest(unexpected)
        assert newest is not None
        checkpoints.restore(newest, other)
        assert (other.iteration, other.best) == (2, 0.25)
        for _ in range(3):
            take_step(other)
        assert_equal(weights_of(other), weights_of(state))

    def test_averaged_weights_are_those_that_a_reader_gets(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        state.ema = EMA(state.model, 0.9)
        take_step(state)
        state.ema.update(state.model)
        save_best(checkpoints, state)
        averaged = dict(state.ema.model.state_dict())
        assert not torch.equal(averaged["0.weight"], weights_of(state)["0.weight"])
        for path in (run, run / "checkpoints" / "best.safetensors"):
            assert_equal(read_checkpoint(path).weights, averaged)

    def test_restored_average_goes_on_as_if_never_stopped(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        state.ema = EMA(state.model, 0.9)
        checkpoints.save(state)
        for _ in range(3):
            take_step(state)
            state.ema.update(state.model)
        other = make_state(seed=1)
        other.ema = EMA(other.model, 0.9)
        newest = checkpoints.newest(unexpected)
        assert newest is not None
        checkpoints.restore(newest, other)
        for _ in range(3):
            take_step(other)
            other.ema.update(other.model)
        assert_equal(weights_of(other), weights_of(state))
        assert_equal(dict(other.tested.state_dict()), dict(state.tested.state_dict()))

    def test_no_best_yet(self, run: Path, saved: Path) -> None:
        newest = make_checkpoints(run).newest(unexpected)
        assert newest is not None
        assert newest[0].path == saved
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
        save_best(checkpoints, state)
        for _ in range(2):
            take_step(state)
            checkpoints.save(state)
        assert names_in(run) == ["0000004.safetensors", "0000004.state.pt", "best.safetensors"]
        read = read_checkpoint(run / "checkpoints" / "best.safetensors")
        assert_equal(read.weights, best)
        assert read.iteration == 2

    def test_the_score_of_the_best_f1_stands_in_evaluated_weights(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run, keep=2), make_state()
        checkpoints.save(state)
        assert read_checkpoint(run).best_f1_score is None
        checkpoints.save_evaluated(state, best=True, best_f1_score=0.37)
        assert [read_checkpoint(path).best_f1_score for path in (run / "checkpoints").glob("*.safetensors")] == [
            0.37
        ] * 2
        assert checkpoints.newest(print) is not None  # the state still belongs to the weights

    def test_a_better_one_takes_its_place(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        for _ in range(2):
            save_best(checkpoints, state)
            take_step(state)
        assert read_checkpoint(run / "checkpoints" / "best.safetensors").iteration == 3

    def test_a_run_directory_means_its_newest_or_the_best_that_was_chosen(self, run: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        checkpoints.save(state)
        take_step(state)
        newest = checkpoints.save(state)
        assert resolve_weights(run) == newest
        assert read_checkpoint(run).iteration == 3
        assert resolve_weights(str(newest)) == newest
        save_best(checkpoints, state)
        take_step(state)
        checkpoints.save(state)
        assert resolve_weights(run).name == "best.safetensors"
        assert read_checkpoint(run).iteration == 3

    def test_a_run_of_format_1_means_its_newest(self, run: Path) -> None:
        old = Path(__file__).parents[2] / "old_runs" / "format1" / "c4"
        (run / "checkpoints").mkdir(parents=True)
        for name in ("best", "0000050"):
            shutil.copy(old / "checkpoints" / "0000050.safetensors", run / "checkpoints" / f"{name}.safetensors")
        assert resolve_weights(run).name == "0000050.safetensors"

    def test_nothing_saved_yet(self, run: Path) -> None:
        assert make_checkpoints(run).newest(unexpected) is None

    def test_weights_without_their_state_cannot_be_resumed(self, run: Path, saved: Path) -> None:
        checkpoints, state = make_checkpoints(run), make_state()
        take_step(state)
        checkpoints.save(state).with_name("0000003.state.pt").unlink()
        newest = checkpoints.newest(unexpected)
        assert newest is not None
        assert newest[0].path == saved


class TestStoredConfig:
    """The backbone's section alone of a file of weights."""

    def test_of_a_checkpoint(self, saved: Path) -> None:
        plain = BackboneConfig(name="vgg11", freeze_at=2)
        assert stored_backbone(saved) == plain

    def test_of_other_files_is_none(self, tmp_path: Path) -> None:
        for name, content in (("empty", b""), ("text", b"no weights at all"), ("zip", b"PK\x03\x04 broken")):
            (tmp_path / name).write_bytes(content)
        save_file({"a": torch.zeros(1)}, tmp_path / "plain")
        save_file({"a": torch.zeros(1)}, tmp_path / "foreign", metadata={"format": "pt"})
        torch.save({"a": torch.zeros(1)}, tmp_path / "torch")
        for path in (*sorted(tmp_path.iterdir()), tmp_path / "absent", tmp_path):
            assert stored_backbone(path) is None


class TestInterruptedWrite:
    """The disk fills up in the middle of a file."""

    def test_of_the_weights(self, run: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = saved.read_bytes()

        def fails(weights: Any, path: Path, **options: Any) -> None:
            Path(path).write_bytes(before[: len(before) // 2])
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint_module, "save_file", fails)
        self.check(run, saved, before)

    def test_of_the_weights_once_more(self, run: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = names_in(run)

        def fails(weights: Any, path: Path, **options: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint_module, "save_file", fails)
        with pytest.raises(OSError, match="No space left"):
            make_checkpoints(run).save(make_state())
        assert names_in(run) == before
        newest = make_checkpoints(run).newest(unexpected)
        assert newest is not None
        assert newest[0].path == saved

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
        newest = checkpoints.newest(unexpected)
        assert newest is not None
        assert newest[0].path == saved
        assert resolve_weights(run) == saved

    def test_of_the_best(self, run: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoints = make_checkpoints(run)
        checkpoints.save_evaluated(make_state(), best=True)
        before = names_in(run)

        def fails(source: Path, path: Path) -> None:
            Path(path).write_bytes(b"half of it")
            raise OSError("No space left on device")

        monkeypatch.setattr(checkpoint_module.shutil, "copyfile", fails)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save_evaluated(make_state(), best=True)
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

    def test_state_without_a_checksum(self, run: Path, saved: Path) -> None:
        state = saved.with_name("0000002.state.pt")
        content = torch.load(state, weights_only=True)
        del content["sha256"]
        torch.save(content, state)
        with pytest.raises(ValueError, match="it has no checksum, so another version wrote it"):
            make_checkpoints(run).newest(print)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"sha256": None}, "its checksum is missing"),
            ({"format": "7"}, "the format '7', and this version reads 1 to 3"),
            ({"format": None, "program": "cooking", "sha256": None}, "the program 'cooking'"),
            ({"format": None, "iteration": "soon", "sha256": None}, "its iteration is 'soon'"),
            ({"format": None, "class_names": '["cat"', "sha256": None}, "its class_names are no JSON"),
            ({"format": None, "config": "[1, 2", "sha256": None}, "its config"),
            ({"format": None, "iteration": "9"}, "its checksum is wrong"),  # what format 1 has counts
        ],
    )
    def test_metadata_that_no_version_writes(
        self, run: Path, saved: Path, changes: dict[str, str | None], words: str
    ) -> None:
        with safe_open(saved, framework="pt") as opened:
            metadata = opened.metadata() | changes
        kept = {name: text for name, text in metadata.items() if text is not None}
        save_file(read_checkpoint(saved).weights, saved, metadata=kept)
        with pytest.raises(ValueError, match=re.escape(words)) as error:
            read_checkpoint(saved)
        assert str(saved) in str(error.value)

    def test_damaged_state_and_none_before_it(self, run: Path, saved: Path) -> None:
        state = saved.with_name("0000002.state.pt")
        state.write_bytes(state.read_bytes()[:200])
        said: list[str] = []
        with pytest.raises(ValueError, match=r"state\.pt can't be read: .*no other checkpoint is left") as error:
            make_checkpoints(run).newest(said.append)
        assert str(state) in str(error.value)
        assert len(said) == 1
        assert names_in(run) == ["0000002.safetensors", "0000002.state.pt"]

    def test_file_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save({"a": torch.zeros(2)}, path)
        with pytest.raises(ValueError, match=r"weights\.pth can't be read"):
            read_checkpoint(path)

    @pytest.mark.parametrize("names", ["5", "null", "[5]", '"cat"', "[" * 100_000])
    def test_class_names_that_are_none(self, tmp_path: Path, names: str) -> None:
        path = tmp_path / "odd.safetensors"
        metadata = {"config": dump_config(CONFIG), "class_names": names, "iteration": "2"}
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"odd\.safetensors.*class.names"):
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


class TestPairs:
    """Weights and state of two moments are no checkpoint."""

    def test_state_of_another_iteration(self, run: Path, saved: Path) -> None:
        state = make_state()
        take_step(state)
        later = make_checkpoints(run).save(state)
        shutil.copy(later.with_name("0000003.state.pt"), saved.with_name("0000002.state.pt"))
        self.check(run, r"state of iteration 3, and 0000002\.safetensors has the weights of iteration 2", later)

    def test_state_of_the_same_iteration_of_another_run(self, run: Path, saved: Path, tmp_path: Path) -> None:
        other = make_checkpoints(tmp_path / "other").save(make_state(seed=1))
        shutil.copy(other.with_name("0000002.state.pt"), saved.with_name("0000002.state.pt"))
        self.check(run, "belongs to other weights")

    def test_state_that_says_nothing_of_its_weights(self, run: Path, saved: Path) -> None:
        file = saved.with_name("0000002.state.pt")
        state = torch.load(file, weights_only=True)
        del state["sha256"], state["weights_sha256"]
        torch.save({"sha256": digest(state), **state}, file)
        self.check(run, "belongs to other weights")

    def test_noting_an_evaluation_keeps_the_pair(self, run: Path, saved: Path) -> None:
        make_checkpoints(run).save_evaluated(make_state(), best=False)
        newest = make_checkpoints(run).newest(unexpected)
        assert newest is not None

    def check(self, run: Path, words: str, later: Path | None = None) -> None:
        if later is not None:
            later.unlink()
        with pytest.raises(ValueError, match=words):
            make_checkpoints(run).newest(lambda text: None)


class TestDamage:
    """A newer checkpoint that can't be read is passed over, whatever is wrong with it."""

    @pytest.fixture
    def damaged(self, run: Path, saved: Path) -> Path:
        """The weights of iteration 3, of which a test damages a file."""
        state = make_state()
        take_step(state)
        return make_checkpoints(run, keep=2).save(state)

    def flip(self, path: Path, place: int, bit: int = 3) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << bit
        path.write_bytes(content)

    def check(self, run: Path, damaged: Path, file: Path) -> None:
        """It goes on from iteration 2 and puts iteration 3 aside."""
        said: list[str] = []
        checkpoints, state = make_checkpoints(run), make_state(seed=1)
        newest = checkpoints.newest(said.append)
        assert newest is not None
        assert newest[0].iteration == 2
        assert len(said) == 1
        assert said[0].startswith(f"warning: checkpoint {file} can't be read: ")
        checkpoints.restore(newest, state)
        kept = ["0000002.safetensors", "0000002.state.pt"]
        aside = ["0000003.safetensors.damaged", "0000003.state.pt.damaged"]
        assert names_in(run) == [*kept, *aside]
        assert resolve_weights(run).name == "0000002.safetensors"
        take_step(state)
        checkpoints.save(state)
        assert names_in(run) == [*kept, "0000003.safetensors", aside[0], "0000003.state.pt", aside[1]]

    @pytest.mark.parametrize("name", ["0000003.safetensors", "0000003.state.pt"])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_cut_off(self, run: Path, damaged: Path, name: str, share: float) -> None:
        file = damaged.with_name(name)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        self.check(run, damaged, file)

    def test_a_bit_of_the_weights(self, run: Path, damaged: Path) -> None:
        self.flip(damaged, damaged.stat().st_size - 5)
        self.check(run, damaged, damaged)

    def test_a_letter_of_the_config(self, run: Path, damaged: Path) -> None:
        self.flip(damaged, damaged.read_bytes().index(b"vgg11"), bit=1)
        self.check(run, damaged, damaged)

    def test_a_bit_of_the_momentum(self, run: Path, damaged: Path) -> None:
        file = damaged.with_name("0000003.state.pt")
        state = torch.load(file, weights_only=True)
        momentum = state["optimizer"]["state"][0]["momentum_buffer"].untyped_storage()
        place = file.read_bytes().index(bytes(momentum.tolist()))
        self.flip(file, place + 2)
        self.check(run, damaged, file)

    @pytest.mark.parametrize("name", ["0000003.safetensors", "0000003.state.pt"])
    def test_every_bit_of_a_file_counts_or_changes_nothing(self, run: Path, damaged: Path, name: str) -> None:
        file, checkpoints = damaged.with_name(name), make_checkpoints(run)
        whole = file.read_bytes()
        expected = checkpoints.newest(unexpected)
        assert expected is not None
        found = 0
        for place in range(7, len(whole), len(whole) // 100):
            self.flip(file, place, place % 8)
            newest = checkpoints.newest(lambda text: None)
            file.write_bytes(whole)
            assert newest is not None
            if newest[0].iteration == 3:
                assert digest([newest[0].weights, newest[1]]) == digest([expected[0].weights, expected[1]])
                assert newest[0].config == CONFIG
            else:
                found += 1
        assert found > 5

    def test_state_without_a_checksum(self, run: Path, damaged: Path) -> None:
        file = damaged.with_name("0000003.state.pt")
        torch.save({"iteration": 3}, file)
        self.check(run, damaged, file)

    def test_leftovers_of_a_process_that_was_killed_go(self, run: Path, saved: Path) -> None:
        checkpoints = make_checkpoints(run)
        for name in ("0000003.safetensors.tmp", "0000003.state.pt", "best.safetensors.tmp"):
            (run / "checkpoints" / name).write_bytes(b"half")
        newest = checkpoints.newest(unexpected)
        assert newest is not None
        checkpoints.restore(newest, make_state())
        assert names_in(run) == ["0000002.safetensors", "0000002.state.pt"]


def test_changed_keys_have_both_values() -> None:
    other = replace(
        CONFIG, seed=8, solver=replace(CONFIG.solver, steps=(1, 2)), data=replace(CONFIG.data, jitter=JitterConfig())
    )
    assert set(changed_keys(CONFIG, other)) == {
        "seed: 7 -> 8",
        "solver.steps: [50000] -> [1, 2]",
        "data.jitter.size: None -> 1024",
        "data.jitter.low: None -> 0.1",
        "data.jitter.high: None -> 2.0",
    }
    assert "data.jitter.size: 1024 -> None" in changed_keys(other, CONFIG)
    assert changed_keys(CONFIG, CONFIG) == []


class TestConvertedDetector:
    """A detector that was trained elsewhere."""

    WEIGHTS: ClassVar = {"a": torch.arange(3.0), "b": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}

    def check(self, path: Path, config: Path) -> None:
        checkpoint = read_checkpoint(path)
        assert (checkpoint.config, checkpoint.class_names, checkpoint.iteration) == (CONFIG, CLASSES, 0)
        assert_equal(checkpoint.weights, self.WEIGHTS)
        assert load_config(DetectionConfig, config) == CONFIG

    def test_directory_becomes_a_run(self, run: Path) -> None:
        path = write_converted(run, CONFIG, CLASSES, self.WEIGHTS)
        assert path == run / "checkpoints" / "0000000.safetensors"
        self.check(run, run / "config.yaml")
        assert make_checkpoints(run).newest(unexpected) is None  # nothing to resume

    def test_file_has_its_config_beside_it(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "coco.safetensors"
        assert write_converted(str(path), CONFIG, CLASSES, self.WEIGHTS) == path
        self.check(path, tmp_path / "new" / "coco.yaml")
