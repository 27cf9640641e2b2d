"""Detectron2's Faster, Mask and Cascade R-CNN over a ResNet (C4, DC5 and FPN) -> our config and our names.

Names and shapes tell the architecture, which ResNet it is and the number of classes. What they do not tell is as in the
files of Detectron2's model zoo, unless settings say otherwise.

Source: Detectron2, detectron2/config/defaults.py and configs/Base-RCNN-{C4,DilatedC5,FPN}.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.resnet import DEPTHS, Bottleneck
from backbones.weights.load import SOURCES, load_matching
from detection.build import build_detector
from detection.config.detection import AnchorConfig, DetectionConfig
from detection.config.load import build_dataclass
from detection.model.anchors import AnchorGenerator

__all__ = ["convert_detectron2"]

Architecture = Literal["c4", "dc5", "fpn"]

# All are applied to a name, in this order.
RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone\.bottom_up\.", "backbone.body."),
    (r"^backbone\.fpn_(lateral|output)(\d)\.", r"backbone.\1.c\2.0."),
    (r"^roi_heads\.res5\.", "box_stage.head.layer4."),
    (r"\.stem\.conv1\.norm\.", ".bn1."),
    (r"\.stem\.conv1\.", ".conv1."),
    (r"^(backbone|backbone\.body)\.res(\d)\.", lambda match: f"{match[1]}.layer{int(match[2]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"^proposal_generator\.rpn_head\.", "rpn.head."),
    (r"\.objectness_logits\.", ".objectness."),
    (r"\.anchor_deltas\.", ".deltas."),
    (r"^roi_heads\.box_(head|predictor)\.(\d)\.", r"box_stage.stages.\2.\1."),
    (r"^roi_heads\.box_(head|predictor)\.", r"box_stage.\1."),
    (r"\.fc(\d)\.", lambda match: f".fcs.{2 * (int(match[1]) - 1)}."),
    (r"\.cls_score\.", ".classes."),
    (r"\.bbox_pred\.", ".deltas."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda match: f"mask_stage.head.convs.{int(match[1]) - 1}.0."),
    (r"^roi_heads\.mask_head\.deconv\.", "mask_stage.head.upsample."),
    (r"^roi_heads\.mask_head\.predictor\.", "mask_stage.head.masks."),
)

# Detectron2's setting -> the key of our config that takes its value
KEYS = {
    "MODEL.ANCHOR_GENERATOR.SIZES": "anchors.sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "anchors.ratios",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "anchors.offset",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "rpn.pre_nms_test",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "rpn.post_nms_test",
    "MODEL.RPN.NMS_THRESH": "rpn.nms_iou",
    "MODEL.RPN.SMOOTH_L1_BETA": "rpn.smooth_l1_beta",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "box.coder_weights",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": "box.smooth_l1_beta",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "box.sampling_ratio",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "box.pool_size",  # backbone.roi_size of a C4
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": "cascade.ious",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "mask.pool_size",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "test.score_threshold",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "test.nms_iou",
    "TEST.DETECTIONS_PER_IMAGE": "test.max_detections",
    "INPUT.MIN_SIZE_TEST": "data.shorter_side",
    "INPUT.MAX_SIZE_TEST": "data.longer_side",
}

# Settings with the one value that our detector has
REQUIRED: dict[str, Any] = {
    "MODEL.PIXEL_MEAN": SOURCES["msra"].input_stats.mean,
    "MODEL.PIXEL_STD": SOURCES["msra"].input_stats.std,
    "INPUT.FORMAT": "BGR",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RPN.BOUNDARY_THRESH": -1,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": tuple((10.0 * i, 10.0 * i, 5.0 * i, 5.0 * i) for i in (1, 2, 3)),
}

TOLD_BY_SHAPES = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_MASK_HEAD.NUM_CONV")

ANCHORS = "proposal_generator.anchor_generator.cell_anchors."


def convert_detectron2(
    state: Mapping[str, Tensor], *, class_names: Sequence[str], settings: Mapping[str, Any] | None = None
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """The config under which a detector gives Detectron2's numbers, and ``state`` by that detector's names.

    Detectron2's background is the last class, as ours. Older files also hold the anchors and the normalisation of the
    pixels; these must be what the config says.

    Args:
        state: the state dict of a Detectron2 detector.
        class_names: K names, in the order of the rows.
        settings: keys of Detectron2's config with their values, such as {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.6}, where
            they are not those of the model zoo.

    Raises:
        ValueError: another architecture (the names are listed), another number of classes, or a setting that our
            detector does not have.
    """
    renamed = {_our_name(name): value for name, value in state.items()}
    architecture = _architecture(state)
    predictor = _predictor(renamed)
    count = len(renamed[f"{predictor}.classes.weight"]) - 1
    if count != len(class_names):
        raise ValueError(
            f"the weights know {count} classes beside the background, class_names has {len(class_names)}: "
            f"give {count} names, in the order of the rows"
        )
    tree = _zoo_settings(renamed, architecture, depth=_depth(state))
    _apply(tree, settings or {}, architecture)
    config = build_dataclass(DetectionConfig, tree)
    converted = {name: value for name, value in renamed.items() if not _is_constant(name)}
    with torch.device("meta"):
        detector = build_detector(config, count, pretrained=False)
    load_matching(detector.to_empty(device="cpu"), converted, source="Detectron2's detector")
    _check_constants(renamed, config.anchors, pyramid=config.backbone.fpn)
    return config, converted


def _our_name(name: str) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _architecture(state: Mapping[str, Tensor]) -> Architecture:
    kinds: tuple[tuple[str, Architecture], ...] = (
        ("backbone.fpn_lateral2.weight", "fpn"),
        ("roi_heads.res5.0.conv1.weight", "c4"),
        ("backbone.res5.0.conv1.weight", "dc5"),
    )
    for name, kind in kinds:
        if name in state:
            return kind
    raise ValueError(
        "these are no weights of Detectron2's Faster, Mask or Cascade R-CNN with a ResNet: "
        f"none of {', '.join(name for name, _ in kinds)} is in them"
    )


def _predictor(state: Mapping[str, Tensor]) -> str:
    """The name of the (first) box predictor in ``state``, which has our names."""
    for predictor in ("box_stage.predictor", "box_stage.stages.0.predictor"):
        needed = ("rpn.head.conv.weight", f"{predictor}.classes.weight", f"{predictor}.deltas.bias")
        if all(name in state for name in needed):
            return predictor
    raise ValueError("these are no weights of Detectron2's Faster R-CNN: an RPN's or a box predictor's are missing")


def _depth(state: Mapping[str, Tensor]) -> int:
    """Of the ResNet whose blocks ``state`` has."""
    blocks = {match.groups() for name in state if (match := re.search(r"\.res([2-5])\.(\d+)\.conv3\.", name))}
    found = tuple(sum(stage == number for stage, _ in blocks) for number in "2345")
    known = {depth: counts for depth, (block, counts) in DEPTHS.items() if block is Bottleneck}
    for depth, counts in known.items():
        if counts == found:
            return depth
    listed = ", ".join(f"resnet{depth} {counts}" for depth, counts in known.items())
    raise ValueError(f"the ResNet has stages of {found} bottleneck blocks, expected those of {listed}")


def _zoo_settings(state: Mapping[str, Tensor], architecture: Architecture, *, depth: int) -> dict[str, Any]:
    """The model zoo's settings for the layers in ``state``, which has our names, as sections of our config."""
    fpn = architecture == "fpn"
    return {
        "backbone": {
            "name": f"resnet{depth}",
            "weights_source": "msra",
            "norm": "frozen_bn",
            "freeze_at": 2,
            "dilate_c5": True if architecture == "dc5" else None,
            "fpn": fpn,
            **({"fpn_channels": len(state["backbone.lateral.c2.0.weight"])} if fpn else {}),
            "roi_size": 14 if architecture == "c4" else None,
        },
        "anchors": {"sizes": [32, 64, 128, 256, 512], "ratios": [0.5, 1.0, 2.0], "offset": 0.0},
        "rpn": {
            "channels": len(state["rpn.head.conv.weight"]),
            "positive_iou": 0.7,
            "negative_iou": 0.3,
            "samples_per_image": 256,
            "positive_fraction": 0.5,
            "allow_outside": True,
            "smooth_l1_beta": 0.0,
            "pre_nms_train": 2000 if fpn else 12000,
            "pre_nms_test": 1000 if fpn else 6000,
            "post_nms_train": 1000 if fpn else 2000,
            "post_nms_test": 1000,
            "nms_iou": 0.7,
            "min_size": 0.0,
        },
        "architecture": _architecture_name(state),
        "box": _box_settings(state, architecture),
        "mask": _mask_settings(state, architecture),
        "test": {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 100},
        "data": {"shorter_side": 800, "longer_side": 1333},
    }


