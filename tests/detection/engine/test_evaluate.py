from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detection.data.dataset import Batch
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.engine import label_maps
from detection.engine.evaluate import evaluate, make_record, predict
from detection.engine.label_counts import label_classes
from detection.engine.label_maps import stored_labels
from detection.engine.threshold import shown_from
from detection.evaluation.metrics import figures, read_metric
from detection.fields.keypoints import Keypoints
from detection.fields.masks import Masks
from detection.keypoints import KeypointSpec
from detection.masks import decode, empty_rle, encode
from detection.padded import Targets
from detection.segments import Segment, Segments
from detection.structures import VOID, Detections, ImageBatch, Target

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
DOG = np.zeros((100, 200), np.bool_)
DOG[10:50, 20:80] = True
# The dog fills its box, the cat's mask is unknown.
MASKED = replace(INDEX, fields={"masks": PackedStrings.pack([encode(DOG)["counts"], empty_rle((100, 200))["counts"]])})
FACE = KeypointSpec(("nose", "left_eye"), sigmas=(0.1, 0.1))
# The dog's nose at (30, 20) and an eye at (40, 15), in COCO's numbers of pixels.
POINTS = [Keypoints(FACE).pack([29.5, 19.5, 2, 39.5, 14.5, 2], (100, 200)), Keypoints(FACE).unknown((100, 200))]
POSED = replace(INDEX, fields={"keypoints": PackedStrings.pack(POINTS)}, keypoints=FACE)
EMPTY = replace(INDEX.first(0), paths=INDEX.paths, image_ids=INDEX.image_ids, sizes=INDEX.sizes)
EMPTY = replace(EMPTY, apply_exif=INDEX.apply_exif, ends=torch.zeros(2, dtype=torch.int64))


class Oracle(nn.Module):
    """Finds the dog of every image in the pixels that it sees, with a mask that fills its box or its keypoints."""

    def __init__(self, *, masks: bool = False, keypoints: bool = False) -> None:
        super().__init__()
        self.seen = list[tuple[bool, bool, bool]]()
        masked = torch.ones(1, 28, 28) if masks else None
        points = torch.tensor([[[15.0, 10, 1], [20, 7.5, 1]]]) if keypoints else None
        boxes, scores, labels = torch.tensor([[10.0, 5, 40, 25]]), torch.tensor([0.9]), torch.tensor([1])
        self.dog = Detections(boxes=boxes, scores=scores, labels=labels, masks=masked, keypoints=points)

    def forward(self, images: ImageBatch) -> list[Detections]:
        self.seen.append((self.training, torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        return [self.dog if size == (50, 100) else self.dog[:0] for size in images.size_list()]


class Painter(nn.Module):
    """Sky in the upper half of every image and road below, at the size that it sees; no objects."""

    def __init__(self, *, masks: bool = False) -> None:
        super().__init__()
        self.masks = torch.zeros(0, 4, 4) if masks else None

    def forward(self, images: ImageBatch) -> list[Detections]:
        none, found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}, []
        for height, width in images.size_list():
            sky = (torch.arange(height) < height // 2).float()[:, None].expand(height, width)
            found.append(Detections(**none, masks=self.masks, label_scores=torch.stack([1 - sky, sky]) * 4))
        return found


def run(detector: Any, *rows: int, index: AnnotationIndex = INDEX, **options: Any) -> Any:
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), ignore=torch.zeros(0).bool())
    sizes = [(torch.zeros(3, *((50, 100), (30, 30))[row], dtype=torch.uint8), row) for row in rows]
    batches = [Batch(ImageBatch.from_images([i]), Targets.pad([nothing]), (r,), (INDEX.paths[r],)) for i, r in sizes]
    return predict(detector, batches, index, device=torch.device("cpu"), **options)


def judged(records: Any, **options: Any) -> Any:
    return evaluate(records, INDEX.class_names, options.pop("voc_metric", "area"), **options)


def test_records_are_in_pixels_of_the_stored_images() -> None:
    predictions = run(Oracle(), 1, 0)
    second, first = predictions.records
    assert (first.image_id, first.file_name, first.size) == (17, "a/first.jpg", (100, 200))
    assert (second.image_id, second.file_name, second.size) == (4, "a/second.jpg", (60, 60))
    np.testing.assert_allclose(first.boxes, [[20, 10, 80, 50]])
    np.testing.assert_allclose(first.scores, [0.9], rtol=1e-6)
    np.testing.assert_allclose(first.gt_boxes, INDEX.boxes.numpy())
    assert (first.labels.tolist(), first.gt_labels.tolist()) == ([1], [1, 0])
    assert (first.gt_ignore.tolist(), first.gt_areas.tolist()) == ([False, True], [2000, 3000])
    assert second.boxes.shape == second.gt_boxes.shape == (0, 4)
    assert predictions.seconds_per_image > 0
    nothing, oracle = run(Oracle()), Oracle()
    assert (nothing.records, nothing.seconds_per_image) == ([], 0)
    for precision in ("fp32", "bf16"):
        run(oracle, 0, precision=precision)
    assert oracle.seen == [(False, False, True), (False, True, True)]  # test mode, autocast, no gradients


