import itertools
import json
import os
import signal
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorDataConfig, DetectorSolverConfig
from detection.data.dataset import Batch
from detection.engine.checkpoint import read_checkpoint, resolve_weights
from detection.engine.layout import Timing
from detection.engine.log import RunLog
from detection.engine.loop import NotFiniteError
from detection.engine.manifest import read_manifest
from detection.engine.signals import StoppedError
from detection.engine.trainer import Trainer, is_finished
from detection.evaluation.metrics import Metric
from detection.padded import Targets
from detection.structures import ImageBatch, Target

ROOT = Path(__file__).parents[3]
NOTHING = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), ignore=torch.zeros(0).bool())


class LineModel(nn.Module):
    """Fits w x + b to 1, where x is an image's brightness; takes no proposals; may break in its third step."""

    def __init__(self, *, breaks: bool = False) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.25))
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.modes, self.frames, self.breaks = list[bool](), list[str](), breaks

    def forward(self, images: ImageBatch, targets: Targets) -> dict[str, Tensor]:
        self.modes.append(self.training)
        self.frames = [f.name for f in traceback.extract_stack() if f"{ROOT}/detection" in f.filename]
        x = images.pixels.float().mean(dim=(1, 2, 3)) / 100
        self.norm(x[:, None] + torch.rand(len(x), 1))
        if self.breaks and len(self.modes) == 3:
            self.norm(torch.full((2, 1), float("nan")))
            x = x * float("nan")
        return {"line": (self.w * x + self.b - 1).square().mean()}


def batches(**_: Any):
    for value in itertools.cycle(range(10, 90, 20)):
        images = [torch.full((3, 2, 2), value + more, dtype=torch.uint8) for more in (0, 10)]
        files = (f"{value}.jpg", f"{value + 10}.jpg")
        yield Batch(ImageBatch.from_images(images), Targets.pad([NOTHING, NOTHING]), (0, 1), files)


@pytest.fixture
def make_trainer(make_index, tmp_path):
    index = make_index([[((0, 0, 9, 9), 0, False)]] * 2)

    def make(
        model=None, *, name="run", validate=None, test=None, sets=("a:val", "a:test"), resume=False, **solver: Any
    ):
        defaults = {"iterations": 4, "base_lr": 0.1, "steps": (), "log_every": 1, "log_sinks": ()}
        val, tested = ((name,) if given else () for name, given in zip(sets, (validate, test), strict=True))
        config = DetectionConfig(
            backbone=DetectorBackboneConfig(norm="gn"),
            data=DetectorDataConfig(val=val, test=tested),
            solver=DetectorSolverConfig(**{**defaults, "layout": "channels_last", **solver}),
            device="cpu",
        )
        parts = {"build": lambda fresh: model or LineModel(), "load": batches, "validate": validate, "test": test}
        trainer = Trainer(config, tmp_path / name, index, **parts)
        trainer.resume = resume
        return trainer

    return make


