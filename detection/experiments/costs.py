"""Measures the costs of a detector on fixed images: parameters, multiply-adds, latency and memory.

Run it in a separate process: the peak memory is that of the process.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from detection.build import build_detector, data_parts
from detection.build_tester import build_image_tester
from detection.config.detection import DetectionConfig
from detection.data.loader import build_test_loader, load_index
from detection.data.transforms import Resize
from detection.engine.checkpoint import Checkpoint, load_detector_weights
from detection.engine.device import choose_device, peak_memory_gib
from detection.engine.latency import describe_device, measure_latency, percentile
from detection.engine.loop import PRECISIONS
from detection.model.architecture import Architecture, RegionVerbs
from detection.padded import Regions
from detection.structures import ImageBatch

with warnings.catch_warnings():  # fvcore.nn calls torch.jit.script on import
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

__all__ = ["count_gflops", "measure_costs"]


def measure_costs(
    config: DetectionConfig, checkpoint: Checkpoint[DetectionConfig] | None, *, images: int = 50, warmup: int = 3
) -> dict[str, Any]:
    """Measures the detector that ``config`` describes on the first ``images`` of ``config.data.test``.

    Args:
        config: config of the run.
        checkpoint: trained weights, as the number of detections affects latency; None: random weights.
        images: number of timed images, one at a time.
        warmup: number of these images that are first run untimed.

    Returns:
        parameters, trainable_parameters and head_parameters; gflops with flops_note; latency_ms with p50, p95, images
        and device; peak_memory_gib of this process or of the GPU; weights, the file.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    index = load_index(
        config.data, config.data.test, key="data.test", say=print, limit=config.data.limit, **data_parts(config)
    )
    detector = build_detector(config, len(index.class_names), pretrained=False)
    if checkpoint is not None:
        load_detector_weights(detector, checkpoint, index.class_names)
    rows = range(min(images, len(index)))
    loader = build_test_loader(index, config.data, rows=rows, unresized=config.test.slice is not None)
    batches = [batch.images for batch in loader]
    device = choose_device(config.device)
    tester = build_image_tester(config, [detector]).to(device).eval()
    times = measure_latency(tester, batches, device, dtype=PRECISIONS[config.solver.precision], warmup=warmup)
    memory = peak_memory_gib(device)  # before the tracing below, which needs more
    height, width = batches[0].size_list()[0]
    if config.test.slice is not None:  # then they have their full size
        height, width = Resize(config.data.shorter_side, config.data.longer_side).size((height, width))
    proposals = config.rpn.post_nms_test
    regions = "" if config.one_stage or not config.finds_objects else f" with {proposals} proposals"
    return {
        **_parameters(detector),
        "gflops": count_gflops(detector.cpu(), (height, width), proposals=proposals),
        "flops_note": (
            f"billions of multiply-adds for one image of {height} x {width} (height x width){regions}; "
            "without pooling, NMS, masks and test-time methods"
        ),
        "latency_ms": {
            "p50": 1000 * percentile(times, 0.5),
            "p95": 1000 * percentile(times, 0.95),
            "images": len(times),
            "device": describe_device(device),
        },
        "peak_memory_gib": memory,
        "weights": None if checkpoint is None else str(checkpoint.path),
    }


@torch.no_grad()
def count_gflops(detector: nn.Module, size: tuple[int, int], *, proposals: int) -> float:
    """Returns billions of multiply-adds for one image of ``size`` (height, width) with a fixed number of ``proposals``.

    Counts convolutions, matrix products and normalisation layers by fvcore's FlopCountAnalysis.  A multiply-add is one
    operation, as in the tables of the papers.
    """
    pixels = torch.zeros(1, 3, *size, dtype=torch.uint8)
    analysis = FlopCountAnalysis(_FixedProposals(detector.eval(), proposals), (pixels,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return analysis.total() / 1e9


class _FixedProposals(nn.Module):
    """A test whose box stage gets a fixed number of regions, whatever the RPN proposes."""

    def __init__(self, detector: nn.Module, count: int) -> None:
        super().__init__()
        self.detector, self.count = detector, count

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns all outputs of a test, as layers that lead to no output would not be counted."""
        height, width = pixels.shape[-2:]
        images = ImageBatch(pixels, torch.tensor([[height, width]]))
        if not isinstance(self.detector, RegionVerbs):
            return tuple(part for found in self.detector(images) for part in (found.scores, found.boxes))
        features = self.detector.features(images)
        found = self.detector.propose(features, images)
        # Sides from a tenth of the image to the whole image, so that all levels of a feature pyramid get some.
        shares = torch.linspace(0.1, 1.0, self.count)[:, None]
        boxes = (shares * torch.tensor([0.0, 0.0, float(width), float(height)]))[None]
        regions = Regions(boxes=boxes, valid=torch.ones_like(boxes[..., 0], dtype=torch.bool), scores=shares.T)
        scored = self.detector.boxes(features, regions, images.sizes)
        return scored.scores, scored.boxes, found.boxes, found.scores


def _parameters(detector: Architecture) -> dict[str, int]:
    parameters = list(detector.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "head_parameters": sum(p.numel() for part in detector.head_modules() for p in part.parameters()),
    }
