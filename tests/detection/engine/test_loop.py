"""Mirrors detection/engine/loop.py; whole runs are in tests/detection/tasks/test_train.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

from detection.config.sections import SolverConfig
from detection.data.dataset import Batch
from detection.engine.ema import EMA
from detection.engine.feed import Feed
from detection.engine.loop import NotFiniteError, TrainState, Window, step
from detection.engine.optim import build_optimizer
from detection.engine.signals import StopRequest
from detection.padded import Targets
from detection.structures import ImageBatch, Target

CPU = torch.device("cpu")


class LineModel(nn.Module):
    """Fits w x + b to 1, where x is an image's brightness, and to 2: two losses, means over the images of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.25))
        self.modes: list[bool] = []
        self.autocast: list[bool] = []

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        assert len(images) == len(targets)
        self.modes.append(self.training)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        x = images.pixels.float().mean(dim=(1, 2, 3)) / 100
        y = self.w * x + self.b
        return {"first": (y - 1).square().mean(), "second": (y - 2).square().mean()}


class NanModel(LineModel):
    """Gets a loss that is not finite at its third batch."""

    value = float("nan")

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        losses = super().forward(images, targets)
        return losses | {"third": losses["first"] * (self.value if len(self.modes) == 3 else 1.0)}


def make_batch(*brightness: int) -> Batch:
    images = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in brightness]
    none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), ignore=torch.zeros(0).bool())
    paths = tuple(f"image{value}.jpg" for value in brightness)
    return Batch(ImageBatch.from_images(images), Targets.pad([none] * len(images)), tuple(range(len(images))), paths)


def batches(size: int = 2) -> Iterator[Batch]:
    """Brightness 10, 20, .. 80 again and again."""
    values = itertools.cycle(range(10, 90, 10))
    while True:
        yield make_batch(*itertools.islice(values, size))


def make_state(model: nn.Module | None = None, **sgd: Any) -> TrainState:
    model = model or LineModel()
    optimizer = SGD([{"params": list(model.parameters()), "lr_factor": 1.0}], lr=0.1, **sgd)
    return TrainState(model, optimizer, GradScaler("cpu", enabled=False))


def run(
    state: TrainState, *, parts: Iterable[Batch] | None = None, steps: int = 4, **solver: Any
) -> list[dict[str, float]]:
    """Takes ``steps`` steps; the losses of each."""
    config = SolverConfig(**solver)
    feed = Feed(parts or batches(), parts=config.accumulate, steps=steps, stop=StopRequest())
    feed.begin()
    state.model.train()
    losses = []
    for _ in range(steps):
        losses.append(step(state, state.model, feed, config, CPU))
        if state.ema is not None:
            state.ema.update(state.model)
        state.iteration += 1
    return losses


def weights(state: TrainState) -> list[float]:
    return [parameter.item() for parameter in state.model.parameters()]


def test_step_by_hand() -> None:
    state = make_state()
    (losses,) = run(state, parts=[make_batch(40, 80)], steps=1)
    y = [0.5 * 0.4 + 0.25, 0.5 * 0.8 + 0.25]
    slope = [2 * (value - 1) + 2 * (value - 2) for value in y]
    w, b = 0.5 - 0.1 * (slope[0] * 0.4 + slope[1] * 0.8) / 2, 0.25 - 0.1 * sum(slope) / 2
    assert weights(state) == pytest.approx([w, b])
    first, second = ((y[0] - 1) ** 2 + (y[1] - 1) ** 2) / 2, ((y[0] - 2) ** 2 + (y[1] - 2) ** 2) / 2
    assert losses == pytest.approx({"first": first, "second": second})


