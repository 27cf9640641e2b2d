"""Mirrors detection/classification/task.py: whole runs on folders of pictures that differ in colour."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from backbones.classifier import Classifier
from backbones.extras.branchynet import BranchyNet
from detection.build import build_detector
from detection.classification import task as classification
from detection.classification.compare import read_shares
from detection.classification.config import ClassificationConfig, ClassifierConfig, ClassifierSolverConfig
from detection.classification.exits import exit_costs
from detection.classification.library import load_published
from detection.classification.model import ImageClassifier
from detection.classification.task import (
    build_classifier,
    evaluate_classifiers,
    evaluate_weights,
    format_accuracy,
    run_pretraining,
)
from detection.config.detection import AnchorConfig, BoxConfig, DetectionConfig, DetectorBackboneConfig
from detection.config.load import load_config
from detection.config.sections import BackboneConfig, DataConfig
from detection.engine.checkpoint import read_checkpoint
from detection.engine.log import RunLog
from detection.engine.loop import NotFiniteError

SIDE = 32
COLOURS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (60, 60, 220)}
STEPS = 20


def draw(folder: Path, count: int, *, seed: int, classes: Sequence[str] = tuple(COLOURS)) -> None:
    """``count`` pictures of every class: its colour and noise."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(COLOURS[name] + random.normal(0, 60, (SIDE, SIDE, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def write_card(root: Path, **keys: Any) -> str:
    splits = {split: {"folder": split} for split in ("train", "test")}
    card = {"format": "image_folder", "root": str(root), "classes": list(COLOURS), "splits": splits} | keys
    path = root / "colours.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in card.items() if value is not None}))
    return str(path)


def make_root(folder: Path) -> Path:
    draw(folder / "train", 8, seed=0)
    draw(folder / "test", 4, seed=1)
    write_card(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("colours"))


def make_config(root: Path, **options: Any) -> ClassificationConfig:
    sizes: dict[str, Any] = {"crop": SIDE, "shorter_side": SIDE}
    return ClassificationConfig(
        backbone=BackboneConfig(name="cifar_resnet20", norm="bn"),
        data=DataConfig(
            train=(f"{root}/colours.yaml:train",),
            test=(f"{root}/colours.yaml:test",),
            root=str(root),
            shorter_side=SIDE,
            longer_side=SIDE,
            augment=(
                {"Pad": {"padding": 4}},
                {"RandomCrop": {"height": SIDE, "width": SIDE}},
                {"HorizontalFlip": {"p": 0.5}},
            ),
            workers=0,
        ),
        solver=ClassifierSolverConfig(
            iterations=STEPS,
            images_per_step=12,
            base_lr=0.02,
            steps=(14,),
            checkpoint_every=8,
            log_every=1,
        ),
        classification=ClassifierConfig(**sizes | options),
        device="cpu",
    )


@pytest.fixture(scope="module")
def config(root: Path) -> ClassificationConfig:
    """With all that draws numbers."""
    return make_config(root, mixup=0.2, label_smoothing=0.1)


def with_solver(config: ClassificationConfig, **options: Any) -> ClassificationConfig:
    return replace(config, solver=replace(config.solver, **options))


def with_data(config: ClassificationConfig, **options: Any) -> ClassificationConfig:
    return replace(config, data=replace(config.data, **options))


def one_step(config: ClassificationConfig, **backbone: Any) -> ClassificationConfig:
    """A run of a single step without a test."""
    quick = with_solver(with_data(config, test=()), iterations=1, images_per_step=4)
    return replace(quick, backbone=replace(quick.backbone, **backbone))


@pytest.fixture(scope="module")
def finished(config: ClassificationConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directory and the result of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, run_pretraining(config, output)


@pytest.fixture(scope="module")
def started(config: ClassificationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step of a ResNet-18."""
    output = tmp_path_factory.mktemp("runs") / "resnet18"
    run_pretraining(one_step(config, name="resnet18"), output)
    return output


@pytest.fixture(scope="module")
def other(config: ClassificationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another seed that is not done."""
    output = tmp_path_factory.mktemp("runs") / "other"
    run_pretraining(replace(one_step(config), seed=5), output)
    return output


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path, iteration: int) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"{iteration:07d}.safetensors")


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    assert set(first) == set(second)
    return [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]


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


