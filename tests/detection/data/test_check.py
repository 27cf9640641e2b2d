"""Mirrors detection/data/check.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.cards import load_dataset
from detection.data.check import check_copies, check_images, check_objects, summarize_index
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem

MakeIndex = Callable[..., AnnotationIndex]


def silent(rows: Iterable[list[Problem]]) -> Iterable[list[Problem]]:
    return rows


# counts


def test_counts_by_hand(make_index: MakeIndex) -> None:
    index = make_index(
        [
            [((0, 0, 10, 10), 0, False), ((0, 0, 31, 33), 0, False), ((0, 0, 32, 32), 0, False)],
            [],
            [((0, 0, 50, 50), 0, True)],
            [((0, 0, 96, 95), 1, False), ((0, 0, 96, 96), 1, False), ((0, 0, 200, 200), 1, True)],
        ]
    )
    summary = summarize_index(index)
    assert (summary.images, summary.empty) == (4, 2)
    assert summary.classes == (
        ("cat", 4, 1, 2, 1, 0),  # 100 and 1023 are small, 32 x 32 is medium, the ignored one has no size
        ("dog", 3, 1, 0, 1, 1),  # 96 x 96 is large
    )


def test_counts_of_nothing(make_index: MakeIndex) -> None:
    summary = summarize_index(make_index([]))
    assert (summary.images, summary.empty) == (0, 0)
    assert summary.classes == (("cat", 0, 0, 0, 0, 0), ("dog", 0, 0, 0, 0, 0))


# objects


def test_tiny_boxes_are_noted(make_index: MakeIndex) -> None:
    index = make_index([[((5, 5, 7, 40), 0, False)], [((5, 5, 9, 9), 0, False), ((1, 2, 2.9, 40), 1, False)]])
    (problem,) = check_objects(index)
    assert (problem.severity, problem.kind, problem.file) == ("note", "box under 2 pixels", "1.jpg")
    assert problem.detail == "dog (1.0, 2.0, 2.9, 40.0)"


def test_objects_boxed_twice_are_noted_once(make_index: MakeIndex) -> None:
    box, nearly, other = (0.0, 0.0, 100.0, 100.0), (0.0, 0.0, 100.0, 91.0), (0.0, 0.0, 100.0, 89.0)
    index = make_index(
        [
            [(box, 1, False), (nearly, 1, False)],  # IoU 0.91
            [(box, 1, False), (other, 1, False)],  # IoU 0.89
            [(box, 0, False), (box, 1, False)],  # two classes
            [(box, 0, False)],
        ]
    )
    (problem,) = check_objects(index)
    assert (problem.severity, problem.kind, problem.file) == ("note", "object boxed twice", "0.jpg")
    assert problem.detail == "dog (0.0, 0.0, 100.0, 100.0) and (0.0, 0.0, 100.0, 91.0)"


def test_no_objects(make_index: MakeIndex) -> None:
    assert check_objects(make_index([[], []])) == []
    assert check_objects(make_index([])) == []


# images


@pytest.fixture
def index(make_index: MakeIndex, tmp_path: Path) -> AnnotationIndex:
    paths = [str(tmp_path / f"{row}.jpg") for row in range(6)]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return make_index([[]] * 6, paths=paths)


def test_good_images_pass(index: AnnotationIndex) -> None:
    assert check_images(index, track=silent) == []


def test_bad_images_are_found_in_order(index: AnnotationIndex) -> None:
    truncated, missing, turned = (Path(index.paths[row]) for row in (1, 3, 4))
    truncated.write_bytes(truncated.read_bytes()[:1000])
    missing.unlink()
    Image.new("RGB", (60, 80), (1, 2, 3)).save(turned)
    problems = check_images(index, track=silent)
    assert [(problem.severity, problem.kind) for problem in problems] == [("error", "image")] * 3
    assert [problem.file for problem in problems] == [str(truncated), str(missing), str(turned)]
    assert "truncated" in problems[0].detail
    assert "can't be read" in problems[1].detail
    assert "is 60x80 pixels, its annotation says 80x60" in problems[2].detail


@pytest.mark.parametrize("color", [(0, 0, 0), (128, 128, 128), (200, 100, 50)], ids=["black", "grey", "brown"])
def test_an_image_of_one_colour_is_noted(make_index: MakeIndex, tmp_path: Path, color: tuple[int, int, int]) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (80, 60), color).save(path)
    (problem,) = check_images(make_index([[]], paths=[str(path)]), track=silent)
    assert (problem.severity, problem.kind, problem.detail) == ("note", "image of one colour", str(color))


def test_an_image_that_is_nearly_black_is_noted(make_index: MakeIndex, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 16, (60, 80, 3), dtype=np.uint8)).save(path)
    (problem,) = check_images(make_index([[]], paths=[str(path)]), track=silent)
    assert (problem.severity, problem.kind) == ("note", "image that is nearly black")
    assert "15 of 255" in problem.detail


def test_images_of_two_splits_are_noted_once_a_pair(
    index: AnnotationIndex, make_index: MakeIndex, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(Path(index.paths[2]).read_bytes())
    test = make_index([[]] * 3, paths=[index.paths[0], str(copy), str(tmp_path / "missing.jpg")])
    (problem,) = check_copies({"train": index, "test": test})
    assert (problem.severity, problem.kind, problem.file) == ("note", "image in two splits", index.paths[0])
    assert problem.detail.startswith("'test' shares 2 images with 'train'")


def test_an_image_under_two_names_is_noted(index: AnnotationIndex) -> None:
    Path(index.paths[4]).write_bytes(Path(index.paths[1]).read_bytes())
    (problem,) = check_copies({"train": index})
    assert (problem.kind, problem.file) == ("same image twice", index.paths[4])
    assert index.paths[1] in problem.detail
    assert check_copies({}) == []


def test_near_copies_are_noted_with_both_names(make_index: MakeIndex, tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, pixels in zip(paths, coarse, strict=True):
        Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(path)
    for name, number in (("test.jpg", 1), ("train.jpg", 2)):
        Image.open(paths[number]).save(tmp_path / name, quality=60)
    train = make_index([[]] * 4, paths=[*paths, str(tmp_path / "train.jpg")])
    test = make_index([[]], paths=[str(tmp_path / "test.jpg")])
    between, within = check_copies({"train": train, "test": test})
    assert (within.kind, within.file) == ("nearly the same image", str(tmp_path / "train.jpg"))
    assert (between.kind, between.file) == ("nearly the same image in two splits", str(tmp_path / "test.jpg"))
    assert paths[1] in between.detail


def test_progress_is_told_image_by_image(index: AnnotationIndex) -> None:
    told = []

    def track(rows: Iterable[list[Problem]]) -> Iterable[list[Problem]]:
        for found in rows:
            told.append(found)
            yield found

    check_images(index, threads=2, track=track)
    assert told == [[]] * 6


def test_no_images(make_index: MakeIndex) -> None:
    assert check_images(make_index([]), track=silent) == []


# real data


@pytest.mark.data
def test_bccd_holds_its_two_point_boxes_and_seven_doubles(data_root_for_tests: Path) -> None:
    index, _ = load_dataset(["bccd:trainval", "bccd:test"], data_root_for_tests)
    problems = check_objects(index)
    tiny = {Path(problem.file).stem[-3:] for problem in problems if problem.kind == "box under 2 pixels"}
    doubled = sorted(Path(problem.file).stem[-3:] for problem in problems if problem.kind == "object boxed twice")
    assert tiny == {"338", "343"}
    assert doubled == ["020", "100", "104", "251", "284", "331", "403"]


@pytest.mark.data
def test_the_thinnest_boxes_of_coco128_are_found_and_its_photographs_decode(data_root_for_tests: Path) -> None:
    index, _ = load_dataset(["coco128:train"], data_root_for_tests)
    tiny = {int(Path(problem.file).stem) for problem in check_objects(index) if problem.kind == "box under 2 pixels"}
    assert tiny == {531, 540, 542}
    assert check_images(index, threads=2, track=silent) == []
