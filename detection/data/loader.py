"""Builds data loaders from the data section of a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detection.config.detection import DetectorDataConfig
from detection.config.sections import DataConfig
from detection.data.cards import data_root, load_dataset
from detection.data.dataset import Batch, DetectionDataset, collate
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LACKING
from detection.data.problems import summarize
from detection.data.proposals import read_proposals
from detection.data.samplers import TestBatches, TrainBatches, repeat_factors
from detection.data.slices import Slices, cut_index
from detection.data.transforms import Augment, Change, Jitter, RandomResize, Resize, full_size
from detection.data.workers import Loader, start_worker
from detection.fields.table import FIELDS

__all__ = ["build_test_loader", "build_train_loader", "detection_loader", "load_data", "load_index", "make_loader"]


def load_index(
    config: DataConfig,
    specs: Sequence[str],
    *,
    key: str,
    say: Callable[[str], None],
    fields: Collection[str] = (),
    label_maps: bool = False,
    objects: bool = True,
    limit: int | None = None,
) -> AnnotationIndex:
    """Returns the first ``limit`` images of the data sets ``specs`` from the config's ``key``.

    Objects have the ``fields`` that the files give.  With ``label_maps`` the index also has label maps; without
    ``objects`` it has label maps only.

    ``say`` gets a line if objects were dropped, and one if metrics can't be computed.

    Raises:
        ValueError: ``specs`` is empty, a data set has errors, a training set has no ground truth, or label maps are
            missing.
    """
    if not specs:
        raise ValueError(f"{key} is empty; give a list of card:split, such as [voc2007:trainval]")
    index, problems = load_dataset(specs, data_root(config.root), fields=fields, label_maps=label_maps)
    if label_maps and index.label_maps is None and index.has_ground_truth:
        raise ValueError(f"{key} {list(specs)}: {LACKING}")
    if not objects and index.label_maps is not None:
        index = index.without_objects()
    if not index.has_ground_truth:
        missing = next(problem for problem in problems if problem.kind == "no ground truth")
        why = f"{missing.file}: {missing.detail}"
        if key == "data.train":
            raise ValueError(f"{key} {list(specs)} has no ground truth to train on: {why}")
        say(f"{key} {list(specs)} has no ground truth, so no figure can be computed: {why}")
    if problems:
        say(f"{', '.join(specs)}: {summarize(problems)}; resdet check lists them")
    return index if limit is None else index.first(limit)


def load_data(
    config: DataConfig,
    *,
    say: Callable[[str], None],
    fields: Collection[str] = (),
    test_fields: Collection[str] = (),
    label_maps: bool = False,
    objects: bool = True,
    limit: int | None = None,
) -> dict[str, AnnotationIndex]:
    """Returns the data sets of ``config`` as "train", "val" and "test"; the latter two only if it names them.

    Raises:
        ValueError: there is no training set, it lacks the ``fields`` or ``label_maps``, a data set has errors, or
            classes or keypoints differ between sets.
    """
    load = partial(load_index, config, say=say, label_maps=label_maps, objects=objects, limit=limit)
    sets = {"train": load(config.train, key="data.train", fields=fields)}
    for name in fields:
        if name not in sets["train"].fields:
            raise ValueError(
                f"data.train {list(config.train)} lacks {name}, which the detector or data.copy_paste needs: "
                f"{FIELDS[name].lacking}"
            )
    for name, specs in (("val", config.val), ("test", config.test)):
        if specs:
            sets[name] = load(specs, key=f"data.{name}", fields=test_fields)
    classes = sets["train"].class_names
    for name, index in sets.items():
        if index.class_names != classes:
            raise ValueError(
                f"data.train has the classes {classes}, data.{name} has {index.class_names}; "
                "they must be the same, in the same order"
            )
    labels = {name: index.label_maps.class_names for name, index in sets.items() if index.label_maps is not None}
    for name, names in labels.items():
        if names != labels.get("train"):
            raise ValueError(
                f"label maps of data.train have the classes {labels.get('train')}, those of data.{name} {names}; they "
                "must be the same, in the same order"
            )
    known = {name: index.keypoints.names for name, index in sets.items() if index.keypoints is not None}
    for name, names in known.items():
        if names != known["train"]:
            raise ValueError(
                f"data.train has the keypoints {known['train']}, data.{name} has {names}; they must be the same"
            )
    return sets


def build_train_loader(
    index: AnnotationIndex,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    pin: bool = False,
    share: tuple[int, int] = (0, 1),
    resize: Change | None = None,
    copy_paste: float = 0.0,
    repeat_threshold: float = 0.0,
    proposals: Path | None = None,
    kind: type[DetectionDataset] = DetectionDataset,
) -> DataLoader[Batch]:
    """Returns endless batches of ``batch_size`` augmented images, from batch ``start`` of the run seeded ``seed``.

    Args:
        index: images and objects.
        config: settings of augmentation, resizing and batching.
        batch_size: images per batch, over all processes.
        seed: seed of the run.
        start: number of the first batch.
        pin: use pinned memory, which copies to a GPU faster.
        share: (rank, world size): the part of every batch for this process.
        resize: resizes to the model's scale; None: to the config's shorter and longer side.
        copy_paste: probability of pasting objects of another image, which needs masks.
        repeat_threshold: threshold of ``repeat_factors``; 0: every image once per epoch.
        proposals: file with the proposals of the images.
        kind: class of the data set.

    Raises:
        ValueError: there is nothing to train on, an augmentation can't work, or objects to paste have no masks.
    """
    if copy_paste and "masks" not in index.fields:
        lacking = FIELDS["masks"].lacking
        raise ValueError(f"data.copy_paste pastes masks, which data.train {list(config.train)} lacks: {lacking}")
    if repeat_threshold and index.label_maps is not None and not len(index.boxes):
        raise ValueError("data.repeat_threshold counts objects, which label maps have not; set it to 0")
    slices = _slices(index, config)
    dataset = kind(
        index,
        resize=resize or Resize(config.shorter_side, config.longer_side),
        augment=Augment(config.augment, index.operations),
        seed=seed,
        proposals=read_proposals(proposals, index) if proposals else None,
        fields=tuple(index.fields),
        copy_paste=copy_paste,
        slices=slices,
        label_maps=index.label_maps is not None,
    )
    rows = _trained_on(index).nonzero().flatten() if config.skip_empty else torch.arange(len(index))
    if not len(rows):
        raise ValueError(f"data.train {list(config.train)} has no image to train on: {_nothing_wanted(index)}")
    repeats = repeat_factors(index, rows, repeat_threshold) if repeat_threshold else None
    if slices is not None:
        rows, repeats = slices.of_images(rows, repeats)
        if config.skip_empty and not slices.wanted[rows].any():
            raise ValueError("data.slice makes windows that show no object in enough of its area; make it larger")
    batches = TrainBatches(
        rows,
        index.sizes if slices is None else slices.sizes,
        batch_size=batch_size,
        seed=seed,
        group_by_aspect=config.group_by_aspect,
        start=start,
        repeats=repeats,
        share=share,
    )
    return make_loader(dataset, batches, workers=config.workers, pin=pin)


def detection_loader(index: AnnotationIndex, config: DetectorDataConfig, **options: Any) -> DataLoader[Batch]:
    """Returns the training batches of a detector; ``options`` are those of ``build_train_loader``.

    Raises:
        ValueError: as ``build_train_loader``.
    """
    return build_train_loader(
        index,
        config,
        resize=_train_resize(config),
        copy_paste=config.copy_paste,
        repeat_threshold=config.repeat_threshold,
        **options,
    )


def build_test_loader(
    index: AnnotationIndex,
    config: DataConfig,
    *,
    batch_size: int = 1,
    rows: Sequence[int] | None = None,
    corrupt: Change | None = None,
    unresized: bool = False,
    pin: bool = False,
) -> DataLoader[Batch]:
    """Returns every image of ``index`` (or of ``rows``) once, without augmentation and resized unless ``unresized``.

    ``corrupt`` is applied first.
    """
    resize = full_size if unresized else Resize(config.shorter_side, config.longer_side)
    dataset = DetectionDataset(index, resize=resize, corrupt=corrupt)
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
    """Returns a loader of ``dataset`` that collates the ``batches`` of the sampler."""
    return Loader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, os.cpu_count() or 1),  # more than cores would only wait; the number changes no sample
        collate_fn=collate,
        pin_memory=pin,
        generator=torch.Generator(),  # otherwise starting the workers would use the run's random generator
        worker_init_fn=start_worker,
    )


def _trained_on(index: AnnotationIndex) -> Tensor:
    """Returns whether each image (N,) bool has something to learn: an object that is not ignored, or a label map."""
    return index.num_wanted() > 0 if index.label_maps is None else index.label_maps.labelled()


def _nothing_wanted(index: AnnotationIndex) -> str:
    if index.label_maps is not None:
        return f"none of its {len(index)} images has a label image (data.skip_empty)"
    if not len(index.boxes):
        return (
            f"its {len(index)} images have no object; set `data.skip_empty: false` to train on "
            "background alone, or a semantic architecture (such as fcn) where the data set has label images"
        )
    return (
        f"its {len(index.boxes)} objects are all ignored (data.skip_empty) by COCO's `iscrowd` or VOC's `difficult`; "
        "set 0 for objects that aren't crowds, since some tools write `iscrowd: 1` for every mask"
    )


def _slices(index: AnnotationIndex, config: DataConfig) -> Slices | None:
    """Returns the windows to train on; None for whole images."""
    if not isinstance(config, DetectorDataConfig) or config.slice is None:
        return None
    return cut_index(
        index,
        side=config.slice,
        overlap=config.slice_overlap,
        visible=config.slice_visible,
        empty=config.slice_empty,
        whole=config.slice_whole,
    )


def _train_resize(config: DetectorDataConfig) -> Change:
    if config.jitter is not None:
        return Jitter(config.jitter.size, config.jitter.low, config.jitter.high)
    if config.train_shorter_sides:
        return RandomResize(config.train_shorter_sides, config.longer_side)
    return Resize(config.shorter_side, config.longer_side)
