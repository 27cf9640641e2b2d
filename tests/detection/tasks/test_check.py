import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from detection.tasks.check import check_card
from detection.tasks.init import Wishes, init_folder

CAT = ("cat", (1, 1, 10, 20), False)
DOG = ("dog", (5, 6, 55, 56), True)
OUTSIDE = ("dog", (300, 1, 310, 9), False)


@pytest.fixture
def run(resdet, tmp_path):
    """Checks data below tmp_path: the exit status and what was printed."""

    def check(*args: object) -> tuple[object, str]:
        outcome = resdet("check", *args, "--root", tmp_path)
        return outcome.status, outcome.out + outcome.err

    return check


@pytest.fixture
def card(make_voc, write_card) -> str:
    make_voc({"a": [CAT, DOG], "b": []})
    return write_card("voc", classes=["cat", "dog", "[cow]"])


def test_good_data_gives_zero_counts_and_lines_of_a_config(run, card) -> None:
    status, output = run(card)
    assert status == 0
    assert "voc:train" in output
    assert "2 images, 1 without an object to train on" in output
    cells = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    assert cells["cat"] == ["1", "0", "1", "0", "0"]
    assert cells["dog"] == ["1", "1", "0", "0", "0"]
    assert cells["all"] == ["2", "1", "1", "0", "0"]
    assert "[cow]" in cells  # names are printed as they are
    assert output.rstrip().endswith("no errors")
    values = yaml.safe_load(output[output.index("# What fits") :].removesuffix("no errors\n"))
    assert set(values) == {"data", "anchors"}
    assert (values["data"]["shorter_side"], values["data"]["longer_side"]) == (64, 80)
    assert (len(values["anchors"]["sizes"]), len(values["anchors"]["ratios"])) == (5, 3)


def test_no_anchors_are_suggested_for_image_folders(run, write_card, tmp_path) -> None:
    image = tmp_path / "train" / "cat" / "a.png"
    image.parent.mkdir(parents=True)
    Image.effect_noise((32, 32), 50).save(image)
    keys = {"root": str(tmp_path), "classes": None, "splits": {"train": {"folder": "train"}}}
    status, output = run(write_card("image_folder", **keys))
    assert (status, "cat" in output, "anchors" in output) == (0, True, False)


def test_errors_are_named_with_their_files_and_give_one(run, card, tmp_path) -> None:
    folder = tmp_path / "voc"
    image = folder / "JPEGImages" / "b.jpg"
    image.write_bytes(image.read_bytes()[:600])
    status, output = run(card)
    assert status == 1
    assert f"error: {image}: image: " in output
    assert output.rstrip().endswith("1 error")
    assert run(card, "--skip-images")[0] == 0
    (folder / "Annotations" / "b.xml").unlink()
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    status, output = run(card, "--skip-images")
    assert status == 1
    assert f"error: {folder / 'Annotations' / 'b.xml'}: missing annotation" in output
    assert f"error: {folder / 'JPEGImages' / 'c.jpg'}: missing image" in output
    assert output.rstrip().endswith("2 errors")


def test_an_empty_split_an_unknown_one_a_missing_folder_and_an_unknown_card(run, card, make_voc, write_card) -> None:
    assert run(card, "--split", "train")[0] == 0
    status, output = run(card, "--split", "train", "--split", "tset")
    assert status == 1
    assert "no split 'tset'; it has train" in output
    assert "2 images" in output
    status, output = run(write_card("voc", card="other", root="nowhere", source="from the shop"))
    assert (status, "Where to get it: from the shop" in output) == (1, True)
    status, output = run("bcdc")
    assert (status, output.startswith("error: no card 'bcdc'")) == (1, True)
    make_voc({})
    status, output = run(card)
    assert (status, "no usable image" in output) == (1, True)


