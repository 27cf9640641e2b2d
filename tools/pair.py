"""Our detectors and torchvision's with the same weights and inputs.

Built from explicit arguments, so that only torch, torchvision and numpy are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN as TheirFasterRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from backbones.fpn import FPN
from backbones.resnet import ResNet
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.box_heads import FCHead
from detection.model.box_stage import BoxPredictor, BoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.postprocess import Postprocessor
from detection.model.rpn import RPN, ProposalFilter, RPNHead
from detection.model.sampler import BalancedSampler
from detection.padded import Targets
from detection.structures import ImageBatch, Target
from detection.weights.torchvision_names import our_name, reorder_classes

__all__ = ["NUM_CLASSES", "Call", "Way", "calls", "calm", "make_images", "make_pair", "make_theirs", "take_images_of"]

NUM_CLASSES = 80
Call = Callable[[], Any]
Way = Literal["test", "step"]
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)


def make_pair(device: torch.device, *, masks: bool = False, depth: int = 50) -> tuple[TheirFasterRCNN, FasterRCNN]:
    """Returns torchvision's detector with a feature pyramid, in its ImageNet form but with random weights, and ours.

    Args:
        device: device of both detectors.
        masks: Mask R-CNN instead of Faster R-CNN.
        depth: depth of the ResNet.
    """
    theirs = make_theirs(depth, masks=masks)
    ours = _make_ours(depth, masks=masks)
    state = {our_name(name): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state | reorder_classes(state, range(1, NUM_CLASSES + 1)))
    counts = [sum(p.requires_grad for p in model.parameters()) for model in (theirs, ours)]
    assert counts[0] == counts[1], f"both must train the same layers, got {counts} tensors"
    return theirs.to(device), ours.to(device).to(memory_format=torch.channels_last)


def make_theirs(depth: int, *, masks: bool, **options: Any) -> TheirFasterRCNN:
    """Returns torchvision's detector with random weights that find something."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    builder = TheirMaskRCNN if masks else TheirFasterRCNN
    theirs = builder(body, NUM_CLASSES + 1, _skip_resize=True, **options)
    calm(theirs)
    return theirs


def _make_ours(depth: int, *, masks: bool) -> FasterRCNN:
    """Returns our detector with torchvision's settings, read from the default arguments of torchvision."""
    backbone = FPN(ResNet(depth, out_features=("c2", "c3", "c4", "c5"), freeze_at=2))
    strides = [spec.stride for spec in backbone.specs.values()]
    anchors = [
        AnchorGenerator(stride, sizes=(size,), ratios=(0.5, 1.0, 2.0), offset=0.0, rounded=True)
        for stride, size in zip(strides, SIZES, strict=True)
    ]
    rpn = RPN(
        anchors,
        RPNHead(256, channels=256, num_anchors=3),
        matcher=Matcher(0.7, 0.3, match_best=True),
        sampler=BalancedSampler(256, 0.5),
        train_filter=ProposalFilter(pre_nms=2000, post_nms=2000, nms_iou=0.7, min_size=1e-3),
        test_filter=ProposalFilter(pre_nms=1000, post_nms=1000, nms_iou=0.7, min_size=1e-3),
        allow_outside=True,
    )
    box_stage = BoxStage(
        _pooler(strides, 7),
        FCHead(256, 7),
        BoxPredictor(1024, num_classes=NUM_CLASSES),
        matcher=Matcher(0.5, 0.5),
        sampler=BalancedSampler(512, 0.25),
        coder=BoxCoder((10.0, 10.0, 5.0, 5.0)),
        smooth_l1_beta=1 / 9,
    )
    mask_stage = MaskStage(_pooler(strides, 14), MaskHead(256, num_classes=NUM_CLASSES), geometry="torchvision")
    return FasterRCNN(
        backbone,
        rpn,
        box_stage,
        postprocess=Postprocessor(score_threshold=0.05, nms_iou=0.5, max_detections=100),
        mask_stage=mask_stage if masks else None,
    )


