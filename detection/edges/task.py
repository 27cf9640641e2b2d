"""Training HED to find edges, and testing it by the F-measure of BSDS500.

RUN is a run directory like a detector's; its result.json has ODS, OIS and AP ("edges"). A test writes the network's
edge maps, unprocessed, to RUN/test/edges.

Source: Xie and Tu 2015, "Holistically-Nested Edge Detection", section 4.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from backbones.extras.hed import HED
from detection.build_trunk import build_plain_backbone
from detection.data.index import AnnotationIndex
from detection.data.loader import build_train_loader, load_data, load_index
from detection.data.readers.bsds import BOUNDARY
from detection.data.transforms import full_size
from detection.edges.benchmark import EdgeCounts, edge_figures, measure_image
from detection.edges.config import EdgesConfig
from detection.edges.model import EdgeDetector
from detection.edges.thinning import suppress
from detection.engine.checkpoint import Checkpoint, describe_weights, load_detector_weights
from detection.engine.device import choose_device
from detection.engine.distributed import (
    EVALUATION_TIMEOUT,
    collect,
    gather,
    is_main,
    only_main,
    rank,
    start,
    together,
    world_size,
)
from detection.engine.trainer import Trainer
from detection.evaluation.metrics import read_metric, shown_in
from detection.files import write_text
from detection.masks import decode
from detection.progress import tracked
from detection.structures import ImageBatch

__all__ = ["build_edge_detector", "evaluate_edges", "format_edges", "run_edges"]

SECTION = "edges"  # of result.json
MASKS = ("masks",)


def run_edges(config: EdgesConfig, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains the edge detector that ``config`` describes into ``output`` and returns its last result.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        resume: go on from the newest checkpoint in it, if there is one.

    Raises:
        ValueError: bad data or config, or ``output`` holds a run and ``resume`` is not set.
        NotFiniteError, StoppedError, MemoryError, OSError: as ``run_training``.
    """
    start(choose_device(config.device))
    if config.solver.best_metric is not None:  # fails early on a misspelt name
        read_metric({SECTION: dict.fromkeys(_names())}, config.solver.best_metric)
    sets = load_data(config.data, say=only_main(print), fields=MASKS, test_fields=MASKS)
    for index in sets.values():
        _check(index)
    index, val, test = sets.pop("train"), sets.get("val"), sets.get("test")
    return Trainer(
        config,
        output,
        index,
        build=lambda fresh: build_edge_detector(config, pretrained=fresh),
        # At their own size: a boundary of one pixel would break where it is resized.
        load=partial(build_train_loader, index, config.data, share=(rank(), world_size()), resize=full_size),
        validate=None if val is None else lambda model: _measure(config, model, val, None),
        test=None if test is None else lambda model, facts: _write(_measure(config, model, test, None) | facts, output),
        sets=sets,
        resume=resume,
        tool="edges",
    ).run()


def evaluate_edges(config: EdgesConfig, checkpoint: Checkpoint[EdgesConfig], output: Path) -> dict[str, Any]:
    """Tests the detector ``checkpoint`` on ``config.data.test``; writes edge maps and result.json, and returns it.

    Args:
        config: of the test: data, thresholds, device.
        checkpoint: the weights; its own config builds the detector.
        output: directory for result.json and the folder edges.

    Raises:
        ValueError: bad data or config, or weights of something else.
    """
    start(choose_device(config.device))
    index = load_index(config.data, config.data.test, key="data.test", say=only_main(print), fields=MASKS)
    _check(index)
    model = build_edge_detector(checkpoint.config, pretrained=False)
    load_detector_weights(model, checkpoint, index.class_names)
    result = _measure(config, model, index, output / "edges")
    return _write(result | {"weights": describe_weights(checkpoint, config.data.test)}, output)


def build_edge_detector(config: EdgesConfig, *, pretrained: bool = True) -> EdgeDetector:
    """Returns the edge detector that ``config`` describes, on the CPU; ``pretrained`` loads the backbone's weights.

    Raises:
        ValueError: an option that the backbone lacks, or weights that do not fit it.
    """
    backbone = build_plain_backbone(config.backbone, pretrained=pretrained, out_features=config.edges.features)
    return EdgeDetector(HED(backbone), agreeing=config.edges.agreeing).to(memory_format=torch.channels_last)


def format_edges(result: dict[str, Any]) -> str:
    """Formats ``result`` as one line."""
    shown = ", ".join(f"{name} {result[SECTION][name]:.3f}" for name in _names())
    return f"{shown} of {result['images']} images, at the threshold {result['threshold']:.2f}"


def _check(index: AnnotationIndex) -> None:
    if index.class_names != (BOUNDARY,):
        raise ValueError(f"edges are learned from boundaries, a card of the format bsds; got {index.class_names}")


@torch.inference_mode()
def _measure(
    config: EdgesConfig, model: torch.nn.Module, index: AnnotationIndex, folder: Path | None
) -> dict[str, Any]:
    """Tests ``model`` on ``index``; returns the content of result.json, on every process.

    Edge maps are written to ``folder``, if there is one.
    """
    device, rows = choose_device(config.device), range(len(index))[rank() :: world_size()]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    counts: list[EdgeCounts] = []
    with (
        together("testing its share of the images", timeout=EVALUATION_TIMEOUT),
        tracked(rows, "testing", total=len(rows), count=lambda _: 1, shown=is_main()) as shown,
    ):
        model.to(device).eval()
        for row in shown:
            pixels = torch.tensor(index.image(row)).permute(2, 0, 1)
            edges = model(ImageBatch.from_images([pixels]).to(device))[0, 0].float().cpu().numpy().astype(np.float64)
            if folder is not None:
                Image.fromarray((255 * edges).round().astype(np.uint8)).save(
                    folder / f"{Path(index.paths[row]).stem}.png"
                )
            counts.append(_counted(config, edges, index, row))
    found = collect(counts)
    result: dict[str, Any] = {}
    if found is not None:
        figures = edge_figures(found)
        result = {SECTION: {name: figures[name] for name in _names()}}
        result |= {"threshold": figures["threshold"], "images": len(found)}
    return gather(result)[0]


def _counted(config: EdgesConfig, edges: NDArray[np.float64], index: AnnotationIndex, row: int) -> EdgeCounts:
    height, width = edges.shape
    boundaries = [drawn.numpy() for drawn in decode(index.stored("masks", row), (height, width))]
    options = config.edges
    return measure_image(suppress(edges) if options.suppress else edges, boundaries, count=options.thresholds)


def _write(result: dict[str, Any], output: Path) -> dict[str, Any]:
    with together("writing the result"):
        if is_main():
            output.mkdir(parents=True, exist_ok=True)
            write_text(output / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _names() -> list[str]:
    return [metric.short_name for metric in shown_in("console", f"{SECTION}.")]
