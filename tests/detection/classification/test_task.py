"""Mirrors detection/classification/task.py: whole runs on folders of pictures that differ in colour."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
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
from detection.classification.task import build_classifier, evaluate_classifiers, evaluate_weights, run_pretraining
from detection.config.detection import AnchorConfig, BoxConfig, DetectionConfig, DetectorBackboneConfig
from detection.config.load import load_config
from detection.config.sections import BackboneConfig, DataConfig
from detection.engine.checkpoint import Checkpoint, read_checkpoint
from detection.engine.log import RunLog
from detection.engine.loop import NotFiniteError

SIDE = 32
COLOURS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (60, 60, 220)}
STEPS = 20
Finished = tuple[Path, dict[str, Any]]  # a run's directory and its result


def draw(folder: Path, count: int, *, seed: int = 0, classes: Sequence[str] = tuple(COLOURS)) -> None:
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(COLOURS[name] + random.normal(0, 60, (SIDE, SIDE, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def folder_card(root: Path, classes: Sequence[str] | None = tuple(COLOURS)) -> str:
    splits = {split: {"folder": split} for split in ("train", "test")}
    names = {} if classes is None else {"classes": list(classes)}
    path = root / "colours.yaml"
    path.write_text(yaml.safe_dump({"format": "image_folder", "root": str(root), "splits": splits, **names}))
    return str(path)


@pytest.fixture(scope="module")
def make_config(tmp_path_factory) -> Callable[..., ClassificationConfig]:
    root = tmp_path_factory.mktemp("colours")
    draw(root / "train", 8)
    draw(root / "test", 4, seed=1)
    card = folder_card(root)
    crop: Any = {"RandomCrop": {"height": SIDE, "width": SIDE}}
    moves = ({"Pad": {"padding": 4}}, crop, {"HorizontalFlip": {"p": 0.5}})
    sides: Any = {"shorter_side": SIDE, "longer_side": SIDE}
    schedule: Any = {"iterations": STEPS, "images_per_step": 12, "base_lr": 0.02, "steps": (14,)}

    def make(**options: Any) -> ClassificationConfig:
        return ClassificationConfig(
            backbone=BackboneConfig(name="cifar_resnet20", norm="bn"),
            data=DataConfig(train=(f"{card}:train",), test=(f"{card}:test",), augment=moves, workers=0, **sides),
            solver=ClassifierSolverConfig(**schedule, checkpoint_every=8, log_every=1),
            classification=ClassifierConfig(**{"crop": SIDE, "shorter_side": SIDE, **options}),
            device="cpu",
        )

    return make


@pytest.fixture(scope="module")
def config(make_config) -> ClassificationConfig:
    """With all that draws numbers."""
    return make_config(mixup=0.2, label_smoothing=0.1)


def having(config: ClassificationConfig, **sections: dict[str, Any]) -> ClassificationConfig:
    return replace(config, **{name: replace(getattr(config, name), **own) for name, own in sections.items()})


def one_step(config: ClassificationConfig, **backbone: Any) -> ClassificationConfig:
    return having(config, data={"test": ()}, solver={"iterations": 1, "images_per_step": 4}, backbone=backbone)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Finished:
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, run_pretraining(config, output)


@pytest.fixture(scope="module")
def started(config, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "resnet18"
    run_pretraining(one_step(config, name="resnet18"), output)
    return output


def load(run: Path) -> Checkpoint[ClassificationConfig]:
    return read_checkpoint(run, ClassificationConfig)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> set[str]:
    return {name.removeprefix("loss/") for name in metrics(run)[0] if name.startswith("loss/")}


def weights_of(run: Path, iteration: int) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"{iteration:07d}.safetensors")


def assert_equal(first, second) -> None:
    assert set(first) == set(second)
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved on the way out."""


def killed(config: ClassificationConfig, output: Path, *, at: int) -> None:
    record = RunLog.metrics

    def interrupt(log: RunLog, iteration: int, values: Any) -> None:
        record(log, iteration, values)
        if iteration == at:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "metrics", interrupt)
        with pytest.raises(Killed):
            run_pretraining(config, output)


