"""Mirrors detection/weights/torchvision_one_stage.py: RetinaNet and FCOS give torchvision's detections and losses.

Both detectors run in float64 here: in float32 a rounding that moves an IoU over a threshold changes a detection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from torchvision.models import resnet18
from torchvision.models.detection import (
    FCOS,
    RetinaNet,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detection.boxes import not_empty
from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.model.one_stage import OneStage
from detection.structures import Detections, ImageBatch, Target
from detection.weights.to_torchvision import to_torchvision
from detection.weights.torchvision import COCO_ROWS, convert_torchvision
from detection.weights.torchvision_one_stage import reorder_rows

Theirs = RetinaNet | FCOS
CLASSES = ("cat", "dog", "cow", "bus", "cup")
COCO_NAMES = tuple(name for name in COCO_ROWS[1:] if name != "N/A")
LOSSES = {"class": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
SPREAD = {"cls_logits": 1.5, "bbox_reg": 0.3, "bbox_ctrness": 1.5}  # deviation of outputs; 1 of the layers before
WIDTH = 64


class Untouched(GeneralizedRCNNTransform):
    """Normalises and pads, but leaves images and boxes at their sizes."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        return result


@pytest.fixture(scope="module", autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def narrow_body(coarse: LastLevelP6P7) -> BackboneWithFPN:
    torch.manual_seed(0)
    stages = {f"layer{number + 2}": str(number) for number in range(3)}
    return BackboneWithFPN(resnet18(), stages, [128, 256, 512], out_channels=WIDTH, extra_blocks=coarse)


def narrow_retinanet() -> RetinaNet:
    """The first version in all but width and body."""
    return RetinaNet(narrow_body(LastLevelP6P7(WIDTH, WIDTH)), len(CLASSES) + 1)


def narrow_retinanet_v2() -> RetinaNet:
    """The second version in all but width and body."""
    head = RetinaNetHead(WIDTH, 9, len(CLASSES) + 1, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return RetinaNet(narrow_body(LastLevelP6P7(512, WIDTH)), len(CLASSES) + 1, head=head)


def narrow_fcos() -> FCOS:
    return FCOS(narrow_body(LastLevelP6P7(WIDTH, WIDTH)), len(CLASSES) + 1)


@pytest.fixture(
    scope="module", params=[narrow_retinanet, narrow_retinanet_v2, narrow_fcos], ids=lambda make: make.__name__
)
def both(request) -> tuple[Theirs, OneStage]:
    """torchvision's model and ours with its weights."""
    theirs = spread(request.param())
    return theirs, converted(theirs.state_dict())


def spread(model: Theirs) -> Theirs:
    """``model`` in eval mode with outputs of the deviations SPREAD, and nothing of row 0, which no object trains."""

    def scale_once(deviation: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            factor = deviation / output.std()
            layer.get_parameter("weight").data.mul_(factor)
            handles.pop(layer).remove()
            return output * factor

        return hook

    transform = model.transform
    assert isinstance(transform, GeneralizedRCNNTransform)
    model.transform = Untouched(800, 1333, transform.image_mean, transform.image_std)
    handles = dict[nn.Module, RemovableHandle]()
    for name, layer in model.head.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            handles[layer] = layer.register_forward_hook(scale_once(SPREAD.get(name.rpartition(".")[2], 1.0)))
    detect(model.eval(), [noise((96, 128), seed=0)])
    bias = model.head.get_parameter("classification_head.cls_logits.bias")
    bias.data.view(-1, len(CLASSES) + 1)[:, 0] = -1000
    if isinstance(model, FCOS):
        model.head.get_parameter("regression_head.bbox_reg.bias").data.fill_(1.0)  # few sides are cut at 0
    return model


def noise(size: tuple[int, int], *, seed: int) -> Tensor:
    """A picture (3, H, W) uint8 of coloured blobs and grain."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(1, 3, 10, 10, generator=generator) * 255
    picture = functional.interpolate(blobs, size=size, mode="bicubic")[0]
    return (picture + 10 * torch.randn(3, *size, generator=generator)).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def detect(model: Theirs, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    return model([image / 255 for image in images])


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` by the names that torchvision used before 0.13; RetinaNet's towers had no norm then."""
    renamed = {}
    for name, value in state.items():
        old = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
        renamed[re.sub(r"(head\.conv)\.(\d)\.0\.", lambda match: f"{match[1]}.{2 * int(match[2])}.", old)] = value
    return renamed


def converted(state: Mapping[str, Tensor]) -> OneStage:
    config, weights = convert_torchvision(state, class_names=CLASSES)
    detector = build_detector(config, len(CLASSES), pretrained=False)
    detector.load_state_dict(weights, strict=False)  # only step counters may differ: convert_torchvision has checked
    assert isinstance(detector, OneStage)
    return detector.eval()


def settings(state: Mapping[str, Tensor]) -> DetectionConfig:
    return convert_torchvision(state, class_names=CLASSES)[0]


def assert_same_detections(theirs: Theirs, ours: OneStage, images: Sequence[Tensor]) -> None:
    """But for boxes without an area, as of anchors in the padding, which torchvision keeps and ours drops."""
    with torch.no_grad():
        found = ours(ImageBatch.from_images(images))
    for theirs_of_image, own in zip(detect(theirs, images), found, strict=True):
        filled = not_empty(theirs_of_image["boxes"])
        expected = {name: value[filled] for name, value in theirs_of_image.items()}
        count = len(expected["scores"])
        assert count >= 50, "a comparison of little"
        assert len(expected["labels"].unique()) > 1
        ordered = in_order(own[:count], expected)
        assert ordered.labels.equal(expected["labels"] - 1)
        torch.testing.assert_close(ordered.boxes, expected["boxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(ordered.scores, expected["scores"], rtol=0, atol=1e-9)


def in_order(found: Detections, expected: Mapping[str, Tensor]) -> Detections:
    """``found`` with every detection at the place of the nearest one of its class in ``expected``."""
    distance = torch.cdist(expected["boxes"], found.boxes, p=torch.inf)
    distance[expected["labels"][:, None] - 1 != found.labels] = torch.inf
    nearest = distance.argmin(dim=1)
    assert nearest.sort().values.tolist() == list(range(len(found)))
    return found[nearest]


def make_target(size: tuple[int, int], *, seed: int, count: int) -> Target:
    """Objects of 20 to 100 pixels."""
    generator = torch.Generator().manual_seed(seed)
    sides = 20 + 80 * torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([size[1], size[0]]) - sides)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=1)
    return Target(boxes=boxes, labels=labels, ignore=torch.zeros(count, dtype=torch.bool))


def test_detections_are_torchvisions(both: tuple[Theirs, OneStage]) -> None:
    assert_same_detections(*both, [noise((128, 160), seed=1), noise((107, 151), seed=2)])


def test_losses_and_gradients_are_torchvisions(both: tuple[Theirs, OneStage]) -> None:
    """Of three images, one without objects; their sides are multiples of 32: torchvision trains on the padding too."""
    theirs, ours = both
    images = [noise((128, 160), seed=number) for number in range(3)]
    targets = [make_target((128, 160), seed=number, count=count) for number, count in enumerate((4, 0, 6))]
    theirs.train().backbone.eval()
    expected = theirs(
        [image / 255 for image in images], [{"boxes": target.boxes, "labels": target.labels + 1} for target in targets]
    )
    found = ours(ImageBatch.from_images(images), targets)
    assert {LOSSES[name] for name in found} == set(expected)
    for name, loss in found.items():
        assert loss > 1e-2, name
        torch.testing.assert_close(loss, expected[LOSSES[name]], rtol=1e-6, atol=0)
    torch.stack(list(expected.values())).sum().backward()
    torch.stack(list(found.values())).sum().backward()
    for name in ("backbone.body.layer4.0.conv1.weight", "backbone.body.layer3.0.conv1.weight"):
        wanted, got = theirs.get_parameter(name).grad, ours.get_parameter(name).grad
        assert wanted is not None
        assert got is not None
        assert (got - wanted).norm() <= 1e-6 * wanted.norm(), name
    theirs.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "builder", [retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2, fcos_resnet50_fpn], ids=lambda make: make.__name__
)
def test_every_builder(builder) -> None:
    torch.manual_seed(0)
    theirs = spread(builder(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1))
    assert_same_detections(theirs, converted(theirs.state_dict()), [noise((96, 128), seed=0)])


def test_it_goes_back(both: tuple[Theirs, OneStage]) -> None:
    """torchvision's model finds the same with the written weights, whose row 0 is never found."""
    theirs, _ = both
    config, weights = convert_torchvision(theirs.state_dict(), class_names=CLASSES)
    back, code = to_torchvision(config, CLASSES, weights)
    version = "_v2" if config.dense.loss == "giou" else ""
    assert code.startswith(f"model = {config.architecture}_resnet18_fpn{version}(weights=None, weights_backbone=None, ")
    image = noise((128, 160), seed=1)
    expected = detect(theirs, [image])[0]
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    assert set(back) == set(before)
    theirs.load_state_dict(back)
    found = detect(theirs, [image])[0]
    theirs.load_state_dict(before)
    assert len(found["scores"]) >= 50
    assert all(found[name].equal(value) for name, value in expected.items())


def test_what_torchvision_lacks_does_not_go_back() -> None:
    config, weights = convert_torchvision(narrow_retinanet().state_dict(), class_names=CLASSES)
    for changed, key in (
        (replace(config, backbone=replace(config.backbone, fpn_coarse="c5")), r"backbone\.fpn_coarse c5"),
        (replace(config, dense=replace(config.dense, clip_first=False)), r"dense\.clip_first is False"),
    ):
        with pytest.raises(ValueError, match=key):
            to_torchvision(changed, CLASSES, weights)
    few = replace(config, test=replace(config.test, nms_iou=0.3), dense=replace(config.dense, pre_nms=50))
    _, code = to_torchvision(few, CLASSES, weights)
    assert "num_classes=6, nms_thresh=0.3, topk_candidates=50)" in code


def test_settings_are_the_defaults_of_torchvision() -> None:
    states = [
        as_published(narrow_retinanet().state_dict()),
        *(m().state_dict() for m in (narrow_retinanet_v2, narrow_fcos)),
    ]
    first, second, fcos = map(settings, states)
    assert first.anchors.sizes[:6] == (32, 40, 50, 64, 80, 101)
    for config, name, test, dense, coarse in (
        (first, "retinanet", (0.05, 0.5, 300), (None, "smooth_l1", "image"), "p5"),
        (second, "retinanet", (0.05, 0.5, 300), ("gn", "giou", "image"), "c5"),
        (fcos, "fcos", (0.2, 0.6, 100), (fcos.dense.norm, fcos.dense.loss, "batch"), "p5"),
    ):
        assert (config.architecture, config.backbone.fpn_coarse) == (name, coarse)
        assert (config.test.score_threshold, config.test.nms_iou, config.test.max_detections) == test
        assert (config.dense.norm, config.dense.loss, config.dense.normalizer) == dense


def test_old_names_are_those_of_an_eps_of_zero_but_of_fcos() -> None:
    """Published files of RetinaNet were trained before fixed batch normalisation added any."""

    def fixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if "num_batches" not in name}

    retinanet = settings(fixed(as_published(narrow_retinanet().state_dict())))
    assert (retinanet.backbone.norm, retinanet.backbone.norm_eps) == ("frozen_bn", 0)
    fcos = settings(fixed(narrow_fcos().state_dict()))
    assert (fcos.backbone.norm, fcos.backbone.norm_eps) == ("frozen_bn", 1e-5)


def test_rows_of_unused_category_ids_are_dropped_and_anchors_go_by_size() -> None:
    names = ("head.classes", "head.deltas")
    state = {f"{name}.bias": torch.arange(9.0 * count) for name, count in zip(names, (91, 4), strict=True)}
    state |= {f"{name}.weight": value.view(-1, 1, 1, 1) for name, value in zip(names, state.values(), strict=True)}
    state["backbone.coarse.p6.0.weight"] = torch.zeros(1)
    rows = [COCO_ROWS.index(name) for name in COCO_NAMES]
    layers = reorder_rows(state, rows)
    # The second anchor of ours is the first size with the second ratio: torchvision's fourth.
    assert layers["head.classes.bias"][:3].tolist() == [rows[0], 3 * 91 + rows[0], 6 * 91 + rows[0]]
    assert layers["head.classes.bias"][9 * 79 + 1] == 3 * 91 + rows[79]
    assert layers["head.deltas.bias"][4:8].tolist() == [12, 13, 14, 15]
    assert layers["head.deltas.weight"][4:8].flatten().tolist() == [12, 13, 14, 15]
    assert len(layers["head.classes.weight"]) == 9 * 80


def test_other_numbers_of_anchors_are_refused() -> None:
    state = narrow_retinanet().state_dict()
    for part in ("weight", "bias"):
        state[f"head.regression_head.bbox_reg.{part}"] = state[f"head.regression_head.bbox_reg.{part}"][:12]
    with pytest.raises(ValueError, match=r"3 anchors a cell, torchvision's 9"):
        convert_torchvision(state, class_names=CLASSES)
