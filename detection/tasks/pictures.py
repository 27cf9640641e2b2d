"""Pictures during training: a few images of data.val, labels on the left and detections on the right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from detection.build import field_operations
from detection.build_panoptic import build_merge
from detection.build_tester import build_image_tester
from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader
from detection.engine.device import choose_device
from detection.engine.evaluate import predict
from detection.engine.label_maps import Labelled, read_labelled
from detection.engine.threshold import shown_from
from detection.evaluation.record import Record
from detection.label_overlay import draw_label_map
from detection.model.architecture import Architecture
from detection.tasks.label_pictures import draw_labels, drawn_target
from detection.visualize import draw_record

__all__ = ["draw_watched"]

IMAGES = 4  # the same images each time, spread over data.val
LONGEST = 640  # longer side of each half, pixels


def draw_watched(
    config: DetectionConfig, model: nn.Module, result: Mapping[str, Any], *, index: AnnotationIndex
) -> dict[str, NDArray[np.uint8]]:
    """Returns name -> picture (H, W, 3) RGB of a few images of ``index``: ground truth beside the output of ``model``.

    Shows label maps, or detections above the score of the best F1 in ``result``, the result on all images.
    """
    assert isinstance(model, Architecture)
    device = choose_device(config.device)
    rows = range(0, len(index), max(1, len(index) // IMAGES))[:IMAGES]
    loader = build_test_loader(
        index, replace(config.data, workers=0), rows=rows, unresized=config.test.slice is not None
    )
    precision, operations = config.solver.precision, field_operations(config)
    tester = build_image_tester(config, [model]).to(device)
    maps, merge = dict[int, Labelled](), build_merge(config, len(index.class_names))
    records = predict(
        tester,
        loader,
        index,
        device=device,
        precision=precision,
        fields=operations,
        merge=merge,
        keep=maps.__setitem__,
    ).records
    return {
        f"val/{number}": _beside(index, row, record, shown_from(result), maps.get(row))
        for number, (row, record) in enumerate(zip(rows, records, strict=True))
    }


def _beside(
    index: AnnotationIndex, row: int, record: Record, min_score: float, found: Labelled | None
) -> NDArray[np.uint8]:
    """Returns the labels of an image beside its label map, or beside its detections over thin white objects."""
    image, names = index.image(row), index.class_names
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    if found is not None and index.label_maps is not None:
        true = read_labelled(index.label_maps, row, (image.shape[0], image.shape[1]))
        return np.concatenate([_map(image, labelled, index, scale) for labelled in (true, found)], axis=1)
    labels = draw_labels(image, drawn_target(index, row), names, keypoints=index.keypoints, scale=scale)
    return np.concatenate([labels, draw_record(image, record, names, min_score=min_score, scale=scale)], axis=1)


def _map(image: NDArray[np.uint8], labelled: Labelled, index: AnnotationIndex, scale: float) -> NDArray[np.uint8]:
    """Returns ``image``, resized by ``scale``, under a label map."""
    assert index.label_maps is not None
    outlines = None if labelled.segments is None else labelled.segments.ids
    return draw_label_map(image, labelled.labels, index.label_maps.class_names, outlines=outlines, scale=scale)