class TestWholeRun:
    """What a run leaves behind."""

    def test_learns_the_colours(self, finished: tuple[Path, dict[str, Any]]) -> None:
        assert finished[1]["classification"]["top1"] >= 0.9
        first, last = (metrics(finished[0])[step]["loss/classification"] for step in (0, STEPS - 1))
        assert last < first

    def test_result_is_the_file(self, finished: tuple[Path, dict[str, Any]]) -> None:
        output, result = finished
        assert json.loads((output / "result.json").read_text()) == result
        assert set(result) == {"classification", "images", "views", "trained", "weights"}
        assert set(result["classification"]) == {"top1", "top5"}
        assert result["classification"]["top5"] == 1  # of three classes
        assert (result["images"], result["views"]) == (12, "crop")
        _, shares = read_shares(output)
        assert {name: sum(own) / len(own) for name, own in shares.items()} == {
            f"classification.{name}": value for name, value in result["classification"].items()
        }

    def test_metrics(self, finished: tuple[Path, dict[str, Any]]) -> None:
        *steps, evaluation = metrics(finished[0])
        assert [line["iteration"] for line in steps] == list(range(1, STEPS + 1))
        assert all(line["loss/total"] == line["loss/classification"] for line in steps)
        assert evaluation["test/classification.top1"] == finished[1]["classification"]["top1"]
        assert evaluation["test/classification.top5"] == 1

    def test_checkpoint_knows_its_classes(self, finished: tuple[Path, dict[str, Any]]) -> None:
        checkpoint = read_checkpoint(finished[0], ClassificationConfig)
        assert (checkpoint.class_names, checkpoint.iteration) == (tuple(COLOURS), STEPS)

    def test_going_on_equals_never_having_stopped(
        self, config: ClassificationConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "metrics", killed_at(10))  # the checkpoint is of iteration 8
            with pytest.raises(Killed):
                run_pretraining(config, tmp_path)
        torch.manual_seed(12345)
        result = run_pretraining(config, tmp_path, resume=True)
        assert differing(weights_of(tmp_path, STEPS), weights_of(finished[0], STEPS)) == []
        names = ("iteration", "loss/classification", "learning_rate", "test/classification.top1")
        ours, theirs = (
            [[line.get(name) for name in names] for line in metrics(run)] for run in (tmp_path, finished[0])
        )
        assert ours == theirs
        assert result["classification"] == finished[1]["classification"]

    def test_other_run_in_the_directory_is_refused(
        self, config: ClassificationConfig, finished: tuple[Path, dict[str, Any]]
    ) -> None:
        with pytest.raises(ValueError, match="add --resume"):
            run_pretraining(config, finished[0])
        assert run_pretraining(config, finished[0], resume=True) == finished[1]

    @pytest.mark.parametrize(
        ("views", "shown"), [("crop", f"crop {SIDE} of shorter_side {SIDE}"), ("dense", "scales 24, 32")]
    )
    def test_sizes_are_shown_before_training(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], views: str, shown: str
    ) -> None:
        run_pretraining(one_step(make_config(root, views=views, scales=(24, 32))), tmp_path)
        line = f"images: data.shorter_side {SIDE} in training, classification.{shown} in a test"
        assert line in capsys.readouterr().out

    def test_accuracy_in_words(self) -> None:
        result = {"classification": {"top1": 0.9125, "top5": 1.0}, "images": 10000, "views": "ten_crop"}
        assert format_accuracy(result) == "top1 error 8.75, top5 error 0.00 % of 10000 images, views: ten_crop"