def _architecture_name(state: Mapping[str, Tensor]) -> str:
    masks = "mask_stage.head.masks.weight" in state
    if ".stages." in _predictor(state):
        return "cascade_mask_rcnn" if masks else "cascade_rcnn"
    return "mask_rcnn" if masks else "faster_rcnn"


def _box_settings(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Any]:
    predictor = _predictor(state)
    own = {} if architecture == "c4" else {"head_channels": state[f"{predictor}.classes.weight"].shape[1]}
    return own | {
        "pool": "roi_align",
        "sampling_ratio": 0,
        "head": "tail" if architecture == "c4" else "fc",
        "pool_size": 7,
        "class_agnostic": len(state[f"{predictor}.deltas.bias"]) == 4,
        "samples_per_image": 512,
        "positive_fraction": 0.25,
        "positive_iou": 0.5,
        "smooth_l1_beta": 0.0,
        "coder_weights": [10.0, 10.0, 5.0, 5.0],
    }


def _mask_settings(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Any]:
    if "mask_stage.head.masks.weight" not in state:
        return {}
    convs = {name.split(".")[3] for name in state if name.startswith("mask_stage.head.convs.")}
    own = {} if architecture == "c4" else {"pool_size": 14, "convs": len(convs)}
    return own | {"channels": state["mask_stage.head.masks.weight"].shape[1]}