def _pooler(strides: Sequence[int], size: int) -> RegionPooler:
    return RegionPooler(strides[:-1], size, kind="roi_align_unaligned", sampling_ratio=2)


def calls(
    way: Way, theirs: TheirFasterRCNN, ours: Mapping[str, nn.Module], *, side: int, images: int, device: torch.device
) -> dict[str, Call]:
    """Returns functions that run each detector once: torchvision's by the name "torchvision", ``ours`` by their names.

    Args:
        way: "test" finds objects, "step" is forward, losses, backward and SGD.
        theirs: on ``device``; set to the mode that ``way`` needs, as are all.
        ours: our detectors by name.
        side: shorter side of the images, pixels.
        images: images per call, on the CPU before the call.
        device: device of all detectors.
    """
    pixels, targets = make_images(side, images)
    take_images_of(theirs, side)
    for model in (theirs, *ours.values()):
        model.train(way == "step")
    wanted = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks} for t in targets]
    wanted = [{name: value.to(device) for name, value in row.items() if value is not None} for row in wanted]
    padded = Targets.pad(targets).to(device)

    def run(model: nn.Module, given: Callable[[], Any], targets: Any) -> None:
        if way == "test":
            with torch.inference_mode():
                model(given())
            return
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.0)
        torch.stack(list(model(given(), targets).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def for_theirs() -> list[Tensor]:
        return [image.to(device).float() / 255 for image in pixels]

    def for_ours() -> ImageBatch:
        return ImageBatch.from_images(pixels, seeds=range(images)).to(device)

    found: dict[str, Call] = {"torchvision": partial(run, theirs, for_theirs, wanted)}
    return found | {name: partial(run, model, for_ours, padded) for name, model in ours.items()}


def take_images_of(theirs: TheirFasterRCNN, side: int) -> None:
    """Makes torchvision's detector test images of this side without resizing; its _skip_resize is for training."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    theirs.transform = GeneralizedRCNNTransform(side, 2 * side, mean, std, _skip_resize=True)


def calm(model: nn.Module, spread: float = 1.0) -> None:
    """Scales random weights so that features stay finite and scores pass the threshold.

    ``spread`` is the standard deviation of the class layer's weights.
    """
    for name, values in model.named_buffers():
        if name.endswith("bn3.weight"):
            values.fill_(0.2)  # otherwise random residual branches of bottlenecks sum to infinity
    for name, parameter in model.named_parameters():
        if name.endswith(("box_predictor.cls_score.weight", "predictor.classes.weight", "head.classes.weight")):
            nn.init.normal_(parameter, std=spread)


def make_images(side: int, count: int) -> tuple[list[Tensor], list[Target]]:
    """Returns smooth random images (3, H, W) uint8 of 3:4 with ten objects of 17 keypoints on one kind of stuff."""
    generator = torch.Generator().manual_seed(side)
    size = side, side * 4 // 3
    coarse = 255 * torch.rand(count, 3, size[0] // 16, size[1] // 16, generator=generator)
    images = nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    targets: list[Target] = []
    for _ in range(count):
        corners = torch.rand(10, 2, generator=generator) * torch.tensor([size[1] * 0.6, size[0] * 0.6])
        sides = (0.1 + 0.3 * torch.rand(10, 2, generator=generator)) * side
        boxes = torch.cat([corners, corners + sides], dim=1)
        labels = torch.randint(NUM_CLASSES, (10,), generator=generator)
        masks = torch.zeros(10, *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        places = boxes[:, None, :2] + torch.rand(10, 17, 2, generator=generator) * sides[:, None]
        keypoints = torch.cat([places, torch.full((10, 17, 1), 2.0)], dim=2)
        stuff = torch.full(size, NUM_CLASSES, dtype=torch.uint8)
        label_map = stuff.where(~masks.any(dim=0), 0)
        targets.append(Target(boxes, labels, torch.zeros(10, dtype=torch.bool), masks, keypoints, label_map))
    return list(images), targets
