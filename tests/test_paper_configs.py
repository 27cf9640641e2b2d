"""The recipe of the papers, held for every file of configs/paper: a change here is a change of what is reproduced."""

from __future__ import annotations

from pathlib import Path

import pytest

from detection.config.detection import AnchorConfig, DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card
from detection.localization.config import LocalizationConfig

PAPER = Path(__file__).parents[1] / "configs" / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
VOC = [path for path in FILES if "voc" in path.stem]
IMAGENET = [path for path in FILES if path.stem.startswith("table12")]
LOCALIZATION = [path for path in FILES if path.stem.startswith("table14")]
DETECTION = [path for path in FILES if path not in LOCALIZATION]
COCO = [path for path in DETECTION if path not in VOC + IMAGENET]


def load(path: Path) -> DetectionConfig:
    return load_config(DetectionConfig, path)


def test_every_row_has_its_file() -> None:
    assert [path.stem for path in FILES] == [
        "faster_rcnn_coco_vgg16",
        "table10_resnet101_coco_voc07",
        "table11_resnet101_coco_voc12",
        "table12_resnet101",
        "table14_resnet101",
        "table7_resnet101_voc07",
        "table7_resnet101_voc12",
        "table7_vgg16_voc07",
        "table7_vgg16_voc12",
        "table8_resnet101",
        "table8_vgg16",
        "table9_resnet101_context",
    ]


@pytest.mark.parametrize("path", DETECTION, ids=lambda path: path.stem)
def test_what_all_share(path: Path) -> None:
    config = load(path)
    assert (config.data.shorter_side, config.data.longer_side) == (600, 1000)
    assert config.data.augment == ({"HorizontalFlip": {"p": 0.5}},)
    assert config.anchors.ratios == (0.5, 1.0, 2.0)
    rpn, box, solver = config.rpn, config.box, config.solver
    assert (rpn.positive_iou, rpn.negative_iou, rpn.samples_per_image, rpn.positive_fraction) == (0.7, 0.3, 256, 0.5)
    assert (rpn.nms_iou, rpn.post_nms_train, rpn.post_nms_test, rpn.allow_outside) == (0.7, 2000, 300, False)
    assert (box.pool, box.samples_per_image, box.positive_fraction, box.positive_iou) == ("roi_pool", 64, 0.25, 0.5)
    assert box.coder_weights == (10.0, 10.0, 5.0, 5.0)
    assert (solver.momentum, solver.weight_decay, solver.gamma) == (0.9, 5e-4, 0.1)
    assert config.test.nms_iou == 0.3
    assert config.backbone.weights == "torchvision"
    if config.backbone.name == "resnet101":
        assert (config.backbone.norm, config.backbone.roi_size, config.backbone.tail_stride) == ("frozen_bn", 14, 2)
    else:
        assert (config.backbone.name, config.backbone.freeze_at, config.backbone.dropout) == ("vgg16", 2, None)


@pytest.mark.parametrize("path", VOC, ids=lambda path: path.stem)
def test_voc(path: Path) -> None:
    config = load(path)
    assert (config.solver.base_lr, config.solver.images_per_step, config.box.negative_iou_low) == (1e-3, 2, 0.1)
    twelve = path.stem.endswith("voc12")
    joined = ("voc2007:trainval", "voc2007:test", "voc2012:trainval") if twelve else config.data.train
    assert config.data.train == joined
    assert config.data.test == (() if twelve else ("voc2007:test",))
    assert twelve or config.data.train == ("voc2007:trainval", "voc2012:trainval")
    if config.init_classes:
        return
    assert config.anchors.sizes == AnchorConfig().sizes == (128.0, 256.0, 512.0)
    steps = config.alternating
    assert (steps.rpn_iterations, steps.rpn_steps, steps.rpn_images_per_step) == (80000, (60000,), 1)
    assert (steps.box_iterations, steps.box_steps, steps.box_images_per_step) == (40000, (30000,), 2)


