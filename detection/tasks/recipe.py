"""Chooses the config of a detector for a data set and a machine, with a reason for every value.

Image size and anchors follow from the objects, batch size and iterations from the machine, the rest from the start of
training: a detector, or from scratch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from detection.config.detection import DetectionConfig
from detection.config.schema import flatten
from detection.data.anchor_fit import best_iou, fit_ratios, fit_sizes, reached, resized_boxes
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import Checkpoint
from detection.fields.table import FIELDS

__all__ = [
    "STRIDES",
    "Choice",
    "Machine",
    "choose",
    "config_text",
    "data_choices",
    "fitting_anchors",
    "fitting_batch",
    "fitting_size",
    "has_masks",
    "solver_choices",
]

# Sections that must match the weights: copied from the detector that training starts from.
BOUND = ("architecture", "backbone", "anchors", "rpn", "box", "cascade", "mask", "point", "keypoint", "dense", "test")
STRIDES = (4, 8, 16, 32, 64)  # of the levels of a pyramid
LEAST_SIZES = tuple(2.0 * stride for stride in STRIDES)  # smallest anchor sizes: two cells of the level
SMALL_OBJECT = 16.0  # pixels; a tenth of the objects may be smaller
LARGEST = {"cuda": (800, 1333), "cpu": (480, 800)}  # sides at which training takes an acceptable time
FEW_IMAGES = 10_000  # from scratch, fewer give a weak detector; COCO has 118,000
# Words in names of classes that a flip turns into another class.
ONE_SIDED = ("left", "right")


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware that training runs on.

    Attributes:
        kind: "cuda" or "cpu".
        memory: GiB of the GPU; 0 on a CPU.
        cores: of the CPU.
    """

    kind: str
    memory: float
    cores: int

    @classmethod
    def this(cls) -> Machine:
        """Returns the machine that the program runs on."""
        cores = os.cpu_count() or 1
        if not torch.cuda.is_available():
            return cls("cpu", 0.0, cores)
        return cls("cuda", torch.cuda.get_device_properties(0).total_memory / 2**30, cores)

    def __str__(self) -> str:
        return f"one GPU of {self.memory:.0f} GiB" if self.kind == "cuda" else f"{self.cores} CPU cores, no GPU"


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of the config and its reason."""

    key: str  # section.key
    value: Any
    reason: str = ""


def choose(
    index: AnnotationIndex,
    sets: Mapping[str, str],
    machine: Machine,
    init: str | None,
    origin: Checkpoint[DetectionConfig] | None,
) -> list[Choice]:
    """Returns the values of a config that trains a detector on ``index``.

    Args:
        index: the training set, with masks if it has any.
        sets: train, val and test -> card:split.
        machine: machine that trains.
        init: where training starts, as in the config; None: from scratch.
        origin: the detector that ``init`` names.

    Raises:
        ValueError: ``origin`` finds no objects.
    """
    if origin is not None and not origin.config.finds_objects:
        raise ValueError(f"{init} labels pixels and finds no objects, which the data set has; start from a detector")
    masks = has_masks(index)
    size = fitting_size(index, machine)
    shorter, longer = (choice.value for choice in size)
    objects = _sides(index, shorter, longer)
    choices = [*data_choices(index, sets), *size]
    batch = fitting_batch(machine, shorter, longer)
    if origin is not None:
        why = "a trained detector: needs far fewer images than training from nothing"
        choices += [Choice("init", init, why)]
        choices += _of_origin(origin, objects, masks=masks) + _fine_tuning(index, batch, machine, origin)
    else:
        choices += _from_scratch(batch, objects, masks=masks) + _scratch_solver(index, batch, machine, masks=masks)
    return choices


def has_masks(index: AnnotationIndex) -> bool:
    """Returns true if nearly all objects of ``index`` have a mask."""
    if "masks" not in index.fields:
        return False
    known = 0
    for row in range(len(index)):
        height, width = index.sizes[row].tolist()
        objects, unknown = index.objects(row), FIELDS["masks"].unknown((height, width))
        known += sum(index.fields["masks"].bytes_of(i) != unknown for i in range(objects.start, objects.stop))
    return known >= 0.9 * max(1, len(index.boxes))


def config_text(choices: Sequence[Choice], header: Iterable[str]) -> str:
    """Returns ``choices`` as a YAML config, each with its reason beside it, under the lines of ``header``."""
    lines = [f"# {line}".rstrip() for line in header]
    sections = dict[str, list[Choice]]()
    for choice in choices:
        section, dot, _ = choice.key.partition(".")
        if not dot:
            lines.append(_line(choice.key, choice, indent=""))
        else:
            sections.setdefault(section, []).append(choice)
    for section, own in sections.items():
        lines.append(f"{section}:")
        lines += [_line(choice.key.partition(".")[2], choice, indent="  ") for choice in own]
    return "\n".join(lines) + "\n"


def _line(key: str, choice: Choice, *, indent: str) -> str:
    value = yaml.safe_dump(json.loads(json.dumps(choice.value)), default_flow_style=True, width=10_000).strip()
    text = f"{indent}{key}: {value.removesuffix('...').strip()}"
    return f"{text} # {choice.reason}" if choice.reason else text


def data_choices(index: AnnotationIndex, sets: Mapping[str, str]) -> list[Choice]:
    """Returns the choices for the data ``sets``, and for the flip by the classes of ``index``, the training set."""
    one_sided = [name for name in index.class_names if _is_one_sided(name)]
    flips = [] if one_sided else [{"HorizontalFlip": {"p": 0.5}}]
    why = f"flipped, {one_sided[0]!r} would be another class" if one_sided else "objects may face either way"
    objects = "" if index.label_maps is not None else f"{len(index.boxes)} objects, "
    counts = f"{len(index)} images, {objects}{len(index.class_names)} classes"
    measured = "measured once, at the end"
    if sets.get("test") == sets.get("val"):
        measured = "there is no test set: these images also choose the weights, so figures are a little high"
    return [
        Choice("data.train", [sets["train"]], counts),
        Choice("data.val", [sets["val"]] if "val" in sets else [], "chooses the best weights"),
        Choice("data.test", [sets["test"]] if "test" in sets else [], measured),
        Choice("data.augment", flips, why),
    ]


def _is_one_sided(name: str) -> bool:
    """Returns whether a flip turns a class into another one or none: letters, digits, left and right."""
    words = name.lower().replace("_", " ").replace("-", " ").split()
    return (len(name) == 1 and name.isalnum()) or any(word in ONE_SIDED for word in words)


def fitting_size(index: AnnotationIndex, machine: Machine) -> list[Choice]:
    """Chooses shorter and longer side: the images' own size, unless objects are small or training takes too long."""
    shorts, longs = (index.sizes.amin(dim=1).numpy(), index.sizes.amax(dim=1).numpy())
    short, long = float(np.median(shorts)), float(np.median(longs))
    areas = index.areas[~index.ignore].numpy()
    small = float(np.quantile(np.sqrt(areas), 0.1)) if len(areas) else SMALL_OBJECT
    wanted = min(max(1.0, SMALL_OBJECT / max(small, 1.0)), 2.0)
    limit = min(LARGEST[machine.kind][0] / short, LARGEST[machine.kind][1] / long)
    factor = min(wanted, limit)
    shorter = max(32, round(short * factor / 16) * 16)
    longer = max(shorter, round(float(np.quantile(longs / shorts, 0.9)) * shorter / 16) * 16)
    if factor == limit < wanted:
        why = f"at most {LARGEST[machine.kind][0]} on {machine}; images are {long:.0f}x{short:.0f}"
    elif factor > 1:
        why = f"a tenth of the objects is under {small:.0f} px: images of {long:.0f}x{short:.0f} are enlarged"
    else:
        why = f"as the images, {long:.0f}x{short:.0f}; a tenth of the objects is under {small:.0f} px"
    return [Choice("data.shorter_side", shorter, why), Choice("data.longer_side", longer)]


