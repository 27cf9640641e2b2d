"""Mirrors detection/data/proposals.py, and what the data set and the loaders do with stored proposals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from detection.config.detection import DetectorDataConfig
from detection.data.dataset import DetectionDataset, Sample, collate
from detection.data.index import AnnotationIndex
from detection.data.loader import build_train_loader
from detection.data.proposals import StoredProposals, read_proposals, write_proposals
from detection.data.transforms import Augment, Resize
from detection.structures import Proposals, Target

MakeIndex = Callable[..., AnnotationIndex]
FLIP = {"HorizontalFlip": {"p": 1.0}}
BOXES = {5: [[0, 0, 80, 60], [1, 2, 3.5, 4.25]], 6: [], 7: [[10, 20, 30, 40]]}  # by image id; images are 80x60


def make_proposals(boxes: Sequence[Sequence[float]]) -> Proposals:
    """Scores fall from 0, which is as logits do."""
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Proposals(boxes=rows, scores=-torch.arange(len(rows)).float())


@pytest.fixture
def index(make_index: MakeIndex) -> AnnotationIndex:
    return make_index([[], [], []], ids=[5, 6, 7])


@pytest.fixture
def path(index: AnnotationIndex, tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "new" / "proposals.safetensors"
    write_proposals(path, [make_proposals(boxes) for boxes in BOXES.values()], index)
    return path


def rewrite(path: Path, **changes: Tensor | None) -> None:
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


class TestRoundTrip:
    """What is written comes back."""

    def test_in_the_same_order(self, path: Path, index: AnnotationIndex) -> None:
        stored = read_proposals(path, index)
        for row, boxes in enumerate(BOXES.values()):
            found, expected = stored.of(row), make_proposals(boxes)
            assert torch.equal(found.boxes, expected.boxes)
            assert torch.equal(found.scores, expected.scores)

    @pytest.mark.parametrize("ids", [(7, 5, 6), (6, 7, 5), (7, 6, 5)])
    def test_in_another_order(self, path: Path, make_index: MakeIndex, ids: tuple[int, ...]) -> None:
        stored = read_proposals(path, make_index([[], [], []], ids=list(ids)))
        for row, number in enumerate(ids):
            assert stored.of(row).boxes.tolist() == BOXES[number]

    def test_without_any_proposal(self, index: AnnotationIndex, tmp_path: Path) -> None:
        write_proposals(tmp_path / "none.safetensors", [make_proposals([])] * 3, index)
        stored = read_proposals(tmp_path / "none.safetensors", index)
        assert [stored.of(row).boxes.shape for row in range(3)] == [(0, 4)] * 3

    def test_boxes_that_rounding_put_a_hair_outside(self, index: AnnotationIndex, tmp_path: Path) -> None:
        box = [-0.005, 0, 80.005, 60]
        write_proposals(tmp_path / "a.safetensors", [make_proposals([box])] * 3, index)
        torch.testing.assert_close(read_proposals(tmp_path / "a.safetensors", index).boxes[0], torch.tensor(box))

    def test_nothing_else_is_left_in_the_folder(self, path: Path) -> None:
        assert [file.name for file in path.parent.iterdir()] == ["proposals.safetensors"]

    def test_as_many_lists_as_images(self, index: AnnotationIndex, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="2 lists of proposals for 3 images"):
            write_proposals(tmp_path / "a.safetensors", [make_proposals([])] * 2, index)
        assert not list(tmp_path.iterdir())


class TestRefusals:
    """Files that would train a detector on nonsense, each named with what is wrong."""

    def test_other_images(self, path: Path, make_index: MakeIndex) -> None:
        with pytest.raises(ValueError, match=r"proposals\.safetensors are for other images") as error:
            read_proposals(path, make_index([[], [], []], ids=[5, 8, 9]))
        for part in ("lack 2 of its 3 images (ids [8, 9])", "have 2 others (ids [6, 7])", str(path)):
            assert part in str(error.value)

    def test_missing_image(self, path: Path, make_index: MakeIndex) -> None:
        with pytest.raises(ValueError, match="other images") as error:
            read_proposals(path, make_index([[], [], [], []], ids=[5, 6, 7, 8]))
        for part in ("lack 1 of its 4 images (ids [8])", "have 0 others"):
            assert part in str(error.value)

    def test_more_images(self, path: Path, make_index: MakeIndex) -> None:
        with pytest.raises(ValueError, match="other images") as error:
            read_proposals(path, make_index([[], []], ids=[5, 7]))
        for part in ("lack 0 of its 2 images", "have 1 others (ids [6])"):
            assert part in str(error.value)

    def test_the_same_image_twice(self, path: Path, index: AnnotationIndex, make_index: MakeIndex) -> None:
        rewrite(path, image_ids=torch.tensor([5, 7, 7]))
        for wanted in (index, make_index([[], []], ids=[5, 7])):
            with pytest.raises(ValueError, match="other images"):
                read_proposals(path, wanted)

    @pytest.mark.parametrize(
        "box",
        [
            (70, 20, 80.5, 40),
            (10, 20, 30, 60.5),
            (-0.5, 20, 30, 40),
            (10, -0.5, 30, 40),
            (30, 20, 30, 40),
            (10, 40, 30, 20),
            (10, 20, float("nan"), 40),
            (float("nan"),) * 4,
            (10, 20, float("inf"), 40),
        ],
        ids=["right", "below", "left", "above", "no_width", "upside_down", "nan", "all_nan", "infinite"],
    )
    def test_boxes(self, path: Path, index: AnnotationIndex, box: Sequence[float]) -> None:
        boxes = load_file(path)["boxes"]
        boxes[-1] = torch.tensor(box)
        rewrite(path, boxes=boxes)
        with pytest.raises(ValueError, match="1 boxes lie outside their image or have no area") as error:
            read_proposals(path, index)
        for part in (str(path), str(boxes[-1].tolist()), "2.jpg (80x60)"):
            assert part in str(error.value)

    def test_boxes_are_held_against_their_own_image(self, path: Path, make_index: MakeIndex) -> None:
        sizes = {5: (60, 80), 6: (60, 80), 7: (39, 80)}  # height, width
        index = make_index([[], [], []], ids=[7, 6, 5], sizes=[sizes[7], sizes[6], sizes[5]])
        with pytest.raises(ValueError, match=r"1 boxes .*\[10\.0, 20\.0, 30\.0, 40\.0\] in 0\.jpg \(80x39\)"):
            read_proposals(path, index)

    @pytest.mark.parametrize("content", [b"", b"no tensors", b"\x08\0\0\0\0\0\0\0{}{}{}{}"])
    def test_file_of_another_kind(self, path: Path, index: AnnotationIndex, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"proposals\.safetensors can't be read"):
            read_proposals(path, index)

    def test_no_such_file(self, path: Path, index: AnnotationIndex) -> None:
        with pytest.raises(ValueError, match=r"absent\.safetensors can't be read"):
            read_proposals(path.with_name("absent.safetensors"), index)

    @pytest.mark.parametrize("key", ["image_ids", "ends", "boxes", "scores"])
    def test_missing_array(self, path: Path, index: AnnotationIndex, key: str) -> None:
        rewrite(path, **{key: None})
        with pytest.raises(ValueError, match=f"is no file of proposals: it lacks {key}") as error:
            read_proposals(path, index)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize(
        "changes",
        [
            {"ends": torch.tensor([2, 2])},
            {"ends": torch.tensor([2, 2, 2])},
            {"ends": torch.tensor([2, 2, 4])},
            {"ends": torch.tensor([2, 1, 3])},
            {"ends": torch.tensor([-1, 2, 3])},
            {"scores": torch.zeros(2)},
            {"boxes": torch.ones(2, 4)},
            {"image_ids": torch.tensor([5, 6, 7, 8])},
            {"boxes": torch.ones(3, 5)},
        ],
        ids=["images", "few", "many", "falling", "negative", "scores", "boxes", "image_ids", "columns"],
    )
    def test_lengths_that_do_not_agree(self, path: Path, index: AnnotationIndex, changes: dict[str, Tensor]) -> None:
        rewrite(path, **changes)
        with pytest.raises(ValueError, match=r"proposals\.safetensors is no file of proposals"):
            read_proposals(path, index)


RECTANGLE = (8, 12, 30, 44)  # x1, y1, x2, y2


@pytest.fixture
def picture(make_index: MakeIndex, tmp_path: Path) -> AnnotationIndex:
    """A green rectangle on black in 60x80 (height x width), annotated as a dog beside an ignored cat."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    x1, y1, x2, y2 = RECTANGLE
    pixels[y1:y2, x1:x2] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    objects = [(RECTANGLE, 1, False), ((50, 10, 70, 30), 0, True)]
    return make_index([objects], ids=[5], paths=[str(tmp_path / "a.png")])


