"""Mirrors detection/data/cards.py: from a card and a split to an index, bad input included."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from detection.config.load import build_dataclass
from detection.data.cards import Card, data_root, load_card, load_dataset, read_split
from detection.data.check import summarize_index
from detection.data.index import AnnotationIndex
from detection.data.readers.table import FORMATS
from detection.data.selection import split_entry

MakeVOC = Callable[..., Path]
MakeCOCO = Callable[..., Path]
WriteCard = Callable[..., str]

DATASETS = Path(__file__).parents[3] / "datasets"
CAT = ("cat", (1, 1, 10, 20), False)
DOG = ("dog", (5, 6, 15, 16), True)
OUTSIDE = ("cat", (300, 300, 310, 310), False)


def annotation(number: int, image: int, **others: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 3, "bbox": [10, 20, 30, 5], **others}


# cards


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_card_of_the_project_loads(path: Path) -> None:
    card = load_card(path.stem)
    assert card.name == path.stem
    assert card.source.strip()
    assert not Path(card.root or "").is_absolute()


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_split_of_the_project_is_described_rightly(path: Path) -> None:
    card = load_card(path.stem)
    schema, own_list = FORMATS[card.format].split, FORMATS[card.format].own_list
    for described in card.splits.values():
        for entry in described if isinstance(described, list) else [described]:
            build_dataclass(schema, split_entry(entry, own_list=own_list)[0])


def test_the_cards_of_the_classic_sets_know_their_classes_and_metric() -> None:
    voc, coco = load_card("voc2007"), load_card("coco2017")
    assert (len(voc.classes), voc.classes[0], voc.classes[14], voc.voc_metric) == (20, "aeroplane", "person", "11point")
    assert (len(coco.classes), coco.classes[0], coco.classes[79]) == (80, "person", "toothbrush")
    assert load_card("voc2012").classes == voc.classes


def test_a_card_of_ones_own_is_named_by_its_path(write_card: WriteCard) -> None:
    card = load_card(write_card("voc", card="mine", exif="ignore"))
    assert (card.name, card.format, card.classes, card.exif) == ("mine", "voc", ("cat", "dog"), "ignore")
    assert (card.bad_boxes, card.voc_metric) == ("drop", "area")


def test_a_card_in_the_datasets_folder_of_the_working_directory_is_found(
    write_card: WriteCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets").mkdir()
    Path(write_card("coco", card="mine")).rename(tmp_path / "datasets" / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_card("mine").format == "coco"
    assert load_card("bccd").format == "voc"


def test_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no card 'bcdc' in datasets/; did you mean 'bccd'\?"):
        load_card("bcdc")


def test_a_card_that_is_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"known: .*bccd.*voc2007"):
        load_card("zzzzzzz")


def test_a_config_of_a_training_is_told_from_a_card(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("solver: {iterations: 6}\ndata: {train: [voc2007:train]}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*no card.*data\.train"):
        load_card(str(tmp_path / "mine.yaml"))


def test_a_missing_card_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no card '.*mine\.yaml'"):
        load_card(str(tmp_path / "mine.yaml"))


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
    ],
)
def test_a_mistake_in_a_card_is_named_with_its_file(write_card: WriteCard, keys: dict[str, Any], message: str) -> None:
    path = write_card("voc", **keys)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_card(path)
    assert path in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"voc", b"format: [", b"format: \xff"])
def test_a_card_that_is_no_mapping_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_card(str(path))


def test_a_card_builds_no_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"format: !!python/object/apply:pathlib.Path.touch ['{tmp_path / 'touched'}']\n")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_card(str(path))
    assert not (tmp_path / "touched").exists()


# where the data lies


def test_the_data_root_is_the_configured_one_else_the_environment_else_datasets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESDET_DATA_ROOT", "/from/environment")
    assert data_root("/configured") == Path("/configured")
    assert data_root() == Path("/from/environment")
    monkeypatch.delenv("RESDET_DATA_ROOT")
    assert data_root() == DATASETS


def test_the_folder_is_below_the_root_or_absolute() -> None:
    card = Card(name="mine", format="voc", classes=("cat",), splits={})
    assert card.folder(Path("/data")) == Path("/data/mine")
    assert Card(name="mine", format="voc", classes=("cat",), splits={}, root="a/b").folder(Path("/data")) == Path(
        "/data/a/b"
    )
    assert Card(name="mine", format="voc", classes=("cat",), splits={}, root="/c").folder(Path("/data")) == Path("/c")


def test_a_missing_folder_says_where_to_get_the_data(write_card: WriteCard, tmp_path: Path) -> None:
    card = write_card("voc", source="Buy it at http://shop.example.")
    with pytest.raises(ValueError, match=r"Where to get it: Buy it at http://shop\.example\.") as error:
        load_dataset([f"{card}:train"], tmp_path)
    assert str(tmp_path / "voc") in str(error.value)
    assert "RESDET_DATA_ROOT" in str(error.value)


# splits


def test_both_formats_load(make_voc: MakeVOC, make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path) -> None:
    make_voc({"a": [CAT, DOG], "b": []})
    make_coco({9: "a.jpg"}, [annotation(1, 9)])
    voc, problems = load_dataset([f"{write_card('voc')}:train"], tmp_path)
    assert (len(voc), len(voc.boxes), voc.image_ids.tolist(), problems) == (2, 2, [1, 2], [])
    coco, problems = load_dataset([f"{write_card('coco')}:train"], tmp_path)
    assert (len(coco), len(coco.boxes), coco.image_ids.tolist(), problems) == (1, 1, [9], [])


@pytest.fixture
def write_folders(tmp_path: Path) -> Callable[..., str]:
    """A card of image folders at tmp_path/folders, with one picture in each of the ``names`` below ``drawn``."""

    def write(*names: str, drawn: tuple[str, ...] = ("train",), **keys: Any) -> str:
        for split in drawn:
            for name in names:
                (tmp_path / "folders" / split / name).mkdir(parents=True)
                Image.new("RGB", (8, 6)).save(tmp_path / "folders" / split / name / "a.png")
        values = {"format": "image_folder", "splits": {split: {"folder": split} for split in drawn}} | keys
        path = tmp_path / "folders.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def test_image_folders_load(write_folders: Callable[..., str], tmp_path: Path) -> None:
    card = write_folders("dog", "cat", classes=["dog", "cat"])
    index, problems = load_dataset([f"{card}:train"], tmp_path)
    assert (index.class_names, index.labels.tolist(), index.sizes.tolist()) == (("dog", "cat"), [0, 1], [[6, 8]] * 2)
    assert problems == []


def test_image_folders_of_a_card_without_classes_name_them(write_folders: Callable[..., str], tmp_path: Path) -> None:
    card = write_folders("dog", "cat", drawn=("train", "val"))
    assert load_card(card).classes == ()
    index, _ = load_dataset([f"{card}:train", f"{card}:val"], tmp_path)
    assert (index.class_names, index.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
    assert index.image_ids.tolist() == [1, 2, 3, 4]


def test_problems_of_image_folders_are_errors(write_folders: Callable[..., str], tmp_path: Path) -> None:
    card = write_folders("dgo", "cat", classes=["dog", "cat"])
    with pytest.raises(
        ValueError, match=r"(?s)has 2 errors:.*dgo: .*did you mean 'dog'\?.*dog: class without an image"
    ):
        load_dataset([f"{card}:train"], tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"splits": {"train": {"folder": "../other"}}}, "folder is below the data set's, got '../other'"),
        ({"splits": {"train": {"folder": "/other"}}}, "folder is below the data set's, got '/other'"),
        ({"splits": {"train": {"folder": "trian"}}}, "trian must hold a folder for each class"),
        ({"splits": {"train": "train"}}, "card 'folders': split 'train' takes {folder:}, or a list of such"),
        ({"names": {"n1": "cat"}}, "names is for the voc format"),
        ({"classes": ["cat", "cat"]}, "each once; given twice: ['cat']"),
        ({"classes": ["../cat"]}, "a class is the name of a folder in"),
    ],
)
def test_a_mistake_in_a_card_of_image_folders_is_named(
    write_folders: Callable[..., str], tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    card = write_folders("cat", **keys)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_dataset([f"{card}:train"], tmp_path)
    assert "folders" in str(error.value)


def test_sets_are_joined_and_clashing_ids_numbered_anew(
    make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path
) -> None:
    make_voc({"a": [CAT], "b": []}, folder="voc07")
    make_voc({"c": [DOG, CAT]}, folder="voc12")
    specs = [f"{write_card('voc', card=name, root=name)}:train" for name in ("voc07", "voc12")]
    index, _ = load_dataset(specs, tmp_path)
    assert [Path(index.paths[row]).stem for row in range(3)] == ["a", "b", "c"]
    assert index.image_ids.tolist() == [1, 2, 3]
    assert [index.target(row).labels.tolist() for row in range(3)] == [[0], [], [1, 0]]
    assert torch.equal(index.num_wanted(), torch.tensor([1, 0, 1]))


def test_a_voc_and_a_coco_set_of_the_same_classes_are_joined(
    make_voc: MakeVOC, make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path
) -> None:
    make_voc({"a": [CAT]})
    make_coco({9: "a.jpg"}, [annotation(1, 9)])
    index, _ = load_dataset([f"{write_card(kind)}:train" for kind in ("voc", "coco")], tmp_path)
    assert index.image_ids.tolist() == [1, 9]
    assert index.boxes.tolist() == [[0, 0, 10, 20], [10, 20, 40, 25]]


def test_sets_of_other_classes_are_refused(
    make_voc: MakeVOC, make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path
) -> None:
    make_voc({"a": [CAT]})
    make_coco({9: "a.jpg"}, [])
    specs = [f"{write_card('voc')}:train", f"{write_card('coco', classes=['dog', 'cat'])}:train"]
    with pytest.raises(ValueError, match="different classes"):
        load_dataset(specs, tmp_path)


def test_a_split_of_two_entries_is_joined(make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path) -> None:
    make_coco({9: "a.jpg"}, [annotation(1, 9)])
    make_coco({7: "a.jpg", 5: "b.jpg"}, [annotation(1, 5)], split="more")
    entries = [{"annotations": f"{name}.json", "images": name} for name in ("train", "more")]
    index, _ = load_dataset([f"{write_card('coco', splits={'both': entries})}:both"], tmp_path)
    assert index.image_ids.tolist() == [9, 7, 5]
    assert [len(index.target(row)) for row in range(3)] == [1, 0, 1]
    assert index.paths[1] == str(tmp_path / "coco" / "more" / "a.jpg")


def test_problems_of_every_entry_are_found(make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path) -> None:
    make_coco({9: "a.jpg"}, [annotation(1, 8)])
    make_coco({7: "a.jpg"}, [annotation(1, 6)], split="more")
    entries = [{"annotations": f"{name}.json", "images": name} for name in ("train", "more")]
    _, problems = read_split(load_card(write_card("coco", splits={"both": entries})), "both", tmp_path)
    assert [Path(problem.file).name for problem in problems] == ["train.json", "more.json"]


@pytest.mark.parametrize("spec", ["voc2007", "voc2007:", ":train", ""])
def test_a_spec_that_is_no_card_and_split_is_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"card:split, such as voc2007:trainval, got {spec!r}")):
        load_dataset([spec], tmp_path)


def test_no_specs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data set given"):
        load_dataset([], tmp_path)


def test_an_unknown_split_names_those_of_the_card(write_card: WriteCard, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="card 'voc' has no split 'tarin'; it has train"):
        load_dataset([f"{write_card('voc')}:tarin"], tmp_path)


@pytest.mark.parametrize("entry", [{"lst": "ImageSets/Main/train.txt"}, "ImageSets/Main/train.txt", None, []])
def test_a_split_that_is_described_wrongly_is_named(
    make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path, entry: object
) -> None:
    make_voc({"a": [CAT]})
    card = write_card("voc", card="mine", splits={"first": entry})
    with pytest.raises(ValueError, match=r"mine.*first"):
        load_dataset([f"{card}:first"], tmp_path)


def test_an_empty_split_names_its_card(make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path) -> None:
    make_voc({})
    card = write_card("voc")
    with pytest.raises(ValueError, match=re.escape(f"has no images; its card is {card}")):
        load_dataset([f"{card}:train"], tmp_path)


# bad data


def test_dropped_boxes_are_told_and_their_images_stay(make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path) -> None:
    make_voc({"a": [CAT, OUTSIDE], "b": [OUTSIDE]})
    index, problems = load_dataset([f"{write_card('voc')}:train"], tmp_path)
    assert (len(index), index.num_wanted().tolist()) == (2, [1, 0])
    assert [problem.severity for problem in problems] == ["dropped", "dropped"]
    assert [Path(problem.file).name for problem in problems] == ["a.xml", "b.xml"]


def test_a_card_may_refuse_bad_boxes(make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path) -> None:
    make_voc({"a": [CAT, OUTSIDE]})
    with pytest.raises(ValueError, match=r"(?s)has 1 error:.*a\.xml: box outside the image.*object 2 \(cat\)"):
        load_dataset([f"{write_card('voc', bad_boxes='error')}:train"], tmp_path)


@pytest.mark.parametrize(
    ("damage", "file", "word"),
    [
        (lambda folder: (folder / "JPEGImages" / "b.jpg").unlink(), "b.jpg", "missing image"),
        (lambda folder: (folder / "Annotations" / "b.xml").unlink(), "b.xml", "missing annotation"),
        (lambda folder: (folder / "Annotations" / "b.xml").write_text("<a>"), "b.xml", "does not parse"),
        (lambda folder: (folder / "ImageSets/Main/train.txt").write_text("a\na\n"), "train.txt", "duplicate image"),
        (lambda folder: (folder / "ImageSets/Main/train.txt").unlink(), "train.txt", "split list"),
    ],
)
def test_damaged_voc_files_are_named(
    make_voc: MakeVOC,
    write_card: WriteCard,
    tmp_path: Path,
    damage: Callable[[Path], object],
    file: str,
    word: str,
) -> None:
    damage(make_voc({"a": [CAT], "b": [DOG]}))
    card = write_card("voc")
    with pytest.raises(ValueError, match=rf"(?s)data set '{re.escape(card)}:train' has 1 error.*{file}: .*{word}"):
        load_dataset([f"{card}:train"], tmp_path)


@pytest.mark.parametrize(
    ("annotations", "word"),
    [
        ([annotation(17, 8)], "annotation 17 of image 8"),
        ([annotation(17, 9), annotation(17, 9)], "duplicate annotation id: annotation 17"),
        ([annotation(17, 9, category_id=99)], "annotation 17 of image 9, category_id 99"),
        ([annotation(17, 9, category_id=5)], "annotation 17 of image 9, 'catt'; did you mean 'cat'"),
        ([annotation(17, 9, bbox=[1, 2])], "annotation record"),
    ],
)
def test_wrong_coco_annotations_are_named(
    make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path, annotations: list[dict[str, Any]], word: str
) -> None:
    make_coco({9: "a.jpg"}, annotations, categories={3: "cat", 18: "dog", 5: "catt"})
    with pytest.raises(ValueError, match=rf"(?s)has 1 error.*train\.json: .*{re.escape(word)}"):
        load_dataset([f"{write_card('coco')}:train"], tmp_path)


def test_truncated_json_is_named(make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path) -> None:
    file = make_coco({9: "a.jpg"}, [annotation(1, 9)])
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=re.escape(f"{file}: JSON that can't be read")):
        load_dataset([f"{write_card('coco')}:train"], tmp_path)


# images that can't be used


def damage_images(folder: Path) -> None:
    """Cuts b.jpg; makes c.jpg text, lets d.jpg lack data before its end marker, and gives e.jpg another size."""
    images = folder / "JPEGImages"
    cut = (images / "b.jpg").read_bytes()
    (images / "b.jpg").write_bytes(cut[: len(cut) // 2])
    (images / "c.jpg").write_text("<html>404</html>")
    half = (images / "d.jpg").read_bytes()
    (images / "d.jpg").write_bytes(half[: len(half) * 3 // 4] + b"\xff\xd9")
    Image.new("RGB", (50, 50)).save(images / "e.jpg")


def test_bad_images_are_named_together_before_the_first_step(
    make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path
) -> None:
    damage_images(make_voc({stem: [CAT] for stem in "abcdef"}))
    with pytest.raises(ValueError, match="has 3 errors") as error:
        load_dataset([f"{write_card('voc')}:train"], tmp_path)
    lines = str(error.value).splitlines()
    assert [Path(line.partition(": ")[0]).name for line in lines[1:]] == ["b.jpg", "c.jpg", "e.jpg"]
    assert "bad_images: drop" in lines[-1]
    index, _ = read_split(load_card(write_card("voc")), "train", tmp_path)
    with pytest.raises(ValueError, match=r"d\.jpg can't be read: it is truncated"):  # only its pixels tell
        index.image(3)


def test_a_long_list_of_bad_images_is_cut(make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path) -> None:
    folder = make_voc({f"{number:02d}": [] for number in range(15)})
    for path in (folder / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"has 15 errors(?s:.*)and 5 more"):
        load_dataset([f"{write_card('voc')}:train"], tmp_path)


def test_bad_images_are_dropped_with_a_count_where_the_card_says_so(
    make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path
) -> None:
    damage_images(make_voc({stem: [CAT, DOG] if stem == "f" else [CAT] for stem in "abcdef"}))
    index, problems = load_dataset([f"{write_card('voc', bad_images='drop')}:train"], tmp_path)
    assert [Path(index.paths[row]).stem for row in range(len(index))] == ["a", "f"]
    assert (index.labels.tolist(), index.ends.tolist(), index.image_ids.tolist()) == ([0, 0, 1], [1, 3], [1, 6])
    assert [(problem.severity, Path(problem.file).stem) for problem in problems] == [
        ("dropped", stem) for stem in "bcde"
    ]


def test_masks_stay_with_their_objects_when_an_image_is_dropped(
    make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path
) -> None:
    polygon = [[10, 20, 40, 20, 40, 25, 10, 25]]
    other = [[0, 0, 8, 0, 8, 8, 0, 8]]
    annotations = [annotation(1, 7, segmentation=polygon), annotation(2, 9, bbox=[0, 0, 8, 8], segmentation=other)]
    file = make_coco({7: "a.jpg", 9: "b.jpg"}, annotations)
    (file.parent / "train" / "a.jpg").write_bytes(b"")
    index, _ = load_dataset([f"{write_card('coco', bad_images='drop')}:train"], tmp_path, fields=("masks",))
    masks = index.target(0, fields=("masks",)).masks
    assert masks is not None
    assert (index.image_ids.tolist(), masks.sum().item(), masks[0, :8, :8].all().item()) == ([9], 64, True)


def test_an_image_in_two_of_the_joined_sets_is_noted(make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path) -> None:
    folder = make_voc({"a": [CAT], "b": [CAT]})
    (folder / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    lists = {split: {"list": f"ImageSets/Main/{split}.txt"} for split in ("train", "val")}
    card = write_card("voc", splits=lists)
    index, (problem,) = load_dataset([f"{card}:train", f"{card}:val"], tmp_path)
    assert (len(index), problem.severity, problem.kind) == (3, "note", "image in two of the joined sets")
    assert Path(problem.file).name == "b.jpg"


def test_a_card_s_tolerances_reach_its_reader(make_voc: MakeVOC, write_card: WriteCard, tmp_path: Path) -> None:
    folder = make_voc({"a": [CAT]})
    Image.new("RGB", (160, 120)).save(folder / "JPEGImages" / "a.jpg")
    index, (problem,) = load_dataset([f"{write_card('voc', other_size='scale')}:train"], tmp_path)
    assert (index.boxes.tolist(), index.sizes.tolist(), problem.severity) == ([[0, 0, 20, 40]], [[120, 160]], "note")


# real data


def counts(index: AnnotationIndex) -> dict[str, tuple[int, ...]]:
    return {name: tuple(rest) for name, *rest in summarize_index(index).classes}


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "images", "objects", "sizes"),
    [
        ("train", 205, (2382, 214, 209), (21, 775, 2009)),
        ("val", 87, (968, 87, 83), (8, 334, 796)),
        ("trainval", 292, (3350, 301, 292), (29, 1109, 2805)),
        ("test", 72, (805, 71, 69), (5, 277, 663)),
    ],
)
def test_bccd_has_its_known_counts(
    data_root_for_tests: Path, split: str, images: int, objects: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    index, problems = load_dataset([f"bccd:{split}"], data_root_for_tests)
    rows = list(counts(index).values())
    assert (len(index), problems) == (images, [])
    assert tuple(row[0] for row in rows) == objects
    assert tuple(sum(row[column] for row in rows) for column in (2, 3, 4)) == sizes
    assert not index.ignore.any()
    assert index.num_wanted().min() >= 1
    assert set(map(tuple, index.sizes.tolist())) == {(480, 640)}


@pytest.mark.data
def test_a_point_box_of_bccd_is_one_pixel(data_root_for_tests: Path) -> None:
    index, _ = load_dataset(["bccd:val"], data_root_for_tests)
    row = next(row for row in range(len(index)) if index.paths[row].endswith("BloodImage_00338.jpg"))
    assert [503.0, 336.0, 504.0, 337.0] in index.target(row).boxes.tolist()


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "empty", "objects", "crowds", "sizes", "people"),
    [("train", [250, 508], 929, 6, (337, 281, 311), 254), ("val", [], 898, 5, (265, 311, 322), 350)],
)
def test_coco128_has_its_known_counts(
    data_root_for_tests: Path,
    split: str,
    empty: list[int],
    objects: int,
    crowds: int,
    sizes: tuple[int, ...],
    people: int,
) -> None:
    index, problems = load_dataset([f"coco128:{split}"], data_root_for_tests)
    assert (len(index), problems) == (128, [])
    assert (int((~index.ignore).sum()), int(index.ignore.sum())) == (objects, crowds)
    assert tuple(sum(row[column] for row in counts(index).values()) for column in (2, 3, 4)) == sizes
    all_people, crowds_of_people, *_ = counts(index)["person"]
    assert all_people - crowds_of_people == people
    assert index.image_ids[index.num_wanted() == 0].tolist() == empty


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "images", "objects", "crowds", "sizes"),
    [("train", 100, 740, 6, (328, 225, 187)), ("val", 100, 707, 5, (267, 255, 185))],
)
def test_areas_of_coco128_are_those_of_its_masks(
    data_root_for_tests: Path,
    tmp_path: Path,
    split: str,
    images: int,
    objects: int,
    crowds: int,
    sizes: tuple[int, ...],
) -> None:
    content = json.loads((data_root_for_tests / f"coco128/annotations/instances_{split}2017.json").read_text())
    card = {
        "format": "coco",
        "classes": [category["name"] for category in content["categories"]],
        "root": "coco128",
        "splits": {
            split: {"annotations": f"annotations/instances_seg_{split}2017.json", "images": f"{split}2017"},
        },
    }
    path = tmp_path / "masks.yaml"
    path.write_text(yaml.safe_dump(card))
    index, problems = load_dataset([f"{path}:{split}"], data_root_for_tests)
    assert (len(index), problems, int((~index.ignore).sum()), int(index.ignore.sum())) == (images, [], objects, crowds)
    assert tuple(sum(row[column] for row in counts(index).values()) for column in (2, 3, 4)) == sizes
    assert index.category_ids[-1] == 90


@pytest.mark.data
def test_train_and_val_of_coco128_join_with_their_own_ids(data_root_for_tests: Path) -> None:
    index, _ = load_dataset(["coco128:train", "coco128:val"], data_root_for_tests)
    assert len(index) == 256
    assert {139, 250, 5586} <= set(index.image_ids.tolist())
    row = index.image_ids.tolist().index(139)
    person = torch.tensor([412.8, 157.61, 412.8 + 53.05, 157.61 + 138.01])  # as published by COCO
    assert (index.target(row).boxes - person).abs().amax(dim=1).min() < 0.01


def test_imagenet_detection_is_what_its_readme_says() -> None:
    card = load_card("imagenet_det")
    assert (len(card.names), len(card.classes), len(set(card.classes))) == (200, 200, 200)
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in card.names)
    assert (card.names["n02084071"], card.classes[0], card.classes[-1]) == ("dog", "accordion", "zebra")
    assert card.voc_metric == "imagenet"


def test_imagenet_classes_are_in_torchvisions_order() -> None:
    classes = load_card("imagenet_loc").classes
    card = load_card("imagenet_loc")
    assert card.names == {"Scottish_deerhound": "n02092002"}
    assert (card.exif, card.other_size, len(classes)) == ("by_size", "scale", 1000)
    assert classes == tuple(sorted(classes))
    assert (classes[0], classes[207], classes[999]) == (
        "n01440764",
        "n02099601",
        "n15075141",
    )  # tench, golden retriever


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{format: voc, splits: {}, classes: [a], names: {n1: b}}", r"names of card 'card' lead to \['b'\]"),
        ("{format: coco, splits: {}, classes: [a], names: {n1: a}}", "names is for the voc format"),
    ],
)
def test_names_that_lead_nowhere_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_card(str(path))


def test_names_give_the_classes_and_reach_the_reader(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    make_voc({"a": [("n2", (1, 1, 10, 20), False), ("n1", (1, 1, 9, 9), False), ("n3", (1, 1, 9, 9), False)]})
    card = {"format": "voc", "root": "voc", "names": {"n1": "dog", "n2": "cat", "n3": "dog"}}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card | {"splits": {"train": {"list": "ImageSets/Main/train.txt"}}}, sort_keys=False))
    index, problems = load_dataset([f"{path}:train"], tmp_path)
    assert (index.class_names, index.labels.tolist(), problems) == (("dog", "cat"), [1, 0, 0], [])
