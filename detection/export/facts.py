"""Metadata of an exported file: all that is needed to run it, and its origin."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, parse_config
from detection.engine.checkpoint import Checkpoint
from detection.engine.threshold import run_threshold
from detection.files import digest
from detection.model.architecture import Architecture

__all__ = ["KEY", "ExportFormat", "Facts", "Precision", "describe_export", "run_digest"]

KEY = "resdet"  # key of the metadata in a file
FORMAT = 1  # version of this metadata
ExportFormat = Literal["torch", "onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The metadata of an exported file.

    Attributes:
        format, precision: format and precision of the file.
        size: (height, width) of the frame in pixels; images lie at its top left, zeros fill the rest.
        batch: images per call.
        class_names: names of the classes.
        resize: shorter and longer side in pixels to which images are resized before the call, as the graph does not.
        mean, std, channel_order: normalisation, which the graph applies.
        score_threshold, nms_iou, max_detections: selection of detections in the graph.
        config: config of the run, YAML.
        shown_score, shown_origin: score threshold of a predictor, and where it comes from.
        licence: licence of the weights.
        run: SHA-256 of the run's weights and classes.
        weights, iteration: file name and iteration of the checkpoint.
        float_parts: parts of an int8 model that stayed float.
        opset: opset of ONNX; None for torch.
    """

    format: ExportFormat
    precision: Precision
    size: tuple[int, int]
    batch: int
    class_names: tuple[str, ...]
    resize: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str
    score_threshold: float
    nms_iou: float
    max_detections: int
    shown_score: float
    shown_origin: str
    config: str
    licence: str
    run: str
    weights: str
    iteration: int
    float_parts: tuple[str, ...] = ()
    opset: int | None = None

    def to_text(self) -> str:
        """Returns the metadata as JSON."""
        return json.dumps({"metadata_format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> Self:
        """Parses the output of ``to_text`` from the metadata of the file ``path``, which may be missing.

        Raises:
            ValueError: the file was written by another program or version.
        """
        if not text:
            raise ValueError(f"{path} is no export of resdet: its metadata lack {KEY!r}; resdet export RUN writes one")
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("metadata_format") != FORMAT:
                raise ValueError(f"its metadata are not of format {FORMAT}")
            content |= {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
            return cls(**content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} was exported by another version of resdet: {error}; export it again") from error

    def parsed_config(self) -> DetectionConfig:
        """Returns the config of the run."""
        return parse_config(DetectionConfig, self.config)


def describe_export(
    checkpoint: Checkpoint[DetectionConfig],
    detector: Architecture,
    *,
    format: ExportFormat,
    precision: Precision,
    size: tuple[int, int],
    batch: int,
    licence: str,
) -> Facts:
    """Returns the facts of an export of ``checkpoint``, from which ``detector`` was built."""
    config, stats, shown = checkpoint.config, detector.backbone.input_stats, run_threshold(checkpoint)
    return Facts(
        format=format,
        precision=precision,
        size=size,
        batch=batch,
        class_names=checkpoint.class_names,
        resize=(config.data.shorter_side, config.data.longer_side),
        mean=stats.mean,
        std=stats.std,
        channel_order=stats.channel_order,
        score_threshold=config.test.score_threshold,
        nms_iou=config.test.nms_iou,
        max_detections=config.test.max_detections,
        shown_score=shown.score,
        shown_origin=shown.origin,
        config=dump_config(config),
        licence=licence,
        run=run_digest(checkpoint),
        weights=checkpoint.path.name,
        iteration=checkpoint.iteration,
    )


def run_digest(checkpoint: Checkpoint[DetectionConfig]) -> str:
    """Returns the SHA-256 of the weights and classes of ``checkpoint``, which links an export to its run."""
    return digest([checkpoint.weights, list(checkpoint.class_names)])
