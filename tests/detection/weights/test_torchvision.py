"""Mirrors detection/weights/torchvision.py.

Both detectors run in float64 here. In float32 they round differently, and a rounding that moves an IoU over a threshold
changes a detection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from torchvision.models.detection import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN,
    MaskRCNN,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    ssd300_vgg16,
)
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card
from detection.data.images import read_image
from detection.engine.checkpoint import load_detector_weights, read_checkpoint, write_converted
from detection.engine.transfer import load_initial_weights
from detection.model.architecture import Architecture
from detection.model.box_stage import OBJECTS, REGIONS
from detection.model.faster_rcnn import FasterRCNN as OurFasterRCNN
from detection.model.rpn import ANCHORS, places
from detection.model.select import hash32
from detection.structures import Detections, ImageBatch, Target
from detection.weights.to_torchvision import to_torchvision
from detection.weights.torchvision import convert_torchvision

CLASSES = ("cat", "dog", "cow", "bus", "cup")
COCO_ROWS: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_NAMES = tuple(name for name in COCO_ROWS[1:] if name != "N/A")
ModelT = TypeVar("ModelT", bound=FasterRCNN)
SEEDS = (3, 4)  # of the draws in two images
LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "box_class": "loss_classifier",
    "box_regression": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}
KEYPOINTS = 17  # of torchvision's builder

# Standard deviation of the outputs of a random model, 1 where nothing is said: scores differ and do not saturate, and
# boxes stay near.
SPREAD = {
    "rpn.head.cls_logits": 1.5,
    "rpn.head.bbox_pred": 0.2,
    "roi_heads.box_predictor.cls_score": 2.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
}


# Fewer regions than torchvision's defaults, for time; few enough that the sampler and the limits decide something.
FEW = {
    "rpn_post_nms_top_n_train": 60,
    "rpn_post_nms_top_n_test": 150,
    "box_batch_size_per_image": 32,
    "box_detections_per_img": 60,
}


class Untouched(GeneralizedRCNNTransform):
    """Normalises and pads, but leaves the pixels of images and boxes, and the 28x28 masks, as they are."""

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


@pytest.fixture(scope="module")
def small() -> tuple[MaskRCNN, Architecture]:
    """A narrow Mask R-CNN over a ResNet-18 that looks like the published v1 files: old names and an eps of 0."""
    theirs = randomise(narrow_model(lambda channels: FrozenBatchNorm2d(channels, eps=0.0)))
    return theirs, converted(as_published(theirs.state_dict()))


@pytest.fixture(scope="module")
def state(small) -> dict[str, Tensor]:
    """Its weights by the old names; tests must not change them."""
    return as_published(small[0].state_dict())


def narrow_model(
    norm: Callable[[int], nn.Module], *, body: str = "resnet18", num_classes: int = len(CLASSES)
) -> MaskRCNN:
    """torchvision's v1 in all but the widths."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, body)(norm_layer=norm)
    widths = [network.fc.in_features // 2**number for number in (3, 2, 1, 0)]
    stages = {f"layer{number + 1}": str(number) for number in range(4)}
    return MaskRCNN(
        BackboneWithFPN(network, stages, widths, out_channels=64),
        box_head=TwoMLPHead(64 * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, num_classes + 1),
        mask_head=MaskRCNNHeads(64, (32, 32), 1),
        mask_predictor=MaskRCNNPredictor(32, 32, num_classes + 1),
        **FEW,
    )


def narrow_keypoint_model(num_keypoints: int = KEYPOINTS) -> KeypointRCNN:
    """torchvision's Keypoint R-CNN in all but widths and depth."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    stages = {f"layer{number + 1}": str(number) for number in range(4)}
    return KeypointRCNN(
        BackboneWithFPN(network, stages, [64, 128, 256, 512], out_channels=64),
        box_head=TwoMLPHead(64 * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, len(CLASSES) + 1),
        keypoint_head=KeypointRCNNHeads(64, (32, 32)),
        keypoint_predictor=KeypointRCNNPredictor(32, num_keypoints),
        **FEW,
    )


def build(builder: Callable[..., FasterRCNN], num_classes: int = len(CLASSES), **options: int) -> FasterRCNN:
    torch.manual_seed(0)
    return builder(weights=None, weights_backbone=None, num_classes=num_classes + 1, **options)


def randomise(model: ModelT, *, seed: int = 0) -> ModelT:
    """``model`` in eval mode, its statistics random, its weights such that every channel's outputs spread by SPREAD."""
    generator = torch.Generator().manual_seed(seed)
    handles = list[RemovableHandle]()
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            named = layer.state_dict()
            named["running_mean"].normal_(0, 0.2, generator=generator)
            named["running_var"].uniform_(0.5, 1.5, generator=generator)
            named["running_var"][::8] = 1e-3  # small enough for eps to matter
            named["weight"].uniform_(0.5, 1.5, generator=generator)
            named["bias"].normal_(0, 0.2, generator=generator)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            handles.append(layer.register_forward_hook(scale_once(SPREAD.get(name, 1.0))))
    detect(model.eval(), [noise((96, 128), seed=seed)])
    for handle in handles:
        handle.remove()
    return model


def scale_once(spread: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    """A hook that changes a layer at its first call: every output channel gets this standard deviation.

    Where the layer has a bias, also the mean 0: of several classes each then is the best somewhere.
    """
    waiting = True

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        nonlocal waiting
        if not waiting:
            return None
        waiting = False
        channels = output.transpose(0, 1).flatten(1)
        factor, mean = spread / channels.std(dim=1), torch.zeros(len(channels))
        weight, bias = layer.get_parameter("weight").data, getattr(layer, "bias", None)
        weight.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))
        if bias is not None:
            mean = channels.mean(dim=1)
            bias.data.sub_(mean).mul_(factor)
        shape = (-1, *[1] * (output.ndim - 2))
        return (output - mean.view(shape)) * factor.view(shape)

    return hook


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` by the names that torchvision used before 0.13."""
    renamed = {}
    for name, value in state.items():
        old = re.sub(r"(rpn\.head\.conv)\.0\.0\.", r"\1.", name)
        old = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", old)
        renamed[re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", old)] = value
    return renamed


def converted(
    state: Mapping[str, Tensor], names: Sequence[str] = CLASSES, *, norm_eps: float | None = None
) -> Architecture:
    """Our detector with the weights ``state``, and with FEW regions."""
    config, weights = convert_torchvision(state, class_names=names, norm_eps=norm_eps)
    few = replace(
        config,
        rpn=replace(config.rpn, post_nms_train=60, post_nms_test=150),
        box=replace(config.box, samples_per_image=32),
        test=replace(config.test, max_detections=60),
    )
    detector = build_detector(few, len(names), pretrained=False)
    detector.load_state_dict(weights, strict=False)  # only step counters may differ: convert_torchvision has checked
    return detector.eval()


def noise(size: tuple[int, int], *, seed: int) -> Tensor:
    """A picture (3, H, W) uint8 of coloured blobs and grain."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(1, 3, 10, 10, generator=generator) * 255
    picture = functional.interpolate(blobs, size=size, mode="bicubic")[0]
    return (picture + 10 * torch.randn(3, *size, generator=generator)).clamp(0, 255).to(torch.uint8)


def detect(model: FasterRCNN, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    leave_sizes(model)
    with torch.no_grad():
        return model([image / 255 for image in images])


def leave_sizes(model: FasterRCNN) -> None:
    transform = model.transform
    assert isinstance(transform, GeneralizedRCNNTransform)
    model.transform = Untouched(800, 1333, transform.image_mean, transform.image_std)


def assert_same_detections(theirs: FasterRCNN, ours: Architecture, images: Sequence[Tensor]) -> None:
    with torch.no_grad():
        found = ours(ImageBatch.from_images(images))
    for expected, image in zip(detect(theirs, images), found, strict=True):
        assert len(expected["scores"]) >= 50, "a comparison of little"
        assert len(expected["labels"].unique()) > 1
        assert_same(expected, in_order(image, expected))


def in_order(found: Detections, expected: Mapping[str, Tensor]) -> Detections:
    """``found`` with every detection at the place of the nearest one of its class in ``expected``.

    Two scores that differ by less than the rounding may come in either order.
    """
    distance = torch.cdist(expected["boxes"], found.boxes.to(expected["boxes"]), p=torch.inf)
    distance[expected["labels"][:, None] - 1 != found.labels] = torch.inf
    nearest = distance.argmin(dim=1)
    assert nearest.sort().values.tolist() == list(range(len(found)))
    return found[nearest]


def assert_same(expected: Mapping[str, Tensor], found: Detections) -> None:
    assert found.labels.equal(expected["labels"] - 1)
    torch.testing.assert_close(found.boxes, expected["boxes"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-9)
    assert ("masks" in expected) == (found.masks is not None)
    if found.masks is not None:
        assert expected["masks"].std() > 0.1
        torch.testing.assert_close(found.masks, expected["masks"][:, 0], rtol=0, atol=1e-9)
    assert ("keypoints" in expected) == (found.keypoints is not None)
    if found.keypoints is not None:
        places = expected["keypoints"][..., :2].double()  # in float32 whatever the model
        torch.testing.assert_close(found.keypoints[..., :2], places, rtol=0, atol=1e-4)
        assert expected["keypoints_scores"].std() > 0.1
        assert 0 < found.keypoints[..., 2].min() < found.keypoints[..., 2].max() < 1.1


def make_target(size: tuple[int, int], *, seed: int, count: int = 4) -> Target:
    """Objects of 30 to 80 pixels, each with an ellipse as its mask and keypoints in and around its box."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    sides = 30 + 50 * torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    boxes = torch.cat([corners, corners + sides], dim=1)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centers, radii = (corners + sides / 2)[..., None, None], (sides / 2)[..., None, None]
    masks = ((x - centers[:, 0]) / radii[:, 0]) ** 2 + ((y - centers[:, 1]) / radii[:, 1]) ** 2 <= 1
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    shares = 1.2 * torch.rand(count, KEYPOINTS, 2, generator=generator) - 0.1
    places = corners[:, None] + shares * sides[:, None]
    visible = torch.randint(0, 3, (count, KEYPOINTS, 1), generator=generator)
    return Target(
        boxes=boxes.float(),
        labels=labels,
        ignore=torch.zeros(count, dtype=torch.bool),
        masks=masks,
        keypoints=torch.cat([places, visible], dim=2).float(),
    )


def their_losses(
    model: FasterRCNN, images: Sequence[Tensor], targets: Sequence[Target], *, fixed: bool = True
) -> dict[str, Tensor]:
    """In training mode, but for batch normalisation unless it is not ``fixed``."""
    leave_sizes(model)
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and fixed:
            layer.eval()
    given = [
        {
            "boxes": target.boxes.double(),
            "labels": target.labels + 1,
            "masks": target.masks.byte(),
            "keypoints": target.keypoints,
        }
        for target in targets
        if target.masks is not None and target.keypoints is not None
    ]
    losses = model([image / 255 for image in images], given)
    model.eval()
    return losses


class Hashed(BalancedPositiveNegativeSampler):
    """torchvision's sampler with its own counts, but what comes first is decided by our hash, not by ``randperm``.

    Args:
        like: sampler with the counts.
        own_places: of the candidates of each image, (M,).
        stream: of the hash.
    """

    def __init__(self, like: object, own_places: Sequence[Tensor], stream: int) -> None:
        assert isinstance(like, BalancedPositiveNegativeSampler)
        super().__init__(like.batch_size_per_image, like.positive_fraction)
        self.numbers = [
            hash32(torch.tensor([seed]), own, stream)[0] for seed, own in zip(SEEDS, own_places, strict=False)
        ]

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks = list[tuple[Tensor, Tensor]]()
        for numbers, matched in zip(self.numbers, matched_idxs, strict=True):
            order = numbers.argsort()
            positive, negative = order[matched[order] >= 1], order[matched[order] == 0]
            positive = positive[: int(self.batch_size_per_image * self.positive_fraction)]
            negative = negative[: self.batch_size_per_image - len(positive)]
            drawn = torch.zeros(2, len(matched), dtype=torch.uint8)
            drawn[0, positive], drawn[1, negative] = 1, 1
            masks.append((drawn[0], drawn[1]))
        return [own for own, _ in masks], [own for _, own in masks]


@contextmanager
def same_draws(theirs: FasterRCNN, ours: Architecture, targets: Sequence[Target]) -> Iterator[None]:
    """Lets both train on the same anchors and regions of images of 128 x 160.

    torchvision decides which anchors are the best of an object by exact equality; ours has to as well, instead of by
    ``TIE``.
    """
    assert isinstance(ours, OurFasterRCNN)
    levels = [(-(-128 // stride), -(-160 // stride)) for stride in (4, 8, 16, 32, 64)]
    anchors = places(ours.rpn._anchors([torch.zeros(1, 1, *size) for size in levels], (128, 160)))
    few = FEW["rpn_post_nms_top_n_train"]
    regions = [torch.cat([torch.arange(few), OBJECTS + torch.arange(len(target))]) for target in targets]
    rpn, heads = theirs.rpn, theirs.roi_heads
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rpn, "fg_bg_sampler", Hashed(rpn.fg_bg_sampler, [anchors] * len(targets), ANCHORS))
        patch.setattr(heads, "fg_bg_sampler", Hashed(heads.fg_bg_sampler, regions, REGIONS))
        patch.setattr("detection.model.matcher.TIE", 1.0)
        yield


def assert_same_losses(theirs: FasterRCNN, ours: Architecture, targets: Sequence[Target]) -> None:
    """Losses, and the gradients of their sum at the ends of the trunk and of the RPN.

    The sizes are multiples of 32: torchvision would train on anchors in the padding, ours does not.
    """
    images = [noise((128, 160), seed=number) for number in range(len(targets))]
    with same_draws(theirs, ours, targets):
        expected = their_losses(theirs, images, targets)
        found = ours(ImageBatch.from_images(images, seeds=SEEDS[: len(images)]), targets)
    assert {LOSSES[name] for name in found} == set(expected)
    for name, loss in found.items():
        assert loss > 1e-3, name
        torch.testing.assert_close(
            loss,
            expected[LOSSES[name]],
            rtol=0,
            atol=2e-7,  # torchvision's objectness loss is in float32
            check_dtype=False,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    sum(expected.values(), start=torch.zeros(())).backward()
    sum(found.values(), start=torch.zeros(())).backward()
    for name, their_name in (
        ("backbone.body.layer4.0.conv1", "backbone.body.layer4.0.conv1"),
        ("rpn.head.conv", "rpn.head.conv.0.0"),
    ):
        wanted = theirs.get_parameter(f"{their_name}.weight").grad
        got = ours.get_parameter(f"{name}.weight").grad
        assert wanted is not None
        assert got is not None
        # As a whole: at a ReLU's kink, rounding decides whether an element has a gradient.
        assert (got - wanted).norm() <= 1e-3 * wanted.norm(), name
    for model in (theirs, ours):
        model.zero_grad(set_to_none=True)


class TestSameNumbers:
    """Feature maps, detections and losses equal torchvision's."""

    @pytest.mark.parametrize(
        "sizes", [[(128, 160)], [(107, 151)], [(128, 160), (163, 99), (107, 151)]], ids=["one", "odd", "three"]
    )
    def test_detections_of_noise(self, small: tuple[MaskRCNN, Architecture], sizes) -> None:
        assert_same_detections(*small, [noise(size, seed=number) for number, size in enumerate(sizes)])

    @pytest.mark.slow
    @pytest.mark.data
    def test_detections_of_ten_photographs(self, small: tuple[MaskRCNN, Architecture], data_root_for_tests) -> None:
        paths = sorted((data_root_for_tests / "coco128" / "val2017").glob("*.jpg"))[:10]
        images = [shrunk(path) for path in paths]
        assert len(images) == 10
        for batch in (images[:3], images[3:6], images[6:9], images[9:]):
            assert_same_detections(*small, batch)

    def test_losses_and_gradients(self, small: tuple[MaskRCNN, Architecture]) -> None:
        assert_same_losses(*small, [make_target((128, 160), seed=number) for number in range(2)])

    def test_losses_where_an_image_has_no_objects(self, small: tuple[MaskRCNN, Architecture]) -> None:
        assert_same_losses(*small, [make_target((128, 160), seed=0), make_target((128, 160), seed=1, count=0)])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "builder",
        [
            fasterrcnn_resnet50_fpn,
            fasterrcnn_resnet50_fpn_v2,
            maskrcnn_resnet50_fpn,
            maskrcnn_resnet50_fpn_v2,
            keypointrcnn_resnet50_fpn,
        ],
        ids=lambda builder: builder.__name__,
    )
    def test_every_builder(self, builder) -> None:
        theirs = randomise(build(builder, **FEW))
        assert_same_detections(theirs, converted(theirs.state_dict()), [noise((96, 128), seed=0)])

    @pytest.mark.slow
    def test_losses_of_the_second_version(self) -> None:
        theirs = randomise(build(maskrcnn_resnet50_fpn_v2, **FEW))
        assert_same_losses(theirs, converted(theirs.state_dict()), [make_target((128, 160), seed=0)])


@pytest.mark.slow
class TestKeypoints:
    """Keypoint R-CNN, with torchvision's 17 keypoints and with others."""

    def test_detections_keypoints_and_losses_are_torchvisions(self) -> None:
        theirs = randomise(narrow_keypoint_model())
        ours = converted(theirs.state_dict(), norm_eps=1e-5)
        assert_same_detections(theirs, ours, [noise((128, 160), seed=0), noise((107, 151), seed=1)])
        assert_same_losses(theirs, ours, [make_target((128, 160), seed=number) for number in range(2)])

    def test_settings_and_other_keypoints_which_are_numbered_and_go_back(self) -> None:
        config, _ = convert_torchvision(narrow_keypoint_model().state_dict(), class_names=CLASSES, norm_eps=1e-5)
        own = config.keypoint
        assert (config.architecture, own.pool_size, own.convs, own.channels) == ("keypoint_rcnn", 14, 2, 32)
        assert (len(own.names), own.names[:2], own.edges[0]) == (17, ("nose", "left_eye"), (15, 13))
        state = narrow_keypoint_model(3).state_dict()
        config, weights = convert_torchvision(state, class_names=CLASSES, norm_eps=1e-5)
        assert (config.keypoint.names, config.keypoint.edges) == (("1", "2", "3"), ())
        back, code = to_torchvision(config, CLASSES, weights)
        assert code.startswith("model = keypointrcnn_resnet18_fpn(")
        assert "num_classes=6, num_keypoints=3)" in code
        assert all(back[name].equal(value) for name, value in state.items() if "keypoint" in name)


def shrunk(path: Path) -> Tensor:
    """The picture at ``path`` as (3, H, W) uint8, its shorter side 128 pixels."""
    image = torch.tensor(read_image(path)).permute(2, 0, 1)[None]
    scale = 128 / min(image.shape[-2:])
    size = [round(side * scale) for side in image.shape[-2:]]
    return functional.interpolate(image.double(), size=size, mode="bilinear", antialias=True)[0].to(torch.uint8)


class TestConfig:
    """Everything but the weights that changes numbers."""

    def test_settings_are_the_defaults_of_torchvision_and_layers_are_read_off_the_weights(self, state) -> None:
        config, _ = convert_torchvision(state, class_names=CLASSES)
        default = {name: entry.default for name, entry in signature(MaskRCNN.__init__).parameters.items()}
        rpn, box, test = config.rpn, config.box, config.test
        assert {
            **{"min_size": config.data.shorter_side, "max_size": config.data.longer_side},
            **{"rpn_pre_nms_top_n_train": rpn.pre_nms_train, "rpn_pre_nms_top_n_test": rpn.pre_nms_test},
            **{"rpn_post_nms_top_n_train": rpn.post_nms_train, "rpn_post_nms_top_n_test": rpn.post_nms_test},
            **{"rpn_nms_thresh": rpn.nms_iou, "rpn_batch_size_per_image": rpn.samples_per_image},
            **{"rpn_fg_iou_thresh": rpn.positive_iou, "rpn_bg_iou_thresh": rpn.negative_iou},
            **{"rpn_positive_fraction": rpn.positive_fraction, "box_positive_fraction": box.positive_fraction},
            **{"box_score_thresh": test.score_threshold, "box_nms_thresh": test.nms_iou},
            **{"box_fg_iou_thresh": box.positive_iou, "box_bg_iou_thresh": box.positive_iou},
            **{"box_detections_per_img": test.max_detections, "box_batch_size_per_image": box.samples_per_image},
        }.items() <= default.items()
        assert box.negative_iou_low == 0
        assert config.backbone.fpn_channels == config.rpn.channels == 64
        assert (config.box.head_convs, config.box.head_fcs, config.box.head_channels) == (0, 2, 128)
        assert (config.architecture, config.mask.convs, config.mask.channels) == ("mask_rcnn", 2, 32)
        assert config.mask.geometry == "torchvision"
        assert (config.backbone.fpn_norm, config.box.head_norm, config.mask.norm) == (None, None, None)
        boxes_only = {name: value for name, value in state.items() if "mask" not in name}
        config, weights = convert_torchvision(boxes_only, class_names=CLASSES)
        assert config.architecture == "faster_rcnn"
        assert not any("mask" in name for name in weights)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"]
    )
    def test_the_body_is_told_by_its_blocks(self, name: str) -> None:
        with torch.device("meta"):
            shapes = narrow_model(nn.BatchNorm2d, body=name).state_dict()
        weights = {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}
        assert convert_torchvision(weights, class_names=CLASSES)[0].backbone.name == name

    def test_the_eps_is_told_by_old_names_by_trained_statistics_or_by_whoever_knows(
        self, small: tuple[MaskRCNN, Architecture], state
    ) -> None:
        new = small[0].state_dict()
        narrow_model(FrozenBatchNorm2d).load_state_dict(state)  # torchvision, too, reads the old names
        old_config, old_weights = convert_torchvision(state, class_names=CLASSES)
        config, weights = convert_torchvision(new, class_names=CLASSES, norm_eps=0.0)
        assert old_config == config
        assert set(old_weights) == set(weights)
        assert all(old_weights[name].equal(value) for name, value in weights.items())
        trained = convert_torchvision(narrow_model(nn.BatchNorm2d).state_dict(), class_names=CLASSES)[0].backbone
        backbone = config.backbone
        assert (backbone.norm, backbone.norm_eps, trained.norm, trained.norm_eps) == ("frozen_bn", 0.0, "bn", 1e-5)
        with pytest.raises(ValueError, match=r"do not tell the eps .* give norm_eps: 0\.0 if .* 1e-5 if"):
            convert_torchvision(new, class_names=CLASSES)
        for given in (new, state):
            assert convert_torchvision(given, class_names=CLASSES, norm_eps=1e-5)[0].backbone.norm_eps == 1e-5


@pytest.fixture(scope="module")
def ninety() -> dict[str, Tensor]:
    """A state with COCO's 91 rows."""
    return narrow_model(nn.BatchNorm2d, num_classes=90).state_dict()


class TestRows:
    """Rows of the layers with one per class."""

    def test_background_comes_last_and_has_no_box_and_no_mask(self, state) -> None:
        _, weights = convert_torchvision(state, class_names=CLASSES)
        for kind in ("weight", "bias"):
            logits = state[f"roi_heads.box_predictor.cls_score.{kind}"]
            assert weights[f"box_stage.predictor.classes.{kind}"].equal(torch.cat([logits[1:], logits[:1]]))
            deltas = state[f"roi_heads.box_predictor.bbox_pred.{kind}"]
            assert weights[f"box_stage.predictor.deltas.{kind}"].equal(deltas[4:])
            masks = state[f"roi_heads.mask_predictor.mask_fcn_logits.{kind}"]
            assert weights[f"mask_stage.head.masks.{kind}"].equal(masks[1:])

    def test_rows_of_unused_category_ids_are_dropped(self, ninety) -> None:
        assert load_card("coco2017").classes == COCO_NAMES
        config, weights = convert_torchvision(ninety, class_names=COCO_NAMES)
        logits, deltas = (ninety[f"roi_heads.box_predictor.{name}.bias"] for name in ("cls_score", "bbox_pred"))
        masks = ninety["roi_heads.mask_predictor.mask_fcn_logits.weight"]
        for name, category_id in (("person", 1), ("stop sign", 13), ("toothbrush", 90)):
            row = COCO_NAMES.index(name)
            assert weights["box_stage.predictor.classes.bias"][row] == logits[category_id]
            ours = weights["box_stage.predictor.deltas.bias"][4 * row : 4 * row + 4]
            assert ours.equal(deltas[4 * category_id : 4 * category_id + 4])
            assert weights["mask_stage.head.masks.weight"][row].equal(masks[category_id])
        assert weights["box_stage.predictor.classes.bias"][-1] == logits[0]
        build_detector(config, 80, pretrained=False).load_state_dict(weights)
        # Names of the used categories may come in any order, and one may have ninety of one's own.
        _, turned = convert_torchvision(ninety, class_names=COCO_NAMES[::-1])
        assert turned["box_stage.predictor.classes.bias"][0] == logits[90]
        _, own = convert_torchvision(ninety, class_names=[f"class {number}" for number in range(90)])
        assert len(own["box_stage.predictor.classes.weight"]) == 91

    def test_the_other_scores_take_what_the_dropped_rows_held(self) -> None:
        theirs = randomise(narrow_model(nn.BatchNorm2d, num_classes=90))
        ours = converted(theirs.state_dict(), COCO_NAMES)
        unused = [row for row, name in enumerate(COCO_ROWS) if name == "N/A"]
        theirs.get_parameter("roi_heads.box_predictor.cls_score.bias").data[unused] = -torch.inf
        image = noise((96, 128), seed=0)
        with torch.no_grad():
            (found,) = ours(ImageBatch.from_images([image]))
        (expected,) = detect(theirs, [image])
        ids = torch.tensor([COCO_ROWS.index(name) for name in COCO_NAMES])
        assert len(expected["scores"]) >= 10
        assert_same(expected, in_order(replace(found, labels=ids[found.labels] - 1), expected))


def test_the_file_is_a_run_and_starts_a_detector_of_other_classes(state, tmp_path) -> None:
    config, weights = convert_torchvision(state, class_names=CLASSES)
    write_converted(tmp_path / "run", config, CLASSES, weights)
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.config == config == load_config(DetectionConfig, tmp_path / "run" / "config.yaml")
    detector = build_detector(config, len(CLASSES), pretrained=False)
    load_detector_weights(detector, checkpoint, CLASSES)
    assert all(detector.state_dict()[name].equal(value) for name, value in weights.items())
    detector = build_detector(config, 2, pretrained=False)
    assert load_initial_weights(detector, checkpoint, ("yak", "dog"), {}).classes == ("dog",)
    for layer in ("box_stage.predictor.classes.bias", "mask_stage.head.masks.weight"):
        assert detector.state_dict()[layer][1].equal(weights[layer][1])


def assert_same_detections_of_both(first: FasterRCNN, second: FasterRCNN, images: Sequence[Tensor]) -> None:
    for expected, found in zip(detect(first, images), detect(second, images), strict=True):
        assert len(expected["scores"]) >= 50, "a comparison of little"
        assert all(found[name].equal(value) for name, value in expected.items())


class TestTheWayBack:
    """From ours to torchvision."""

    def test_only_the_background_s_box_and_mask_change(self, small: tuple[MaskRCNN, Architecture]) -> None:
        state = small[0].state_dict()
        config, weights = convert_torchvision(state, class_names=CLASSES, norm_eps=0.0)
        back, code = to_torchvision(config, CLASSES, weights)
        assert set(back) == set(state)
        unread = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1}
        for name, value in state.items():
            rows = unread.get(name.rpartition(".")[0], 0)
            assert back[name][rows:].equal(value[rows:]), name
            assert not back[name][:rows].any()
        assert code.splitlines() == [
            "model = maskrcnn_resnet18_fpn(weights=None, weights_backbone=None, num_classes=6)",
            "for layer in model.backbone.body.modules(): layer.eps = 0.0",
        ]
        again, same = convert_torchvision(back, class_names=CLASSES, norm_eps=0.0)
        assert again == config
        assert all(same[name].equal(value) for name, value in weights.items())

    def test_torchvision_s_model_finds_the_same(self, small: tuple[MaskRCNN, Architecture]) -> None:
        theirs = small[0]
        back, _ = to_torchvision(*_as_run(theirs.state_dict(), norm_eps=0.0))
        loaded = narrow_model(lambda channels: FrozenBatchNorm2d(channels, eps=0.0)).eval()
        loaded.load_state_dict(back)
        assert_same_detections_of_both(theirs, loaded, [noise((128, 160), seed=0)])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "builder",
        [fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2, keypointrcnn_resnet50_fpn],
        ids=lambda builder: builder.__name__,
    )
    def test_torchvision_s_builder_takes_it(self, builder) -> None:
        theirs = randomise(build(builder, **FEW))
        back, code = to_torchvision(*_as_run(theirs.state_dict()))
        assert code.startswith(f"model = {builder.__name__}(weights=None, weights_backbone=None, num_classes=6")
        loaded = build(builder, **FEW).eval()
        loaded.load_state_dict(back)
        assert_same_detections_of_both(theirs, loaded, [noise((96, 128), seed=0)])

    def test_a_frozen_stage_gets_its_counters_back_and_what_the_builder_takes_is_said(self) -> None:
        state = narrow_model(nn.BatchNorm2d).state_dict()
        config, names, weights = _as_run(state)
        fixed = replace(config, backbone=replace(config.backbone, fix_statistics=True))
        detector = build_detector(fixed, len(names), pretrained=False)
        detector.load_state_dict(weights, strict=False)
        assert "backbone.body.bn1.num_batches_tracked" not in detector.state_dict()
        assert set(to_torchvision(fixed, names, detector.state_dict())[0]) == set(state)
        test, rpn = replace(config.test, nms_iou=0.3), replace(config.rpn, post_nms_test=300, min_size=0.0)
        _, code = to_torchvision(replace(config, test=test, rpn=rpn), names, weights)
        assert "num_classes=6, rpn_post_nms_top_n_test=300, box_nms_thresh=0.3)" in code
        assert "model.rpn.min_size = 0.0" in code
        for section, key, value, message in (
            ("anchors", "offset", 0.5, r"anchors\.offset is 0\.5, torch"),
            ("box", "pool", "roi_align", r"box\.pool is 'roi_align', torch"),
            ("test", "vote_iou", 0.5, r"test\.vote_iou is 0\.5"),
            ("box", "head_fcs", 3, r"box\.head_fcs 3 .* can't go"),
        ):
            changed = replace(config, **{section: replace(getattr(config, section), **{key: value})})
            with pytest.raises(ValueError, match=message):
                to_torchvision(changed, names, weights)


def _as_run(
    state: Mapping[str, Tensor], *, norm_eps: float | None = None
) -> tuple[DetectionConfig, tuple[str, ...], dict[str, Tensor]]:
    config, weights = convert_torchvision(state, class_names=CLASSES, norm_eps=norm_eps)
    return config, CLASSES, weights


class TestFineTuning:
    """A training step with batch normalisation in training mode, which torchvision's fixed stages stay in."""

    def test_losses_and_statistics_are_torchvision_s(self) -> None:
        theirs = randomise(narrow_model(nn.BatchNorm2d))
        for name in ("conv1", "bn1", "layer1"):
            theirs.get_submodule(f"backbone.body.{name}").requires_grad_(False)
        ours = converted(theirs.state_dict()).train()
        images, targets = (
            [noise((128, 160), seed=n) for n in range(2)],
            [make_target((128, 160), seed=n) for n in range(2)],
        )
        before = theirs.state_dict()["backbone.body.layer1.0.bn1.running_mean"].clone()
        with same_draws(theirs, ours, targets):
            expected = their_losses(theirs, images, targets, fixed=False)
            found = ours(ImageBatch.from_images(images, seeds=SEEDS), targets)
        for name, loss in found.items():
            torch.testing.assert_close(loss, expected[LOSSES[name]], rtol=0, atol=2e-7, check_dtype=False)
        for layer in ("bn1", "layer1.0.bn1", "layer2.0.bn1"):
            name = f"backbone.body.{layer}.running_mean"
            torch.testing.assert_close(ours.state_dict()[name], theirs.state_dict()[name], rtol=0, atol=1e-9)
        assert not theirs.state_dict()["backbone.body.layer1.0.bn1.running_mean"].equal(before)
        for name, parameter in ours.named_parameters():
            assert parameter.requires_grad == theirs_trains(theirs, name), name

    def test_statistics_are_fixed_where_the_config_says_so(self) -> None:
        config, names, weights = _as_run(narrow_model(nn.BatchNorm2d).state_dict())
        fixed = replace(config, backbone=replace(config.backbone, fix_statistics=True))
        detector = build_detector(fixed, len(names), pretrained=False)
        detector.load_state_dict(weights, strict=False)
        detector.train()(ImageBatch.from_images([noise((128, 160), seed=0)]), [make_target((128, 160), seed=0)])
        assert not detector.state_dict()["backbone.body.layer1.0.bn1.running_mean"].any()
        assert detector.state_dict()["backbone.body.layer2.0.bn1.running_mean"].any()


def theirs_trains(model: nn.Module, name: str) -> bool:
    """Whether torchvision's parameter of our ``name`` is trained; only those of the body differ in anything."""
    return not name.startswith("backbone.body.") or model.get_parameter(name).requires_grad


class TestRefusals:
    """Each says what was found and what would do."""

    def test_other_classes(self, state, ninety) -> None:
        with pytest.raises(
            ValueError, match=r"know 5 classes besides the background, class_names has 2: give 5 names$"
        ):
            convert_torchvision(state, class_names=("cat", "dog"))
        with pytest.raises(ValueError, match=r"give 90 names, or COCO's 80 by their names in datasets/coco2017\.yaml"):
            convert_torchvision(ninety, class_names=[*COCO_NAMES[:-1], "tooth brush"])

    def test_other_detectors(self) -> None:
        state = {"backbone.body.conv1.weight": torch.zeros(1), "head.x.weight": torch.zeros(1)}
        with pytest.raises(ValueError, match=r"no weights of .*fasterrcnn.* nothing in them becomes rpn\.head\.conv"):
            convert_torchvision(state, class_names=CLASSES)
        for builder, name in ((ssd300_vgg16, "SSD"), (fasterrcnn_mobilenet_v3_large_fpn, "a detector over MobileNet")):
            with torch.device("meta"):
                state = builder(weights=None, weights_backbone=None).state_dict()
            with pytest.raises(ValueError, match=rf"torchvision's weights of {name} \("):
                convert_torchvision(state, class_names=CLASSES)

    @pytest.mark.parametrize(
        ("without", "changed", "message"),
        [
            ("-", {"roi_heads.x.weight": (1,)}, r"(?s)do not fit FasterRCNN.*unused: 1: roi_heads\.x"),
            (
                r"(bbox_pred|cls_score)\.bias",
                {},
                r"missing: \d: rpn\.head\.deltas\.bias, box_stage\.predictor\.classes",
            ),
            (
                "-",
                {"roi_heads.box_predictor.bbox_pred.weight": (4, 128)},
                r"weight has 4 rows, .* 4 for each of 6 classes",
            ),
            ("-", {"backbone.body.layer1.0.conv1.weight": (128, 64, 3, 3)}, r"\(module .*\(128, 64, 3, 3\)"),
            ("layer3.1", {}, r"stages of \(2, 2, 1, 2\) basic blocks, expected .*resnet18 \(2, 2, 2, 2\)"),
        ],
        ids=["unused", "missing", "one_box", "shapes", "blocks"],
    )
    def test_layers_that_are_missing_unused_or_of_other_shapes(
        self, state, without: str, changed: dict[str, tuple[int, ...]], message: str
    ) -> None:
        own = {name: value for name, value in state.items() if not re.search(without, name)}
        with pytest.raises(ValueError, match=message):
            convert_torchvision(own | {name: torch.zeros(s) for name, s in changed.items()}, class_names=CLASSES)
