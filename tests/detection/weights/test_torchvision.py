"""Mirrors torchvision.py and torchvision_one_stage.py: numbers of narrow models of torchvision and of ours from them.

Both run in float64.  In float32 they round differently, and a rounding that moves an IoU over a threshold changes a
detection.  Layouts and settings are in test_torchvision_layouts.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import detection as theirs_of
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from detection.boxes import not_empty
from detection.build import build_detector
from detection.data.images import read_image
from detection.model.architecture import Architecture
from detection.model.box_stage import OBJECTS, REGIONS
from detection.model.faster_rcnn import FasterRCNN
from detection.model.one_stage import OneStage
from detection.model.rpn import ANCHORS, places
from detection.model.select import hash32
from detection.structures import Detections, ImageBatch, Target
from detection.weights.to_torchvision import to_torchvision
from detection.weights.torchvision import COCO_ROWS, convert_torchvision

pytestmark = pytest.mark.usefixtures("module_in_double_precision")
CLASSES = ("cat", "dog", "cow", "bus", "cup")
COCO_NAMES = tuple(name for name in COCO_ROWS[1:] if name != "N/A")
Pair = tuple[Any, Architecture]
KEYPOINTS = 17  # of torchvision's builder
SEEDS = (3, 4)  # of the draws in two images
LOSSES = {"rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "box_class": "loss_classifier"}
LOSSES |= {"box_regression": "loss_box_reg", "mask": "loss_mask", "keypoint": "loss_keypoint"}
LOSSES |= {"class": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
# Standard deviation of the outputs of a random model, 1 where nothing is said: scores differ and do not saturate, and
# boxes stay near.
SPREAD = {"rpn.head.cls_logits": 1.5, "rpn.head.bbox_pred": 0.2, "roi_heads.box_predictor.cls_score": 2.0}
SPREAD |= {"roi_heads.mask_predictor.mask_fcn_logits": 2.0, "head.classification_head.cls_logits": 1.5}
SPREAD |= {"head.regression_head.bbox_reg": 0.3, "head.regression_head.bbox_ctrness": 1.5}


class Untouched(GeneralizedRCNNTransform):
    """Normalises and pads, but leaves the pixels of images and boxes, and the 28x28 masks, as they are."""

    def resize(self, image: Tensor, target: Any = None) -> Any:
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


@pytest.fixture(scope="module")
def make_both(module_in_double_precision, narrow):
    """A narrow model of torchvision with random weights, and ours with them."""

    def make(kind: str, *, norm_eps: float | None = None, **options: Any) -> tuple[nn.Module, Architecture]:
        theirs = randomise(narrow(kind, **options))
        return theirs, converted(theirs.state_dict(), norm_eps=norm_eps)

    return make


@pytest.fixture(scope="module")
def mask_rcnn(make_both):
    """A Mask R-CNN with fixed statistics and an eps of 0, as the published v1 files."""
    return make_both("mask_rcnn", norm=lambda channels: FrozenBatchNorm2d(channels, eps=0.0), norm_eps=0.0)


@pytest.fixture(scope="module", params=["mask_rcnn", "retinanet", "retinanet_v2", "fcos"])
def both(request, make_both):
    return request.getfixturevalue("mask_rcnn") if request.param == "mask_rcnn" else make_both(request.param)


def build(builder: Callable[..., nn.Module], few: Mapping[str, int]) -> nn.Module:
    torch.manual_seed(0)
    own = few if "rcnn" in builder.__name__ else {}
    return randomise(builder(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, **own))


def randomise(model: Any) -> Any:
    """``model`` in eval mode, its statistics random, its weights such that every channel's outputs spread by SPREAD."""
    generator, handles = torch.Generator().manual_seed(0), []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            named = layer.state_dict()
            named["running_mean"].normal_(0, 0.2, generator=generator)
            named["running_var"].uniform_(0.5, 1.5, generator=generator)
            named["running_var"][::8] = 1e-3  # small enough for eps to matter
            named["weight"].uniform_(0.5, 1.5, generator=generator)
            named["bias"].normal_(0, 0.2, generator=generator)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)) and "extra_blocks" not in name:  # whose maps have a cell or four
            handles.append(layer.register_forward_hook(scale_once(SPREAD.get(name, 1.0))))
    transform = model.transform
    model.transform = Untouched(800, 1333, transform.image_mean, transform.image_std)
    detect(model.eval(), [noise((96, 128), seed=0)])
    for handle in handles:
        handle.remove()
    if hasattr(model, "head"):
        bias = model.head.get_parameter("classification_head.cls_logits.bias")
        bias.data.view(-1, len(CLASSES) + 1)[:, 0] = -1000  # row 0, which no object trains
    if isinstance(model, theirs_of.FCOS):
        model.head.get_parameter("regression_head.bbox_reg.bias").data.fill_(1.0)  # few sides are cut at 0
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


