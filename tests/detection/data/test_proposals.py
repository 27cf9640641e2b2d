"""Mirrors detection/data/proposals.py, and what the data set and the loaders do with stored proposals."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from detection.config.detection import DetectorDataConfig
from detection.data.dataset import DetectionDataset, Sample, collate
from detection.data.loader import build_train_loader
from detection.data.proposals import StoredProposals, read_proposals, write_proposals
from detection.data.transforms import Augment, Resize
from detection.structures import Proposals

FLIP = {"HorizontalFlip": {"p": 1.0}}
BOXES = {5: [[0, 0, 80, 60], [1, 2, 3.5, 4.25]], 6: [], 7: [[10, 20, 30, 40]]}  # by image id; images are 80x60
RECTANGLE = (8, 12, 30, 44)  # x1, y1, x2, y2


def make_proposals(boxes):
    """Scores fall from 0, which is as logits do."""
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Proposals(boxes=rows, scores=-torch.arange(len(rows)).float())


@pytest.fixture
def index(make_index):
    return make_index([[], [], []], ids=[5, 6, 7])


@pytest.fixture
def path(index, tmp_path):
    """A good file."""
    path = tmp_path / "new/proposals.safetensors"
    write_proposals(path, [make_proposals(boxes) for boxes in BOXES.values()], index)
    return path


def rewrite(path, **changes) -> None:
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_what_is_written_comes_back_in_any_order_none_and_a_hair_outside(path, make_index, index, tmp_path) -> None:
    for ids in ([5, 6, 7], [7, 5, 6], [6, 7, 5]):
        stored = read_proposals(path, make_index([[], [], []], ids=ids))
        for row, number in enumerate(ids):
            found, expected = stored.of(row), make_proposals(BOXES[number])
            assert torch.equal(found.boxes, expected.boxes)
            assert torch.equal(found.scores, expected.scores)
    assert [file.name for file in path.parent.iterdir()] == ["proposals.safetensors"]
    path, box = tmp_path / "a.safetensors", [-0.005, 0, 80.005, 60]
    write_proposals(path, [make_proposals(boxes) for boxes in ([], [box], [])], index)
    stored = read_proposals(path, index)
    assert stored.of(0).boxes.shape == (0, 4)
    torch.testing.assert_close(stored.boxes, torch.tensor([box]))
    with pytest.raises(ValueError, match="2 lists of proposals for 3 images"):
        write_proposals(tmp_path / "b.safetensors", [make_proposals([])] * 2, index)
    assert not (tmp_path / "b.safetensors").exists()


def test_proposals_of_other_images_are_refused(path, make_index) -> None:
    for ids, parts in (
        ([5, 8, 9], ("lack 2 of its 3 images (ids [8, 9])", "have 2 others (ids [6, 7])")),
        ([5, 6, 7, 8], ("lack 1 of its 4 images (ids [8])", "have 0 others")),
        ([5, 7], ("lack 0 of its 2 images", "have 1 others (ids [6])")),
    ):
        with pytest.raises(ValueError, match=r"proposals\.safetensors are for other images") as error:
            read_proposals(path, make_index([[] for _ in ids], ids=ids))
        assert all(part in str(error.value) for part in (*parts, str(path)))


def test_boxes_outside_their_own_image_or_without_area_are_refused(path, index, make_index) -> None:
    good, (nan, inf) = load_file(path)["boxes"], (float("nan"), float("inf"))
    outside = [(70, 20, 80.5, 40), (10, 20, 30, 60.5), (-0.5, 20, 30, 40), (10, -0.5, 30, 40)]
    for box in [*outside, (30, 20, 30, 40), (10, 40, 30, 20), (10, 20, nan, 40), (10, 20, inf, 40)]:
        boxes = torch.cat([good[:-1], torch.tensor([box], dtype=torch.float32)])
        rewrite(path, boxes=boxes)
        with pytest.raises(ValueError, match="1 boxes lie outside their image or have no area") as error:
            read_proposals(path, index)
        assert all(part in str(error.value) for part in (str(path), str(boxes[-1].tolist()), "2.jpg (80x60)"))
    rewrite(path, boxes=good)
    index = make_index([[], [], []], ids=[7, 6, 5], sizes=[(39, 80), (60, 80), (60, 80)])
    with pytest.raises(ValueError, match=r"1 boxes .*\[10\.0, 20\.0, 30\.0, 40\.0\] in 0\.jpg \(80x39\)"):
        read_proposals(path, index)


def test_files_whose_arrays_are_missing_or_do_not_agree_are_refused(path, index) -> None:
    whole = load_file(path)
    changes = [*((key, None) for key in ("image_ids", "ends", "boxes", "scores"))]
    changes += [("ends", torch.tensor(ends)) for ends in ([2, 2], [2, 2, 2], [2, 2, 4], [2, 1, 3], [-1, 2, 3])]
    changes += [("ends", torch.tensor(ends)) for ends in ([2, 2**63 - 1, 3], [2**62, -(2**62), 3])]  # which overflow
    changes += [("scores", torch.zeros(2)), ("boxes", torch.ones(2, 4)), ("boxes", torch.ones(3, 5))]
    changes += [("image_ids", torch.tensor(ids)) for ids in ([5, 6, 7, 8], [5, 7, 7])]
    for key, value in changes:
        save_file(whole, path)
        rewrite(path, **{key: value})
        said = f"is no file of proposals: it lacks {key}" if value is None else "is no file of proposals|other images"
        with pytest.raises(ValueError, match=rf"proposals\.safetensors.*({said})"):
            read_proposals(path, index)
    for content in (b"", b"no tensors", b"\x08\0\0\0\0\0\0\0{}{}{}{}", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"proposals\.safetensors can't be read"):
            read_proposals(path, index)


@pytest.fixture
def picture(make_index, draw, tmp_path):
    """A green rectangle on black in 60x80 (height x width), annotated as a dog beside an ignored cat."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[12:44, 8:30] = (0, 255, 0)
    path = draw(tmp_path / "a.png", pixels)
    return make_index([[(RECTANGLE, 1, False), ((50, 10, 70, 30), 0, True)]], ids=[5], paths=[str(path)])


