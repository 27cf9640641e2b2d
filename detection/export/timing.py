"""Measures latency and memory of a detector in a separate process, so that peak memory is that of the detector.

python -m detection.export.timing MODEL IMAGES THREADS prints JSON; MODEL is a checkpoint, a run or an exported file,
IMAGES a file that ``measure_apart`` saved.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from detection.build import build_detector
from detection.build_tester import build_tester
from detection.engine.checkpoint import load_detector_weights, read_checkpoint
from detection.engine.device import peak_memory_gib
from detection.engine.latency import measure_latency, percentile
from detection.export.runtime import find_export, open_exported
from detection.structures import ImageBatch

__all__ = ["Timing", "measure_apart"]

WARMUP = 3  # untimed images


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds per image, from pixels in memory to detections, and peak memory of the process."""

    p50: float
    p95: float
    peak_memory_gib: float


def measure_apart(model: Path, images: Sequence[Tensor], *, threads: int) -> Timing:
    """Measures ``model``, a checkpoint or an exported file, on ``images`` (3, H, W), one at a time.

    Raises:
        RuntimeError: the process failed; the message has its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "images.pt")
        torch.save(list(images), saved)
        command = [sys.executable, "-m", "detection.export.timing", str(model), str(saved), str(threads)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
        raise RuntimeError(f"timing {model} failed: {last}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def _detector(model: Path, threads: int) -> nn.Module:
    if find_export(model) is not None:
        return open_exported(model, threads=threads)
    checkpoint = read_checkpoint(model)
    detector = build_detector(checkpoint.config, len(checkpoint.class_names), pretrained=False)
    load_detector_weights(detector, checkpoint, checkpoint.class_names)
    return build_tester(checkpoint.config.test, [detector])


def _main(model: str, images: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    detector = _detector(Path(model), int(threads)).eval()
    batches = [ImageBatch.from_images([image]) for image in torch.load(images)]
    device = torch.device("cpu")
    times = measure_latency(detector, batches, device, dtype=torch.float32, warmup=WARMUP)
    found = Timing(1000 * percentile(times, 0.5), 1000 * percentile(times, 0.95), peak_memory_gib(device))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
