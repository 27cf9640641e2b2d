"""Exchanges between the processes of a run, which torchrun starts.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE; without them there is one process, and all functions here do nothing.
Tensors travel over NCCL between GPUs and over gloo between CPUs; objects always over gloo.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as torch_distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detection.waiting import longest_wait

__all__ = [
    "EVALUATION_TIMEOUT",
    "RankError",
    "any_rank",
    "collect",
    "exchanges",
    "gather",
    "gradients_wait",
    "images_per_rank",
    "is_main",
    "mean",
    "only_main",
    "rank",
    "refuse_many",
    "replicated",
    "share_buffers",
    "start",
    "stop",
    "together",
    "world_size",
]

T = TypeVar("T")

TIMEOUT, EVALUATION_TIMEOUT = longest_wait("RESDET_STEP_MINUTES"), longest_wait("RESDET_EVALUATION_MINUTES")
ROLL_CALL = timedelta(seconds=5)  # after an exchange that failed, to find out who is missing


@dataclass(frozen=True, slots=True)
class _Processes:
    """The state that this process shares with the others."""

    objects: torch_distributed.ProcessGroup  # over gloo
    flags: torch_distributed.ProcessGroup  # over gloo too; breaks alone, so that ``objects`` can say who is missing
    timeout: timedelta


_joined: list[_Processes] = []  # one entry after ``start``


class RankError(RuntimeError):
    """Another process failed, or did not respond in time."""


def start(device: torch.device, *, timeout: timedelta = TIMEOUT) -> None:
    """Joins the processes that torchrun started, once; does nothing without torchrun.

    Args:
        device: device of the run; with several GPUs each process gets its own as "cuda".
        timeout: how long an exchange waits for the others by default.

    Raises:
        ValueError: more processes on this machine than GPUs.
    """
    if _joined or "WORLD_SIZE" not in os.environ:
        return
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(
                f"process {local} of this machine has no GPU, there are {gpus}: "
                f"start torchrun with --nproc-per-node={gpus}, or set device=cpu"
            )
        torch.cuda.set_device(local)
    torch_distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    objects, flags = (torch_distributed.new_group(backend="gloo", timeout=timeout) for _ in range(2))
    assert isinstance(objects, torch_distributed.ProcessGroup)
    assert isinstance(flags, torch_distributed.ProcessGroup)
    _joined.append(_Processes(objects, flags, timeout))
    atexit.register(stop)


def stop() -> None:
    """Leaves the other processes."""
    if _joined:
        _joined.clear()
        torch_distributed.destroy_process_group()


def rank() -> int:
    """Returns the number of this process, from 0."""
    return torch_distributed.get_rank() if _joined else 0


def world_size() -> int:
    """Returns the number of processes."""
    return torch_distributed.get_world_size() if _joined else 1


def is_main() -> bool:
    """Returns whether this is the process that writes and prints."""
    return rank() == 0


def only_main(say: Callable[[str], None]) -> Callable[[str], None]:
    """Returns ``say`` on the main process, and a function that prints nothing on the others."""
    return say if is_main() else _silence


def refuse_many(what: str) -> None:
    """Raises ValueError if torchrun started several processes, which ``what`` does not support."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{what} runs in one process; start it with python instead of torchrun")


def any_rank(*flags: bool, doing: str) -> tuple[bool, ...]:
    """Returns, for each of ``flags``, whether any process has set it: one all-reduce of a few bytes, without a barrier.

    Raises:
        RankError: as ``gather``.
    """
    if not _joined:
        return flags
    found = torch.tensor(flags, dtype=torch.uint8)
    with exchanges(doing):
        torch_distributed.all_reduce(found, op=torch_distributed.ReduceOp.MAX, group=_joined[0].flags)
    return tuple(map(bool, found.tolist()))


def gather(value: T, *, doing: str = "exchanging values", timeout: timedelta | None = None) -> list[T]:
    """Returns the ``value`` of every process in the order of ranks, on every process; any object that pickles.

    Args:
        value: of this process.
        doing: activity named in the message if another process does not respond.
        timeout: how long to wait for the others; None: that of ``start``.

    Raises:
        RankError: a process did not respond in time, or has ended; the message names who waited for whom.
    """
    if not _joined:
        return [value]
    _meet(doing, timeout)
    values = [value] * world_size()
    torch_distributed.all_gather_object(values, value, group=_joined[0].objects)
    return values


