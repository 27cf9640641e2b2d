"""ImageNet localisation: predicts the class of an image and a box of its object.

1. an RPN with outputs per class (OUTPUT/rpn);
2. its proposals for the class of each training image (OUTPUT/proposals.safetensors);
3. an R-CNN on these, warped (OUTPUT/rcnn);
4. the errors on the test set, row by row as in table 13 (OUTPUT/localization.json); for a test set without ground
   truth, the guesses for the server of the challenge (OUTPUT/submission).

Source: "Deep Residual Learning for Image Recognition", appendix C.
Shapes: Q requested classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from backbones.classifier import Classifier
from backbones.registry import build_backbone
from backbones.weights.load import download_torchvision, read_state_dict, rename_torchvision
from detection.boxes import clip, scale
from detection.build_trunk import build_plain_backbone
from detection.classification.config import ClassificationConfig
from detection.classification.model import ImageClassifier
from detection.classification.task import restore_classifier
from detection.config.schema import different_meaning
from detection.data.class_labels import image_labels
from detection.data.index import AnnotationIndex
from detection.data.loader import build_train_loader, load_data
from detection.data.proposals import read_proposals, write_proposals
from detection.engine.checkpoint import load_detector_weights, read_checkpoint, resolve_weights, stored_backbone
from detection.engine.device import choose_device
from detection.engine.distributed import refuse_many
from detection.engine.loop import PRECISIONS
from detection.engine.trainer import Trainer, is_finished
from detection.evaluation.metrics import percent
from detection.evaluation.submission import Guesses
from detection.evaluation.text_table import text_table
from detection.files import write_text
from detection.localization.config import LocalizationConfig
from detection.localization.errors import MAX_GUESSES, LocalizationRecord, localization_error
from detection.localization.model import ClassRPN, RegionClassifier
from detection.localization.regions import RegionDataset, region_loader, warp
from detection.localization.submission import find_submission
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.matcher import Matcher
from detection.model.rpn import ProposalFilter
from detection.model.sampler import BalancedSampler
from detection.model.test_time.views import resize_images
from detection.structures import Detections, ImageBatch, Proposals

__all__ = ["build_class_rpn", "build_region_classifier", "format_errors", "run_localization"]

# Row of the result -> the paper's error on ImageNet's validation set, table 13, which has none for R-CNN's oracle.
ROWS: dict[str, float | None] = {
    "RPN, 1-crop, oracle": 0.133,
    "RPN, dense, oracle": 0.117,
    "RPN, dense, predicted": 0.144,
    "RPN + R-CNN, dense, oracle": None,
    "RPN + R-CNN, dense, predicted": 0.106,
}
NetworkT = TypeVar("NetworkT", ClassRPN, RegionClassifier)

REGIONS_AT_ONCE = 256  # warped regions per forward pass of the R-CNN in a test
SAY_EVERY = 5000  # images


def run_localization(config: LocalizationConfig, output: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Runs the steps that are not done yet and returns the content of ``output``/localization.json.

    Raises:
        ValueError: bad data or config, an image with objects of two classes, a classifier with other classes, or a test
            set without ground truth for which no submission can be written.
        NotFiniteError: a loss is infinite or not a number.
    """
    refuse_many("localisation")
    sets = load_data(config.data, say=print)
    index, test_index = sets["train"], sets.get("test")
    if test_index is None:
        raise ValueError("data.test is empty; give the set to test on, such as [imagenet_loc:val_loc]")
    labels, test_labels = image_labels(index), image_labels(test_index)
    write_submission = None if test_index.has_ground_truth else find_submission(config)
    if write_submission is None and not (test_labels >= 0).any():
        raise ValueError(f"no image of {', '.join(config.data.test)} has an object that is not ignored")
    classifier = _build_classifier(config, index.class_names)  # fails before any training
    rpn, stored, rcnn, errors = (
        output / name for name in ("rpn", "proposals.safetensors", "rcnn", "localization.json")
    )
    if _is_left(1, rpn, say, done=is_finished(rpn, config)):
        _train_rpn(config, index, rpn)
    if _is_left(2, stored, say, done=stored.is_file()):
        trained = _restored(build_class_rpn, config, rpn, index.class_names)
        write_proposals(stored, _propose_all(config, trained, index, labels, say), index)
    if _is_left(3, rcnn, say, done=is_finished(rcnn, _rcnn_config(config))):
        _train_rcnn(_rcnn_config(config), index, stored, rcnn)
    if _is_left(4, errors, say, done=errors.is_file()):
        networks = _Networks(
            _restored(build_class_rpn, config, rpn, index.class_names),
            _restored(build_region_classifier, config, rcnn, index.class_names),
            classifier,
        )
        if write_submission is None:
            result = _test(config, networks, test_index, test_labels, say)
        else:
            path = write_submission(_guess_all(config, networks, test_index, say), output / "submission")
            result = {"images": len(test_index), "rows": [], "submission": str(path)}
        write_text(errors, json.dumps(result, indent=2) + "\n")
    return json.loads(errors.read_text(encoding="utf-8"))