def test_parts_of_a_step_add_up_to_the_whole_batch() -> None:
    # True of this model, whose losses are means over images; a detector draws other samples for other batches.
    whole, halves = make_state(momentum=0.9), make_state(momentum=0.9)
    expected = run(whole, parts=batches(4), images_per_step=4)
    found = run(halves, parts=batches(2), images_per_step=4, accumulate=2)
    assert weights(halves) == pytest.approx(weights(whole), rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_window_has_the_means_of_its_steps() -> None:
    window = Window(waited=2.0)
    window.add({"first": 1.0, "second": 2.0})
    window.add({"first": 3.0, "second": 5.0})
    with window.paused():
        time.sleep(0.2)
    means = window.means(waited=2.5)
    assert 0 <= means.pop("seconds_per_step") < 0.1
    assert means == {"loss/first": 2.0, "loss/second": 3.5, "loss/total": 5.5, "data_seconds": 0.25}


def moved_by_first_step(state: TrainState, **solver: Any) -> float:
    before = torch.tensor(weights(state))
    state.optimizer.param_groups[0]["lr"] = 1.0
    run(state, steps=1, **solver)
    return (torch.tensor(weights(state)) - before).norm().item()


def test_clipping_bounds_the_step() -> None:
    free = moved_by_first_step(make_state())
    assert free > 1
    assert moved_by_first_step(make_state(), clip_norm=0.3) == pytest.approx(0.3, rel=1e-4)
    assert moved_by_first_step(make_state(), clip_norm=2 * free) == pytest.approx(free)


def test_clipping_sees_gradients_without_the_factor_of_half_precision() -> None:
    state = make_state()
    state.scaler = GradScaler("cpu", init_scale=1024.0)
    assert moved_by_first_step(state, precision="fp16", clip_norm=0.3) == pytest.approx(0.3, rel=1e-3)


def test_clipping_sees_the_gradient_of_the_whole_step() -> None:
    whole, halves = make_state(), make_state()
    run(whole, parts=batches(4), images_per_step=4, clip_norm=0.1)
    run(halves, parts=batches(2), images_per_step=4, accumulate=2, clip_norm=0.1)
    assert weights(halves) == pytest.approx(weights(whole), rel=1e-6)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", False), ("bf16", True)])
def test_precision_turns_autocast_on(precision: str, expected: bool) -> None:
    model = LineModel()
    run(make_state(model), precision=precision)
    assert model.autocast == [expected] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_has_all_it_takes_to_find_the_cause(value: float) -> None:
    model = NanModel()
    model.value = value
    state = make_state(model, momentum=0.9)
    run(state, steps=2)
    before = deepcopy([state.model.state_dict(), state.optimizer.state_dict()])
    with pytest.raises(NotFiniteError) as error:
        run(state, parts=itertools.islice(batches(), 2, None))
    message = str(error.value)
    for part in ("iteration 2", "first 0.", "second ", f"third {value}", "image50.jpg, image60.jpg"):
        assert part in message
    assert error.value.files == (("image50.jpg", "image60.jpg"),)
    assert str([state.model.state_dict(), state.optimizer.state_dict()]) == str(before)  # the step was not taken


class LogModel(LineModel):
    """Its loss is finite at w = 0 and the gradient there is not."""

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        return {"root": self.w.abs().sqrt() + self.b * 0}


def test_gradient_that_is_not_finite_is_caught_though_the_loss_is() -> None:
    model = LogModel()
    model.w.data.zero_()
    for clip in (None, 1.0):
        with pytest.raises(NotFiniteError, match=r"gradient is not finite at iteration 0: norm (nan|inf), root 0; ima"):
            run(make_state(model), clip_norm=clip)
    assert weights(make_state(model)) == [0.0, 0.25]


def test_collapse_of_the_loss_scale_is_named() -> None:
    state = make_state(LogModel())
    state.model.get_parameter("w").data.zero_()
    state.scaler = GradScaler("cpu", init_scale=3e-4)
    with pytest.raises(
        NotFiniteError, match=r"loss scale collapsed at iteration 1: 7\.5e-05.*precision to bf16 or fp32"
    ):
        run(state, precision="fp16")


def test_overflow_in_half_precision_is_everyday_work() -> None:
    state = make_state(LogModel())
    state.model.get_parameter("w").data.zero_()
    state.scaler = GradScaler("cpu", init_scale=1024.0)
    run(state, precision="fp16", clip_norm=1.0)
    assert state.iteration == 4
    assert state.scaler.get_scale() == 64.0


def test_second_part_of_a_step_is_checked_too() -> None:
    state = make_state(NanModel())
    with pytest.raises(NotFiniteError, match=r"iteration 1.*image50\.jpg, image60\.jpg"):
        run(state, images_per_step=4, accumulate=2)


def test_state_has_a_type_that_safe_loading_admits(tmp_path: Any) -> None:
    state = make_state(momentum=0.9)
    run(state)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    other = make_state(momentum=0.9)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.iteration == 4
    momenta = [
        torch.stack([s.optimizer.state[p]["momentum_buffer"] for p in s.model.parameters()]) for s in (state, other)
    ]
    assert torch.equal(*momenta)
    drawn = torch.rand(3)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.rand(3), drawn)


