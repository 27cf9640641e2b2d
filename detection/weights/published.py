"""The table of published detectors: torchvision's and all of Detectron2's model zoo, also those that do not load here.

Names, URLs and figures are those of the two projects.

Source: torchvision's weight entries; Detectron2's MODEL_ZOO.md, configs/Detectron1-Comparisons/README.md,
projects/PointRend/README.md and detectron2/model_zoo/model_zoo.py, with the settings of its configs/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
from torchvision.models.segmentation import (
    DeepLabV3_ResNet50_Weights,
    DeepLabV3_ResNet101_Weights,
    FCN_ResNet50_Weights,
    FCN_ResNet101_Weights,
)

from detection.data.cards import load_card

__all__ = ["REFUSED", "ZOO", "Entry", "Source"]

Source = Literal["torchvision", "detectron2"]
Settings = Mapping[str, Any]  # Detectron2's keys -> values

LICENCES: dict[Source, str] = {
    "torchvision": "BSD 3-Clause, the library's; its documentation says that models may have further terms",
    "detectron2": "CC BY-SA 3.0",
}
CHECKSUMS: dict[Source, tuple[str, int]] = {"torchvision": ("sha256", 8), "detectron2": ("md5", 6)}
PERSONS = "coco2017_keypoints:val"
POINTREND = "PointRend/InstanceSegmentation"  # of projects/PointRend, which has no figures of boxes
ADDRESS = "https://dl.fbaipublicfiles.com/detectron2"

VOC_LABELS = "coco2017_voc_labels"  # images of COCO with an object of VOC's classes
# Of data sets without a card, in the order of the rows; LVIS 0.5 numbers its categories from 1 to 1230.
CLASSES = {
    "cityscapes": ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    "lvis_v0.5": tuple(f"category {number}" for number in range(1, 1231)),
    VOC_LABELS: ("background", *FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:]),
}
# Folder of Detectron2's zoo -> data set, and what its names get, since others have the same
FOLDERS = {
    "PascalVOC-Detection": ("voc2007:test", "_voc"),
    "Cityscapes": ("cityscapes:val", "_cityscapes"),
    "LVISv0.5-InstanceSegmentation": ("lvis_v0.5:val", "_lvis"),
}

TRAINED_WHOLE = {"MODEL.BACKBONE.FREEZE_AT": 0}
SCRATCH = {**TRAINED_WHOLE, "MODEL.RESNETS.STRIDE_IN_1X1": False, "MODEL.PIXEL_STD": [57.375, 57.12, 58.395]}
CASCADE = {"MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000}
LVIS = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001, "TEST.DETECTIONS_PER_IMAGE": 300}
CITYSCAPES = {"INPUT.MIN_SIZE_TEST": 1024, "INPUT.MAX_SIZE_TEST": 2048}
DETECTRON1 = {
    "MODEL.RPN.SMOOTH_L1_BETA": 0.1111,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": 2,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A published detector or network of label maps that loads here.

    Attributes:
        name: unique name.
        url: address of the file.
        data: card:split of the figures; classes of a data set without a card are in ``CLASSES``.
        ap: percent, mean over IoU 0.5 to 0.95; on VOC from 11-point curves. None: not published, or not available.
        miou, pixel_accuracy: percent, for label maps.
        pq: panoptic quality, percent.
        norm_eps: eps of torchvision's frozen batch normalisation; None: from the names in the file.
        settings: Detectron2's settings that differ from the defaults for its weights.
    """

    name: str
    source: Source
    url: str
    data: str
    ap: float | None
    ap50: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None
    miou: float | None = None
    pq: float | None = None
    pixel_accuracy: float | None = None
    norm_eps: float | None = None
    settings: Settings = field(default_factory=dict)

    @property
    def licence(self) -> str:
        return LICENCES[self.source]

    @property
    def has_card(self) -> bool:
        """Tells whether ``data`` has a card, so that it can be tested on."""
        return self._data_set not in CLASSES

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the rows; for panoptic networks things, then stuff."""
        return load_card(self._data_set).classes if self.has_card else CLASSES[self._data_set]

    @property
    def figures(self) -> str:
        """The published figures in percent, with their data set."""
        figures = {
            "box AP": self.ap,
            "box AP50": self.ap50,
            "mask AP": self.mask_ap,
            "keypoint AP": self.keypoint_ap,
            "PQ": self.pq,
            "mean IoU": self.miou,
            "pixel accuracy": self.pixel_accuracy,
        }
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items() if value is not None)
        return f"published for {self.data}: {shown or 'figures not at hand'}"

    @property
    def checksum(self) -> tuple[str, str]:
        """Name of the hash function, and the first digits of the checksum, from the file's name."""
        algorithm, length = CHECKSUMS[self.source]
        match = re.search(rf"[-_]([0-9a-f]{{{length}}})\.(pth|pkl)$", self.url)
        if match is None:
            raise ValueError(
                f"the name of a file from {self.source} ends in {length} digits of a hash, got {self.url!r}"
            )
        return algorithm, match[1]

    @property
    def _data_set(self) -> str:
        return self.data.rpartition(":")[0]


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