def build_class_rpn(config: LocalizationConfig, num_classes: int, pretrained: bool = True) -> ClassRPN:
    """Returns the RPN that ``config`` describes, on c5, on the CPU; ``pretrained`` loads the backbone's weights.

    Raises:
        ValueError: an option that the backbone lacks, or weights that do not fit it.
    """
    backbone = build_plain_backbone(config.backbone, pretrained=pretrained, out_features=("c5",))
    stride = list(backbone.specs.values())[-1].stride
    rpn, anchors = config.rpn, config.anchors
    model = ClassRPN(
        backbone,
        AnchorGenerator(
            stride, sizes=anchors.sizes, ratios=anchors.ratios, offset=anchors.offset, rounded=anchors.rounded
        ),
        num_classes=num_classes,
        channels=rpn.channels,
        matcher=Matcher(rpn.positive_iou, rpn.negative_iou, match_best=True, ignore_overlap=config.box.ignore_overlap),
        sampler=BalancedSampler(rpn.samples_per_image, rpn.positive_fraction),
        keep=ProposalFilter(
            pre_nms=rpn.pre_nms_test,
            post_nms=config.localization.proposals,
            nms_iou=rpn.nms_iou,
            min_size=rpn.min_size,
        ),
        allow_outside=rpn.allow_outside,
        smooth_l1_beta=rpn.smooth_l1_beta,
        box_loss_weight=rpn.box_loss_weight,
    )
    return model.to(memory_format=torch.channels_last)


def build_region_classifier(config: LocalizationConfig, num_classes: int, pretrained: bool = True) -> RegionClassifier:
    """Returns the R-CNN that ``config`` describes, on the CPU; ``pretrained`` loads the backbone's weights.

    Raises:
        ValueError: an option that the backbone lacks, or weights that do not fit it.
    """
    model = RegionClassifier(
        build_plain_backbone(config.backbone, pretrained=pretrained),
        num_classes=num_classes,
        coder=BoxCoder(config.box.coder_weights),
        smooth_l1_beta=config.box.smooth_l1_beta,
        box_loss_weight=config.box.box_loss_weight,
    )
    return model.to(memory_format=torch.channels_last)


def format_errors(result: dict[str, Any]) -> str:
    """Formats the errors of ``run_localization`` in percent beside the paper's, or the path of the guesses."""
    if "submission" in result:
        return f"guesses at {result['images']} images without ground truth: {result['submission']}"
    header = ("", "top-5 LOC", "top-1 LOC", "top-5 CLS", "paper's top-5")
    names = ("top5_error", "top1_error", "top5_class_error", "paper")
    rows = [(row["name"], *(percent(row[name]) for name in names)) for row in result["rows"]]
    return f"localisation error (%), {result['images']} images\n{text_table(header, rows)}"


