"""Runs trainings as child processes, so that one crash does not end the others, and records their state.

RUN/              a run directory: see engine/trainer.py
RUN/status.json   state (running, done or failed), error, exit, hours of training, peak_memory_gib, code (its hash)
RUN/log.txt       output of the training
RUN/compare.lock  held while a process trains the run
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from detection.config.load import dump_config, parse_config
from detection.config.schema import flatten
from detection.config.sections import ProgramConfig
from detection.engine.signals import EXIT_STOPPED
from detection.files import write_text
from detection.progress import SCREEN, bar

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

__all__ = [
    "Placement",
    "Programs",
    "Run",
    "check_resumable",
    "child_environment",
    "execute",
    "is_done",
    "last_error",
    "read_status",
    "write_json",
    "write_status",
]

# Keys that change the numbers of a run at most by rounding, so that it may continue with other values.
PLACE_KEYS = ("data.root", "data.workers", "device", "output_dir", "solver.layout")
TAIL = 4096  # bytes, more than a line of metrics.jsonl
LOOK_EVERY = 2.0  # seconds between checks of the progress of trainings
GRACE = 60.0  # seconds that a stopped training gets to save


@dataclass(frozen=True, slots=True)
class Run:
    """One training: ``name`` is its seed, or the factor of the learning rate in a search."""

    variant: str
    name: str
    config: ProgramConfig
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant}/{self.name}"


@dataclass(frozen=True, slots=True)
class Programs:
    """Command lines to which options are appended: of a training, and of measuring a variant."""

    train: tuple[str, ...]
    costs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of runs in parallel, and the GPUs that they share; without GPUs PyTorch chooses."""

    jobs: int = 1
    gpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs takes a number from 1, got {self.jobs}")


@dataclass(frozen=True, slots=True)
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    lock: IO[str]
    log_start: int  # start of this child's part of the log, bytes


def execute(
    runs: Sequence[Run],
    programs: Programs,
    *,
    placement: Placement,
    code: str,
    retry_failed: bool = False,
    say: Callable[[str], None] = SCREEN.print,
) -> list[Run]:
    """Trains and tests ``runs``: skips finished runs, continues interrupted ones; a failure does not end the others.

    Ctrl-C stops the children, which save first; the next call continues.

    Args:
        runs: the runs, in the order in which they start.
        programs: command lines that start trainings.
        placement: number of runs in parallel, and their GPUs.
        code: hash of the code, for their status files.
        retry_failed: also continue runs that failed by their own error, such as a loss that is not finite.
        say: called with each line of progress.

    Returns:
        The runs that are not done.

    Raises:
        ValueError: a run was started with another config.
    """
    check_resumable(runs)
    waiting = deque(run for run in runs if _is_wanted(run, retry_failed, say))
    active: dict[int, _Child] = {}  # by slot
    with bar("trainings", sum(run.config.solver.iterations for run in runs), unit="steps") as move:
        looked = -LOOK_EVERY
        try:
            while waiting or active:
                for slot in set(range(placement.jobs)) - active.keys():
                    child = _start(waiting.popleft(), programs, placement, slot, code, say) if waiting else None
                    if child:
                        active[slot] = child
                        say(f"{child.run}: started, log in {child.run.folder / 'log.txt'}")
                for slot in [slot for slot, child in active.items() if child.process.poll() is not None]:
                    _finish(active.pop(slot), code, say)
                if time.monotonic() >= looked + LOOK_EVERY:
                    looked = time.monotonic()
                    move(sum(map(_steps_done, runs)), None)
                time.sleep(0.05)
        finally:
            _stop([*active.values()])
    return [run for run in runs if not is_done(run.folder)]