def saved_by(state: TrainState) -> dict[str, Any]:
    """What ``state`` writes to a checkpoint after four steps."""
    run(state)
    return state.state_dict()


def test_resumed_run_takes_the_settings_of_its_own_config() -> None:
    saved = saved_by(make_state(momentum=0.9, weight_decay=0.1))
    other = make_state(momentum=0.5, weight_decay=0.25)
    other.optimizer.param_groups[0]["lr"] = 0.75
    other.load_state_dict(saved)
    (group,) = other.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["lr"], group["lr_factor"]) == (0.5, 0.25, 0.75, 1.0)


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.5), (0.9, 0.0), (0.0, 0.9)])
def test_step_after_a_resume_with_another_momentum_by_hand(before: float, after: float) -> None:
    state = make_state(momentum=before)
    saved = saved_by(state)
    old = [state.optimizer.state[p].get("momentum_buffer") for p in state.model.parameters()]
    velocity = [0.0 if buffer is None else buffer.item() for buffer in old]
    other = make_state(momentum=after)
    other.model.load_state_dict(state.model.state_dict())
    other.load_state_dict(saved)
    start = weights(other)
    run(other, parts=[make_batch(40, 80)], steps=1)
    w, b = start
    slope = [2 * (w * x + b - 1) + 2 * (w * x + b - 2) for x in (0.4, 0.8)]
    gradient = [(slope[0] * 0.4 + slope[1] * 0.8) / 2, sum(slope) / 2]
    expected = [s - 0.1 * (after * v + g) for s, v, g in zip(start, velocity, gradient, strict=True)]
    assert weights(other) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("groups", [[1], [1, 1], [2, 1]])
def test_optimizer_of_other_parameters_is_refused_with_both_sides(groups: list[int]) -> None:
    saved = saved_by(make_state(momentum=0.9))
    other = make_state()
    parameters = [[nn.Parameter(torch.tensor(0.0)) for _ in range(count)] for count in groups]
    other.optimizer = SGD([{"params": group, "lr_factor": 1.0} for group in parameters], lr=0.1)
    drawn = torch.get_rng_state()
    with pytest.raises(ValueError, match="freeze_at and norm that") as error:
        other.load_state_dict(saved)
    assert f"groups of [2] parameters, this config's has {groups}" in str(error.value)
    assert other.iteration == 0
    assert not other.optimizer.state
    assert torch.equal(torch.get_rng_state(), drawn)


def test_resume_into_and_out_of_half_precision() -> None:
    full, half = make_state(), make_state()
    half.scaler = GradScaler("cpu", enabled=True, init_scale=128.0)
    run(half, precision="fp16")
    saved_full, saved_half = saved_by(full), half.state_dict()
    into = make_state()
    into.scaler = GradScaler("cpu", enabled=True, init_scale=64.0)
    into.load_state_dict(saved_full)
    assert (into.iteration, into.scaler.get_scale()) == (4, 64.0)
    out = make_state()
    out.load_state_dict(saved_half)
    assert (out.iteration, out.scaler.is_enabled()) == (4, False)
    again = make_state()
    again.scaler = GradScaler("cpu", enabled=True, init_scale=64.0)
    again.load_state_dict(saved_half)
    assert again.scaler.get_scale() == 128.0
    for state in (into, out, again):
        run(state, steps=1, precision="fp16" if state.scaler.is_enabled() else "fp32")
        assert state.iteration == 5