def stored(*boxes: Sequence[float]) -> StoredProposals:
    proposals = make_proposals(boxes)
    return StoredProposals(torch.tensor([len(boxes)]), proposals.boxes, proposals.scores)


def bounds(image: Tensor) -> list[float]:
    """(x1, y1, x2, y2) around the green of ``image`` (3, H, W)."""
    y, x = (image[1] > 127).nonzero().unbind(dim=1)
    return [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1]


class TestDataset:
    """Proposals follow the pixels."""

    @pytest.mark.parametrize("steps", [[], [FLIP], [{"VerticalFlip": {"p": 1.0}}], [FLIP, {"Transpose": {"p": 1.0}}]])
    @pytest.mark.parametrize("shorter", [60, 120])
    def test_boxes_bound_the_same_rectangle(
        self, picture: AnnotationIndex, steps: list[dict[str, Any]], shorter: int
    ) -> None:
        proposals = stored((0, 0, 80, 60), RECTANGLE)
        resize, augment = Resize(shorter, 1000), Augment(steps)
        dataset = DetectionDataset(picture, resize=resize, augment=augment, proposals=proposals)
        got = dataset[(0, 0)]
        assert got.proposals is not None
        height, width = got.image.shape[-2:]
        wanted = torch.tensor([[0, 0, width, height], bounds(got.image)], dtype=torch.float32)
        torch.testing.assert_close(got.proposals.boxes, wanted, atol=1e-3, rtol=0)

    def test_a_flip_moves_them(self, picture: AnnotationIndex) -> None:
        # Else the test above could pass on a picture that stayed as it was.
        dataset = DetectionDataset(
            picture, resize=Resize(60, 1000), augment=Augment([FLIP]), proposals=stored(RECTANGLE)
        )
        got = dataset[(0, 0)]
        assert got.proposals is not None
        torch.testing.assert_close(got.proposals.boxes, torch.tensor([[50.0, 12, 72, 44]]), atol=1e-3, rtol=0)

    @pytest.mark.parametrize("steps", [None, [], [FLIP]])
    def test_objects_stay_as_they_are_without(
        self, picture: AnnotationIndex, steps: list[dict[str, Any]] | None
    ) -> None:
        augment = None if steps is None else Augment(steps)
        with_them, without = (
            DetectionDataset(picture, resize=Resize(90, 1000), augment=augment, proposals=proposals)[(3, 0)]
            for proposals in (stored((1, 2, 70, 50), (5, 5, 9, 9)), None)
        )
        assert without.proposals is None
        assert torch.equal(with_them.image, without.image)
        assert with_them.target.labels.tolist() == without.target.labels.tolist() == [1, 0]
        assert with_them.target.ignore.tolist() == without.target.ignore.tolist() == [False, True]
        torch.testing.assert_close(with_them.target.boxes, without.target.boxes)

    def test_best_stays_first(self, picture: AnnotationIndex) -> None:
        boxes = [(40 - n, 5, 50 - n, 20) for n in range(8)]
        dataset = DetectionDataset(picture, resize=Resize(60, 1000), augment=Augment([]), proposals=stored(*boxes))
        got = dataset[(0, 0)].proposals
        assert got is not None
        assert got.boxes.tolist() == [list(box) for box in boxes]
        assert (got.scores.diff() < 0).all()

    def test_an_image_without_proposals(self, picture: AnnotationIndex) -> None:
        dataset = DetectionDataset(picture, resize=Resize(60, 1000), augment=Augment([FLIP]), proposals=stored())
        got = dataset[(0, 0)]
        assert got.proposals is not None
        assert got.proposals.boxes.shape == (0, 4)
        assert len(got.target) == 2

    def test_one_that_a_crop_cuts_away_is_dropped(self, picture: AnnotationIndex) -> None:
        crop = Augment([{"Crop": {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 60, "p": 1}}])
        proposals = stored((50, 10, 70, 30), RECTANGLE, (20, 10, 60, 30))
        got = DetectionDataset(picture, resize=Resize(40, 1000), augment=crop, proposals=proposals)[(0, 0)]
        assert got.proposals is not None
        wanted = torch.tensor([RECTANGLE, (20, 10, 40, 30)], dtype=torch.float32)
        torch.testing.assert_close(got.proposals.boxes, wanted, atol=1e-3, rtol=0)
        assert got.target.labels.tolist() == [1]


