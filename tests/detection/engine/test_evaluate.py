"""Mirrors detection/engine/evaluate.py; the metrics themselves are tested in tests/detection/evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.engine import label_maps
from detection.engine.evaluate import evaluate, make_record, predict
from detection.engine.label_counts import label_classes
from detection.engine.label_maps import Labelled, stored_labels
from detection.evaluation.metrics import figures, read_metric
from detection.evaluation.record import Record
from detection.fields.keypoints import Keypoints
from detection.fields.masks import Masks
from detection.keypoints import KeypointSpec
from detection.masks import decode, empty_rle, encode
from detection.model.faster_rcnn import FasterRCNN
from detection.padded import Targets
from detection.segments import Segment, Segments
from detection.structures import VOID, Detections, ImageBatch, Target

CPU = torch.device("cpu")
# Two images, the second without objects, stored at 100 x 200 and 60 x 60, seen by the detector at half that size.
INDEX = AnnotationIndex(
    class_names=("cat", "dog"),
    category_ids=(3, 8),
    paths=PackedStrings.pack(["a/first.jpg", "a/second.jpg"]),
    image_ids=torch.tensor([17, 4]),
    sizes=torch.tensor([[100, 200], [60, 60]], dtype=torch.int32),
    apply_exif=torch.tensor([False, False]),
    ends=torch.tensor([2, 2]),
    boxes=torch.tensor([[20.0, 10, 80, 50], [100, 20, 160, 90]]),
    labels=torch.tensor([1, 0]),
    ignore=torch.tensor([False, True]),
    areas=torch.tensor([2000.0, 3000.0]),
)


class Oracle(nn.Module):
    """Finds the dog of every image, in the pixels that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, images: ImageBatch) -> list[Detections]:
        self.seen.append((self.training, torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        dog = Detections(boxes=torch.tensor([[10.0, 5, 40, 25]]), scores=torch.tensor([0.9]), labels=torch.tensor([1]))
        return [dog if size == (50, 100) else dog[:0] for size in images.size_list()]


def make_batches(*rows: int) -> Iterator[Batch]:
    sizes = [(50, 100), (30, 30)]
    for row in rows:
        images = ImageBatch.from_images([torch.zeros(3, *sizes[row], dtype=torch.uint8)])
        nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), ignore=torch.zeros(0).bool())
        yield Batch(images, Targets.pad([nothing]), (row,), (INDEX.paths[row],))


def run(oracle: Oracle, *rows: int, **options: Any) -> Any:
    return predict(cast(FasterRCNN, oracle), make_batches(*rows), INDEX, device=CPU, **options)


def test_records_are_in_pixels_of_the_stored_images() -> None:
    predictions = run(Oracle(), 1, 0)
    second, first = predictions.records
    assert (first.image_id, first.file_name, first.size) == (17, "a/first.jpg", (100, 200))
    assert (second.image_id, second.file_name, second.size) == (4, "a/second.jpg", (60, 60))
    np.testing.assert_allclose(first.boxes, [[20, 10, 80, 50]])
    np.testing.assert_allclose(first.scores, [0.9], rtol=1e-6)
    assert first.labels.tolist() == [1]
    np.testing.assert_allclose(first.gt_boxes, INDEX.boxes.numpy())
    assert first.gt_labels.tolist() == [1, 0]
    assert first.gt_ignore.tolist() == [False, True]
    assert first.gt_areas.tolist() == [2000, 3000]
    assert second.boxes.shape == second.gt_boxes.shape == (0, 4)
    assert predictions.seconds_per_image > 0


def test_detections_of_a_class_that_is_not_judged_are_left_out() -> None:
    found = {"boxes": np.zeros((3, 4), np.float32), "scores": np.array([0.9, 0.8, 0.7], np.float32)}
    labels, masks = np.array([1, 0, 1]), tuple({"size": (100, 200), "counts": text} for text in (b"a", b"b", b"c"))
    marked = replace(INDEX, unjudged=torch.tensor([[0, 1]]))
    record = make_record(marked, 0, labels=labels, fields={"masks": masks}, **found)
    assert (record.labels.tolist(), record.scores.tolist()) == ([0], [pytest.approx(0.8)])
    assert record.masks is not None
    assert [mask["counts"] for mask in record.masks] == [b"b"]
    assert make_record(marked, 1, labels=labels, **found).labels.tolist() == [1, 0, 1]


