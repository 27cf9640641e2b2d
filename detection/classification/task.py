"""Trains and tests a backbone as an image classifier, to initialise detectors.

RUN is a run directory like that of a detector; its result.json has top-1 and top-5 accuracy ("top1", "top5").
``backbone.weights: RUN`` starts a detector from it.

Source: "Deep Residual Learning for Image Recognition", sections 3.4 and 4.2.
Shapes: N images, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from backbones.base import Backbone
from backbones.classifier import Classifier
from backbones.extras.attention_critic import CriticClassifier
from backbones.extras.branchynet import BranchyNet, Exit
from backbones.extras.relay import RelayClassifier
from backbones.extras.spp import SPP
from backbones.library_classifier import is_of_library
from detection.build_trunk import build_plain_backbone
from detection.classification.compare import PER_IMAGE, dump_shares
from detection.classification.config import ClassificationConfig, ClassifierConfig
from detection.classification.exits import draw_exits, measure_exits
from detection.classification.library import build_library_classifier, load_published
from detection.classification.mixing import Mixing
from detection.classification.model import ImageClassifier
from detection.classification.tags import TAGS, choose_thresholds, format_tags, tag_result
from detection.classification.views import ClassImages, ClassViews, Views, class_view_loader
from detection.data.class_labels import image_tags, whole_images
from detection.data.index import AnnotationIndex, index_digest
from detection.data.loader import build_train_loader, load_data, load_index
from detection.engine.checkpoint import Checkpoint, describe_weights, load_detector_weights
from detection.engine.device import choose_device
from detection.engine.distributed import (
    EVALUATION_TIMEOUT,
    collect,
    gather,
    is_main,
    only_main,
    rank,
    start,
    together,
    world_size,
)
from detection.engine.loop import PRECISIONS
from detection.engine.trainer import Trainer
from detection.evaluation.metrics import read_metric, shown_in
from detection.files import write_text
from detection.progress import tracked

__all__ = [
    "build_classifier",
    "evaluate_classifiers",
    "evaluate_weights",
    "format_accuracy",
    "read_images",
    "restore_classifier",
    "run_pretraining",
]

SECTION = "classification"  # of result.json
IMAGES = "per_image"  # of what a test gives, for the file of that name
Found = TypeVar("Found")  # of one image


def run_pretraining(config: ClassificationConfig, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains the classifier that ``config`` describes into ``output`` and returns its last result.

    Args:
        config: config of the run.
        output: the run directory, created if needed.
        resume: continue from the newest checkpoint in ``output``, if there is one.

    Raises:
        ValueError: bad data or config, an image with objects of two classes, or ``output`` holds a run and ``resume``
            is not set.
        NotFiniteError, StoppedError, MemoryError, OSError: as ``run_training``.
    """
    start(choose_device(config.device))
    if config.solver.best_metric is not None:  # fails early on a misspelt name
        section = TAGS if config.classification.tags else SECTION
        read_metric({section: dict.fromkeys(_names(section))}, config.solver.best_metric)
    only_main(print)(f"images: data.shorter_side {config.data.shorter_side} in training, {_shown(config)} in a test")
    sets = {name: _images(config, index) for name, index in load_data(config.data, say=only_main(print)).items()}
    index, val, test = sets.pop("train"), sets.get("val"), sets.get("test")
    return Trainer(
        config,
        output,
        index,
        build=lambda fresh: build_classifier(config, len(index.class_names), pretrained=fresh),
        load=partial(build_train_loader, index, config.data, share=(rank(), world_size()), kind=ClassImages),
        validate=None if val is None else lambda model: _measure(config, [model], val, val),
        test=None
        if test is None
        else lambda model, facts: _write(_measure(config, [model], test, val) | facts, output),
        sets=sets,
        resume=resume,
        tool="pretrain",
    ).run()


def evaluate_classifiers(
    config: ClassificationConfig, checkpoints: Sequence[Checkpoint[ClassificationConfig]], output: Path
) -> dict[str, Any]:
    """Tests the classifiers ``checkpoints`` together on ``config.data.test``; writes and returns result.json.

    Averages the probabilities of several as an ensemble.  Thresholds of tags are chosen on ``config.data.val``.

    Args:
        config: config of the test: data, views, device, precision.
        checkpoints: each is built from its own config.
        output: directory for result.json.

    Raises:
        ValueError: bad data or config, or weights of something else.
    """
    start(choose_device(config.device))
    index = _test_images(config)
    models = [restore_classifier(checkpoint, index.class_names) for checkpoint in checkpoints]
    facts = {"weights": describe_weights(checkpoints[0], config.data.test)} if len(checkpoints) == 1 else {}
    result = _measure(config, models, index, _val_images(config)) | facts
    if len(models) == 1 and isinstance(models[0].network, BranchyNet) and not config.classification.tags:
        loader, _ = _loader(config, index)
        curve = gather(measure_exits(models[0], loader, index.labels, config.classification.crop))[0]
        result |= {"exits": [asdict(point) for point in curve]}
        if is_main():
            output.mkdir(parents=True, exist_ok=True)
            write_text(output / "exits.svg", draw_exits(curve))
    return _write(result, output)


