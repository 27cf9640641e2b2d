"""Inputs that once went wrong, kept beside the checkout: each gives its right value, or names key, file and repair."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.bad_images import usable_images
from detection.data.cards import load_card, load_dataset, read_split
from detection.data.check import check_copies, check_images
from detection.data.images import ImageError, read_image
from detection.data.loader import build_train_loader, load_index
from detection.tasks.train import run_training

CASES = Path(os.environ.get("RESDET_TEST_CASES") or Path(__file__).resolve().parents[2] / "shared" / "cases")
MISSING = f"no {CASES}; set RESDET_TEST_CASES to the folder that holds the cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=MISSING)


def read(case):
    """What training reads of a case."""
    return load_dataset([f"{CASES / case / 'card.yaml'}:train"], CASES)


def config(train, test: str | None = None):
    specs = [
        f"data.{key}=[{CASES / case / 'card.yaml'}:{key}]" for key, case in (("train", train), ("test", test)) if case
    ]
    return load_config(DetectionConfig, CASES / "tiny.yaml", [f"data.root={CASES}", *specs])


def train_index(case):
    data = config(case).data
    return load_index(data, data.train, key="data.train", say=lambda _: None)


COCO, VOC = "train.json", "Annotations/a.xml"


@pytest.mark.parametrize(
    ("case", "severity", "file", "words"),
    [
        ("area1", "note", COCO, ["area 1 and a box of 80x60; leave `area` out"]),
        ("bbox_missing", "error", COCO, ["(id 1, image_id 1): bbox is missing, expected [x, y, width, height]"]),
        ("cat_dupname", "error", COCO, ["'cat' has the ids 3 and 4"]),
        ("fn_backslash", "error", None, ["fn_backslash/train.json", "'1.jpg' is there"]),
        ("fn_urlenc", "error", None, ["fn_urlenc/train.json", "'Capture_décran 1.jpg' is there"]),
        ("fn_repeatfolder", "error", None, ["fn_repeatfolder/train.json", "'1.jpg' is there"]),
        ("v_cvat", "error", VOC, ["<annotations>", "export as PASCAL VOC"]),
        ("v_diffunspec", "note", VOC, ["difficult is 'Unspecified'"]),
        ("v_poly", "error", VOC, ["object 1 (cat): bndbox is missing", "<polygon>"]),
        ("v_zero", "note", VOC, ["first_pixel: 0"]),
    ],
)
def test_the_only_problem_names_file_and_repair(case, severity, file, words) -> None:
    _, (problem,) = read_split(load_card(str(CASES / case / "card.yaml")), "train", CASES)
    assert problem.severity == severity
    assert problem.file == str(CASES / case / file) if file else problem.kind == "missing image"
    assert all(word in problem.detail for word in words)


@pytest.mark.parametrize(
    ("case", "ignore", "size"),
    [
        ("crowd_str", [False], None),  # text "0" is no crowd
        ("v_diffunspec", [False], None),
        ("fn_dotdot", None, (60, 80)),  # a path that comes back
        ("v_tif6", None, (80, 60)),
        ("v_tif6ign", None, (60, 80)),
    ],
)
def test_what_is_read(case, ignore, size) -> None:
    index, problems = read(case)
    assert len(problems) == (case == "v_diffunspec")
    assert ignore is None or index.ignore.tolist() == ignore
    if size:
        assert tuple(index.sizes[0].tolist()) == size
        assert index.image(0).shape == (*size, 3)
    if case == "fn_dotdot":
        assert index.paths[0] == str(CASES / case / "images" / "1.jpg")


@pytest.mark.parametrize("case", ["no_ann_key", "voc_test_noxml"])
def test_files_without_annotations_can_be_tested_on_not_trained(case) -> None:
    index, (problem, *_) = read(case)
    assert (len(index), index.has_ground_truth, problem.kind) == (1, False, "no ground truth")
    if case == "no_ann_key":
        with pytest.raises(ValueError, match=r"data\.train .* has no ground truth .*annotations"):
            train_index(case)


def test_splits_with_the_same_images_are_noted() -> None:
    card = load_card(str(CASES / "overlap" / "card.yaml"))
    (problem,) = check_copies({split: read_split(card, split, CASES)[0] for split in ("train", "test")})
    assert problem.kind == "image in two splits"
    assert "shares 2 images with 'train'" in problem.detail


def test_pixels() -> None:
    index, problems = read("v_12bit")
    assert problems == []
    assert index.image(0).max() > 200
    assert len(np.unique(index.image(0))) > 100
    path = CASES / "v_tif6" / "JPEGImages" / "a.tif"
    np.testing.assert_array_equal(np.rot90(read_image(path, apply_exif=False), -1), read_image(path))


def test_broken_images_are_refused_or_dropped() -> None:
    path = CASES / "v_half" / "JPEGImages" / "a.jpg"
    index, _ = read("v_half")
    with pytest.raises(ImageError, match=rf"image {path} can't be read: it is truncated"):
        index.image(0)
    (problem,) = check_images(index, threads=1, track=lambda results: results)
    assert (problem.severity, problem.file) == ("error", str(path))
    rest, (dropped,) = usable_images(index, "drop")
    assert (len(rest), len(rest.boxes), dropped.severity, dropped.file) == (0, 0, "dropped", str(path))
    for name in ("._1.jpg", "2.jpg"):
        with pytest.raises(ImageError, match=rf"image {CASES / 'predict_broken' / name} can't be read: "):
            read_image(CASES / "predict_broken" / name)
    assert read_image(CASES / "predict_broken" / "3.jpg").size


@pytest.mark.parametrize(
    ("case", "message"),
    [("train_all_crowd", "8 objects are all ignored .*iscrowd"), ("train_all_empty", "3 images have no object")],
)
def test_a_set_without_an_object_to_train_on_is_refused_with_its_reason(case, message) -> None:
    with pytest.raises(ValueError, match=rf"(?s)data\.train .*{case}.*{message}"):
        build_train_loader(train_index(case), config(case).data, batch_size=1, seed=0)


def test_an_image_that_is_too_small_for_a_crop_is_named() -> None:
    crop = {"RandomCrop": {"height": 50, "width": 50, "p": 1.0}}
    data, index = replace(config("train_small_crop").data, augment=(crop,)), train_index("train_small_crop")
    loader = build_train_loader(index, data, batch_size=len(index), seed=0)
    small = min(range(len(index)), key=lambda row: int(index.sizes[row].min()))
    with pytest.raises(ImageError, match=rf"image {index.paths[small]}: data\.augment, step 1, .*RandomCrop"):
        next(iter(loader))


@pytest.mark.parametrize("case", ["train_empty_test", "train_two"])
def test_training_goes_on_without_an_object_to_test_on(case, tmp_path) -> None:
    run_training(config("train_two", case), tmp_path)
    assert (tmp_path / "result.json").is_file()