def test_no_images() -> None:
    predictions = run(Oracle())
    assert predictions.records == []
    assert predictions.seconds_per_image == 0


@pytest.mark.parametrize(("precision", "autocast"), [("fp32", False), ("bf16", True)])
def test_detector_runs_in_test_mode_without_gradients(precision: str, autocast: bool) -> None:
    oracle = Oracle()
    run(oracle, 0, precision=precision)
    assert oracle.seen == [(False, autocast, True)]


def test_oracle_is_perfect() -> None:
    result = evaluate(run(Oracle(), 0, 1).records, INDEX.class_names, "area")
    assert read_metric(result, "bbox.AP") == pytest.approx(1.0)
    assert read_metric(result, "voc.mAP") == pytest.approx(1.0)
    assert read_metric(result, "voc.per_class.cat") is None  # its only object is ignored
    assert read_metric(result, "bbox.per_class.dog.AP50") == pytest.approx(1.0)


def painted(tmp_path: Path, labels: NDArray[np.uint8]) -> LabelMaps:
    """The label image of INDEX's first image, and none of its second."""
    Image.fromarray(labels).save(tmp_path / "first.png")
    files = PackedStrings.pack([str(tmp_path / "first.png"), ""])
    return LabelMaps(class_names=("road", "sky"), files=files, values={0: 0, 7: 1, 255: VOID})


class Painter(nn.Module):
    """Sky in the upper half of every image and road below, at the size that it sees; no objects."""

    def forward(self, images: ImageBatch) -> list[Detections]:
        none, found = torch.zeros(0), []
        for height, width in images.size_list():
            sky = (torch.arange(height) < height // 2).float()[:, None].expand(height, width)
            scores = torch.stack([1 - sky, sky])
            found.append(Detections(boxes=torch.zeros(0, 4), scores=none, labels=none.long(), label_scores=scores * 4))
        return found


def test_label_maps_are_judged_on_the_stored_images(tmp_path: Path) -> None:
    labels = np.zeros((100, 200), np.uint8)
    labels[:50] = 7
    labels[40:60, :100] = 255
    labels[90:] = 7  # missed by the network
    index, kept = replace(INDEX, label_maps=painted(tmp_path, labels)), dict[int, Labelled]()
    predictions = predict(Painter(), make_batches(0, 1), index, device=CPU, keep=kept.__setitem__)
    assert kept[0].labels.shape == (100, 200)
    assert kept[1].labels.shape == (60, 60)
    assert np.unique(kept[0].labels[:50]).tolist() == [1]
    first, second = predictions.records
    assert first.label_counts is not None
    assert first.label_counts.toarray().tolist() == [
        [7000, 0, 0],
        [2000, 9000, 0],
    ]  # road: rows 50-60 at the right, 60-90 all
    assert second.label_counts is not None
    assert not second.label_counts.nnz  # nobody knows its labels
    result = evaluate(predictions.records, INDEX.class_names, "area", labels=label_classes(index))
    assert set(result) == {"semseg"}
    assert read_metric(result, "semseg.mIoU") == pytest.approx((7 / 9 + 9 / 11) / 2)
    assert read_metric(result, "semseg.per_class.sky.IoU") == pytest.approx(9 / 11)
    names = evaluate([], INDEX.class_names, "area", fields=("label_maps",), labels=label_classes(index))
    assert set(figures(names)) == set(figures(result))
    assert read_metric(names, "semseg.mIoU") is None


def test_panoptic_maps_are_merged_and_judged(tmp_path: Path) -> None:
    """A segment of sky is hit, and of two cars, one is missed."""
    ids = np.zeros((100, 200, 3), np.uint8)
    ids[..., 0] = 1
    ids[60:, :50, 0], ids[60:, 150:, 0] = 2, 3
    Image.fromarray(ids).save(tmp_path / "first.png")
    maps = LabelMaps(
        class_names=("car", "sky"),
        files=PackedStrings.pack([str(tmp_path / "first.png"), ""]),
        values={},
        num_things=1,
        segments=PackedStrings.pack(["[[1, 1, 0], [2, 0, 0], [3, 0, 0]]", "[]"]),
    )

    def merge(scores: Any, labels: Any, masks: Any, label_map: NDArray[np.uint8]) -> Segments:
        assert (len(scores), len(labels), len(masks)) == (0, 0, 0)
        found = np.full(label_map.shape, 1, np.int32)
        found[60:, :50], found[:, 150:] = 2, 0
        return Segments(found, (Segment(1, 1), Segment(2, 0)))

    masks = nn.Sequential()  # of no object
    masks.forward = lambda images: [  # type: ignore[method-assign]
        replace(found, masks=torch.zeros(0, 4, 4)) for found in Painter()(images)
    ]
    index = replace(INDEX, label_maps=maps, fields={"masks": PackedStrings.pack([b"", b""])})
    (record,) = predict(masks, make_batches(0), index, device=CPU, merge=merge).records
    sky = 60 * 150 + 40 * 100
    assert record.panoptic_counts is not None
    np.testing.assert_allclose(record.panoptic_counts, [[1, 1, 0, 1], [sky / (200 * 100 - 2 * 40 * 50), 1, 0, 0]])
    assert record.label_counts is not None
    assert record.label_counts.toarray().tolist() == [[2000, 0, 2000], [0, sky, 3000]]
    result = evaluate([record], INDEX.class_names, "area", labels=label_classes(index))
    assert {"bbox", "segm", "voc", "best_f1", "semseg", "panoptic"} == set(result)
    assert read_metric(result, "panoptic.PQ_things") == pytest.approx(1 / 1.5)
    assert read_metric(result, "panoptic.per_class.car.RQ") == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("most", [1, 15 * 17 * 2, 1 << 26])
def test_the_best_class_is_the_same_however_many_are_resized_at_once(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0))
    scores[4] = scores[2]  # of equal scores the first counts
    monkeypatch.setattr(label_maps, "MOST_SCORES", most)
    wanted = nn.functional.interpolate(scores[None], (15, 17), mode="bilinear")[0].argmax(dim=0)
    found = stored_labels(scores, (15, 17))
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), wanted)
    assert torch.equal(stored_labels(scores, (7, 6)).long(), scores.argmax(dim=0))


