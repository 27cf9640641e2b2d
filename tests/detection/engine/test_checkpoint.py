import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from detection.config.detection import DetectionConfig, JitterConfig
from detection.config.load import dump_config, load_config, parse_config
from detection.config.sections import BackboneConfig
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

TEXT = """
backbone: {name: vgg11, freeze_at: 2}
data: {train: [a:train, b:train], augment: [{HorizontalFlip: {p: 0.25}}]}
solver: {base_lr: 1e-5, clip_norm: 35.0}
seed: 7
"""
CONFIG = parse_config(DetectionConfig, TEXT)
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
CLASSES = ("cat", "dog", "naïve: \"quoted\" {'x'}")
PAIR = ["0000002.safetensors", "0000002.state.pt"]


def make_state(*, seed: int = 0, steps: int = 2) -> TrainState:
    """In the memory format of a detector, with momentum in the optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model.to(memory_format=torch.channels_last)
    state = TrainState(model, SGD(model.parameters(), lr=0.1, momentum=0.9), GradScaler("cpu", enabled=False))
    take_steps(state, steps)
    return state


def take_steps(state: TrainState, count: int) -> None:
    """Steps that depend on torch's random state."""
    for _ in range(count):
        state.optimizer.zero_grad()
        state.model(torch.rand(4, 3, 3, 3)).square().sum().backward()
        state.optimizer.step()
        state.iteration += 1
        if state.ema is not None:
            state.ema.update(state.model)


def make_checkpoints(run: Path, *, keep: int = 2) -> Checkpoints:
    return Checkpoints(run / "checkpoints", keep=keep, config=CONFIG, class_names=CLASSES)


def newest_of(run: Path, say: Any = pytest.fail) -> Any:
    """The newest checkpoint and its state; nothing may be said of damage unless ``say`` takes it."""
    return make_checkpoints(run).newest(say)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def names_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def state_of(weights: Path) -> Path:
    return weights.with_suffix(".state.pt")


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def saved(run) -> Path:
    """A checkpoint of iteration 2."""
    return make_checkpoints(run).save(make_state())


@pytest.fixture
def damaged(run, saved) -> Path:
    """The weights of iteration 3, of which a test damages a file."""
    return make_checkpoints(run).save(make_state(steps=3))


def test_weights_config_classes_and_iteration_come_back(run) -> None:
    state, other = make_state(), make_state(seed=1)
    path = make_checkpoints(run).save(state)
    assert path == run / "checkpoints" / "0000002.safetensors"
    read = read_checkpoint(path)
    assert_equal(read.weights, weights_of(state.model))
    assert (read.path, read.config, read.class_names, read.iteration) == (path, CONFIG, CLASSES, 2)
    load_detector_weights(other.model, read, CLASSES)
    assert_equal(weights_of(other.model), weights_of(state.model))
    assert stored_backbone(path) == BackboneConfig(name="vgg11", freeze_at=2)
    assert newest_of(run)[1]["best"] is None


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_restored_state_goes_on_as_if_never_stopped(run, decay) -> None:
    checkpoints, state, other = make_checkpoints(run), make_state(), make_state(seed=1)
    state.best = 0.25
    for one in (state, other) if decay else ():
        one.ema = EMA(one.model, decay)
    drawn = torch.get_rng_state()
    checkpoints.save(state)
    take_steps(state, 3)
    torch.set_rng_state(drawn)
    torch.rand(9)
    checkpoints.restore(newest_of(run), other)
    assert (other.iteration, other.best) == (2, 0.25)
    assert torch.equal(torch.get_rng_state(), drawn)
    take_steps(other, 3)
    assert_equal(weights_of(other.model), weights_of(state.model))
    assert_equal(weights_of(other.tested), weights_of(state.tested))


