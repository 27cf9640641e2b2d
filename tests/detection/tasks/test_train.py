"""Mirrors detection/tasks/train.py: whole runs on a handful of tiny images."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    DetectorSolverConfig,
    RPNConfig,
)
from detection.config.load import load_config
from detection.data.cards import load_dataset
from detection.data.digits import CLASSES, write_digits
from detection.data.images import ImageError
from detection.data.index import AnnotationIndex
from detection.data.jpeg import END
from detection.data.loader import build_train_loader
from detection.engine import trainer
from detection.engine.checkpoint import Checkpoint, read_checkpoint
from detection.engine.device import choose_device
from detection.engine.log import RunLog
from detection.engine.loop import NotFiniteError, step
from detection.engine.manifest import read_manifest
from detection.engine.optim import build_optimizer
from detection.engine.signals import StoppedError
from detection.evaluation.metrics import Metric
from detection.tasks.pictures import IMAGES, LONGEST
from detection.tasks.test import run_test
from detection.tasks.train import run_training

STEPS = 4
LOSSES = ["loss/rpn_objectness", "loss/rpn_box", "loss/box_class", "loss/box_regression", "loss/total"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("root"), num_train=6, num_test=2).parent


@pytest.fixture(scope="module")
def config(root: Path) -> DetectionConfig:
    return DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPNConfig(
            channels=16,
            allow_outside=True,
            samples_per_image=16,
            pre_nms_train=64,
            pre_nms_test=64,
            post_nms_train=16,
            post_nms_test=16,
            min_size=2.0,
        ),
        box=BoxConfig(samples_per_image=8),
        data=DetectorDataConfig(
            train=("digits:train",),
            test=("digits:test",),
            root=str(root),
            shorter_side=64,
            longer_side=96,
            workers=0,
        ),
        solver=DetectorSolverConfig(iterations=STEPS, checkpoint_every=2, log_every=1, steps=(3,), clip_norm=5.0),
        device="cpu",
    )


def with_solver(config: DetectionConfig, **options: Any) -> DetectionConfig:
    return replace(config, solver=replace(config.solver, **options))


def with_data(config: DetectionConfig, **options: Any) -> DetectionConfig:
    return replace(config, data=replace(config.data, **options))


@pytest.fixture(scope="module")
def finished(config: DetectionConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directory and the result of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, run_training(config, output)


def watched(config: DetectionConfig) -> DetectionConfig:
    """``config``, whose test set is also looked at in training."""
    return with_data(config, val=config.data.test)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def final_weights(run: Path, iteration: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"{iteration:07d}.safetensors")


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved on the way out."""


def killed_at(step: int) -> Callable[..., None]:
    """RunLog.metrics that ends the run as a kill does, right after ``step`` was reported."""
    record = RunLog.metrics

    def interrupt(log: RunLog, iteration: int, values: Mapping[str, float]) -> None:
        record(log, iteration, values)
        if iteration == step:
            raise Killed

    return interrupt


def run_until(config: DetectionConfig, output: Path, iteration: int) -> None:
    """Trains until the process is killed, right after ``iteration`` was reported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "metrics", killed_at(iteration))
        with pytest.raises(Killed):
            run_training(config, output)


@pytest.fixture(scope="module")
def resumed(config: DetectionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was interrupted."""
    output = tmp_path_factory.mktemp("runs") / "resumed"
    run_until(config, output, STEPS - 1)  # the checkpoint is one step older
    torch.manual_seed(12345)  # a new process has another random state
    run_training(config, output, resume=True)
    return output


class TestResume:
    """A run that was cut off goes on from its last checkpoint as if nothing had happened."""

    def test_weights_equal_those_of_an_uninterrupted_run(
        self, finished: tuple[Path, dict[str, Any]], resumed: Path
    ) -> None:
        expected, found = final_weights(finished[0]), final_weights(resumed)
        assert set(found) == set(expected)
        assert not [name for name, weight in expected.items() if not torch.equal(found[name], weight)]

    def test_losses_equal_those_of_an_uninterrupted_run(
        self, finished: tuple[Path, dict[str, Any]], resumed: Path
    ) -> None:
        def figures(run: Path) -> list[list[float | None]]:
            names = ("iteration", *LOSSES, "learning_rate", "test/bbox.AP", "test/voc.mAP")
            return [[line.get(name) for name in names] for line in metrics(run)]

        assert figures(resumed) == figures(finished[0])

    def test_no_line_is_doubled(self, resumed: Path) -> None:
        assert [line["iteration"] for line in metrics(resumed)] == [1, 2, 3, 4, 4]  # the last one: evaluation

    def test_training_can_be_prolonged(self, config: DetectionConfig, tmp_path: Path) -> None:
        run_training(with_solver(with_data(config, test=()), iterations=2), tmp_path)
        run_training(with_solver(with_data(config, test=()), iterations=3), tmp_path, resume=True)
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 3]
        assert read_checkpoint(tmp_path).iteration == 3

    def test_without_a_checkpoint_starts_anew(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        run_until(config, tmp_path, 1)
        run_training(config, tmp_path, resume=True)
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 4]
        expected, found = final_weights(finished[0]), final_weights(tmp_path)
        assert not [name for name, weight in expected.items() if not torch.equal(found[name], weight)]

    def test_other_run_in_the_directory_is_refused(self, config: DetectionConfig, tmp_path: Path) -> None:
        run_until(config, tmp_path, 3)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with pytest.raises(ValueError, match=r"holds a run \(0000002\.safetensors\); add --resume"):
            run_training(config, tmp_path)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before

    def test_other_architecture_is_refused(self, config: DetectionConfig, tmp_path: Path) -> None:
        run_until(config, tmp_path, 3)
        for change, message in (
            ({"name": "resnet34"}, "backbone.name is 'resnet34' here, and was 'resnet18'"),
            ({"norm": "bn"}, "do not fit"),
        ):
            other = replace(config, backbone=replace(config.backbone, **change))
            with pytest.raises(ValueError, match=message):
                run_training(other, tmp_path, resume=True)


