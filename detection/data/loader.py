"""From the data section of a config to loaders."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detection.config.detection import DataConfig
from detection.data.cards import data_root, load_dataset
from detection.data.dataset import Batch, DetectionDataset, collate
from detection.data.index import NO_MASKS, AnnotationIndex
from detection.data.problems import summarize
from detection.data.proposals import read_proposals
from detection.data.samplers import TestBatches, TrainBatches, repeat_factors
from detection.data.transforms import Augment, Jitter, RandomResize, Resize, Scaling

__all__ = ["build_test_loader", "build_train_loader", "load_index", "make_loader"]


def load_index(
    config: DataConfig, specs: Sequence[str], *, key: str, say: Callable[[str], None], masks: bool = False
) -> AnnotationIndex:
    """Returns the data sets ``specs``, which the config's ``key`` names; ``say`` gets a line if objects were dropped.

    Raises:
        ValueError: no data set, or one with errors.
    """
    if not specs:
        raise ValueError(f"{key} is empty; give a list of card:split, such as [voc2007:trainval]")
    index, problems = load_dataset(specs, data_root(config.root), masks=masks)
    if key == "data.train" and not index.has_ground_truth:
        missing = next(problem for problem in problems if problem.kind == "no ground truth")
        raise ValueError(f"{key} {list(specs)} has no ground truth to train on: {missing}")
    if problems:
        say(f"{', '.join(specs)}: {summarize(problems)}; tools/check_data.py lists them")
    return index if config.limit is None else index.first(config.limit)


def build_train_loader(
    index: AnnotationIndex,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    pin: bool = False,
    share: tuple[int, int] = (0, 1),
    kind: type[DetectionDataset] = DetectionDataset,
) -> DataLoader[Batch]:
    """Endless batches of ``batch_size`` augmented images, from batch number ``start`` of the run seeded ``seed``.

    Args:
        index: images and objects.
        config: how they are augmented, resized and put together.
        batch_size: images of a batch, of all processes.
        seed: of the run.
        start: number of the first batch.
        pin: put them into memory that copies to a GPU faster.
        share: (number of this process, of how many): which part of every batch it gets.
        kind: of data set that reads them.

    Raises:
        ValueError: nothing to train on, an augmentation that can't work, or objects to paste without masks.
    """
    if config.copy_paste and index.masks is None:
        raise ValueError(f"data.copy_paste pastes masks, which data.train {list(config.train)} lacks: {NO_MASKS}")
    proposals = read_proposals(config.proposals, index) if config.proposals else None
    dataset = kind(
        index,
        resize=_train_resize(config),
        augment=Augment(config.augment),
        seed=seed,
        proposals=proposals,
        masks=index.masks is not None,
        copy_paste=config.copy_paste,
    )
    rows = index.num_wanted().nonzero().flatten() if config.skip_empty else torch.arange(len(index))
    if not len(rows):
        raise ValueError(f"data.train {list(config.train)} has no image to train on: {_nothing_wanted(index)}")
    batches = TrainBatches(
        rows,
        index.sizes,
        batch_size=batch_size,
        seed=seed,
        group_by_aspect=config.group_by_aspect,
        start=start,
        repeats=repeat_factors(index, rows, config.repeat_threshold) if config.repeat_threshold else None,
        share=share,
    )
    return make_loader(dataset, batches, workers=config.workers, pin=pin)


def build_test_loader(
    index: AnnotationIndex,
    config: DataConfig,
    *,
    batch_size: int = 1,
    rows: Sequence[int] | None = None,
    pin: bool = False,
) -> DataLoader[Batch]:
    """Every image of ``index`` once (or only ``rows``), resized and not augmented."""
    dataset = DetectionDataset(index, resize=Resize(config.shorter_side, config.longer_side))
    batches = TestBatches(range(len(index)) if rows is None else rows, batch_size=batch_size)
    return make_loader(dataset, batches, workers=config.workers, pin=pin)


def make_loader(
    dataset: Dataset[Any],
    batches: Sampler[list[tuple[int, int]]],
    *,
    workers: int,
    pin: bool,
    collate: Callable[[Any], Any] = collate,
) -> DataLoader[Any]:
    """What ``collate`` makes of the samples of ``dataset``, in the ``batches`` that the sampler says."""
    return DataLoader[Any](  # of Sample by its stubs, which do not know collate_fn
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, os.cpu_count() or 1),  # more than cores only wait; the number changes no sample
        collate_fn=collate,
        pin_memory=pin,
        generator=torch.Generator(),  # else starting the workers would draw from the run's random numbers
        worker_init_fn=_start_worker,
    )


def _nothing_wanted(index: AnnotationIndex) -> str:
    if not len(index.boxes):
        return f"its {len(index)} images have no object; set `data.skip_empty: false` to train on background alone"
    return (
        f"its {len(index.boxes)} objects are all ignored (data.skip_empty) by COCO's `iscrowd` or VOC's `difficult`; "
        "set 0 for objects that aren't crowds, since some tools write `iscrowd: 1` for every mask"
    )


def _train_resize(config: DataConfig) -> Scaling:
    if config.jitter is not None:
        return Jitter(config.jitter.size, config.jitter.low, config.jitter.high)
    if config.train_shorter_sides:
        return RandomResize(config.train_shorter_sides, config.longer_side)
    return Resize(config.shorter_side, config.longer_side)


def _start_worker(_worker: int) -> None:
    # What ends a whole group of processes is for the training process alone: it saves, and then ends its workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)  # a worker is one process per core already


@atexit.register
def _end_workers() -> None:
    """Ends workers that are left when the program ends; Python would send them SIGTERM and wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own handler would report that they were killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
