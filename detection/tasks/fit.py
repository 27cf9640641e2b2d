"""Finds the smallest solver.accumulate that fits in GPU memory: ``resdet train --fit``.

The number of images per iteration stays the same."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from detection.config.detection import DetectionConfig
from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.data.loader import detection_loader
from detection.data.transforms import Resize
from detection.engine.distributed import refuse_many
from detection.engine.feed import Feed
from detection.engine.loop import NotFiniteError, step
from detection.engine.signals import StopRequest
from detection.engine.trainer import initial_state
from detection.progress import SCREEN

__all__ = ["fewest_parts", "fit_memory", "largest_images", "smallest_accumulate"]

STEPS = 2  # iterations of a trial: the second one has the optimizer's moments
SHARE = 0.95  # of the memory that a trial may use: iterations of other shapes leave gaps


def fit_memory(
    config: DetectionConfig,
    build: Callable[[], nn.Module],
    index: AnnotationIndex,
    device: torch.device,
    say: Callable[[str], None] = SCREEN.print,
) -> DetectionConfig:
    """Returns ``config`` with the smallest solver.accumulate that fits on ``device``; unchanged on a CPU.

    Args:
        config: config of the training.
        build: returns the model on the CPU.
        index: the training set.
        device: device that trains.
        say: called with each line of progress.

    Raises:
        ValueError: several processes, or nothing to train on.
        MemoryError: a single image does not fit.
    """
    refuse_many("--fit")
    before = config.solver.accumulate
    if device.type == "cpu":
        say(f"--fit: a CPU has no memory of its own to fill; solver.accumulate stays {before}")
        return config
    found, images = fewest_parts(config, build(), index, device, say), config.solver.images_per_step
    say(f"--fit: solver.accumulate={found} (was {before}): {images // found} of {images} images at once")
    return replace(config, solver=replace(config.solver, accumulate=found))


def fewest_parts(
    config: DetectionConfig,
    model: nn.Module,
    index: AnnotationIndex,
    device: torch.device,
    say: Callable[[str], None],
) -> int:
    """Returns the smallest number of parts in which ``device`` can compute an iteration; ``model`` is not changed.

    Tries the largest images of ``index``, at the largest training size and without augmentation.

    Raises:
        ValueError, MemoryError: as ``fit_memory``.
    """
    solver, data = config.solver, config.data
    side, images = max(data.train_shorter_sides, default=data.shorter_side), solver.images_per_step
    plain = {"augment": (), "copy_paste": 0.0, "repeat_threshold": 0.0, "train_shorter_sides": (), "workers": 0}
    data = replace(data, shorter_side=side, **plain)
    rows = largest_images(index, Resize(side, data.longer_side), images, mixed=not data.group_by_aspect)
    largest = index.take(rows)

    def holds(accumulate: int) -> bool:
        part = images // accumulate
        batches = detection_loader(largest, data, batch_size=part, seed=config.seed)
        tried = replace(config, solver=replace(solver, accumulate=accumulate))
        held = _holds(tried, model, batches, device)
        say(f"--fit: {part} images at once {'fit' if held else 'do not fit'}")
        return held

    found = smallest_accumulate(images, holds)
    if found is None:
        raise MemoryError(
            f"the GPU has no memory for even one image: lower data.shorter_side and longer_side ({side}, "
            f"{data.longer_side}), set solver.precision=bf16 (now {solver.precision}), or take a smaller backbone.name "
            f"than {config.backbone.name}"
        )
    return found


def smallest_accumulate(images: int, holds: Callable[[int], bool]) -> int | None:
    """Returns the smallest number of parts that an iteration fits in; None if a single image does not fit.

    Args:
        images: images per iteration, a multiple of the parts.
        holds: returns whether an iteration in so many parts fits in memory.
    """
    numbers = [number for number in range(1, images + 1) if images % number == 0]
    place = bisect_left(numbers, True, key=holds)  # more parts are smaller
    return numbers[place] if place < len(numbers) else None


def largest_images(index: AnnotationIndex, resize: Resize, count: int, *, mixed: bool) -> Tensor:
    """Returns the rows of the ``count`` images that take the most memory in one batch, or of all images.

    Leaves out images without objects, unless no image has any.

    Args:
        index: images.
        resize: the resize to the size that the model sees.
        count: number of images.
        mixed: batches mix portrait and landscape images, padded to the sides of both.
    """
    wanted = index.num_wanted().tolist()
    sizes = [resize.size((height, width)) for height, width in index.sizes.tolist()]
    rows = [row for row in range(len(index)) if wanted[row]] or [*range(len(index))]
    rows.sort(key=lambda row: (sizes[row][0] * sizes[row][1], wanted[row]), reverse=True)
    upright = [height > width for height, width in sizes]
    alike = [row for row in rows if upright[row] == upright[rows[0]]]
    others = [row for row in rows if upright[row] != upright[rows[0]]][: count // 2] if mixed else []
    return torch.tensor([*alike[: count - len(others)], *others])


def _holds(config: DetectionConfig, model: nn.Module, batches: Iterable[Batch], device: torch.device) -> bool:
    """Returns whether training a copy of ``model`` fits on ``device``; frees the memory afterwards."""
    parts = min(2, config.solver.accumulate)  # the second is computed while the gradient of the first is kept
    solver = replace(config.solver, accumulate=parts, images_per_step=parts)
    _limit(device, SHARE)
    try:
        state = initial_state(config, lambda _: deepcopy(model), device, fresh=True)
        feed = Feed(batches, parts=parts, steps=STEPS, stop=StopRequest())
        feed.begin()
        state.model.train()
        for _ in range(STEPS):
            step(state, state.model, feed, solver, device)
    except NotFiniteError:  # it fitted
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        state = None
        _limit(device, 1.0)
    return True


def _limit(device: torch.device, share: float) -> None:
    """Frees unused memory, and limits this process to ``share`` of the memory of ``device``."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share, device)