class TestTraining:
    """The files of a run and what is in them."""

    def test_metrics(self, finished: tuple[Path, dict[str, Any]]) -> None:
        *steps, evaluation = metrics(finished[0])
        timing = {"seconds_per_step", "data_seconds", "memory_gib", "time"}
        assert [line["iteration"] for line in steps] == [1, 2, 3, 4]
        for line in steps:
            assert set(line) == {"iteration", "learning_rate", *LOSSES, *timing}
            assert line["loss/total"] == pytest.approx(sum(line[name] for name in LOSSES[:-1]))
        assert [line["learning_rate"] for line in steps] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])
        tested = {f"test/{name}" for name in ("bbox.AP", "bbox.AP50", "bbox.AP75", "voc.mAP")}
        assert set(evaluation) == {"iteration", *tested, "memory_gib", "time"}

    def test_result_is_the_file(self, finished: tuple[Path, dict[str, Any]]) -> None:
        output, result = finished
        assert json.loads((output / "result.json").read_text()) == result
        assert result["images"] == 2
        assert result["seconds_per_image"] > 0
        assert set(result["bbox"]["per_class"]) == set(result["voc"]["per_class"]) == set(CLASSES)
        assert result["voc"]["metric"] == "area"
        assert metrics(output)[-1]["test/bbox.AP"] == result["bbox"]["AP"]
        assert (result["trained"], result["weights"]["iteration"]) == (STEPS, STEPS)
        assert result["weights"]["chosen_by"] is None

    def test_config_reads_back(self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]]) -> None:
        assert load_config(DetectionConfig, finished[0] / "config.yaml") == config

    def test_checkpoint_knows_its_run(self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]]) -> None:
        read = read_checkpoint(finished[0])
        assert (read.config, read.class_names, read.iteration) == (config, CLASSES, STEPS)

    def test_same_seed_gives_the_same_weights_with_workers_too(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        torch.manual_seed(999)
        run_training(with_data(config, workers=1), tmp_path)
        expected, found = final_weights(finished[0]), final_weights(tmp_path)
        assert not [name for name, weight in expected.items() if not torch.equal(found[name], weight)]

    def test_evaluating_on_the_way_does_not_change_the_training(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        run_training(with_solver(watched(config), evaluate_every=2, checkpoint_every=0), tmp_path)
        expected, found = final_weights(finished[0]), final_weights(tmp_path)
        assert not [name for name, weight in expected.items() if not torch.equal(found[name], weight)]
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 2, 3, 4, 4, 4]

    def test_best_checkpoint_has_the_best_metric(self, config: DetectionConfig, tmp_path: Path) -> None:
        figures = {1: 0.2, 2: 0.5, 3: 0.4, 4: None}
        assert self.best_iteration(config, tmp_path, figures.values()) == 2
        assert read_checkpoint(tmp_path).iteration == 2  # which the directory means

    @pytest.mark.slow
    def test_best_checkpoint_has_the_lowest_error(
        self, config: DetectionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = Metric("bbox.AP", "error", lower_is_better=True)
        monkeypatch.setattr("detection.evaluation.metrics.METRICS", (error,))
        figures = {1: 0.5, 2: None, 3: 0.2, 4: 0.3}
        assert self.best_iteration(config, tmp_path, figures.values()) == 3

    @staticmethod
    def best_iteration(config: DetectionConfig, output: Path, figures: Iterable[float | None]) -> int:
        """Iteration of the best checkpoint of a run whose evaluations give ``figures``."""
        seen = iter(figures)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("detection.engine.trainer.read_metric", lambda result, key: next(seen))
            run_training(with_solver(watched(config), evaluate_every=1, keep_checkpoints=1), output)
        return read_checkpoint(output / "checkpoints" / "best.safetensors").iteration

    def test_parts_of_a_step(self, config: DetectionConfig, tmp_path: Path) -> None:
        accumulated = with_solver(with_data(config, test=()), images_per_step=4, accumulate=2, iterations=3)
        run_until(accumulated, tmp_path / "cut", 3)
        run_training(accumulated, tmp_path / "cut", resume=True)
        run_training(accumulated, tmp_path / "whole")
        for name in LOSSES:
            cut, whole = ([line[name] for line in metrics(tmp_path / run)] for run in ("cut", "whole"))
            assert cut == whole

    def test_bfloat16(self, config: DetectionConfig, tmp_path: Path) -> None:
        result = run_training(with_solver(config, precision="bf16", iterations=2), tmp_path)
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 2]
        assert result["images"] == 2
        assert all(weight.dtype == torch.float32 for weight in final_weights(tmp_path, 2).values())

    def test_no_test_set(self, config: DetectionConfig, tmp_path: Path) -> None:
        assert run_training(with_solver(with_data(config, test=()), iterations=1), tmp_path) == {}
        assert not (tmp_path / "result.json").exists()
        assert read_checkpoint(tmp_path).iteration == 1

    def test_sets_without_ground_truth_give_no_metric_and_choose_nothing(
        self, config: DetectionConfig, tmp_path: Path
    ) -> None:
        root = Path(shutil.copytree(str(config.data.root), tmp_path / "root"))
        file = root / "digits" / "coco" / "annotations" / "instances_test.json"
        content = json.loads(file.read_text())
        del content["annotations"]
        file.write_text(json.dumps(content))
        own = with_solver(with_data(watched(config), root=str(root)), evaluate_every=1, iterations=2)
        result = run_training(own, tmp_path / "run")
        assert (result["bbox"]["AP"], result["voc"]["mAP"], result["weights"]["chosen_by"]) == (None, None, None)
        assert read_checkpoint(tmp_path / "run").path.name == "0000002.safetensors"
        assert not [key for line in metrics(tmp_path / "run") for key in line if "AP" in key]

    def test_loss_that_is_not_finite_leaves_the_last_checkpoint(self, config: DetectionConfig, tmp_path: Path) -> None:
        wild = with_solver(with_data(config, test=()), base_lr=1e30, clip_norm=None, checkpoint_every=1)
        with pytest.raises(NotFiniteError) as error:
            run_training(wild, tmp_path)
        for part in ("iteration 1", "rpn_objectness", "box_regression", ".jpg"):
            assert part in str(error.value)
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
            "0000001.safetensors",
            "0000001.state.pt",
        ]
        assert read_checkpoint(tmp_path).iteration == 1