def evaluate_weights(config: ClassificationConfig, output: Path) -> dict[str, Any]:
    """Tests the published ``config.backbone.weights`` with their own head on ``config.data.test``.

    Classes are matched by their order: weights of ImageNet sort its WordNet ids, like folders.

    Args:
        config: config of the network, its weights and the test.
        output: directory for result.json.

    Raises:
        ValueError: bad data or config, or weights that are not a classifier with so many classes.
    """
    start(choose_device(config.device))
    index = _test_images(config)
    model = build_classifier(config, len(index.class_names), pretrained=False)
    load_published(model.network, config.backbone)
    facts = {"weights": {"published": config.backbone.weights}}
    return _write(_measure(config, [model], index, _val_images(config)) | facts, output)


def build_classifier(config: ClassificationConfig, num_classes: int, *, pretrained: bool = True) -> ImageClassifier:
    """Returns the classifier that ``config`` describes, on the CPU; ``pretrained`` loads the backbone's weights.

    Raises:
        ValueError: an option that the backbone lacks, weights that do not fit it, or a backbone without a tail.
    """
    options = config.classification
    if options.network == "classifier" and is_of_library(config.backbone.name):
        if options.features:
            raise ValueError(
                f"{config.backbone.name} keeps its own head, so classification.features must be [], got "
                f"{list(options.features)}"
            )
        network = build_library_classifier(
            config.backbone, num_classes, pretrained=pretrained, auxiliary_weight=options.auxiliary_weight
        )
    else:
        network = _backbone_classifier(config, num_classes, pretrained=pretrained)
    try:
        model = ImageClassifier(
            network,
            label_smoothing=options.label_smoothing,
            mixing=_mixing(options),
            loss=options.loss,
            tags=options.tags,
        )
    except ValueError as error:
        raise ValueError(
            f"{config.backbone.name} can't be a classification.network {options.network}: {error}"
        ) from error
    return model.to(memory_format=torch.channels_last)


def _backbone_classifier(config: ClassificationConfig, num_classes: int, *, pretrained: bool) -> Classifier:
    options = config.classification
    features = options.features or None
    backbone = build_plain_backbone(config.backbone, pretrained=pretrained, out_features=features)
    try:
        return _network(options, backbone, num_classes)
    except ValueError as error:
        raise ValueError(
            f"{config.backbone.name} can't be a classification.network {options.network}: {error}"
        ) from error


def restore_classifier(checkpoint: Checkpoint[ClassificationConfig], class_names: Sequence[str]) -> ImageClassifier:
    """Returns the classifier of a run of ``resdet pretrain``, on the CPU.

    Raises:
        ValueError: other classes than ``class_names``, or weights of something else.
    """
    model = build_classifier(checkpoint.config, len(checkpoint.class_names), pretrained=False)
    load_detector_weights(model, checkpoint, class_names)
    return model


def format_accuracy(result: dict[str, Any]) -> str:
    """Returns a line about ``result``, in percent."""
    if TAGS in result:
        return format_tags(result)
    errors = ", ".join(f"{name} error {100 * (1 - result[SECTION][name]):.2f}" for name in _names(SECTION))
    return f"{errors} % of {result['images']} images, views: {result['views']}"


def _shown(config: ClassificationConfig) -> str:
    options = config.classification
    if options.views == "dense":
        return f"classification.scales {', '.join(map(str, options.scales))}"
    return f"classification.crop {options.crop} of shorter_side {options.shorter_side}"


def _network(options: ClassifierConfig, backbone: Backbone, num_classes: int) -> Classifier:
    match options.network:
        case "classifier":
            return Classifier(backbone, num_classes)
        case "spp":
            return Classifier(SPP(backbone), num_classes)
        case "branchynet":
            thresholds = cycle(options.exit_thresholds)
            exits = {name: Exit(threshold) for name, threshold in zip(backbone.specs, thresholds, strict=False)}
            return BranchyNet(backbone, num_classes, exits)
        case "relay":
            return RelayClassifier(backbone, num_classes)
        case "attention_critic":
            return CriticClassifier(backbone, num_classes)


def _mixing(options: ClassifierConfig) -> Mixing | None:
    alphas: dict[Literal["mixup", "cutmix", "manifold"], float] = {
        "mixup": options.mixup,
        "cutmix": options.cutmix,
        "manifold": options.manifold_mixup,
    }
    return next((Mixing(kind, alpha) for kind, alpha in alphas.items() if alpha > 0), None)


def read_images(
    config: ClassificationConfig, specs: Sequence[str], key: str, say: Callable[[str], None]
) -> AnnotationIndex:
    """Returns the images of ``specs`` ("card:split"), which messages call ``key``, as ``config`` classifies them.

    Raises:
        ValueError: bad data, or an image with objects of two classes where each has one.
    """
    return _images(config, load_index(config.data, specs, key=key, say=say))