def test_the_score_of_the_best_f1_is_told_where_there_is_a_hit() -> None:
    found = evaluate(run(Oracle(), 0, 1).records, INDEX.class_names, "area")["best_f1"]
    assert found == {"min_score": pytest.approx(0.9), "F1": pytest.approx(1.0)}
    no_hit = evaluate(run(Oracle(), 1).records, INDEX.class_names, "area")["best_f1"]
    assert no_hit == {"min_score": None, "F1": None}
    assert evaluate([], ("a",), "area")["best_f1"] == {"min_score": None, "F1": None}


@pytest.mark.parametrize("voc_metric", ["11point", "area", "imagenet"])
def test_voc_metric_is_passed_on(voc_metric: Any) -> None:
    assert evaluate(run(Oracle(), 0).records, INDEX.class_names, voc_metric)["voc"]["metric"] == voc_metric


# masks


class MaskOracle(Oracle):
    """Finds the dog with a mask that fills its box."""

    def forward(self, images: ImageBatch) -> list[Detections]:
        return [replace(found, masks=torch.ones(len(found), 28, 28)) for found in super().forward(images)]


def masked_index() -> AnnotationIndex:
    """The dog fills its box, the cat's mask is unknown."""
    dog = np.zeros((100, 200), np.bool_)
    dog[10:50, 20:80] = True
    counts = [encode(dog)["counts"].decode(), empty_rle((100, 200))["counts"].decode()]
    return replace(INDEX, fields={"masks": PackedStrings.pack(counts)})


def predict_masks(index: AnnotationIndex) -> list[Record]:
    return predict(cast(FasterRCNN, MaskOracle()), make_batches(0, 1), index, device=CPU).records


def test_masks_are_pasted_at_the_size_of_the_stored_image() -> None:
    first, second = predict_masks(masked_index())
    assert first.masks is not None
    assert first.gt_masks is not None
    (mask,) = decode(first.masks, (100, 200))
    assert mask.nonzero().aminmax(dim=0).min.tolist() == pytest.approx([10, 20], abs=1)
    assert mask.nonzero().aminmax(dim=0).max.tolist() == pytest.approx([49, 79], abs=1)
    assert first.gt_masks == masked_index().stored("masks", 0)
    assert (second.masks, second.gt_masks) == ((), ())