class TestOptions:
    """What a config can ask for."""

    def test_averaged_weights_are_tested_and_saved(self, config: ClassificationConfig, tmp_path: Path) -> None:
        plain = with_solver(one_step(config), iterations=2)
        run_pretraining(plain, tmp_path / "plain")
        run_pretraining(with_solver(plain, ema_decay=0.5), tmp_path / "averaged")
        trained, averaged = weights_of(tmp_path / "plain", 2), weights_of(tmp_path / "averaged", 2)
        assert "network.fc.weight" in differing(trained, averaged)
        state = torch.load(tmp_path / "averaged" / "checkpoints" / "0000002.state.pt", weights_only=True)
        assert differing(state["ema"]["trained"], trained) == []

    @pytest.mark.parametrize(
        ("options", "losses"),
        [
            ({"network": "spp", "features": ("c1",)}, {"classification"}),
            ({"network": "branchynet"}, {"classification", "exit_c1"}),
            ({"network": "branchynet", "features": ("c1", "c0")}, {"classification", "exit_c0", "exit_c1"}),
            ({"network": "relay", "features": ("c0", "c1")}, {"classification", "auxiliary"}),
        ],
        ids=["spp", "one exit", "two exits", "relay"],
    )
    def test_networks(self, root: Path, tmp_path: Path, options: dict[str, Any], losses: set[str]) -> None:
        config = make_config(root, **options)
        run_pretraining(one_step(config), tmp_path / "run")
        (line,) = metrics(tmp_path / "run")
        assert {name.removeprefix("loss/") for name in line if name.startswith("loss/")} == losses | {"total"}
        result = evaluate_classifiers(
            config, [read_checkpoint(tmp_path / "run", ClassificationConfig)], tmp_path / "test"
        )
        assert result["images"] == 12

    def test_exits_are_curves_of_accuracy_against_cost(self, root: Path, tmp_path: Path) -> None:
        config = make_config(root, network="branchynet", features=("c0", "c1"), exit_thresholds=(0.1, 9.0))
        run_pretraining(one_step(config), tmp_path / "run")
        run = [read_checkpoint(tmp_path / "run", ClassificationConfig)]
        network = build_classifier(config, 3).network
        assert isinstance(network, BranchyNet)
        assert [rule.threshold for rule in network.rules.values()] == [0.1, 9.0]
        exits = evaluate_classifiers(config, run, tmp_path / "test")["exits"]
        assert [point["multiply_adds"] for point in (exits[0], exits[-1])] == [
            costs[place] for costs in [exit_costs(network, SIDE)] for place in (-1, 0)
        ]
        assert (exits[0]["shares"], exits[-1]["shares"]) == ((0, 0, 1), (1, 0, 0))
        assert (tmp_path / "test" / "exits.svg").is_file()

    def test_networks_of_libraries_keep_their_head(self, root: Path, tmp_path: Path) -> None:
        pytest.importorskip("timm")
        config = one_step(make_config(root), name="timm:mobilenetv3_small_050")
        run_pretraining(config, tmp_path / "run")
        run = read_checkpoint(tmp_path / "run", ClassificationConfig)
        assert (
            evaluate_classifiers(with_data(config, test=make_config(root).data.test), [run], tmp_path / "test")[
                "images"
            ]
            == 12
        )
        # another run starts from its layers, of other classes or these, and a detector's trunk too
        again = build_classifier(one_step(config, weights=str(tmp_path / "run")), 5).state_dict()
        name = "network.model.blocks.0.0.conv_dw.weight"
        assert torch.equal(again[name], run.weights[name])
        backbone = DetectorBackboneConfig(name=config.backbone.name, norm="bn", weights=str(tmp_path / "run"))
        detector = build_detector(DetectionConfig(backbone=backbone, box=BoxConfig(head="fc", head_channels=16)), 5)
        assert torch.equal(detector.state_dict()["backbone.trunk.blocks.0.0.conv_dw.weight"], run.weights[name])
        with pytest.raises(ValueError, match=r"no option freeze_at; of backbone it takes name, weights, norm"):
            build_classifier(one_step(config, freeze_at=2), 3)
        with pytest.raises(ValueError, match=r"classification\.features must be \[\], got \['c4'\]"):
            build_classifier(replace(config, classification=replace(config.classification, features=("c4",))), 3)

    def test_published_weights_are_tested_with_their_head(self, root: Path, tmp_path: Path) -> None:
        config = make_config(root)
        trained = build_classifier(config, 3).network
        plain = {
            name.split(".", 1)[1] if not name.startswith("fc.") else name: v for name, v in trained.state_dict().items()
        }
        torch.save(plain, tmp_path / "weights.pth")
        published = replace(config, backbone=replace(config.backbone, weights=str(tmp_path / "weights.pth")))
        result = evaluate_weights(published, tmp_path / "test")
        assert (result["images"], result["weights"]) == (12, {"published": str(tmp_path / "weights.pth")})
        model = ImageClassifier(trained)
        torch.save({"conv1.weight": plain["conv1.weight"]}, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"(?s)nothing was loaded.*missing"):
            load_published(model.network, published.backbone)
        with pytest.raises(ValueError, match=r"backbone\.weights is unset"):
            load_published(model.network, config.backbone)

    def test_steps_in_parts_of_bfloat16_with_looks_at_the_validation_set(
        self, config: ClassificationConfig, tmp_path: Path
    ) -> None:
        options = {"iterations": 2, "accumulate": 2, "precision": "bf16", "evaluate_every": 1, "optimizer": "adamw"}
        run_pretraining(with_solver(with_data(config, val=config.data.test), **options), tmp_path)
        assert ["classification.top1" in line for line in metrics(tmp_path)] == [False, True, False, True, False]

    def test_detection_set_whose_images_show_one_class_each(
        self,
        config: ClassificationConfig,
        make_voc: Callable[..., Path],
        write_card: Callable[..., str],
        tmp_path: Path,
    ) -> None:
        cat, dog = ("cat", (1, 1, 30, 30), False), ("dog", (1, 1, 30, 30), False)
        make_voc({"a": [cat, cat], "b": [dog, ("cat", (1, 1, 9, 9), True)], "c": []})
        spec = f"{write_card('voc')}:train"
        voc = with_solver(with_data(config, train=(spec,), test=(spec,), root=str(tmp_path)), iterations=1)
        assert run_pretraining(with_solver(voc, images_per_step=2), tmp_path / "run")["images"] == 2

    def test_backbone_without_a_tail_is_refused(self, root: Path) -> None:
        with pytest.raises(ValueError, match="c2 is one of the features"):
            build_classifier(make_config(root, features=("c2",)), 3)