def _labeller(name: str, weights: WeightsEnum) -> Entry:
    """Returns a network of torchvision's that predicts label maps of VOC's classes."""
    figures = weights.meta["_metrics"]["COCO-val2017-VOC-labels"]
    data, url = f"{VOC_LABELS}:val", weights.url
    return Entry(name, "torchvision", url, data, None, miou=figures["miou"], pixel_accuracy=figures["pixel_acc"])


def _detectron2(
    path: str,
    ap: float | None,
    mask_ap: float | None = None,
    *,
    ap50: float | None = None,
    keypoint_ap: float | None = None,
    pq: float | None = None,
    settings: Settings | None = None,
) -> Entry:
    """Returns the row of the file ``path``, which ends in folder/name/number/file."""
    folder, name = path.split("/")[-4:-2]
    data, suffix = FOLDERS.get(folder, ("coco2017:val", ""))
    if keypoint_ap is not None:
        data, suffix = PERSONS, "_d1" if settings else ""  # of the comparisons, whose name COCO-Keypoints has too
    if pq is not None:
        data = "coco2017_panoptic:val"
    url, own, name = f"{ADDRESS}/{path}.pkl", settings or {}, name.removesuffix("_coco") + suffix
    return Entry(name, "detectron2", url, data, ap, ap50, mask_ap, keypoint_ap, pq=pq, settings=own)


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
    _labeller("fcn_resnet50", FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1),
    _labeller("fcn_resnet101", FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1),
    _labeller("deeplabv3_resnet50", DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1),
    _labeller("deeplabv3_resnet101", DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1),
    _detectron2("COCO-Detection/faster_rcnn_R_50_C4_1x/137257644/model_final_721ade", 35.7),
    _detectron2("COCO-Detection/faster_rcnn_R_50_DC5_1x/137847829/model_final_51d356", 37.3),
    _detectron2("COCO-Detection/faster_rcnn_R_50_FPN_1x/137257794/model_final_b275ba", 37.9),
    _detectron2("COCO-Detection/faster_rcnn_R_50_C4_3x/137849393/model_final_f97cb7", 38.4),
    _detectron2("COCO-Detection/faster_rcnn_R_50_DC5_3x/137849425/model_final_68d202", 39.0),
    _detectron2("COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758", 40.2),
    _detectron2("COCO-Detection/faster_rcnn_R_101_C4_3x/138204752/model_final_298dad", 41.1),
    _detectron2("COCO-Detection/faster_rcnn_R_101_DC5_3x/138204841/model_final_3e0943", 40.6),
    _detectron2("COCO-Detection/faster_rcnn_R_101_FPN_3x/137851257/model_final_f6e8b1", 42.0),
    _detectron2("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088", 43.0),
    _detectron2("COCO-Detection/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b", 37.4),
    _detectron2("COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e", 38.7),
    _detectron2("COCO-Detection/retinanet_R_101_FPN_3x/190397697/model_final_971ab9", 40.4),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x/137259246/model_final_9243eb", 36.8, 32.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x/137260150/model_final_4f86c3", 38.3, 34.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504", 38.6, 35.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x/137849525/model_final_4ce675", 39.8, 34.4),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x/137849551/model_final_84107b", 40.0, 35.9),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217", 41.0, 37.2),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x/138363239/model_final_a2914c", 42.6, 36.7),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x/138363294/model_final_0464b7", 41.9, 37.3),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72", 42.9, 38.6),
    _detectron2("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x/139653917/model_final_2d9806", 44.3, 39.5),
    _detectron2(
        "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ/42047764/model_final_bb69de", 44.6, 40.3, settings=TRAINED_WHOLE
    ),
    _detectron2("new_baselines/mask_rcnn_R_50_FPN_200ep_LSJ/42047638/model_final_89a8d3", None, settings=TRAINED_WHOLE),
    _detectron2(
        "new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ/42019571/model_final_14d201", 47.4, 42.5, settings=TRAINED_WHOLE
    ),
    _detectron2(
        "new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ/42025812/model_final_4f7b58", 46.4, 41.6, settings=TRAINED_WHOLE
    ),
    _detectron2(
        "new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ/42131867/model_final_0bb7ae", None, settings=TRAINED_WHOLE
    ),
    _detectron2(
        "new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ/42073830/model_final_f96b26", 48.9, 43.7, settings=TRAINED_WHOLE
    ),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x/137261548/model_final_04e291", 53.6, keypoint_ap=64.0),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b", 55.4, keypoint_ap=65.5),
    _detectron2("COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x/138363331/model_final_997cc7", 56.4, keypoint_ap=66.1),
    _detectron2("COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x/139686956/model_final_5ad38f", 57.3, keypoint_ap=66.0),
    _detectron2("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x/139514544/model_final_dbfeb4", 37.6, 34.7, pq=39.4),
    _detectron2("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x/139514569/model_final_c10459", 40.0, 36.5, pq=41.5),
    _detectron2("COCO-PanopticSegmentation/panoptic_fpn_R_101_3x/139514519/model_final_cafdb1", 42.4, 38.5, pq=43.0),
    _detectron2(
        "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/144219072/model_final_571f7c", 23.6, 24.4, settings=LVIS
    ),
    _detectron2(
        "LVISv0.5-InstanceSegmentation/mask_rcnn_R_101_FPN_1x/144219035/model_final_824ab5", 25.6, 25.9, settings=LVIS
    ),
    _detectron2(
        "LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x/144219108/model_final_5e3439",
        *(26.7, 27.1),
        settings=LVIS,
    ),
    _detectron2("Cityscapes/mask_rcnn_R_50_FPN/142423278/model_final_af9cf5", None, 36.5, settings=CITYSCAPES),
    _detectron2("PascalVOC-Detection/faster_rcnn_R_50_C4/142202221/model_final_b1acc2", 51.9, ap50=80.3),
    _detectron2("Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5/138602867/model_final_65c703", 41.5, 37.5),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5/144998336/model_final_821d0b", 42.7, 38.5),
    _detectron2("Misc/cascade_mask_rcnn_R_50_FPN_1x/138602847/model_final_e9d89b", 42.1, 36.4, settings=CASCADE),
    _detectron2("Misc/cascade_mask_rcnn_R_50_FPN_3x/144998488/model_final_480dd8", 44.3, 38.5, settings=CASCADE),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_syncbn/169527823/model_final_3b3c51", 41.9, 37.8),
    _detectron2("Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/model_final_dc5d9e", 42.6, 38.6),
    _detectron2(
        "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn/138602908/model_final_01ca85", 39.9, 36.6, settings=TRAINED_WHOLE
    ),
    _detectron2("Misc/scratch_mask_rcnn_R_50_FPN_9x_gn/183808979/model_final_da7b4c", 43.7, 39.6, settings=SCRATCH),
    _detectron2("Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn/184226666/model_final_5ce33e", 43.6, 39.3, settings=SCRATCH),
    _detectron2(
        "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x/139797668/model_final_be35db",
        *(47.4, 41.3),
        pq=46.1,
        settings=CASCADE,
    ),
    _detectron2(
        "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv/18131413/model_0039999_e76410",
        *(50.2, 44.0),
        settings=CASCADE,
    ),
    _detectron2(f"{POINTREND}/pointrend_rcnn_R_50_FPN_1x_coco/164254221/model_final_736f5a", None, 36.2),
    _detectron2(f"{POINTREND}/pointrend_rcnn_R_50_FPN_3x_coco/164955410/model_final_edd263", None, 38.3),
    _detectron2(f"{POINTREND}/pointrend_rcnn_R_101_FPN_3x_coco/28119983/model_final_3f4d2a", None, 40.1),
    _detectron2(f"{POINTREND}/pointrend_rcnn_X_101_32x8d_FPN_3x_coco/28119989/model_final_ba17b9", None, 41.1),
    _detectron2(
        "Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x/137781054/model_final_7ab50c", 36.9, settings=DETECTRON1
    ),
    _detectron2(
        "Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x/137781281/model_final_62ca52",
        *(37.8, 34.9),
        settings=DETECTRON1,
    ),
    _detectron2(
        "Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x/137781195/model_final_cce136",
        53.1,
        keypoint_ap=64.2,
        settings=DETECTRON1,
    ),
)

NO_REGNET = "its backbone is a RegNet, which backbones/registry.py lacks"
# Of Detectron2's model zoo too: name -> why it does not load
REFUSED: dict[str, str] = {
    "rpn_R_50_C4_1x": "an RPN alone, whose proposals have no classes",
    "rpn_R_50_FPN_1x": "an RPN alone, whose proposals have no classes",
    "fast_rcnn_R_50_FPN_1x": "Fast R-CNN without an RPN, whose regions come from a file",
    "mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ": NO_REGNET,
    "mask_rcnn_regnetx_4gf_dds_FPN_200ep_LSJ": NO_REGNET,
    "mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ": NO_REGNET,
    "mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ": NO_REGNET,
    "mask_rcnn_regnety_4gf_dds_FPN_200ep_LSJ": NO_REGNET,
    "mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ": NO_REGNET,
}
