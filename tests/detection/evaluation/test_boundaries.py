"""Mirrors detection/evaluation/boundaries.py."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCOCO  # noqa: N811  # a class
from faster_coco_eval import COCOeval_faster

from detection.evaluation.boundaries import boundary, boundary_candidates, boundary_width
from detection.evaluation.candidates import coco_mask
from detection.evaluation.coco import COCO_NUMBERS, coco_results, evaluate_coco
from detection.evaluation.columns import join_records
from detection.evaluation.record import Record
from detection.masks import RLE, decode, empty_rle, encode, is_empty

SMALL = (50, 50)  # its boundaries are one pixel wide
NAMES = ["a", "b", "c", "d"]


def rectangle(x1: int, y1: int, x2: int, y2: int) -> RLE:
    pixels = np.zeros(SMALL, np.uint8)
    pixels[y1:y2, x1:x2] = 1
    return encode(pixels)


@pytest.fixture
def masked(record):
    """One image of a class, given by masks; the first detection is the best."""

    def make(objects: Sequence[RLE], found: Sequence[RLE], **options: Any) -> Record:
        boxes = [([0, 0, 0, 0], score) for score in np.linspace(0.9, 0.1, len(found))]
        own = {"size": SMALL, "gt_masks": tuple(objects), "masks": tuple(found)}
        return record([[0, 0, 0, 0]] * len(objects), boxes, **own | options)

    return make


def ious(image: Record, *, least: float) -> list[float]:
    columns = join_records([image], 1)
    return boundary_candidates(columns, columns.gt_ignore, least=least).ious.tolist()


def by_definition(rle: RLE) -> np.ndarray:
    """The pixels of a mask with a pixel outside it, or outside the image, within the boundary's width."""
    size = rle["size"][0], rle["size"][1]
    mask, width = decode([rle], size)[0].numpy(), boundary_width(size)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, width), (2 * width + 1, 2 * width + 1))
    return mask & ~windows.all(axis=(2, 3))


def test_boundaries_are_those_of_the_definition_and_2_percent_of_the_diagonal_wide() -> None:
    sizes = [(480, 640), (10, 10), (50, 50), (75, 100), (76, 100)]
    assert [boundary_width(size) for size in sizes] == [16, 1, 1, 2, 3]  # 16.0, 0.28, 1.41, 2.5 (to even) and 2.512
    for x, y in ((20, 20), (0, 0), (40, 40)):  # the outermost ring, also at the border of the image
        ring = decode([boundary(rectangle(x, y, x + 10, y + 10))], SMALL)[0]
        assert int(ring.sum()) == 36
        assert not ring[y + 1 : y + 9, x + 1 : x + 9].any()
    assert is_empty(boundary(empty_rle(SMALL)))
    rng = np.random.default_rng(0)
    for size in [(50, 50), (100, 200), (30, 7)] * 5:
        mask = np.kron(rng.random((5, 5)) < 0.6, np.ones((40, 40)))[: size[0], : size[1]] > 0
        rle = encode(mask ^ (rng.random(size) < 0.01))
        assert np.array_equal(decode([boundary(rle)], size)[0].numpy(), by_definition(rle))


def test_the_iou_of_a_pair_is_the_lesser_of_both(masked) -> None:
    # Rings of 36 pixels that share 9 of their rows above and 9 below; the masks share 90 of 110 pixels.
    image = masked([rectangle(10, 10, 20, 20)], [rectangle(11, 10, 21, 20)])
    assert ious(image, least=0.3) == [pytest.approx(18 / 54)]
    assert ious(image, least=0.34) == []
    # Lines are all boundary, so the masks decide.
    assert ious(masked([rectangle(10, 10, 30, 12)], [rectangle(10, 10, 30, 11)]), least=0.3) == [0.5]
    found = [evaluate_coco([image], NAMES, iou_type=iou_type).AP for iou_type in ("segm", "boundary")]
    assert found == pytest.approx([0.7, 0])  # up to IoU 0.80


def test_crowds_unknown_masks_and_empty_ones(masked, record) -> None:
    crowd, found = rectangle(0, 0, 40, 40), [rectangle(10, 10, 20, 20), rectangle(30, 30, 50, 50)]
    covered = ious(masked([crowd], found, ignore=[0]), least=0.2)
    assert covered == [1.0, pytest.approx(100 / 400)]  # by their masks: their boundaries share nothing
    pair = [empty_rle(SMALL), rectangle(10, 10, 20, 20)]
    assert ious(masked(pair, pair), least=0.1) == [1.0]
    ap = evaluate_coco([masked(pair, pair)], NAMES, iou_type="boundary").AP
    assert ap == pytest.approx(0.5, abs=0.01)  # the better detection finds nothing
    assert np.isnan(evaluate_coco([masked([], [])], NAMES, iou_type="boundary").AP)
    with pytest.raises(ValueError, match="no masks"):
        evaluate_coco([record()], NAMES, iou_type="boundary")


def test_pairs_are_those_of_all_with_all(random_records) -> None:
    columns, expected = join_records(random_records(0, 4, masks=True), 4), []
    theirs, own = ([*map(by_definition, masks or ())] for masks in (columns.masks, columns.gt_masks))
    crowds = columns.gt_ignore.tolist()
    ious = coco_mask.iou(list(columns.masks or ()), list(columns.gt_masks or ()), crowds)
    for row, object_ in np.argwhere((columns.cells[:, None] == columns.gt_cells) & (ious > 0)).tolist():
        found, truth, iou = theirs[row], own[object_], ious[row, object_]
        if not crowds[object_]:
            iou = min(iou, np.count_nonzero(found & truth) / np.count_nonzero(found | truth))
        if iou >= 0.1:
            expected.append((row, object_, pytest.approx(iou)))
    found = boundary_candidates(columns, columns.gt_ignore, least=0.1)
    assert list(zip(found.rows.tolist(), found.objects.tolist(), found.ious.tolist(), strict=True)) == expected != []


@pytest.fixture
def of_faster_coco_eval(coco_truth):
    """Its twelve numbers of records, -1 for none."""

    def evaluate(records: Sequence[Record]) -> np.ndarray:
        truth = coco_truth(records, NAMES, "segm")
        for known in truth["annotations"]:
            known["segmentation"] = known["segmentation"] | {"counts": known["segmentation"]["counts"].decode()}
        results = coco_results(records, [1, 2, 3, 4])
        with redirect_stdout(io.StringIO()):
            theirs: Any = FasterCOCO(truth)
            found = theirs.loadRes([{key: value for key, value in one.items() if key != "bbox"} for one in results])
            evaluation: Any = COCOeval_faster(theirs, found, "boundary", print_function=str)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return np.array(evaluation.stats[: len(COCO_NUMBERS)], float)

    return evaluate


def test_numbers_are_those_of_faster_coco_eval(random_records, of_faster_coco_eval, numbers) -> None:
    some = 0
    for seed in range(4):
        records = random_records(seed, 6, masks=True)
        ours, expected = numbers(evaluate_coco(records, NAMES, iou_type="boundary"))[:12], of_faster_coco_eval(records)
        np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), expected, rtol=0, atol=1e-6, err_msg=f"seed {seed}")
        some += int(((expected > 0) & (expected < 1)).sum())
    assert some > 10