def test_detections_of_a_class_that_is_not_judged_are_left_out_with_all_their_fields() -> None:
    found: Any = {"boxes": np.zeros((3, 4), np.float32), "scores": np.array([0.9, 0.8, 0.7], np.float32)}
    masks = tuple({"size": (100, 200), "counts": text} for text in (b"a", b"b", b"c"))
    found |= {"labels": np.array([1, 0, 1]), "fields": {"masks": masks}}
    unjudged = torch.tensor([[0, 1]])
    record: Any = make_record(replace(INDEX, unjudged=unjudged), 0, **found)
    assert (record.labels.tolist(), record.scores.tolist()) == ([0], [pytest.approx(0.8)])
    assert [mask["counts"] for mask in record.masks] == [b"b"]
    assert make_record(replace(INDEX, unjudged=unjudged), 1, **found).labels.tolist() == [1, 0, 1]
    (posed,) = run(Oracle(keypoints=True), 0, index=replace(POSED, unjudged=unjudged)).records
    assert (len(posed.boxes), posed.keypoints.shape) == (0, (0, 2, 3))


def test_an_oracle_is_perfect() -> None:
    result = judged(run(Oracle(), 0, 1).records)
    names = ("bbox.AP", "voc.mAP", "bbox.per_class.dog.AP50", "voc.per_class.cat")  # the only cat is ignored
    assert [read_metric(result, name) for name in names] == [*[pytest.approx(1.0)] * 3, None]
    assert result["best_f1"] == {"min_score": pytest.approx(0.9), "F1": pytest.approx(1.0)}
    assert (shown_from(result), shown_from({})) == (pytest.approx(0.9), 0.5)
    for records in (run(Oracle(), 1).records, []):  # without a hit
        assert judged(records)["best_f1"] == {"min_score": None, "F1": None}
        assert shown_from(judged(records)) == 0.5
    for metric in ("11point", "area", "imagenet"):
        assert judged(run(Oracle(), 0).records, voc_metric=metric)["voc"]["metric"] == metric


def test_label_maps_are_judged_on_the_stored_images(tmp_path) -> None:
    labels, kept = np.zeros((100, 200), np.uint8), {}
    labels[:50] = 7
    labels[40:60, :100] = 255
    labels[90:] = 7  # missed by the network
    Image.fromarray(labels).save(tmp_path / "first.png")
    files = PackedStrings.pack([str(tmp_path / "first.png"), ""])
    maps = LabelMaps(class_names=("road", "sky"), files=files, values={0: 0, 7: 1, 255: VOID})
    index = replace(INDEX, label_maps=maps)
    first, second = run(Painter(), 0, 1, index=index, keep=kept.__setitem__).records
    assert (kept[0].labels.shape, kept[1].labels.shape) == ((100, 200), (60, 60))
    assert np.unique(kept[0].labels[:50]).tolist() == [1]
    counts = [[7000, 0, 0], [2000, 9000, 0]]  # road: rows 50-60 at the right, 60-90 all
    assert first.label_counts.toarray().tolist() == counts
    assert not second.label_counts.nnz  # nobody knows its labels
    result = judged([first, second], labels=label_classes(index))
    assert set(result) == {"semseg"}
    assert read_metric(result, "semseg.mIoU") == pytest.approx((7 / 9 + 9 / 11) / 2)
    assert read_metric(result, "semseg.per_class.sky.IoU") == pytest.approx(9 / 11)
    names = judged([], fields=("label_maps",), labels=label_classes(index))
    assert set(figures(names)) == set(figures(result))
    assert read_metric(names, "semseg.mIoU") is None