def _apply(tree: dict[str, Any], settings: Mapping[str, Any], architecture: Architecture) -> None:
    """Puts ``settings`` of Detectron2 into ``tree``, sections of our config; those of layers it lacks do nothing."""
    required = REQUIRED | {"MODEL.RESNETS.RES5_DILATION": 2 if architecture == "dc5" else 1}
    own = {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "backbone.roi_size"} if architecture == "c4" else {}
    for name, value in settings.items():
        if name in required:
            if _tuples(value) != required[name]:
                raise ValueError(f"{name} is {value!r}; a detector here has {required[name]!r} and cannot be changed")
        elif name in KEYS:
            section, key = (KEYS | own)[name].split(".")
            if _applies(tree, section, key):
                nested = name.startswith("MODEL.ANCHOR_GENERATOR.") and isinstance(value, (list, tuple))
                tree.setdefault(section, {})[key] = [number for level in value for number in level] if nested else value
        elif name not in TOLD_BY_SHAPES:
            known = ", ".join((*KEYS, *required, *TOLD_BY_SHAPES))
            raise ValueError(f"no use for Detectron2's setting {name!r}; known: {known}")


def _applies(tree: Mapping[str, Any], section: str, key: str) -> bool:
    """Whether the detector of ``tree`` has the layers that a key of our config is about."""
    if section == "cascade":
        return "cascade" in tree["architecture"]
    return section != "mask" or key in tree["mask"]


def _tuples(value: Any) -> Any:
    """``value`` with lists as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _is_constant(name: str) -> bool:
    return name in ("pixel_mean", "pixel_std") or name.startswith(ANCHORS)


def _check_constants(state: Mapping[str, Tensor], anchors: AnchorConfig, *, pyramid: bool) -> None:
    """Raises ValueError where the constants that older files hold are not those of our detector."""
    stats = SOURCES["msra"].input_stats
    expected = {"pixel_mean": torch.tensor(stats.mean), "pixel_std": torch.tensor(stats.std)}
    for number, sizes in enumerate([(size,) for size in anchors.sizes] if pyramid else [anchors.sizes]):
        expected[f"{ANCHORS}{number}"] = AnchorGenerator(1, sizes=sizes, ratios=anchors.ratios).cell_anchors
    for name in filter(_is_constant, state):
        own = expected.get(name)
        if (
            own is None
            or own.numel() != state[name].numel()
            or (own.flatten() - state[name].flatten()).abs().max() > 0.01
        ):
            raise ValueError(
                f"{name} is {state[name].flatten().tolist()}, a detector of these settings has "
                f"{None if own is None else own.flatten().tolist()}; say in settings what differs from the model zoo's"
            )
