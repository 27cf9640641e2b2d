"""The whole test, from pixels to detections, as one graph of fixed shapes.

Shapes: N images per call, H W height and width of the frame, D detections, S side of a mask, J keypoints, K classes of
label maps.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from detection.build import needed_fields
from detection.config.detection import DetectionConfig
from detection.export.constants import fold_constants
from detection.export.rows import keep_counted_rows
from detection.model.architecture import Architecture
from detection.padded import Found
from detection.structures import VOID, ImageBatch

__all__ = ["INPUTS", "LABEL_MAP", "OUTPUTS", "DetectorGraph", "capture", "count_labels", "output_names"]

INPUTS = ("pixels", "sizes")
OUTPUTS = ("boxes", "labels", "scores", "counts")
FURTHER = ("masks", "keypoints")  # follow the others, if the architecture predicts them
LABEL_MAP = "label_map"  # of networks with label maps: the last output, or the only one


def output_names(config: DetectionConfig) -> tuple[str, ...]:
    """Returns the names of the outputs of a graph of ``config``'s detector."""
    further = [name for name in FURTHER if name in needed_fields(config)]
    objects = (*OUTPUTS, *further) if config.finds_objects else ()
    return (*objects, LABEL_MAP) if config.finds_label_maps else objects


def count_labels(config: DetectionConfig, num_classes: int) -> int:
    """Returns K, the number of classes in the label maps of ``config``'s network; 0 if it predicts none."""
    if not config.finds_label_maps:
        return 0
    return 1 + len(config.panoptic.stuff) if config.finds_objects else num_classes


@runtime_checkable
class _OneGraph(Protocol):
    def detect(self, images: ImageBatch) -> Found: ...


class DetectorGraph(nn.Module):
    """A detector with tensors as inputs and outputs.

    Args:
        detector: an architecture whose test is one graph.
        half: compute convolutions and matrix products in float16.

    Raises:
        ValueError: the test of ``detector`` is not one graph.
    """

    def __init__(self, detector: Architecture, *, half: bool = False) -> None:
        super().__init__()
        if not isinstance(detector, _OneGraph):
            raise ValueError(
                f"{detector.name} can't be exported: it has no method detect(images) -> Found, a test of "
                "fixed shapes; those in the table of architectures of detection/build.py have"
            )
        self.detector, self.halved = detector, half

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Returns boxes (N, D, 4), labels (N, D), scores (N, D), counts (N,) and further outputs.

        These are masks (N, D, S, S), or keypoints (N, D, J, 3): x, y and score.  A panoptic network adds the best
        class (N, H, W) uint8 of each pixel, VOID outside the images; it is the only output of a semantic network.

        The first ``counts`` rows of an image are detections, best first; the others are zero.

        Args:
            pixels: (N, 3, H, W) uint8 RGB, each image at the top left of its frame and zeros right of and below it.
            sizes: (N, 2) int64, height and width of each image in its frame; boxes are in these pixels.
        """
        assert isinstance(self.detector, _OneGraph)
        with torch.autocast("cpu", dtype=torch.float16, enabled=self.halved):
            found = self.detector.detect(ImageBatch(pixels, sizes))
        maps = () if found.label_scores is None else (_label_map(found.label_scores, sizes),)
        if found.valid.shape[1] == 0:
            return maps
        boxes = torch.where(found.valid[..., None], found.boxes, 0.0)
        labels, scores = torch.where(found.valid, found.labels, 0), torch.where(found.valid, found.scores, 0.0)
        counts = found.valid.sum(dim=1)
        further = [values for name in FURTHER if (values := getattr(found, name)) is not None]
        return (
            boxes,
            labels,
            scores,
            counts,
            *(torch.where(found.valid[..., None, None], values, 0.0) for values in further),
            *maps,
        )


def _label_map(scores: Tensor, sizes: Tensor) -> Tensor:
    """Returns the best class (N, H, W) uint8 of ``scores`` (N, K, H, W), VOID outside images of ``sizes`` (N, 2)."""
    height, width = (torch.arange(side, device=scores.device) for side in scores.shape[-2:])
    heights, widths = sizes[:, :, None].unbind(1)  # (N, 1) each
    inside = (height < heights)[:, :, None] & (width < widths)[:, None]
    return torch.where(inside, scores.argmax(dim=1), VOID).to(torch.uint8)


@torch.no_grad()
def capture(detector: Architecture, *, size: tuple[int, int], batch: int, half: bool) -> ExportedProgram:
    """Captures the test of ``detector`` as a graph, with all values that depend on weights alone computed.

    Args:
        detector: a detector on the CPU.
        size: (height, width) of the frame in pixels.
        batch: N.
        half: compute convolutions and matrix products in float16, as with ``solver.precision: fp16``.

    Raises:
        ValueError: the test is not a graph of fixed shapes, or an image of ``size`` is too small for it.
    """
    # A contiguous copy, which torch.export saves without a warning.
    graph = deepcopy(DetectorGraph(detector, half=half))
    keep_counted_rows(graph)
    graph = graph.eval().to(memory_format=torch.contiguous_format)
    inputs = torch.zeros(batch, 3, *size, dtype=torch.uint8), torch.tensor([size] * batch)
    try:
        program = torch.export.export(graph, inputs).run_decompositions({})
    except RuntimeError as error:
        raise ValueError(
            f"{detector.name} can't take images of {size[0]}x{size[1]} pixels (height x width): "
            f"{_first_line(error)}; give a larger --size"
        ) from error
    folded = fold_constants(program.module())
    return torch.export.export(folded, inputs)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
