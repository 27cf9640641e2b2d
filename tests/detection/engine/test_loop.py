import itertools
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
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

NOTHING = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), ignore=torch.zeros(0).bool())

assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


class LineModel(nn.Module):
    """Fits w x + b to 1, where x is an image's brightness, and to 2: two losses, means over the images of a batch."""

    def __init__(self, third: float = 1.0) -> None:
        super().__init__()
        self.w, self.b, self.third = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.25)), third
        self.autocast = list[bool]()

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        assert len(images) == len(targets)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        y = self.w * images.pixels.float().mean(dim=(1, 2, 3)) / 100 + self.b
        y = y * (self.third if len(self.autocast) == 3 else 1.0)
        return {"first": (y - 1).square().mean(), "second": (y - 2).square().mean()}


class RootModel(LineModel):
    """Its loss is finite at w = 0 and the gradient there is not."""

    def __init__(self) -> None:
        super().__init__()
        self.w.data.zero_()

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        return {"root": self.w.abs().sqrt() + self.b * 0}


def make_batch(*brightness: int) -> Batch:
    images = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in brightness]
    paths = tuple(f"image{value}.jpg" for value in brightness)
    return Batch(ImageBatch.from_images(images), Targets.pad([NOTHING] * len(images)), tuple(range(len(images))), paths)


def batches(size: int = 2) -> Iterator[Batch]:
    """Brightness 10, 20, .. 80 again and again."""
    values = itertools.cycle(range(10, 90, 10))
    while True:
        yield make_batch(*itertools.islice(values, size))


def make_state(model: nn.Module | None = None, *, decay: float | None = None, scale: float = 0, **sgd) -> TrainState:
    model = model or LineModel()
    optimizer = SGD([{"params": list(model.parameters()), "lr_factor": 1.0}], lr=0.1, **sgd)
    scaler = GradScaler("cpu", enabled=scale > 0, init_scale=scale or 1.0)
    return TrainState(model, optimizer, scaler, ema=EMA(model, decay) if decay else None)


def run(state: TrainState, *, parts: Any = None, steps: int = 4, **solver: Any) -> list[dict[str, float]]:
    """Takes ``steps`` steps; the losses of each."""
    config, losses = SolverConfig(**solver), []
    feed = Feed(parts or batches(), parts=config.accumulate, steps=steps, stop=StopRequest())
    feed.begin()
    state.model.train()
    for _ in range(steps):
        losses.append(step(state, state.model, feed, config, torch.device("cpu")))
        if state.ema is not None:
            state.ema.update(state.model)
        state.iteration += 1
    return losses


def weights(module: nn.Module) -> list[float]:
    return [parameter.item() for parameter in module.parameters()]


def resumed(saved: TrainState, into: TrainState) -> TrainState:
    """``into`` with the state and, as a checkpoint does it, the saved weights of ``saved``."""
    into.model.load_state_dict(saved.tested.state_dict())
    into.load_state_dict(deepcopy(saved.state_dict()))
    return into


def slopes(w: float, b: float) -> list[float]:
    """The gradient of both losses by w and b at brightness 40 and 80."""
    each = {x: 2 * (w * x + b - 1) + 2 * (w * x + b - 2) for x in (0.4, 0.8)}
    return [sum(x * slope for x, slope in each.items()) / 2, sum(each.values()) / 2]


def test_step_by_hand() -> None:
    state = make_state()
    (losses,) = run(state, parts=[make_batch(40, 80)], steps=1)
    w, b = slopes(0.5, 0.25)
    assert weights(state.model) == pytest.approx([0.5 - 0.1 * w, 0.25 - 0.1 * b])
    y = [0.5 * 0.4 + 0.25, 0.5 * 0.8 + 0.25]
    assert losses == pytest.approx({n: sum((v - to) ** 2 for v in y) / 2 for n, to in (("first", 1), ("second", 2))})


@pytest.mark.parametrize("clip", [None, 0.1])
def test_parts_of_a_step_add_up_to_the_whole_batch(clip) -> None:
    # True of this model, whose losses are means over images; a detector draws other samples for other batches.
    whole, halves = make_state(momentum=0.9), make_state(momentum=0.9)
    expected = run(whole, parts=batches(4), images_per_step=4, clip_norm=clip)
    found = run(halves, parts=batches(2), images_per_step=4, accumulate=2, clip_norm=clip)
    assert weights(halves.model) == pytest.approx(weights(whole.model), rel=1e-6)
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