class TestMistakes:
    """They end before anything is trained."""

    def refused(self, config: ClassificationConfig, folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run_pretraining(config, folder / "run")
        assert not (folder / "run").exists()

    @pytest.mark.parametrize("name", ["classification.top2", "bbox.AP", "classification", ""])
    def test_metric_that_does_not_exist(self, config: ClassificationConfig, tmp_path: Path, name: str) -> None:
        self.refused(with_solver(config, best_metric=name), tmp_path, f"solver.best_metric {name!r} names no ")

    def test_two_sets_of_other_classes(self, config: ClassificationConfig, tmp_path: Path) -> None:
        root = tmp_path / "root"
        draw(root / "train", 1, seed=0)
        draw(root / "test", 1, seed=0, classes=("red", "green"))
        card = write_card(root, classes=None)
        sets = with_data(config, train=(f"{card}:train",), test=(f"{card}:test",))
        self.refused(
            sets, tmp_path, r"data\.train has the classes \('blue', 'green', 'red'\), data\.test has \('green', 'red'\)"
        )

    def test_image_of_two_classes(
        self,
        config: ClassificationConfig,
        make_voc: Callable[..., Path],
        write_card: Callable[..., str],
        tmp_path: Path,
    ) -> None:
        make_voc({"a": [("cat", (1, 1, 30, 30), False), ("dog", (1, 1, 30, 30), False)]})
        spec = f"{write_card('voc')}:train"
        both = with_data(config, train=(spec,), test=(), root=str(tmp_path))
        self.refused(both, tmp_path, r"a\.jpg has objects of the classes cat, dog")


class TestNotFinite:
    """A step that can't be taken."""

    def test_its_command_takes_it_again(self, config: ClassificationConfig, tmp_path: Path) -> None:
        wild = with_solver(config, base_lr=1e30, iterations=3)
        with pytest.raises(NotFiniteError, match=r"iteration 1: .*0000001\.json has all it takes") as error:
            run_pretraining(wild, tmp_path / "run")
        folder = tmp_path / "run" / "not_finite" / "0000001"
        dump = json.loads(folder.with_suffix(".json").read_text())
        assert dump["replay"] == (f"resdet pretrain {folder / 'config.yaml'} --output-dir {folder} --resume")
        with pytest.raises(NotFiniteError) as again:
            run_pretraining(load_config(ClassificationConfig, folder / "config.yaml"), folder, resume=True)
        assert again.value.files == error.value.files
        assert str(again.value).partition(". Lower")[0] == str(error.value).partition(". Lower")[0]


class TestTogether:
    """Tests of one run or of several."""

    def seen(self, config: ClassificationConfig, runs: Sequence[Path], output: Path) -> tuple[Tensor, dict[str, Any]]:
        """The probabilities (N, K) that a test of ``runs`` finds, and its result."""
        found: list[Tensor] = []
        ranks = classification._ranks

        def look(probabilities: Tensor, labels: Tensor) -> list[int]:
            found.append(probabilities)
            return ranks(probabilities, labels)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(classification, "_ranks", look)
            result = evaluate_classifiers(config, [read_checkpoint(run, ClassificationConfig) for run in runs], output)
        return torch.cat(found), result

    def test_one_run_gives_the_figures_of_its_training(
        self, config: ClassificationConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        result = evaluate_classifiers(config, [read_checkpoint(finished[0], ClassificationConfig)], tmp_path)
        assert result["classification"] == finished[1]["classification"]
        assert json.loads((tmp_path / "result.json").read_text()) == result

    @pytest.mark.parametrize(
        "options",
        [
            {"views": "crop"},
            {"views": "ten_crop", "crop": 28},
            {"views": "dense", "scales": (32, 48)},
        ],
        ids=lambda options: options["views"],
    )
    def test_probabilities_are_the_average_over_runs_and_views(
        self, root: Path, finished: tuple[Path, dict[str, Any]], other: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        config = make_config(root, **options)
        alone = [self.seen(config, [run], tmp_path / "alone")[0] for run in (finished[0], other)]
        both, result = self.seen(config, [finished[0], other], tmp_path / "both")
        assert both.shape == (12, 3)
        torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
        assert not torch.allclose(alone[0], alone[1])
        right = both.argmax(dim=1) == torch.arange(3).repeat_interleave(4)
        assert result["classification"]["top1"] == pytest.approx(right.float().mean().item())
        assert (result["images"], result["views"]) == (12, options["views"])

    def test_views_of_an_image_are_averaged_after_the_softmax(
        self, root: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        config = make_config(root, views="dense", scales=(32, 48))
        both, _ = self.seen(config, [finished[0]], tmp_path)
        single = [
            self.seen(make_config(root, views="dense", scales=(scale,)), [finished[0]], tmp_path)[0]
            for scale in (32, 48)
        ]
        torch.testing.assert_close(both, (single[0] + single[1]) / 2)

    def test_places_by_hand(self) -> None:
        probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]])
        assert classification._ranks(probabilities, torch.tensor([0, 1, 0, 1])) == [0, 1, 0, 1]

    def test_top_five_of_six_classes(self, config: ClassificationConfig, tmp_path: Path) -> None:
        names = [f"class{number}" for number in range(6)]
        for name in names:
            (tmp_path / "test" / name).mkdir(parents=True)
            Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "test" / name / "a.png")
        card = write_card(tmp_path, classes=names)
        six = with_data(config, test=(f"{card}:test",))
        model = build_classifier(six, 6)
        assert isinstance(model.network, Classifier)
        torch.nn.init.zeros_(model.network.fc.weight)
        with torch.no_grad():
            model.network.fc.bias.copy_(torch.tensor([3.0, 5.0, 1.0, 0.0, 2.0, 4.0]))
        checkpoint = replace(
            read_checkpoint(run_once(six, tmp_path), ClassificationConfig),
            weights=model.state_dict(),
            class_names=tuple(names),
            config=six,
        )
        result = evaluate_classifiers(six, [checkpoint], tmp_path / "result")
        assert result["classification"] == {"top1": pytest.approx(1 / 6), "top5": pytest.approx(5 / 6)}

    def test_run_of_other_classes_is_refused(
        self, config: ClassificationConfig, finished: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        draw(tmp_path / "test", 1, seed=0, classes=("red", "green"))
        card = write_card(tmp_path, classes=["red", "green"])
        two = with_data(config, test=(f"{card}:test",))
        with pytest.raises(ValueError, match=r"was trained on 3 classes .*, the data set has 2"):
            evaluate_classifiers(two, [read_checkpoint(finished[0], ClassificationConfig)], tmp_path / "result")
        with pytest.raises(ValueError, match=r"data\.test is empty"):
            evaluate_classifiers(
                with_data(config, test=()), [read_checkpoint(finished[0], ClassificationConfig)], tmp_path / "result"
            )
        assert not (tmp_path / "result").exists()


def run_once(config: ClassificationConfig, folder: Path) -> Path:
    """The directory of a run of one step on pictures of its own."""
    draw(folder / "once" / "train", 2, seed=0)
    card = write_card(folder / "once")
    run_pretraining(one_step(with_data(config, train=(f"{card}:train",))), folder / "once" / "run")
    return folder / "once" / "run"


class TestStartOfADetector:
    """Its backbone has the weights of a run."""

    def detector(self, **backbone: Any) -> dict[str, Tensor]:
        """The state of a new detector."""
        torch.manual_seed(99)
        pyramid = bool(backbone.get("fpn"))
        options: dict[str, Any] = {"name": "resnet18", "norm": "bn"} | backbone
        sizes = (32.0, 64.0, 128.0, 256.0, 512.0)
        config = DetectionConfig(
            backbone=DetectorBackboneConfig(**options),
            anchors=AnchorConfig(sizes=sizes) if pyramid else AnchorConfig(),
            box=BoxConfig(head="fc", head_channels=16) if pyramid or backbone.get("dilate_c5") else BoxConfig(),
        )
        return build_detector(config, 5).state_dict()

    def trained(self, run: Path) -> dict[str, Tensor]:
        """The layers of the run's backbone, its tail among them, without the step counters."""
        return {
            name.split(".", 2)[2]: tensor
            for name, tensor in weights_of(run, 1).items()
            if not name.startswith("network.fc.") and not name.endswith("num_batches_tracked")
        }

    @pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
    @pytest.mark.parametrize("file", [False, True], ids=["directory", "file"])
    def test_with_its_tail(self, started: Path, norm: str, file: bool) -> None:
        weights = started / "checkpoints" / "0000001.safetensors" if file else started
        detector, trained = self.detector(weights=str(weights), norm=norm), self.trained(started)
        assert len(trained) == 100  # 20 convolutions and as many normalisation layers of four tensors each
        for name, tensor in trained.items():
            owner = "box_stage.head." if name.startswith("layer4.") else "backbone."
            assert torch.equal(detector[owner + name], tensor), name

    @pytest.mark.parametrize("options", [{"fpn": True}, {"dilate_c5": True}], ids=["pyramid", "dilated"])
    def test_without_a_tail(self, started: Path, options: dict[str, Any]) -> None:
        detector = self.detector(weights=str(started), **options)
        for name, tensor in self.trained(started).items():
            owner = "backbone.body." if "fpn" in options else "backbone."
            assert torch.equal(detector[owner + name], tensor), name

    def test_of_spatial_pyramid_pooling(self, root: Path, tmp_path: Path) -> None:
        config = one_step(make_config(root, network="spp", features=("c5",)), name="resnet18")
        run_pretraining(config, tmp_path)
        detector = self.detector(weights=str(tmp_path), fpn=True)
        for name, tensor in self.trained(tmp_path).items():
            assert torch.equal(detector[f"backbone.{name}"], tensor), name

    def test_of_a_network_with_an_exit(self, root: Path, tmp_path: Path) -> None:
        config = one_step(make_config(root, network="branchynet"), name="resnet18")
        run_pretraining(config, tmp_path)
        assert torch.equal(
            self.detector(weights=str(tmp_path))["box_stage.head.layer4.0.conv1.weight"],
            weights_of(tmp_path, 1)["network.tail.layer4.0.conv1.weight"],
        )

    def test_averaged_weights_are_taken(self, config: ClassificationConfig, tmp_path: Path) -> None:
        once = with_solver(one_step(config, name="resnet18"), ema_decay=0.9)
        run_pretraining(once, tmp_path)
        state = torch.load(tmp_path / "checkpoints" / "0000001.state.pt", weights_only=True)
        detector = self.detector(weights=str(tmp_path))
        name = "layer4.0.conv1.weight"
        assert torch.equal(detector[f"box_stage.head.{name}"], weights_of(tmp_path, 1)[f"network.tail.{name}"])
        assert not torch.equal(detector[f"box_stage.head.{name}"], state["ema"]["trained"][f"network.tail.{name}"])

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"name": "resnet34"}, r"backbone.name is 'resnet34' here, and was 'resnet18'"),
            ({"name": "plain18"}, r"backbone.name is 'plain18' here, and was 'resnet18'"),
            ({"shortcut": "A"}, r"backbone.shortcut is 'A' here, and was None"),
            ({"norm": "gn"}, r"(?s)do not fit ResNet.*unused: .*bn1\.running_mean"),
        ],
        ids=["resnet34", "plain18", "shortcut", "gn"],
    )
    def test_of_another_architecture_is_refused(self, started: Path, options: dict[str, Any], names: str) -> None:
        with pytest.raises(ValueError, match=f"(?s){names.removeprefix('(?s)')}"):
            self.detector(weights=str(started), **options)

    @pytest.mark.parametrize("file", [False, True], ids=["directory", "file"])
    def test_of_other_options_that_no_name_shows_is_refused(
        self, config: ClassificationConfig, tmp_path: Path, file: bool
    ) -> None:
        run_pretraining(one_step(config, name="resnet18", weights_source="msra"), tmp_path)
        weights = tmp_path / "checkpoints" / "0000001.safetensors"
        message = r"backbone\.weights_source is 'torchvision' here, and was 'msra'"
        with pytest.raises(ValueError, match=message):
            self.detector(weights=str(weights if file else tmp_path))
        detector = self.detector(weights=str(tmp_path), weights_source="msra")
        assert torch.equal(detector["backbone.conv1.weight"], weights_of(tmp_path, 1)["network.backbone.conv1.weight"])

    def test_directory_without_a_checkpoint_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no checkpoint at "):
            self.detector(weights=str(tmp_path))
        with pytest.raises(ValueError, match=r"no weights file .*absent"):
            self.detector(weights=str(tmp_path / "absent"))

    def test_classifier_starts_from_another_of_other_classes(
        self, config: ClassificationConfig, started: Path, tmp_path: Path
    ) -> None:
        draw(tmp_path / "train", 2, seed=0, classes=("red", "green"))
        card = write_card(tmp_path, classes=["red", "green"])
        slow = with_solver(one_step(config, name="resnet18", weights=str(started)), base_lr=1e-12)
        run_pretraining(with_data(slow, train=(f"{card}:train",)), tmp_path / "run")
        name = "network.tail.layer4.1.conv2.weight"
        torch.testing.assert_close(weights_of(tmp_path / "run", 1)[name], weights_of(started, 1)[name])

    def test_a_run_that_goes_on_needs_no_start(
        self, config: ClassificationConfig, started: Path, tmp_path: Path
    ) -> None:
        start = Path(shutil.copytree(started, tmp_path / "start"))
        begun = one_step(config, name="resnet18", weights=str(start))
        run_pretraining(begun, tmp_path / "run")
        shutil.rmtree(start)
        run_pretraining(with_solver(begun, iterations=2), tmp_path / "run", resume=True)
        assert read_checkpoint(tmp_path / "run", ClassificationConfig).iteration == 2
        assert math.isfinite(metrics(tmp_path / "run")[-1]["loss/total"])