@pytest.mark.parametrize("path", COCO, ids=lambda path: path.stem)
def test_coco(path: Path) -> None:
    config = load(path)
    assert config.anchors.sizes == (64.0, 128.0, 256.0, 512.0)
    assert (config.data.train, config.data.test) == (("coco2014:train",), ("coco2014:val",))
    assert config.box.negative_iou_low == 0
    assert config.solver.base_lr == (3e-3 if path.stem.startswith("faster_rcnn") else 1e-3)
    steps = config.alternating
    assert (steps.rpn_iterations, steps.rpn_steps, steps.rpn_images_per_step) == (320000, (240000,), 8)
    assert (steps.box_iterations, steps.box_steps, steps.box_images_per_step) == (320000, (240000,), 16)
    assert config.box.context == ("context" in path.stem)


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_imagenet_detection_is_cocos_system(path: Path) -> None:
    config, coco = load(path), load(PAPER / "table9_resnet101_context.yaml")
    assert (config.data.train, config.data.test) == (
        ("imagenet_det:train", "imagenet_det:val1"),
        ("imagenet_det:val2",),
    )
    for section in ("backbone", "anchors", "rpn", "box", "alternating"):
        assert getattr(config, section) == getattr(coco, section), section
    assert config.solver.base_lr == 1e-3
    assert (config.test.refine, config.test.scales) == (True, (200, 400, 600, 800, 1000))


@pytest.mark.parametrize("path", LOCALIZATION, ids=lambda path: path.stem)
def test_localization(path: Path) -> None:
    config = load_config(LocalizationConfig, path)
    assert (config.data.train, config.data.test) == (("imagenet_loc:train",), ("imagenet_loc:val_loc",))
    assert (config.solver.images_per_step, config.rpn.samples_per_image, config.rpn.positive_fraction) == (256, 8, 0.5)
    lengths = config.localization
    assert (lengths.crop, lengths.crop_shorter_side, lengths.proposals) == (224, 256, 200)
    resize, crop, flip = config.data.augment
    assert (min(resize["SmallestMaxSize"]["max_size"]), max(resize["SmallestMaxSize"]["max_size"])) == (256, 480)
    assert crop == {"RandomCrop": {"height": 224, "width": 224}}
    assert flip == {"HorizontalFlip": {"p": 0.5}}
    assert (config.backbone.name, config.backbone.norm) == ("resnet101", "frozen_bn")


@pytest.mark.parametrize("stem", ["table10_resnet101_coco_voc07", "table11_resnet101_coco_voc12"])
def test_voc_classes_find_their_rows_in_a_coco_detector(stem: str) -> None:
    config = load(PAPER / f"{stem}.yaml")
    voc, coco = load_card("voc2007").classes, load_card("coco2014").classes
    assert set(config.init_classes) <= set(voc)
    assert {config.init_classes.get(name, name) for name in voc} <= set(coco)
    assert (config.test.refine, config.test.scales) == (True, (200, 400, 600, 800, 1000))


@pytest.mark.parametrize(
    ("stem", "figures"),
    [
        ("table7_vgg16_voc07", ["73.2"]),
        ("table7_resnet101_voc07", ["76.4"]),
        ("table7_vgg16_voc12", ["70.4"]),
        ("table7_resnet101_voc12", ["73.8"]),
        ("table8_vgg16", ["41.5 / 21.2"]),
        ("table8_resnet101", ["48.4 / 27.2"]),
        ("table9_resnet101_context", ["51.1 / 30.0", "53.8 / 32.5"]),
        ("table10_resnet101_coco_voc07", ["85.6"]),
        ("table11_resnet101_coco_voc12", ["83.8"]),
        ("table12_resnet101", ["60.5", "58.8", "63.6 / 62.1"]),
        ("table14_resnet101", ["10.6", "8.9", "9.0"]),
        ("faster_rcnn_coco_vgg16", ["41.5 / 21.2"]),
    ],
)
def test_the_header_has_the_papers_figure(stem: str, figures: list[str]) -> None:
    header = "".join(line for line in (PAPER / f"{stem}.yaml").read_text().splitlines(True) if line.startswith("#"))
    assert all(figure in header for figure in figures)


@pytest.mark.parametrize("path", [path for path in VOC if "table10" not in path.stem], ids=lambda path: path.stem)
def test_the_figures_per_class_average_to_the_figure(path: Path) -> None:
    lines = path.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("# Expected"))
    values = [float(text) for text in lines[row + 1].lstrip("# ").split()]
    mean = next(word for word in lines[row].split() if word.rstrip(";").replace(".", "", 1).isdigit())
    assert len(values) == 20
    assert sum(values) / 20 == pytest.approx(float(mean.rstrip(";")), abs=0.06)
