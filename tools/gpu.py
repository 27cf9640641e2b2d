"""Runs the GPU tests, and times our detectors beside torchvision's: one command, five minutes.

Faster and Mask R-CNN ResNet-50 FPN with the same random weights as torchvision's, in tests and training steps, in turns
in one process: eager in float32, TF32 and bfloat16, ours compiled and as CUDA graphs in bfloat16.  Rows that
do not fit in the time are "not run".  Writes a page named after the GPU.  Needs only torch, torchvision, numpy, rich
and pytest.

examples:
  python tools/gpu.py
  python tools/gpu.py --all --minutes 30
  python tools/gpu.py --device cpu                         a dry run of ResNet-18 on small images, which writes nothing
  torchrun --nproc-per-node 4 tools/gpu.py --minutes 10    steps of ours on several GPUs too, by DDP
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import torchvision
from rich.console import Console
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import FasterRCNN

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from pair import Call, Way, calls, make_pair  # noqa: E402  # tools are no package

Precision = Literal["fp32", "tf32", "bf16"]
Mode = Literal["eager", "compiled", "graphs"]
MODELS = {"R50-FPN": False, "Mask R50-FPN": True}  # name -> with masks
COMPILE_MODES = {"compiled": "default", "graphs": "reduce-overhead"}  # of torch.compile; the second has CUDA graphs
SIDES = {"cuda": 800, "cpu": 64}  # shorter side of the images, pixels
ROW_SECONDS = 4.0  # timed calls of a row end after these
SAY = Console(soft_wrap=True, highlight=False).print


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    model: str
    way: Way
    images: int
    precision: Precision
    mode: Mode


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one call: median seconds, and peak memory beyond that before the call."""

    seconds: float
    gib: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Ours, theirs, and the median of their ratios in turns; theirs is always eager."""

    ours: Cost
    theirs: Cost
    ratio: float


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=5.0, help="rows that start later are not run")
    parser.add_argument("--all", action="store_true", help="compile in every precision and at both batch sizes too")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gpu", help="folder of the page")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests marked gpu")
    return parser.parse_args()


def rows_of(batches: tuple[int, int], *, everything: bool) -> list[Row]:
    """Returns the rows of ``batches``, larger first; the first rows tell most."""
    eager = [
        Row(model, way, images, precision, "eager")
        for images, precision, model, way in product(
            batches, ("bf16", "tf32", "fp32"), MODELS, ("step", "test")
        )
    ]  # fmt: skip
    compiled = [
        Row(row.model, row.way, row.images, row.precision, mode)
        for mode in ("compiled", "graphs")
        for row in eager
        if everything or (row.images == batches[0] and row.precision == "bf16")
    ]
    return eager[:4] + compiled + eager[4:]


def measure(rows: Sequence[Row], device: torch.device, *, side: int, until: float) -> dict[Row, Measured | str]:
    """Returns the cost of each row, or the reason why it was not measured; prints each row at once.

    Args:
        rows: the rows in their order; a row that would start after ``until`` is not run.
        device: device of all detectors.
        side: shorter side of the images, pixels.
        until: seconds of ``time.monotonic``.
    """
    found: dict[Row, Measured | str] = {}
    depth = 50 if device.type == "cuda" else 18
    pairs = {name: make_pair(device, masks=masks, depth=depth) for name, masks in MODELS.items()}
    for row in rows:
        if time.monotonic() > until:
            found[row] = "not run: the time was over"
        elif device.type != "cuda" and (row.mode == "graphs" or row.precision == "tf32"):
            found[row] = "not run: needs CUDA"
        else:
            found[row] = _attempt(row, *pairs[row.model], device, side=side)
        SAY(line(row, found[row]))
    return found


def _attempt(row: Row, theirs: FasterRCNN, ours: nn.Module, device: torch.device, *, side: int) -> Measured | str:
    torch.compiler.reset()
    try:
        with numbers(row.precision, device):
            return compare(row, theirs, ours, device, side=side)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        ours._compiled_call_impl = None  # what nn.Module.compile sets
        if device.type == "cuda":
            torch.cuda.empty_cache()


def compare(row: Row, theirs: FasterRCNN, ours: nn.Module, device: torch.device, *, side: int) -> Measured:
    """Returns the costs of ``row``: warm calls in turns."""
    both = calls(row.way, theirs, {"ours": ours}, side=side, images=row.images, device=device)
    if row.mode != "eager":
        backend = "inductor" if device.type == "cuda" else "eager"  # a dry run has no time to compile
        mode = COMPILE_MODES[row.mode] if backend == "inductor" else None
        ours.compile(fullgraph=row.way == "step", backend=backend, mode=mode)
    memory = {name: peak(call, device) for name, call in both.items()}
    for call in (*both.values(), *both.values()):
        call()
    rounds: list[dict[str, float]] = []
    started = time.monotonic()
    while len(rounds) < 3 or (len(rounds) < 30 and time.monotonic() < started + ROW_SECONDS):
        rounds.append({name: seconds(call, device) for name, call in both.items()})
    costs = {name: Cost(statistics.median(turn[name] for turn in rounds), memory[name]) for name in both}
    ratio = statistics.median(turn["ours"] / turn["torchvision"] for turn in rounds)
    return Measured(costs["ours"], costs["torchvision"], ratio)


@contextmanager
def numbers(precision: Precision, device: torch.device) -> Iterator[None]:
    """Sets ``precision``: float32, float32 with TF32 products, or bfloat16 by autocast."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    mixed = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=precision == "tf32"), mixed:
        yield


