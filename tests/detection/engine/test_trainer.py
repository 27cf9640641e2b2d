"""Mirrors detection/engine/trainer.py on a model of two weights; whole runs are in tests/detection/tasks."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorDataConfig, DetectorSolverConfig
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import read_checkpoint, resolve_weights
from detection.engine.layout import Timing
from detection.engine.log import RunLog
from detection.engine.loop import NotFiniteError
from detection.engine.manifest import read_manifest
from detection.engine.signals import StoppedError
from detection.engine.trainer import Trainer, is_finished
from detection.padded import Targets
from detection.structures import ImageBatch, Target

ROOT = Path(__file__).parents[3]


class LineModel(nn.Module):
    """Fits w x + b to 1, where x is an image's brightness; takes no proposals."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.25))
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.modes: list[bool] = []

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        self.modes.append(self.training)
        x = images.pixels.float().mean(dim=(1, 2, 3)) / 100
        self.norm(x[:, None] + torch.rand(len(x), 1))
        return {"line": (self.w * x + self.b - 1).square().mean()}


class BrokenModel(LineModel):
    """Spoils its statistics and its loss in the third step."""

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        losses = super().forward(images, targets)
        if len(self.modes) == 3:
            self.norm(torch.full((2, 1), float("nan")))
            losses["line"] = losses["line"] * float("nan")
        return losses


def batches(**_: Any) -> Iterator[Batch]:
    for value in itertools.cycle(range(10, 90, 20)):
        images = [torch.full((3, 2, 2), value + more, dtype=torch.uint8) for more in (0, 10)]
        none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), ignore=torch.zeros(0).bool())
        yield Batch(
            ImageBatch.from_images(images), Targets.pad([none, none]), (0, 1), (f"{value}.jpg", f"{value + 10}.jpg")
        )


