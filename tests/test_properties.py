"""What holds for any input of pure functions, by hypothesis."""

from typing import Any, get_args

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as pycocotools_mask

from detection.boxes import areas, clip, inside, intersection_over_area, iou, scale
from detection.config.detection import BoxConfig, DetectionConfig, DetectorDataConfig, DetectorSolverConfig
from detection.config.load import dump_config, parse_config
from detection.evaluation.record import Record
from detection.evaluation.voc import evaluate_voc
from detection.mask_geometry import MaskGeometry
from detection.mask_pasting import paste
from detection.masks import decode, encode, to_rle
from detection.model.box_coder import BoxCoder
from detection.model.box_stage import ScoredBoxes
from detection.model.matcher import Matcher
from detection.model.postprocess import Postprocessor
from detection.padded import Targets
from detection.structures import Target

coco_mask: Any = pycocotools_mask

properties = settings(
    deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))
PLACES = st.floats(-100, 400, width=32, allow_subnormal=False)
SIDES = st.floats(0.0625, 300, width=32)


@st.composite
def boxes(draw, *, least: int = 0, most: int = 8, empty: bool = True):
    """(N, 4) with x1 <= x2 and y1 <= y2; with an area unless ``empty``."""
    side = SIDES | st.just(0.0) if empty else SIDES
    rows = draw(st.lists(st.tuples(PLACES, PLACES, side, side), min_size=least, max_size=most))
    x, y, width, height = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4).unbind(dim=1)
    return torch.stack([x, y, x + width, y + height], dim=1)


@properties
@given(boxes(), boxes(), SIZES, SIZES)
def test_boxes(first, second, size, new_size) -> None:
    overlaps, shares = iou(first, second), intersection_over_area(first, second)
    assert overlaps.shape == (len(first), len(second))
    assert ((overlaps >= 0) & (overlaps <= 1 + 1e-4)).all()
    torch.testing.assert_close(overlaps, iou(second, first).T)
    assert ((shares >= overlaps - 1e-5) & (shares <= 1 + 1e-4)).all()
    whole = first[((first[:, 2:] - first[:, :2]) > 0.05).all(dim=1)]
    torch.testing.assert_close(iou(whole, whole).diagonal(), torch.ones(len(whole)))
    clipped, sizes = clip(first, size), torch.tensor([size])
    assert inside(clipped, sizes).all()
    assert torch.equal(clip(clipped, size), clipped)
    assert torch.equal(clipped[inside(first, sizes)[0]], first[inside(first, sizes)[0]])
    assert torch.equal(clip(first[None], sizes)[0], clipped)
    assert (areas(clipped) <= areas(first)).all()
    torch.testing.assert_close(scale(scale(first, size, new_size), new_size, size), first, rtol=1e-4, atol=1e-3)


@st.composite
def pairs(draw):
    """As many boxes as anchors, with sides that differ by a factor of 60 at most, as the coder's cap has it."""
    side = st.floats(8, 480, width=32)
    row = st.tuples(*[PLACES] * 4, *[side] * 4)
    rows = torch.tensor(draw(st.lists(row, max_size=8)), dtype=torch.float32).reshape(-1, 8)
    first, second, sides, other_sides = rows.reshape(-1, 4, 2).unbind(dim=1)
    return torch.cat([first, first + sides], dim=1), torch.cat([second, second + other_sides], dim=1)