def converted(state: Mapping[str, Tensor], names: Sequence[str] = CLASSES, norm_eps: float | None = None) -> Any:
    """Our detector with the weights ``state``, and with the regions of ``few`` if it has any."""
    config, weights = convert_torchvision(state, class_names=names, norm_eps=norm_eps)
    if "rpn.head.cls_logits.weight" in state:
        rpn, test = replace(config.rpn, post_nms_train=60, post_nms_test=150), replace(config.test, max_detections=60)
        config = replace(config, rpn=rpn, test=test, box=replace(config.box, samples_per_image=32))
    detector = build_detector(config, len(names), pretrained=False)
    detector.load_state_dict(weights, strict=False)  # only step counters may differ: convert_torchvision has checked
    return detector.eval()


def noise(size: tuple[int, int], *, seed: int) -> Tensor:
    """A picture (3, H, W) uint8 of coloured blobs and grain."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(1, 3, 10, 10, generator=generator) * 255
    picture = functional.interpolate(blobs, size=size, mode="bicubic")[0]
    return (picture + 10 * torch.randn(3, *size, generator=generator)).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def detect(model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    return model([image / 255 for image in images])


@torch.no_grad()
def assert_same_detections(theirs: nn.Module, ours: Architecture, images: Sequence[Tensor]) -> None:
    """But for boxes without an area, as of anchors in the padding, which torchvision keeps and ours drops."""
    for all_found, own in zip(detect(theirs, images), ours(ImageBatch.from_images(images)), strict=True):
        filled = not_empty(all_found["boxes"])
        expected = {name: value[filled] for name, value in all_found.items()}
        assert len(expected["scores"]) >= 50, "a comparison of little"
        assert len(expected["labels"].unique()) > 1
        assert_same(expected, in_order(own if filled.all() else own[: int(filled.sum())], expected))


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


def objects_in(size: tuple[int, int], *, seed: int, count: int = 4) -> Target:
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
    keypoints, ignore = torch.cat([places, visible], dim=2).float(), torch.zeros(count, dtype=torch.bool)
    return Target(boxes.float(), labels, ignore, masks=masks, keypoints=keypoints)


def their_losses(model: Any, images: Sequence[Tensor], targets: Sequence[Target], *, fixed: bool = True) -> Any:
    """In training mode, but for batch normalisation unless it is not ``fixed``."""
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and fixed:
            layer.eval()
    given = [{"boxes": t.boxes.double(), "labels": t.labels + 1, "keypoints": t.keypoints} for t in targets]
    for target, own in zip(targets, given, strict=True):
        own["masks"] = None if target.masks is None else target.masks.byte()
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
        pairs = zip(SEEDS, own_places, strict=False)
        self.numbers = [hash32(torch.tensor([seed]), own, stream)[0] for seed, own in pairs]

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
def same_draws(theirs: Any, ours: Architecture, targets: Sequence[Target]) -> Iterator[None]:
    """Lets both train on the same anchors and regions of images of 128 x 160.

    torchvision decides which anchors are the best of an object by exact equality; ours has to as well, instead of by
    ``TIE``.
    """
    assert isinstance(ours, FasterRCNN)
    levels = [(-(-128 // stride), -(-160 // stride)) for stride in (4, 8, 16, 32, 64)]
    anchors = places(ours.rpn._anchors([torch.zeros(1, 1, *size) for size in levels], (128, 160)))
    regions = [torch.cat([torch.arange(60), OBJECTS + torch.arange(len(target))]) for target in targets]
    rpn, heads = theirs.rpn, theirs.roi_heads
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rpn, "fg_bg_sampler", Hashed(rpn.fg_bg_sampler, [anchors] * len(targets), ANCHORS))
        patch.setattr(heads, "fg_bg_sampler", Hashed(heads.fg_bg_sampler, regions, REGIONS))
        patch.setattr("detection.model.matcher.TIE", 1.0)
        yield


def assert_same_losses(theirs: Any, ours: Architecture, counts: Sequence[int]) -> None:
    """Losses of images with so many objects, and the gradients of their sum at the ends of the trunk and of the RPN.

    The sizes are multiples of 32: torchvision would train on anchors in the padding, ours does not.
    """
    dense = isinstance(ours, OneStage)
    # torchvision's objectness loss is in float32; at a ReLU's kink, rounding decides whether an element has a gradient.
    least, rtol, atol, of_gradient = (1e-2, 1e-6, 0.0, 1e-6) if dense else (1e-3, 0.0, 2e-7, 1e-3)
    images = [noise((128, 160), seed=number) for number in range(len(counts))]
    targets = [objects_in((128, 160), seed=number, count=count) for number, count in enumerate(counts)]
    with nullcontext() if dense else same_draws(theirs, ours, targets):
        expected = their_losses(theirs, images, targets)
        found = ours(ImageBatch.from_images(images, seeds=() if dense else SEEDS[: len(images)]), targets)
    assert {LOSSES[name] for name in found} == set(expected)
    for name, loss in found.items():
        assert loss > least, name
        torch.testing.assert_close(loss, expected[LOSSES[name]], rtol=rtol, atol=atol, check_dtype=False)
    for losses in (expected, found):
        sum(losses.values(), start=torch.zeros(())).backward()
    ends = [("backbone.body.layer4.0.conv1.weight",) * 2, ("backbone.body.layer3.0.conv1.weight",) * 2]
    for ours_name, name in ends if dense else [ends[0], ("rpn.head.conv.weight", "rpn.head.conv.0.0.weight")]:
        wanted: Any = theirs.get_parameter(name).grad
        got: Any = ours.get_parameter(ours_name).grad
        assert (got - wanted).norm() <= of_gradient * wanted.norm(), name
    for model in (theirs, ours):
        model.zero_grad(set_to_none=True)


def test_detections_of_noise_are_torchvisions(both: Pair) -> None:
    for sizes in ([(128, 160)], [(107, 151)], [(128, 160), (163, 99), (107, 151)]):
        assert_same_detections(*both, [noise(size, seed=number) for number, size in enumerate(sizes)])


@pytest.mark.slow
@pytest.mark.data
def test_detections_of_ten_photographs_are_torchvisions(mask_rcnn: Pair, data_root_for_tests) -> None:
    paths = sorted((data_root_for_tests / "coco128" / "val2017").glob("*.jpg"))[:10]
    images = [shrunk(path) for path in paths]
    assert len(images) == 10
    for batch in (images[:3], images[3:6], images[6:9], images[9:]):
        assert_same_detections(*mask_rcnn, batch)


def shrunk(path: Path) -> Tensor:
    """The picture at ``path`` as (3, H, W) uint8, its shorter side 128 pixels."""
    image = torch.tensor(read_image(path)).permute(2, 0, 1)[None]
    scale = 128 / min(image.shape[-2:])
    size = [round(side * scale) for side in image.shape[-2:]]
    return functional.interpolate(image.double(), size=size, mode="bilinear", antialias=True)[0].to(torch.uint8)


def test_losses_and_gradients_are_torchvisions_also_where_an_image_has_no_objects(both) -> None:
    theirs, ours = both
    for counts in ([4, 0, 6],) if isinstance(ours, OneStage) else ([4, 4], [4, 0]):
        assert_same_losses(theirs, ours, counts)


BUILDERS = ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn"]
BUILDERS += ["maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"]
BUILDERS += ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder_gives_the_same_and_takes_its_weights_back(name: str, few) -> None:
    builder = getattr(theirs_of, name)
    theirs = build(builder, few)
    assert_same_detections(theirs, converted(theirs.state_dict()), [noise((96, 128), seed=0)])
    back, code = to_torchvision(*as_run(theirs.state_dict()))
    assert code.startswith(f"model = {name}(weights=None, weights_backbone=None, num_classes=6")
    assert_same_after(theirs, back, noise((96, 128), seed=0))


@pytest.mark.slow
def test_losses_of_the_second_version_and_all_of_keypoints_are_torchvisions(make_both, few) -> None:
    theirs = build(theirs_of.maskrcnn_resnet50_fpn_v2, few)
    assert_same_losses(theirs, converted(theirs.state_dict()), [4])
    theirs, ours = make_both("keypoint_rcnn", norm=FrozenBatchNorm2d, norm_eps=1e-5)
    assert_same_detections(theirs, ours, [noise((128, 160), seed=0), noise((107, 151), seed=1)])
    assert_same_losses(theirs, ours, [4, 4])


def as_run(state: Mapping[str, Tensor], norm_eps: float | None = None) -> Any:
    config, weights = convert_torchvision(state, class_names=CLASSES, norm_eps=norm_eps)
    return config, CLASSES, weights


def assert_same_after(model: nn.Module, back: Mapping[str, Tensor], image: Tensor) -> None:
    """torchvision's ``model`` finds the same with its own weights and with those of the way back."""
    before, (expected,) = {n: v.clone() for n, v in model.state_dict().items()}, detect(model, [image])
    assert len(expected["scores"]) >= 50, "a comparison of little"
    model.load_state_dict(back)
    (found,) = detect(model, [image])
    model.load_state_dict(before)
    assert all(found[name].equal(value) for name, value in expected.items())


