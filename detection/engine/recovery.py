"""Recovers from steps whose numbers are not finite, and saves the work of a run that ends early.

RUN/not_finite/0000123.json  the problem, the images by process and part of the step, seed, config, command to replay it
RUN/not_finite/0000123/      for the first one: a run directory with the state before the step
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detection.config.load import dump_config
from detection.config.sections import ProgramConfig
from detection.engine.checkpoint import Checkpoints
from detection.engine.distributed import gather, is_main, world_size
from detection.engine.feed import Feed
from detection.engine.loop import NotFiniteError, TrainState, device_of, random_state, set_random_state
from detection.engine.signals import StoppedError
from detection.files import write_text

__all__ = ["Recovery"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Handles steps that are not finite, and errors, of one run.

    Args:
        run: the run directory.
        config: of the run; ``solver.on_not_finite`` chooses what is done.
        checkpoints: of the run.
        say: called with warnings.
        tool: the resdet command that repeats a step.
    """

    run: Path
    config: ProgramConfig
    checkpoints: Checkpoints
    say: Callable[[str], None]
    tool: str

    @contextmanager
    def guard(self, state: TrainState) -> Iterator[None]:
        """Runs a step in the block; if its numbers are not finite, dumps it, then skips it or rolls back.

        Raises:
            NotFiniteError: neither is allowed, or too many steps have been skipped.
        """
        stops = self.config.solver.on_not_finite == "stop"
        random = random_state(device_of(state.model))  # a replay begins with it
        statistics = [] if stops else [buffer.clone() for buffer in _statistics(state.model)]
        try:
            yield
        except NotFiniteError as error:
            state.optimizer.zero_grad(set_to_none=True)
            set_random_state(random, device_of(state.model))
            if stops:
                _reset_broken_statistics(state.model)
            else:
                for buffer, before in zip(_statistics(state.model), statistics, strict=True):
                    buffer.copy_(before)
            self._not_finite(state, error)

    @contextmanager
    def saving(self, state: TrainState, feed: Feed) -> Iterator[None]:
        """Saves the steps done when training ends with an error, unless the error makes them suspect.

        Several processes save only if all of them are known to be at the same step.

        Raises:
            MemoryError: the GPU has no memory left.
            StoppedError: a signal has come, and ended the loader's processes as well.
        """
        try:
            yield
        except (NotFiniteError, StoppedError):  # suspect weights; saved already
            raise
        except torch.OutOfMemoryError as error:
            raise MemoryError(self._no_memory(state, error)) from error
        except (Exception, KeyboardInterrupt) as error:
            if state.iteration and not state.torn and (feed.failed or world_size() == 1):
                with suppress(OSError):  # a full disk may be the error
                    self.say(f"stopped; saved {self.checkpoints.save(state)}; --resume continues from it")
            if feed.signal:
                raise self.stopped(state, feed) from error
            raise

    def stopped(self, state: TrainState, feed: Feed) -> StoppedError:
        """Returns the error that ends a saved run after a signal."""
        return StoppedError(
            f"{feed.signal or 'a signal to another process'} ended the run after iteration {state.iteration} of "
            f"{self.config.solver.iterations}; the same command with --resume continues from the newest checkpoint in "
            f"{self.checkpoints.folder}"
        )

    def _not_finite(self, state: TrainState, error: NotFiniteError) -> None:
        """Handles a step that is not finite as the config says; ``state`` is the one before it."""
        solver = self.config.solver
        path = self._dump(state, error, whole=state.not_finite == 0)
        state.not_finite += 1
        message = f"{error}; {path} has all it takes to repeat the step"
        if solver.on_not_finite == "stop":
            raise NotFiniteError(message, error.files) from error
        if state.not_finite > solver.max_not_finite:
            raise NotFiniteError(
                f"{message}; it is number {state.not_finite}, solver.max_not_finite is {solver.max_not_finite}",
                error.files,
            ) from error
        back = self._roll_back(state) if solver.on_not_finite == "roll_back" else ""
        self.say(f"warning: skipped a step{back}, {state.not_finite} of {solver.max_not_finite}: {message}")

    def _dump(self, state: TrainState, error: NotFiniteError, *, whole: bool) -> Path:
        """Writes the files of the step that ``error`` is about; returns the JSON file.  All processes call it.

        Args:
            state: before the step.
            error: of the step.
            whole: with the state, so that the step can be taken again.
        """
        folder = self.run / "not_finite" / f"{state.iteration:07d}"
        solver = replace(self.config.solver, iterations=state.iteration + 1, on_not_finite="stop", patience=0)
        single = replace(self.config, solver=solver, data=replace(self.config.data, val=(), test=()))
        files = gather(error.files, doing="dumping a step")
        if whole:
            names = self.checkpoints.class_names
            Checkpoints(folder / "checkpoints", keep=1, config=single, class_names=names).save(state)
        path = folder.with_suffix(".json")
        if is_main():
            folder.parent.mkdir(parents=True, exist_ok=True)
            command = f"resdet {self.tool} {folder / 'config.yaml'} --output-dir {folder} --resume"
            content = {
                "iteration": state.iteration,
                "problem": str(error),
                "files": files,  # by process, then by part of the step
                "seed": self.config.seed,
                "replay": command if whole else None,
                "config": asdict(self.config),
            }
            if whole:
                write_text(folder / "config.yaml", dump_config(single))
            write_text(path, json.dumps(content, indent=2) + "\n")
        return path

    def _roll_back(self, state: TrainState) -> str:
        """Loads the newest checkpoint's weights and moments, not its iteration, into ``state``; returns a note."""
        newest = self.checkpoints.newest(self.say)
        if newest is None:
            return " from the same weights, since no checkpoint is saved yet"
        kept = state.iteration, state.best, state.evaluated, state.stale, state.not_finite
        self.checkpoints.restore(newest, state)
        state.iteration, state.best, state.evaluated, state.stale, state.not_finite = kept
        return f" and went back to the weights of iteration {newest[0].iteration}"

    def _no_memory(self, state: TrainState, error: torch.OutOfMemoryError) -> str:
        solver, data = self.config.solver, self.config.data
        if not state.torn:
            return (
                f"the GPU ran out of memory in an evaluation after iteration {state.iteration}: lower "
                f"data.shorter_side and longer_side ({data.shorter_side}, {data.longer_side}), or set "
                f"solver.precision=bf16 (now {solver.precision}); --resume continues from the newest checkpoint. "
                f"{error}"
            )
        fit = ", as --fit does" if self.tool == "train" else ""
        return (
            f"the GPU ran out of memory at iteration {state.iteration}: raise solver.accumulate "
            f"(now {solver.accumulate}, of {solver.images_per_step} images a step) so that fewer images "
            f"are computed at once{fit}, or lower data.shorter_side and longer_side ({data.shorter_side}, "
            f"{data.longer_side}), or set solver.precision=bf16 (now {solver.precision}); "
            f"--resume continues from the newest checkpoint. {error}"
        )


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns the layers whose running statistics a training step changes."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]


def _statistics(model: nn.Module) -> list[Tensor]:
    return [buffer for layer in _batch_norms(model) for buffer in layer.buffers()]


def _reset_broken_statistics(model: nn.Module) -> None:
    """Resets running statistics that the step made non-finite; the replay of a training step does not read them."""
    for layer in _batch_norms(model):
        if not all(buffer.isfinite().all() for buffer in layer.buffers()):
            layer.reset_running_stats()
