"""Inputs that once went wrong, kept beside the checkout: each gives its right value, or names key, file and repair."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detection.config.detection import DetectionConfig, DetectorDataConfig
from detection.config.load import load_config
from detection.data.bad_images import usable_images
from detection.data.cards import load_card, load_dataset, read_split
from detection.data.check import check_copies, check_images
from detection.data.images import ImageError, read_image
from detection.data.index import AnnotationIndex
from detection.data.loader import build_train_loader, load_index
from detection.data.problems import Problem
from detection.tasks.train import run_training

CASES = Path(os.environ.get("RESDET_TEST_CASES") or Path(__file__).resolve().parents[2] / "shared" / "cases")

pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"no {CASES}; set RESDET_TEST_CASES to the folder that holds the cases"
)

SILENT: list[str] = []  # arguments of ``say`` that no test looks at


def read(case: str, split: str = "train") -> tuple[AnnotationIndex, list[Problem]]:
    """What training reads of a case."""
    return load_dataset([f"{CASES / case / 'card.yaml'}:{split}"], CASES)


def only_problem(case: str) -> Problem:
    _, problems = read_split(load_card(str(CASES / case / "card.yaml")), "train", CASES)
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


def check(index: AnnotationIndex) -> list[Problem]:
    def silent(results: Iterable[list[Problem]]) -> Iterable[list[Problem]]:
        return results

    return check_images(index, threads=1, track=silent)


def config(train: str, test: str, output: Path) -> DetectionConfig:
    data = {"train": train, "test": test}
    specs = [f"data.{key}=[{CASES / case / 'card.yaml'}:{key}]" for key, case in data.items()]
    return load_config(DetectionConfig, CASES / "tiny.yaml", [f"data.root={CASES}", *specs])


def train_data(case: str) -> DetectorDataConfig:
    return load_config(
        DetectionConfig, CASES / "tiny.yaml", [f"data.root={CASES}", f"data.train=[{CASES / case / 'card.yaml'}:train]"]
    ).data


# COCO


def test_text_0_is_no_crowd() -> None:
    index, problems = read("crowd_str")
    assert (index.ignore.tolist(), problems) == ([False], [])


def test_areas_of_one_are_noted() -> None:
    problem = only_problem("area1")
    assert problem.severity == "note"
    assert problem.file == str(CASES / "area1" / "train.json")
    assert "area 1 and a box of 80x60; leave `area` out" in problem.detail


def test_a_missing_box_is_named() -> None:
    problem = only_problem("bbox_missing")
    assert (problem.severity, problem.file) == ("error", str(CASES / "bbox_missing" / "train.json"))
    assert "(id 1, image_id 1): bbox is missing, expected [x, y, width, height]" in problem.detail
    assert "KeyError" not in problem.detail


def test_two_categories_of_one_name_are_an_error() -> None:
    problem = only_problem("cat_dupname")
    assert (problem.severity, problem.file) == ("error", str(CASES / "cat_dupname" / "train.json"))
    assert "'cat' has the ids 3 and 4" in problem.detail


@pytest.mark.parametrize(
    ("case", "stored"),
    [("fn_backslash", "1.jpg"), ("fn_urlenc", "Capture_décran 1.jpg"), ("fn_repeatfolder", "1.jpg")],
)
def test_a_missing_image_names_what_is_meant(case: str, stored: str) -> None:
    problem = only_problem(case)
    assert (problem.severity, problem.kind) == ("error", "missing image")
    assert str(CASES / case / "train.json") in problem.detail
    assert f"{stored!r} is there" in problem.detail


def test_a_path_that_comes_back_is_read() -> None:
    index, problems = read("fn_dotdot")
    assert (index.paths[0], problems) == (str(CASES / "fn_dotdot" / "images" / "1.jpg"), [])
    assert index.image(0).shape == (60, 80, 3)


def test_a_file_without_annotations_can_be_tested_on_not_trained(tmp_path: Path) -> None:
    index, problems = read("no_ann_key")
    assert (len(index), index.has_ground_truth, problems[0].kind) == (1, False, "no ground truth")
    with pytest.raises(ValueError, match=r"data\.train .* has no ground truth .*annotations"):
        load_index(train_data("no_ann_key"), train_data("no_ann_key").train, key="data.train", say=SILENT.append)


def test_splits_with_the_same_images_are_noted() -> None:
    card = load_card(str(CASES / "overlap" / "card.yaml"))
    (problem,) = check_copies({split: read_split(card, split, CASES)[0] for split in ("train", "test")})
    assert problem.kind == "image in two splits"
    assert "shares 2 images with 'train'" in problem.detail


# VOC


def test_twelve_bits_fill_eight() -> None:
    index, problems = read("v_12bit")
    pixels = index.image(0)
    assert problems == []
    assert pixels.max() > 200
    assert len(np.unique(pixels)) > 100


def test_cvat_s_own_xml_is_refused() -> None:
    problem = only_problem("v_cvat")
    assert (problem.severity, problem.file) == ("error", str(CASES / "v_cvat" / "Annotations" / "a.xml"))
    assert "<annotations>" in problem.detail
    assert "export as PASCAL VOC" in problem.detail


def test_an_unspecified_difficult_is_not_difficult() -> None:
    index, (problem,) = read("v_diffunspec")
    assert index.ignore.tolist() == [False]
    assert (problem.severity, problem.file) == ("note", str(CASES / "v_diffunspec" / "Annotations" / "a.xml"))
    assert "difficult is 'Unspecified'" in problem.detail


def test_a_half_grey_jpeg_is_refused_or_dropped() -> None:
    path = CASES / "v_half" / "JPEGImages" / "a.jpg"
    index, _ = read("v_half")
    with pytest.raises(ImageError, match=rf"image {path} can't be read: it is truncated"):
        index.image(0)
    (problem,) = check(index)
    assert (problem.severity, problem.file) == ("error", str(path))
    rest, (dropped,) = usable_images(index, "drop")
    assert (len(rest), len(rest.boxes), dropped.severity, dropped.file) == (0, 0, "dropped", str(path))


def test_a_polygon_without_a_box_is_named() -> None:
    problem = only_problem("v_poly")
    assert (problem.severity, problem.file) == ("error", str(CASES / "v_poly" / "Annotations" / "a.xml"))
    assert "object 1 (cat): bndbox is missing" in problem.detail
    assert "<polygon>" in problem.detail


@pytest.mark.parametrize(("case", "size"), [("v_tif6", (80, 60)), ("v_tif6ign", (60, 80))])
def test_turned_tiffs_have_one_size(case: str, size: tuple[int, int]) -> None:
    index, problems = read(case)
    assert (tuple(index.sizes[0].tolist()), problems) == (size, [])
    assert index.image(0).shape == (*size, 3)


def test_a_tiff_that_is_not_turned_has_the_pixels_of_the_turned_one() -> None:
    path = CASES / "v_tif6" / "JPEGImages" / "a.tif"
    upright, stored = read_image(path), read_image(path, apply_exif=False)
    np.testing.assert_array_equal(np.rot90(stored, -1), upright)


def test_boxes_that_start_at_zero_get_a_hint() -> None:
    problem = only_problem("v_zero")
    assert (problem.severity, problem.file) == ("note", str(CASES / "v_zero" / "Annotations" / "a.xml"))
    assert "first_pixel: 0" in problem.detail


def test_images_without_annotations_are_a_test_set() -> None:
    index, (problem,) = read("voc_test_noxml")
    assert (len(index), index.has_ground_truth, problem.kind) == (1, False, "no ground truth")


# training


@pytest.mark.parametrize(
    ("case", "message"),
    [("train_all_crowd", "8 objects are all ignored .*iscrowd"), ("train_all_empty", "3 images have no object")],
)
def test_a_set_without_an_object_to_train_on_is_refused_with_its_reason(case: str, message: str) -> None:
    data = train_data(case)
    index = load_index(data, data.train, key="data.train", say=SILENT.append)
    with pytest.raises(ValueError, match=rf"(?s)data\.train .*{case}.*{message}"):
        build_train_loader(index, data, batch_size=1, seed=0)


def test_an_image_that_is_too_small_for_a_crop_is_named() -> None:
    data = replace(train_data("train_small_crop"), augment=({"RandomCrop": {"height": 50, "width": 50, "p": 1.0}},))
    index = load_index(data, data.train, key="data.train", say=SILENT.append)
    loader = build_train_loader(index, data, batch_size=len(index), seed=0)
    small = min(range(len(index)), key=lambda row: int(index.sizes[row].min()))
    with pytest.raises(ImageError, match=rf"image {index.paths[small]}: data\.augment, step 1, .*RandomCrop"):
        next(iter(loader))


@pytest.mark.parametrize("case", ["train_empty_test", "train_two"])
def test_training_goes_on_without_an_object_to_test_on(case: str, tmp_path: Path) -> None:
    run_training(config("train_two", case, tmp_path), tmp_path)
    assert (tmp_path / "result.json").is_file()


# prediction


@pytest.mark.parametrize("name", ["._1.jpg", "2.jpg"])
def test_broken_files_of_a_folder_are_named(name: str) -> None:
    path = CASES / "predict_broken" / name
    with pytest.raises(ImageError, match=rf"image {path} can't be read: "):
        read_image(path)
    assert read_image(path.with_name("3.jpg")).size
