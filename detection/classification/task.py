"""Training a backbone to classify images, and testing it: where a detector's weights come from.

RUN is a run directory as a detector's; its result.json has the share of images whose class is the likeliest ("top1") or
among the five likeliest ("top5").  ``backbone.weights: RUN`` starts a detector from it.

Source: "Deep Residual Learning for Image Recognition", sections 3.4 and 4.2.
Shapes: N images, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.base import Backbone
from backbones.classifier import Classifier
from backbones.extras.attention_critic import CriticClassifier
from backbones.extras.branchynet import BranchyNet
from backbones.extras.relay import RelayClassifier
from backbones.extras.spp import SPP
from detection.build import build_plain_backbone
from detection.classification.config import ClassificationConfig, ClassifierConfig
from detection.classification.mixing import Mixing
from detection.classification.model import ImageClassifier
from detection.classification.views import ClassImages, ClassViews, class_view_loader
from detection.data.class_labels import whole_images
from detection.data.index import AnnotationIndex
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

__all__ = ["build_classifier", "evaluate_classifiers", "format_accuracy", "restore_classifier", "run_pretraining"]

SECTION = "classification"  # of result.json


def run_pretraining(config: ClassificationConfig, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains the classifier that ``config`` describes into ``output`` and returns its last result.

    Args:
        config: of the run.
        output: the run directory, made if needed.
        resume: go on from the newest checkpoint in it, if there is one.

    Raises:
        ValueError: bad data or config, an image with objects of two classes, or ``output`` holds a run and ``resume``
            is not set.
        NotFiniteError, StoppedError, MemoryError, OSError: as ``run_training``.
    """
    start(choose_device(config.device))
    if config.solver.best_metric is not None:  # a misspelt name ends here, not later
        read_metric({SECTION: dict.fromkeys(_names())}, config.solver.best_metric)
    only_main(print)(f"images: data.shorter_side {config.data.shorter_side} in training, {_shown(config)} in a test")
    sets = {name: whole_images(index) for name, index in load_data(config.data, say=only_main(print)).items()}
    index, val, test = sets.pop("train"), sets.get("val"), sets.get("test")
    return Trainer(
        config,
        output,
        index,
        build=lambda fresh: build_classifier(config, len(index.class_names), pretrained=fresh),
        load=partial(build_train_loader, index, config.data, share=(rank(), world_size()), kind=ClassImages),
        validate=None if val is None else lambda model: _measure(config, [model], val),
        test=None if test is None else lambda model, facts: _write(_measure(config, [model], test) | facts, output),
        sets=sets,
        resume=resume,
        tool="pretrain",
    ).run()


def evaluate_classifiers(
    config: ClassificationConfig, checkpoints: Sequence[Checkpoint[ClassificationConfig]], output: Path
) -> dict[str, Any]:
    """Tests the classifiers ``checkpoints`` together on ``config.data.test``; writes and returns result.json.

    Several are an ensemble: their probabilities are averaged.

    Args:
        config: of the test: data, views, device, precision.
        checkpoints: each is built as its own config says.
        output: directory for result.json.

    Raises:
        ValueError: bad data or config, or weights of something else.
    """
    start(choose_device(config.device))
    index = whole_images(load_index(config.data, config.data.test, key="data.test", say=only_main(print)))
    models = [restore_classifier(checkpoint, index.class_names) for checkpoint in checkpoints]
    facts = {"weights": describe_weights(checkpoints[0], config.data.test)} if len(checkpoints) == 1 else {}
    return _write(_measure(config, models, index) | facts, output)


def build_classifier(config: ClassificationConfig, num_classes: int, *, pretrained: bool = True) -> ImageClassifier:
    """The classifier that ``config`` describes, on the CPU; ``pretrained`` loads the backbone's weights.

    Raises:
        ValueError: an option that the backbone lacks, weights that do not fit it, or a backbone without a tail.
    """
    options = config.classification
    features = options.features or None
    backbone = build_plain_backbone(config.backbone, pretrained=pretrained, out_features=features)
    try:
        network = _network(options, backbone, num_classes)
        model = ImageClassifier(network, label_smoothing=options.label_smoothing, mixing=_mixing(options))
    except ValueError as error:
        raise ValueError(
            f"{config.backbone.name} can't be a classification.network {options.network}: {error}"
        ) from error
    return model.to(memory_format=torch.channels_last)


def restore_classifier(checkpoint: Checkpoint[ClassificationConfig], class_names: Sequence[str]) -> ImageClassifier:
    """The classifier of a run of ``resdet pretrain``, on the CPU.

    Raises:
        ValueError: other classes than ``class_names``, or weights of something else.
    """
    model = build_classifier(checkpoint.config, len(checkpoint.class_names), pretrained=False)
    load_detector_weights(model, checkpoint, class_names)
    return model


def format_accuracy(result: dict[str, Any]) -> str:
    """A line about ``result``, in percent."""
    errors = ", ".join(f"{name} error {100 * (1 - result[SECTION][name]):.2f}" for name in _names())
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
            return BranchyNet(backbone, num_classes)
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


def _measure(config: ClassificationConfig, models: Sequence[torch.nn.Module], index: AnnotationIndex) -> dict[str, Any]:
    """Tests ``models`` together on ``index``; returns the content of result.json, on every process."""
    options, device = config.classification, choose_device(config.device)
    views = ClassViews(kind=options.views, crop=options.crop, shorter_side=options.shorter_side, scales=options.scales)
    rows = range(len(index))[rank() :: world_size()]
    loader = class_view_loader(index, views, rows=rows, workers=config.data.workers, pin=device.type == "cuda")
    ranks: list[int] = []  # how many classes are likelier than an image's own, image by image
    dtype = PRECISIONS[config.solver.precision]
    with (
        together("testing its share of the images", timeout=EVALUATION_TIMEOUT),
        tracked(loader, "testing", total=len(rows), count=lambda batch: len(batch.rows), shown=is_main()) as batches,
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        for model in models:
            model.to(device).eval()
        for batch in batches:
            shown = [images.to(device) for images in batch.batches]
            probabilities = torch.stack([model(images) for model in models for images in shown]).mean(dim=0)
            ranks += _ranks(probabilities.cpu(), index.labels[torch.tensor(batch.rows)])
    found = collect(ranks)
    result: dict[str, Any] = {}
    if found is not None:
        result = _result(found, options.views)
    return gather(result)[0]


def _write(result: dict[str, Any], output: Path) -> dict[str, Any]:
    with together("writing the result"):
        if is_main():
            output.mkdir(parents=True, exist_ok=True)
            write_text(output / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _names() -> list[str]:
    """The figures of a classifier, "topN": N is how many of the likeliest classes may hold the image's own."""
    return [metric.short_name for metric in shown_in("console", f"{SECTION}.")]


def _ranks(probabilities: Tensor, labels: Tensor) -> list[int]:
    """How many classes (N,) are likelier, or as likely and before it, than each image's own; of (N, K) and (N,)."""
    order = probabilities.argsort(dim=1, descending=True, stable=True)
    return (order == labels[:, None]).int().argmax(dim=1).tolist()


def _result(ranks: Sequence[int], views: str) -> dict[str, Any]:
    count = len(ranks)
    figures = {name: sum(place < int(name.removeprefix("top")) for place in ranks) / count for name in _names()}
    return {SECTION: figures, "images": count, "views": views}
