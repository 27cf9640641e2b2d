from copy import deepcopy
from dataclasses import replace
from functools import partial
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
THERE = ("person", "airplane", "cat")
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


class Predictor(nn.Module):
    """The two last layers, with weights that say where they come from: 1000 side + 10 class + coordinate."""

    def __init__(self, classes: int, side: int, *, features: int = 2, agnostic: bool = False) -> None:
        super().__init__()
        self.class_rows = {"classes": ClassRows(1, background=True)} | ({} if agnostic else {"deltas": ClassRows(4)})
        self.classes = nn.Linear(features, classes + 1)
        self.deltas = nn.Linear(features, 4 if agnostic else 4 * classes)
        rows = 1000.0 * side + 10.0 * torch.arange(classes + 1)
        corners = (rows[:-1, None] + torch.arange(4)).flatten()
        for layer, values in ((self.classes, rows), (self.deltas, corners[: self.deltas.out_features])):
            layer.bias.data = values
            layer.weight.data = values[:, None].repeat(1, features)


class TinyDetector(nn.Module):
    """The names of a detector, in few numbers."""

    def __init__(self, classes: int, *, features: int = 2, side: int = 1, width: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.box_stage = nn.ModuleDict({"predictor": Predictor(classes, side, features=features)})
        nn.init.constant_(self.backbone.get_parameter("0.weight"), float(side))
        nn.init.constant_(self.backbone.get_buffer("1.running_mean"), float(side))


class TinyCascade(nn.Module):
    """Two stages with one box for all classes, and a mask stage."""

    def __init__(self, classes: int, *, side: int) -> None:
        super().__init__()
        stages = [nn.ModuleDict({"predictor": Predictor(classes, side, agnostic=True)}) for _ in range(2)]
        self.box_stage = nn.ModuleDict({"stages": nn.ModuleList(stages)})
        self.mask_stage = nn.ModuleDict({"head": MaskHead(2, num_classes=classes, convs=0, channels=2)})
        self.get_parameter("mask_stage.head.masks.bias").data.copy_(1000.0 * side + torch.arange(classes))


def stored(model: nn.Module) -> Checkpoint:
    return Checkpoint(Path("coco.safetensors"), dict(model.state_dict()), CONFIG, THERE, 0)


def tiny_checkpoint(**options: Any) -> Checkpoint:
    return stored(TinyDetector(len(THERE), side=2, **options))


def sources(model: nn.Module) -> tuple[list[float], list[float]]:
    """Where the rows of the class scores and of the deltas come from, weights and biases alike."""
    found = []
    for name in ("classes", "deltas"):
        weight, bias = (model.state_dict()[f"box_stage.predictor.{name}.{kind}"] for kind in ("weight", "bias"))
        assert torch.equal(weight, bias[:, None].expand_as(weight))
        found.append(bias.tolist())
    return found[0], found[1]


def test_rows_of_shared_classes_are_carried_over_and_everything_else_statistics_included() -> None:
    model, checkpoint = TinyDetector(3), tiny_checkpoint()
    before = deepcopy(checkpoint.weights)
    carried = load_initial_weights(model, checkpoint, ("cat", "dog", "person"), {})
    assert (carried.classes, carried.new_classes) == (("cat", "person"), ("dog",))
    # 2020 is the third class there, 1010 the second here; the background is the fourth row of both.
    classes, deltas = sources(model)
    assert classes == [2020, 1010, 2000, 2030]
    assert deltas == [2020, 2021, 2022, 2023, 1010, 1011, 1012, 1013, 2000, 2001, 2002, 2003]
    state = model.state_dict()
    assert state["backbone.0.weight"].unique().tolist() == state["backbone.1.running_mean"].unique().tolist() == [2.0]
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_equal(checkpoint.weights, before)  # they share no memory
    same = TinyDetector(3)
    assert load_initial_weights(same, checkpoint, THERE, {}).classes == THERE
    assert_equal(dict(same.state_dict()), checkpoint.weights)


def test_which_rows_are_carried_over() -> None:
    for here, renamed, carried, rows in (
        (("cat",), {}, ("cat",), [2020, 2030]),
        (("a", "b", "c", "d", "airplane"), {}, ("airplane",), [1000, 1010, 1020, 1030, 2010, 2030]),
        (("aeroplane", "dog"), {"aeroplane": "airplane"}, ("aeroplane",), [2010, 1010, 2030]),
        (("cat", "person"), {"cat": "airplane"}, ("cat", "person"), [2010, 2000, 2030]),  # both know it, as another
        (("aeroplane", "dog"), {}, (), [1000, 1010, 2030]),
        (("dog", " CAT"), {}, (" CAT",), [1000, 2020, 2030]),  # names are the same in another spelling
        (("cat", "Cat"), {}, ("cat",), [2020, 1010, 2030]),  # but two spellings do not share rows
    ):
        model = TinyDetector(len(here))
        found = load_initial_weights(model, tiny_checkpoint(), here, renamed)
        assert (found.classes, found.new_layers) == (carried, ())
        assert set(found.new_classes) == set(here) - set(carried)
        assert sources(model)[0] == rows
        assert model.state_dict()["backbone.0.weight"].unique().tolist() == [2.0]


def test_every_stage_of_a_cascade_its_one_box_for_all_classes_and_masks_without_background() -> None:
    here, there = TinyCascade(2, side=1), TinyCascade(3, side=2)
    load_initial_weights(here, stored(there), ("dog", "cat"), {})
    for number in range(2):
        stage = f"box_stage.stages.{number}.predictor"
        assert here.get_parameter(f"{stage}.classes.bias").tolist() == [1000, 2020, 2030]
        assert here.get_parameter(f"{stage}.deltas.bias").tolist() == [2000, 2001, 2002, 2003]
    assert here.get_parameter("mask_stage.head.masks.bias").tolist() == [1000, 2002]


def refused(model: nn.Module, checkpoint: Checkpoint, names: tuple[str, ...], renamed: Any = None) -> str:
    """The message; the model must be as it was."""
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"coco\.safetensors") as error:
        load_initial_weights(model, checkpoint, names, renamed or {})
    assert_equal(model.state_dict(), before)
    return str(error.value)