def test_panoptic_maps_are_merged_and_judged(tmp_path) -> None:
    """A segment of sky is hit, and of two cars, one is missed."""
    ids = np.zeros((100, 200, 3), np.uint8)
    ids[..., 0] = 1
    ids[60:, :50, 0], ids[60:, 150:, 0] = 2, 3
    Image.fromarray(ids).save(tmp_path / "first.png")
    files = PackedStrings.pack([str(tmp_path / "first.png"), ""])
    segments = PackedStrings.pack(["[[1, 1, 0], [2, 0, 0], [3, 0, 0]]", "[]"])
    maps = LabelMaps(class_names=("car", "sky"), files=files, values={}, num_things=1, segments=segments)

    def merge(scores: Any, labels: Any, masks: Any, label_map: Any) -> Segments:
        assert (len(scores), len(labels), len(masks)) == (0, 0, 0)
        found = np.full(label_map.shape, 1, np.int32)
        found[60:, :50], found[:, 150:] = 2, 0
        return Segments(found, (Segment(1, 1), Segment(2, 0)))

    index = replace(INDEX, label_maps=maps, fields={"masks": PackedStrings.pack([b"", b""])})
    (record,) = run(Painter(masks=True), 0, index=index, merge=merge).records
    sky = 60 * 150 + 40 * 100
    np.testing.assert_allclose(record.panoptic_counts, [[1, 1, 0, 1], [sky / (200 * 100 - 2 * 40 * 50), 1, 0, 0]])
    assert record.label_counts.toarray().tolist() == [[2000, 0, 2000], [0, sky, 3000]]
    result = judged([record], labels=label_classes(index))
    assert {"bbox", "segm", "voc", "best_f1", "semseg", "panoptic"} == set(result)
    assert read_metric(result, "panoptic.PQ_things") == pytest.approx(1 / 1.5)
    assert read_metric(result, "panoptic.per_class.car.RQ") == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("most", [1, 15 * 17 * 2, 1 << 26])
def test_the_best_class_is_the_same_however_many_are_resized_at_once(most, monkeypatch) -> None:
    scores = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0))
    scores[4] = scores[2]  # of equal scores the first counts
    monkeypatch.setattr(label_maps, "MOST_SCORES", most)
    wanted = nn.functional.interpolate(scores[None], (15, 17), mode="bilinear")[0].argmax(dim=0)
    found = stored_labels(scores, (15, 17))
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), wanted)
    assert torch.equal(stored_labels(scores, (7, 6)).long(), scores.argmax(dim=0))


def test_masks_are_pasted_at_the_size_of_the_stored_image_by_the_operations_that_are_given() -> None:
    first, second = run(Oracle(masks=True), 0, 1, index=MASKED).records
    (mask,) = decode(first.masks, (100, 200))
    assert mask.nonzero().aminmax(dim=0).min.tolist() == pytest.approx([10, 20], abs=1)
    assert mask.nonzero().aminmax(dim=0).max.tolist() == pytest.approx([49, 79], abs=1)
    assert first.gt_masks == MASKED.stored("masks", 0)
    assert (second.masks, second.gt_masks) == ((), ())
    fields = [{"masks": Masks(geometry)} for geometry in ("exact", "torchvision")]
    found = [run(Oracle(masks=True), 0, index=MASKED, fields=given).records[0].masks for given in fields]
    exact, torchvisions = (decode(masks, (100, 200)).sum() for masks in found)
    assert exact == 40 * 60 < torchvisions


def test_mask_figures_are_there_where_objects_and_detections_have_masks() -> None:
    result = judged(run(Oracle(masks=True), 0, 1, index=MASKED).records)
    assert read_metric(result, "segm.AP50") == pytest.approx(1.0)
    assert read_metric(result, "segm.per_class.cat.AP") is None
    for records in (run(Oracle(masks=True), 0, 1).records, run(Oracle(), 0, 1).records, []):
        assert "segm" not in judged(records)
    assert read_metric(judged([], fields=("masks",)), "segm.AP50") is None
    unannotated = judged(run(Oracle(masks=True), 0, 1, index=EMPTY).records)
    assert (unannotated["segm"]["AP"], unannotated["bbox"]["AP"]) == (None, None)
    plain = run(Oracle(), 0, index=MASKED).records[0]
    assert (plain.masks, plain.gt_masks) == (None, None)


def test_keypoints_lie_on_the_stored_image_and_have_figures_where_some_are_labelled() -> None:
    first, second = records = run(Oracle(keypoints=True), 0, 1, index=POSED).records
    assert first.keypoints.tolist() == [[[30, 20, 1], [40, 15, 1]]]
    assert first.gt_keypoints[0].tolist() == [[30, 20, 2], [40, 15, 2]]
    assert second.keypoints.shape == (0, 2, 3)
    result = judged(records)
    assert read_metric(result, "keypoints.AP") == pytest.approx(1.0)
    assert read_metric(result, "keypoints.per_class.dog.AP50") == pytest.approx(1.0)
    assert "segm" not in result
    assert "keypoints" not in judged(run(Oracle(keypoints=True), 0, 1).records)
    assert judged(run(Oracle(keypoints=True), 0, 1, index=EMPTY).records)["keypoints"]["AP"] is None
