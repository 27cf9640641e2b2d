import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from detection.data.copy_paste import paste
from detection.data.dataset import DetectionDataset, collate
from detection.data.index import AnnotationIndex
from detection.data.objects import ImageRows, ObjectRows, build_index
from detection.data.problems import Problem
from detection.data.transforms import Augment, Change, Jitter, RandomResize, Resize
from detection.engine.evaluate import predict
from detection.evaluation.record import Record
from detection.fields.table import FIELDS, Field, carried
from detection.padded import Targets
from detection.structures import Detections, ImageBatch, Target

Size = tuple[int, int]
SIZE = (60, 80)
UNKNOWN = [math.nan, math.nan]
GOOD = [(12, 22), (5, 6), (50, 30)]
FIRST = [[12, 22], [50, 30]]  # of a.png


class Points:
    """One point (x, y) an object, in pixels; NaN if unknown.  Detections have it as a fraction of their box."""

    lacking = "the data set has no points"
    unusable = "point that can't be used"

    def pack(self, raw: Any, size: Size) -> bytes:
        if raw is None or not (0 <= raw[0] <= size[1] and 0 <= raw[1] <= size[0]):
            raise ValueError(f"point {raw}")
        return np.array(raw, np.float32).tobytes()

    def unknown(self, size: Size) -> bytes:
        return np.array(UNKNOWN, np.float32).tobytes()

    def unpack(self, packed: Sequence[bytes], size: Size) -> NDArray[np.float32]:
        return np.frombuffer(bytearray(b"".join(packed)), np.float32).reshape(-1, 2)

    def to_tensor(self, values: NDArray[np.float32], size: Size) -> Tensor:
        return torch.tensor(values)

    def resize(self, values: Tensor, size: Size, new_size: Size) -> Tensor:
        return values * torch.tensor([new_size[1] / size[1], new_size[0] / size[0]])

    def place(self, values: Tensor, size: Size, resized: Size, corner: Size, canvas: Size) -> tuple[Tensor, Tensor]:
        placed = self.resize(values, size, resized) - torch.tensor([corner[1], corner[0]])
        return placed, ~((placed < 0) | (placed > torch.tensor([canvas[1], canvas[0]]))).any(dim=1)

    def cut(self, values: Tensor, size: Size) -> Tensor:
        return values

    def hide(self, values: Tensor, covered: Tensor) -> Tensor:
        x, y = values.long().unbind(dim=1)
        return torch.where(covered[y, x][:, None], math.nan, values)

    def compose(self) -> Mapping[str, Any]:
        return {"keypoint_params": {"format": "xy", "remove_invisible": False}}

    def to_albumentations(self, values: Tensor, size: Size) -> Mapping[str, Any]:
        return {"keypoints": values.numpy() - 0.5}  # it counts from the middle of the first pixel

    def from_albumentations(self, result: Mapping[str, Any], kept: Tensor, size: Size) -> Tensor:
        return torch.from_numpy(np.asarray(result["keypoints"], np.float32).reshape(-1, 2) + np.float32(0.5))[kept]

    def on_image(self, values: Tensor, boxes: Tensor, size: Size) -> NDArray[np.float32]:
        return (boxes[:, :2] + values * (boxes[:, 2:] - boxes[:, :2])).numpy()


@dataclass(frozen=True, slots=True)
class PointTarget(Target):
    points: Tensor | None = None  # (N, 2)


@dataclass(frozen=True, slots=True)
class PointDetections(Detections):
    points: Tensor | None = None  # (N, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRecord(Record):
    gt_points: NDArray[np.float32] | None = None  # (G, 2)
    points: NDArray[np.float32] | None = None  # (D, 2)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """The line in the table, the typed attributes, and two images."""
    monkeypatch.setitem(FIELDS, "points", Points())
    monkeypatch.setattr("detection.data.index.Target", PointTarget)
    monkeypatch.setattr("detection.engine.evaluate.Record", PointRecord)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (80, 60)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, points: Sequence[object], masks: Sequence[object] = ()) -> tuple[AnnotationIndex, list[Problem]]:
    """a.png with objects at (10, 20, 30, 40) and (40, 10, 70, 50), b.png with one at (0, 0, 20, 20)."""
    boxes = [(10.0, 20.0, 30.0, 40.0), (0.0, 0.0, 20.0, 20.0), (40.0, 10.0, 70.0, 50.0)]
    names, rest = ["first", "second", "third"], {"ignore": [False] * 3, "areas": [None] * 3}
    objects = ObjectRows(images=[0, 1, 0], boxes=boxes, labels=[0] * 3, names=names, **rest)
    objects.fields["points"] += points
    objects.fields["masks"] += masks
    rows = ImageRows([str(folder / "a.png"), str(folder / "b.png")], [1, 2], [SIZE, SIZE], [True, True])
    return build_index(rows, objects, class_names=("cat",), category_ids=(1,), files=["file"] * 2, drop=True)


