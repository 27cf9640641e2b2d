from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from detection.data.dataset import Batch, Sample, collate
from detection.keypoints import KeypointSpec
from detection.structures import Target
from detection.tasks.label_pictures import draw_labels, hatch
from detection.tasks.train_batch import PADDING, draw_batch, drawing_first

MakeTarget = Callable[..., Target]


@pytest.fixture
def batch(make_target) -> Batch:
    """A wide grey image with an object and an ignored region, and a high one without any."""
    wide = make_target([(40, 40, 200, 200), (300, 40, 460, 200)], [0, 1], [False, True])
    shown = (((3, 240, 480), wide), ((3, 480, 240), make_target()))
    images = [(torch.full(size, 128, dtype=torch.uint8), target) for size, target in shown]
    return collate([Sample(row, f"{row}.jpg", *each) for row, each in enumerate(images)])


def test_padding_ignored_regions_and_objects_can_be_told_apart(batch) -> None:
    before, state = batch.images.pixels.clone(), torch.get_rng_state()
    grid = draw_batch(batch, ("cat", "dog"))
    assert torch.equal(batch.images.pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = grid[:640, :640], grid[:640, 644:1284]  # each 480 x 480 drawn at 640
    assert (first[340:620, 20:620] == PADDING).all()
    assert (second[20:620, 340:620] == PADDING).all()
    assert (second[20:620, 20:300] == 128).all()
    assert (first[120:240, 80:240] == 128).all()  # inside the object
    assert (first[120:240, 430:580] != 128).any(axis=2).mean() > 0.2  # inside what is ignored


def test_only_the_first_batch_of_a_fresh_run_is_drawn_and_one_that_cant_be_written_ends_none(batch, tmp_path) -> None:
    batches, path, said = [batch] * 3, tmp_path / "train_batch.jpg", list[str]()

    def load(*, start: int, seed: int) -> list[Batch]:
        return batches[start:]

    drawing = drawing_first(load, path, ("cat", "dog"), say=print)
    assert list(drawing(start=1, seed=0)) == batches[1:]
    assert not path.exists()
    given = iter(drawing(start=0, seed=0))
    assert next(given) is batches[0]
    written = path.read_bytes()
    path.unlink()
    assert [*given] == batches[1:]
    assert not path.exists()
    assert written[:2] == b"\xff\xd8"
    path.write_text("")
    drawing = drawing_first(load, path / "x.jpg", ("cat", "dog"), say=said.append)
    assert (list(drawing(start=0, seed=0)), len(said)) == (batches, 1)


def test_keypoints_are_drawn_where_targets_have_them(make_target) -> None:
    target = replace(make_target([(40, 40, 200, 200)]), keypoints=torch.tensor([[[60.0, 100, 2], [180.0, 100, 1]]]))
    batch = collate([Sample(0, "0.jpg", torch.full((3, 240, 240), 128, dtype=torch.uint8), target)])
    spec = KeypointSpec(("left_eye", "right_eye"), edges=((0, 1),))
    plain, drawn = draw_batch(batch, ("cat",)), draw_batch(batch, ("cat",), spec)
    middle = (slice(260, 274), slice(310, 330))  # between both, at 640 of 240 pixels
    assert (plain[middle] == 128).all()
    assert not (drawn[middle] == 128).all()


def test_labels_of_an_image_are_hatched_where_ignored_and_others_keep_their_inside(make_target) -> None:
    image = np.full((480, 480, 3), 128, np.uint8)
    target = make_target([(20, 40, 120, 140), (220, 40, 320, 140)], [0, 0], [False, True])
    canvas, empty = draw_labels(image, target, ("cat",)), np.zeros((20, 20, 3), np.uint8)
    assert (canvas[60:120, 40:100] == 128).all()
    inside = canvas[60:120, 240:300]
    assert 0.2 < (inside != 128).any(axis=2).mean() < 0.6
    assert (image == 128).all()
    hatch(empty, np.array([30.0, 5, 40, 10]))  # outside
    assert not empty.any()
    points = torch.tensor([[[60.0, 90, 2], [0, 0, 0]], [[270.0, 91, 2], [0, 0, 0]]])
    changed = (canvas != draw_labels(image, replace(target, keypoints=points), ("cat",))).any(axis=2)
    assert changed[90, 60]
    assert not changed[:, 180:].any()  # what is ignored shows none
