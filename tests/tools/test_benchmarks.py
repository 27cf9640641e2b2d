"""Mirrors programs that measure: rows of tiny images, equal work on all sides, memory, promises of claims."""

import json
import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detection.data.digits import write_digits
from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample
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


@pytest.fixture(scope="module")
def soak(names_of):
    return names_of("soak.py")


def test_memory_of_a_process_and_its_slope_over_the_second_half(soak) -> None:
    content = b"1" * (64 << 20)  # made before, since an allocator may keep it
    before = soak["memory_mib"](os.getpid())
    # From the system: an allocator may have as much left over from what went before.
    with mmap.mmap(-1, len(content), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(content)
        assert soak["memory_mib"](os.getpid()) - before == pytest.approx(64, abs=1)
    trainer = [7.0, 90.0, 95.0, 96.0, 99.0, 100.0, 101.0, 120.0, 103.0, 104.0]  # with a peak at 800
    memory = soak["Memory"](steps=list(range(100, 1001, 100)), trainer=trainer, workers=[3.0] * 10)
    assert memory.slope(memory.trainer) == pytest.approx(10)
    assert memory.slope(memory.workers) == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "status"), [("1e9", 0), ("-1e9", 1)])
def test_a_short_soak(soak, tmp_path, monkeypatch, capsys, limit, status) -> None:
    root = write_digits(tmp_path, num_train=4, num_test=1).parent
    changes = ["data.shorter_side=64", "data.longer_side=96", "solver.images_per_step=1", "device=cpu"]
    config = Path(__file__).parents[2] / "configs/digits/resnet18_c4.yaml"
    options = ["--config-file", str(config), "--steps", "4", f"--limit={limit}", f"data.root={root}", *changes]
    monkeypatch.setattr(sys, "argv", ["soak.py", *options])
    monkeypatch.setitem(soak, "SAMPLES", 4)
    assert soak["main"]() == status
    lines = capsys.readouterr().out.splitlines()
    measured = [line for line in lines if re.match(r"step \d", line)]
    assert [line.split(":")[0] for line in measured] == ["step 1", "step 2", "step 3", "step 4"]
    assert all(float(line.split()[i]) > 20 for line in measured for i in (3, 6))
    assert [line.split(":")[0] for line in lines[-2:]] == ["trainer", "workers"]


@pytest.fixture(scope="module")
def claims(names_of):
    return names_of("simulate_claims.py")


@pytest.fixture(scope="module")
def curve(claims):
    return claims["quality_curve"](np.random.default_rng(0), 2000)


@pytest.mark.slow
def test_a_short_simulation_keeps_the_promises_and_what_breaks_them_is_named(claims, curve) -> None:
    cells = claims["simulate"](40, "0.3 and 2.0", 40, curve)
    assert claims["judge"](cells) == []
    assert {(cell["seeds"], cell["variants"]) for cell in cells} == {(s, v) for s in (1, 2, 3, 5) for v in (2, 4, 7)}
    for cell in cells:
        assert 0.9 < cell["coverage"]["detectors"]["value"] <= 1
        assert ("false" in cell) == (cell["seeds"] > 1)  # with one seed nothing is said of methods
        assert ("heads_false" in cell) == (cell["seeds"] > 1 and cell["variants"] == 7)
    assert len(claims["heads_table"](cells)) == 3
    old = claims["judge"]([cell | {"false": cell["old_false"]} for cell in cells])
    assert any("1 seeds, 7 variants: false" in line for line in old)
    assert all("old" not in line for line in old)
    heads = claims["judge"]([cell | {"heads_false": 0.5} for cell in cells if "heads_false" in cell])
    assert [line for line in heads if "heads_false 50.0 %" in line]


def test_claims_are_those_of_the_comparison_and_intervals_that_do_not_cover_named(claims, curve) -> None:
    cells = claims["simulate"](40, "0.3 and 2.0", 3, curve)
    narrow = [cell | {"coverage": {"detectors": {"value": 0.85, "error": 0.005}}} for cell in cells[:3]]
    assert any("detectors covered 85.0 %" in line for line in claims["judge"](narrow))
    assert any("1 seeds, 7 variants: false" in line for line in claims["judge"]([c | {"false": 0.9} for c in cells]))
    (experiment,) = claims["experiments"](curve, 40, (0.003, 0.02), 1)
    analysis, images = claims["analyse"](experiment, 3), np.array([40])
    seeds = list(zip(experiment.values[:3], experiment.influence[:3], strict=True))
    arms = {
        str(arm): [Sample(names=("bbox.AP",), values=v[[arm]], influence=i[:, [arm]], images=images) for v, i in seeds]
        for arm in range(8)
    }
    pairs = compare_samples(arms).pairs
    np.testing.assert_allclose([pair.detectors["bbox.AP"].value for pair in pairs], analysis.difference)
    np.testing.assert_allclose([pair.noise["bbox.AP"].own for pair in pairs], analysis.noise.own)