def column(trainer: Trainer, name: str) -> list[float]:
    lines = [json.loads(line) for line in (trainer.output / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def validating(*values: float | None) -> Any:
    """Looks at data.val with the figures ``values``, one after the other."""
    seen = iter(values)
    return lambda model: {"bbox": {"AP": next(seen)}}


def noting(weights: list[float]) -> Any:
    """Notes the weight of the model that is tested."""
    return lambda model, facts: weights.append(model.w.item()) or {"bbox": {"AP": 0.25}} | facts


def test_reports_have_means_and_the_rate_follows_its_schedule(make_trainer) -> None:
    schedule = {"iterations": 5, "steps": (4,), "warmup_iterations": 2, "warmup_factor": 0.5}
    model = LineModel()
    single, pairs = make_trainer(model, name="single", **schedule), make_trainer(name="pairs", log_every=2, **schedule)
    for trainer in (single, pairs):
        trainer.run()
    assert column(pairs, "iteration") == [2, 4, 5]
    losses = column(single, "loss/line")
    assert column(pairs, "loss/line") == pytest.approx([sum(losses[0:2]) / 2, sum(losses[2:4]) / 2, losses[4]])
    assert column(single, "learning_rate") == pytest.approx([0.05, 0.075, 0.1, 0.1, 0.01])
    assert model.frames == ["run", "step"]  # nothing else lies between a task and the model


def test_data_val_is_watched_and_chooses_what_is_tested_once(make_trainer, monkeypatch) -> None:
    model, weights = LineModel(), list[float]()
    trainer = make_trainer(model, validate=validating(0.1, 0.5, None, 0.3), test=noting(weights), evaluate_every=1)
    result = trainer.run()
    assert weights == [read_checkpoint(trainer.output / "checkpoints" / "best.safetensors").weights["w"].item()]
    choice = {"iteration": 2, "chosen_by": "bbox.AP", "chosen_on": ["a:val"], "chosen_on_test": False}
    assert result["weights"] == choice
    assert model.modes == [True] * 4
    assert column(trainer, "bbox.AP") == [0.1, 0.5, 0.3]
    assert column(trainer, "test/bbox.AP") == [0.25]
    assert resolve_weights(trainer.output).name == "best.safetensors"
    again = make_trainer(name="peeked", validate=validating(0.5), test=noting([]), sets=("a:test", "a:test"))
    assert again.run()["weights"]["chosen_on_test"] is True
    error = Metric("bbox.AP", "error", lower_is_better=True)
    monkeypatch.setattr("detection.evaluation.metrics.METRICS", (error,))
    values, keys = (0.5, None, 0.2, 0.3), {"evaluate_every": 1, "keep_checkpoints": 1}
    lower = make_trainer(name="lower", validate=validating(*values), test=noting([]), **keys)
    assert lower.run()["weights"]["iteration"] == 3


@pytest.mark.parametrize("options", [{}, {"validate": validating(0.1, 0.5, 0.2, 0.3), "best_metric": None}])
def test_without_a_choice_the_last_weights_are_tested(make_trainer, options) -> None:
    weights = list[float]()
    trainer = make_trainer(test=noting(weights), evaluate_every=1, **options)
    result = trainer.run()
    assert weights == [read_checkpoint(trainer.output).weights["w"].item()]
    assert (result["weights"]["iteration"], result["weights"]["chosen_by"]) == (4, None)
    assert resolve_weights(trainer.output).name == "0000004.safetensors"


def test_patience_ends_a_run_that_goes_on_only_with_more_of_it(make_trainer, capsys) -> None:
    def patient(*values: float | None, **options: Any) -> Any:
        solver = {"patience": 2, "evaluate_every": 1, "iterations": 9, **options}
        return make_trainer(validate=validating(*values), test=noting([]), **solver)

    # an evaluation without a figure says neither better nor worse
    result = patient(0.1, 0.5, 0.3, None, 0.4, ema_decay=0.5, name="best").run()
    assert (result["trained"], result["weights"]["iteration"]) == (5, 2)
    said = capsys.readouterr().out
    assert all(part in said for part in ("iteration 5 of 9", "solver.patience is 2", "bbox.AP than 0.5"))
    cut_off = patient(0.5, 0.4, name="cut")  # one without a better figure, and one that is due
    with pytest.raises(StopIteration):
        cut_off.run()
    assert patient(0.3, name="cut", resume=True).run()["trained"] == 3
    first = patient(0.5, 0.4, 0.3)
    ended = first.run()
    (first.output / "result.json").write_text(json.dumps(ended))  # as the tasks' tests do
    assert patient(resume=True).run() == ended
    assert "raise solver.patience, now 2" in capsys.readouterr().out
    more = patient(0.2, patience=3, resume=True)
    assert is_finished(first.output, first.config)
    assert not is_finished(more.output, more.config)
    assert more.run()["trained"] == 4
    with pytest.raises(ValueError, match=r"solver\.patience 2.*data\.val"):
        make_trainer(patience=2, evaluate_every=1)


@pytest.mark.parametrize("left", [("0000002.safetensors", "best.safetensors"), ("best.safetensors",)])
def test_best_weights_that_were_chosen_otherwise_are_put_aside(make_trainer, left) -> None:
    """The run goes on without data.val, or its checkpoints but the best were deleted and it starts anew."""
    first = make_trainer(validate=validating(0.1, 0.5), iterations=2, evaluate_every=1)
    first.run()
    folder = first.output / "checkpoints"
    for path in folder.glob("*.safetensors"):
        if path.name not in left:
            path.unlink()
    result = make_trainer(test=noting([]), resume=True).run()
    assert (result["weights"]["iteration"], result["weights"]["chosen_by"]) == (4, None)
    assert resolve_weights(first.output).name == "0000004.safetensors"
    assert (folder / "best.safetensors.old").is_file()


def test_a_finished_run_gives_its_result_again_and_writes_nothing(make_trainer, capsys) -> None:
    def killed(model: nn.Module, facts: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    weights, model = list[float](), LineModel()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(test=killed, name="killed").run()  # before its test: it is only tested
    assert make_trainer(model, test=noting(weights), name="killed", resume=True).run()["trained"] == 4
    assert (len(weights), model.modes) == (1, [])
    make_trainer(test=lambda model, facts: {"bbox": {"AP": 0.5}}).run()
    again = make_trainer(test=lambda model, facts: {}, base_lr=0.2, resume=True)
    (again.output / "result.json").write_text('{"bbox": {"AP": 0.5}}')  # as the tasks' tests do
    before = {path: path.stat().st_mtime_ns for path in again.output.rglob("*")}
    capsys.readouterr()
    assert again.run() == {"bbox": {"AP": 0.5}}
    said = capsys.readouterr().out
    assert f"{again.output} is finished, at iteration 4; " in said
    assert "config changed, without effect on the finished run: solver.base_lr: 0.1 -> 0.2" in said
    assert {path: path.stat().st_mtime_ns for path in again.output.rglob("*")}.keys() == before.keys()
    make_trainer(name="untested").run()
    assert make_trainer(name="untested", resume=True).run() == {}


@pytest.mark.parametrize(("mode", "expected"), [("stop", 0), ("skip", 3 * 4)])  # buffers of the one layer, steps
def test_steps_of_a_plain_run_clone_no_statistics(make_trainer, monkeypatch, mode, expected) -> None:
    model, cloned, clone = LineModel(), list[int](), Tensor.clone
    trainer, buffers = make_trainer(model, on_not_finite=mode), {id(buffer) for buffer in model.buffers()}

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        cloned.append(id(tensor) in buffers)
        return clone(tensor, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "clone", counted)
        trainer.run()
    assert sum(cloned) == expected


def saved(run: Path, iteration: int) -> str:
    """Weights, statistics, moments and random state of a checkpoint."""
    path = run / "checkpoints" / f"{iteration:07d}.safetensors"
    state = torch.load(path.with_suffix(".state.pt"), weights_only=True)
    drawn = state["random"][0]["cpu"].tolist()
    return str([sorted(read_checkpoint(path).weights.items()), state["optimizer"]["state"], drawn])


def test_a_step_that_is_skipped_leaves_everything_but_the_place_in_the_run(make_trainer) -> None:
    model = LineModel(breaks=True)
    trainer = make_trainer(model, on_not_finite="skip", checkpoint_every=1, keep_checkpoints=9, momentum=0.9)
    trainer.run()
    assert (column(trainer, "iteration"), column(trainer, "loss/total")[2]) == ([1, 2, 3, 4], 0)
    assert saved(trainer.output, 2) == saved(trainer.output, 3) != saved(trainer.output, 4)
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    dump = json.loads((trainer.output / "not_finite" / "0000002.json").read_text())
    assert dump["files"] == [[["50.jpg", "60.jpg"]]]
    trainer = make_trainer(LineModel(breaks=True), name="stop")  # whose state for the replay has finite statistics
    with pytest.raises(NotFiniteError, match="iteration 2"):
        trainer.run()
    weights = read_checkpoint(trainer.output / "not_finite" / "0000002").weights
    assert "norm.running_mean" in weights
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_steps_are_saved_where_the_log_can_not_be_written(make_trainer, monkeypatch) -> None:
    def fail(log: RunLog, iteration: int, values: Any) -> None:
        if iteration == 3:
            raise OSError("metrics.jsonl can't be written")

    monkeypatch.setattr(RunLog, "metrics", fail)
    trainer = make_trainer(checkpoint_every=0)
    with pytest.raises(OSError, match="metrics"):
        trainer.run()
    assert read_checkpoint(trainer.output).iteration == 3


def test_a_signal_before_the_first_batch_ends_the_run(make_trainer) -> None:
    def hanging(**_: Any):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        yield from batches()

    trainer = make_trainer()
    trainer.load = hanging
    with pytest.raises(StoppedError, match="SIGTERM ended the run after iteration 0 of 4"):
        trainer.run()


def test_a_layout_is_chosen_once_and_kept_where_no_key_fixes_it(make_trainer, monkeypatch) -> None:
    asked = list[Any]()
    choice = ("contiguous", Timing(2.0, 1.0))
    monkeypatch.setattr("detection.engine.trainer.choose_layout", lambda *args: asked.append(args[2]) or choice)
    trainer = make_trainer(layout="auto", iterations=2)
    trainer.run()
    make_trainer(layout="auto", resume=True).run()
    make_trainer(layout="channels_last", iterations=5, resume=True).run()
    assert asked == [(600, 1000)]
    layouts = [entry["layout"] for entry in read_manifest(trainer.output)]
    assert layouts == ["contiguous", "contiguous", "channels_last"]
    fixed = make_trainer(layout="auto", iterations=1, name="fixed")
    fixed.config = replace(fixed.config, deterministic=True)  # which times nothing
    fixed.run()
    assert asked == [(600, 1000)]
    assert read_manifest(fixed.output)[0]["layout"] == "contiguous"