@properties
@given(pairs(), st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
def test_what_is_encoded_is_decoded(pair, weights) -> None:
    targets, anchors = pair
    coder = BoxCoder(weights)
    torch.testing.assert_close(coder.decode(coder.encode(targets, anchors), anchors), targets, rtol=1e-4, atol=0.01)


@properties
@given(boxes(most=12, empty=False), boxes(most=6, empty=False), st.lists(st.booleans(), min_size=6, max_size=6))
def test_what_a_matcher_promises(rows, objects, flags) -> None:
    ignore = torch.tensor(flags[: len(objects)], dtype=torch.bool)
    target = Target(boxes=objects, labels=torch.zeros(len(objects), dtype=torch.int64), ignore=ignore)
    usable = torch.ones(1, len(rows), dtype=torch.bool)
    matches = Matcher(0.5, 0.25, match_best=True)(rows[None], Targets.pad([target]), usable)
    positive, negative, indices = matches.positive[0], matches.negative[0], matches.indices[0]
    overlaps = iou(rows, objects).masked_fill(ignore, 0.0)
    best = overlaps.amax(dim=1) if len(objects) else torch.zeros(len(rows))
    assert positive[best >= 0.5].all()
    assert (best[negative] < 0.25).all()
    if len(objects) and not ignore.all():
        assert not ignore[indices[best > 0]].any()
        torch.testing.assert_close(overlaps.gather(1, indices[:, None])[:, 0], best, rtol=1e-6, atol=0)
        reachable = (overlaps > 0).any(dim=0)
        if reachable.any():
            reached, most = (rows.amax(dim=0)[reachable] for rows in (overlaps[positive], overlaps))
            torch.testing.assert_close(reached, most, rtol=1e-6, atol=0)
    else:
        assert not positive.any()


@properties
@given(boxes(most=12), st.data())
def test_what_is_kept_and_why(own, data) -> None:
    scores = data.draw(arrays(np.float32, (len(own), 2), elements=st.floats(0, 1, width=32)))
    padding = torch.zeros(1, 1, 4)
    scored = ScoredBoxes(
        scores=torch.cat([torch.from_numpy(scores), torch.ones(1, 2)])[None],
        boxes=torch.cat([own[None], padding], dim=1)[:, :, None].expand(-1, -1, 2, -1),
        valid=torch.tensor([[True] * len(own) + [False]]),
    )
    found, best = (Postprocessor(0.25, 0.5, most)(scored).ragged()[0] for most in (1000, 3))
    given_scores = torch.from_numpy(scores)
    assert torch.equal(best.boxes, found.boxes[:3])
    assert (found.scores > 0.25).all()
    assert (found.scores.diff() <= 0).all()
    for label in range(2):
        kept = found[found.labels == label]
        assert (iou(kept.boxes, kept.boxes).fill_diagonal_(0.0) <= 0.5 + 1e-5).all()
        candidates = (given_scores[:, label] > 0.25) & (areas(own) > 0)
        suppresses = (iou(own, kept.boxes) > 0.5 - 1e-5) & (kept.scores >= given_scores[:, label, None])
        itself = (own[:, None] == kept.boxes).all(dim=-1)
        assert ((suppresses | itself).any(dim=1) | ~candidates).all()


@properties
@given(boxes(least=1, empty=False), boxes(empty=False), st.data())
def test_average_precision_is_a_share_that_a_late_mistake_does_not_change(objects, detections, data) -> None:
    scores = data.draw(arrays(np.float32, len(detections), elements=st.floats(0.5, 1, width=32)))
    nothing = torch.tensor([[5000.0, 5000.0, 5001.0, 5001.0]])

    def precision(found, scores):
        none = np.zeros(len(objects), np.bool_)
        truth: Any = {"gt_boxes": objects.numpy(), "gt_labels": none.astype(np.int64), "gt_ignore": none}
        own: Any = {"boxes": found.numpy(), "scores": scores, "labels": np.zeros(len(found), np.int64)}
        image: Any = {"image_id": 1, "file_name": "1.jpg", "size": (600, 600), "gt_areas": areas(objects).numpy()}
        result = evaluate_voc([Record(**image, **truth, **own)], ["cat"])
        return result.mean_ap_11point, result.mean_ap_area

    own = precision(detections, scores)
    assert all(0 <= value <= 1 for value in own)
    assert precision(torch.cat([detections, nothing]), np.append(scores, np.float32(0.25))) == own


@properties
@given(boxes(most=4), SIZES, st.sampled_from([1, 7, 14]), st.sampled_from(get_args(MaskGeometry)))
def test_masks_are_pasted_where_their_boxes_are(own, size, side, geometry) -> None:
    pasted = decode(paste(torch.ones(len(own), side, side), own, size, geometry=geometry), size)
    assert pasted.shape == (len(own), *size)
    assert not decode(paste(torch.zeros(len(own), side, side), own, size, geometry=geometry), size).any()
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    for mask, (x1, y1, x2, y2) in zip(pasted, own.tolist(), strict=True):
        reach_x, reach_y = 2 + (x2 - x1) / side, 2 + (y2 - y1) / side  # pixels; a sample, and what rounding adds
        assert not mask[(rows < y1 - reach_y) | (rows > y2 + reach_y)].any()
        assert not mask[:, (columns < x1 - reach_x) | (columns > x2 + reach_x)].any()


@properties
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(np.bool_, size)))
def test_masks_come_back_and_are_pycocotools_s(mask) -> None:
    size, rle = (mask.shape[0], mask.shape[1]), encode(mask)
    theirs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert rle == theirs
    np.testing.assert_array_equal(decode([rle], size)[0].numpy(), mask)
    if mask.any():
        columns = mask.flatten(order="F")
        runs = np.diff(np.flatnonzero(np.diff(columns, prepend=False, append=not columns[-1])), prepend=0).tolist()
        text = rle["counts"].decode()
        for counts in (text, rle["counts"], runs):
            assert to_rle({"size": [*size], "counts": counts}, size) == theirs


@properties
@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=12) | st.lists(st.integers(-5, 100), max_size=6))
def test_any_counts_fill_the_image_or_are_refused(counts) -> None:
    try:
        rle = to_rle({"size": [6, 7], "counts": counts}, (6, 7))
    except ValueError:
        return
    assert decode([rle], (6, 7)).shape == (1, 6, 7)


@properties
@given(
    seed=st.integers(0, 2**31 - 1),
    rate=st.floats(1e-300, 1e300),
    weights=st.tuples(*[st.floats(1e-3, 1e3)] * 4),
    train=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3),
)
def test_configs_come_back(seed, rate, weights, train) -> None:
    data, solver = DetectorDataConfig(train=tuple(train)), DetectorSolverConfig(base_lr=rate)
    config = DetectionConfig(seed=seed, solver=solver, box=BoxConfig(coder_weights=weights), data=data)
    assert parse_config(DetectionConfig, dump_config(config)) == config
