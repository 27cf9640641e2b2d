"""A trained detector for use in Python: an image in, detections with class names out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detection.build import build_detector, build_tester
from detection.config.detection import DetectionConfig
from detection.data.transforms import Resize
from detection.engine.checkpoint import load_detector_weights, read_checkpoint
from detection.engine.device import choose_device
from detection.mask_geometry import MaskGeometry
from detection.model.postprocess import rescale
from detection.structures import Detections, ImageBatch, Target

__all__ = ["Predictor"]


class Predictor:
    """Detections of single images.

        predictor = Predictor.load("output/bccd/resnet18_c4")
        detections = predictor(read_image("cells.jpg"))
        names = [predictor.class_names[label] for label in detections.labels]

    Args:
        tester: the detector and how it is tested.
        config: of its training; the test scale is read from it.
        class_names: K names.
        device: where the tester is.
    """

    def __init__(
        self, tester: nn.Module, *, config: DetectionConfig, class_names: tuple[str, ...], device: torch.device
    ) -> None:
        self.tester, self.class_names, self.device = tester.eval(), class_names, device
        self.mask_geometry: MaskGeometry = config.mask.geometry  # by which ``paste`` brings masks onto an image
        self._resize = Resize(config.data.shorter_side, config.data.longer_side)

    @classmethod
    def load(cls, weights: str | Path, *, device: str = "auto") -> Self:
        """The detector at ``weights``: a .safetensors checkpoint, or a run directory's best weights, else its newest.

        Raises:
            ValueError: there is none, or it can't be read; CUDA is asked for and missing.
        """
        checkpoint = read_checkpoint(weights)
        config = replace(checkpoint.config, device=device)
        detector = build_detector(config, len(checkpoint.class_names), pretrained=False)
        load_detector_weights(detector, checkpoint, checkpoint.class_names)
        where = choose_device(config.device)
        tester = build_tester(config.test, [detector]).to(where)
        return cls(tester, config=config, class_names=checkpoint.class_names, device=where)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Detections in ``image`` (H, W, 3) uint8 RGB, best first, on the CPU and in its own pixels."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), ignore=torch.zeros(0).bool())
        resized, _ = self._resize(image, nothing)
        batch = ImageBatch.from_images([torch.from_numpy(resized).permute(2, 0, 1)])
        (found,) = self.tester(batch.to(self.device))
        return rescale(found.to("cpu"), resized.shape[:2], image.shape[:2])