def test_masks_are_pasted_by_the_operations_that_are_given() -> None:
    oracle, index = cast(FasterRCNN, MaskOracle()), masked_index()
    pixels = {}
    for geometry in ("exact", "torchvision"):
        fields = {"masks": Masks(geometry)}
        masks = predict(oracle, make_batches(0), index, device=CPU, fields=fields).records[0].masks
        assert masks is not None
        pixels[geometry] = int(decode(masks, (100, 200)).sum())
    assert pixels["exact"] == 40 * 60
    assert pixels["torchvision"] > 40 * 60


def test_mask_figures_are_there_where_objects_and_detections_have_masks() -> None:
    result = evaluate(predict_masks(masked_index()), INDEX.class_names, "area")
    assert read_metric(result, "segm.AP50") == pytest.approx(1.0)
    assert read_metric(result, "segm.per_class.cat.AP") is None
    without = [predict_masks(INDEX), run(Oracle(), 0, 1).records]
    assert all("segm" not in evaluate(records, INDEX.class_names, "area") for records in without)
    assert "segm" not in evaluate([], INDEX.class_names, "area")
    assert read_metric(evaluate([], INDEX.class_names, "area", fields=("masks",)), "segm.AP50") is None
    nothing = replace(INDEX.first(0), paths=INDEX.paths, image_ids=INDEX.image_ids, sizes=INDEX.sizes)
    nothing = replace(nothing, apply_exif=INDEX.apply_exif, ends=torch.zeros(2, dtype=torch.int64))
    unannotated = evaluate(predict_masks(nothing), INDEX.class_names, "area")
    assert (unannotated["segm"]["AP"], unannotated["bbox"]["AP"]) == (None, None)
    plain = predict(cast(FasterRCNN, Oracle()), make_batches(0), masked_index(), device=CPU).records[0]
    assert (plain.masks, plain.gt_masks) == (None, None)


FACE = KeypointSpec(("nose", "left_eye"), sigmas=(0.1, 0.1))


class PoseOracle(Oracle):
    """Finds the dog's nose at (30, 20) and an eye at (40, 15) of the stored image, which it sees at half its size."""

    def forward(self, images: ImageBatch) -> list[Detections]:
        points = torch.tensor([[[15.0, 10, 1], [20, 7.5, 1]]])
        return [replace(found, keypoints=points[: len(found)]) for found in super().forward(images)]


def posed_index() -> AnnotationIndex:
    """The index with the keypoints of the dog, in COCO's numbers of pixels, and none of the other object."""
    field = Keypoints(FACE)
    packed = [field.pack([29.5, 19.5, 2, 39.5, 14.5, 2], (100, 200)), field.unknown((100, 200))]
    return replace(INDEX, fields={"keypoints": PackedStrings.pack(packed)}, keypoints=FACE)


def predict_keypoints(index: AnnotationIndex) -> list[Record]:
    return predict(cast(FasterRCNN, PoseOracle()), make_batches(0, 1), index, device=CPU).records


def test_keypoints_lie_on_the_stored_image_and_have_figures() -> None:
    first, second = records = predict_keypoints(posed_index())
    assert first.keypoints is not None
    assert first.gt_keypoints is not None
    assert first.keypoints.tolist() == [[[30, 20, 1], [40, 15, 1]]]
    assert first.gt_keypoints[0].tolist() == [[30, 20, 2], [40, 15, 2]]
    assert second.keypoints is not None
    assert second.keypoints.shape == (0, 2, 3)
    result = evaluate(records, INDEX.class_names, "area")
    assert read_metric(result, "keypoints.AP") == pytest.approx(1.0)
    assert read_metric(result, "keypoints.per_class.dog.AP50") == pytest.approx(1.0)
    assert "segm" not in result


def test_keypoints_without_labelled_ones_have_no_figures() -> None:
    assert "keypoints" not in evaluate(predict_keypoints(INDEX), INDEX.class_names, "area")
    nothing = replace(INDEX.first(0), paths=INDEX.paths, image_ids=INDEX.image_ids, sizes=INDEX.sizes)
    nothing = replace(nothing, apply_exif=INDEX.apply_exif, ends=torch.zeros(2, dtype=torch.int64))
    assert evaluate(predict_keypoints(nothing), INDEX.class_names, "area")["keypoints"]["AP"] is None


def test_detections_that_are_not_judged_leave_with_their_keypoints() -> None:
    index = replace(posed_index(), unjudged=torch.tensor([[0, 1]]))
    first = predict_keypoints(index)[0]
    assert first.keypoints is not None
    assert (len(first.boxes), first.keypoints.shape) == (0, (0, 2, 3))