class _ClassPredictor(nn.Module):
    """Predicts the likeliest classes of an image, at most five, best first, from views at several scales.

    Source: "Deep Residual Learning", section 3.4.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, views: Sequence[ImageBatch]) -> Tensor:
        scores = torch.stack([self.classifier(view)[0] for view in views]).mean(0)
        return scores.topk(min(MAX_GUESSES, len(scores))).indices


@dataclass(frozen=True, slots=True)
class _Networks:
    """The networks of a test."""

    rpn: ClassRPN
    rcnn: RegionClassifier
    classifier: _ClassPredictor | None


@dataclass(frozen=True, slots=True)
class _View:
    """An image at another size, or a part of it."""

    images: ImageBatch  # this one
    size: tuple[int, int]  # (height, width) of the whole image at that size
    corner: tuple[int, int] = (0, 0)  # (x, y) of the part in it, pixels


def _is_left(number: int, path: Path, say: Callable[[str], None], *, done: bool) -> bool:
    say(f"step {number} is done: {path}" if done else f"step {number} of 4: {path}")
    return not done


def _build_classifier(config: LocalizationConfig, class_names: Sequence[str]) -> _ClassPredictor | None:
    """Builds the classifier of a run, or of a file for the config's backbone; None if no weights are named."""
    weights, num_classes = config.localization.classifier, len(class_names)
    if weights is None:
        return None
    if weights != "torchvision" and Path(weights).exists() and stored_backbone(resolve_weights(weights)) is not None:
        trained = restore_classifier(read_checkpoint(weights, ClassificationConfig), class_names)
        return _ClassPredictor(trained).to(choose_device(config.device)).eval()
    name, source = config.backbone.name, config.backbone.weights_source
    backbone = build_backbone(name, weights=weights, weights_source=source, load_weights=False)
    state = download_torchvision(name) if weights == "torchvision" else read_state_dict(weights)
    network = Classifier(backbone, num_classes)
    bias = rename_torchvision(state).get("fc.bias")
    if bias is not None and len(bias) != num_classes:
        raise ValueError(
            f"localization.classifier {weights!r} tells {len(bias)} classes apart, the data set has {num_classes}; "
            "they must be the same, in the same order"
        )
    network.load_torchvision(state)
    return _ClassPredictor(ImageClassifier(network)).to(choose_device(config.device)).eval()


def _rcnn_config(config: LocalizationConfig) -> LocalizationConfig:
    lengths = config.localization
    return replace(config, solver=replace(config.solver, iterations=lengths.rcnn_iterations, steps=lengths.rcnn_steps))


def _train_rpn(config: LocalizationConfig, index: AnnotationIndex, run: Path) -> None:
    build = partial(build_class_rpn, config, len(index.class_names))
    Trainer(config, run, index, build=build, load=partial(build_train_loader, index, config.data), resume=True).run()


def _train_rcnn(config: LocalizationConfig, index: AnnotationIndex, stored: Path, run: Path) -> None:
    proposals = read_proposals(stored, index)
    side, positive_iou = config.localization.crop, config.box.positive_iou
    dataset = RegionDataset(index, proposals, side=side, positive_iou=positive_iou, seed=config.seed)
    build = partial(build_region_classifier, config, len(index.class_names))
    Trainer(
        config, run, index, build=build, load=partial(region_loader, dataset, config.data.workers), resume=True
    ).run()


def _restored(
    build: Callable[[LocalizationConfig, int, bool], NetworkT],
    config: LocalizationConfig,
    run: Path,
    class_names: Sequence[str],
) -> NetworkT:
    """Returns the network of ``run`` with its newest weights.

    Raises:
        ValueError: ``run`` has other classes, or ``config`` changes the meaning of its weights.
    """
    checkpoint = read_checkpoint(run, LocalizationConfig)
    changed = different_meaning(checkpoint.config, config)
    if changed:
        raise ValueError(f"{checkpoint.path} was trained under another config: {'; '.join(changed)}")
    model = build(config, len(class_names), False)
    load_detector_weights(model, checkpoint, class_names)
    return model.to(choose_device(config.device)).eval()


