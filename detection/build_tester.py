"""Builds the test-time pipeline of one or more detectors from the test section of a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from detection.config.detection import DetectionConfig, PostprocessConfig
from detection.data.transforms import Resize
from detection.engine.compiled import CompiledTest, Frames
from detection.model.architecture import Architecture, RegionVerbs
from detection.model.postprocess import Postprocessor
from detection.model.semantic import SemanticNetwork
from detection.model.test_time.label_maps import LabelTester
from detection.model.test_time.slices import Cutting, Sliced
from detection.model.test_time.tester import Methods, Tester
from detection.structures import Detections, ImageBatch

__all__ = ["build_image_tester", "build_postprocessor", "build_tester", "slice_images"]


def build_tester(config: PostprocessConfig, detectors: Sequence[Architecture]) -> nn.Module:
    """Returns the test pipeline of one detector or an ensemble, as ``config`` describes.

    Raises:
        ValueError: an architecture does not support a test-time method or an ensemble.
    """
    methods = Methods(refine=config.refine, scales=config.scales, flip=config.flip)
    if all(isinstance(detector, RegionVerbs) for detector in detectors):
        return Tester(detectors, methods=methods, postprocess=build_postprocessor(config))
    if len(detectors) == 1 and methods == Methods():
        return detectors[0]
    if all(isinstance(detector, SemanticNetwork) for detector in detectors) and not config.refine:
        return LabelTester(detectors, scales=config.scales, flip=config.flip)
    raise ValueError(
        "test.refine, test.scales, test.flip and ensembles need regions, which "
        f"{', '.join(detector.name for detector in detectors)} lacks; leave them at their defaults"
    )


def build_image_tester(
    config: DetectionConfig, detectors: Sequence[Architecture], *, say: Callable[[str], None] | None = None
) -> nn.Module:
    """Returns ``build_tester``'s pipeline, over the windows of full-size images if ``config.test.slice`` is set.

    With ``say``, which gets a line for every graph, it is compiled if ``config.test.compile`` is set.

    Raises:
        ValueError: as ``build_tester``.
    """
    tester = build_tester(config.test, detectors)
    if config.test.compile and say is not None:
        frames = Frames.of_scale(config.data.shorter_side, config.data.longer_side)
        tester = CompiledTest(tester, "test.compile", frames, say=say, records=True)
    return tester if config.test.slice is None else slice_images(config, tester)


def slice_images(config: DetectionConfig, detect: Callable[[ImageBatch], list[Detections]]) -> Sliced:
    """Returns a detector of full-size images, which runs ``detect`` on windows as ``config.test.slice`` says.

    Args:
        config: with ``test.slice``.
        detect: detections of images that have the test scale; what ``build_tester`` returns, or an exported model.
    """
    test = config.test
    assert test.slice is not None
    cutting = Cutting(test.slice, test.slice_overlap, test.slice_whole, test.slice_merge, test.nms_iou)
    return Sliced(detect, cutting=cutting, fit=Resize(config.data.shorter_side, config.data.longer_side).size)


def build_postprocessor(config: PostprocessConfig) -> Postprocessor:
    """Returns the postprocessor, which selects detections among scored boxes."""
    return Postprocessor(
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        max_detections=config.max_detections,
        vote_iou=config.vote_iou,
        soft_nms_sigma=config.soft_nms_sigma,
    )