def test_clipping_bounds_the_step_whatever_the_factor_of_half_precision() -> None:
    def moved(state: TrainState, **solver: Any) -> float:
        before = torch.tensor(weights(state.model))
        state.optimizer.param_groups[0]["lr"] = 1.0
        run(state, steps=1, **solver)
        return (torch.tensor(weights(state.model)) - before).norm().item()

    free = moved(make_state())
    assert free > 1
    assert moved(make_state(), clip_norm=0.3) == pytest.approx(0.3, rel=1e-4)
    assert moved(make_state(), clip_norm=2 * free) == pytest.approx(free)
    assert moved(make_state(scale=1024.0), precision="fp16", clip_norm=0.3) == pytest.approx(0.3, rel=1e-3)


def test_precision_turns_autocast_on() -> None:
    for precision, expected in (("fp32", False), ("bf16", True)):
        model = LineModel()
        run(make_state(model), precision=precision)
        assert model.autocast == [expected] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_has_all_it_takes_to_find_the_cause(value) -> None:
    state = make_state(LineModel(third=value), momentum=0.9)
    run(state, steps=2)
    before = deepcopy([state.model.state_dict(), state.optimizer.state_dict()])
    with pytest.raises(NotFiniteError) as error:
        run(state, parts=itertools.islice(batches(), 2, None))
    for part in ("iteration 2", f"first {value}", "second ", "image50.jpg, image60.jpg"):
        assert part in str(error.value)
    assert error.value.files == (("image50.jpg", "image60.jpg"),)
    assert str([state.model.state_dict(), state.optimizer.state_dict()]) == str(before)  # the step was not taken
    with pytest.raises(NotFiniteError, match=r"iteration 1.*image50\.jpg, image60\.jpg"):  # the second part of a step
        run(make_state(LineModel(third=value)), images_per_step=4, accumulate=2)


def test_a_gradient_that_is_not_finite_is_caught_though_the_loss_is() -> None:
    for clip in (None, 1.0):
        state = make_state(RootModel())
        with pytest.raises(NotFiniteError, match=r"gradient is not finite at iteration 0: norm (nan|inf), root 0; ima"):
            run(state, clip_norm=clip)
        assert weights(state.model) == [0.0, 0.25]


def test_overflow_in_half_precision_is_everyday_work_until_the_scale_collapses() -> None:
    state = make_state(RootModel(), scale=1024.0)
    run(state, precision="fp16", clip_norm=1.0)
    assert (state.iteration, state.scaler.get_scale()) == (4, 64.0)
    message = r"loss scale collapsed at iteration 1: 7\.5e-05.*precision to bf16 or fp32"
    with pytest.raises(NotFiniteError, match=message):
        run(make_state(RootModel(), scale=3e-4), precision="fp16")


def test_a_state_is_loaded_safely_with_its_random_numbers(tmp_path, monkeypatch) -> None:
    state = make_state(momentum=0.9)
    run(state)
    state.evaluated, state.not_finite = 2, 3
    torch.save(state.state_dict(), tmp_path / "state.pt")
    saved, drawn = torch.load(tmp_path / "state.pt", weights_only=True), [torch.rand(1).item()]
    for rank in (0, 1, 2):  # a process that the checkpoint does not know draws its own numbers
        monkeypatch.setattr("detection.engine.loop.rank", lambda rank=rank: rank)
        other = make_state(momentum=0.9)
        other.load_state_dict(saved)
        assert (other.iteration, other.evaluated, other.not_finite) == (4, 2, 3)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.5), (0.9, 0.0), (0.0, 0.9)])
def test_a_resumed_run_takes_the_settings_of_its_own_config(before, after) -> None:
    state, other = make_state(momentum=before, weight_decay=0.1), make_state(momentum=after)
    run(state)
    other.optimizer.param_groups[0]["lr"] = 0.75
    old = [state.optimizer.state[p].get("momentum_buffer") for p in state.model.parameters()]
    resumed(state, other)
    (group,) = other.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["lr"], group["lr_factor"]) == (after, 0, 0.75, 1.0)
    start = weights(other.model)
    run(other, parts=[make_batch(40, 80)], steps=1)
    velocity = [0.0 if buffer is None else buffer.item() for buffer in old]
    terms = zip(start, velocity, slopes(*start), strict=True)
    assert weights(other.model) == pytest.approx([w - 0.75 * (after * v + g) for w, v, g in terms], rel=1e-5)


