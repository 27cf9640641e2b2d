"""Loads the detector in a config's ``init``: a run, a checkpoint, a published one, or a file of another project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backbones.summary import published_licence
from backbones.weights.load import read_state_dict
from detection.config.detection import DetectionConfig
from detection.data.cards import load_card
from detection.data.download import Progress
from detection.engine.checkpoint import Checkpoint, read_checkpoint, resolve_weights, stored_backbone
from detection.hub import parse_address
from detection.weights import zoo
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_names import are_detectron2s
from detection.weights.detectron2_panoptic import object_classes
from detection.weights.published import CLASSES, VOC_LABELS
from detection.weights.torchvision import convert_torchvision, known_norm_eps

__all__ = ["ZOO_FOLDER", "label_map_classes", "origin_file", "origin_of", "read_origin"]

ZOO_FOLDER = Path("output/zoo")  # where published detectors are downloaded to

# Rows of the class scores -> the card whose classes they mostly are: torchvision's have a row per category id of COCO
CARDS_OF_ROWS = {("torchvision", 91): "coco2017", ("detectron2", 81): "coco2017", ("detectron2", 21): "voc2007"}
SCORES = ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.0.cls_score.weight")
PANOPTIC_ROWS = 54  # of the pixels' scores: things, and COCO's 53 classes of stuff
PIXEL_SCORES = ("classifier.4.weight", "sem_seg_head.predictor.weight")  # of networks of label maps
# Of one-stage detectors: rows of every anchor, the layer with four rows an anchor, and the background's row if missing
DENSE_SCORES = (
    ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_reg.weight", 0),
    ("head.cls_score.weight", "head.bbox_pred.weight", 1),
)


def read_origin(init: str, *, progress: Progress | None = None, attempts: int = 5) -> Checkpoint[DetectionConfig]:
    """Returns the detector of ``init``.

    Args:
        init: a run directory, a .safetensors checkpoint, a file of torchvision or Detectron2, hf://NAME/REPO, or a name
            in the zoo, which is downloaded to ``ZOO_FOLDER`` if missing.
        progress: called after each chunk of the download.
        attempts: number of connections before giving up.

    Raises:
        ValueError: ``init`` does not exist, or is no supported detector.
        ConnectionError: the download failed.
    """
    file = origin_file(init, progress=progress, attempts=attempts)
    return _converted(file) if _is_foreign(file) else read_checkpoint(file)


def origin_file(init: str, *, progress: Progress | None = None, attempts: int = 5) -> Path:
    """Returns the file of the detector ``init``, downloaded if necessary.

    Raises:
        ValueError, ConnectionError: as ``read_origin``.
    """
    path = Path(init)
    if parse_address(init) is not None or path.exists():
        return resolve_weights(init)
    try:
        entry = zoo.find_entry(init)
    except ValueError as error:
        raise ValueError(f"init {init!r} is no run, no file and no published detector: {error}") from error
    return resolve_weights(zoo.fetch(entry, ZOO_FOLDER, progress=progress, attempts=attempts))


def origin_of(config: DetectionConfig) -> tuple[str | None, str | None]:
    """Returns the initial weights of training (None: from scratch) and their licence (None: unknown)."""
    if config.init is not None:
        return config.init, next((entry.licence for entry in zoo.ZOO if entry.name in config.init), None)
    weights = config.backbone.weights
    return weights, None if weights is None else published_licence(config.backbone.name, weights)


def label_map_classes(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns class names for a torchvision or Detectron2 network of label maps; empty for other networks.

    21 rows are the background and VOC's classes.
    """
    rows = next((len(state[name]) for name in PIXEL_SCORES if name in state), 0)
    if rows == 0 or any(name in state for name in SCORES):
        return ()
    voc = CLASSES[VOC_LABELS]
    return voc if rows == len(voc) else ("background", *(f"class {number}" for number in range(1, rows)))


def _is_foreign(file: Path) -> bool:
    return file.suffix != ".safetensors" or stored_backbone(file) is None


def _converted(file: Path) -> Checkpoint[DetectionConfig]:
    state = read_state_dict(file)
    project = "detectron2" if are_detectron2s(state) else "torchvision"
    names = _class_names(state, project)
    try:
        if project == "detectron2":
            config, weights = convert_detectron2(state, class_names=names)
        else:
            eps = known_norm_eps(state)  # 1e-5 is less than a hundredth of nearly every variance
            config, weights = convert_torchvision(state, class_names=names, norm_eps=1e-5 if eps is None else eps)
    except ValueError as error:
        hint = "; of a backbone alone, give the file as backbone.weights" if "conv1.weight" in state else ""
        raise ValueError(f"init {file}: {error}{hint}") from error
    return Checkpoint(file, weights, config, object_classes(config, names), iteration=0)


def _class_names(state: Mapping[str, Tensor], project: str) -> tuple[str, ...]:
    """Returns the classes of a file without names: those of a card, else "class 1", "class 2" and so on."""
    if pixels := label_map_classes(state):
        return pixels
    rows = next((len(state[name]) for name in SCORES if name in state), 1)
    for scores, deltas, missing in DENSE_SCORES:
        if scores in state and deltas in state:
            rows = len(state[scores]) // max(1, len(state[deltas]) // 4) + missing
    card = CARDS_OF_ROWS.get((project, rows))
    if rows == 2 and any(name.startswith("roi_heads.keypoint_head.") for name in state):
        card = "coco2017_keypoints"  # persons
    if card == "coco2017" and len(state.get("sem_seg_head.predictor.weight", ())) == PANOPTIC_ROWS:
        card = "coco2017_panoptic"
    return load_card(card).classes if card else tuple(f"class {number}" for number in range(1, rows))