def averaged_state(decay: float = 0.5) -> TrainState:
    state = make_state(momentum=0.9)
    state.ema = EMA(state.model, decay)
    return state


def test_weights_are_averaged_after_every_step() -> None:
    state, trained, averaged = averaged_state(), [0.5], [0.5]

    for _ in range(4):
        run(state, steps=1)
        trained.append(weights(state)[0])
        averaged.append(next(state.tested.parameters()).item())
    for number, decay in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14], start=1):
        assert averaged[number] == pytest.approx(decay * averaged[number - 1] + (1 - decay) * trained[number])


def test_an_average_does_not_change_the_training() -> None:
    plain, averaged = make_state(momentum=0.9), averaged_state()
    run(plain)
    run(averaged)
    assert weights(averaged) == weights(plain)
    assert plain.tested is plain.model
    assert averaged.tested is not averaged.model


def resumed(saved_from: TrainState, into: TrainState) -> TrainState:
    """``into`` with the state and, as a checkpoint does it, the saved weights of ``saved_from``."""
    into.model.load_state_dict(saved_from.tested.state_dict())
    into.load_state_dict(deepcopy(saved_from.state_dict()))
    return into


def test_resume_restores_the_trained_weights_and_the_average() -> None:
    saved = averaged_state()
    run(saved)
    other = resumed(saved, averaged_state())
    for state in (saved, other):
        run(state, steps=3)
    assert weights(other) == weights(saved)
    assert [p.item() for p in other.tested.parameters()] == [p.item() for p in saved.tested.parameters()]


def test_resume_into_and_out_of_an_average() -> None:
    plain, averaged = make_state(momentum=0.9), averaged_state()
    run(plain)
    run(averaged)
    into, out = resumed(plain, averaged_state()), resumed(averaged, make_state(momentum=0.9))
    assert into.ema is not None
    assert into.ema.steps == 0
    assert [p.item() for p in into.tested.parameters()] == weights(into) == weights(plain)
    assert weights(out) == weights(averaged)


def test_a_process_that_the_checkpoint_does_not_know_draws_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(momentum=0.9)
    state.evaluated, state.not_finite = 2, 3
    saved = saved_by(state)
    assert len(saved["random"]) == 1
    drawn = []
    for rank in (0, 0, 1, 2):
        monkeypatch.setattr("detection.engine.loop.rank", lambda rank=rank: rank)
        other = make_state(momentum=0.9)
        other.load_state_dict(saved)
        assert (other.iteration, other.evaluated, other.not_finite) == (4, 2, 3)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(("before", "after"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_resume_with_another_optimizer_is_refused(before: str, after: str) -> None:
    saved, other = (make_state() for _ in range(2))
    for state, name in ((saved, before), (other, after)):
        state.optimizer = build_optimizer(state.model, SolverConfig(optimizer=name))  # pyright: ignore[reportArgumentType]
    run(saved)
    with pytest.raises(ValueError, match=r"another solver\.optimizer \(sgd or adamw\)"):
        other.load_state_dict(saved.state_dict())
    assert other.iteration == 0


def test_adamw_resumes_exactly() -> None:
    def make() -> TrainState:
        state = make_state()
        state.optimizer = build_optimizer(state.model, SolverConfig(optimizer="adamw"))
        return state

    saved = make()
    run(saved)
    other = resumed(saved, make())
    for state in (saved, other):
        run(state, steps=3)
    assert weights(other) == weights(saved) != [0.5, 0.25]


def test_batch_norm_of_a_single_value_names_keys_and_size() -> None:
    class Tiny(LineModel):
        norm = nn.BatchNorm2d(3)

        def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
            return {"loss": self.norm(images.pixels.float().mean(dim=(2, 3), keepdim=True)).sum() * self.w}

    with pytest.raises(ValueError, match=r"1 images of \(2, 2\) pixels .*\[1, 3, 1, 1\].*backbone\.norm .*frozen_bn"):
        run(make_state(Tiny()), parts=batches(1), steps=1)
