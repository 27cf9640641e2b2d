"""Mirrors detection/engine/trainer.py on a model of two weights; whole runs are in tests/detection/tasks."""

from __future__ import annotations

import itertools
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.config.detection import DetectionConfig, DetectorBackboneConfig
from detection.config.sections import SolverConfig
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import read_checkpoint
from detection.engine.loop import NotFiniteError
from detection.engine.trainer import Evaluation, Trainer
from detection.structures import ImageBatch, Target

ROOT = Path(__file__).parents[3]


class LineModel(nn.Module):
    """Fits w x + b to 1, where x is an image's brightness; takes no proposals."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.25))
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.modes: list[bool] = []

    def forward(self, images: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        self.modes.append(self.training)
        x = images.pixels.float().mean(dim=(1, 2, 3)) / 100
        self.norm(x[:, None] + torch.rand(len(x), 1))
        return {"line": (self.w * x + self.b - 1).square().mean()}


class BrokenModel(LineModel):
    """Spoils its statistics and its loss in the third step."""

    def forward(self, images: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        losses = super().forward(images, targets)
        if len(self.modes) == 3:
            self.norm(torch.full((2, 1), float("nan")))
            losses["line"] = losses["line"] * float("nan")
        return losses


def batches(**_: Any) -> Iterator[Batch]:
    for value in itertools.cycle(range(10, 90, 20)):
        images = [torch.full((3, 2, 2), value + more, dtype=torch.uint8) for more in (0, 10)]
        none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), ignore=torch.zeros(0).bool())
        yield Batch(ImageBatch.from_images(images), (none, none), (0, 1), (f"{value}.jpg", f"{value + 10}.jpg"))


@pytest.fixture
def make_trainer(make_index: Callable[..., AnnotationIndex], tmp_path: Path) -> Callable[..., Trainer]:
    index = make_index([[((0, 0, 9, 9), 0, False)]] * 2)

    def make(model: nn.Module | None = None, *, name: str = "run", test: Any = None, **solver: Any) -> Trainer:
        settings = {"iterations": 4, "base_lr": 0.1, "steps": (), "log_every": 1, "log_sinks": (), **solver}
        config = DetectionConfig(
            backbone=DetectorBackboneConfig(norm="gn"), solver=SolverConfig(**settings), device="cpu"
        )
        return Trainer(
            config, tmp_path / name, index, build=lambda fresh: model or LineModel(), load=batches, test=test
        )

    return make


def metrics(trainer: Trainer) -> list[dict[str, float]]:
    return [json.loads(line) for line in (trainer.output / "metrics.jsonl").read_text().splitlines()]


def test_reports_come_every_so_often_and_at_the_end_with_means(make_trainer: Callable[..., Trainer]) -> None:
    single, pairs = make_trainer(name="single", iterations=5), make_trainer(name="pairs", iterations=5, log_every=2)
    for trainer in (single, pairs):
        trainer.run()
    assert [line["iteration"] for line in metrics(pairs)] == [2, 4, 5]
    losses = [line["loss/line"] for line in metrics(single)]
    expected = [sum(losses[0:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [line["loss/line"] for line in metrics(pairs)] == pytest.approx(expected)


def test_rate_follows_the_schedule(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(iterations=6, steps=(4,), warmup_iterations=2, warmup_factor=0.5)
    trainer.run()
    rates = [line["learning_rate"] for line in metrics(trainer)]
    assert rates == pytest.approx([0.05, 0.075, 0.1, 0.1, 0.01, 0.01])
    assert trainer.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_model_trains_after_an_evaluation(make_trainer: Callable[..., Trainer]) -> None:
    model, tested = LineModel(), []

    def test(model: nn.Module) -> Evaluation:
        tested.append(model.eval())
        return Evaluation({"bbox": {"AP": 0.5}}, {"bbox.AP": 0.5})

    result = make_trainer(model, test=test, evaluate_every=1).run()
    assert len(tested) == 4
    assert model.modes == [True] * 4
    assert result == {"bbox": {"AP": 0.5}}


def test_steps_of_a_plain_run_clone_no_statistics(make_trainer: Callable[..., Trainer]) -> None:
    assert clones(make_trainer(name="stop")) == 0
    assert clones(make_trainer(name="skip", on_not_finite="skip")) == 3 * 4  # buffers of the one layer, steps


def clones(trainer: Trainer) -> int:
    """The number of buffers that are cloned in a run."""
    count, buffers = 0, {id(buffer) for buffer in trainer.state.model.buffers()}
    clone = Tensor.clone

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal count
        count += id(tensor) in buffers
        return clone(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "clone", counted)
        trainer.run()
    return count


def test_step_that_is_skipped_leaves_everything_but_the_place_in_the_run(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(BrokenModel(), on_not_finite="skip", checkpoint_every=1, keep_checkpoints=9, momentum=0.9)
    trainer.run()
    assert [line["iteration"] for line in metrics(trainer)] == [1, 2, 3, 4]
    before, after, last = (saved(trainer.output, iteration) for iteration in (2, 3, 4))
    assert str(before) == str(after) != str(last)
    assert all(buffer.isfinite().all() for buffer in trainer.state.model.buffers())
    dump = json.loads((trainer.output / "not_finite" / "0000002.json").read_text())
    assert dump["files"] == [[["50.jpg", "60.jpg"]]]


def saved(run: Path, iteration: int) -> list[Any]:
    """Weights, statistics, moments and random state of a checkpoint."""
    path = run / "checkpoints" / f"{iteration:07d}.safetensors"
    state = torch.load(path.with_suffix(".state.pt"), weights_only=True)
    drawn = [state["random"][0]["cpu"].tolist()]
    return [dict(sorted(read_checkpoint(path).weights.items())), state["optimizer"]["state"], drawn]


def test_state_for_the_replay_has_finite_statistics(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(BrokenModel())
    with pytest.raises(NotFiniteError, match="iteration 2"):
        trainer.run()
    weights = read_checkpoint(trainer.output / "not_finite" / "0000002").weights
    assert "norm.running_mean" in weights
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_only_run_and_step_lie_between_a_task_and_the_model(make_trainer: Callable[..., Trainer]) -> None:
    names: list[str] = []

    class Looking(LineModel):
        def forward(self, images: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
            frames = traceback.extract_stack()
            names[:] = [frame.name for frame in frames if f"{ROOT}/detection" in frame.filename]
            return super().forward(images, targets)

    make_trainer(Looking()).run()
    assert names == ["run", "step"]