@pytest.mark.parametrize("groups", [[1], [1, 1], [2, 1]])
def test_an_optimizer_of_other_parameters_is_refused_with_both_sides(groups) -> None:
    state, other = make_state(momentum=0.9), make_state()
    run(state)
    parameters = [[nn.Parameter(torch.tensor(0.0)) for _ in range(count)] for count in groups]
    other.optimizer = SGD([{"params": group, "lr_factor": 1.0} for group in parameters], lr=0.1)
    drawn = torch.get_rng_state()
    with pytest.raises(ValueError, match="freeze_at and norm that") as error:
        other.load_state_dict(state.state_dict())
    assert f"groups of [2] parameters, this config's has {groups}" in str(error.value)
    assert (other.iteration, len(other.optimizer.state)) == (0, 0)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(("before", "after", "scale"), [(0, 64, 64), (128, 0, 1), (128, 64, 128)])
def test_resume_into_and_out_of_half_precision(before, after, scale) -> None:
    state, other = make_state(scale=before), make_state(scale=after)
    run(state, precision="fp16" if before else "fp32")
    other.load_state_dict(state.state_dict())
    assert (other.iteration, other.scaler.is_enabled(), other.scaler.get_scale()) == (4, after > 0, scale)
    run(other, steps=1, precision="fp16" if after else "fp32")
    assert other.iteration == 5


def test_weights_are_averaged_after_every_step_which_changes_no_training() -> None:
    state, plain, trained, averaged = make_state(decay=0.3), make_state(), [0.5], [0.5]
    for _ in range(4):
        run(state, steps=1)
        run(plain, steps=1)
        trained.append(weights(state.model)[0])
        averaged.append(weights(state.tested)[0])
    for number, decay in enumerate([2 / 11, 3 / 12, 0.3, 0.3], start=1):  # 4 / 13 is above 0.3
        assert averaged[number] == pytest.approx(decay * averaged[number - 1] + (1 - decay) * trained[number])
    assert weights(state.model) == weights(plain.model)
    assert plain.tested is plain.model
    assert state.tested is not state.model


def test_statistics_are_averaged_counters_copied_and_the_model_and_its_average_are_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    ema, before = EMA(model, 0.9), deepcopy(model.state_dict())
    for _ in range(5):
        ema.update(model)
    assert_equal(ema.model.state_dict(), before)  # what never moves stays exactly
    ema = EMA(model, 0.9)
    for value in model.state_dict().values():
        value.add_(1 if value.dtype == torch.int64 else torch.rand_like(value))
    assert_equal(ema.model.state_dict(), before)
    now = deepcopy(model.state_dict())
    ema.update(model)
    after = ema.model.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(after[name], before[name] * 2 / 11 + now[name] * 9 / 11)
    assert after["1.num_batches_tracked"] == now["1.num_batches_tracked"] == 1
    assert_equal(model.state_dict(), now)
    ema.model.eval()
    assert model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.5), (None, 0.5), (0.5, None)])
def test_resume_of_an_average_and_into_and_out_of_one(before, after) -> None:
    saved, other = make_state(momentum=0.9, decay=before), make_state(momentum=0.9, decay=after)
    run(saved)
    resumed(saved, other)
    assert weights(other.model) == weights(saved.model)
    assert weights(other.tested) == weights(saved.tested if after else saved.model)  # without an average, the same
    assert other.ema is None or other.ema.steps == (4 if before else 0)
    for state in (saved, other):
        run(state, steps=3)
    assert weights(other.model) == weights(saved.model)
    if before and after:
        assert weights(other.tested) == weights(saved.tested)


@pytest.mark.parametrize(("before", "after"), [("sgd", "adamw"), ("adamw", "sgd"), ("adamw", "adamw")])
def test_adamw_resumes_exactly_and_another_optimizer_is_refused(before, after) -> None:
    saved, other = make_state(), make_state()
    for state, name in ((saved, before), (other, after)):
        state.optimizer = build_optimizer(state.model, SolverConfig(optimizer=name))
    run(saved)
    if before != after:
        with pytest.raises(ValueError, match=r"another solver\.optimizer \(sgd or adamw\)"):
            other.load_state_dict(saved.state_dict())
        assert other.iteration == 0
        return
    for state in (saved, resumed(saved, other)):
        run(state, steps=3)
    assert weights(other.model) == weights(saved.model) != [0.5, 0.25]


def test_batch_norm_of_a_single_value_names_keys_and_size() -> None:
    class Tiny(LineModel):
        norm = nn.BatchNorm2d(3)

        def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
            return {"loss": self.norm(images.pixels.float().mean(dim=(2, 3), keepdim=True)).sum() * self.w}

    with pytest.raises(ValueError, match=r"1 images of \(2, 2\) pixels .*\[1, 3, 1, 1\].*backbone\.norm .*frozen_bn"):
        run(make_state(Tiny()), parts=batches(1), steps=1)
