"""Pictures of a training on the way: a few images of data.val, objects on the left and detections on the right."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from detection.build import build_image_tester, field_operations
from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader
from detection.engine.device import choose_device
from detection.engine.evaluate import predict
from detection.evaluation.record import Record
from detection.model.architecture import Architecture
from detection.visualize import draw_record

__all__ = ["draw_watched"]

IMAGES = 4  # the same ones each time, spread over data.val
LONGEST = 640  # pixels of the longer side of a half


def draw_watched(config: DetectionConfig, model: nn.Module, index: AnnotationIndex) -> dict[str, NDArray[np.uint8]]:
    """Returns name -> picture (H, W, 3) RGB: what is, and what ``model`` finds, in a few images of ``index``."""
    assert isinstance(model, Architecture)
    device = choose_device(config.device)
    rows = range(0, len(index), max(1, len(index) // IMAGES))[:IMAGES]
    loader = build_test_loader(
        index, replace(config.data, workers=0), rows=rows, unresized=config.test.slice is not None
    )
    precision, operations = config.solver.precision, field_operations(config)
    tester = build_image_tester(config, [model]).to(device)
    records = predict(tester, loader, index, device=device, precision=precision, fields=operations).records
    return {
        f"val/{number}": _beside(index.image(row), record, index.class_names)
        for number, (row, record) in enumerate(zip(rows, records, strict=True))
    }


def _beside(image: NDArray[np.uint8], record: Record, class_names: tuple[str, ...]) -> NDArray[np.uint8]:
    """The objects of ``record`` and its detections on two copies of ``image``, side by side."""
    found = replace(
        record,
        gt_boxes=record.gt_boxes[:0],
        gt_labels=record.gt_labels[:0],
        gt_ignore=record.gt_ignore[:0],
        gt_areas=record.gt_areas[:0],
        gt_masks=None,
    )
    certain = np.ones(len(record.gt_boxes), np.float32)
    objects = replace(found, boxes=record.gt_boxes, scores=certain, labels=record.gt_labels, masks=record.gt_masks)
    halves = [_shrunk(draw_record(image, shown, class_names)) for shown in (objects, found)]
    return np.concatenate(halves, axis=1)


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = min(1.0, LONGEST / max(picture.shape[:2]))
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
