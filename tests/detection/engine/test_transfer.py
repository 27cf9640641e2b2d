"""Mirrors engine/transfer.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detection.config.detection import DetectionConfig, DetectorBackboneConfig
from detection.engine.checkpoint import Checkpoint
from detection.engine.transfer import differing_meaning, load_initial_weights
from detection.model.class_rows import ClassRows
from detection.model.mask_stage import MaskHead

CONFIG = DetectionConfig(backbone=DetectorBackboneConfig(name="vgg11", freeze_at=2))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


class Predictor(nn.Module):
    """The two last layers, with weights that say where they come from: 1000 side + 10 class + coordinate."""

    def __init__(self, classes: int, features: int, side: int) -> None:
        super().__init__()
        self.class_rows = {"classes": ClassRows(1, background=True), "deltas": ClassRows(4)}
        self.classes, self.deltas = nn.Linear(features, classes + 1), nn.Linear(features, 4 * classes)
        rows = 1000.0 * side + 10.0 * torch.arange(classes + 1)
        with torch.no_grad():
            for parameter in (self.classes.weight, self.classes.bias):
                parameter.copy_(rows.reshape(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter))
            rows = (rows[:-1, None] + torch.arange(4)).flatten()
            for parameter in (self.deltas.weight, self.deltas.bias):
                parameter.copy_(rows.reshape(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter))


class TinyDetector(nn.Module):
    """The names of a detector, in few numbers."""

    def __init__(self, classes: int, *, features: int = 2, side: int = 1, width: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.box_stage = nn.Module()
        self.box_stage.predictor = Predictor(classes, features, side)
        nn.init.constant_(self.backbone.get_parameter("0.weight"), float(side))
        nn.init.constant_(self.backbone.get_buffer("1.running_mean"), float(side))


class TinyCascade(nn.Module):
    """As ``TinyDetector``, of two stages with one box for all classes."""

    def __init__(self, classes: int, *, side: int) -> None:
        super().__init__()
        predictors = [Predictor(classes, 2, side) for _ in range(2)]
        for predictor in predictors:
            predictor.deltas = Predictor(1, 2, side).deltas
            predictor.class_rows = {"classes": ClassRows(1, background=True)}
        self.box_stage = nn.Module()
        self.box_stage.stages = nn.ModuleList(nn.ModuleDict({"predictor": predictor}) for predictor in predictors)


THERE = ("person", "airplane", "cat")


def tiny_checkpoint(names: tuple[str, ...] = THERE, **options: Any) -> Checkpoint:
    model = TinyDetector(len(names), side=2, **options)
    return Checkpoint(Path("coco.safetensors"), dict(model.state_dict()), CONFIG, names, 0)


def sources(model: nn.Module) -> tuple[list[float], list[float]]:
    """Where the rows of the class scores and of the deltas come from, weights and biases alike."""
    found = []
    for name in ("classes", "deltas"):
        weight, bias = (model.state_dict()[f"box_stage.predictor.{name}.{kind}"] for kind in ("weight", "bias"))
        assert torch.equal(weight, bias[:, None].expand_as(weight))
        found.append(bias.tolist())
    return found[0], found[1]


class TestInitialWeights:
    """A start from a detector of other classes."""

    def test_rows_of_shared_classes_are_carried_over(self) -> None:
        model = TinyDetector(3)
        carried = load_initial_weights(model, tiny_checkpoint(), ("cat", "dog", "person"), {})
        assert (carried.classes, carried.new_classes) == (("cat", "person"), ("dog",))
        classes, deltas = sources(model)
        # 2020 is the third class there, 1010 the second here; the background is the fourth row of both.
        assert classes == [2020, 1010, 2000, 2030]
        assert deltas == [2020, 2021, 2022, 2023, 1010, 1011, 1012, 1013, 2000, 2001, 2002, 2003]

    def test_background_is_carried_over_between_other_numbers_of_classes(self) -> None:
        fewer, more = TinyDetector(1), TinyDetector(5)
        load_initial_weights(fewer, tiny_checkpoint(), ("cat",), {})
        assert sources(fewer)[0] == [2020, 2030]
        load_initial_weights(more, tiny_checkpoint(), ("a", "b", "c", "d", "airplane"), {})
        assert sources(more)[0] == [1000, 1010, 1020, 1030, 2010, 2030]

    def test_mask_rows_have_no_background(self) -> None:
        here, there = TinyDetector(3), TinyDetector(3, side=2)
        for model, side in ((here, 1000.0), (there, 2000.0)):
            model.mask_stage = nn.Module()
            model.mask_stage.head = MaskHead(2, num_classes=3, convs=0, channels=2)
            model.get_parameter("mask_stage.head.masks.bias").data.copy_(side + torch.arange(3))
        checkpoint = Checkpoint(Path("coco.safetensors"), dict(there.state_dict()), CONFIG, THERE, 0)
        load_initial_weights(here, checkpoint, ("cat", "dog", "cow"), {})
        assert here.get_parameter("mask_stage.head.masks.bias").tolist() == [2002, 1001, 1002]

    def test_every_stage_of_a_cascade_and_its_one_box_for_all_classes(self) -> None:
        here, there = TinyCascade(2, side=1), TinyCascade(3, side=2)
        checkpoint = Checkpoint(Path("coco.safetensors"), dict(there.state_dict()), CONFIG, THERE, 0)
        load_initial_weights(here, checkpoint, ("dog", "cat"), {})
        for number in range(2):
            stage = f"box_stage.stages.{number}.predictor"
            assert here.get_parameter(f"{stage}.classes.bias").tolist() == [1000, 2020, 2030]
            assert here.get_parameter(f"{stage}.deltas.bias").tolist() == [2000, 2001, 2002, 2003]

    def test_everything_else_is_loaded_statistics_included(self) -> None:
        model = TinyDetector(2)
        load_initial_weights(model, tiny_checkpoint(), ("cat", "dog"), {})
        state = model.state_dict()
        assert state["backbone.0.weight"].unique().tolist() == [2.0]
        assert state["backbone.1.running_mean"].unique().tolist() == [2.0]

    def test_renamed_classes(self) -> None:
        model = TinyDetector(2)
        carried = load_initial_weights(model, tiny_checkpoint(), ("aeroplane", "dog"), {"aeroplane": "airplane"})
        assert carried.classes == ("aeroplane",)
        assert sources(model)[0] == [2010, 1010, 2030]

    def test_a_name_that_both_know_may_mean_another_class(self) -> None:
        model = TinyDetector(2)
        load_initial_weights(model, tiny_checkpoint(), ("cat", "person"), {"cat": "airplane"})
        assert sources(model)[0] == [2010, 2000, 2030]

    def test_same_classes_give_the_detector_itself(self) -> None:
        model, checkpoint = TinyDetector(3), tiny_checkpoint()
        assert load_initial_weights(model, checkpoint, THERE, {}).classes == THERE
        assert_equal(dict(model.state_dict()), checkpoint.weights)

    def test_checkpoint_and_model_share_no_memory(self) -> None:
        model, checkpoint = TinyDetector(2), tiny_checkpoint()
        before = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
        load_initial_weights(model, checkpoint, ("cat", "dog"), {})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert_equal(checkpoint.weights, before)

    def refused(self, model: nn.Module, checkpoint: Checkpoint, *arguments: Any) -> str:
        """The message; the model must be as it was."""
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=r"coco\.safetensors") as error:
            load_initial_weights(model, checkpoint, *arguments)
        assert_equal(dict(model.state_dict()), before)
        return str(error.value)

    def test_layers_of_other_names_are_told_by_the_first_of_each(self) -> None:
        there = tiny_checkpoint()
        renamed = {name.replace("backbone.", "backbone.body."): value for name, value in there.weights.items()}
        message = self.refused(TinyDetector(3), replace(there, weights=renamed), THERE, {})
        assert "backbone.body.0.bias there and backbone.0.bias here" in message

    def test_without_a_common_class_all_but_their_rows_is_carried_over(self) -> None:
        model = TinyDetector(2)
        carried = load_initial_weights(model, tiny_checkpoint(), ("aeroplane", "dog"), {})
        assert (carried.classes, carried.new_classes, carried.new_layers) == ((), ("aeroplane", "dog"), ())
        assert sources(model) == ([1000, 1010, 2030], [1000, 1001, 1002, 1003, 1010, 1011, 1012, 1013])
        assert model.state_dict()["backbone.0.weight"].unique().tolist() == [2.0]

    @pytest.mark.parametrize("name", ["Cat", "CAT", " cat"])
    def test_names_are_the_same_in_another_spelling(self, name: str) -> None:
        assert load_initial_weights(TinyDetector(2), tiny_checkpoint(), ("dog", name), {}).classes == (name,)

    def test_two_spellings_of_one_class_do_not_share_its_rows(self) -> None:
        carried = load_initial_weights(TinyDetector(2), tiny_checkpoint(), ("cat", "Cat"), {})
        assert (carried.classes, carried.new_classes) == (("cat",), ("Cat",))

    @pytest.mark.parametrize("renamed", [{"plane": "airplane"}, {"aeroplane": "plane"}, {"airplane": "aeroplane"}])
    def test_wrong_names(self, renamed: dict[str, str]) -> None:
        message = self.refused(TinyDetector(2), tiny_checkpoint(), ("aeroplane", "cat"), renamed)
        ((here, there),) = renamed.items()
        for part in (f"init_classes maps {here!r} to {there!r}", "('aeroplane', 'cat')", str(THERE)):
            assert part in message

    def test_a_backbone_that_does_not_fit_at_all_is_refused(self) -> None:
        message = self.refused(TinyDetector(2, width=4), tiny_checkpoint(), ("cat", "dog"), {})
        assert "backbone.0.weight is (4, 3, 1, 1) here and (3, 3, 1, 1) there" in message
        assert CONFIG.backbone.name in message

    def test_weights_that_are_not_finite_are_refused(self) -> None:
        checkpoint = tiny_checkpoint()
        checkpoint.weights["backbone.0.weight"][0] = torch.nan
        assert "backbone.0.weight" in self.refused(TinyDetector(2), checkpoint, ("cat", "dog"), {})

    def test_a_part_that_the_source_lacks_begins_anew_and_one_too_many_is_named(self) -> None:
        model, checkpoint = TinyDetector(2), tiny_checkpoint()
        model.neck = nn.Linear(1, 1)
        checkpoint.weights["old.weight"] = torch.zeros(1)
        own = model.neck.weight.clone()
        carried = load_initial_weights(model, checkpoint, ("cat", "dog"), {})
        assert (carried.new_layers, carried.unused) == (("neck.weight", "neck.bias"), ("old.weight",))
        assert torch.equal(model.neck.weight, own)
        assert any("neck.weight" in line for line in carried.lines)

    @pytest.mark.parametrize("features", [(4, 2), (2, 4)], ids=["into_context", "out_of_context"])
    def test_layers_that_read_other_vectors_begin_anew(self, features: tuple[int, int]) -> None:
        # The context doubles what the two last layers read.
        here, there = features
        model, checkpoint = TinyDetector(2, features=here), tiny_checkpoint(features=there)
        before = model.state_dict()["box_stage.predictor.classes.weight"].clone()
        carried = load_initial_weights(model, checkpoint, ("cat", "dog"), {})
        assert carried.new_layers == ("box_stage.predictor.classes.weight", "box_stage.predictor.deltas.weight")
        assert torch.equal(model.state_dict()["box_stage.predictor.classes.weight"], before)

    def test_options_that_change_what_weights_mean_are_named(self) -> None:
        other = DetectionConfig(backbone=DetectorBackboneConfig(name="vgg11", norm_eps=0.5))
        assert differing_meaning(CONFIG, tiny_checkpoint()) == []
        (line,) = differing_meaning(other, tiny_checkpoint())
        assert "backbone.norm_eps" in line