def mean(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean of every value over the processes; all must have the same names."""
    gathered = gather(dict(values))
    return {name: sum(own[name] for own in gathered) / len(gathered) for name in values}


def collect(rows: Sequence[T], *, timeout: timedelta = EVALUATION_TIMEOUT) -> list[T] | None:
    """Returns all processes' ``rows``, interleaved from rank 0 on, on the main process; None on the others.

    This restores the order of rows that were shared out as ``rows[rank() :: world_size()]``.  Shares may be empty.

    Raises:
        RankError: as ``gather``.
    """
    if not _joined:
        return list(rows)
    _meet("collecting results", timeout)
    gathered: list[Sequence[T]] = [()] * world_size()
    torch_distributed.gather_object(rows, gathered if is_main() else None, group=_joined[0].objects)
    if not is_main():
        return None
    return [gathered[number % len(gathered)][number // len(gathered)] for number in range(sum(map(len, gathered)))]


@contextmanager
def together(doing: str, *, timeout: timedelta | None = None) -> Iterator[None]:
    """Raises on all processes at the end of the block if one of them raised in it.

    Args:
        doing: activity named in the messages.
        timeout: how long to wait for the others; None: that of ``start``.

    Raises:
        RankError: another process raised, and the message has its rank and its error; or as ``gather``.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        if not _joined:
            raise
        own = error
    said = gather(own and f"{type(own).__name__}: {own}", doing=doing, timeout=timeout)
    if own is not None:
        raise own
    failed = [f"rank {number} of {len(said)} failed, {doing}: {text}" for number, text in enumerate(said) if text]
    if failed:
        raise RankError("; ".join(failed))


@contextmanager
def exchanges(doing: str) -> Iterator[None]:
    """Marks a block in which torch itself waits for the others, as DistributedDataParallel does.

    Args:
        doing: activity named in the message.

    Raises:
        RankError: as ``gather``, instead of torch's errors, which do not name the missing process.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no type of their own; the file that they come from tells them
        if not _joined or not (isinstance(error, torch_distributed.DistError) or "gloo" in str(error)):
            raise
        _meet(doing, ROLL_CALL)
        raise _timed_out(doing, error) from error


def images_per_rank(images_per_step: int, accumulate: int) -> int:
    """Returns the number of images that each process computes per part of a step.

    Raises:
        ValueError: the images cannot be shared out evenly.
    """
    shares = world_size() * accumulate
    if images_per_step % shares:
        nearest = max(round(images_per_step / shares), 1) * shares
        fewer = next((n for n in range(accumulate - 1, 0, -1) if images_per_step % (n * world_size()) == 0), None)
        raise ValueError(
            f"solver.images_per_step {images_per_step} must be a multiple of {world_size()} processes "
            f"x solver.accumulate {accumulate}; "
            + (f"set solver.accumulate to {fewer}" if fewer else f"the nearest is {nearest}")
        )
    return images_per_step // shares


def replicated(model: nn.Module) -> nn.Module:
    """Returns ``model``, whose backward pass averages the gradients of all processes; the model itself in a single one.

    Raises:
        ValueError: batch norm over all processes on a CPU, which torch lacks.
    """
    if not _joined:
        return model
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise ValueError("norm sync_bn needs GPUs where there is more than one process; on CPUs set it to gn or bn")
    return DistributedDataParallel(model)


def gradients_wait(replica: nn.Module, *, wait: bool) -> AbstractContextManager[None]:
    """Skips the gradient all-reduce (DDP's ``no_sync``) while ``wait`` is true; a later one takes the sum."""
    return replica.no_sync() if wait and isinstance(replica, DistributedDataParallel) else nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Copies the main process's buffers to all: statistics of plain batch norm differ between processes."""
    if _joined:
        with exchanges("sharing statistics"):
            for buffer in model.buffers():
                torch_distributed.broadcast(buffer, src=0)


def _silence(_text: str) -> None:
    pass


def _meet(doing: str, timeout: timedelta | None) -> None:
    """Waits for the other processes."""
    objects, usual = _joined[0].objects, _joined[0].timeout
    try:
        torch_distributed.monitored_barrier(objects, timeout=timeout or usual, wait_all_ranks=True)
    except RuntimeError as error:
        raise _timed_out(doing, error) from error


def _timed_out(doing: str, error: Exception) -> RankError:
    return RankError(
        f"rank {rank()} of {world_size()} timed out waiting for the others, {doing}: {' '.join(str(error).split())}; "
        "the output of the missing rank says why. If it was only slow, raise RESDET_STEP_MINUTES or "
        "RESDET_EVALUATION_MINUTES"
    )