def test_anchors_of_a_config_are_held_against_the_objects(run, card, tmp_path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("anchors: {sizes: [14], ratios: [2.0]}\ndata: {shorter_side: 60, longer_side: 80}\n")
    _, output = run(card, "--config", config)
    reached = re.findall(r"^(.*): no anchor reaches (\d+) of (\d+) objects", output, re.MULTILINE)
    assert [(Path(name).name, total) for name, _, total in reached] == [("small.yaml", "1"), ("suggested anchors", "1")]
    assert "sizes: [14.0]" in output  # the only object is 10 x 20


def test_dropped_boxes_and_notes_are_told_shown_on_the_page_and_no_errors(run, make_voc, write_card, tmp_path) -> None:
    folder = make_voc({"a": [CAT, CAT], "b": [DOG, OUTSIDE], "c": [CAT]})
    copied, images = folder / "JPEGImages" / "b.jpg", folder / "JPEGImages"
    (images / "c.jpg").write_bytes(copied.read_bytes())
    page, card = tmp_path / "data.html", write_card("voc")
    status, output = run(card, "--page", page)
    assert status == 0
    assert f"note: {images / 'c.jpg'}: same image twice: it has the content of {copied}" in output
    for text in ("dropped: ", "object boxed twice", f"page: {page}"):
        assert text in output
    html = page.read_text()
    captions = re.findall(r"<figcaption>(dropped|note): ([^(.]+)", html)
    assert captions[0] == ("dropped", "box outside the image or without area ")
    assert {kind.strip() for _, kind in captions} >= {"object boxed twice", "same image twice"}
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html)  # asks no network
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.html", "voc", "voc.yaml"]
    assert "same image" not in run(card, "--skip-images")[1]


@pytest.mark.usefixtures("no_reader")
def test_pages_of_a_card_that_lies_nowhere_of_one_without_objects_and_one_whose_output_nobody_reads(
    card, make_voc, write_card, tmp_path
) -> None:
    page = tmp_path / "data.html"
    assert check_card(card, tmp_path, page=page) == 0
    assert page.is_file()
    assert check_card(write_card("voc", root="nowhere"), tmp_path, page=page) == 1
    assert "split that can&#39;t be read" in page.read_text()
    make_voc({"a": []})
    assert check_card(write_card("voc"), tmp_path, page=page) == 0
    assert "Sizes and anchors" not in page.read_text()


def test_every_part_of_the_data_has_a_section_that_can_be_read(made_folder, assert_readable, tmp_path) -> None:
    """Of a folder with polygons, one image twice, and a broken one."""
    folder, page = made_folder("labelme"), tmp_path / "data.html"
    images = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    images[1].write_bytes(images[0].read_bytes())
    images[2].write_bytes(images[2].read_bytes()[:500])
    project = init_folder(folder, tmp_path / "run", wishes=Wishes(start="none"), say=lambda _: None)
    check_card(str(project.card), Path(), page=page, config=project.config)
    found = re.findall(r"<h2[^>]*>([^<]+)</h2>", page.read_text())
    titles = ["Classes", "Objects per image", "Sizes and anchors", "Splits compared", "Masks"]
    assert [title for title in found if not title.startswith("Samples of")] == ["Findings", *titles]
    assert_readable(page)


def test_keypoints_have_a_table_and_are_drawn(make_coco, write_card, tmp_path) -> None:
    record = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 5, 40, 40], "keypoints": [10, 20, 2, 30, 20, 1]}
    file = make_coco({7: "a.jpg"}, [record, record | {"id": 2, "keypoints": [0] * 6}])
    categories = [{"id": 3, "name": "cat", "keypoints": ["left_eye", "right_eye"]}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": categories}))
    card = write_card("coco", root=str(file.parent), classes=None)
    assert check_card(card, Path(), images=False, page=tmp_path / "page.html") == 0
    rows = re.findall(r"<tr>(.*?)</tr>", (tmp_path / "page.html").read_text(), re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in rows]
    assert ["left_eye", "right_eye", "0.025", "50.0", "0.0"] in cells
    assert ["right_eye", "left_eye", "0.025", "0.0", "50.0"] in cells
