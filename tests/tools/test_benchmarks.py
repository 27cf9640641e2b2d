"""Mirrors programs that measure: rows of tiny images, and that all sides do the same work."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detection.structures import ImageBatch

# Operators of a step and of a test, whatever the number of images; at most 3 waits of a GPU, one of them at the border.
LIMITS = {"R50-FPN": (800, 450), "Mask": (960, 490), "PointRend": (1100, 600), "MNC": (1410, 640), "C4": (620, 350)}
LIMITS |= {"Panoptic": (1050, 530), "Keypoint": (910, 560), "DC5": (630, 350), "Cascade": (1140, 560)}
LIMITS |= {"RetinaNet": (730, 470), "FCOS": (1010, 500)}


@pytest.mark.slow
def test_a_row_for_every_layout(program) -> None:
    out = program("tools/benchmark.py", "--sides 64 --only test --repeats 1 --device cpu")[1]
    rows = [line.split() for line in out.splitlines() if " px " in line]
    layouts = ["torchvision", "channels_last", "contiguous"]
    assert [(row[2], row[5]) for row in rows] == [("test,", name) for name in layouts]
    theirs, ours = (float(row[6]) for row in rows[:2])
    assert float(rows[1][7]) == pytest.approx(ours / theirs, rel=0.2)
    assert float(rows[1][10]) > 0  # share of the matrix rate


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["R50-FPN", *(pytest.param(name, marks=pytest.mark.compiler) for name in LIMITS if name != "R50-FPN")]
)
def test_operators_and_waits_do_not_grow_with_the_images(model, tmp_path, names_of, monkeypatch) -> None:
    names = names_of("benchmark.py")
    monkeypatch.setitem(names, "MODELS", {model: names["MODELS"][model]})
    monkeypatch.setitem(names, "THEIRS", {})
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--counts", "--json", str(tmp_path / "counts.json")])
    names["main"]()
    counts = json.loads((tmp_path / "counts.json").read_text())["ours"][model]
    for kind, limit in zip(("step", "test"), LIMITS[model], strict=True):
        row = counts[kind]
        assert list(row) == ["1", "2", "8"]
        assert row["2"] == row["8"]
        assert row["1"]["operators"] <= row["8"]["operators"] <= limit
        assert row["8"]["waits"] <= 2


@pytest.mark.slow
@torch.inference_mode()
def test_both_have_the_same_weights_and_find_something(names_of) -> None:
    # Features, not boxes: roundings of float32 decide what NMS keeps among random boxes.
    names = names_of("benchmark.py")
    theirs, ours = names["make_pair"]("cpu")
    (image,), _ = names["make_images"](96, 1)
    names["take_images_of"](theirs, 96)
    batch, _ = theirs.eval().transform([image.float() / 255])
    wanted = list(theirs.backbone(batch.tensors).values())
    torch.testing.assert_close(ours.eval().features(ImageBatch.from_images([image])), wanted, rtol=1e-3, atol=1e-3)
    assert len(ours(ImageBatch.from_images([image]))[0]) == len(theirs([image.float() / 255])[0]["boxes"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "masks"), [("bbox", ""), ("segm", " --masks")])
def test_all_evaluations_give_the_same_numbers(kind, masks, program) -> None:
    options = "--images 8 --objects 40 --detections 160 --repeat 1" + masks
    header, *lines = program("tools/benchmark_evaluation.py", options)[1].splitlines()
    assert header.split(", ")[-1] == kind
    gaps = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert gaps.pop("resdet") == 0
    assert "pycocotools" in gaps
    assert max(gaps.values()) < 1e-9


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("options", "names"),
    [("--models DC5 --batches 2", ["DC5", "DC5"]), ("--time 1", ["PyTorch", "torchvision", "onnx", "openvino"])],
)
def test_exports_have_a_row_each(options, names, tmp_path, program) -> None:
    pytest.importorskip("openvino")
    Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    out = program("tools/benchmark_export.py", f"{tmp_path} {options}")[1]
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows if row[0].strip() != "family"] == names
    assert not any(cell.strip().startswith("0 of 0") for row in rows for cell in row)  # nothing would be compared


def test_rows_that_a_gpu_s_time_does_not_reach_are_not_run(program, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cpu" in program("tools/gpu.py")[0]
    out = program("tools/gpu.py", "--device cpu --minutes 0 --no-tests")[1]
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 32
    assert all(row[5].startswith("not run") for row in rows)
    # The first twelve tell most: bfloat16 at the larger batch, eager, compiled and as CUDA graphs.
    assert {tuple(row[2:4]) for row in rows[:12]} == {("2", "bf16")}
    assert [row[4] for row in rows[:12]] == ["eager"] * 4 + ["compiled"] * 4 + ["graphs"] * 4