class TestRegularisersAndAttention:
    """Each switch of docs/classification.md trains from a config."""

    @pytest.mark.parametrize(
        ("backbone", "options"),
        [
            ({}, {"cutmix": 1.0}),
            ({}, {"manifold_mixup": 2.0, "features": ("c0", "c1")}),
            ({"dropblock": 0.1}, {}),
            pytest.param({"name": "cifar_shake_shake26_2x32d"}, {}, marks=pytest.mark.slow),
            pytest.param({"name": "cifar_attention56", "attention": "naive"}, {}, marks=pytest.mark.slow),
        ],
    )
    def test_takes_a_step(self, root: Path, tmp_path: Path, backbone: dict[str, Any], options: dict[str, Any]) -> None:
        run_pretraining(one_step(make_config(root, **options), **backbone), tmp_path / "run")
        assert math.isfinite(metrics(tmp_path / "run")[0]["loss/classification"])

    @pytest.mark.slow
    def test_critic_goes_on_with_the_turn_it_was_at(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = one_step(make_config(root, network="attention_critic"), name="cifar_attention56")
        config = with_solver(small, iterations=4, checkpoint_every=1)
        run_pretraining(config, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(RunLog, "metrics", killed_at(2))
            with pytest.raises(Killed):
                run_pretraining(config, tmp_path / "killed")
        run_pretraining(config, tmp_path / "killed", resume=True)
        assert not differing(weights_of(tmp_path / "whole", 4), weights_of(tmp_path / "killed", 4))
        turns = [(line["loss/critic"] != 0, line["loss/attention"] != 0) for line in metrics(tmp_path / "whole")]
        assert turns[:4] == [(True, False), (False, True), (True, False), (False, True)]

    def test_backbone_without_attention_has_nothing_for_a_critic(self, root: Path) -> None:
        config = make_config(root, network="attention_critic")
        with pytest.raises(ValueError, match=r"cifar_resnet20 can't be a classification\.network attention_critic"):
            build_classifier(config, 3)