def fitting_anchors(objects: NDArray[np.float64], least: Sequence[float] = LEAST_SIZES) -> list[Choice]:
    """Chooses anchor sizes and ratios that fit objects with sides (M, 2) in pixels of the resized image.

    There is a size for each entry of ``least``, and it is not smaller than the entry.
    """
    sizes = tuple(max(size, low) for size, low in zip(fit_sizes(objects, len(least)), least, strict=True))
    ratios = fit_ratios(objects)
    return [
        Choice("anchors.sizes", sizes, f"k-means on 1 - IoU; {_fit_text(objects, sizes, ratios)}"),
        Choice("anchors.ratios", ratios, "height / width, by k-means too"),
    ]


def _sides(index: AnnotationIndex, shorter: int, longer: int) -> NDArray[np.float64]:
    """Returns width and height (M, 2) of the objects in resized images, without ignored and tiny ones."""
    boxes, _ = resized_boxes(index, shorter, longer)
    return boxes[:, 2:] - boxes[:, :2]


def fitting_batch(machine: Machine, shorter: int, longer: int) -> int:
    """Returns the batch size for images of ``shorter`` by ``longer`` pixels."""
    pixels = shorter * longer
    if machine.kind == "cpu":
        return int(np.clip(round(300_000 / pixels), 2, 8))
    return int(np.clip(machine.memory / 3 * (800 * 1333) / pixels, 2, 16)) // 2 * 2