def points_of(target: Any) -> list[list[float]]:
    return target.points.tolist()


def sample_points(index: AnnotationIndex, *, resize: Change, augment: Augment | None = None) -> list[list[float]]:
    return points_of(DetectionDataset(index, resize=resize, augment=augment, fields=("points",))[(0, 0)].target)


def test_a_readers_rows_are_sorted_by_image_and_come_on_request(folder) -> None:
    index, problems = read(folder, GOOD)
    assert (list(index.fields), problems) == (["points"], [])
    assert [points_of(index.target(row, fields=("points",))) for row in (0, 1)] == [FIRST, [[5, 6]]]
    assert index.stored("points", 0).tolist() == FIRST
    plain: Any = index.target(0)
    assert plain.points is None
    assert points_of(index.first(1).target(0, fields=("points",))) == FIRST
    index, (problem,) = read(folder, [(12, 22), (90, 6), (50, 30)])  # a value that can't be used is unknown and named
    assert (problem.severity, problem.kind, problem.detail) == ("dropped", Points.unusable, "second: point (90, 6)")
    np.testing.assert_equal(points_of(index.target(1, fields=("points",))), [UNKNOWN])


def test_a_field_that_no_object_has_is_not_there_or_unknown_in_a_part(folder) -> None:
    for points in ([], [None] * 3):
        index, problems = read(folder, points)
        assert (index.fields, problems, index.stored("points", 0)) == ({}, [], None)
        with pytest.raises(ValueError, match=Points.lacking):
            DetectionDataset(index, resize=Resize(60, 100), fields=("points",))
    joined = AnnotationIndex.concatenate([read(folder, [])[0], read(folder, GOOD)[0]])
    values = [points_of(joined.target(row, fields=("points",))) for row in range(4)]
    np.testing.assert_equal(values[0] + values[1], [UNKNOWN] * 3)
    assert values[2:] == [FIRST, [[5, 6]]]


def test_values_follow_flips_crops_and_resizing_to_the_batch(folder) -> None:
    index, _ = read(folder, GOOD)
    crop = {"Crop": {"x_min": 30, "y_min": 0, "x_max": 80, "y_max": 60, "p": 1}}
    steps = Augment([{"HorizontalFlip": {"p": 1}}, crop, {"VerticalFlip": {"p": 1}}])
    dataset = DetectionDataset(index, resize=Resize(100, 120), augment=steps, fields=("points",))
    batch = collate([dataset[(0, 0)], dataset[(1, 1)]])
    # Of a.png, the flip leads x to 80 - x, and the third object lies at 10..40: the crop leaves a third of it.
    assert batch.images.size_list() == [(120, 100), (120, 100)]
    targets, points = batch.targets, batch.targets.others["points"]
    boxes, values = (
        [v[valid].tolist() for v, valid in zip(p, targets.valid, strict=True)] for p in (targets.boxes, points)
    )
    expected = [[40, 40, 80, 80], [0, 20, 20, 100], [60, 80, 100, 120]]
    np.testing.assert_allclose(boxes[0] + boxes[1], expected, rtol=1e-5, atol=1e-5)
    assert values == [[[76, 76], [0, 60]], [[90, 108]]]
    assert batch.to("meta").targets.others["points"].is_meta
    full, plain = index.target(0, fields=("points",)), index.target(1)
    assert Targets.pad([full, full]).others["points"].shape == (2, 8, 2)
    assert Targets.pad([full, plain]).others == {}


