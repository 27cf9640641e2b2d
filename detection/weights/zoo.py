"""Published detectors that load here: torchvision's and Detectron2's, with their published figures.

Their names, addresses and figures are those of the two projects; a file is checked against the digits of its checksum
that its name carries.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)

from backbones.weights.load import read_state_dict
from detection.config.detection import DetectionConfig
from detection.data.cards import load_card
from detection.data.download import Archive, Progress
from detection.data.download import fetch as download
from detection.engine.checkpoint import write_converted
from detection.weights.detectron2 import convert_detectron2
from detection.weights.torchvision import convert_torchvision

__all__ = ["ZOO", "Entry", "fetch", "find_entry"]

Source = Literal["torchvision", "detectron2"]

LICENCES: dict[Source, str] = {
    "torchvision": "BSD 3-Clause, the library's; its documentation says that models may have further terms",
    "detectron2": "CC BY-SA 3.0",
}
CHECKSUMS: dict[Source, tuple[str, int]] = {"torchvision": ("sha256", 8), "detectron2": ("md5", 6)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A published detector."""

    name: str
    source: Source
    url: str
    data: str  # card:split that the figures are of
    ap: float  # percent, mean over IoU 0.5 to 0.95; on VOC from 11-point curves
    ap50: float | None = None  # null: not published
    mask_ap: float | None = None
    keypoint_ap: float | None = None
    norm_eps: float | None = None  # of torchvision's fixed batch normalisation; null: as the names in the file tell

    @property
    def licence(self) -> str:
        return LICENCES[self.source]

    @property
    def figures(self) -> str:
        """The published figures, in percent, with the data set that they are of."""
        figures = {
            "box AP": self.ap,
            "box AP50": self.ap50,
            "mask AP": self.mask_ap,
            "keypoint AP": self.keypoint_ap,
        }
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items() if value is not None)
        return f"published for {self.data}: {shown}"

    @property
    def checksum(self) -> tuple[str, str]:
        """Name of the hash function, and the first digits of its result, from the file's name."""
        algorithm, length = CHECKSUMS[self.source]
        match = re.search(rf"[-_]([0-9a-f]{{{length}}})\.(pth|pkl)$", self.url)
        if match is None:
            raise ValueError(
                f"the name of a file from {self.source} ends in {length} digits of a hash, got {self.url!r}"
            )
        return algorithm, match[1]


def _torchvision(
    name: str, weights: WeightsEnum, *, data: str = "coco2017:val", norm_eps: float | None = None
) -> Entry:
    figures = weights.meta["_metrics"]["COCO-val2017"]
    return Entry(
        name,
        "torchvision",
        weights.url,
        data,
        figures["box_map"],
        mask_ap=figures.get("mask_map"),
        keypoint_ap=figures.get("kp_map"),
        norm_eps=norm_eps,
    )


def _detectron2(
    path: str,
    ap: float,
    *,
    mask_ap: float | None = None,
    keypoint_ap: float | None = None,
    ap50: float | None = None,
    data: str = "coco2017:val",
) -> Entry:
    name = path.split("/")[1] + ("_voc" if data.startswith("voc") else "")
    url = f"https://dl.fbaipublicfiles.com/detectron2/{path}.pkl"
    data = data if keypoint_ap is None else PERSONS
    return Entry(name, "detectron2", url, data, ap, ap50, mask_ap, keypoint_ap)


PERSONS = "coco2017_keypoints:val"