def _of_origin(origin: Checkpoint[DetectionConfig], objects: NDArray[np.float64], *, masks: bool) -> list[Choice]:
    """Returns the values that the detector that training starts from fixes, and how well its anchors fit."""
    own, default = flatten(origin.config), flatten(DetectionConfig())
    keys = [key for key in own if key.split(".")[0] in BOUND and own[key] != default[key]]
    keys = [key for key in keys if key not in ("backbone.weights", "backbone.freeze_at") and not _is_idle(origin, key)]
    firsts = {key.split(".")[0]: key for key in reversed(keys)}
    reasons = dict.fromkeys(firsts.values(), "as where training starts, here and below")
    own["architecture"] = own["architecture"].replace("panoptic_fpn", "mask_rcnn")  # the data set has no stuff
    if origin.config.finds_masks and not masks:
        own["architecture"] = (
            own["architecture"]
            .replace("pointrend", "mask")
            .replace("mask_rcnn", "faster_rcnn")
            .replace("cascade_faster", "cascade")
        )
        reasons["architecture"] = "the objects have no masks: without the mask branch of where training starts"
        keys = [
            "architecture",
            *(key for key in keys if key != "architecture" and not key.startswith(("mask.", "point."))),
        ]
    if own["architecture"] == "keypoint_rcnn":
        own["architecture"] = "faster_rcnn"
        reasons["architecture"] = "boxes alone; keypoint_rcnn where objects have keypoints"
        keys = ["architecture", *(key for key in keys if key != "architecture" and not key.startswith("keypoint."))]
    anchors = origin.config.anchors
    if own["architecture"] != "fcos":  # which has none
        fit = _fit_text(objects, anchors.sizes, anchors.ratios)
        keys += [] if "anchors.sizes" in keys else ["anchors.sizes"]
        reasons["anchors.sizes"] = f"as where training starts; {fit}"
    return [Choice(key, own[key], reasons.get(key, "")) for key in keys]


def _is_idle(origin: Checkpoint[DetectionConfig], key: str) -> bool:
    """Returns true if the detector that training starts from does not use ``key``."""
    if origin.config.architecture == "fcos" and key in ("anchors.sizes", "anchors.ratios"):
        return True
    return key.split(".")[0] in origin.config.idle_sections and key != "box.ignore_overlap"


