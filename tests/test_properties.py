"""What holds for any input of the pure functions, by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as pycocotools_mask
from torch import Tensor

from detection import boxes as boxes_module
from detection.boxes import areas, clip, inside, intersection_over_area, iou, scale
from detection.config import BoxConfig, Config, DataConfig, SolverConfig
from detection.config_io import dump_config, parse_config
from detection.masks import decode, encode, to_rle
from detection.model.box_coder import BoxCoder
from detection.model.matcher import NEGATIVE, POSITIVE, Matcher
from detection.structures import ImageBatch, Target

coco_mask: Any = pycocotools_mask

properties = settings(
    deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))
PLACES = st.floats(-100, 400, width=32, allow_subnormal=False)
SIDES = st.floats(0.0625, 300, width=32)


@st.composite
def boxes(draw: st.DrawFn, *, least: int = 0, most: int = 8, empty: bool = True) -> Tensor:
    """(N, 4) with x1 <= x2 and y1 <= y2; with an area unless ``empty``."""
    side = SIDES | st.just(0.0) if empty else SIDES
    rows = draw(st.lists(st.tuples(PLACES, PLACES, side, side), min_size=least, max_size=most))
    x, y, width, height = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4).unbind(dim=1)
    return torch.stack([x, y, x + width, y + height], dim=1)


# boxes


@properties
@given(boxes(), boxes())
def test_iou_is_a_share_and_symmetric(first: Tensor, second: Tensor) -> None:
    overlaps = iou(first, second)
    assert overlaps.shape == (len(first), len(second))
    assert ((overlaps >= 0) & (overlaps <= 1 + 1e-4)).all()
    torch.testing.assert_close(overlaps, iou(second, first).T)


@properties
@given(boxes(empty=False))
def test_iou_of_a_box_with_itself_is_one(own: Tensor) -> None:
    torch.testing.assert_close(iou(own, own).diagonal(), torch.ones(len(own)))


@properties
@given(boxes(most=20), boxes(most=20), st.integers(1, 50))
def test_slices_change_no_bit_of_an_iou(first: Tensor, second: Tensor, elements: int) -> None:
    whole, default = iou(first, second), boxes_module.MAX_ELEMENTS
    boxes_module.MAX_ELEMENTS = elements
    try:
        assert torch.equal(iou(first, second), whole)
    finally:
        boxes_module.MAX_ELEMENTS = default


@properties
@given(boxes(), boxes())
def test_the_share_of_a_box_is_no_less_than_its_iou(first: Tensor, second: Tensor) -> None:
    shares = intersection_over_area(first, second)
    assert ((shares >= iou(first, second) - 1e-5) & (shares <= 1 + 1e-4)).all()


@properties
@given(boxes(), SIZES)
def test_clipped_boxes_lie_inside_and_stay(own: Tensor, size: tuple[int, int]) -> None:
    clipped = clip(own, size)
    assert inside(clipped, size).all()
    assert torch.equal(clip(clipped, size), clipped)
    assert torch.equal(clipped[inside(own, size)], own[inside(own, size)])
    assert (areas(clipped) <= areas(own)).all()


@properties
@given(boxes(), SIZES, SIZES)
def test_scaling_there_and_back(own: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> None:
    torch.testing.assert_close(scale(scale(own, size, new_size), new_size, size), own, rtol=1e-4, atol=1e-3)


# box coder and matcher


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """As many boxes as anchors, with sides that differ by a factor of 60 at most, as the coder's cap has it."""
    side = st.floats(8, 480, width=32)
    row = st.tuples(*[PLACES] * 4, *[side] * 4)
    rows = torch.tensor(draw(st.lists(row, max_size=8)), dtype=torch.float32).reshape(-1, 8)
    first, second, sides, other_sides = rows.reshape(-1, 4, 2).unbind(dim=1)
    return torch.cat([first, first + sides], dim=1), torch.cat([second, second + other_sides], dim=1)


@properties
@given(pairs(), st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
def test_what_is_encoded_is_decoded(pair: tuple[Tensor, Tensor], weights: tuple[float, ...]) -> None:
    targets, anchors = pair
    coder = BoxCoder(weights)
    torch.testing.assert_close(coder.decode(coder.encode(targets, anchors), anchors), targets, rtol=1e-4, atol=0.01)


@properties
@given(boxes(most=12, empty=False), boxes(most=6, empty=False), st.lists(st.booleans(), min_size=6, max_size=6))
def test_what_a_matcher_promises(rows: Tensor, objects: Tensor, flags: list[bool]) -> None:
    ignore = torch.tensor(flags[: len(objects)], dtype=torch.bool)
    target = Target(boxes=objects, labels=torch.zeros(len(objects), dtype=torch.int64), ignore=ignore)
    matches = Matcher(0.5, 0.25, match_best=True)(rows, target)
    overlaps = iou(rows, objects).masked_fill(ignore, 0.0)
    best = overlaps.amax(dim=1) if len(objects) else torch.zeros(len(rows))
    assert (matches.states[best >= 0.5] == POSITIVE).all()
    assert (best[matches.states == NEGATIVE] < 0.25).all()
    if len(objects) and not ignore.all():
        assert not ignore[matches.indices].any()
        assert torch.equal(overlaps.gather(1, matches.indices[:, None])[:, 0], best)
        reachable = (overlaps > 0).any(dim=0)
        if reachable.any():
            positive = overlaps[matches.states == POSITIVE]
            assert torch.equal(positive.amax(dim=0)[reachable], overlaps.amax(dim=0)[reachable])
    else:
        assert not (matches.states == POSITIVE).any()


# masks


@properties
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(np.bool_, size)))
def test_masks_come_back_and_are_pycocotools_s(mask: np.ndarray[Any, Any]) -> None:
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
def test_any_counts_fill_the_image_or_are_refused(counts: str | list[int]) -> None:
    try:
        rle = to_rle({"size": [6, 7], "counts": counts}, (6, 7))
    except ValueError:
        return
    assert decode([rle], (6, 7)).shape == (1, 6, 7)


# configs and batches


FRACTIONS = st.floats(1e-300, 1.0)


@properties
@given(
    seed=st.integers(0, 2**31 - 1),
    rate=st.floats(1e-300, 1e300),
    weights=st.tuples(*[st.floats(1e-3, 1e3)] * 4),
    train=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3),
)
def test_configs_come_back(seed: int, rate: float, weights: tuple[float, ...], train: list[str]) -> None:
    config = Config(
        seed=seed,
        solver=SolverConfig(base_lr=rate),
        box=BoxConfig(coder_weights=weights),
        data=DataConfig(train=tuple(train)),
    )
    assert parse_config(Config, dump_config(config)) == config


@properties
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_batches_pad_with_zeros_and_change_nothing_else(sizes: list[tuple[int, int]]) -> None:
    images = [torch.full((3, *size), 255, dtype=torch.uint8) for size in sizes]
    batch = ImageBatch.from_images(images)
    assert batch.sizes == tuple(sizes)
    assert batch.pixels.shape[-2:] == (max(h for h, _ in sizes), max(w for _, w in sizes))
    for pixels, (height, width) in zip(batch.pixels, sizes, strict=True):
        assert (pixels[:, :height, :width] == 255).all()
        assert pixels.sum() == 3 * height * width * 255
