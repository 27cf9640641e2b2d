"""Mirrors detection/evaluation/boundaries.py."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCOCO  # noqa: N811  # a class
from faster_coco_eval import COCOeval_faster

from detection.evaluation.boundaries import boundary, boundary_candidates, boundary_width
from detection.evaluation.candidates import Candidates, coco_mask
from detection.evaluation.coco import COCO_NUMBERS, coco_results, evaluate_coco
from detection.evaluation.columns import join_records
from detection.evaluation.record import Record
from detection.masks import RLE, decode, empty_rle, encode, is_empty

Array = np.ndarray[Any, Any]
SMALL = (50, 50)  # its boundaries are one pixel wide
NAMES = ["cat", "dog"]


def rectangle(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = SMALL) -> RLE:
    pixels = np.zeros(size, np.uint8)
    pixels[y1:y2, x1:x2] = 1
    return encode(pixels)


def record(
    objects: Sequence[RLE], found: Sequence[RLE], *, crowds: Sequence[bool] = (), size: tuple[int, int] = SMALL
) -> Record:
    """One image of cats."""
    gt_boxes, boxes = (np.zeros((len(masks), 4), np.float32) for masks in (objects, found))
    return Record(
        image_id=1,
        file_name="1.jpg",
        size=size,
        gt_boxes=gt_boxes,
        gt_labels=np.zeros(len(objects), np.int64),
        gt_ignore=np.array(crowds or [False] * len(objects), np.bool_),
        gt_areas=np.array([coco_mask.area(rle) for rle in objects], np.float32),
        boxes=boxes,
        scores=np.linspace(0.9, 0.1, len(found), dtype=np.float32),
        labels=np.zeros(len(found), np.int64),
        gt_masks=tuple(objects),
        masks=tuple(found),
    )


def ious(image: Record, *, least: float) -> list[float]:
    columns = join_records([image], 1)
    return boundary_candidates(columns, columns.gt_ignore, least=least).ious.tolist()


def by_definition(mask: Array) -> Array:
    """The pixels of ``mask`` (H, W) with a pixel outside it, or outside the image, within the boundary's width."""
    width = boundary_width((mask.shape[0], mask.shape[1]))
    padded = np.pad(mask, width)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1, 2 * width + 1))
    return mask & ~windows.all(axis=(2, 3))


@pytest.mark.parametrize(
    ("size", "width"), [((480, 640), 16), ((10, 10), 1), ((50, 50), 1), ((75, 100), 2), ((76, 100), 3)]
)
def test_a_boundary_is_2_percent_of_the_diagonal_wide(size: tuple[int, int], width: int) -> None:
    assert boundary_width(size) == width  # 16.0, 0.28, 1.41, 2.5 (to the even number) and 2.512


def test_the_boundary_of_a_rectangle_is_its_outermost_ring_also_at_the_border_of_the_image() -> None:
    for x, y in ((20, 20), (0, 0), (40, 40)):
        ring = decode([boundary(rectangle(x, y, x + 10, y + 10))], SMALL)[0]
        assert int(ring.sum()) == 36
        assert not ring[y + 1 : y + 9, x + 1 : x + 9].any()
    assert is_empty(boundary(empty_rle(SMALL)))