def _fine_tuning(
    index: AnnotationIndex, batch: int, machine: Machine, origin: Checkpoint[DetectionConfig]
) -> list[Choice]:
    most = 600 if machine.kind == "cpu" else 90_000
    steps = int(np.clip(24 * len(index) // batch, 300, most))
    adamw = origin.config.solver.optimizer == "adamw"
    why = "24 epochs" if steps < most else f"what {machine} do in about half an hour"
    rate = 1e-4 if adamw else round(0.00125 * batch, 6)
    frozen = 0 if origin.config.backbone.norm in ("bn", "gn") and origin.iteration else 2
    return [
        Choice(
            "backbone.freeze_at",
            frozen,
            "first stages know edges and colours already" if frozen else "as it was trained",
        ),
        *solver_choices(steps, batch, machine, why),
        Choice("solver.optimizer", "adamw" if adamw else "sgd", "as where training starts" if adamw else ""),
        Choice(
            "solver.base_lr", rate, "a tenth of training from nothing" if adamw else f"0.02 for 16 images, here {batch}"
        ),
        Choice("solver.warmup_iterations", min(100, steps // 10), "new class layers would shake the rest"),
    ]


def _from_scratch(batch: int, objects: NDArray[np.float64], *, masks: bool) -> list[Choice]:
    norm = "bn" if batch >= 8 else "gn"
    return [
        Choice(
            "architecture", "mask_rcnn" if masks else "faster_rcnn", "objects have masks" if masks else "boxes alone"
        ),
        Choice("backbone.name", "resnet18", "small: nothing is known beforehand"),
        Choice("backbone.norm", norm, f"batches of {batch} images" + ("" if norm == "bn" else " are too few for bn")),
        Choice("backbone.fpn", True, "objects of all sizes"),
        Choice("backbone.fpn_channels", 64),
        Choice("backbone.fpn_norm", norm),
        *fitting_anchors(objects),
        Choice("rpn.channels", 64),
        Choice("rpn.allow_outside", True, "objects at the border count"),
        Choice("rpn.samples_per_image", 64),
        Choice("rpn.pre_nms_train", 500),
        Choice("rpn.pre_nms_test", 500),
        Choice("rpn.post_nms_train", 300),
        Choice("rpn.post_nms_test", 300),
        Choice("rpn.min_size", 2.0),
        Choice("box.head", "fc"),
        Choice("box.head_channels", 256),
        Choice("box.pool", "roi_align"),
        Choice("box.samples_per_image", 64 if batch < 8 else 32),
        Choice("box.positive_fraction", 0.5),
        *([Choice("mask.convs", 2), Choice("mask.channels", 64)] if masks else []),
        Choice("test.nms_iou", 0.5),
    ]


def _scratch_solver(index: AnnotationIndex, batch: int, machine: Machine, *, masks: bool) -> list[Choice]:
    most = (500 if batch >= 8 else 1500) if machine.kind == "cpu" else 90_000
    steps = int(np.clip(100 * len(index) // batch, 400, most))
    return [
        *solver_choices(
            steps, batch, machine, "100 epochs" if steps < most else f"a short training on {machine}; more is better"
        ),
        Choice("solver.optimizer", "adamw"),
        Choice("solver.base_lr", 1e-3 if batch >= 8 else 3e-4),
        Choice("solver.warmup_iterations", min(50, steps // 20)),
        *([Choice("solver.best_metric", "segm.AP", "masks are what is wanted")] if masks else []),
    ]


def solver_choices(steps: int, batch: int, machine: Machine, why: str) -> list[Choice]:
    """Returns a schedule of ``steps`` iterations of ``batch`` images; ``why`` is the reason for their number."""
    half = [Choice("solver.precision", "bf16", "half the memory")] if machine.kind == "cuda" else []
    return [
        Choice("data.workers", max(1, min(8, machine.cores - 1)), str(machine)),
        Choice("solver.iterations", steps, why),
        Choice("solver.images_per_step", batch, f"what fits {machine}"),
        Choice("solver.schedule", "cosine"),
        Choice("solver.weight_decay", 1e-4),
        Choice("solver.clip_norm", 10.0, "no step may ruin the weights"),
        Choice("solver.checkpoint_every", max(50, steps // 5)),
        Choice("solver.evaluate_every", max(50, steps // 5)),
        *half,
    ]


def _fit_text(objects: NDArray[np.float64], sizes: Sequence[float], ratios: Sequence[float]) -> str:
    ious = best_iou(objects, sizes, ratios)
    return f"{100 * reached(ious, 0.5):.0f} % of the objects reach IoU 0.5, {100 * reached(ious, 0.7):.0f} % 0.7"
