"""Chooses the config of a semantic or panoptic network for a data set and a machine, with a reason for every value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detection.config.detection import DetectionConfig
from detection.config.schema import flatten
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import Checkpoint
from detection.tasks.recipe import LARGEST, Choice, Machine, choose, data_choices, fitting_batch, solver_choices

__all__ = ["choose_for_labels", "choose_for_segments"]

BOUND = ("architecture", "backbone", "semantic")  # sections that must match the weights
COCO_STUFF, COCO_PIXELS = 4096, 640 * 480  # pixels: least area of stuff in Panoptic FPN, usual image of COCO
SCALES = (0.5, 2.0)  # of training images, as in torchvision's references
# Dilations as shares of the cells of a side: those of DeepLabV3 for images of 513 px at stride 16.
RATES = (6 / 33, 12 / 33, 18 / 33)
SMALL_SIDE = 320  # pixels
MOST = {"cpu": 600, "cuda": 40_000}  # steps


def choose_for_labels(
    index: AnnotationIndex,
    sets: Mapping[str, str],
    machine: Machine,
    init: str | None,
    origin: Checkpoint[DetectionConfig] | None,
) -> list[Choice]:
    """Returns the values of a config that trains a semantic network on ``index``.

    Args:
        index: the training set, with label maps.
        sets: train, val and test -> card:split.
        machine: machine that trains.
        init: where training starts, as in the config; None: from scratch.
        origin: the network that ``init`` names.

    Raises:
        ValueError: ``origin`` is a detector of objects.
    """
    if origin is not None and origin.config.finds_objects:
        raise ValueError(
            f"{init} finds objects, and the data set has label images: start from fcn_resnet50 or deeplabv3_resnet50, "
            "or from none"
        )
    size = _size(index, machine)
    shorter, longer = (choice.value for choice in size)
    low, high = SCALES
    jitter = {"size": longer, "low": low, "high": high}
    choices = [
        *data_choices(index, sets),
        *size,
        Choice("data.jitter", jitter, "training images at half to twice their size, cropped, padded with void"),
    ]
    batch = fitting_batch(machine, shorter, longer)
    metric = Choice("solver.best_metric", "semseg.mIoU", "each class counts as much as any other")
    if origin is None:
        return [*choices, *_from_scratch(batch, longer), *_schedule(index, batch, machine, scratch=True), metric]
    why = "a trained network: needs far fewer images than training from nothing"
    return [
        *choices,
        Choice("init", init, why),
        *_of_origin(origin),
        *_schedule(index, batch, machine, scratch=False),
        metric,
    ]


def choose_for_segments(
    index: AnnotationIndex,
    sets: Mapping[str, str],
    machine: Machine,
    init: str | None,
    origin: Checkpoint[DetectionConfig] | None,
) -> list[Choice]:
    """Returns the values of a config that trains a Panoptic FPN on ``index``, which has things, masks and stuff.

    Arguments and errors are those of ``choose``; its Mask R-CNN gets a semantic branch.
    """
    cascade = origin is not None and "cascade" in origin.config.architecture
    own = {
        "architecture": Choice(
            "architecture", "cascade_panoptic_fpn" if cascade else "panoptic_fpn", "segments of things and of stuff"
        ),
        "solver.best_metric": Choice("solver.best_metric", "panoptic.PQ", "things and stuff count"),
    }
    chosen = choose(index, sets, machine, init, origin)
    kept = [own.pop(choice.key, choice) for choice in chosen]
    weight = Choice("semantic.loss_weight", 0.5, "beside 1 of boxes and masks, as Panoptic FPN on COCO")
    pixels = float(np.median(index.sizes.prod(dim=1).numpy()))
    least = min(COCO_STUFF, round(COCO_STUFF * pixels / COCO_PIXELS))
    area = Choice("panoptic.stuff_area", least, "least pixels of stuff, the share of an image that COCO's 4096 are")
    return [*kept, *own.values(), weight, area]


def _size(index: AnnotationIndex, machine: Machine) -> list[Choice]:
    """Chooses shorter and longer side: the images' own size, unless training would take too long."""
    shorts, longs = index.sizes.amin(dim=1).numpy(), index.sizes.amax(dim=1).numpy()
    short, long = float(np.median(shorts)), float(np.median(longs))
    factor = min(1.0, LARGEST[machine.kind][0] / short, LARGEST[machine.kind][1] / long)
    shorter = max(32, round(short * factor / 16) * 16)
    longer = max(shorter, round(float(np.quantile(longs / shorts, 0.9)) * shorter / 16) * 16)
    why = f"as the images, {long:.0f}x{short:.0f}"
    if factor < 1:
        why = f"at most {LARGEST[machine.kind][0]} on {machine}; images are {long:.0f}x{short:.0f}"
    return [Choice("data.shorter_side", shorter, why), Choice("data.longer_side", longer)]


def _of_origin(origin: Checkpoint[DetectionConfig]) -> list[Choice]:
    """Returns the values that the network that training starts from fixes."""
    own, default = flatten(origin.config), flatten(DetectionConfig())
    keys = [key for key in own if key.split(".")[0] in BOUND and own[key] != default[key]]
    keys = [key for key in keys if key not in ("backbone.weights", "backbone.freeze_at")]
    return [Choice(key, own[key], "as where training starts, here and below" * (key == keys[0])) for key in keys]


def _from_scratch(batch: int, side: int) -> list[Choice]:
    """Returns the choices for a network trained from scratch on images whose longer side is ``side`` pixels."""
    norm = "bn" if batch >= 8 else "gn"
    stride = 8 if side <= SMALL_SIDE else 16
    rates = [max(1, round(share * side / stride)) for share in RATES]
    return [
        Choice("architecture", "deeplabv3", "objects and regions of all sizes; fcn is simpler"),
        Choice("backbone.name", "resnet18", "small: nothing is known beforehand"),
        Choice("backbone.norm", norm, f"batches of {batch} images" + ("" if norm == "bn" else " are too few for bn")),
        Choice("backbone.output_stride", stride, "8 is finer, 16 faster: 8 for small images"),
        Choice("semantic.rates", rates, f"of {side // stride} cells, in proportion to 6, 12 and 18 of the paper's 33"),
        Choice("semantic.channels", 128),
        Choice("semantic.norm", norm),
        Choice("semantic.aux_weight", 0.0, "the trunk is shallow"),
    ]


def _schedule(index: AnnotationIndex, batch: int, machine: Machine, *, scratch: bool) -> list[Choice]:
    epochs, least = (100, 400) if scratch else (30, 300)
    steps = int(np.clip(epochs * len(index) // batch, least, MOST[machine.kind]))
    why = f"{epochs} epochs" if steps < MOST[machine.kind] else f"a short training on {machine}; more is better"
    rate = (1e-3 if batch >= 8 else 3e-4) if scratch else round(0.01 * batch / 16, 6)
    return [
        *solver_choices(steps, batch, machine, why),
        Choice("solver.optimizer", "adamw" if scratch else "sgd"),
        Choice("solver.base_lr", rate, "" if scratch else f"0.01 for 16 images, here {batch}"),
        Choice("solver.warmup_iterations", min(50, steps // 10)),
    ]