# Source: torchvision's weight entries, and Detectron2's MODEL_ZOO.md of 2020.
ZOO: tuple[Entry, ...] = (
    _torchvision("fasterrcnn_resnet50_fpn", FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
    _torchvision("fasterrcnn_resnet50_fpn_v2", FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
    _torchvision("maskrcnn_resnet50_fpn", MaskRCNN_ResNet50_FPN_Weights.COCO_V1),
    _torchvision("maskrcnn_resnet50_fpn_v2", MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
    _torchvision("keypointrcnn_resnet50_fpn", KeypointRCNN_ResNet50_FPN_Weights.COCO_V1, data=PERSONS),
    # Its names are old ones, and torchvision leaves its eps at 1e-5.
    _torchvision(
        "keypointrcnn_resnet50_fpn_legacy",
        KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY,
        data=PERSONS,
        norm_eps=1e-5,
    ),
    _torchvision("retinanet_resnet50_fpn", RetinaNet_ResNet50_FPN_Weights.COCO_V1),
    _torchvision("retinanet_resnet50_fpn_v2", RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1),
    _torchvision("fcos_resnet50_fpn", FCOS_ResNet50_FPN_Weights.COCO_V1),
    _detectron2("COCO-Detection/faster_rcnn_R_50_C4_3x/137849393/model_final_f97cb7", 38.4),
    _detectron2("COCO-Detection/faster_rcnn_R_101_C4_3x/138204752/model_final_298dad", 41.1),
    _detectron2("COCO-Detection/faster_rcnn_R_50_DC5_3x/137849425/model_final_68d202", 39.0),
    _detectron2("COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758", 40.2),
    _detectron2("COCO-Detection/faster_rcnn_R_101_FPN_3x/137851257/model_final_f6e8b1", 42.0),
    _detectron2("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088", 43.0),
    _detectron2("COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b", 37.4),
    _detectron2("COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e", 38.7),
    _detectron2("COCO-Detection/retinanet_R_101_FPN_3x/190397697/model_final_971ab9", 40.4),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x/137849525/model_final_4ce675", 39.8, mask_ap=34.4),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217", 41.0, mask_ap=37.2),
    _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x/139653917/model_final_2d9806", 44.3, mask_ap=39.5
    ),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/model_final_dc5d9e", 42.6, mask_ap=38.6),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_syncbn/169527823/model_final_3b3c51", 41.9, mask_ap=37.8),
    _detectron2("Misc/cascade_mask_rcnn_R_50_FPN_3x/144998488/model_final_480dd8", 44.3, mask_ap=38.5),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x/137261548/model_final_04e291", 53.6, keypoint_ap=64.0),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b", 55.4, keypoint_ap=65.5),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x/138363331/model_final_997cc7", 56.4, keypoint_ap=66.1),
    _detectron2("COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x/139686956/model_final_5ad38f", 57.3, keypoint_ap=66.0),
    _detectron2(
        "PascalVOC-Detection/faster_rcnn_R_50_C4/142202221/model_final_b1acc2", 51.9, ap50=80.3, data="voc2007:test"
    ),
)


def find_entry(name: str) -> Entry:
    """The row of ``ZOO`` called ``name``.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    known = {entry.name: entry for entry in ZOO}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"no detector {name!r} in the zoo; {hint}known: {', '.join(known)}")
    return known[name]


def fetch(entry: Entry, folder: Path, *, progress: Progress | None = None, attempts: int = 5) -> Path:
    """The directory of ``entry`` in ``folder``, that of a run: config.yaml and checkpoints/.

    Downloaded, checked and converted unless it is there; an interrupted download goes on in a later call.

    Raises:
        ValueError: the server refuses the address, the file has another checksum, or it does not fit.
        ConnectionError: the connection dropped again and again; what came so far is kept.
    """
    run = folder / entry.name
    if any((run / "checkpoints").glob("*.safetensors")):
        return run
    file = download(Archive(entry.url), run, progress=progress, attempts=attempts)
    _check(entry, file)
    class_names = load_card(entry.data.rpartition(":")[0]).classes
    config, state = _convert(entry, file, class_names)
    write_converted(run, replace(config, data=replace(config.data, test=(entry.data,))), class_names, state)
    return run


def _check(entry: Entry, file: Path) -> None:
    algorithm, digits = entry.checksum
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if not found.startswith(digits):
        file.unlink()
        raise ValueError(
            f"{file.name}: {algorithm} is {found}, expected {digits}..; the download was deleted: run the command "
            f"again, and if it fails again, {entry.url} holds another file than its name says"
        )


def _convert(entry: Entry, file: Path, class_names: Sequence[str]) -> tuple[DetectionConfig, dict[str, Tensor]]:
    state = read_state_dict(file)
    if entry.source == "torchvision":
        return convert_torchvision(state, class_names=class_names, norm_eps=entry.norm_eps)
    return convert_detectron2(state, class_names=class_names)
