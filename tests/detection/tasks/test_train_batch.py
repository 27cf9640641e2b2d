from collections.abc import Callable
from dataclasses import replace

import torch

from detection.data.dataset import Batch, Sample, collate
from detection.keypoints import KeypointSpec
from detection.structures import Target
from detection.tasks.train_batch import PADDING, draw_batch, drawing_first

MakeTarget = Callable[..., Target]


def make_batch(make_target: MakeTarget) -> Batch:
    """A wide grey image with an object and an ignored region, and a high one without any."""
    wide = make_target([(40, 40, 200, 200), (300, 40, 460, 200)], [0, 1], [False, True])
    images = [torch.full((3, 240, 480), 128, dtype=torch.uint8), torch.full((3, 480, 240), 128, dtype=torch.uint8)]
    samples = [
        Sample(row, f"{row}.jpg", image, t)
        for row, (image, t) in enumerate(zip(images, (wide, make_target()), strict=True))
    ]
    return collate(samples)


def test_padding_ignored_regions_and_objects_can_be_told_apart(make_target) -> None:
    grid = draw_batch(make_batch(make_target), ("cat", "dog"))
    first, second = grid[:640, :640], grid[:640, 644:1284]  # each 480 x 480 drawn at 640
    assert (first[340:620, 20:620] == PADDING).all()
    assert (second[20:620, 340:620] == PADDING).all()
    assert (second[20:620, 20:300] == 128).all()
    assert (first[120:240, 80:240] == 128).all()  # inside the object
    assert (first[120:240, 430:580] != 128).any(axis=2).mean() > 0.2  # inside what is ignored


def test_only_the_first_batch_of_a_fresh_run_is_drawn(make_target, tmp_path) -> None:
    batches, path = [make_batch(make_target)] * 3, tmp_path / "train_batch.jpg"

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


def test_drawing_changes_neither_the_batch_nor_random_numbers(make_target) -> None:
    batch = make_batch(make_target)
    before, state = batch.images.pixels.clone(), torch.get_rng_state()
    draw_batch(batch, ("cat", "dog"))
    assert torch.equal(batch.images.pixels, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_picture_that_cant_be_written_ends_no_run(make_target, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    said = list[str]()
    drawing = drawing_first(
        lambda **_: [make_batch(make_target)], tmp_path / "file" / "x.jpg", ("cat", "dog"), say=said.append
    )
    assert len(list(drawing(start=0))) == 1
    assert len(said) == 1


def test_keypoints_are_drawn_where_targets_have_them(make_target) -> None:
    target = replace(make_target([(40, 40, 200, 200)]), keypoints=torch.tensor([[[60.0, 100, 2], [180.0, 100, 1]]]))
    batch = collate([Sample(0, "0.jpg", torch.full((3, 240, 240), 128, dtype=torch.uint8), target)])
    spec = KeypointSpec(("left_eye", "right_eye"), edges=((0, 1),))
    plain, drawn = draw_batch(batch, ("cat",)), draw_batch(batch, ("cat",), spec)
    middle = (slice(260, 274), slice(310, 330))  # between both, at 640 of 240 pixels
    assert (plain[middle] == 128).all()
    assert not (drawn[middle] == 128).all()
