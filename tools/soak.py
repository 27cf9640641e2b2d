"""Searches for memory leaks: trains for many iterations and logs the memory of the process and its loader's workers.

Prints the memory on the way, and its slope over the second half, when caches are warm. A leak of one 600 x 1000 image a
step would be 1,700 MiB per 1,000 steps. Checkpoints are saved on the way, into a directory that goes afterwards. Linux
only.

examples:
  python tools/soak.py --config-file configs/digits/resnet18_c4.yaml
  python tools/soak.py --config-file configs/digits/resnet18_c4.yaml --steps 10000 data.workers=4 device=cpu
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.loader import build_train_loader, load_data
from detection.engine.loop import NotFiniteError
from detection.engine.trainer import Trainer

SAMPLES = 40  # measurements of a soak


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, help="a YAML file of configs/")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="optimizer steps (default: 2000)")
    parser.add_argument(
        "--limit",
        type=float,
        default=10.0,
        metavar="MIB",
        help="a slope above it, per 1,000 steps, is exit status 1 (10)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.workers=4")
    return parser.parse_intermixed_args()


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB by process at some steps."""

    steps: list[int] = field(default_factory=list)
    trainer: list[float] = field(default_factory=list)
    workers: list[float] = field(default_factory=list)  # of all of them

    def measure(self, step: int) -> None:
        self.steps.append(step)
        self.trainer.append(memory_mib(os.getpid()))
        self.workers.append(sum(memory_mib(child.pid) for child in multiprocessing.active_children() if child.pid))

    def slope(self, values: list[float]) -> float:
        """Returns MiB per 1,000 steps over the second half: the median of all pairs, robust to peaks of saving."""
        half = len(values) // 2
        steps, mib = np.array(self.steps[half:]), np.array(values[half:])
        first, second = np.triu_indices(len(steps), 1)
        return 1000 * float(np.median((mib[second] - mib[first]) / (steps[second] - steps[first])))


def memory_mib(pid: int) -> float:
    """Returns the memory of a process that no file lies behind, with its part of what lies in shared memory.

    Pages that a worker still shares with the trainer count as its own: else every one that either of them writes to,
    and so has for itself from then on, would look like a leak.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Anonymous:", "Pss_Shmem:"))) / 1024


def soak(config: DetectionConfig, memory: Memory) -> None:
    """Trains by ``config``; evaluations only measure memory."""
    index = load_data(config.data, say=print)["train"]

    def measure(_model: nn.Module) -> dict[str, Any]:
        if len(memory.steps) == SAMPLES:  # the last step, without workers
            return {}
        memory.measure((len(memory.steps) + 1) * config.solver.evaluate_every)
        print(f"step {memory.steps[-1]}: trainer {memory.trainer[-1]:.1f} MiB, workers {memory.workers[-1]:.1f} MiB")
        return {}

    with tempfile.TemporaryDirectory() as output:
        Trainer(
            config,
            Path(output),
            index,
            build=lambda fresh: build_detector(config, len(index.class_names), pretrained=fresh),
            load=partial(build_train_loader, index, config.data),
            validate=measure,
        ).run()


def main() -> int:
    args = parse_args()
    config = load_config(DetectionConfig, args.config_file, args.overrides)
    every = max(args.steps // SAMPLES, 1)
    solver = replace(
        config.solver,
        iterations=every * SAMPLES + 1,  # the loader ends its workers before the last step
        evaluate_every=every,
        log_every=every * SAMPLES,
        best_metric=None,
    )
    memory = Memory()
    soak(replace(config, solver=solver), memory)
    slopes = {"trainer": memory.slope(memory.trainer), "workers": memory.slope(memory.workers)}
    for name, slope in slopes.items():
        print(f"{name}: {slope:+.2f} MiB per 1,000 steps")
    return int(max(slopes.values()) > args.limit)


if __name__ == "__main__":
    try:
        status = main()
    except (ValueError, OSError, NotFiniteError) as error:
        sys.exit(f"error: {error}")
    sys.exit(status)
