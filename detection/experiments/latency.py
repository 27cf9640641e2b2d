"""Measures the latency of an experiment's variants on this machine, as one of any number of machines.

OUTPUT/latency/PLACE.json    p50 and p95 of every variant; the report has a column for each such file.

Copy the experiment's folder to the machine, measure there, and copy ``latency/`` back.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from detection.build import build_detector, data_parts
from detection.build_tester import build_image_tester
from detection.config.detection import DetectionConfig
from detection.data.loader import build_test_loader, load_index
from detection.engine.checkpoint import load_detector_weights, read_checkpoint
from detection.engine.latency import describe_device, measure_latency, percentile
from detection.engine.loop import PRECISIONS
from detection.experiments.comparison import cost_weights
from detection.experiments.experiment import Experiment, resolve_variants
from detection.experiments.runs import write_json
from detection.export.runtime import open_exported

__all__ = ["Place", "measure_latencies"]

IMAGES, WARMUP = 50, 3  # at most so many timed batches, and untimed ones before them


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The device and settings of a timing.

    Attributes:
        device: "cpu" or "cuda".
        threads: CPU threads; None: those of PyTorch.
        precision: precision of convolutions and matrix products.
        batch: images per forward pass.
        exported: name of the export in each run that is timed, such as "onnx"; None: PyTorch.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch: int = 1
    exported: str | None = None

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--latency-on cuda: torch finds no GPU here; measure on a machine that has one, or on cpu")
        if self.exported is not None and (self.device, self.precision) != ("cpu", "fp32"):
            raise ValueError(f"--exported {self.exported} runs on the CPU in the precision of its file")
        if self.device == "cuda" and self.threads is not None:
            raise ValueError(f"--threads {self.threads} counts threads of the CPU; leave it out with --latency-on cuda")


def measure_latencies(
    experiment: Experiment, output: Path, place: Place, *, say: Callable[[str], None] = print
) -> Path:
    """Times every variant on the first test images and writes the file of this place; returns its path.

    Uses the weights of a finished run, as the number of detections affects latency.  Without one, weights are random,
    and the file says so.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    configs, variants = resolve_variants(experiment, DetectionConfig), dict[str, Any]()
    before = torch.get_num_threads()
    torch.set_num_threads(place.threads or before)
    try:
        described = describe_device(torch.device(place.device))
        for variant, config in configs.items():
            say(f"{variant}: timing on {described}")
            variants[variant] = _time(config, cost_weights(output, variant), place)
    finally:
        torch.set_num_threads(before)
    host = re.sub(r"[^\w.-]", "_", platform.node()) or "machine"
    threads = f"_{place.threads}threads" if place.threads else ""
    export = f"_{place.exported}" if place.exported else ""
    path = output / "latency" / f"{host}_{place.device}{threads}_{place.precision}_batch{place.batch}{export}.json"
    write_json(path, {"host": host, "described": described, **asdict(place), "variants": variants})
    return path


def _time(config: DetectionConfig, weights: Path | None, place: Place) -> dict[str, Any]:
    """Returns milliseconds per image, the number of timed images, and the run of the weights."""
    device = torch.device(place.device)
    index = load_index(
        config.data, config.data.test, key="data.test", say=print, limit=config.data.limit, **data_parts(config)
    )
    count = min(IMAGES * place.batch, len(index))
    rows = range(max(count - count % place.batch, min(place.batch, count)))  # whole batches
    data = replace(config.data, workers=0)
    loader = build_test_loader(index, data, batch_size=place.batch, rows=rows, unresized=config.test.slice is not None)
    batches = [batch.images for batch in loader]
    tester = _tester(config, weights, place, index.class_names).to(device).eval()
    times = measure_latency(tester, batches, device, dtype=PRECISIONS[place.precision], warmup=WARMUP)
    per_image = [1000 * seconds / len(batch.sizes) for seconds, batch in zip(times, batches, strict=True)]
    return {
        "p50": percentile(per_image, 0.5),
        "p95": percentile(per_image, 0.95),
        "images": len(rows),
        "weights": weights and str(weights),
    }


def _tester(config: DetectionConfig, weights: Path | None, place: Place, class_names: Sequence[str]) -> nn.Module:
    """Returns the detector of the run ``weights``, or the export of it that ``place`` names."""
    checkpoint = None if weights is None else read_checkpoint(weights)
    if place.exported is not None:
        if weights is None or checkpoint is None:
            raise ValueError(f"--exported {place.exported}: no run is finished, so there is no export to time")
        exported = open_exported(weights / "export" / place.exported, threads=place.threads)
        exported.check_run(checkpoint)
        return exported
    detector = build_detector(config, len(class_names), pretrained=False)
    if checkpoint is not None:
        load_detector_weights(detector, checkpoint, class_names)
    return build_image_tester(config, [detector])