@pytest.fixture
def make_trainer(make_index: Callable[..., AnnotationIndex], tmp_path: Path) -> Callable[..., Trainer]:
    index = make_index([[((0, 0, 9, 9), 0, False)]] * 2)

    def make(
        model: nn.Module | None = None,
        *,
        name: str = "run",
        validate: Any = None,
        test: Any = None,
        sets: tuple[str, str] = ("a:val", "a:test"),
        **solver: Any,
    ) -> Trainer:
        settings = {
            "iterations": 4,
            "base_lr": 0.1,
            "steps": (),
            "log_every": 1,
            "log_sinks": (),
            "layout": "channels_last",
            **solver,
        }
        val, tested = ((name,) if given else () for name, given in zip(sets, (validate, test), strict=True))
        config = DetectionConfig(
            backbone=DetectorBackboneConfig(norm="gn"),
            data=DetectorDataConfig(val=val, test=tested),
            solver=DetectorSolverConfig(**settings),
            device="cpu",
        )
        return Trainer(
            config,
            tmp_path / name,
            index,
            build=lambda fresh: model or LineModel(),
            load=batches,
            validate=validate,
            test=test,
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


def validating(*values: float | None) -> Callable[[nn.Module], dict[str, Any]]:
    """Looks at data.val with the figures ``values``, one after the other."""
    seen = iter(values)
    return lambda model: {"bbox": {"AP": next(seen)}}


def noting(weights: list[float]) -> Callable[[nn.Module, dict[str, Any]], dict[str, Any]]:
    """Notes the weight of the model that is tested."""

    def test(model: nn.Module, facts: dict[str, Any]) -> dict[str, Any]:
        weights.append(model.get_parameter("w").item())
        return {"bbox": {"AP": 0.25}} | facts

    return test


def test_data_val_is_watched_and_chooses_what_is_tested_once(make_trainer: Callable[..., Trainer]) -> None:
    model, weights = LineModel(), list[float]()
    validate = validating(0.1, 0.5, None, 0.3)
    trainer = make_trainer(model, validate=validate, test=noting(weights), evaluate_every=1)
    result = trainer.run()
    best = read_checkpoint(trainer.output / "checkpoints" / "best.safetensors")
    assert weights == [best.weights["w"].item()]
    assert result["weights"] == {
        "iteration": 2,
        "chosen_by": "bbox.AP",
        "chosen_on": ["a:val"],
        "chosen_on_test": False,
    }
    assert model.modes == [True] * 4
    lines = metrics(trainer)
    assert [line["bbox.AP"] for line in lines if "bbox.AP" in line] == [0.1, 0.5, 0.3]
    assert [line["test/bbox.AP"] for line in lines if "test/bbox.AP" in line] == [0.25]
    assert resolve_weights(trainer.output).name == "best.safetensors"


@pytest.mark.parametrize("options", [{}, {"validate": validating(0.1, 0.5, 0.2, 0.3), "best_metric": None}])
def test_without_a_choice_the_last_weights_are_tested(
    make_trainer: Callable[..., Trainer], options: dict[str, Any]
) -> None:
    weights = list[float]()
    trainer = make_trainer(test=noting(weights), evaluate_every=1, **options)
    result = trainer.run()
    assert weights == [read_checkpoint(trainer.output).weights["w"].item()]
    assert (result["weights"]["iteration"], result["weights"]["chosen_by"]) == (4, None)
    assert resolve_weights(trainer.output).name == "0000004.safetensors"


class TestPatience:
    """Training ends where data.val has not got better for long enough."""

    def trainer(self, make: Callable[..., Trainer], *values: float | None, **options: Any) -> Trainer:
        solver = {"patience": 2, "evaluate_every": 1, "iterations": 9, **options}
        return make(validate=validating(*values), test=noting([]), **solver)

    def test_the_best_weights_are_tested_and_why_it_ended_is_said(
        self, make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
    ) -> None:
        # an evaluation without a figure says neither better nor worse
        trainer = self.trainer(make_trainer, 0.1, 0.5, 0.3, None, 0.4, ema_decay=0.5)
        result = trainer.run()
        assert (result["trained"], result["weights"]["iteration"]) == (5, 2)
        said = capsys.readouterr().out
        for part in ("iteration 5 of 9", "solver.patience is 2", "bbox.AP than 0.5"):
            assert part in said

    def test_a_run_that_ended_so_goes_on_only_with_more_patience(
        self, make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = self.trainer(make_trainer, 0.5, 0.4, 0.3)
        ended = first.run()
        (first.output / "result.json").write_text(json.dumps(ended))  # as the tasks' tests do
        again = self.trainer(make_trainer)
        again.resume = True
        assert again.run() == ended
        assert "raise solver.patience, now 2" in capsys.readouterr().out
        assert is_finished(first.output, first.config)
        more = self.trainer(make_trainer, 0.2, patience=3)
        assert not is_finished(more.output, more.config)
        more.resume = True
        assert more.run()["trained"] == 4

    def test_the_count_outlives_a_run_that_is_cut_off(self, make_trainer: Callable[..., Trainer]) -> None:
        def cut_off(trainer: Trainer) -> None:
            with pytest.raises(StopIteration):
                trainer.run()

        cut_off(self.trainer(make_trainer, 0.5, 0.4))  # one without a better figure, and one that is due
        again = self.trainer(make_trainer, 0.3)
        again.resume = True
        assert again.run()["trained"] == 3

    def test_without_data_val_it_is_refused(self, make_trainer: Callable[..., Trainer]) -> None:
        with pytest.raises(ValueError, match=r"solver\.patience 2.*data\.val"):
            make_trainer(patience=2, evaluate_every=1)


@pytest.mark.parametrize("left", [("0000002.safetensors", "best.safetensors"), ("best.safetensors",)])
def test_best_weights_that_were_chosen_otherwise_are_put_aside(
    make_trainer: Callable[..., Trainer], left: tuple[str, ...]
) -> None:
    """The run goes on without data.val, or its checkpoints but the best were deleted and it starts anew."""
    first = make_trainer(validate=validating(0.1, 0.5), iterations=2, evaluate_every=1)
    first.run()
    folder = first.output / "checkpoints"
    for path in folder.glob("*.safetensors"):
        if path.name not in left:
            path.unlink()
    trainer = make_trainer(test=noting([]))
    trainer.resume = True
    result = trainer.run()
    assert (result["weights"]["iteration"], result["weights"]["chosen_by"]) == (4, None)
    assert resolve_weights(trainer.output).name == "0000004.safetensors"
    assert (folder / "best.safetensors.old").is_file()


def test_a_finished_run_says_what_a_changed_config_would_not_do(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer().run()
    again = make_trainer(base_lr=0.2)
    again.resume = True
    again.run()
    assert "config changed, without effect on what is done: solver.base_lr: 0.1 -> 0.2" in capsys.readouterr().out


def test_a_choice_on_the_test_set_is_told(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(validate=validating(0.5), test=noting([]), sets=("a:test", "a:test"))
    assert trainer.run()["weights"]["chosen_on_test"] is True


def test_a_run_that_was_killed_before_its_test_is_only_tested(make_trainer: Callable[..., Trainer]) -> None:
    def fails(model: nn.Module, facts: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(test=fails).run()
    weights, model = list[float](), LineModel()
    trainer = make_trainer(model, test=noting(weights))
    trainer.resume = True
    assert trainer.run()["trained"] == 4
    assert (len(weights), model.modes) == (1, [])


def test_steps_of_a_plain_run_clone_no_statistics(make_trainer: Callable[..., Trainer]) -> None:
    assert clones(make_trainer(name="stop")) == 0
    assert clones(make_trainer(name="skip", on_not_finite="skip")) == 3 * 4  # buffers of the one layer, steps


def clones(trainer: Trainer) -> int:
    """The number of buffers that are cloned in a run."""
    model, count, clone = LineModel(), 0, Tensor.clone
    trainer.build = lambda fresh: model
    buffers = {id(buffer) for buffer in model.buffers()}

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal count
        count += id(tensor) in buffers
        return clone(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "clone", counted)
        trainer.run()
    return count


def test_step_that_is_skipped_leaves_everything_but_the_place_in_the_run(make_trainer: Callable[..., Trainer]) -> None:
    model = BrokenModel()
    trainer = make_trainer(model, on_not_finite="skip", checkpoint_every=1, keep_checkpoints=9, momentum=0.9)
    trainer.run()
    assert [line["iteration"] for line in metrics(trainer)] == [1, 2, 3, 4]
    before, after, last = (saved(trainer.output, iteration) for iteration in (2, 3, 4))
    assert str(before) == str(after) != str(last)
    assert all(buffer.isfinite().all() for buffer in model.buffers())
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
        def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
            frames = traceback.extract_stack()
            names[:] = [frame.name for frame in frames if f"{ROOT}/detection" in frame.filename]
            return super().forward(images, targets)

    make_trainer(Looking()).run()
    assert names == ["run", "step"]


def test_a_finished_run_gives_its_result_again_and_writes_nothing(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(test=lambda model, facts: {"bbox": {"AP": 0.5}})
    trainer.run()
    (trainer.output / "result.json").write_text('{"bbox": {"AP": 0.5}}')  # as the tasks' tests do
    before = {path: path.stat().st_mtime_ns for path in trainer.output.rglob("*")}
    trainer.resume = True
    capsys.readouterr()
    assert trainer.run() == {"bbox": {"AP": 0.5}}
    assert f"{trainer.output} is finished, at iteration 4; " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trainer.output.rglob("*")}.keys() == before.keys()


def test_steps_are_saved_where_the_log_can_not_be_written(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(log: RunLog, iteration: int, values: Any) -> None:
        if iteration == 3:
            raise OSError("metrics.jsonl can't be written")

    monkeypatch.setattr(RunLog, "metrics", fail)
    trainer = make_trainer(checkpoint_every=0)
    with pytest.raises(OSError, match="metrics"):
        trainer.run()
    assert read_checkpoint(trainer.output).iteration == 3


def test_a_signal_before_the_first_batch_ends_the_run(make_trainer: Callable[..., Trainer]) -> None:
    def hanging(**_: Any) -> Iterator[Batch]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        yield from batches()

    trainer = make_trainer()
    trainer.load = hanging
    with pytest.raises(StoppedError, match="SIGTERM ended the run after iteration 0 of 4"):
        trainer.run()


def test_a_layout_is_chosen_once_and_kept_where_no_key_fixes_it(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def choose(_device: torch.device, _dtype: torch.dtype, size: tuple[int, int]) -> tuple[str, Timing]:
        asked.append(size)
        return "contiguous", Timing(2.0, 1.0)

    monkeypatch.setattr("detection.engine.trainer.choose_layout", choose)
    make_trainer(layout="auto", iterations=2).run()
    for changes in ({"layout": "auto"}, {"layout": "channels_last", "iterations": 5}):
        trainer = make_trainer(**changes)
        trainer.resume = True
        trainer.run()
    assert asked == [(600, 1000)]
    assert [entry["layout"] for entry in read_manifest(trainer.output)] == [
        "contiguous",
        "contiguous",
        "channels_last",
    ]


def test_a_deterministic_run_does_not_time_layouts(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detection.engine.trainer.choose_layout", pytest.fail)
    trainer = make_trainer(layout="auto", iterations=1)
    trainer.config = replace(trainer.config, deterministic=True)
    trainer.run()
    assert read_manifest(trainer.output)[0]["layout"] == "contiguous"
