"""Mirrors detection/data/dataset.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from detection.data.dataset import DetectionDataset, Sample, collate
from detection.data.images import ImageError, read_image
from detection.data.index import AnnotationIndex
from detection.data.loader import make_loader
from detection.data.packed_strings import PackedStrings
from detection.data.proposals import StoredProposals
from detection.data.samplers import TestBatches
from detection.data.transforms import Augment, Change, Jitter, RandomResize, Resize
from detection.masks import encode
from detection.structures import Target

MakeIndex = Callable[..., AnnotationIndex]
AS_STORED = Resize(60, 1000)


@pytest.fixture
def index(make_index: MakeIndex, tmp_path: Path) -> AnnotationIndex:
    """Two noisy pictures of 60x80, the second without objects."""
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    rng = np.random.default_rng(0)
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return make_index([[((10, 20, 30, 40), 1, False), ((0, 0, 80, 60), 0, True)], []], paths=paths)


def sample(size: tuple[int, int], count: int, row: int) -> Sample:
    target = Target(
        boxes=torch.zeros(count, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        ignore=torch.zeros(count, dtype=torch.bool),
    )
    return Sample(row, f"{row}.jpg", torch.full((3, *size), row, dtype=torch.uint8), target)


def test_a_sample_is_pixels_and_target_at_the_detectors_scale(index: AnnotationIndex) -> None:
    dataset = DetectionDataset(index, resize=Resize(120, 1000))
    got = dataset[(5, 0)]
    assert len(dataset) == 2
    assert (got.row, got.path) == (0, index.paths[0])
    assert (got.image.shape, got.image.dtype) == ((3, 120, 160), torch.uint8)
    assert got.image.permute(1, 2, 0).is_contiguous()  # as decoded
    assert got.target.boxes.tolist() == [[20, 40, 60, 80], [0, 0, 160, 120]]
    assert got.target.labels.tolist() == [1, 0]
    assert got.target.ignore.tolist() == [False, True]


def test_pixels_are_rgb_with_channels_first(index: AnnotationIndex) -> None:
    got = DetectionDataset(index, resize=AS_STORED)[(0, 0)]
    np.testing.assert_array_equal(got.image.permute(1, 2, 0), read_image(index.paths[0]))


def test_an_image_without_objects_is_a_sample(index: AnnotationIndex) -> None:
    augment = Augment([{"HorizontalFlip": {"p": 1}}])
    got = DetectionDataset(index, resize=AS_STORED, augment=augment)[(0, 1)]
    assert got.target.boxes.shape == (0, 4)


def test_augmentation_comes_before_resizing(index: AnnotationIndex) -> None:
    crop = Augment([{"Crop": {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 40, "p": 1}}])
    got = DetectionDataset(index, resize=Resize(120, 1000), augment=crop)[(0, 0)]
    assert got.image.shape == (3, 120, 120)
    torch.testing.assert_close(got.target.boxes[0], torch.tensor([30.0, 60.0, 90.0, 120.0]))


def test_seed_and_position_decide_the_augmentation(index: AnnotationIndex) -> None:
    def pixels(seed: int, position: int) -> torch.Tensor:
        augment = Augment([{"ColorJitter": {"p": 1}}])
        return DetectionDataset(index, resize=AS_STORED, augment=augment, seed=seed)[(position, 0)].image

    assert torch.equal(pixels(0, 3), pixels(0, 3))
    assert not torch.equal(pixels(0, 3), pixels(0, 4))
    assert not torch.equal(pixels(0, 3), pixels(1, 3))


def test_seed_and_position_decide_the_draws_among_anchors(index: AnnotationIndex) -> None:
    def seed(run: int, position: int, row: int = 0) -> int:
        return DetectionDataset(index, resize=AS_STORED, seed=run)[(position, row)].seed

    assert seed(0, 3) == seed(0, 3)
    assert len({seed(0, 3), seed(0, 4), seed(1, 3)}) == 3
    batch = collate([DetectionDataset(index, resize=AS_STORED)[(position, 0)] for position in (3, 4)])
    assert batch.images.seeds is not None
    assert batch.images.seeds.tolist() == [seed(0, 3), seed(0, 4)]
    assert ((batch.images.seeds >= 0) & (batch.images.seeds < 2**31)).all()


def test_a_missing_image_is_named(index: AnnotationIndex) -> None:
    Path(index.paths[0]).unlink()
    with pytest.raises(ValueError, match=r"image .*a\.png can't be read"):
        DetectionDataset(index, resize=AS_STORED)[(0, 0)]


@pytest.mark.parametrize(("apply_exif", "sizes"), [(True, (60, 40)), (False, (40, 60))])
def test_the_exif_policy_of_each_image_holds(
    make_index: MakeIndex, tmp_path: Path, apply_exif: bool, sizes: tuple[int, int]
) -> None:
    path, tag = tmp_path / "a.jpg", Image.Exif()
    tag[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (60, 40)).save(path, exif=tag)
    index = make_index([[]], paths=[str(path)], sizes=[sizes])
    index.apply_exif[0] = apply_exif
    assert DetectionDataset(index, resize=Resize(min(sizes), 1000))[(0, 0)].image.shape == (3, *sizes)
    index.apply_exif[0] = not apply_exif
    with pytest.raises(ValueError, match=r"a\.jpg is .* pixels, its annotation says"):
        DetectionDataset(index, resize=AS_STORED)[(0, 0)]


def test_a_batch_keeps_samples_in_their_order() -> None:
    batch = collate([sample((4, 6), 2, row=5), sample((5, 3), 0, row=2)])
    assert (batch.rows, batch.paths) == ((5, 2), ("5.jpg", "2.jpg"))
    assert batch.images.size_list() == [(4, 6), (5, 3)]
    assert batch.images.pixels.shape == (2, 3, 5, 6)
    assert batch.targets.valid.sum(dim=1).tolist() == [2, 0]


def test_a_batch_moves_as_a_whole() -> None:
    samples: Sequence[Sample] = [sample((4, 6), 2, row=5)]
    moved = collate(samples).to("meta")
    tensors = (moved.images.pixels, moved.images.sizes, moved.images.seeds, moved.targets.boxes, moved.targets.valid)
    assert all(tensor is not None and tensor.is_meta for tensor in tensors)
    assert moved.rows == (5,)


def test_an_augmentation_that_fails_names_the_image(index: AnnotationIndex) -> None:
    crop = Augment([{"RandomCrop": {"height": 61, "width": 50, "p": 1}}])
    with pytest.raises(ImageError, match=r"^image .*a\.png: data\.augment, step 1, .*RandomCrop"):
        DetectionDataset(index, resize=AS_STORED, augment=crop)[(0, 0)]


def test_a_failed_augmentation_is_one_line_from_a_worker_too(index: AnnotationIndex) -> None:
    crop = Augment([{"RandomCrop": {"height": 61, "width": 50, "p": 1}}])
    dataset = DetectionDataset(index, resize=AS_STORED, augment=crop)
    with pytest.raises(ImageError, match=r"^image [^\n]*b\.png: data\.augment[^\n]*$"):
        next(iter(make_loader(dataset, TestBatches([1], batch_size=1), workers=1, pin=False)))


# masks


def masked(index: AnnotationIndex) -> tuple[AnnotationIndex, torch.Tensor]:
    """``index`` with masks that fill the boxes of its two objects but for their left half."""
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 20:40, 20:30] = True
    masks[1, :, 40:] = True
    packed = PackedStrings.pack([encode(mask.numpy())["counts"] for mask in masks])
    return replace(index, fields={"masks": packed}), masks


def test_masks_come_on_request_and_follow_the_pixels(index: AnnotationIndex) -> None:
    with_masks, masks = masked(index)
    assert DetectionDataset(with_masks, resize=AS_STORED)[(0, 0)].target.masks is None
    flip = Augment([{"HorizontalFlip": {"p": 1}}])
    got = DetectionDataset(with_masks, resize=Resize(120, 1000), augment=flip, fields=("masks",))[(0, 0)].target.masks
    assert got is not None
    expected = masks.flip(2).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(got, expected)
    nothing = DetectionDataset(with_masks, resize=Resize(120, 1000), augment=flip, fields=("masks",))[
        (0, 1)
    ].target.masks
    assert nothing is not None
    assert nothing.shape == (0, 120, 160)


def test_masks_that_are_missing_or_go_with_proposals_are_refused(index: AnnotationIndex) -> None:
    with pytest.raises(ValueError, match="no masks, or they were not read"):
        DetectionDataset(index, resize=AS_STORED, fields=("masks",))
    proposals = StoredProposals(ends=torch.tensor([0, 0]), boxes=torch.zeros(0, 4), scores=torch.zeros(0))
    with pytest.raises(ValueError, match=r"masks .* proposals from a file; leave data\.proposals empty"):
        DetectionDataset(masked(index)[0], resize=AS_STORED, fields=("masks",), proposals=proposals)


# pasted objects


def pasting(index: AnnotationIndex, probability: float = 1.0, *, seed: int = 0) -> DetectionDataset:
    flip = Augment([{"HorizontalFlip": {"p": 0.5}}])
    return DetectionDataset(index, resize=AS_STORED, augment=flip, seed=seed, fields=("masks",), copy_paste=probability)


def test_objects_of_another_image_are_pasted_but_not_the_ignored(index: AnnotationIndex) -> None:
    with_masks, masks = masked(index)
    pixels, source, boxes = read_image(index.paths[1]), read_image(index.paths[0]), set()
    for position in range(12):
        got = pasting(with_masks)[(position, 1)]
        assert got.target.labels.tolist() == [1]
        boxes.add(tuple(got.target.boxes[0].tolist()))
        assert got.target.masks is not None
        mask = got.target.masks[0].numpy()
        found, flipped = got.image.permute(1, 2, 0).numpy(), masks[0].flip(1)
        own, other = (
            next(image for image in (array, array[:, ::-1]) if (image[where] == found[where]).all())
            for array, where in ((pixels, ~mask), (source, mask))
        )
        assert torch.equal(torch.from_numpy(mask), masks[0] if other is source else flipped)
        assert own.shape == found.shape
    assert boxes == {(10, 20, 30, 40), (50, 20, 70, 40)}  # the other image is augmented as well


def test_an_image_takes_nothing_from_itself(index: AnnotationIndex) -> None:
    with_masks, _ = masked(index)
    for position in range(4):
        plain, got = (pasting(with_masks, probability)[(position, 0)] for probability in (0.0, 1.0))
        assert torch.equal(got.image, plain.image)
        assert torch.equal(got.target.boxes, plain.target.boxes)


def test_pasting_happens_as_often_as_asked_and_by_the_seed(index: AnnotationIndex) -> None:
    with_masks, _ = masked(index)

    def pasted(seed: int) -> list[bool]:
        return [len(pasting(with_masks, 0.25, seed=seed)[(position, 1)].target) == 1 for position in range(120)]

    assert 15 <= sum(pasted(0)) <= 45  # 30 expected, deviation 4.7
    assert pasted(0) == pasted(0)
    assert pasted(0) != pasted(1)


def test_one_to_all_objects_are_pasted(make_index: MakeIndex, index: AnnotationIndex) -> None:
    boxes = [(0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20)]
    three = make_index([[(box, number % 2, False) for number, box in enumerate(boxes)], []], paths=index_paths(index))
    stack = torch.zeros(3, 60, 80, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(stack, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    packed = PackedStrings.pack([encode(mask.numpy())["counts"].decode() for mask in stack])
    dataset = pasting(replace(three, fields={"masks": packed}))
    counts = [len(dataset[(position, 1)].target) for position in range(60)]
    assert all(8 <= counts.count(number) <= 32 for number in (1, 2, 3))  # 20 each expected, deviation 3.7


def test_objects_without_a_mask_are_not_pasted(index: AnnotationIndex) -> None:
    with_masks, masks = masked(index)
    unknown = PackedStrings.pack([encode(np.zeros((60, 80), np.uint8))["counts"].decode()] * len(masks))
    assert len(pasting(replace(with_masks, fields={"masks": unknown}))[(0, 1)].target) == 0


def index_paths(index: AnnotationIndex) -> list[str]:
    return [index.paths[row] for row in range(len(index))]


@pytest.mark.parametrize("resize", [Resize(50, 90), RandomResize((40, 60), 90), Jitter(64, 0.5, 1.5)])
def test_samples_of_a_batch_are_the_same_together_and_alone(resize: Change, index: AnnotationIndex) -> None:
    crop = Augment([{"RandomCrop": {"height": 30, "width": 60, "p": 0.5}}])
    dataset = DetectionDataset(index, resize=resize, augment=crop, seed=3)
    keys = [(position, position % 2) for position in range(8)]
    together, alone = collate(dataset.__getitems__(keys)), collate([dataset[key] for key in keys])
    assert together.paths == alone.paths
    assert together.images.pixels.is_contiguous(memory_format=torch.channels_last)
    for part, names in (("images", ("pixels", "sizes", "seeds")), ("targets", ("boxes", "labels", "ignore", "valid"))):
        for name in names:
            assert torch.equal(getattr(getattr(together, part), name), getattr(getattr(alone, part), name))
