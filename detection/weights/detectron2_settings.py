"""Maps Detectron2's settings to our keys; others need a certain value, or change no detection.

Source: Detectron2, detectron2/config/defaults.py and configs/Base-RCNN-{C4,DilatedC5,FPN}.yaml.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbones.weights.load import SOURCES
from detection.config.detection import DetectionConfig
from detection.config.load import parse_yaml
from detection.config.schema import flatten, leaves
from detection.model.anchors import deal
from detection.weights.detectron2_panoptic import PANOPTIC_KEYS, PANOPTIC_REQUIRED
from detection.weights.detectron2_semantic import SEMANTIC_KEYS, SEMANTIC_REQUIRED

__all__ = ["apply_settings", "read_settings", "settings_of"]

# Detectron2's setting -> the key of our config that takes its value
KEYS = {
    "MODEL.BACKBONE.FREEZE_AT": "backbone.freeze_at",
    "MODEL.RESNETS.NORM": "backbone.norm",
    "MODEL.RESNETS.STRIDE_IN_1X1": "backbone.stride_in",
    "MODEL.FPN.NORM": "backbone.fpn_norm",
    "MODEL.ANCHOR_GENERATOR.SIZES": "anchors.sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "anchors.ratios",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "anchors.offset",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": "rpn.min_size",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "rpn.samples_per_image",
    "MODEL.RPN.POSITIVE_FRACTION": "rpn.positive_fraction",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "rpn.pre_nms_train",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "rpn.pre_nms_test",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "rpn.post_nms_train",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "rpn.post_nms_test",
    "MODEL.RPN.NMS_THRESH": "rpn.nms_iou",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": "rpn.box_loss_weight",
    "MODEL.RPN.SMOOTH_L1_BETA": "rpn.smooth_l1_beta",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "box.samples_per_image",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "box.positive_fraction",
    "MODEL.ROI_BOX_HEAD.NORM": "box.head_norm",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "box.coder_weights",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "box.loss",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": "box.box_loss_weight",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": "box.smooth_l1_beta",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "box.pool",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "box.sampling_ratio",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "box.pool_size",  # backbone.roi_size of a C4
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": "cascade.ious",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "mask.pool_size",
    "MODEL.ROI_MASK_HEAD.NORM": "mask.norm",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": "keypoint.pool_size",
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": "point.train_points",
    "MODEL.POINT_HEAD.OVERSAMPLE_RATIO": "point.oversample",
    "MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO": "point.importance",
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": "point.steps",
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": "point.test_points",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "test.score_threshold",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "test.nms_iou",
    "TEST.DETECTIONS_PER_IMAGE": "test.max_detections",
    "INPUT.MIN_SIZE_TEST": "data.shorter_side",
    "INPUT.MAX_SIZE_TEST": "data.longer_side",
}
SHARED = r"(INPUT|TEST|MODEL\.(BACKBONE|RESNETS|FPN|ANCHOR_GENERATOR))\."  # also those of a RetinaNet
RETINANET_KEYS = {name: key for name, key in KEYS.items() if re.match(SHARED, name)} | {
    "MODEL.RETINANET.SCORE_THRESH_TEST": "test.score_threshold",
    "MODEL.RETINANET.NMS_THRESH_TEST": "test.nms_iou",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "dense.pre_nms",
    "MODEL.RETINANET.PRIOR_PROB": "dense.prior",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": "dense.focal_alpha",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": "dense.focal_gamma",
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "dense.loss",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": "dense.smooth_l1_beta",
}
C4_KEYS = KEYS | {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "backbone.roi_size"}

# Together they say backbone.weights_source.
PIXELS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT")

NORMS = {"": None, "FrozenBN": "frozen_bn", "BN": "bn", "SyncBN": "sync_bn", "GN": "gn", "nnSyncBN": "sync_bn"}

POOLERS = {"ROIAlignV2": "roi_align", "ROIAlign": "roi_align_unaligned"}
# Of masks and keypoints, which are pooled as boxes are here; with Detectron2's defaults.
POOLED_ALIKE: dict[str, Any] = {"POOLER_TYPE": "ROIAlignV2", "POOLER_SAMPLING_RATIO": 0}

# Settings with the one value that our detector has
REQUIRED: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RPN.BOUNDARY_THRESH": -1,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": tuple((10.0 * i, 10.0 * i, 5.0 * i, 5.0 * i) for i in (1, 2, 3)),
    "TEST.AUG.ENABLED": False,
    "MODEL.ROI_MASK_HEAD.IN_FEATURES": ("p2",),  # of PointRend, as the next two
    "MODEL.POINT_HEAD.IN_FEATURES": ("p2",),
    "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": True,
}

RETINANET_REQUIRED: dict[str, Any] = {name: value for name, value in REQUIRED.items() if re.match(SHARED, name)} | {
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
}

LABELLER_KEYS = {
    name: key for name, key in KEYS.items() if re.match(r"(INPUT|MODEL\.(BACKBONE|RESNETS|FPN))\.", name)
} | SEMANTIC_KEYS
LABELLER_REQUIRED: dict[str, Any] = SEMANTIC_REQUIRED | {"MODEL.FPN.FUSE_TYPE": "sum", "TEST.AUG.ENABLED": False}

# Names and shapes of the weights say these.
TOLD_BY_SHAPES = re.compile(
    r"MODEL\.(MASK_ON|KEYPOINT_ON|BACKBONE\.NAME|FPN\.(IN_FEATURES|OUT_CHANNELS)|RPN\.(IN_FEATURES|CONV_DIMS)"
    r"|RESNETS\.(DEPTH|OUT_FEATURES|NUM_GROUPS|WIDTH_PER_GROUP|RES2_OUT_CHANNELS|STEM_OUT_CHANNELS|DEFORM_\w+)"
    r"|ROI_HEADS\.(NAME|NUM_CLASSES|IN_FEATURES)"
    r"|ROI_BOX_HEAD\.(NAME|NUM_FC|FC_DIM|NUM_CONV|CONV_DIM|CLS_AGNOSTIC_BBOX_REG)"
    r"|ROI_MASK_HEAD\.(NAME|NUM_CONV|CONV_DIM|CLS_AGNOSTIC_MASK|NUM_FC|FC_DIM|OUTPUT_SIDE_RESOLUTION|POINT_HEAD_ON)"
    r"|POINT_HEAD\.(NAME|NUM_CLASSES|NUM_FC|FC_DIM|CLS_AGNOSTIC_MASK)"
    r"|SEM_SEG_HEAD\.(IN_FEATURES|NUM_CLASSES|CONVS_DIM))"
)

# These are about training, other architectures, or what a setting above leaves without effect.
WITHOUT_EFFECT = re.compile(
    r"(VERSION|OUTPUT_DIR|SEED|CUDNN_BENCHMARK|FLOAT32_PRECISION|VIS_PERIOD|(DATASETS|DATALOADER|SOLVER|GLOBAL)\..*"
    r"|INPUT\.(MIN_SIZE_TRAIN(_SAMPLING)?|MAX_SIZE_TRAIN|RANDOM_FLIP|MASK_FORMAT|COLOR_AUG_SSD|CROP\..*)"
    r"|TEST\.(AUG\..*|PRECISE_BN\..*|EVAL_PERIOD|EXPECTED_RESULTS|KEYPOINT_OKS_SIGMAS)"
    r"|MODEL\.(WEIGHTS|DEVICE|(RETINANET|SEM_SEG_HEAD|PANOPTIC_FPN|ROI_KEYPOINT_HEAD)\..*"
    r"|ANCHOR_GENERATOR\.ANGLES"
    r"|(RPN|ROI_HEADS)\.(IOU_THRESHOLDS|IOU_LABELS|LOSS_WEIGHT|PROPOSAL_APPEND_GT)"
    r"|POINT_HEAD\.COARSE_SEM_SEG_HEAD_NAME|RPN\.BBOX_REG_LOSS_TYPE|ROI_BOX_HEAD\.(TRAIN_ON_PRED_BOXES|USE_FED_LOSS|FED_LOSS_.*)|ROI_MASK_HEAD\.POOLER_(TYPE|SAMPLING_RATIO)))"
)

OF_REGIONS = re.compile(r"MODEL\.(MASK_ON|KEYPOINT_ON|LOAD_PROPOSALS|(RPN|PROPOSAL_GENERATOR|ROI_\w+)\..*)")
OF_OBJECTS = re.compile(rf"{OF_REGIONS.pattern}|MODEL\.ANCHOR_GENERATOR\..*|TEST\.DETECTIONS_PER_IMAGE")

# What a config of the model zoo starts from; their settings are those taken without any.
ZOO_BASES = ("Base-RCNN-C4.yaml", "Base-RCNN-DilatedC5.yaml", "Base-RCNN-FPN.yaml", "Base-RetinaNet.yaml")


def read_settings(path: Path, *, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns the settings of Detectron2's YAML file ``path`` and of its ``_BASE_``, by dotted name.

    A base of the model zoo may be absent.

    Raises:
        ValueError: the file can't be read, or its base is missing.
    """
    if path in above:
        raise ValueError(f"{path} is its own _BASE_")
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Detectron2's settings {path} can't be read: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"Detectron2's settings {path} must be a mapping of sections, got a {type(tree).__name__}")
    base = tree.pop("_BASE_", None)
    settings = {name: _literal(value) for name, value in leaves(tree)}
    if base is None:
        return settings
    file = path.parent / str(base)
    if file.is_file():
        return read_settings(file, above=(*above, path)) | settings
    if file.name in ZOO_BASES:
        return settings
    raise ValueError(f"{path}: its _BASE_ {file} is missing; give the config.yaml that Detectron2 wrote in training")