def test_a_run_learns_and_its_figures_are_the_same_everywhere(config, finished, tmp_path: Path) -> None:
    output, result = finished
    assert result["classification"]["top1"] >= 0.9
    assert (result["classification"]["top5"], result["images"], result["views"]) == (1, 12, "crop")  # of three classes
    assert json.loads((output / "result.json").read_text()) == result
    _, shares = read_shares(output)
    own = {f"classification.{name}": value for name, value in result["classification"].items()}
    assert {name: sum(values) / len(values) for name, values in shares.items()} == own
    *steps, evaluation = metrics(output)
    assert [line["iteration"] for line in steps] == list(range(1, STEPS + 1))
    assert all(line["loss/total"] == line["loss/classification"] for line in steps)
    assert steps[-1]["loss/total"] < steps[0]["loss/total"]
    assert {f"test/{name}": value for name, value in own.items()}.items() <= evaluation.items()
    assert (load(output).class_names, load(output).iteration) == (tuple(COLOURS), STEPS)
    again = evaluate_classifiers(config, [load(output)], tmp_path)
    assert again["classification"] == result["classification"]
    assert json.loads((tmp_path / "result.json").read_text()) == again


def test_going_on_equals_never_having_stopped(config, finished, tmp_path: Path) -> None:
    killed(config, tmp_path, at=10)  # the checkpoint is of iteration 8
    torch.manual_seed(12345)
    result = run_pretraining(config, tmp_path, resume=True)
    assert_equal(weights_of(tmp_path, STEPS), weights_of(finished[0], STEPS))
    names = ("iteration", "loss/classification", "learning_rate", "test/classification.top1")
    ours, theirs = ([[line.get(name) for name in names] for line in metrics(run)] for run in (tmp_path, finished[0]))
    assert ours == theirs
    assert result["classification"] == finished[1]["classification"]


def test_a_step_that_is_not_finite_is_taken_again_by_its_command(config, tmp_path: Path) -> None:
    wild = having(config, solver={"base_lr": 1e30, "iterations": 3})
    with pytest.raises(NotFiniteError, match=r"iteration 1: .*0000001\.json has all it takes") as error:
        run_pretraining(wild, tmp_path / "run")
    folder = tmp_path / "run" / "not_finite" / "0000001"
    dump = json.loads(folder.with_suffix(".json").read_text())
    assert dump["replay"] == f"resdet pretrain {folder / 'config.yaml'} --output-dir {folder} --resume"
    with pytest.raises(NotFiniteError) as again:
        run_pretraining(load_config(ClassificationConfig, folder / "config.yaml"), folder, resume=True)
    assert again.value.files == error.value.files
    assert str(again.value).partition(". Lower")[0] == str(error.value).partition(". Lower")[0]


@pytest.mark.parametrize(
    ("backbone", "options", "names"),
    [
        ({}, {"network": "spp", "features": ("c1",)}, set()),
        ({}, {"network": "relay", "features": ("c0", "c1"), "views": "dense", "scales": (24, 32)}, {"auxiliary"}),
        ({}, {"cutmix": 1.0}, set()),
        ({}, {"manifold_mixup": 2.0, "features": ("c0", "c1")}, set()),
        ({"dropblock": 0.1}, {}, set()),
        pytest.param({"name": "cifar_shake_shake26_2x32d"}, {}, set(), marks=pytest.mark.slow),
        pytest.param({"name": "cifar_attention56", "attention": "naive"}, {}, set(), marks=pytest.mark.slow),
    ],
)
def test_networks_and_regularisers_take_a_step(make_config, tmp_path, capsys, backbone, options, names) -> None:
    config = having(make_config(**options), backbone=backbone)
    run_pretraining(one_step(config), tmp_path / "run")
    assert losses(tmp_path / "run") == {"classification", "total", *names}
    assert math.isfinite(metrics(tmp_path / "run")[0]["loss/total"])
    shown = "scales 24, 32" if "scales" in options else f"crop {SIDE} of shorter_side {SIDE}"
    assert f"images: data.shorter_side {SIDE} in training, classification.{shown}" in capsys.readouterr().out
    assert evaluate_classifiers(config, [load(tmp_path / "run")], tmp_path / "test")["images"] == 12


def test_exits_are_curves_of_accuracy_against_cost(make_config, tmp_path: Path) -> None:
    config = make_config(network="branchynet", features=("c1", "c0"), exit_thresholds=(0.1, 9.0))
    run_pretraining(one_step(config), tmp_path / "run")
    assert losses(tmp_path / "run") == {"classification", "exit_c0", "exit_c1", "total"}
    network = build_classifier(config, 3).network
    assert isinstance(network, BranchyNet)
    assert [rule.threshold for rule in network.rules.values()] == [0.1, 9.0]
    exits = evaluate_classifiers(config, [load(tmp_path / "run")], tmp_path / "test")["exits"]
    cheapest, *_, dearest = exit_costs(network, SIDE)
    assert [point["multiply_adds"] for point in (exits[0], exits[-1])] == [dearest, cheapest]
    assert (exits[0]["shares"], exits[-1]["shares"]) == ((0, 0, 1), (1, 0, 0))
    assert (tmp_path / "test" / "exits.svg").is_file()


