"""Mirrors tools/check_data.py: what it prints and its exit status."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_data.py"
CAT = ("cat", (1, 1, 10, 20), False)
DOG = ("dog", (5, 6, 55, 56), True)

Run = Callable[..., tuple[object, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the tool on data below tmp_path: its exit status (or message) and what it printed."""

    def run_tool(*args: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *args, "--root", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return end.value.code, capsys.readouterr().out

    return run_tool


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
    assert output.rstrip().endswith("1 errors")


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
    status, _ = run("bcdc")
    assert str(status).startswith("error: no card 'bcdc'")


def test_class_names_are_printed_as_they_are(
    run: Run, make_voc: Callable[..., Path], write_card: Callable[..., str]
) -> None:
    make_voc({"a": []})
    _, output = run(write_card("voc", classes=["[red]", "dog"]))
    assert "[red]" in output