def test_averaged_weights_are_those_that_a_reader_gets(run) -> None:
    checkpoints, state = make_checkpoints(run), make_state()
    state.ema = EMA(state.model, 0.9)
    take_steps(state, 1)
    checkpoints.save(state)
    checkpoints.save_evaluated(state, best=True)
    assert not torch.equal(weights_of(state.ema.model)["0.weight"], weights_of(state.model)["0.weight"])
    for path in (run, run / "checkpoints" / "best.safetensors"):
        assert_equal(read_checkpoint(path).weights, weights_of(state.ema.model))


def test_the_newest_stay_and_the_best_beside_them(run) -> None:
    checkpoints, state = make_checkpoints(run), make_state()
    assert newest_of(run) is None
    for state.iteration in (5, 10, 100):
        checkpoints.save(state)
    kept = [f"{number}.{kind}" for number in ("0000010", "0000100") for kind in ("safetensors", "state.pt")]
    assert names_in(run) == kept
    best = weights_of(state.model)
    checkpoints.save_evaluated(state, best=True)
    for _ in range(2):
        take_steps(state, 1)
        checkpoints.save(state)
    assert names_in(run)[0::2] == ["0000101.safetensors", "0000102.safetensors", "best.safetensors"]
    read = read_checkpoint(run / "checkpoints" / "best.safetensors")
    assert_equal(read.weights, best)
    assert read.iteration == 100
    checkpoints.save_evaluated(state, best=True)  # a better one
    assert read_checkpoint(run / "checkpoints" / "best.safetensors").iteration == 102


def test_the_score_of_the_best_f1_stands_in_evaluated_weights(run, saved) -> None:
    assert read_checkpoint(run).best_f1_score is None
    make_checkpoints(run).save_evaluated(make_state(), best=True, best_f1_score=0.37)
    files = [saved, saved.with_name("best.safetensors")]
    assert [read_checkpoint(path).best_f1_score for path in files] == [0.37] * 2
    make_checkpoints(run).save_evaluated(make_state(), best=False)
    assert newest_of(run) is not None  # the state still belongs to the weights


def test_a_run_directory_means_the_best_that_was_chosen_or_its_newest(run, saved) -> None:
    checkpoints, state = make_checkpoints(run), make_state(steps=3)
    newest = checkpoints.save(state)
    assert resolve_weights(run) == resolve_weights(str(newest)) == newest
    assert read_checkpoint(run).iteration == 3
    checkpoints.save_evaluated(state, best=True)
    take_steps(state, 1)
    later = checkpoints.save(state)
    assert resolve_weights(run).name == "best.safetensors"
    assert read_checkpoint(run).iteration == 3
    state_of(later).unlink()  # weights without their state cannot be resumed
    assert newest_of(run)[0].path == newest


def test_a_run_of_format_1_means_its_newest(run) -> None:
    old = Path(__file__).parents[2] / "old_runs" / "format1" / "c4"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("best", "0000050"):
        shutil.copy(old / "checkpoints" / "0000050.safetensors", run / "checkpoints" / f"{name}.safetensors")
    assert resolve_weights(run).name == "0000050.safetensors"


def test_the_backbone_of_other_files_is_none(tmp_path) -> None:
    for name, content in (("empty", b""), ("text", b"no weights at all"), ("zip", b"PK\x03\x04 broken")):
        (tmp_path / name).write_bytes(content)
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign", metadata={"format": "pt"})
    torch.save({"a": torch.zeros(1)}, tmp_path / "torch")
    for path in (*sorted(tmp_path.iterdir()), tmp_path / "absent", tmp_path):
        assert stored_backbone(path) is None