def apply_settings(tree: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Applies Detectron2's ``settings`` to ``tree``, sections of our config; settings of absent layers are ignored.

    Raises:
        ValueError: our detector lacks a setting.
    """
    required, absent = _required(tree["architecture"])
    required = required | {"MODEL.RESNETS.RES5_DILATION": 2 if tree["backbone"]["dilate_c5"] else 1}
    keys = _keys(tree)
    for name, value in settings.items():
        if name in required:
            if _tuples(value) != required[name]:
                raise ValueError(f"{name} is {value!r}; a detector here has {required[name]!r} and cannot be changed")
        elif name in keys:
            section, key = keys[name].split(".")
            if _applies(tree, section, key):
                tree.setdefault(section, {})[key] = _our_value(name, value)
        elif absent is not None and absent.fullmatch(name):
            continue
        elif name not in PIXELS and not TOLD_BY_SHAPES.fullmatch(name) and not WITHOUT_EFFECT.fullmatch(name):
            raise ValueError(f"no use for Detectron2's setting {name!r}; known: {', '.join((*keys, *required))}")
    _check_pooling(tree, settings)
    _apply_pixels(tree["backbone"], settings)


def _required(architecture: str) -> tuple[dict[str, Any], re.Pattern[str] | None]:
    """Returns the settings with a required value for ``architecture``, and a pattern of those of absent layers."""
    if architecture == "semantic_fpn":
        return LABELLER_REQUIRED, OF_OBJECTS
    if "panoptic" in architecture:
        return REQUIRED | PANOPTIC_REQUIRED, None
    return (RETINANET_REQUIRED, OF_REGIONS) if architecture == "retinanet" else (REQUIRED, None)


def settings_of(config: DetectionConfig) -> dict[str, Any]:
    """Returns Detectron2's settings for the detector of ``config``, without those that follow from the weights."""
    flat = flatten(config)
    tree: dict[str, Any] = {"architecture": config.architecture, **_sections(config)}
    settings = _pixels(config.backbone.weights_source)
    settings["MODEL.RESNETS.RES5_DILATION"] = 2 if config.backbone.dilate_c5 else 1
    for name, key in _keys(tree).items():
        if _applies(tree, *key.split(".")):
            settings[name] = _their_value(name, flat[key], pyramid=config.backbone.fpn)
    for head in _pooling_heads(tree):
        settings |= {f"MODEL.{head}.{key}": settings[f"MODEL.ROI_BOX_HEAD.{key}"] for key in POOLED_ALIKE}
    return settings


def _sections(config: DetectionConfig) -> dict[str, Any]:
    """Returns what ``_keys`` and ``_applies`` ask of sections of our config."""
    tail = config.box.head == "tail"
    mask = {} if not config.finds_masks else {"norm": None} | ({} if tail else {"pool_size": None})
    mask = {"pool_size": None} if config.architecture == "pointrend_rcnn" else mask
    return {
        "backbone": {"fpn": config.backbone.fpn, "dilate_c5": config.backbone.dilate_c5},
        "box": {"head": config.box.head, "head_convs": config.box.head_convs},
        "mask": mask,
        "keypoint": {"pool_size": None} if "keypoint" in config.architecture else {},
    }


def _keys(tree: Mapping[str, Any]) -> dict[str, str]:
    if tree["architecture"] == "semantic_fpn":
        return LABELLER_KEYS
    if tree["architecture"] == "retinanet":
        return RETINANET_KEYS
    if "panoptic" in tree["architecture"]:
        return KEYS | PANOPTIC_KEYS
    return C4_KEYS if tree["box"]["head"] == "tail" else KEYS


def _applies(tree: Mapping[str, Any], section: str, key: str) -> bool:
    """Returns whether the detector of ``tree`` has the layers of a key of our config."""
    match section, key:
        case "cascade", _:
            return "cascade" in tree["architecture"]
        case "point", _:
            return tree["architecture"] == "pointrend_rcnn"
        case "mask" | "keypoint", _:
            return key in tree[section]
        case "backbone", "fpn_norm":
            return tree["backbone"]["fpn"]
        case "box", "coder_weights":  # a cascade's stages have ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
            return "cascade" not in tree["architecture"]
        case "box", "head_norm":
            return tree["box"].get("head_convs", 0) > 0
        case _:
            return True


def _our_value(name: str, value: Any) -> Any:
    if name.endswith(".NORM"):
        if value not in NORMS:
            raise ValueError(f"{name} is {value!r}; known: {', '.join(map(repr, NORMS))}")
        return NORMS[value]
    if name.endswith(".POOLER_TYPE"):
        if value not in POOLERS:
            raise ValueError(f"{name} is {value!r}; known: {', '.join(map(repr, POOLERS))}")
        return POOLERS[value]
    if name == "MODEL.RESNETS.STRIDE_IN_1X1":
        return "1x1" if value else "3x3"
    nested = name in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
    if nested and isinstance(value, (list, tuple)) and all(isinstance(level, (list, tuple)) for level in value):
        return [number for level in value for number in level]
    return value


def _their_value(name: str, value: Any, *, pyramid: bool) -> Any:
    if name.endswith(".NORM"):
        return next(theirs for theirs, ours in NORMS.items() if ours == value)
    if name.endswith(".POOLER_TYPE"):  # what Detectron2 lacks is seen when this is read back
        return next((theirs for theirs, ours in POOLERS.items() if ours == value), "ROIAlignV2")
    if name == "MODEL.RESNETS.STRIDE_IN_1X1":
        return value == "1x1"
    if name == "MODEL.ANCHOR_GENERATOR.SIZES":
        return [list(sizes) for sizes in deal(value, 5 if pyramid else 1)]
    return [value] if name == "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS" else value


def _check_pooling(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError if ``settings`` pool masks or keypoints differently from boxes."""
    for head in _pooling_heads(tree):
        for key, default in POOLED_ALIKE.items():
            boxes, others = f"MODEL.ROI_BOX_HEAD.{key}", f"MODEL.{head}.{key}"
            if settings.get(boxes, default) != settings.get(others, default):
                raise ValueError(
                    f"{boxes} is {settings.get(boxes, default)!r} and {others} is {settings.get(others, default)!r}; "
                    "a detector here pools both alike"
                )


def _pooling_heads(tree: Mapping[str, Any]) -> list[str]:
    """Returns the heads, except that of boxes, with their own pooling."""
    pooling = ("keypoint",) if tree["architecture"] == "pointrend_rcnn" else ("mask", "keypoint")
    return [f"ROI_{name.upper()}_HEAD" for name in pooling if "pool_size" in tree.get(name, {})]


def _pixels(source: str) -> dict[str, Any]:
    stats = SOURCES[source].input_stats
    return dict(zip(PIXELS, (list(stats.mean), list(stats.std), stats.channel_order.upper()), strict=True))


def _apply_pixels(backbone: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Sets the source of the weights that fits the pixel normalisation in ``settings``."""
    asked = _pixels(backbone["weights_source"]) | {name: settings[name] for name in PIXELS if name in settings}
    for source in SOURCES:
        if all(_near(asked[name], value) for name, value in _pixels(source).items()):
            backbone["weights_source"] = source
            return
    known = "; ".join(f"{source}: {', '.join(map(str, _pixels(source).values()))}" for source in SOURCES)
    raise ValueError(
        f"no weights here saw pixels of {', '.join(f'{name} {value}' for name, value in asked.items())}; known: {known}"
    )


def _near(value: Any, known: Any) -> bool:
    if isinstance(known, str):
        return value == known
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_close, value, known))


def _close(value: Any, known: float) -> bool:
    return isinstance(value, (int, float)) and abs(value - known) < 0.01


def _literal(value: Any) -> Any:
    """Returns ``value``, with the text of a Python tuple or list, as in Detectron2's files, evaluated."""
    if not isinstance(value, str) or not value.startswith(("(", "[")):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _tuples(value: Any) -> Any:
    """Returns ``value`` with lists as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