def test_networks_of_libraries_keep_their_head(make_config, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    config, run = one_step(make_config(), name="timm:mobilenetv3_small_050"), tmp_path / "run"
    run_pretraining(config, run)
    tested = having(config, data={"test": make_config().data.test})
    assert evaluate_classifiers(tested, [load(run)], tmp_path / "test")["images"] == 12
    # another run starts from its layers, of other classes or these, and a detector's trunk too
    again = build_classifier(one_step(config, weights=str(run)), 5).state_dict()
    layer, own = "blocks.0.0.conv_dw.weight", load(run).weights
    assert torch.equal(again[f"network.model.{layer}"], own[f"network.model.{layer}"])
    backbone = DetectorBackboneConfig(name=config.backbone.name, norm="bn", weights=str(run))
    detector = build_detector(DetectionConfig(backbone=backbone, box=BoxConfig(head="fc", head_channels=16)), 5)
    assert torch.equal(detector.state_dict()[f"backbone.trunk.{layer}"], own[f"network.model.{layer}"])
    with pytest.raises(ValueError, match=r"no option freeze_at; of backbone it takes name, weights, norm"):
        build_classifier(one_step(config, freeze_at=2), 3)
    with pytest.raises(ValueError, match=r"classification\.features must be \[\], got \['c4'\]"):
        build_classifier(having(config, classification={"features": ("c4",)}), 3)


def test_published_weights_are_tested_with_their_head(make_config, tmp_path: Path) -> None:
    config, path = make_config(), tmp_path / "weights.pth"
    network = build_classifier(config, 3).network
    plain = {n if n.startswith("fc.") else n.split(".", 1)[1]: value for n, value in network.state_dict().items()}
    torch.save(plain, path)
    published = having(config, backbone={"weights": str(path)})
    result = evaluate_weights(published, tmp_path / "test")
    assert (result["images"], result["weights"]) == (12, {"published": str(path)})
    torch.save({"conv1.weight": plain["conv1.weight"]}, path)
    with pytest.raises(ValueError, match=r"(?s)nothing was loaded.*missing"):
        load_published(network, published.backbone)
    with pytest.raises(ValueError, match=r"backbone\.weights is unset"):
        load_published(network, config.backbone)


def test_steps_in_parts_of_bfloat16_with_looks_at_the_validation_set(config, tmp_path: Path) -> None:
    options = {"iterations": 2, "accumulate": 2, "precision": "bf16", "evaluate_every": 1, "optimizer": "adamw"}
    run_pretraining(having(config, data={"val": config.data.test}, solver=options), tmp_path)
    assert ["classification.top1" in line for line in metrics(tmp_path)] == [False, True, False, True, False]


def test_a_detection_set_must_show_one_class_an_image(config, make_voc, write_card, tmp_path: Path) -> None:
    cat, dog = ("cat", (1, 1, 30, 30), False), ("dog", (1, 1, 30, 30), False)
    sets = {"train": (spec := (f"{write_card('voc')}:train",)), "test": spec, "root": str(tmp_path)}
    voc = having(config, data=sets, solver={"iterations": 1, "images_per_step": 2})
    make_voc({"a": [cat, cat], "b": [dog, ("cat", (1, 1, 9, 9), True)], "c": []})
    assert run_pretraining(voc, tmp_path / "run")["images"] == 2
    make_voc({"a": [cat, dog]})
    refused(voc, tmp_path / "both", r"a\.jpg has objects of the classes cat, dog")


@pytest.mark.slow
def test_a_critic_goes_on_with_the_turn_it_was_at(make_config, tmp_path: Path) -> None:
    small = one_step(make_config(network="attention_critic"), name="cifar_attention56")
    config = having(small, solver={"iterations": 4, "checkpoint_every": 1})
    run_pretraining(config, tmp_path / "whole")
    killed(config, tmp_path / "killed", at=2)
    run_pretraining(config, tmp_path / "killed", resume=True)
    assert_equal(weights_of(tmp_path / "whole", 4), weights_of(tmp_path / "killed", 4))
    turns = [(line["loss/critic"] != 0, line["loss/attention"] != 0) for line in metrics(tmp_path / "whole")]
    assert turns[:4] == [(True, False), (False, True), (True, False), (False, True)]


def refused(config: ClassificationConfig, run: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_pretraining(config, run)
    assert not run.exists()


def test_figures_that_do_not_exist_and_other_classes_are_refused(config, finished, tmp_path: Path) -> None:
    for name in ("classification.top2", "bbox.AP", "classification", ""):
        wrong = having(config, solver={"best_metric": name})
        refused(wrong, tmp_path / "run", f"solver.best_metric {name!r} names no ")
    draw(tmp_path / "train", 1)
    draw(tmp_path / "test", 1, classes=("red", "green"))
    card = folder_card(tmp_path, None)
    sets = having(config, data={"train": (f"{card}:train",), "test": (f"{card}:test",)})
    refused(sets, tmp_path / "run", r"train has the classes \('blue', 'green', 'red'\), data\.test has \('green', 'r")
    folder_card(tmp_path, ["red", "green"])
    with pytest.raises(ValueError, match=r"was trained on 3 classes .*, the data set has 2"):
        evaluate_classifiers(sets, [load(finished[0])], tmp_path / "result")
    with pytest.raises(ValueError, match=r"data\.test is empty"):
        evaluate_classifiers(having(config, data={"test": ()}), [load(finished[0])], tmp_path / "result")
    assert not (tmp_path / "result").exists()
    for options, message in (
        ({"features": ("c2",)}, "c2 is one of the features"),  # so nothing is left as a tail
        ({"network": "attention_critic"}, r"cifar_resnet20 can't be a classification\.network attention_critic"),
    ):
        with pytest.raises(ValueError, match=message):
            build_classifier(having(config, classification=options), 3)


def seen(config: ClassificationConfig, runs: Sequence[Path], output: Path) -> tuple[Tensor, dict[str, Any]]:
    """The probabilities (N, K) that a test of ``runs`` finds, and its result."""
    found, ranks = list[Tensor](), classification._ranks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "_ranks", lambda p, labels: found.append(p) or ranks(p, labels))
        result = evaluate_classifiers(config, [load(run) for run in runs], output)
    return torch.cat(found), result


VIEWS: dict[str, dict[str, Any]] = {"crop": {}, "ten_crop": {"crop": 28}, "dense": {"scales": (32, 48)}}


@pytest.mark.parametrize("views", VIEWS)
def test_probabilities_are_the_average_over_runs_and_views(make_config, finished, tmp_path: Path, views) -> None:
    other = tmp_path / "other"
    run_pretraining(replace(one_step(make_config()), seed=5), other)
    config, runs = make_config(views=views, **VIEWS[views]), (finished[0], other)
    alone = [seen(config, [run], tmp_path / "alone")[0] for run in runs]
    both, result = seen(config, runs, tmp_path / "both")
    assert both.shape == (12, 3)
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    assert not torch.allclose(alone[0], alone[1])
    right = both.argmax(dim=1) == torch.arange(3).repeat_interleave(4)
    assert result["classification"]["top1"] == pytest.approx(right.float().mean().item())
    assert (result["images"], result["views"]) == (12, views)
    if scales := VIEWS[views].get("scales"):  # views of an image are averaged after the softmax
        single = [seen(make_config(views="dense", scales=(s,)), [other], tmp_path / "single")[0] for s in scales]
        torch.testing.assert_close(alone[1], (single[0] + single[1]) / 2)


def test_places_and_the_top_five_of_six_classes(config, finished, tmp_path: Path) -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]])
    assert classification._ranks(probabilities, torch.tensor([0, 1, 0, 1])) == [0, 1, 0, 1]
    names = [f"class{number}" for number in range(6)]
    for name in names:
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "test" / name / "a.png")
    six = having(config, data={"test": (f"{folder_card(tmp_path, names)}:test",)})
    model = build_classifier(six, 6)
    assert isinstance(model.network, Classifier)
    torch.nn.init.zeros_(model.network.fc.weight)
    model.network.fc.bias.data = torch.tensor([3.0, 5.0, 1.0, 0.0, 2.0, 4.0])
    run = replace(load(finished[0]), weights=model.state_dict(), class_names=tuple(names), config=six)
    result = evaluate_classifiers(six, [run], tmp_path / "result")
    assert result["classification"] == {"top1": pytest.approx(1 / 6), "top5": pytest.approx(5 / 6)}