@pytest.mark.parametrize("name", ["save_file", "torch.save", "shutil.copyfile"])
@pytest.mark.parametrize("again", [False, True])
def test_a_disk_that_fills_up_leaves_what_was_there(run, saved, monkeypatch, name, again) -> None:
    checkpoints, state = make_checkpoints(run, keep=1), make_state(steps=2 if again else 3)
    if "copy" in name:
        checkpoints.save_evaluated(make_state(), best=True)
    before, content = names_in(run), saved.read_bytes()

    def fails(content: Any, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(f"{Checkpoints.__module__}.{name}", fails)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_evaluated(make_state(), best=True) if "copy" in name else checkpoints.save(state)
    assert names_in(run) == before
    assert saved.read_bytes() == content
    assert newest_of(run)[0].path == saved
    assert read_checkpoint(run).iteration == 2


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_damaged_weights_and_files_of_another_kind_are_refused(saved, tmp_path) -> None:
    whole = saved.read_bytes()
    for kept in (0, 5, 200, -1):
        saved.write_bytes(whole[:kept])
        refused(saved, "can't be read")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    for path, message in (
        (tmp_path / "weights.pth", r"weights\.pth can't be read"),
        (tmp_path / "plain.safetensors", "is no detector checkpoint.*'config', 'class_names'"),
        (tmp_path / "absent", r"no checkpoint at .*absent: give a \.safetensors file"),
        (tmp_path, "no checkpoint at"),
    ):
        refused(path, message)


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
def test_metadata_that_no_version_writes(saved, changes, words) -> None:
    with safe_open(saved, framework="pt") as opened:
        metadata = opened.metadata() | changes
    kept = {name: text for name, text in metadata.items() if text is not None}
    save_file(read_checkpoint(saved).weights, saved, metadata=kept)
    refused(saved, re.escape(words))


def test_class_names_that_are_none(tmp_path) -> None:
    for names in ("5", "null", "[5]", '"cat"', "[" * 100_000):
        metadata = {"config": dump_config(CONFIG), "class_names": names, "iteration": "2"}
        save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata=metadata)
        refused(tmp_path / "odd.safetensors", r"odd\.safetensors.*class.names")


def test_other_classes_and_architectures_are_refused_with_both_sides(saved) -> None:
    own, read = make_state().model, read_checkpoint(saved)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3))
    for model, names, parts in (
        (own, ("cat", "bird"), ("was trained on 3 classes", "'dog'", "2: ('cat', 'bird')")),
        (own, (CLASSES[1], CLASSES[0], CLASSES[2]), ("classes",)),
        (other, CLASSES, ("do not fit", "2.weight", "3.weight (module (3, 4), weights (2, 4))")),
    ):
        before = weights_of(model)
        with pytest.raises(ValueError, match=re.escape(str(saved))) as error:
            load_detector_weights(model, read, names)
        assert [part for part in parts if part not in str(error.value)] == []
        assert_equal(weights_of(model), before)


@pytest.mark.parametrize("kind", ["Pairs: other run", "Pairs: other iteration", "Pairs: unknown weights"])
def test_a_state_of_other_weights_is_refused(run, saved, tmp_path, kind) -> None:
    words = "belongs to other weights"
    if "run" in kind:
        shutil.copy(state_of(make_checkpoints(tmp_path / "other").save(make_state(seed=1))), state_of(saved))
    elif "iteration" in kind:
        later = make_checkpoints(run).save(make_state(steps=3))
        shutil.move(state_of(later), state_of(saved))
        later.unlink()
        words = r"state of iteration 3, and 0000002\.safetensors has the weights of iteration 2"
    else:
        state = torch.load(state_of(saved), weights_only=True)
        del state["sha256"], state["weights_sha256"]
        torch.save({"sha256": digest(state), **state}, state_of(saved))
    with pytest.raises(ValueError, match=words):
        newest_of(run, print)


@pytest.mark.parametrize("stripped", [False, True])
def test_a_damaged_state_and_none_before_it(run, saved, stripped) -> None:
    file, said = state_of(saved), []
    if stripped:
        content = torch.load(file, weights_only=True)
        del content["sha256"]
        torch.save(content, file)
    else:
        file.write_bytes(file.read_bytes()[:200])
    words = "it has no checksum, so another version wrote it" if stripped else "no other checkpoint is left"
    with pytest.raises(ValueError, match=rf"state\.pt can't be read: .*{words}") as error:
        newest_of(run, said.append)
    assert str(file) in str(error.value)
    assert len(said) == 1
    assert names_in(run) == PAIR