@pytest.mark.parametrize("size", [(50, 50), (100, 200), (30, 7)])
def test_boundaries_are_those_of_the_definition(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.kron(rng.random((5, 5)) < 0.6, np.ones((40, 40)))[: size[0], : size[1]] > 0
        mask ^= rng.random(size) < 0.01
        assert np.array_equal(decode([boundary(encode(mask))], size)[0].numpy(), by_definition(mask))


def test_the_iou_of_a_pair_is_the_lesser_of_both() -> None:
    # Rings of 36 pixels that share 9 of their rows above and 9 below; the masks share 90 of 110 pixels.
    image = record([rectangle(10, 10, 20, 20)], [rectangle(11, 10, 21, 20)])
    assert ious(image, least=0.3) == [pytest.approx(18 / 54)]
    assert ious(image, least=0.34) == []
    # Lines are all boundary, so the masks decide.
    assert ious(record([rectangle(10, 10, 30, 12)], [rectangle(10, 10, 30, 11)]), least=0.3) == [0.5]
    whole, along = (evaluate_coco([image], NAMES, iou_type=iou_type).AP for iou_type in ("segm", "boundary"))
    assert whole == pytest.approx(0.7)  # up to IoU 0.80
    assert along == 0


def test_a_crowd_covers_detections_by_their_masks() -> None:
    crowd, found = rectangle(0, 0, 40, 40), [rectangle(10, 10, 20, 20), rectangle(30, 30, 50, 50)]
    image = record([crowd], found, crowds=[True])
    assert ious(image, least=0.2) == [1.0, pytest.approx(100 / 400)]  # their boundaries share nothing


def test_objects_of_unknown_mask_and_detections_without_a_pixel_have_no_pair() -> None:
    image = record([empty_rle(SMALL), rectangle(10, 10, 20, 20)], [empty_rle(SMALL), rectangle(10, 10, 20, 20)])
    assert ious(image, least=0.1) == [1.0]
    ap = evaluate_coco([image], NAMES, iou_type="boundary").AP
    assert ap == pytest.approx(0.5, abs=0.01)  # the better detection finds nothing
    assert np.isnan(evaluate_coco([record([], [])], NAMES, iou_type="boundary").AP)


def random_records(seed: int, *, images: int = 4) -> list[Record]:
    """Ellipses of two classes and what finds them nearly; some are empty, some ignored."""
    rng = np.random.default_rng(seed)
    records = []
    for image_id in range(1, images + 1):
        size = (int(rng.integers(60, 120)), int(rng.integers(60, 120)))
        count = int(rng.integers(0, 6))
        places = rng.uniform(0.1, 0.9, (count, 2)), rng.uniform(0.1, 0.4, (count, 2))
        near = rng.integers(0, max(count, 1), 8 if count else 0)
        moved = [part[near] + rng.normal(0, 0.012, (len(near), 2)) for part in places]
        objects, found = (_ellipses(centres, radii, size, rng) for centres, radii in (places, moved))
        image = record(objects, found, crowds=(rng.random(count) < 0.3).tolist(), size=size)
        labels = rng.integers(0, 2, count)
        own = np.where(rng.random(len(near)) < 0.8, labels[near] if count else 0, 1 - (labels[near] if count else 0))
        scores = rng.random(len(near), np.float32)
        records.append(replace(image, image_id=image_id, gt_labels=labels, labels=own, scores=scores))
    return records


def _ellipses(centres: Array, radii: Array, size: tuple[int, int], rng: np.random.Generator) -> list[RLE]:
    y, x = (grid + 0.5 for grid in np.mgrid[: size[0], : size[1]])
    masks = []
    for (left, top), (across, down) in zip(centres, radii, strict=True):
        distance = ((x / size[1] - left) / across) ** 2 + ((y / size[0] - top) / down) ** 2
        masks.append(empty_rle(size) if rng.random() < 0.1 else encode((distance < 1) & (rng.random(size) < 0.999)))
    return masks


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_all_with_all(seed: int) -> None:
    columns = join_records(random_records(seed), 2)
    assert columns.masks is not None
    assert columns.gt_masks is not None
    expected = []
    for row, theirs in enumerate(columns.masks):
        for object_, own in enumerate(columns.gt_masks):
            if columns.cells[row] != columns.gt_cells[object_]:
                continue
            crowd = bool(columns.gt_ignore[object_])
            iou = float(coco_mask.iou([theirs], [own], [crowd])[0, 0])
            found, truth = (decode([rle], (rle["size"][0], rle["size"][1]))[0].numpy() for rle in (theirs, own))
            if not crowd and iou > 0:
                found, truth = by_definition(found), by_definition(truth)
                iou = min(iou, np.count_nonzero(found & truth) / np.count_nonzero(found | truth))
            if iou >= 0.3:
                expected.append((row, object_, pytest.approx(iou)))
    assert listed(boundary_candidates(columns, columns.gt_ignore, least=0.3)) == expected
    assert expected


def listed(found: Candidates) -> list[tuple[int, int, float]]:
    return list(zip(found.rows.tolist(), found.objects.tolist(), found.ious.tolist(), strict=True))


def test_without_masks_there_are_none() -> None:
    with pytest.raises(ValueError, match="no masks"):
        evaluate_coco([replace(record([], []), masks=None)], NAMES, iou_type="boundary")


@pytest.fixture
def faster() -> Callable[[Sequence[Record]], list[float]]:
    """faster-coco-eval's twelve numbers of records, -1 for none."""

    def evaluate(records: Sequence[Record]) -> list[float]:
        annotations = [
            {
                "id": 100 * r.image_id + row,
                "image_id": r.image_id,
                "category_id": int(r.gt_labels[row]) + 1,
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": float(r.gt_areas[row]),
                "iscrowd": int(r.gt_ignore[row] or is_empty(rle)),
            }
            for r in records
            for row, rle in enumerate(r.gt_masks or ())
        ]
        truth = {
            "images": [{"id": r.image_id, "height": r.size[0], "width": r.size[1]} for r in records],
            "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)],
            "annotations": annotations,
        }
        results = [
            {key: value for key, value in found.items() if key != "bbox"} for found in coco_results(records, [1, 2])
        ]
        with redirect_stdout(io.StringIO()):
            theirs: Any = FasterCOCO(truth)
            evaluation: Any = COCOeval_faster(theirs, theirs.loadRes(results), "boundary", print_function=str)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [float(number) for number in evaluation.stats[: len(COCO_NUMBERS)]]

    return evaluate


def test_numbers_are_those_of_faster_coco_eval(faster: Callable[[Sequence[Record]], list[float]]) -> None:
    some = 0
    for seed in range(10):
        records = random_records(seed, images=8)
        result = evaluate_coco(records, NAMES, iou_type="boundary")
        expected = np.array(faster(records))
        ours = np.array([getattr(result, name) for name in COCO_NUMBERS])
        np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), expected, rtol=0, atol=1e-6, err_msg=f"seed {seed}")
        some += int(((expected > 0) & (expected < 1)).sum())
    assert some > 10
