"""Mirrors detection/data/kept_index.py, kept.py and bad_images.py: what was read once is not read again."""

import os
from dataclasses import fields
from pathlib import Path
from threading import Thread

import pytest

from detection.data import bad_images, kept, kept_index
from detection.data.bad_images import usable_images
from detection.data.index import AnnotationIndex
from detection.data.kept import content_digest, kept_file, store, taken
from detection.data.packed_strings import PackedStrings
from detection.data.readers import coco
from detection.data.readers.coco import read_coco

OBJECT = {"image_id": 7, "category_id": 3, "segmentation": [[10, 20, 40, 20, 40, 25]]}
RECORDS = [{"id": 1, "bbox": [10, 20, 30, 5], **OBJECT}, {"id": 2, "bbox": [10, 20, 300, 5], **OBJECT}]  # one is cut


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which small files are kept too."""
    monkeypatch.setattr(kept_index, "LEAST_BYTES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/data"


@pytest.fixture
def unread(monkeypatch):
    """Makes another parse of the annotations an error."""
    return lambda: monkeypatch.setattr(coco, "list_blocks", lambda *_: pytest.fail("it was read again"))


@pytest.fixture
def file(make_coco):
    return make_coco({7: "a.jpg", 900: "b.jpg"}, RECORDS)


def read(file, *fields):
    entry = {"annotations": file.name, "images": "train"}
    return read_coco(file.parent, entry, ("dog", "cat"), drop=True, exif="apply", fields=fields or ("masks",))


def plain(value):
    """Returns an index, or a part of one, as values that compare."""
    if isinstance(value, AnnotationIndex):
        return {own.name: plain(getattr(value, own.name)) for own in fields(value)}
    if isinstance(value, PackedStrings):
        return [value.bytes_of(row) for row in range(len(value))]
    if isinstance(value, dict):
        return {name: plain(own) for name, own in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("field", ["masks", "keypoints"])
def test_an_index_is_the_same_from_the_file_and_as_kept(file, edit_json, folder, unread, monkeypatch, field) -> None:
    def change(content):
        content["annotations"][0]["keypoints"] = [11, 21, 2, 0, 0, 0]
        content["categories"][0] |= {"keypoints": ["nose", "left_eye"], "skeleton": [[1, 2]]}

    edit_json(file, change)
    monkeypatch.setenv("RESDET_CACHE", "off")
    index, problems = read(file, field)
    assert (folder.exists(), index.keypoints is None) == (False, field == "masks")
    monkeypatch.setenv("RESDET_CACHE", str(folder.parent))
    read(file, "masks" if field == "keypoints" else "keypoints")  # another kept file
    first = read(file, field)
    unread()
    for found, notes in (first, read(file, field)):
        assert plain(found) == plain(index)
        assert notes == problems != []


def test_a_file_of_the_same_size_and_time_but_other_content_is_read(file, folder) -> None:
    before = file.stat()
    read(file)
    file.write_text(file.read_text().replace("[10, 20, 30, 5]", "[11, 20, 30, 5]"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert read(file)[0].boxes[0, 0] == 11
    (file.parent / "train/b.jpg").unlink()
    assert [problem.kind for problem in read(file)[1] if problem.severity == "error"] == ["missing image"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["annotations"].append(RECORDS[0]),  # an error
        lambda content: [image.pop(side) for image in content["images"] for side in ("height", "width")],
    ],
)
def test_errors_and_sizes_that_came_out_of_images_are_not_kept(file, edit_json, folder, change) -> None:
    edit_json(file, change)
    assert read(file)[1] == read(file)[1]
    assert (len(read(file)[0]), [*folder.glob("*.safetensors")]) == (2, [])


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" * 99, lambda data: data[:-9] + b"\7" * 9])
def test_a_broken_file_is_written_anew_with_a_note(damage, file, folder, unread) -> None:
    index, problems = read(file)
    expected = plain(index)
    (path,) = folder.glob("*.safetensors")
    broken = damage(path.read_bytes())
    path.unlink()  # else the map of ``index`` changes
    path.write_bytes(broken)
    index, others = read(file)
    assert plain(index) == expected
    assert [(note.severity, note.file) for note in others if note not in problems] == [("note", str(path))]
    unread()
    assert read(file)[1] == problems


def test_a_folder_that_cannot_be_written_is_a_note(file, folder, monkeypatch) -> None:
    (folder.parent.parent / "file").touch()
    monkeypatch.setenv("RESDET_CACHE", str(folder.parent.parent / "file"))
    index, problems = read(file)
    assert (len(index.boxes), "RESDET_CACHE" in problems[-1].kind) == (2, True)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """The names of the images that were looked at, of sets of any size."""
    found, check = [], bad_images.check_header

    def look(path, **options):
        found.append(Path(path).name)
        check(path, **options)

    monkeypatch.setattr(bad_images, "LEAST_IMAGES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bad_images, "check_header", look)
    return found


def test_good_images_are_opened_once_and_bad_or_changed_ones_again(make_coco, opened) -> None:
    folder = make_coco({1: "a.jpg", 2: "b.jpg", 3: "c.jpg"}, []).parent
    entry = {"annotations": "train.json", "images": "train"}
    index, _ = read_coco(folder, entry, ("cat",), drop=True, exif="apply")
    for _ in range(2):
        assert usable_images(index, "error") == (index, [])
    assert sorted(opened) == ["a.jpg", "b.jpg", "c.jpg"]
    Path(index.paths[1]).write_bytes(b"no image")
    first = usable_images(index, "error")[1]
    assert [problem.file for problem in first] == [index.paths[1]]
    opened.clear()
    assert (usable_images(index, "error")[1], opened) == (first, ["b.jpg"])


def test_the_environment_and_the_facts_say_where_files_are_kept(monkeypatch) -> None:
    homes = [("/a", "", "", "/a/data"), ("", "/b", "", "/b/resdet/data"), ("", "", "/c", "/c/.cache/resdet/data")]
    for cache, xdg, home, folder in [*homes, ("off", "/b", "", None)]:
        for name, value in (("RESDET_CACHE", cache), ("XDG_CACHE_HOME", xdg), ("HOME", home)):
            monkeypatch.setenv(name, value)
        found = kept_file(".x", 1, ["a"])
        assert (found and str(found.parent)) == folder
        assert (found == kept_file(".x", 1, ["b"])) == (folder is None)


def test_least_recently_used_files_go_beyond_the_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 250)
    for name, used in (("old", 1), ("new", 3), ("middle", 2)):
        (tmp_path / f"{name}.x").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.x", (used, used))
    store(tmp_path / "own.x", lambda path: path.write_bytes(bytes(100)))
    assert {path.name for path in tmp_path.iterdir()} == {"own.x", "new.x"}


def test_one_at_a_time_makes_a_file_and_a_folder_that_cannot_be_made_stops_nobody(tmp_path) -> None:
    path, order = tmp_path / "below/a.x", []

    def other():
        with taken(path):
            order.append("other")

    with taken(path):
        thread = Thread(target=other)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]
    (tmp_path / "file").touch()
    with taken(tmp_path / "file/a.x"):
        pass


def test_every_byte_counts_for_the_digest_of_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kept, "PART", 4)
    contents, found = [b"", b"abcd", b"abcdefghi", b"abcdefghj", b"Abcdefghi", b"abcdefgh"], set()
    for content in contents:
        (tmp_path / "a").write_bytes(content)
        found.add(content_digest(tmp_path / "a"))
    assert len(found) == len(contents)