def flip(path: Path, place: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        *((".safetensors", part) for part in ("weights", "config", 0.0, 0.3, 0.9)),
        *((".state.pt", part) for part in ("momentum", "no checksum", 0.0, 0.3, 0.9)),
    ],
)
def test_a_file_that_is_cut_off_or_a_bit_that_is_flipped_is_put_aside(run, damaged, suffix, part) -> None:
    """The run goes on from iteration 2."""
    file, said, state = damaged.with_suffix(suffix), list[str](), make_state(seed=1)
    if isinstance(part, float):  # the share that is left
        file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    elif part == "weights":
        flip(file, file.stat().st_size - 5)
    elif part == "config":
        flip(file, file.read_bytes().index(b"vgg11"), bit=1)
    elif part == "momentum":
        momentum = torch.load(file, weights_only=True)["optimizer"]["state"][0]["momentum_buffer"].untyped_storage()
        flip(file, file.read_bytes().index(bytes(momentum.tolist())) + 2)
    else:
        torch.save({"iteration": 3}, file)
    newest = newest_of(run, said.append)
    assert newest[0].iteration == 2
    (line,) = said
    assert line.startswith(f"warning: checkpoint {file} can't be read: ")
    make_checkpoints(run).restore(newest, state)
    aside = ["0000003.safetensors.damaged", "0000003.state.pt.damaged"]
    assert names_in(run) == [*PAIR, *aside]
    assert resolve_weights(run).name == PAIR[0]
    take_steps(state, 1)
    make_checkpoints(run).save(state)
    assert names_in(run) == [*PAIR, "0000003.safetensors", aside[0], "0000003.state.pt", aside[1]]


@pytest.mark.parametrize("suffix", [".safetensors", ".state.pt"])
def test_every_bit_of_a_file_counts_or_changes_nothing(run, damaged, suffix) -> None:
    file, expected, found = damaged.with_suffix(suffix), newest_of(run), 0
    whole = file.read_bytes()
    for place in range(7, len(whole), len(whole) // 30):
        flip(file, place, place % 8)
        newest = newest_of(run, lambda text: None)
        file.write_bytes(whole)
        if newest[0].iteration == 3:
            assert digest([newest[0].weights, newest[1]]) == digest([expected[0].weights, expected[1]])
            assert newest[0].config == CONFIG
        else:
            found += 1
    assert found > 5


def test_leftovers_of_a_process_that_was_killed_go(run, saved) -> None:
    for name in ("0000003.safetensors.tmp", "0000003.state.pt", "best.safetensors.tmp"):
        saved.with_name(name).write_bytes(b"half")
    make_checkpoints(run).restore(newest_of(run), make_state())
    assert names_in(run) == PAIR


def test_changed_keys_have_both_values() -> None:
    jitter = replace(CONFIG.data, jitter=JitterConfig())
    other = replace(CONFIG, seed=8, solver=replace(CONFIG.solver, steps=(1, 2)), data=jitter)
    new = {"size: None -> 1024", "low: None -> 0.1", "high: None -> 2.0"}
    expected = {"seed: 7 -> 8", "solver.steps: [50000] -> [1, 2]", *(f"data.jitter.{line}" for line in new)}
    assert set(changed_keys(CONFIG, other)) == expected
    assert "data.jitter.size: 1024 -> None" in changed_keys(other, CONFIG)
    assert changed_keys(CONFIG, CONFIG) == []


def test_a_detector_that_was_trained_elsewhere(tmp_path) -> None:
    weights = {"a": torch.arange(3.0), "b": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    for target, file, config in (
        ("run", "run/checkpoints/0000000.safetensors", "run/config.yaml"),
        ("a/b.safetensors", "a/b.safetensors", "a/b.yaml"),
    ):
        assert write_converted(str(tmp_path / target), CONFIG, CLASSES, weights) == tmp_path / file
        read = read_checkpoint(tmp_path / target)
        assert (read.config, read.class_names, read.iteration) == (CONFIG, CLASSES, 0)
        assert_equal(read.weights, weights)
        assert load_config(DetectionConfig, tmp_path / config) == CONFIG
    assert newest_of(tmp_path / "run") is None  # nothing to resume