def _propose_all(
    config: LocalizationConfig, rpn: ClassRPN, index: AnnotationIndex, labels: Tensor, say: Callable[[str], None]
) -> list[Proposals]:
    """Returns dense proposals of each image's class ``labels`` (N,), best first, in its pixels; none for -1."""
    found = [Proposals(boxes=torch.zeros(0, 4), scores=torch.zeros(0))] * len(index)
    with _inference(config):
        for row, image in _stored_images(config, index, _labelled(labels), say):
            label = labels[row : row + 1].to(image.pixels.device)
            own = _propose(rpn, _dense_views(image, config), label, image.size_list()[0]).to("cpu")
            found[row] = Proposals(boxes=own.boxes, scores=own.scores)
    return found


def _test(
    config: LocalizationConfig, networks: _Networks, index: AnnotationIndex, labels: Tensor, say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the content of localization.json."""
    records: dict[str, list[LocalizationRecord]] = {name: [] for name in ROWS}
    with _inference(config):
        for row, image in _stored_images(config, index, _labelled(labels), say):
            label, target = labels[row : row + 1].to(image.pixels.device), index.target(row)
            for name, (found, classes) in _localize(config, networks, image, label).items():
                record = LocalizationRecord(
                    file_name=index.paths[row],
                    label=int(label),
                    gt_boxes=target.boxes[~target.ignore].numpy(),
                    labels=classes.cpu().numpy(),
                    boxes=_guesses(found, classes, image.size_list()[0]).cpu().numpy(),
                )
                records[name].append(record)
    return {"images": int((labels >= 0).sum()), "rows": [_row(name, records[name]) for name in ROWS]}


def _guess_all(
    config: LocalizationConfig, networks: _Networks, index: AnnotationIndex, say: Callable[[str], None]
) -> list[Guesses]:
    """Returns the guesses for every image, those of the row "RPN + R-CNN, dense, predicted"."""
    guesses = list[Guesses]()
    unknown = torch.zeros(0, dtype=torch.int64, device=choose_device(config.device))
    with _inference(config):
        for _, image in _stored_images(config, index, range(len(index)), say):
            found, classes = _localize(config, networks, image, unknown)["RPN + R-CNN, dense, predicted"]
            boxes = _guesses(found, classes, image.size_list()[0])
            guesses.append((classes.cpu().numpy(), boxes.cpu().numpy()))
    return guesses


def _row(name: str, records: Sequence[LocalizationRecord]) -> dict[str, Any]:
    """Returns one row of the result: fractions 0..1, None for a row that was not run."""
    errors = localization_error(records)
    figures = {"top5_error": errors.top5, "top1_error": errors.top1, "top5_class_error": errors.top5_class}
    return {"name": name, **{key: value if records else None for key, value in figures.items()}, "paper": ROWS[name]}


@contextmanager
def _inference(config: LocalizationConfig) -> Iterator[None]:
    """Disables gradients and sets the config's precision."""
    device, dtype = choose_device(config.device), PRECISIONS[config.solver.precision]
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def _labelled(labels: Tensor) -> list[int]:
    """Returns the rows of ``labels`` (N,) that are a class."""
    return (labels >= 0).nonzero().flatten().tolist()


def _stored_images(
    config: LocalizationConfig, index: AnnotationIndex, rows: Sequence[int], say: Callable[[str], None]
) -> Iterator[tuple[int, ImageBatch]]:
    """Yields each of ``rows`` and the pixels of its image, as stored."""
    device = choose_device(config.device)
    for number, row in enumerate(rows):
        if number and number % SAY_EVERY == 0:
            say(f"{number} of {len(rows)} images")
        image = ImageBatch.from_images([torch.tensor(index.image(row)).permute(2, 0, 1)])
        yield row, image.to(device)


def _localize(
    config: LocalizationConfig, networks: _Networks, image: ImageBatch, label: Tensor
) -> dict[str, tuple[Detections, Tensor]]:
    """Returns, for each row of the table, the boxes in ``image`` and the guessed classes, best first.

    ``label`` (1,) is the class of the image; if it is unknown (0,), the rows with the oracle are left out.
    """
    size, views = image.size_list()[0], _dense_views(image, config)
    predicted = label[:0] if networks.classifier is None else networks.classifier([view.images for view in views])
    dense = _propose(networks.rpn, views, torch.cat([label, predicted]).unique(), size)
    refined = _refine(networks.rcnn, image, dense, config.localization.crop)
    rows = dict[str, tuple[Detections, Tensor]]()
    if len(label):
        rows["RPN, 1-crop, oracle"] = _propose(networks.rpn, [_center_crop(image, config)], label, size), label
        rows["RPN, dense, oracle"] = dense, label
        rows["RPN + R-CNN, dense, oracle"] = refined, label
    if networks.classifier is not None:
        rows["RPN, dense, predicted"] = dense, predicted
        rows["RPN + R-CNN, dense, predicted"] = refined, predicted
    return rows


def _dense_views(image: ImageBatch, config: LocalizationConfig) -> list[_View]:
    views = [resize_images(image, shorter) for shorter in config.localization.scales]
    return [_View(view, view.size_list()[0]) for view in views]


def _center_crop(image: ImageBatch, config: LocalizationConfig) -> _View:
    side = config.localization.crop
    resized = resize_images(image, config.localization.crop_shorter_side)
    height, width = resized.size_list()[0]
    x, y = (width - side) // 2, (height - side) // 2
    cut = ImageBatch(resized.pixels[:, :, y : y + side, x : x + side], torch.full_like(resized.sizes, side))
    return _View(cut, (height, width), (x, y))


def _propose(rpn: ClassRPN, views: Sequence[_View], classes: Tensor, size: tuple[int, int]) -> Detections:
    """Returns the best boxes of each of ``classes`` (Q,) in any of the ``views``, in pixels of the image."""
    parts = []
    for view in views:
        (found,) = rpn.propose(rpn.hidden(view.images), view.images.sizes, [classes])
        boxes = found.boxes + found.boxes.new_tensor(view.corner).repeat(2)
        parts.append(replace(found, boxes=clip(scale(boxes, view.size, size), size)))
    found = Detections(*(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels")))
    found = found[batched_nms(found.boxes, found.scores, found.labels, rpn.keep.nms_iou)]
    rows = [(found.labels == label).nonzero().flatten()[: rpn.keep.post_nms] for label in classes]
    return found[torch.cat(rows)]


def _refine(rcnn: RegionClassifier, image: ImageBatch, found: Detections, side: int) -> Detections:
    """Returns ``found`` with the scores and boxes of the R-CNN."""
    scores, boxes = [found.scores[:0]], [found.boxes[:0]]
    for start in range(0, len(found), REGIONS_AT_ONCE):
        part = found[start : start + REGIONS_AT_ONCE]
        warped = ImageBatch(warp(image.pixels[0], part.boxes, side), image.sizes.new_full((len(part), 2), side))
        own_scores, own_boxes = rcnn.predict(warped, part.boxes, part.labels)
        scores.append(own_scores)
        boxes.append(clip(own_boxes, image.size_list()[0]))
    return replace(found, scores=torch.cat(scores), boxes=torch.cat(boxes))


def _guesses(found: Detections, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the best box (Q, 4) of each of ``classes`` (Q,), or the whole image if nothing was found."""
    height, width = size
    whole = found.boxes.new_tensor([[0, 0, width, height]])
    boxes = []
    for label in classes:
        own = found[found.labels == label]
        best = own.scores.argsort(descending=True, stable=True)[:1]
        boxes.append(torch.cat([own.boxes[best], whole])[0])
    return torch.stack(boxes)
