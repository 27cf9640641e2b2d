"""Mirrors detection/data/cards.py and selection.py: from a card and a split to an index, bad input included."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from detection.config.load import build_dataclass
from detection.data.cards import Card, data_root, load_card, load_dataset, read_split
from detection.data.check import summarize_index
from detection.data.readers.table import FORMATS
from detection.data.selection import split_entry

DATASETS = Path(__file__).parents[3] / "datasets"
CARDS = sorted(DATASETS.glob("*.yaml"))
CAT, DOG = ("cat", (1, 1, 10, 20), False), ("dog", (5, 6, 15, 16), True)


def annotation(number, image, **others):
    return {"id": number, "image_id": image, "category_id": 3, "bbox": [10, 20, 30, 5], **others}


def stems(index):
    return [Path(path).stem for path in index.paths.all()]


@pytest.fixture
def load(write_card, tmp_path):
    """Loads the split train by a card for what make_voc or make_coco wrote."""
    return lambda kind, **keys: load_dataset([f"{write_card(kind, **keys)}:train"], tmp_path)


def test_every_card_of_the_project_loads_and_known_ones_know_their_classes_and_metric() -> None:
    for path in CARDS:
        card = load_card(path.stem)
        assert (card.name, bool(card.source.strip())) == (path.stem, True)
        assert not Path(card.root or "").is_absolute()
        schema, own_list = FORMATS[card.format].split, FORMATS[card.format].own_list
        for described in card.splits.values():
            for entry in described if isinstance(described, list) else [described]:
                build_dataclass(schema, split_entry(entry, own_list=own_list)[0])
    voc, coco, det, loc = map(load_card, ("voc2007", "coco2017", "imagenet_det", "imagenet_loc"))
    assert (len(voc.classes), voc.classes[0], voc.classes[14], voc.voc_metric) == (20, "aeroplane", "person", "11point")
    assert (len(coco.classes), coco.classes[0], coco.classes[79]) == (80, "person", "toothbrush")
    assert load_card("voc2012").classes == voc.classes
    assert (len(det.names), len(det.classes), len(set(det.classes)), det.voc_metric) == (200, 200, 200, "imagenet")
    assert all(re.fullmatch(r"n\d{8}", name) for name in (*det.names, *loc.classes))
    assert (det.names["n02084071"], det.classes[0], det.classes[-1]) == ("dog", "accordion", "zebra")
    assert loc.names == {"Scottish_deerhound": "n02092002"}
    assert (loc.exif, loc.other_size, len(loc.classes)) == ("by_size", "scale", 1000)
    assert loc.classes == tuple(sorted(loc.classes))  # torchvision's order: tench, golden retriever
    assert [loc.classes[row] for row in (0, 207, 999)] == ["n01440764", "n02099601", "n15075141"]


def test_a_card_of_ones_own_is_named_by_path_or_in_the_working_directory(write_card, tmp_path, monkeypatch) -> None:
    path = write_card("voc", card="mine", exif="ignore")
    card = load_card(path)
    assert (card.name, card.format, card.classes, card.exif) == ("mine", "voc", ("cat", "dog"), "ignore")
    assert (card.bad_boxes, card.bad_images, card.voc_metric) == ("drop", "error", "area")
    (tmp_path / "datasets").mkdir()
    Path(path).rename(tmp_path / "datasets/mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert (load_card("mine").format, load_card("bccd").format) == ("voc", "voc")
    for name, message in (("bcdc", "'bcdc'.*'bccd'"), ("zzzzz", "bccd.*voc2007"), ("a.yaml", r"no card 'a\.yaml'")):
        with pytest.raises(ValueError, match=message):
            load_card(name)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clases": ["cat"]}, "no config key 'clases'; did you mean 'classes'?"),
        ({"format": "voc2007"}, "got 'voc2007'; did you mean 'voc'?"),
        ({"format": None}, "'format'"),
        ({"classes": [0, 1]}, "'classes[0]' takes a text, got 0"),
        ({"classes": "cat"}, "'classes' takes a list, such as [a, b], got 'cat'"),
        ({"classes": ["cat", "dog", "cat"]}, "each once; given twice: ['cat']"),
        ({"bad_boxes": "keep"}, "'bad_boxes' takes one of 'drop' or 'error', got 'keep'"),
        ({"exif": True}, "'exif' takes one of 'apply', 'ignore' or 'by_size', got True"),
        ({"splits": "train"}, "'splits' takes a mapping, such as {a: b}, got 'train'"),
        ({"names": {"n1": "b"}}, "lead to ['b']"),
        ({"names": {"n1": "cat"}, "format": "coco"}, "names is for the voc format"),
    ],
)
def test_a_mistake_in_a_card_is_named_with_its_file(write_card, keys, message) -> None:
    path = write_card("voc", **keys)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_card(path)
    assert path in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"voc", b"format: [", b"format: \xff", b"solver: {iterations: 6}"])
def test_a_file_that_is_no_card_is_named_and_builds_no_python_objects(tmp_path, content) -> None:
    path = tmp_path / "mine.yaml"
    touched = f"format: !!python/object/apply:pathlib.Path.touch ['{tmp_path / 'touched'}']\n".encode()
    for written in (content, touched):
        path.write_bytes(written)
        with pytest.raises(ValueError, match=re.escape(str(path)) + (".*data.train" * written.startswith(b"solver"))):
            load_card(str(path))
    assert not (tmp_path / "touched").exists()


def test_the_data_root_and_the_folder_below_it(monkeypatch, load, tmp_path) -> None:
    monkeypatch.setenv("RESDET_DATA_ROOT", "/from/environment")
    assert (data_root("/configured"), data_root()) == (Path("/configured"), Path("/from/environment"))
    monkeypatch.delenv("RESDET_DATA_ROOT")
    assert data_root() == DATASETS
    for root, folder in ((None, "/data/mine"), ("a/b", "/data/a/b"), ("/c", "/c")):
        assert Card(name="mine", format="voc", splits={}, root=root).folder(Path("/data")) == Path(folder)
    with pytest.raises(ValueError, match=r"RESDET_DATA_ROOT.*Buy it at http://shop\.example\.") as error:
        load("voc", source="Buy it at http://shop.example.")
    assert str(tmp_path / "voc") in str(error.value)


def test_sets_are_joined_and_clashing_ids_numbered_anew(make_voc, make_coco, write_card, tmp_path) -> None:
    make_voc({"a": [CAT], "b": []}, folder="voc07")
    make_voc({"c": [DOG, CAT]}, folder="voc12")
    specs = [f"{write_card('voc', card=name, root=name)}:train" for name in ("voc07", "voc12")]
    index, problems = load_dataset(specs, tmp_path)
    assert (stems(index), index.image_ids.tolist(), problems) == (["a", "b", "c"], [1, 2, 3], [])
    assert [index.target(row).labels.tolist() for row in range(3)] == [[0], [], [1, 0]]
    make_coco({9: "a.jpg"}, [annotation(1, 9)])
    index, _ = load_dataset([specs[0], f"{write_card('coco')}:train"], tmp_path)
    assert (index.image_ids.tolist(), index.boxes.tolist()) == ([1, 2, 9], [[0, 0, 10, 20], [10, 20, 40, 25]])
    with pytest.raises(ValueError, match="different classes"):
        load_dataset([specs[0], f"{write_card('coco', classes=['dog', 'cat'])}:train"], tmp_path)
    index, (note,) = load_dataset([specs[0]] * 2, tmp_path)
    assert (len(index), note.severity, note.kind) == (4, "note", "image in two of the joined sets")
    assert (Path(note.file).name, note.count) == ("a.jpg", 2)


def test_a_split_of_two_entries_is_joined_with_the_problems_of_both(make_coco, write_card, tmp_path) -> None:
    make_coco({9: "a.jpg"}, [annotation(1, 9)])
    make_coco({7: "a.jpg", 5: "b.jpg"}, [annotation(1, 5)], split="more")
    entries = [{"annotations": f"{name}.json", "images": name} for name in ("train", "more")]
    card = write_card("coco", splits={"both": entries})
    index, _ = load_dataset([f"{card}:both"], tmp_path)
    assert (index.image_ids.tolist(), index.ends.tolist()) == ([9, 7, 5], [1, 1, 2])
    assert index.paths[1] == str(tmp_path / "coco/more/a.jpg")
    make_coco({9: "a.jpg"}, [annotation(1, 8)])
    make_coco({7: "a.jpg"}, [annotation(1, 6)], split="more")
    _, problems = read_split(load_card(card), "both", tmp_path)
    assert [Path(problem.file).name for problem in problems] == ["train.json", "more.json"]


def test_specs_and_splits_that_are_none_are_named(make_voc, write_card, load, tmp_path) -> None:
    for spec in ("voc2007", "voc2007:", ":train", ""):
        with pytest.raises(ValueError, match=re.escape(f"card:split, such as voc2007:trainval, got {spec!r}")):
            load_dataset([spec], tmp_path)
    with pytest.raises(ValueError, match="no data set given"):
        load_dataset([], tmp_path)
    with pytest.raises(ValueError, match="card 'voc' has no split 'tarin'; it has train"):
        load_dataset([f"{write_card('voc')}:tarin"], tmp_path)
    make_voc({})
    for entry in ({"lst": "ImageSets/Main/train.txt"}, "ImageSets/Main/train.txt", None, []):
        with pytest.raises(ValueError, match=r"mine.*train"):
            load("voc", card="mine", splits={"train": entry})
    with pytest.raises(ValueError, match=rf"has no images; its card is {tmp_path / 'voc'}\.yaml"):
        load("voc")


@pytest.fixture
def load_folders(draw, tmp_path):
    """Loads the splits of a card of image folders that hold one picture for each of the ``names``."""

    def load(*names, drawn=("train",), **keys):
        for split, name in product(drawn, names):
            draw(tmp_path / f"folders/{split}/{name}/a.png", size=(6, 8))
        values = {"format": "image_folder", "splits": {split: {"folder": split} for split in drawn}} | keys
        (tmp_path / "folders.yaml").write_text(yaml.safe_dump(values))
        return load_dataset([f"{tmp_path / 'folders.yaml'}:{split}" for split in drawn], tmp_path)

    return load


def test_image_folders_load_and_name_the_classes_where_the_card_does_not(load_folders) -> None:
    index, problems = load_folders("dog", "cat", drawn=("train", "val"))
    assert (index.class_names, index.labels.tolist(), problems) == (("cat", "dog"), [0, 1, 0, 1], [])
    index, problems = load_folders(classes=["dog", "cat"])
    assert (index.class_names, index.labels.tolist(), problems) == (("dog", "cat"), [0, 1], [])
    with pytest.raises(ValueError, match=r"(?s)has 2 errors:.*did you mean 'dgo'\?.*dgo: class without an image"):
        load_folders(classes=["dgo", "cat"])
    with pytest.raises(ValueError, match=r"split 'train' takes \{folder:\}, or a list"):
        load_folders(splits={"train": "train"})


def test_names_give_the_classes_and_reach_the_reader_as_tolerances_do(make_voc, write_card, load) -> None:
    folder = make_voc({"a": [("n2", (1, 1, 10, 20), False), ("n1", (1, 1, 9, 9), False), ("n3", (1, 1, 9, 9), False)]})
    Image.new("RGB", (160, 120)).save(folder / "JPEGImages/a.jpg")
    index, (problem,) = load("voc", classes=None, names={"n1": "cat", "n2": "dog", "n3": "cat"}, other_size="scale")
    assert (index.class_names, index.labels.tolist()) == (("cat", "dog"), [1, 0, 0])
    assert (index.boxes.tolist()[0], index.sizes.tolist(), problem.severity) == ([0, 0, 20, 40], [[120, 160]], "note")


def test_bad_boxes_are_told_or_refused_as_the_card_says(make_voc, load) -> None:
    outside = ("cat", (300, 300, 310, 310), False)
    make_voc({"a": [CAT, outside], "b": [outside]})
    index, problems = load("voc")
    assert (len(index), index.num_wanted().tolist()) == (2, [1, 0])
    assert [(p.severity, Path(p.file).name) for p in problems] == [("dropped", "a.xml"), ("dropped", "b.xml")]
    with pytest.raises(ValueError, match=r"(?s)has 2 errors:.*a\.xml: box outside the image.*object 2 \(cat\)"):
        load("voc", bad_boxes="error")


def test_bad_images_are_named_together_or_dropped_as_the_card_says(make_voc, write_card, load, tmp_path) -> None:
    folder = make_voc({stem: [CAT, DOG] if stem == "f" else [CAT] for stem in "abcdef"})
    b, c, d, e = (folder / "JPEGImages" / f"{stem}.jpg" for stem in "bcde")
    b.write_bytes(b.read_bytes()[: b.stat().st_size // 2])
    c.write_text("<html>404</html>")
    d.write_bytes(d.read_bytes()[: d.stat().st_size * 3 // 4] + b"\xff\xd9")  # it lacks data before its end marker
    Image.new("RGB", (50, 50)).save(e)
    with pytest.raises(ValueError, match="has 3 errors") as error:
        load("voc")
    lines = str(error.value).splitlines()
    assert [Path(line.partition(": ")[0]).name for line in lines[1:]] == ["b.jpg", "c.jpg", "e.jpg"]
    assert "bad_images: drop" in lines[-1]
    index, _ = read_split(load_card(write_card("voc")), "train", tmp_path)
    with pytest.raises(ValueError, match=r"d\.jpg can't be read: it is truncated"):  # only its pixels tell
        index.image(3)
    index, problems = load("voc", bad_images="drop")  # which reads all
    assert (stems(index), index.image_ids.tolist()) == (["a", "f"], [1, 6])
    assert (index.labels.tolist(), index.ends.tolist()) == ([0, 0, 1], [1, 3])
    assert [(p.severity, Path(p.file).stem) for p in problems] == [("dropped", stem) for stem in "bcde"]


def test_masks_stay_with_their_objects_when_an_image_is_dropped(make_coco, write_card, tmp_path) -> None:
    squares = {7: [[10, 20, 40, 20, 40, 25, 10, 25]], 9: [[0, 0, 8, 0, 8, 8, 0, 8]]}
    objects = [annotation(image, image, segmentation=own) for image, own in squares.items()]
    file = make_coco({7: "a.jpg", 9: "b.jpg"}, objects)
    (file.parent / "train/a.jpg").write_bytes(b"")
    index, _ = load_dataset([f"{write_card('coco', bad_images='drop')}:train"], tmp_path, fields=("masks",))
    masks: Any = index.target(0, fields=("masks",)).masks
    assert (index.image_ids.tolist(), masks.sum().item(), masks[0, :8, :8].all().item()) == ([9], 64, True)


@pytest.mark.data
def test_known_counts_of_real_sets(data_root_for_tests) -> None:
    for spec, images, objects, sizes in [
        ("bccd:trainval", 292, {"RBC": (3350, 0), "WBC": (301, 0), "Platelets": (292, 0)}, (29, 1109, 2805)),
        ("bccd:test", 72, {"RBC": (805, 0), "WBC": (71, 0), "Platelets": (69, 0)}, (5, 277, 663)),
        ("coco128:train", 128, {"person": (258, 4)}, (337, 281, 311)),
        ("coco128:val", 128, {"person": (354, 4)}, (265, 311, 322)),
    ]:
        index, problems = load_dataset([spec], data_root_for_tests)
        rows = {name: (count, ignored, *rest) for name, count, ignored, *rest in summarize_index(index).classes}
        assert (len(index), problems) == (images, [])
        assert {name: rows[name][:2] for name in objects} == objects
        assert tuple(sum(row[column] for row in rows.values()) for column in (2, 3, 4)) == sizes
    index, _ = load_dataset(["bccd:val"], data_root_for_tests)
    row = next(row for row in range(len(index)) if index.paths[row].endswith("BloodImage_00338.jpg"))
    assert [503.0, 336.0, 504.0, 337.0] in index.target(row).boxes.tolist()  # a box of one pixel
    index, _ = load_dataset(["coco128:train", "coco128:val"], data_root_for_tests)
    ids = index.image_ids.tolist()
    assert (len(index), int(index.ignore.sum())) == (256, 11)
    assert index.image_ids[index.num_wanted() == 0].tolist() == [250, 508]
    person = torch.tensor([412.8, 157.61, 412.8 + 53.05, 157.61 + 138.01])  # as published by COCO
    assert (index.target(ids.index(139)).boxes - person).abs().amax(dim=1).min() < 0.01


NAMES = {number: f"photo{number}.jpg" for number in range(10)}


@pytest.fixture
def names_of(make_coco, write_card, tmp_path):
    """File names that a split takes of ten images, by its keys; every image must keep its own object."""
    make_coco(NAMES, [annotation(row + 1, row, bbox=[row, 2, 20, 20]) for row in NAMES])

    def names(**keys):
        entry = {"annotations": "train.json", "images": "train", **keys}
        index, _ = load_dataset([f"{write_card('coco', splits={'train': entry})}:train"], tmp_path)
        found = [Path(path).name for path in index.paths]
        assert [f"photo{int(index.target(row).boxes[0, 0])}.jpg" for row in range(len(index))] == found
        return found

    return names


def test_fractions_divide_the_images_and_a_list_names_them_with_or_without_suffix(names_of, tmp_path) -> None:
    assert names_of() == [*NAMES.values()]
    first, second = names_of(fraction=[0, 0.7]), names_of(fraction=[0.7, 1])
    assert (len(first), len(second), sorted(first + second)) == (7, 3, [*NAMES.values()])
    assert names_of(fraction=0.7) == first != names_of(fraction=0.7, seed=1)
    for fraction in (-0.1, 1.5, "half", [0.5], [0, 0.5, 1]):
        with pytest.raises(ValueError, match="fraction"):
            names_of(fraction=fraction)
    file = tmp_path / "coco/few.txt"
    for lines in ("photo7.jpg\nphoto2.jpg\n", "train/photo7.jpg\n./train/photo2.jpg\n", "photo7\n\ntrain/photo2\n"):
        file.write_text(lines)
        assert names_of(list="few.txt") == names_of(list=str(file)) == ["photo7.jpg", "photo2.jpg"]
    for lines, kind in (("photo1.jpg\nnone.jpg", "listed image that"), ("photo1.jpg\nphoto1", "duplicate image")):
        file.write_text(lines)
        with pytest.raises(ValueError, match=f"few.txt: {kind}"):
            names_of(list="few.txt")
    with pytest.raises(ValueError, match=r"none.txt: split list can't be read"):
        names_of(list="none.txt")


def test_voc_takes_fractions_and_does_without_a_list(make_voc, write_card, tmp_path) -> None:
    folder = make_voc({f"photo{number}": [("cat", (1, 1, 20, 20), False)] for number in range(10)})
    (folder / "JPEGImages/photo3.jpg").unlink()
    card = write_card("voc", splits={"all": {}, "half": {"fraction": 0.5}}, classes=None)
    index, problems = load_dataset([f"{card}:all"], tmp_path)
    assert (len(index), index.class_names) == (9, ("cat",))
    kinds = {problem.kind: problem.severity for problem in problems}
    assert kinds == {"annotation without its image": "dropped", "classes taken from the data: cat": "note"}
    assert len(load_dataset([f"{card}:half"], tmp_path)[0]) == 4


def test_classes_of_the_data_are_those_of_all_splits(make_coco, write_card, tmp_path) -> None:
    make_coco({1: "a.jpg"}, [annotation(1, 1)], categories={3: "cat"})
    make_coco({1: "b.jpg"}, [], categories={5: "dog"}, split="val")
    splits = {name: {"annotations": f"{name}.json", "images": name} for name in ("train", "val")}
    card = write_card("coco", splits=splits, classes=None)
    assert load_dataset([f"{card}:train"], tmp_path)[0].class_names == ("cat", "dog")
