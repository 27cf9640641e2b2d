"""Measures the costs of a classifier: parameters, multiply-adds of a crop, latency and memory.

Run it in a separate process: the peak memory is that of the process.
"""

from __future__ import annotations

from typing import Any

import torch

from backbones.summary import count_multiply_adds
from detection.classification.config import ClassificationConfig
from detection.classification.task import build_classifier, read_images, restore_classifier
from detection.classification.views import ClassViews
from detection.engine.checkpoint import Checkpoint
from detection.engine.device import choose_device, peak_memory_gib
from detection.engine.latency import describe_device, measure_latency, percentile
from detection.engine.loop import PRECISIONS
from detection.structures import ImageBatch

__all__ = ["measure_classifier_costs"]

IMAGES, WARMUP = 50, 3  # crops timed one at a time, and untimed ones before them


def measure_classifier_costs(
    config: ClassificationConfig, checkpoint: Checkpoint[ClassificationConfig] | None
) -> dict[str, Any]:
    """Measures the classifier that ``config`` describes on crops of the first images of ``config.data.test``.

    All early exits are counted.

    Args:
        config: config of the run.
        checkpoint: trained weights; None: random.

    Returns:
        parameters, trainable_parameters, gflops with flops_note, latency_ms, peak_memory_gib and weights, as
        ``measure_costs`` of detectors.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    index, side = read_images(config, config.data.test, "data.test", print), config.classification.crop
    num_classes = len(index.class_names)
    model = (
        build_classifier(config, num_classes, pretrained=False)
        if checkpoint is None
        else restore_classifier(checkpoint, index.class_names)
    )
    views = ClassViews(kind="crop", crop=side, shorter_side=config.classification.shorter_side, scales=())
    images = (torch.tensor(index.image(row)).permute(2, 0, 1) for row in range(min(IMAGES, len(index))))
    batches = [ImageBatch.from_images(views.of(image)) for image in images]
    device = choose_device(config.device)
    times = measure_latency(
        model.to(device).eval(), batches, device, dtype=PRECISIONS[config.solver.precision], warmup=WARMUP
    )
    memory = peak_memory_gib(device)
    with torch.device("meta"):
        network = build_classifier(config, num_classes, pretrained=False).network
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gflops": count_multiply_adds(network, (side, side)) / 1e9,
        "flops_note": f"billions of multiply-adds for one crop of {side} x {side}",
        "latency_ms": {
            "p50": 1000 * percentile(times, 0.5),
            "p95": 1000 * percentile(times, 0.95),
            "images": len(times),
            "device": describe_device(device),
        },
        "peak_memory_gib": memory,
        "weights": None if checkpoint is None else str(checkpoint.path),
    }