@pytest.fixture(scope="module")
def averaging(config: DetectionConfig) -> DetectionConfig:
    return watched(with_solver(config, ema_decay=0.9, optimizer="adamw", base_lr=1e-4, clip_norm=None))


@pytest.fixture(scope="module")
def averaged(averaging: DetectionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with averaged weights that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "averaged"
    run_training(averaging, output)
    return output


class TestAverage:
    """Runs whose weights are averaged; by AdamW, so that its state is part of the resume as well."""

    def test_resume_equals_an_uninterrupted_run(
        self, averaging: DetectionConfig, averaged: Path, tmp_path: Path
    ) -> None:
        run_until(averaging, tmp_path, STEPS - 1)
        torch.manual_seed(12345)
        run_training(averaging, tmp_path, resume=True)
        assert differing(final_weights(averaged), final_weights(tmp_path)) == []
        states = [torch.load(run / "checkpoints" / f"{STEPS:07d}.state.pt") for run in (averaged, tmp_path)]
        assert [state["ema"]["steps"] for state in states] == [STEPS, STEPS]
        trained = [state["ema"]["trained"] for state in states]
        assert differing(*trained) == []
        assert differing(trained[0], final_weights(averaged))  # the average is another model

    def test_the_average_is_tested(self, averaging: DetectionConfig, averaged: Path, tmp_path: Path) -> None:
        best = averaged / "checkpoints" / "best.safetensors"
        assert differing(load_file(best), final_weights(averaged)) == []
        for checkpoint in (averaged, best):
            run_test(averaging, read_checkpoint(checkpoint), tmp_path, say=lambda text: None)
            assert (tmp_path / "detections.json").read_bytes() == (averaged / "detections.json").read_bytes()


class TestRefusals:
    """Mistakes are named before any time is lost."""

    def test_no_training_set(self, config: DetectionConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"data\.train is empty"):
            run_training(with_data(config, train=()), tmp_path)

    def test_unknown_card(self, config: DetectionConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="did you mean 'digits'"):
            run_training(with_data(config, train=("digit:train",)), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_training_and_test_set_of_different_classes(
        self, config: DetectionConfig, root: Path, tmp_path: Path
    ) -> None:
        # Labels of one set mean nothing in the other, and the figures would be wrong without a word.
        card = tmp_path / "reversed.yaml"
        annotations = "{annotations: annotations/instances_test.json, images: test}"
        classes = json.dumps(list(reversed(CLASSES)))
        card.write_text(f"format: coco\nroot: digits/coco\nclasses: {classes}\nsplits: {{test: {annotations}}}\n")
        with pytest.raises(ValueError, match="classes"):
            run_training(with_solver(with_data(config, test=(f"{card}:test",)), iterations=1), tmp_path / "run")

    def test_figure_that_does_not_exist_costs_no_training(self, config: DetectionConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"solver\.best_metric"):
            run_training(with_solver(config, best_metric="bbox.ap50", iterations=1, checkpoint_every=0), tmp_path)
        # Refused at the start, or at least with the weights on the disk.
        trained, saved = tmp_path / "metrics.jsonl", tmp_path / "checkpoints" / "0000001.safetensors"
        assert not trained.exists() or saved.exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
    def test_cuda_without_a_device(self, config: DetectionConfig) -> None:
        with pytest.raises(ValueError, match="no CUDA device"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"

    def test_pasting_from_a_data_set_without_masks(
        self, config: DetectionConfig, make_voc: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
    ) -> None:
        make_voc({"a": [("cat", (11, 21, 40, 50), False)]})
        train = f"{write_card('voc')}:train"
        pasting = with_data(config, root=str(tmp_path), train=(train,), test=(), copy_paste=0.5)
        with pytest.raises(ValueError, match=r"data\.train .*voc\.yaml:train.* lacks masks.* data\.copy_paste"):
            run_training(pasting, tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoints").exists()

    def test_pasting_reads_the_masks_without_a_mask_stage(
        self, config: DetectionConfig, make_coco: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
    ) -> None:
        square = {"bbox": [5, 5, 10, 10], "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]], "area": 100, "iscrowd": 0}
        make_coco({1: "a.jpg"}, [{"id": 1, "image_id": 1, "category_id": 3, **square}])
        card = f"{write_card('coco')}:train"
        pasting = with_data(config, root=str(tmp_path), train=(card,), test=(card,), copy_paste=0.5)
        run_training(with_solver(pasting, iterations=1), tmp_path / "run")
        assert (tmp_path / "run" / "result.json").is_file()


class TestTest:
    """A test of a checkpoint."""

    def run(self, config: DetectionConfig, run: Path, output: Path, **options: Any) -> dict[str, Any]:
        return run_test(config, read_checkpoint(run), output, **{"say": lambda text: None, **options})

    def test_figures_equal_those_of_the_training(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        run, expected = finished
        result = self.run(config, run, tmp_path)
        assert result["bbox"] == expected["bbox"]
        assert result["voc"] == expected["voc"]
        assert json.loads((tmp_path / "result.json").read_text()) == result
        assert (tmp_path / "detections.json").read_bytes() == (run / "detections.json").read_bytes()
        assert not (tmp_path / "pictures").exists()

    def test_voc_layout_of_the_same_images_gives_the_same_figures(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        run, expected = finished
        result = self.run(with_data(config, test=("digits_voc:test",)), run, tmp_path)
        assert result["voc"]["per_class"] == pytest.approx(expected["voc"]["per_class"])

    def test_limit_and_pictures(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        said: list[str] = []
        result = self.run(config, finished[0], tmp_path, limit=1, pictures=5, say=said.append)
        assert result["images"] == 1
        assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["00000_000007.jpg"]
        assert said[-1].startswith("1 images, ")

    def test_no_detections(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        silent = replace(config, test=replace(config.test, score_threshold=1.0))
        result = self.run(silent, finished[0], tmp_path, pictures=1)
        assert result["bbox"]["AP"] == 0
        assert json.loads((tmp_path / "detections.json").read_text()) == []
        assert len(list((tmp_path / "pictures").iterdir())) == 1

    def test_weights_of_another_backbone_are_refused_with_names(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        other = replace(config, backbone=DetectorBackboneConfig(name="resnet50", norm="gn", roi_size=2))
        with pytest.raises(ValueError, match="do not fit") as error:
            self.run(other, finished[0], tmp_path)
        assert "backbone.layer1.0.conv3.weight" in str(error.value)
        assert str(finished[0]) in str(error.value)

    def test_classes_of_another_data_set_are_refused_with_both_sides(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        card = tmp_path / "letters.yaml"
        annotations = "{annotations: annotations/instances_test.json, images: test}"
        classes = json.dumps([*CLASSES, "a"])
        card.write_text(f"format: coco\nroot: digits/coco\nclasses: {classes}\nsplits: {{test: {annotations}}}\n")
        with pytest.raises(ValueError, match=r"'9'.*the data set has 11: .*'a'|class"):
            self.run(with_data(config, test=(f"{card}:test",)), finished[0], tmp_path)


def untrained(config: DetectionConfig, class_names: tuple[str, ...] = CLASSES) -> Checkpoint:
    """What a checkpoint of a detector that never learned anything reads as."""
    torch.manual_seed(7)
    weights = build_detector(config, len(class_names)).state_dict()
    return Checkpoint(Path("other.safetensors"), weights, config, class_names, 0)


def with_test(config: DetectionConfig, **options: Any) -> DetectionConfig:
    return replace(config, test=replace(config.test, **options))


METHODS: dict[str, Any] = {"refine": True, "vote_iou": 0.5, "scales": (48, 96), "flip": True, "score_threshold": 0.01}


class TestMethods:
    """The paper's test-time methods and ensembles, by config keys over one checkpoint."""

    def run(self, config: DetectionConfig, checkpoint: Checkpoint, output: Path, **options: Any) -> dict[str, Any]:
        return run_test(config, checkpoint, output, **{"say": lambda text: None, **options})

    def detections(self, output: Path) -> list[dict[str, Any]]:
        return json.loads((output / "detections.json").read_text())

    @pytest.mark.parametrize("name", list(METHODS)[:-1])
    def test_each_key_changes_the_detections(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path, name: str
    ) -> None:
        checkpoint = read_checkpoint(finished[0])
        for output, options in (("plain", {}), (name, {name: METHODS[name]})):
            result = self.run(with_test(config, score_threshold=0.01, **options), checkpoint, tmp_path / output)
            assert result["images"] == 2
        plain, found = self.detections(tmp_path / "plain"), self.detections(tmp_path / name)
        assert plain
        assert found
        assert found != plain

    def test_all_together_over_an_ensemble_of_other_architectures(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        # Each member is built as its own config says: another depth, other anchors, context.
        deeper = replace(
            config, backbone=replace(config.backbone, name="resnet34"), anchors=AnchorConfig(sizes=(24.0,))
        )
        contextual = replace(config, box=replace(config.box, context=True))
        ensemble = [untrained(deeper), untrained(contextual)]
        checkpoint = read_checkpoint(finished[0])
        result = self.run(with_test(config, **METHODS), checkpoint, tmp_path, ensemble=ensemble, pictures=1)
        assert result["images"] == 2
        found = self.detections(tmp_path)
        assert found
        assert all(entry["bbox"][2] > 0 and entry["bbox"][3] > 0 and 0.01 < entry["score"] <= 1 for entry in found)

    def test_ensemble_of_twice_the_same_checkpoint_is_the_checkpoint(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        checkpoint = read_checkpoint(finished[0])
        settings = with_test(config, score_threshold=0.01)
        single = self.run(settings, checkpoint, tmp_path / "single")
        double = self.run(settings, checkpoint, tmp_path / "double", ensemble=[checkpoint])
        for part in ("bbox", "voc"):
            assert double[part]["per_class"].keys() == single[part]["per_class"].keys()
        assert double["bbox"]["AP"] == pytest.approx(single["bbox"]["AP"], abs=1e-4)
        assert double["voc"]["mAP"] == pytest.approx(single["voc"]["mAP"], abs=1e-4)
        expected, found = self.detections(tmp_path / "single"), self.detections(tmp_path / "double")
        scores = [sorted(entry["score"] for entry in entries) for entries in (found, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)

    @pytest.mark.parametrize("other", [(*CLASSES[1:], CLASSES[0]), (*CLASSES, "a"), CLASSES[:-1]])
    def test_ensemble_of_other_classes_is_refused_with_both_sides(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path, other: tuple[str, ...]
    ) -> None:
        checkpoint = read_checkpoint(finished[0])
        with pytest.raises(ValueError, match=r"other\.safetensors") as error:
            self.run(config, checkpoint, tmp_path / "out", ensemble=[untrained(config, other)])
        assert str(other) in str(error.value)
        assert str(CLASSES) in str(error.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("context", [True, False], ids=["into_context", "out_of_context"])
    def test_weights_with_and_without_context_do_not_fit_each_other(
        self, config: DetectionConfig, tmp_path: Path, context: bool
    ) -> None:
        module, weights = (replace(config, box=replace(config.box, context=on)) for on in (context, not context))
        with pytest.raises(ValueError, match="do not fit") as error:
            self.run(module, untrained(weights), tmp_path / "out")
        sides = (1024, 512) if context else (512, 1024)
        for name, rows in (("classes", 11), ("deltas", 40)):
            shapes = f"module ({rows}, {sides[0]}), weights ({rows}, {sides[1]})"
            assert f"box_stage.predictor.{name}.weight ({shapes})" in str(error.value)
        assert not (tmp_path / "out").exists()

    def test_context_trains_and_tests(self, config: DetectionConfig, tmp_path: Path) -> None:
        contextual = with_solver(replace(config, box=replace(config.box, context=True)), iterations=2)
        trained = run_training(contextual, tmp_path / "run")
        checkpoint = read_checkpoint(tmp_path / "run")
        assert checkpoint.config.box.context
        assert checkpoint.weights["box_stage.predictor.classes.weight"].shape == (11, 1024)
        tested = self.run(contextual, checkpoint, tmp_path / "test")
        assert tested["bbox"] == trained["bbox"]

    def test_training_ends_with_the_test_that_the_config_describes(
        self, config: DetectionConfig, tmp_path: Path
    ) -> None:
        settings = with_solver(with_test(config, **METHODS), iterations=1)
        run_training(settings, tmp_path / "run")
        self.run(settings, read_checkpoint(tmp_path / "run"), tmp_path / "test")
        assert self.detections(tmp_path / "run") == self.detections(tmp_path / "test")


def differing(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    assert set(found) == set(expected)
    return [name for name, weight in expected.items() if not torch.equal(found[name], weight)]


class TestSaidAtTheStart:
    """What a user would else find out at the end."""

    @pytest.fixture
    def short(self, config: DetectionConfig) -> DetectionConfig:
        return with_solver(with_data(config, test=(), limit=1), iterations=1, checkpoint_every=0, log_sinks=())

    @pytest.mark.parametrize("form", ["bbox.per_class.{}.AP50", "voc.per_class.{}"])
    def test_best_metric_of_a_class_that_val_lacks(
        self, short: DetectionConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
    ) -> None:
        watched = with_data(short, val=short.data.train)
        index = load_dataset(watched.data.train, Path(str(watched.data.root)))[0].first(1)
        present = index.class_names[int(index.labels[0])]
        lacking = next(name for label, name in enumerate(index.class_names) if label not in index.labels)
        for name in (present, lacking):
            run_training(with_solver(watched, best_metric=form.format(name)), tmp_path / name)
            warned = f"data.val has no object of class '{lacking}'" in capsys.readouterr().out
            assert warned == (name == lacking)

    def test_what_came_over_from_init(
        self,
        short: DetectionConfig,
        finished: tuple[Path, dict[str, Any]],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        run_training(replace(short, init=str(finished[0])), tmp_path)
        out = capsys.readouterr().out
        assert f"starts from {finished[0]}" in out
        assert f"classes kept: {', '.join(CLASSES)}\n  classes new: none" in out

    def test_many_proposals(self, short: DetectionConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_training(replace(short, rpn=replace(short.rpn, post_nms_train=6000)), tmp_path)
        assert "warning: rpn.post_nms_train 6000" in capsys.readouterr().out


@pytest.mark.slow
class TestOtherSettingsOnTheWay:
    """A run that goes on with another config takes that config's word, and says so."""

    def test_changed_keys_are_said(
        self, config: DetectionConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.resume(config, tmp_path, base_lr=0.02, momentum=0.5)
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("config changed")]
        assert said == [
            "config changed: solver.base_lr: 0.001 -> 0.02",
            "config changed: solver.momentum: 0.9 -> 0.5",
        ]

    def test_keys_that_change_what_weights_mean_are_refused(self, config: DetectionConfig, tmp_path: Path) -> None:
        run_until(config, tmp_path, 3)
        other = replace(config, anchors=AnchorConfig(sizes=(24.0, 32.0)))
        with pytest.raises(ValueError, match=r"anchors\.sizes is \[24\.0, 32\.0\] here, and was \[16\.0, 32\.0\]$"):
            run_training(other, tmp_path, resume=True)

    def resume(self, config: DetectionConfig, output: Path, **solver: Any) -> None:
        run_until(with_data(config, test=()), output, 3)  # the checkpoint is of iteration 2
        run_training(with_solver(with_data(config, test=()), **solver), output, resume=True)

    def saved_groups(self, run: Path) -> list[dict[str, Any]]:
        state = torch.load(run / "checkpoints" / f"{STEPS:07d}.state.pt", weights_only=True)
        return state["optimizer"]["param_groups"]

    def test_momentum(self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        self.resume(config, tmp_path, momentum=0.0)
        assert {group["momentum"] for group in self.saved_groups(tmp_path)} == {0.0}
        assert differing(final_weights(tmp_path), final_weights(finished[0]))

    @pytest.mark.parametrize("decay", [0.25, 0.0])
    def test_weight_decay(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path, decay: float
    ) -> None:
        self.resume(config, tmp_path, weight_decay=decay)
        assert {group["weight_decay"] for group in self.saved_groups(tmp_path)} == {decay, 0.0}
        assert differing(final_weights(tmp_path), final_weights(finished[0]))

    @pytest.mark.parametrize("factor", [3.0, 1.0])
    def test_rate_of_biases(self, config: DetectionConfig, tmp_path: Path, factor: float) -> None:
        self.resume(config, tmp_path, bias_lr_factor=factor)
        assert {group["lr_factor"] for group in self.saved_groups(tmp_path)} == {factor, 1.0}

    def test_rate(self, config: DetectionConfig, tmp_path: Path) -> None:
        self.resume(config, tmp_path, base_lr=0.02)
        rates = [line["learning_rate"] for line in metrics(tmp_path)]
        assert rates == pytest.approx([1e-3, 1e-3, 2e-2, 2e-3])

    def test_half_precision(self, config: DetectionConfig, tmp_path: Path) -> None:
        self.resume(config, tmp_path, precision="fp16")
        assert read_checkpoint(tmp_path).iteration == STEPS
        assert all(weight.isfinite().all() for weight in final_weights(tmp_path).values())

    def test_out_of_half_precision(self, config: DetectionConfig, tmp_path: Path) -> None:
        run_until(with_solver(with_data(config, test=()), precision="fp16"), tmp_path, 3)
        run_training(with_data(config, test=()), tmp_path, resume=True)
        assert read_checkpoint(tmp_path).iteration == STEPS

    def test_other_frozen_stages_are_refused_with_both_sides(self, config: DetectionConfig, tmp_path: Path) -> None:
        run_until(config, tmp_path, 3)
        counts = [
            [len(group["params"]) for group in build_optimizer(build_detector(c, 10), c.solver).param_groups]
            for c in (config, with_freeze(config, 3))
        ]
        with pytest.raises(ValueError, match=r"backbone\.freeze_at and norm") as error:
            run_training(with_freeze(config, 3), tmp_path, resume=True)
        assert f"groups of {counts[0]} parameters, this config's has {counts[1]}" in str(error.value)
        assert read_checkpoint(tmp_path).iteration == 2

    def test_other_fixed_parts_are_refused(self, config: DetectionConfig, tmp_path: Path) -> None:
        run_until(config, tmp_path, 3)
        with pytest.raises(ValueError, match=r"groups of .* parameters"):
            run_training(config, tmp_path, resume=True, fixed=("rpn",))


def with_freeze(config: DetectionConfig, stages: int) -> DetectionConfig:
    return replace(config, backbone=replace(config.backbone, freeze_at=stages))


def later_image(config: DetectionConfig) -> Path:
    """An image of the third step that no step before has seen."""
    index, _ = load_dataset(config.data.train, Path(str(config.data.root)))
    batches = iter(build_train_loader(index, config.data, batch_size=2, seed=config.seed))
    first, second, third = (next(batches).paths for _ in range(3))
    (path, *_) = [path for path in third if path not in (*first, *second)]
    return Path(path)


class TestErrorsOnTheWay:
    """Whatever ends a training costs no steps, unless the steps are what went wrong."""

    @pytest.mark.parametrize("workers", [0, 1])
    def test_unreadable_image(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path, workers: int
    ) -> None:
        root = Path(shutil.copytree(str(config.data.root), tmp_path / "root"))
        own = with_solver(with_data(config, root=str(root), workers=workers), checkpoint_every=0)
        path = later_image(own)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + END)
        with pytest.raises(ImageError) as error:
            run_training(own, tmp_path / "run")
        message = str(error.value)
        assert message.startswith(f"image {path} can't be read: ")
        assert "\n" not in message
        assert "Traceback" not in message
        assert read_checkpoint(tmp_path / "run").iteration == 2
        # With the image put right, nothing is lost.
        path.write_bytes(whole)
        run_training(own, tmp_path / "run", resume=True)
        assert differing(final_weights(tmp_path / "run"), final_weights(finished[0])) == []

    def test_killed_worker(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        own = with_solver(with_data(config, workers=1), checkpoint_every=0)
        path, read, trainer_pid = later_image(own), AnnotationIndex.image, os.getpid()

        def kill(index: AnnotationIndex, row: int) -> Any:
            if index.paths[row] == str(path) and os.getpid() != trainer_pid:
                time.sleep(0.5)  # for the batches before to arrive
                os.kill(os.getpid(), signal.SIGKILL)
            return read(index, row)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AnnotationIndex, "image", kill)
            with pytest.raises(ChildProcessError, match=r"loader worker \d+ was killed"):
                run_training(own, tmp_path)
        assert read_checkpoint(tmp_path).iteration >= 1
        run_training(own, tmp_path, resume=True)
        assert differing(final_weights(tmp_path), final_weights(finished[0])) == []

    def test_unreadable_image_in_the_first_step(self, config: DetectionConfig, tmp_path: Path) -> None:
        root = Path(shutil.copytree(str(config.data.root), tmp_path / "root"))
        for path in root.rglob("*.jpg"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + END)
        with pytest.raises(ImageError):
            run_training(with_data(config, root=str(root)), tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoints").exists()  # there is nothing to save

    def test_images_that_are_none_are_named_before_the_first_step(
        self, config: DetectionConfig, tmp_path: Path
    ) -> None:
        root = Path(shutil.copytree(str(config.data.root), tmp_path / "root"))
        for path in root.rglob("*.jpg"):
            path.write_bytes(b"")
        with pytest.raises(
            ValueError, match=r"(?s)digits:train' has 6 errors.*000001\.jpg.*000006\.jpg.*bad_images: drop"
        ):
            run_training(with_data(config, root=str(root)), tmp_path / "run")

    def test_ctrl_c(self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        record = RunLog.metrics

        def interrupt(log: RunLog, step: int, values: Mapping[str, float]) -> None:
            record(log, step, values)
            if step == 3:
                raise KeyboardInterrupt

        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "metrics", interrupt)
            patch.setattr(RunLog, "say", lambda log, text: said.append(text))
            with pytest.raises(KeyboardInterrupt):
                run_training(config, tmp_path)
        saved = tmp_path / "checkpoints" / "0000003.safetensors"
        assert said[-1] == f"stopped; saved {saved}, and --resume goes on from it"
        assert read_checkpoint(tmp_path).iteration == 3
        run_training(config, tmp_path, resume=True)
        assert differing(final_weights(tmp_path), final_weights(finished[0])) == []

    def test_no_memory_left_for_the_evaluation(self, config: DetectionConfig, tmp_path: Path) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("out of memory")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("detection.tasks.train.measure", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                run_training(config, tmp_path)
        assert read_checkpoint(tmp_path).iteration == STEPS

    def test_loss_that_is_not_finite_saves_nothing(self, config: DetectionConfig, tmp_path: Path) -> None:
        # The weights of the last step may be the cause.
        run_until(with_data(config, test=()), tmp_path, 3)
        before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
        wild = with_solver(with_data(config, test=()), base_lr=1e30, clip_norm=None, checkpoint_every=0)
        with pytest.raises(NotFiniteError, match="iteration 3"):
            run_training(wild, tmp_path, resume=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


def test_tensorboard_shows_objects_beside_detections_of_the_same_images(
    config: DetectionConfig, tmp_path: Path
) -> None:
    run_training(with_solver(watched(config), evaluate_every=2, log_sinks=("tensorboard",)), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert 1 <= len(tags) <= IMAGES
    for tag in tags:
        shown = events.Images(tag)
        assert [event.step for event in shown] == [2, 4]
        assert {(event.height <= LONGEST, event.width <= 2 * LONGEST) for event in shown} == {(True, True)}
        first, second = (np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in shown)
        half = first.shape[1] // 2
        assert (first[:, :half] == second[:, :half]).all()  # the objects stay


@pytest.mark.slow
class TestEvaluationThatIsDue:
    """A run that ended between a checkpoint and its evaluation makes up for it."""

    def test_last_one(self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise Killed

        config = watched(config)
        for place in ("detection.tasks.train.measure", "detection.engine.checkpoint.shutil.copyfile"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, fail)
                with pytest.raises(Killed):
                    run_training(config, tmp_path / "run", resume=True)
        result = run_training(config, tmp_path / "run", resume=True)
        assert result["bbox"] == finished[1]["bbox"]
        assert [line["iteration"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 4, 4]
        best = load_file(tmp_path / "run" / "checkpoints" / "best.safetensors")
        assert differing(best, final_weights(finished[0])) == []
        assert run_training(config, tmp_path / "run", resume=True) == result

    def test_one_on_the_way(self, config: DetectionConfig, tmp_path: Path) -> None:
        often = with_solver(watched(config), evaluate_every=2, checkpoint_every=0)

        def fail(*_: Any, **__: Any) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("detection.tasks.train.measure", fail)
            with pytest.raises(Killed):
                run_training(often, tmp_path)
        assert read_checkpoint(tmp_path).iteration == 2
        run_training(often, tmp_path, resume=True)
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 2, 3, 4, 4, 4]


class TestSignals:
    """A signal lets the step end, saves and says so."""

    def stop_at(self, config: DetectionConfig, output: Path, step: int, number: signal.Signals) -> str:
        record = RunLog.metrics

        def interrupt(log: RunLog, iteration: int, values: Mapping[str, float]) -> None:
            record(log, iteration, values)
            if iteration == step:
                os.kill(os.getpid(), number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "metrics", interrupt)
            with pytest.raises(StoppedError) as error:
                run_training(config, output)
        return str(error.value)

    @pytest.mark.usefixtures("not_under_nohup")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
    def test_the_same_command_goes_on(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path, number: signal.Signals
    ) -> None:
        message = self.stop_at(with_solver(config, checkpoint_every=0), tmp_path, 3, number)
        assert message.startswith(f"{number.name} ended the run after iteration 3 of 4; the same command with --resume")
        assert read_checkpoint(tmp_path).iteration == 3
        assert not (tmp_path / "result.json").exists()
        run_training(config, tmp_path, resume=True)
        assert differing(final_weights(tmp_path), final_weights(finished[0])) == []
        first, second = read_manifest(tmp_path)
        assert (first["exit"], first["last_iteration"]) == (f"StoppedError: {message}", 3)
        assert (second["exit"], second["first_iteration"], second["last_iteration"]) == ("finished", 3, 4)

    def test_files_cut_short_do_not_stop_a_resume(
        self, config: DetectionConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.stop_at(config, tmp_path, 3, signal.SIGTERM)
        for name in ("manifest.json", "metrics.jsonl"):
            content = (tmp_path / name).read_text()
            (tmp_path / name).write_text(content[: len(content) - 9])
        (tmp_path / "result.json").write_text('{"bbox": {')
        shorter = with_data(config, limit=5)
        result = run_training(shorter, tmp_path, resume=True)
        assert json.loads((tmp_path / "result.json").read_text()) == result
        assert "manifest.json.damaged now" in capsys.readouterr().out
        (tmp_path / "result.json").write_text('{"bbox": {')
        assert run_training(config, tmp_path, resume=True)["bbox"] == result["bbox"]
        assert "warning: data.train has changed since the last start: 5 -> 6 images" in capsys.readouterr().out

    def test_an_evaluation_that_is_due_waits_for_the_next_start(self, config: DetectionConfig, tmp_path: Path) -> None:
        often = with_solver(watched(config), evaluate_every=3, checkpoint_every=0)
        self.stop_at(often, tmp_path, 3, signal.SIGTERM)
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 3]
        run_training(often, tmp_path, resume=True)
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 3, 3, 4, 4, 4]


def break_step(patch: pytest.MonkeyPatch, *iterations: int) -> None:
    """Makes the losses of the training steps that begin at ``iterations`` not a number."""

    def broken(state: Any, replica: Any, *rest: Any) -> Any:
        def spoilt(*given: Any) -> Any:
            return {name: loss * float("nan") for name, loss in replica(*given).items()}

        chosen: Any = spoilt if state.iteration in iterations else replica
        return step(state, chosen, *rest)

    patch.setattr(trainer, "step", broken)


class TestNotFinite:
    """What solver.on_not_finite says is done, and the step can be seen again."""

    def train(
        self, config: DetectionConfig, output: Path, *iterations: int, resume: bool = False, **solver: Any
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            break_step(patch, *iterations)
            run_training(with_solver(with_data(config, test=()), **solver), output, resume=resume)

    def test_stop_leaves_all_it_takes_to_repeat_the_step(self, config: DetectionConfig, tmp_path: Path) -> None:
        run = tmp_path / "run"
        with pytest.raises(NotFiniteError, match=r"iteration 3: .*not_finite/0000003\.json has all it takes"):
            self.train(config, run, 3)
        dump = json.loads((run / "not_finite" / "0000003.json").read_text())
        assert (dump["iteration"], dump["seed"]) == (3, config.seed)
        assert dump["config"]["solver"]["base_lr"] == config.solver.base_lr
        (((first, second),),) = dump["files"]
        assert Path(first).is_file()
        assert Path(second).is_file()
        folder = run / "not_finite" / "0000003"
        assert dump["replay"].endswith(f"train {folder / 'config.yaml'} --output-dir {folder} --resume")
        # The command takes that one step, from the same state on the same images.
        seen: list[Any] = []

        def look(state: Any, replica: Any, feed: Any, *rest: Any) -> Any:
            seen.append((torch.get_rng_state(), [part.paths for part in feed._next]))
            seen[-1] = (*seen[-1], step(state, replica, feed, *rest))
            return seen[-1][-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "step", look)
            run_training(load_config(DetectionConfig, folder / "config.yaml"), folder, resume=True)
        (replayed,) = seen
        assert replayed[1] == [(first, second)]
        run_training(with_data(config, test=()), tmp_path / "whole")
        line = metrics(tmp_path / "whole")[3]
        assert [line[f"loss/{name}"] for name in replayed[2]] == list(replayed[2].values())

    def test_skip(self, config: DetectionConfig, tmp_path: Path) -> None:
        self.train(config, tmp_path / "skip", 1, on_not_finite="skip")
        assert [line["iteration"] for line in metrics(tmp_path / "skip")] == [1, 2, 3, 4]
        assert metrics(tmp_path / "skip")[1]["loss/total"] == 0
        # A run that was killed in between ends the same.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "metrics", killed_at(3))
            with pytest.raises(Killed):
                self.train(config, tmp_path / "cut", 1, on_not_finite="skip")
        self.train(config, tmp_path / "cut", resume=True, on_not_finite="skip")
        assert differing(final_weights(tmp_path / "cut"), final_weights(tmp_path / "skip")) == []
        state = torch.load(tmp_path / "cut" / "checkpoints" / "0000004.state.pt", weights_only=True)
        assert state["not_finite"] == 1

    def test_skip_up_to_so_many(self, config: DetectionConfig, tmp_path: Path) -> None:
        message = r"iteration 2: .*it is number 3, solver\.max_not_finite is 2"
        with pytest.raises(NotFiniteError, match=message):
            self.train(config, tmp_path, 0, 1, 2, on_not_finite="skip", max_not_finite=2)
        names = sorted(path.name for path in (tmp_path / "not_finite").iterdir())
        assert names == ["0000000", "0000000.json", "0000001.json", "0000002.json"]  # the state of the first only

    def test_roll_back_takes_the_weights_of_the_checkpoint_and_goes_on(
        self, config: DetectionConfig, tmp_path: Path
    ) -> None:
        # The checkpoint is of iteration 2; the steps that begin at 2 and 3 are lost, and no further one follows.
        self.train(config, tmp_path, 3, on_not_finite="roll_back")
        assert differing(final_weights(tmp_path), final_weights(tmp_path, 2)) == []
        assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 3, 4]

    def test_roll_back_without_a_checkpoint(
        self, config: DetectionConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.train(config, tmp_path, 0, on_not_finite="roll_back")
        said = capsys.readouterr().out
        assert "skipped a step from the same weights, since no checkpoint is saved yet, 1 of 10" in said

    def test_no_memory_left_names_the_knobs(self, config: DetectionConfig, tmp_path: Path) -> None:
        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "step", fail)
            with pytest.raises(MemoryError) as error:
                run_training(config, tmp_path)
        for part in ("iteration 0: raise solver.accumulate (now 1, of 2 images a step)", "(64, 96)", "3 GiB"):
            assert part in str(error.value)
        assert not (tmp_path / "checkpoints").exists()


class TestDeterministic:
    """The same run twice, and what made it."""

    def test_several_threads(self, config: DetectionConfig, tmp_path: Path) -> None:
        settings = replace(with_data(config, test=(), shorter_side=192, longer_side=256), deterministic=True)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            for name in ("one", "two"):
                run_training(with_solver(settings, iterations=2), tmp_path / name)
        finally:
            torch.set_num_threads(threads)
        assert differing(final_weights(tmp_path / "one", 2), final_weights(tmp_path / "two", 2)) == []
        assert not torch.are_deterministic_algorithms_enabled()

    def test_pooling_without_an_order_on_gpus_is_refused(
        self, config: DetectionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("detection.tasks.train.choose_device", lambda config: torch.device("cuda"))
        with pytest.raises(ValueError, match=r"set box\.pool to roi_align, or deterministic to false"):
            run_training(replace(config, deterministic=True), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_manifest(self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], resumed: Path) -> None:
        (entry,) = read_manifest(finished[0])
        assert (entry["exit"], entry["first_iteration"], entry["last_iteration"]) == ("finished", 0, STEPS)
        assert {name: part["images"] for name, part in entry["data"].items()} == {"train": 6, "test": 2}
        first, second = read_manifest(resumed)
        for key in ("config_sha256", "data", "versions", "hardware", "commit"):
            assert entry[key] == first[key] == second[key]
        assert first["weights_sha256"] == entry["weights_sha256"] != second["weights_sha256"]
        assert second["first_iteration"] == 2


class TestInit:
    """Runs that start from another detector."""

    def start(self, config: DetectionConfig, run: Path, output: Path, **options: Any) -> Path:
        """One step so small that it moves no weight by much."""
        slow = with_solver(with_data(config, test=()), iterations=1, base_lr=1e-12)
        run_training(replace(slow, init=str(run), **options), output)
        return output

    def test_starts_from_the_weights_of_the_run(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        started = final_weights(self.start(replace(config, seed=5), finished[0], tmp_path), 1)
        for name, weight in final_weights(finished[0]).items():
            torch.testing.assert_close(started[name], weight, atol=1e-6, rtol=1e-6)

    def test_a_run_that_goes_on_does_not_start_again(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        source = Path(shutil.copytree(finished[0], tmp_path / "source"))
        begun = with_solver(with_data(replace(config, init=str(source)), test=()), iterations=1)
        run_training(begun, tmp_path / "run")
        shutil.rmtree(source)
        run_training(with_solver(begun, iterations=2), tmp_path / "run", resume=True)
        assert read_checkpoint(tmp_path / "run").iteration == 2

    def test_missing_start_is_named(self, config: DetectionConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"init '.*absent' is no run, no file"):
            self.start(config, tmp_path / "absent", tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_wrong_class_name_is_named(
        self, config: DetectionConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="init_classes maps '3' to 'three'"):
            self.start(config, finished[0], tmp_path, init_classes={"3": "three"})
