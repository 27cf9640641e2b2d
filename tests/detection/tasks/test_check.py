"""Mirrors detection/tasks/check.py: what is printed, and the exit status."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from detection.tasks.check import check_card

CAT = ("cat", (1, 1, 10, 20), False)
DOG = ("dog", (5, 6, 55, 56), True)

Run = Callable[..., tuple[object, str]]


@pytest.fixture
def run(resdet: Callable[..., Any], tmp_path: Path) -> Run:
    """Checks data below tmp_path: the exit status and what was printed."""

    def check(*args: str) -> tuple[object, str]:
        outcome = resdet("check", *args, "--root", tmp_path)
        return outcome.status, outcome.out + outcome.err

    return check


@pytest.fixture
def card(make_voc: Callable[..., Path], write_card: Callable[..., str]) -> str:
    make_voc({"a": [CAT, DOG], "b": []})
    return write_card("voc", classes=["cat", "dog", "cow"])


def test_good_data_gives_zero_and_counts(run: Run, card: str) -> None:
    status, output = run(card)
    assert status == 0
    assert "voc:train" in output
    assert "2 images, 1 without an object to train on" in output
    cells = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    assert cells["cat"] == ["1", "0", "1", "0", "0"]
    assert cells["dog"] == ["1", "1", "0", "0", "0"]
    assert cells["all"] == ["2", "1", "1", "0", "0"]
    assert output.rstrip().endswith("no errors")


def test_no_anchors_are_suggested_for_image_folders(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "train" / "cat" / "a.png"
    image.parent.mkdir(parents=True)
    Image.effect_noise((32, 32), 50).save(image)
    card = tmp_path / "mine.yaml"
    card.write_text(f"{{format: image_folder, root: {tmp_path}, splits: {{train: {{folder: train}}}}}}")
    status, output = run(str(card))
    assert status == 0
    assert "cat" in output
    assert "anchors" not in output


def test_a_truncated_image_gives_one_and_is_named(run: Run, card: str, tmp_path: Path) -> None:
    image = tmp_path / "voc" / "JPEGImages" / "b.jpg"
    image.write_bytes(image.read_bytes()[:600])
    status, output = run(card)
    assert status == 1
    assert f"error: {image}: image: " in output
    assert output.rstrip().endswith("1 error")


def test_images_may_be_left_unread(run: Run, card: str, tmp_path: Path) -> None:
    (tmp_path / "voc" / "JPEGImages" / "b.jpg").write_bytes(b"no image")
    assert run(card, "--skip-images")[0] == 0


def test_every_error_is_listed_with_its_file(run: Run, card: str, tmp_path: Path) -> None:
    folder = tmp_path / "voc"
    (folder / "Annotations" / "b.xml").unlink()
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    status, output = run(card)
    assert status == 1
    assert f"error: {folder / 'Annotations' / 'b.xml'}: missing annotation" in output
    assert f"error: {folder / 'JPEGImages' / 'c.jpg'}: missing image" in output
    assert output.rstrip().endswith("2 errors")


def test_dropped_boxes_and_notes_are_told_but_are_no_errors(
    run: Run, make_voc: Callable[..., Path], write_card: Callable[..., str]
) -> None:
    make_voc({"a": [CAT, CAT, ("dog", (300, 1, 310, 9), False)]})
    status, output = run(write_card("voc"))
    assert status == 0
    assert "dropped: " in output
    assert "note: " in output
    assert "object boxed twice" in output


def test_an_empty_split_gives_one(run: Run, make_voc: Callable[..., Path], write_card: Callable[..., str]) -> None:
    make_voc({})
    status, output = run(write_card("voc"))
    assert status == 1
    assert "no usable image" in output


def test_only_the_asked_splits_are_read_and_an_unknown_one_gives_one(run: Run, card: str) -> None:
    assert run(card, "--split", "train")[0] == 0
    status, output = run(card, "--split", "train", "--split", "tset")
    assert status == 1
    assert "no split 'tset'; it has train" in output
    assert "2 images" in output


def test_a_missing_folder_says_where_to_get_the_data(run: Run, write_card: Callable[..., str]) -> None:
    status, output = run(write_card("voc", root="nowhere", source="from the shop"))
    assert status == 1
    assert "Where to get it: from the shop" in output


def test_an_unknown_card_ends_with_a_message(run: Run) -> None:
    status, message = run("bcdc")
    assert status == 1
    assert message.startswith("error: no card 'bcdc'")


def test_class_names_are_printed_as_they_are(
    run: Run, make_voc: Callable[..., Path], write_card: Callable[..., str]
) -> None:
    make_voc({"a": []})
    _, output = run(write_card("voc", classes=["[red]", "dog"]))
    assert "[red]" in output


def test_an_image_with_the_content_of_another_is_noted(run: Run, card: str, tmp_path: Path) -> None:
    images = tmp_path / "voc" / "JPEGImages"
    (images / "b.jpg").write_bytes((images / "a.jpg").read_bytes())
    status, output = run(card)
    assert status == 0
    assert f"note: {images / 'b.jpg'}: same image twice: it has the content of {images / 'a.jpg'}" in output
    assert "same image" not in run(card, "--skip-images")[1]


def test_suggested_sizes_and_anchors_are_lines_of_a_config(run: Run, card: str) -> None:
    _, output = run(card)
    lines = output[output.index("# What fits") :].removesuffix("no errors\n")
    values = yaml.safe_load(lines)
    assert set(values) == {"data", "anchors"}
    assert (values["data"]["shorter_side"], values["data"]["longer_side"]) == (64, 80)
    assert len(values["anchors"]["sizes"]) == 5
    assert len(values["anchors"]["ratios"]) == 3


def test_anchors_of_a_config_are_held_against_the_objects(run: Run, card: str, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("anchors: {sizes: [14], ratios: [2.0]}\ndata: {shorter_side: 60, longer_side: 80}\n")
    _, output = run(card, "--config", str(config))
    reached = re.findall(r"^(.*): no anchor reaches (\d+) of (\d+) objects", output, re.MULTILINE)
    assert [(Path(name).name, total) for name, _, total in reached] == [
        ("small.yaml", "1"),
        ("suggested anchors", "1"),
    ]
    assert "sizes: [14.0]" in output  # the only object is 10 x 20


def test_the_page_shows_every_finding_and_asks_no_network(
    run: Run, make_voc: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
) -> None:
    folder = make_voc({"a": [CAT, CAT], "b": [DOG, ("dog", (300, 1, 310, 9), False)], "c": [CAT]})
    (folder / "JPEGImages" / "b.jpg").write_bytes((folder / "JPEGImages" / "c.jpg").read_bytes())
    page = tmp_path / "data.html"
    status, output = run(write_card("voc"), "--page", str(page))
    html = page.read_text()
    assert status == 0
    assert f"page: {page}" in output
    captions = re.findall(r"<figcaption>(dropped|note): ([^(.]+)", html)
    assert captions[0] == ("dropped", "box outside the image or without area ")
    assert {kind.strip() for _, kind in captions} >= {"object boxed twice", "same image twice"}
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.html", "voc", "voc.yaml"]


def test_a_card_that_lies_nowhere_and_one_without_objects_have_a_page(
    run: Run, make_voc: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
) -> None:
    page = tmp_path / "data.html"
    assert run(write_card("voc", root="nowhere"), "--page", str(page))[0] == 1
    assert "split that can&#39;t be read" in page.read_text()
    make_voc({"a": []})
    assert run(write_card("voc"), "--page", str(page))[0] == 0
    assert "Sizes and anchors" not in page.read_text()


@pytest.mark.usefixtures("no_reader")
def test_a_page_is_written_whether_or_not_what_is_printed_is_read(card: str, tmp_path: Path) -> None:
    assert check_card(card, tmp_path, page=tmp_path / "data.html") == 0
    assert (tmp_path / "data.html").is_file()