def detector(weights: Path, **backbone: Any) -> dict[str, Tensor]:
    torch.manual_seed(99)
    pyramid, options = bool(backbone.get("fpn")), dict[str, Any](name="resnet18", norm="bn") | backbone
    config = DetectionConfig(
        backbone=DetectorBackboneConfig(weights=str(weights), **options),
        anchors=AnchorConfig(sizes=(32.0, 64.0, 128.0, 256.0, 512.0)) if pyramid else AnchorConfig(),
        box=BoxConfig(head="fc", head_channels=16) if pyramid or backbone.get("dilate_c5") else BoxConfig(),
    )
    return build_detector(config, 5).state_dict()


def layers(run: Path) -> dict[str, Tensor]:
    """The layers of the run's backbone, its tail among them, without the step counters."""
    named = {n: w for n, w in weights_of(run, 1).items() if not n.endswith("num_batches_tracked")}
    return {name.split(".", 2)[2]: tensor for name, tensor in named.items() if not name.startswith("network.fc.")}


def test_a_detector_starts_from_a_run(started) -> None:
    trained = layers(started)
    assert len(trained) == 100  # 20 convolutions and as many normalisation layers of four tensors each
    for options, body, tail in (
        ({}, "backbone.", "box_stage.head."),
        ({"norm": "frozen_bn"}, "backbone.", "box_stage.head."),
        ({"fpn": True}, "backbone.body.", "backbone.body."),
        ({"dilate_c5": True}, "backbone.", "backbone."),
    ):
        state = detector(started / "checkpoints" / "0000001.safetensors" if "norm" in options else started, **options)
        names = {name: (tail if name.startswith("layer4.") else body) + name for name in trained}
        assert [name for name, own in names.items() if not torch.equal(state[own], trained[name])] == []


