import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detection.config.detection import DetectionConfig
from detection.data import near_copies
from detection.experiments.detectors import DETECTORS
from detection.experiments.experiment import load_experiment, resolve_variants
from detection.experiments.leakage import check_leakage


@pytest.fixture
def check(tmp_path, card, said, write_swap):
    """Looks for leakage in an experiment; gives leakage.json."""
    base = f"data: {{train: ['{card}:train'], test: ['{card}:test'], root: {tmp_path}}}"

    def call(*, near: bool = False, **keys: Any) -> dict[str, Any]:
        path = write_swap(base, variants={"a": {}, "b": {"backbone": {"name": "plain18"}}}, **keys)
        experiment, output = load_experiment(path), tmp_path / "out"
        configs = resolve_variants(experiment, DetectionConfig)
        check_leakage(experiment, configs, DETECTORS, output, near=near, say=said.append)
        return json.loads((output / "leakage.json").read_text())

    return call


@pytest.fixture
def train(check, tmp_path) -> list[Path]:
    return sorted((tmp_path / "coco/train").glob("*.jpg"))


@pytest.fixture
def test(check, tmp_path) -> list[Path]:
    return sorted((tmp_path / "coco/test").glob("*.jpg"))


def test_images_of_their_own_pass_and_are_not_read_again(check, train, test, said, monkeypatch) -> None:
    found = check()
    assert (found["test_images"], found["train_images"], found["unread"]) == (3, 4, 0)
    assert (found["copies"], found["near_copies"]) == ({"count": 0, "examples": []}, None)
    assert said == []
    before = check(near=True)
    monkeypatch.setattr(near_copies, "_content", lambda _: pytest.fail("a file was read"))
    assert check() == check(near=True) == before
    monkeypatch.undo()
    shutil.copy(train[0], test[0])
    with pytest.raises(ValueError, match="1 are in"):
        check()


def test_copies_are_refused_with_both_files(check, train, test, tmp_path, said) -> None:
    for number in (0, 2):
        shutil.copy(train[3 - number], test[number])
    with pytest.raises(ValueError, match="allow_leakage: true") as refusal:
        check()
    for part in ("3 images", "2 are in", ":train", str(train[3]), str(test[0])):
        assert part in str(refusal.value)
    assert not (tmp_path / "out").exists()
    found = check(allow_leakage=True)
    assert found["copies"]["count"] == 2
    assert [str(test[0]), str(train[3])] in found["copies"]["examples"]
    assert any(line.startswith("warning: ") for line in said)
    card = tmp_path / "coco.yaml"
    with pytest.raises(ValueError, match="3 are in"):  # a set that is trained and tested
        check(overrides=[f"data.train=[{card}:train,{card}:test]"])


def test_near_copies_and_missing_images_are_told(check, train, test, said) -> None:
    with Image.open(train[1]) as image:
        image.save(test[1], quality=70)
    found = check(near=True)
    assert found["copies"]["count"] == 0
    assert found["near_copies"]["examples"] == [[str(test[1]), str(train[1])]]
    assert str(test[1]) in said.pop()
    said.clear()
    shutil.rmtree(train[0].parent)
    check()
    assert [line.startswith("warning: ") and "coco.yaml:train" in line for line in said] == [True]


def test_only_files_of_one_size_are_read(monkeypatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(near_copies, "_content", lambda path: read.append(path) or path[-1].encode())
    pairs, unread = near_copies.copies_between({"a1": 10, "b2": 20, "c3": 30}, {"d1": 10, "e2": 21, "f4": 30})
    assert sorted(read) == ["a1", "c3", "d1", "f4"]
    assert (pairs, unread) == ([("a1", "d1")], [])
