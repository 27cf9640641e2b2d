from pathlib import Path

import pytest

from detection.classification.config import ClassificationConfig
from detection.config.compat import FORMAT
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, load_config, parse_config

OLD = Path(__file__).parents[2] / "old_runs" / "format1"
WRITTEN = "alternating: {}\nlocalization: {}\nclassification: {}\n"  # which sections tell a written config of format 1


def test_masks_and_cascades_name_an_architecture() -> None:
    for masks, ious, architecture in (
        *(("false", [], "faster_rcnn"), ("true", [], "mask_rcnn")),
        *(("false", [0.4, 0.6], "cascade_rcnn"), ("true", [0.4, 0.6], "cascade_mask_rcnn")),
    ):
        box = f"box: {{cascade: {ious}, head: fc, class_agnostic: true}}\n"
        config = parse_config(DetectionConfig, f"{WRITTEN}mask: {{enabled: {masks}}}\n{box}")
        assert (config.architecture, config.cascade.ious) == (architecture, tuple(ious) or (0.5, 0.6, 0.7))


def test_older_masks_stay_torchvisions() -> None:
    for text, geometry in (
        (f"{WRITTEN}mask: {{enabled: true}}\n", "torchvision"),
        (f"{WRITTEN}mask: {{enabled: false}}\n", "exact"),
        ("format: 2\narchitecture: mask_rcnn\n", "torchvision"),
        ("format: 2\narchitecture: faster_rcnn\n", "exact"),
        ("format: 3\narchitecture: mask_rcnn\n", "exact"),
        ("architecture: mask_rcnn\n", "exact"),  # written by hand
    ):
        assert parse_config(DetectionConfig, text).mask.geometry == geometry


def test_keys_that_are_gone_leave_the_others() -> None:
    text = f"{WRITTEN}solver: {{fixed: [rpn], base_lr: 0.5}}\ndata: {{proposals: a.safetensors}}\n"
    assert parse_config(DetectionConfig, text).solver.base_lr == 0.5
    config = load_config(ClassificationConfig, OLD / "classifier" / "config.yaml")
    assert (config.backbone.name, config.classification.crop, config.solver.iterations) == ("cifar_resnet20", 32, 8)
    assert dump_config(DetectionConfig()).startswith(f"format: {FORMAT}\n")


def test_an_old_key_by_hand_or_a_later_format_is_refused_with_what_to_write() -> None:
    for text, repair in (
        ("mask: {enabled: true}", "architecture: mask_rcnn"),
        ("box: {cascade: [0.5, 0.6]}", "architecture: cascade_rcnn"),
        ("solver: {fixed: [rpn]}", "resdet alternating"),
        (f"format: {FORMAT + 1}", rf"format is {FORMAT + 1}, and this version reads 1 to {FORMAT}"),
    ):
        with pytest.raises(ValueError, match=repair):
            parse_config(DetectionConfig, text)