def test_a_detector_starts_from_spatial_pyramid_pooling_with_its_source_of_weights(make_config, tmp_path: Path) -> None:
    config = one_step(make_config(network="spp", features=("c5",)), name="resnet18", weights_source="msra")
    run_pretraining(config, tmp_path)
    for weights in (tmp_path, tmp_path / "checkpoints" / "0000001.safetensors"):
        with pytest.raises(ValueError, match=r"backbone\.weights_source is 'torchvision' here, and was 'msra'"):
            detector(weights, fpn=True)  # no name of a tensor shows it
    state = detector(tmp_path, fpn=True, weights_source="msra")
    assert all(torch.equal(state[f"backbone.{name}"], tensor) for name, tensor in layers(tmp_path).items())


def test_a_detector_starts_from_the_average_of_a_network_with_an_exit(make_config, tmp_path: Path) -> None:
    config = having(one_step(make_config(network="branchynet"), name="resnet18"), solver={"ema_decay": 0.9})
    run_pretraining(config, tmp_path)
    assert losses(tmp_path) == {"classification", "exit_c4", "total"}
    name = "layer4.0.conv1.weight"
    found = detector(tmp_path)[f"box_stage.head.{name}"]
    assert torch.equal(found, weights_of(tmp_path, 1)[f"network.tail.{name}"])
    state = torch.load(tmp_path / "checkpoints" / "0000001.state.pt", weights_only=True)
    assert not torch.equal(found, state["ema"]["trained"][f"network.tail.{name}"])


def test_a_start_of_another_architecture_or_from_nothing_is_refused(started, tmp_path: Path) -> None:
    for weights, options, message in (
        (started, {"name": "resnet34"}, r"backbone.name is 'resnet34' here, and was 'resnet18'"),
        (started, {"shortcut": "A"}, r"backbone.shortcut is 'A' here, and was None"),
        (started, {"norm": "gn"}, r"(?s)do not fit ResNet.*unused: .*bn1\.running_mean"),
        (tmp_path, {}, "no checkpoint at "),
        (tmp_path / "absent", {}, r"no weights file .*absent"),
    ):
        with pytest.raises(ValueError, match=message):
            detector(weights, **options)


def test_a_classifier_starts_from_one_of_other_classes_and_goes_on_without_it(config, started, tmp_path) -> None:
    draw(tmp_path / "train", 2, classes=("red", "green"))
    sets = {"train": (f"{folder_card(tmp_path, ['red', 'green'])}:train",)}
    start = shutil.copytree(started, tmp_path / "start")
    slow = having(one_step(config, name="resnet18", weights=str(start)), data=sets, solver={"base_lr": 1e-12})
    run_pretraining(slow, tmp_path / "run")
    name = "network.tail.layer4.1.conv2.weight"
    torch.testing.assert_close(weights_of(tmp_path / "run", 1)[name], weights_of(started, 1)[name])
    shutil.rmtree(start)
    run_pretraining(having(slow, solver={"iterations": 2}), tmp_path / "run", resume=True)
    assert load(tmp_path / "run").iteration == 2
    assert math.isfinite(metrics(tmp_path / "run")[-1]["loss/total"])
