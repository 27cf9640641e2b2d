"""Mirrors detection/tasks/check.py: what is printed, and the exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