def check_resumable(runs: Sequence[Run]) -> None:
    """Raises ValueError if a run in its folder was started with another config than it has now."""
    for run in runs:
        path = run.folder / "config.yaml"
        if not path.is_file():
            continue
        try:
            began = flatten(parse_config(type(run.config), path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} can't be read: {error}; remove {run.folder} to train it anew") from error
        for key, value in flatten(run.config).items():
            if key not in PLACE_KEYS and began.get(key) != value:
                raise ValueError(
                    f"{path} has {key} {began.get(key)!r}, the experiment now gives {value!r}: a run can't change on "
                    f"its way; put the value back, choose another --output-dir, or remove {run.folder} to train anew"
                )


def is_done(folder: Path) -> bool:
    """Returns whether the run in ``folder`` is trained and tested."""
    return read_status(folder).get("state") == "done"


def read_status(folder: Path) -> dict[str, Any]:
    """Returns the content of status.json of a run; empty if the run has not begun."""
    path = folder / "status.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_status(
    folder: Path, state: str, *, error: str | None = None, code: str, exit_code: int | None = None
) -> None:
    """Writes status.json, with hours of training and peak memory from metrics.jsonl."""
    hours, memory = _spent(folder / "metrics.jsonl")
    status = {
        "state": state,
        "error": error,
        "exit": exit_code,
        "hours": hours,
        "peak_memory_gib": memory,
        "code": code,
    }
    write_json(folder / "status.json", status)


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` to ``path`` atomically, also if several machines write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.stem}.{platform.node()}.{os.getpid()}{path.suffix}")
    write_text(own, json.dumps(content, indent=2) + "\n")
    own.replace(path)


def child_environment(placement: Placement, slot: int = 0) -> dict[str, str]:
    """Returns the environment of the child in ``slot``: its GPU, and its share of the cores among several."""
    environment = dict(os.environ)
    if placement.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = placement.gpus[slot % len(placement.gpus)]
    if placement.jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // placement.jobs)))
    return environment


def last_error(log: str, exit_code: int) -> str:
    """Returns a line with the reason why a program that logged ``log`` ended with ``exit_code``."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"ended by signal {-exit_code} ({name}): killed, perhaps because memory ran out"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    said = (errors or lines or ["said nothing"])[-1].removeprefix("error: ")
    return said or f"exit status {exit_code}"


def _is_wanted(run: Run, retry_failed: bool, say: Callable[[str], None]) -> bool:
    """Returns whether a run is to be trained or continued; reports if it is not."""
    status = read_status(run.folder)
    if status.get("state") == "done":
        say(f"{run}: done before")
        return False
    own_fault = status.get("state") == "failed" and (status.get("exit") or 0) > 0
    if own_fault and not retry_failed:
        say(f"{run}: failed before ({status['error']}); --retry-failed tries again")
        return False
    return True


def _start(
    run: Run, programs: Programs, placement: Placement, slot: int, code: str, say: Callable[[str], None]
) -> _Child | None:
    """Starts the process of a run; returns None if another process is training it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = (run.folder / "compare.lock").open("a", encoding="utf-8")
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        say(f"{run}: skipped, as another process trains it")
        return None
    try:
        write_text(run.folder / "config.yaml", dump_config(run.config))
        write_status(run.folder, "running", code=code)
        log = run.folder / "log.txt"
        start = log.stat().st_size if log.is_file() else 0
        with log.open("ab") as stream:
            process = subprocess.Popen(
                _command(run, programs),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=child_environment(placement, slot),
                start_new_session=True,  # Ctrl-C reaches it through _stop alone
                pass_fds=[lock.fileno()],  # the child keeps the lock if this process is killed
            )
    except BaseException:  # on Ctrl-C too
        lock.close()
        raise
    return _Child(run, process, lock, start)


def _command(run: Run, programs: Programs) -> list[str]:
    config = str(run.folder / "config.yaml")
    return [*programs.train, config, "--output-dir", str(run.folder), "--resume"]


def _finish(child: _Child, code: str, say: Callable[[str], None]) -> None:
    """Records how a child ended."""
    run, exit_code = child.run, child.process.returncode
    child.lock.close()
    if exit_code == EXIT_STOPPED:
        say(f"{run}: stopped by a signal; the same command continues it")
        return
    if exit_code == 0 and (run.folder / "result.json").is_file():
        write_status(run.folder, "done", code=code, exit_code=0)
        say(f"{run}: done, {read_status(run.folder)['hours']:.2f} h of training")
        return
    with (run.folder / "log.txt").open("rb") as stream:
        stream.seek(child.log_start)
        error = last_error(stream.read().decode(errors="replace"), exit_code)
    write_status(run.folder, "failed", error=error, code=code, exit_code=exit_code)
    say(f"{run}: failed: {error}")


def _stop(children: Sequence[_Child]) -> None:
    """Lets ``children`` save and end."""
    for child in children:
        child.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.lock.close()


def _steps_done(run: Run) -> int:
    """Returns the number of iterations that are done."""
    if read_status(run.folder).get("state") in ("done", "failed"):
        return run.config.solver.iterations
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL))
        found = re.findall(rb'"iteration": (\d+)', stream.read())
    return int(found[-1]) if found else 0


def _spent(metrics: Path) -> tuple[float, float]:
    """Returns hours of training and peak memory (GiB) from a metrics.jsonl; lost iterations do not count."""
    seconds, memory, before = 0.0, 0.0, 0
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:  # the half-written last line of a run that was killed
            continue
        memory = max(memory, record.get("memory_gib", 0.0))
        if "seconds_per_step" in record:
            seconds += record["seconds_per_step"] * (record["iteration"] - before)
            before = record["iteration"]
    return seconds / 3600, memory