def test_values_follow_crops_random_scales_and_jitter(folder) -> None:
    index, _ = read(folder, GOOD)
    crop = Augment([{"Crop": {"x_min": 35, "y_min": 0, "x_max": 80, "y_max": 60, "p": 1}}])  # drops the first object
    assert sample_points(index, resize=Resize(60, 100), augment=crop) == [[20, 40]]  # 4/3 of (15, 30)
    assert sample_points(index, resize=RandomResize((30,), 100)) == [[6, 11], [25, 15]]
    assert sample_points(index, resize=Jitter(160, 1.0, 1.0)) == [[24, 44], [100, 60]]


def test_an_object_goes_when_its_value_leaves_the_canvas(folder) -> None:
    target = read(folder, GOOD)[0].target(0, fields=("points",))[1:]  # box (40, 10, 70, 50), point (50, 30)
    image, counts = np.zeros((*SIZE, 3), np.uint8), set[int]()
    image[..., 0], image[..., 1] = np.arange(80), np.arange(60)[:, None]
    for seed in range(20):
        canvas, moved = Jitter(40, 2.0, 2.0)(image, target, seed=(seed,))
        left, top = canvas[0, 0, :2].tolist()  # 40 of 80 columns and 40 of 60 rows are seen, at their scale
        assert points_of(moved) == ([[50 - left, 30 - top]] if left >= 10 and top <= 30 else [])
        counts.add(len(moved))
    assert counts == {0, 1}


def test_values_of_pasted_and_covered_objects(folder) -> None:
    corners = [(10, 20, 30, 40), (0, 0, 20, 20), (40, 10, 70, 50)]
    masks = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in corners]
    index, _ = read(folder, [(12, 22), (15, 15), (50, 30)], masks)
    first, second = (index.target(row, fields=("masks", "points")) for row in (0, 1))
    image, half = np.zeros((*SIZE, 3), np.uint8), torch.zeros(1, *SIZE, dtype=torch.bool)
    assert points_of(paste(image, first, image, second)[1]) == [*FIRST, [15, 15]]
    half[:, 12:, :] = True
    _, target = paste(image, second, image, replace(first[:1], masks=half))
    np.testing.assert_equal(points_of(target), [UNKNOWN, [12, 22]])


def test_records_hold_values_in_pixels_of_the_stored_image(folder) -> None:
    class PointOracle(nn.Module):
        def forward(self, images: ImageBatch) -> list[PointDetections]:
            found = {"scores": torch.ones(1), "labels": torch.zeros(1).long(), "points": torch.tensor([[0.25, 0.5]])}
            return [PointDetections(torch.tensor([[20.0, 20, 60, 100]]), **found) for _ in images.sizes]

    index, _ = read(folder, GOOD)
    batches = [collate([DetectionDataset(index, resize=Resize(120, 160))[(0, 0)]])]
    record: Any = predict(PointOracle(), batches, index, device=torch.device("cpu")).records[0]
    assert record.points.tolist() == [[15, 30]]  # a quarter of the width and half of the height of (10, 10, 30, 50)
    assert record.gt_points.tolist() == FIRST
    with pytest.raises(ValueError, match=r"a\.png: rows of unequal length"):
        replace(record, gt_points=record.gt_points[:1])


@pytest.mark.parametrize("name", [*FIELDS, "points"])
def test_every_field_is_an_attribute_and_has_rows_without_objects(name) -> None:
    field: Field = FIELDS[name]
    nothing, none = field.to_tensor(field.unpack([], SIZE), SIZE), torch.zeros(0)
    assert hasattr(PointTarget, name)
    assert hasattr(PointRecord, f"gt_{name}")
    assert len(nothing) == len(field.resize(nothing, SIZE, (30, 40))) == len(field.cut(nothing, (30, 40))) == 0
    assert [len(part) for part in field.place(nothing, SIZE, (90, 120), (5, 5), (50, 50))] == [0, 0]
    target = PointTarget(boxes=torch.zeros(0, 4), labels=none.long(), ignore=none.bool(), **{name: nothing})
    assert [carried_name for carried_name, _, _ in carried(target)] == [name]
    _, changed = Augment([{"VerticalFlip": {"p": 1}}])(np.zeros((*SIZE, 3), np.uint8), target, seed=(0,))
    assert getattr(changed, name).shape == nothing.shape