def sample_of(picture, boxes, *steps, shorter=60) -> Any:
    """The picture as a sample with these proposals, or with none if ``boxes`` is None."""
    proposals = make_proposals(boxes or [])
    stored = StoredProposals(torch.tensor([len(proposals.boxes)]), proposals.boxes, proposals.scores)
    stored = None if boxes is None else stored
    dataset = DetectionDataset(picture, resize=Resize(shorter, 1000), augment=Augment(steps), proposals=stored)
    return dataset[(0, 0)]


def bounds(image):
    """(x1, y1, x2, y2) around the green of ``image`` (3, H, W)."""
    y, x = (image[1] > 127).nonzero().unbind(dim=1)
    return [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1]


def assert_boxes(found, *expected) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [[], [FLIP], [{"VerticalFlip": {"p": 1.0}}], [FLIP, {"Transpose": {"p": 1.0}}]])
@pytest.mark.parametrize("shorter", [60, 120])
def test_boxes_bound_the_same_rectangle_and_leave_the_objects(picture, steps, shorter) -> None:
    got, without = (sample_of(picture, boxes, *steps, shorter=shorter) for boxes in ([(0, 0, 80, 60), RECTANGLE], None))
    height, width = got.image.shape[-2:]
    assert_boxes(got.proposals.boxes, [0, 0, width, height], bounds(got.image))
    assert without.proposals is None
    assert torch.equal(got.image, without.image)
    for name in ("boxes", "labels", "ignore"):
        assert torch.equal(getattr(got.target, name), getattr(without.target, name))


def test_boxes_move_in_their_order_and_go_where_a_crop_cuts_them_away(picture) -> None:
    assert_boxes(sample_of(picture, [RECTANGLE], FLIP).proposals.boxes, (50, 12, 72, 44))
    boxes = [[40 - n, 5, 50 - n, 20] for n in range(8)]
    got = sample_of(picture, boxes).proposals
    assert (got.boxes.tolist(), (got.scores.diff() < 0).all().item()) == (boxes, True)  # the best stays first
    got = sample_of(picture, [], FLIP)
    assert (got.proposals.boxes.shape, len(got.target)) == ((0, 4), 2)
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 60, "p": 1}}
    got = sample_of(picture, [(50, 10, 70, 30), RECTANGLE, (20, 10, 60, 30)], crop, shorter=40)
    assert_boxes(got.proposals.boxes, RECTANGLE, (20, 10, 40, 30))
    assert got.target.labels.tolist() == [1]


def test_a_batch_keeps_their_order_and_moves_as_a_whole(make_target) -> None:
    def sample(boxes):
        proposals = None if boxes is None else make_proposals(boxes)
        return Sample(0, "a.jpg", torch.zeros(3, 4, 6, dtype=torch.uint8), make_target(), proposals)

    batch: Any = collate([sample(boxes) for boxes in BOXES.values()])
    assert [image.boxes.tolist() for image in batch.proposals.ragged()] == list(BOXES.values())
    assert batch.to("meta").proposals.boxes.is_meta
    assert collate([sample(None), sample(None)]).proposals is None


def test_the_loader_reads_the_file_and_refuses_that_of_other_images(picture, path) -> None:
    config = DetectorDataConfig(augment=(FLIP,), shorter_side=60, longer_side=1000, workers=0)
    with pytest.raises(ValueError, match="other images"):
        build_train_loader(picture, config, batch_size=1, seed=0, proposals=path)
    write_proposals(path, [make_proposals([RECTANGLE])], picture)
    batch: Any = next(iter(build_train_loader(picture, config, batch_size=1, seed=0, proposals=path)))
    assert_boxes(batch.proposals.boxes[0], bounds(batch.images.pixels[0]))