class TestBatches:
    """Proposals on their way to the detector."""

    def sample(self, proposals: Proposals | None) -> Sample:
        none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), ignore=torch.zeros(0).bool())
        return Sample(0, "a.jpg", torch.zeros(3, 4, 6, dtype=torch.uint8), none, proposals)

    def test_a_batch_keeps_the_order(self) -> None:
        batch = collate([self.sample(make_proposals(boxes)) for boxes in BOXES.values()])
        assert batch.proposals is not None
        assert [image.boxes.tolist() for image in batch.proposals.ragged()] == list(BOXES.values())

    def test_a_batch_without(self) -> None:
        assert collate([self.sample(None), self.sample(None)]).proposals is None

    def test_a_batch_moves_as_a_whole(self) -> None:
        moved = collate([self.sample(make_proposals(BOXES[7]))]).to("meta")
        assert moved.proposals is not None
        assert moved.proposals.boxes.is_meta

    def test_the_loader_reads_the_file(self, picture: AnnotationIndex, tmp_path: Path) -> None:
        write_proposals(tmp_path / "p.safetensors", [make_proposals([RECTANGLE])], picture)
        config = DetectorDataConfig(augment=(FLIP,), shorter_side=60, longer_side=1000, workers=0)
        path = tmp_path / "p.safetensors"
        batch = next(iter(build_train_loader(picture, config, batch_size=1, seed=0, proposals=path)))
        assert batch.proposals is not None
        wanted = torch.tensor([bounds(batch.images.pixels[0])], dtype=torch.float32)
        torch.testing.assert_close(batch.proposals.boxes[0], wanted, atol=1e-3, rtol=0)

    def test_a_file_for_other_images_ends_the_training_before_it_begins(
        self, path: Path, picture: AnnotationIndex
    ) -> None:
        with pytest.raises(ValueError, match="other images"):
            build_train_loader(picture, DetectorDataConfig(workers=0), batch_size=1, seed=0, proposals=path)
