"""Mirrors detection/data/check.py, near_copies.py and problems.py."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from detection.data.cards import load_dataset
from detection.data.check import check_copies, check_images, check_objects, summarize_index
from detection.data.near_copies import Pair, look_at, pairs_alike
from detection.data.problems import Problem, listed, refuse_errors, summarize


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
    tiny = [[((5, 5, 7, 40), 0, False)], [((5, 5, 9, 9), 0, False), ((1, 2, 2.9, 40), 1, False)]]
    pairs = [((box, 1), (nearly, 1)), ((box, 1), (other, 1)), ((box, 0), (box, 1))]  # IoU 0.91, 0.89, two classes
    index = make_index([*tiny, *([(*own, False) for own in pair] for pair in pairs)])
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
    assert [(own.severity, own.detail) for own in plain] == [("note", str(color)) for color in colors]
    assert {own.kind for own in plain} == {"image of one colour"}
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


def test_near_copies_are_noted_with_both_names(make_index, photos, tmp_path) -> None:
    for number, file in enumerate(paths := photos[:3]):
        Image.open(file).save(tmp_path / f"{number}.jpg", quality=60)
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


def photo(seed, size=(160, 120)):
    """Smooth noise, which has detail at all sizes as a photograph has."""
    generator, pixels = np.random.default_rng(seed), np.zeros((size[1], size[0], 3), np.float32)
    for cells, weight in ((4, 0.6), (10, 0.3), (40, 0.1)):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) * weight
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty pictures of their own."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(30):
        photo(seed).save(folder / f"{seed:02d}.png")
    return sorted(map(str, folder.glob("*.png")))


def test_copied_files_are_the_same_and_changed_ones_nearly(photos, tmp_path) -> None:
    copies = [shutil.copy(photos[3], tmp_path / name) for name in ("copy.png", "again.png")]
    found = pairs_alike(look_at([*photos, *map(str, copies)]))
    assert found == [Pair(3, 30, same=True), Pair(3, 31, same=True)]
    original, noise = photo(7), np.random.default_rng(0).normal(0, 6, (120, 160, 3))
    changed = [
        original,  # as JPEG
        original.resize((101, 77)),
        ImageEnhance.Brightness(original).enhance(1.15),
        Image.fromarray((np.asarray(original) + noise).clip(0, 255).astype(np.uint8)),
    ]
    looks, path = look_at(photos), tmp_path / "changed.jpg"
    for image in changed:
        image.save(path, quality=60)
        assert pairs_alike([*looks, *look_at([str(path)])]) == [Pair(7, 30, same=False)]


def test_unreadable_files_and_plain_surfaces_are_like_no_other(tmp_path) -> None:
    for number, colour in enumerate(((0, 0, 0), (1, 1, 1), (255, 255, 255))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    (tmp_path / "4.png").mkdir()
    paths = [*sorted(map(str, tmp_path.iterdir())), str(tmp_path / "missing.png")]
    assert pairs_alike(look_at(paths)) == pairs_alike([]) == []


def problem(severity, number=1, kind="box without area"):
    return Problem(severity, kind, f"{number}.xml", f"object {number}")


def test_errors_are_named_with_their_source_counted_and_cut_and_the_rest_summarized() -> None:
    refuse_errors([problem("note"), problem("dropped")], "data set 'a'")
    with pytest.raises(ValueError, match=r"^data set 'a' has 1 error:\n  2\.xml: box without area: object 2$"):
        refuse_errors([problem("note", 1), problem("error", 2)], "data set 'a'")
    for count, lines in ((12, 7), (5, 6)):
        with pytest.raises(ValueError, match=f"has {count} errors") as error:
            refuse_errors([problem("error", number) for number in range(count)], "data set 'a'", most=5)
        found = str(error.value).splitlines()
        assert (len(found), "7 more" in found[-1] and "resdet check" in found[-1]) == (lines, count == 12)
    found = [problem("dropped", 1), problem("dropped", 2), problem("note", 3, "box cut"), problem("error", 4)]
    many = Problem("note", "box cut", "a.txt", "40 images", 40)
    assert summarize([*found, many]) == "2 x box without area (dropped), 41 x box cut (note)"
    assert summarize([]) == summarize([problem("error")]) == ""
    assert (listed(["a", "b"]), listed([])) == ("a, b", "none")
    assert listed(range(1000), most=3) == "0, 1, 2 and 997 more"