def test_what_does_not_fit_is_refused_with_both_sides() -> None:
    there = tiny_checkpoint()
    moved = {name.replace("backbone.", "backbone.body."): value for name, value in there.weights.items()}
    message = refused(TinyDetector(3), replace(there, weights=moved), THERE)
    assert "backbone.body.0.bias there and backbone.0.bias here" in message
    message = refused(TinyDetector(2, width=4), there, ("cat", "dog"))
    assert "backbone.0.weight is (4, 3, 1, 1) here and (3, 3, 1, 1) there" in message
    assert CONFIG.backbone.name in message
    for here, other in {"plane": "airplane", "aeroplane": "plane", "airplane": "aeroplane"}.items():
        message = refused(TinyDetector(2), there, ("aeroplane", "cat"), {here: other})
        for part in (f"init_classes maps {here!r} to {other!r}", "('aeroplane', 'cat')", str(THERE)):
            assert part in message
    there.weights["backbone.0.weight"][0] = torch.nan
    assert "backbone.0.weight" in refused(TinyDetector(2), there, ("cat", "dog"))


def test_a_part_that_the_source_lacks_begins_anew_and_one_too_many_is_named() -> None:
    model, checkpoint = TinyDetector(2), tiny_checkpoint()
    model.neck = nn.Linear(1, 1)
    checkpoint.weights["old.weight"], own = torch.zeros(1), model.neck.weight.clone()
    carried = load_initial_weights(model, checkpoint, ("cat", "dog"), {})
    assert (carried.new_layers, carried.unused) == (("neck.weight", "neck.bias"), ("old.weight",))
    assert torch.equal(model.neck.weight, own)
    assert any("neck.weight" in line for line in carried.lines)
    other = DetectionConfig(backbone=DetectorBackboneConfig(name="vgg11", norm_eps=0.5))
    assert differing_meaning(CONFIG, checkpoint) == []
    (line,) = differing_meaning(other, checkpoint)  # options that change what weights mean
    assert "backbone.norm_eps" in line
    for here, there in ((4, 2), (2, 4)):  # with a context the two last layers read twice as much, or no more
        model = TinyDetector(2, features=here)
        own = model.state_dict()["box_stage.predictor.classes.weight"].clone()
        carried = load_initial_weights(model, tiny_checkpoint(features=there), ("cat", "dog"), {})
        assert carried.new_layers == ("box_stage.predictor.classes.weight", "box_stage.predictor.deltas.weight")
        assert torch.equal(model.state_dict()["box_stage.predictor.classes.weight"], own)
