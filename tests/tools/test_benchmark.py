"""Mirrors tools/benchmark.py: rows of tiny images, and that both sides do the same work."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from detection.structures import ImageBatch

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


@pytest.mark.slow
def test_a_row_for_every_layout(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", [str(TOOL), "--sides", "64", "--only", "test", "--repeats", "1", "--device", "cpu"]
    )
    runpy.run_path(str(TOOL), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " px " in line]
    layouts = ["torchvision", "channels_last", "contiguous"]
    assert [(row[2], row[5]) for row in rows] == [("test,", name) for name in layouts]
    theirs, ours = (float(row[6]) for row in rows[:2])
    assert float(rows[1][7]) == pytest.approx(ours / theirs, rel=0.2)
    assert float(rows[1][10]) > 0  # share of the matrix rate


# Operators of a step and of a test, whatever the number of images; at most 3 waits of a GPU, one of them at the border.
LIMITS = {
    "R50-FPN": {"step": 800, "test": 450},
    "Mask": {"step": 960, "test": 490},
    "PointRend": {"step": 1100, "test": 600},
    "MNC": {"step": 1410, "test": 640},
    "Panoptic": {"step": 1050, "test": 530},
    "Keypoint": {"step": 910, "test": 560},
    "C4": {"step": 620, "test": 350},
    "DC5": {"step": 630, "test": 350},
    "Cascade": {"step": 1140, "test": 560},
    "RetinaNet": {"step": 730, "test": 470},
    "FCOS": {"step": 1010, "test": 500},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["R50-FPN", *(pytest.param(name, marks=pytest.mark.compiler) for name in LIMITS if name != "R50-FPN")]
)
def test_operators_and_waits_do_not_grow_with_the_images(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = runpy.run_path(str(TOOL))
    monkeypatch.setitem(tool["main"].__globals__, "MODELS", {model: tool["MODELS"][model]})
    monkeypatch.setitem(tool["main"].__globals__, "THEIRS", {})
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--counts", "--json", str(tmp_path / "counts.json")])
    tool["main"]()
    counts = json.loads((tmp_path / "counts.json").read_text())["ours"][model]
    for kind, limit in LIMITS[model].items():
        row = counts[kind]
        assert list(row) == ["1", "2", "8"]
        assert row["2"] == row["8"]
        assert row["1"]["operators"] <= row["8"]["operators"] <= limit
        assert row["8"]["waits"] <= 2


@pytest.mark.slow
def test_both_have_the_same_weights_and_find_something() -> None:
    # Features, not boxes: roundings of float32 decide what NMS keeps among random boxes.
    tool = runpy.run_path(str(TOOL))
    theirs, ours = tool["make_pair"]("cpu")
    (image,), _ = tool["make_images"](96, 1)
    tool["take_images_of"](theirs, 96)
    with torch.inference_mode():
        batch, _ = theirs.eval().transform([image.float() / 255])
        wanted = list(theirs.backbone(batch.tensors).values())
        found = ours.eval().features(ImageBatch.from_images([image]))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        assert len(ours(ImageBatch.from_images([image]))[0]) == len(theirs([image.float() / 255])[0]["boxes"]) > 0