def seconds(call: Call, device: torch.device) -> float:
    """Returns the seconds of one call."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak(call: Call, device: torch.device) -> float:
    """Returns the peak GiB of tensors of a call beyond those before it; NaN without a GPU."""
    call()  # the first allocates what stays, and compiles
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def line(row: Row, result: Measured | str) -> str:
    """Returns a row of the page's table."""
    cells = [row.model, row.way, str(row.images), row.precision, row.mode]
    if isinstance(result, str):
        return f"| {' | '.join(cells)} | {result} |" + " |" * 5
    for ours, theirs, ratio in (
        (1e3 * result.ours.seconds, 1e3 * result.theirs.seconds, result.ratio),
        (result.ours.gib, result.theirs.gib, result.ours.gib / result.theirs.gib),
    ):
        cells += ["n/a"] * 3 if math.isnan(ours) else [f"{ours:.3g}", f"{theirs:.3g}", f"{ratio:.2f}"]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| model | | images | precision | ours | ms | torchvision's, eager | ratio | GiB | torchvision's | ratio |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def scaling() -> str:
    """Returns a line about training steps of R50-FPN in bfloat16 on all GPUs of this run, by DDP, 8 images each."""
    device = torch.device("cuda", torch.cuda.current_device())
    theirs, ours = make_pair(device)
    variants = {"alone": ours, "together": DistributedDataParallel(ours, device_ids=[device.index])}
    both = calls("step", theirs, variants, side=SIDES["cuda"], images=8, device=device)
    with numbers("bf16", device):
        alone, together = (
            statistics.median([seconds(both[name], device) for _ in range(13)][3:]) for name in variants
        )  # the first three are warm-up
    world = distributed.get_world_size()
    return (
        f"{world} GPUs: {8 * world / together:.1f} images a second by DDP, {8 / alone:.1f} on one, "
        f"{100 * alone / together:.0f} % of {world} times that"
    )


def run_tests() -> str:
    """Runs the tests marked gpu in a separate process; returns pytest's last line."""
    # --noconftest: the shared fixtures need the packages of data and config.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-q",
        "-m",
        "gpu",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    done = subprocess.run(
        [*command, "-o", "filterwarnings=", str(ROOT / "tests" / "test_gpu.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    SAY(done.stdout if done.returncode not in (0, 5) else "", end="")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()


def machine(device: torch.device) -> list[str]:
    """Returns lines about the card, its clocks and the versions."""
    lines = [
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{os.cpu_count()} CPU cores"
    ]
    if device.type == "cuda":
        lines.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        lines.append(f"{fields}: {answer.stdout.strip() or answer.stderr.strip()}")
    return lines


def page(name: str, facts: Sequence[str], tests: str, rows: dict[Row, Measured | str], *, side: int) -> str:
    """Returns the text of the card's page."""
    measured = [f"- {fact}" for fact in facts]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`make gpu`, images of {side} x {side * 4 // 3} pixels, the same random weights in both, in turns in one "
            "process; medians of at least three warm calls. A step is forward, losses, backward and SGD; memory is "
            "what a call holds at its peak beyond what was there.",
            "",
            *measured,
            f"- tests marked `gpu`: {tests}",
            "",
            HEADER,
            *(line(row, result) for row, result in rows.items()),
            "",
        ]
    )


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; give --device cpu for a dry run on small images")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl")
    device, side = torch.device(args.device), SIDES[args.device]
    facts = machine(device)
    if several:
        facts.append(scaling())
        if distributed.get_rank():
            return
    tests = "not run" if args.no_tests else run_tests()
    SAY(f"tests marked gpu: {tests}\n\n{HEADER}")
    rows = rows_of((8, 2) if args.device == "cuda" else (2, 1), everything=args.all)
    found = measure(rows, device, side=side, until=started + 60 * args.minutes)
    SAY(f"\n{time.monotonic() - started:.0f} s")
    if args.device == "cuda":
        name = torch.cuda.get_device_name()
        file = args.output / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(name, facts, tests, found, side=side))
        SAY(f"written: {file}")


if __name__ == "__main__":
    main()