def _images(config: ClassificationConfig, index: AnnotationIndex) -> AnnotationIndex:
    """Returns the images of ``index`` that can be classified."""
    return index if config.classification.tags else whole_images(index)


def _test_images(config: ClassificationConfig) -> AnnotationIndex:
    return read_images(config, config.data.test, "data.test", only_main(print))


def _val_images(config: ClassificationConfig) -> AnnotationIndex | None:
    """Returns the images to choose thresholds on; None if the test needs none or there are none."""
    if not config.classification.tags or not config.data.val:
        return None
    return load_index(config.data, config.data.val, key="data.val", say=only_main(print))


def _measure(
    config: ClassificationConfig,
    models: Sequence[torch.nn.Module],
    index: AnnotationIndex,
    val: AnnotationIndex | None,
) -> dict[str, Any]:
    """Tests ``models`` together on ``index``; returns the content of result.json, on every process.

    Thresholds of tags are chosen on ``val``, if given.  "per_image" holds the contribution of each image.
    """
    options, result = config.classification, dict[str, Any]()
    if not options.tags:
        found = _look(config, models, index, lambda likely, rows: _ranks(likely, index.labels[rows]))
        if found is not None:
            result = _result(found, options.views)
            shares = {f"{SECTION}.{name}": [int(place < _limit(name)) for place in found] for name in _names(SECTION)}
            result[IMAGES] = {"images": index_digest(index), "figures": shares}
        return gather(result)[0]
    found = _look(config, models, index, lambda likely, _: likely.tolist())
    chosen = found if val is index or val is None else _look(config, models, val, lambda likely, _: likely.tolist())
    if found is not None and chosen is not None:
        result = tag_result(
            torch.tensor(found),
            image_tags(index),
            thresholds=[options.tag_threshold] * len(index.class_names)
            if val is None
            else choose_thresholds(torch.tensor(chosen), image_tags(val)).tolist(),
            class_names=index.class_names,
        )
        result |= {"thresholds_chosen_on": list(config.data.val) if val else [], "views": options.views}
        result[IMAGES] = {"images": index_digest(index), "figures": {f"{TAGS}.F2": result.pop("F2_of_images")}}
    return gather(result)[0]


def _look(
    config: ClassificationConfig,
    models: Sequence[torch.nn.Module],
    index: AnnotationIndex,
    reduce: Callable[[Tensor, Tensor], list[Found]],
) -> list[Found] | None:
    """Returns ``reduce`` of the probabilities (n, K) of images ``rows`` (n,), image by image, on the main process."""
    device = choose_device(config.device)
    loader, count = _loader(config, index)
    seen: list[Found] = []
    dtype = PRECISIONS[config.solver.precision]
    with (
        together("testing its share of the images", timeout=EVALUATION_TIMEOUT),
        tracked(loader, "testing", total=count, count=lambda batch: len(batch.rows), shown=is_main()) as batches,
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        for model in models:
            model.to(device).eval()
        for batch in batches:
            shown = [images.to(device) for images in batch.batches]
            probabilities = torch.stack([model(images) for model in models for images in shown]).mean(dim=0)
            seen += reduce(probabilities.cpu(), torch.tensor(batch.rows))
    return collect(seen)


def _loader(config: ClassificationConfig, index: AnnotationIndex) -> tuple[DataLoader[Views], int]:
    """Returns the views of this process's share of ``index``, and the number of its images."""
    options, pin = config.classification, choose_device(config.device).type == "cuda"
    views = ClassViews(kind=options.views, crop=options.crop, shorter_side=options.shorter_side, scales=options.scales)
    rows = range(len(index))[rank() :: world_size()]
    return class_view_loader(index, views, rows=rows, workers=config.data.workers, pin=pin), len(rows)


def _write(result: dict[str, Any], output: Path) -> dict[str, Any]:
    """Writes result.json, and the contributions of images beside it; returns the result."""
    images = result.pop(IMAGES, {})
    with together("writing the result"):
        if is_main():
            output.mkdir(parents=True, exist_ok=True)
            write_text(output / PER_IMAGE, dump_shares(images))
            write_text(output / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _names(section: str) -> list[str]:
    """Returns the names of the figures of a section; "topN": the true class is among the N likeliest."""
    return [metric.short_name for metric in shown_in("console", f"{section}.")]


def _ranks(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Returns the rank (N,) of each image's class among (N, K); equally likely ones before it count, 0 is top-1."""
    order = probabilities.argsort(dim=1, descending=True, stable=True)
    return (order == labels[:, None]).int().argmax(dim=1).tolist()


def _limit(name: str) -> int:
    """Returns N of "topN"."""
    return int(name.removeprefix("top"))


def _result(ranks: Sequence[int], views: str) -> dict[str, Any]:
    count = len(ranks)
    figures = {name: sum(place < _limit(name) for place in ranks) / count for name in _names(SECTION)}
    return {SECTION: figures, "images": count, "views": views}
