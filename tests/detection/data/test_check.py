"""Mirrors detection/data/check.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.cards import load_dataset
from detection.data.check import check_copies, check_images, check_objects, summarize_index


def silent(rows):
    return rows


def stems(problems, kind):
    return [Path(problem.file).stem for problem in problems if problem.kind == kind]


def test_counts_by_hand(make_index) -> None:
    small = [((0, 0, 10, 10), 0, False), ((0, 0, 31, 33), 0, False), ((0, 0, 32, 32), 0, False)]
    large = [((0, 0, 96, 95), 1, False), ((0, 0, 96, 96), 1, False), ((0, 0, 200, 200), 1, True)]
    summary = summarize_index(make_index([small, [], [((0, 0, 50, 50), 0, True)], large]))
    assert (summary.images, summary.empty) == (4, 2)
    # 100 and 1023 are small, 32 x 32 is medium, the ignored one has no size, 96 x 96 is large.
    assert summary.classes == (("cat", 4, 1, 2, 1, 0), ("dog", 3, 1, 0, 1, 1))
    summary = summarize_index(make_index([]))
    assert (summary.images, summary.empty) == (0, 0)
    assert summary.classes == (("cat", 0, 0, 0, 0, 0), ("dog", 0, 0, 0, 0, 0))


def test_tiny_boxes_and_objects_boxed_twice_are_noted(make_index) -> None:
    box, nearly, other = (0.0, 0.0, 100.0, 100.0), (0.0, 0.0, 100.0, 91.0), (0.0, 0.0, 100.0, 89.0)
    index = make_index(
        [
            [((5, 5, 7, 40), 0, False)],
            [((5, 5, 9, 9), 0, False), ((1, 2, 2.9, 40), 1, False)],
            [(box, 1, False), (nearly, 1, False)],  # IoU 0.91
            [(box, 1, False), (other, 1, False)],  # IoU 0.89
            [(box, 0, False), (box, 1, False)],  # two classes
        ]
    )
    assert [(problem.severity, problem.kind, problem.file, problem.detail) for problem in check_objects(index)] == [
        ("note", "box under 2 pixels", "1.jpg", "dog (1.0, 2.0, 2.9, 40.0)"),
        ("note", "object boxed twice", "2.jpg", "dog (0.0, 0.0, 100.0, 100.0) and (0.0, 0.0, 100.0, 91.0)"),
    ]
    assert check_objects(make_index([[], []])) == check_objects(make_index([])) == []


@pytest.fixture
def index(make_index, draw, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 60, 80, 3), dtype=np.uint8)
    return make_index([[]] * 6, paths=[str(draw(tmp_path / f"{row}.jpg", pixels)) for row, pixels in enumerate(noise)])


def test_bad_images_are_found_in_order_and_progress_is_told_image_by_image(index, make_index, draw) -> None:
    told = []

    def track(rows):
        for found in rows:
            told.append(found)
            yield found

    assert check_images(index, threads=2, track=track) == check_images(make_index([]), track=silent) == []
    assert told == [[]] * 6
    truncated, missing, turned = (Path(index.paths[row]) for row in (1, 3, 4))
    truncated.write_bytes(truncated.read_bytes()[:1000])
    missing.unlink()
    draw(turned, size=(80, 60))
    problems = check_images(index, track=silent)
    assert [(problem.severity, problem.kind) for problem in problems] == [("error", "image")] * 3
    assert [problem.file for problem in problems] == [str(truncated), str(missing), str(turned)]
    for said, problem in zip(("truncated", "can't be read", "is 60x80 pixels"), problems, strict=True):
        assert said in problem.detail


def test_images_of_one_colour_and_nearly_black_ones_are_noted(make_index, draw, tmp_path) -> None:
    colors = [(0, 0, 0), (128, 128, 128), (200, 100, 50)]
    dark = np.random.default_rng(0).integers(0, 16, (60, 80, 3), dtype=np.uint8)
    pictures = [*(np.full((60, 80, 3), color, np.uint8) for color in colors), dark]
    paths = [str(draw(tmp_path / f"{row}.png", pixels)) for row, pixels in enumerate(pictures)]
    *plain, nearly = check_images(make_index([[]] * 4, paths=paths), track=silent)
    assert [(own.severity, own.kind, own.detail) for own in plain] == [
        ("note", "image of one colour", str(color)) for color in colors
    ]
    assert (nearly.severity, nearly.kind, "15 of 255" in nearly.detail) == ("note", "image that is nearly black", True)


def test_images_of_two_splits_or_under_two_names_are_noted_once_a_pair(index, make_index, tmp_path) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(Path(index.paths[2]).read_bytes())
    test = make_index([[]] * 3, paths=[index.paths[0], str(copy), str(tmp_path / "missing.jpg")])
    (problem,) = check_copies({"train": index, "test": test})
    assert (problem.severity, problem.kind, problem.file) == ("note", "image in two splits", index.paths[0])
    assert problem.detail.startswith("'test' shares 2 images with 'train'")
    Path(index.paths[4]).write_bytes(Path(index.paths[1]).read_bytes())
    (problem,) = check_copies({"train": index})
    assert (problem.kind, problem.file) == ("same image twice", index.paths[4])
    assert index.paths[1] in problem.detail
    assert check_copies({}) == []


def test_near_copies_are_noted_with_both_names(make_index, tmp_path) -> None:
    coarse, paths = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), []
    for number, pixels in enumerate(coarse):
        image = Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[number])
        image.save(tmp_path / f"{number}.jpg", quality=60)
    train = make_index([[]] * 4, paths=[*paths, str(tmp_path / "2.jpg")])
    between, within = check_copies({"train": train, "test": make_index([[]], paths=[str(tmp_path / "1.jpg")])})
    assert (within.kind, within.file) == ("nearly the same image", str(tmp_path / "2.jpg"))
    assert (between.kind, between.file) == ("nearly the same image in two splits", str(tmp_path / "1.jpg"))
    assert paths[1] in between.detail


@pytest.mark.data
def test_known_findings_in_real_sets(data_root_for_tests) -> None:
    problems = check_objects(load_dataset(["bccd:trainval", "bccd:test"], data_root_for_tests)[0])
    tiny, doubled = (stems(problems, kind) for kind in ("box under 2 pixels", "object boxed twice"))
    assert {stem[-3:] for stem in tiny} == {"338", "343"}
    assert sorted(stem[-3:] for stem in doubled) == ["020", "100", "104", "251", "284", "331", "403"]
    index, _ = load_dataset(["coco128:train"], data_root_for_tests)
    assert {int(stem) for stem in stems(check_objects(index), "box under 2 pixels")} == {531, 540, 542}
    assert check_images(index.first(30), threads=2, track=silent) == []