def test_torchvision_s_model_finds_the_same_with_the_weights_of_the_way_back(both) -> None:
    theirs, _ = both
    config, names, weights = as_run(theirs.state_dict(), 0.0 if isinstance(theirs, theirs_of.MaskRCNN) else None)
    back, code = to_torchvision(config, names, weights)
    kind = "_v2" if config.dense.loss == "giou" else ""
    name = f"{config.architecture.replace('_', '')}_resnet18_fpn{kind}"
    assert code.startswith(f"model = {name}(weights=None, weights_backbone=None, ")
    assert_same_after(theirs, back, noise((128, 160), seed=1))


def test_the_other_scores_take_what_the_rows_of_unused_categories_held(narrow) -> None:
    theirs = randomise(narrow("mask_rcnn", num_classes=90))
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


def test_losses_and_statistics_of_fine_tuning_are_torchvision_s(narrow) -> None:
    """A step with batch normalisation in training mode, which torchvision's fixed stages stay in."""
    theirs = randomise(narrow("mask_rcnn"))
    for name in ("conv1", "bn1", "layer1"):
        theirs.get_submodule(f"backbone.body.{name}").requires_grad_(False)
    ours = converted(theirs.state_dict()).train()
    images = [noise((128, 160), seed=number) for number in range(2)]
    targets = [objects_in((128, 160), seed=number) for number in range(2)]
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
    for name, parameter in ours.named_parameters():  # only those of the body differ in what is trained
        trained = not name.startswith("backbone.body.") or theirs.get_parameter(name).requires_grad
        assert parameter.requires_grad == trained, name


def test_statistics_are_fixed_where_the_config_says_so(narrow, changed) -> None:
    config, names, weights = as_run(narrow("mask_rcnn").state_dict())
    detector = build_detector(changed(config, "backbone.fix_statistics=true"), len(names), pretrained=False)
    detector.load_state_dict(weights, strict=False)
    detector.train()(ImageBatch.from_images([noise((128, 160), seed=0)]), [objects_in((128, 160), seed=0)])
    assert not detector.state_dict()["backbone.body.layer1.0.bn1.running_mean"].any()
    assert detector.state_dict()["backbone.body.layer2.0.bn1.running_mean"].any()
