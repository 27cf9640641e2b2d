"""Images of any size and number meet a graph of one size and batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detection.export.runtime import Framed, find_export, open_exported
from detection.structures import ImageBatch


class Whole:
    """A graph that finds each image as one box, and nothing in images that are black."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, pixels: Tensor, sizes: Tensor) -> list[np.ndarray]:
        self.calls.append((pixels, sizes))
        boxes = torch.cat([torch.zeros(len(sizes), 2), sizes.flip(1).float()], dim=1)[:, None]
        counts = pixels.flatten(1).any(dim=1).long()
        rows = torch.zeros(len(sizes), 1)
        return [part.numpy() for part in (boxes, rows.long(), rows + 0.5, counts)]


def batch(*sizes: tuple[int, int]) -> ImageBatch:
    return ImageBatch.from_images([torch.full((3, *size), 9, dtype=torch.uint8) for size in sizes])


def test_boxes_are_in_pixels_of_the_images_whatever_the_frame() -> None:
    graph = Whole()
    found = Framed(graph, size=(40, 60), batch=2)(batch((40, 60), (31, 17), (80, 60), (7, 120)))
    assert [image.boxes[0].tolist() for image in found] == [
        [0, 0, 60, 40],
        [0, 0, 17, 31],
        [0, 0, 60, 80],
        [0, 0, 120, 7],
    ]
    assert [pixels.shape for pixels, _ in graph.calls] == [(2, 3, 40, 60)] * 2
    assert graph.calls[1][1].tolist() == [[40, 30], [3, 60]]


def test_a_call_is_filled_up_with_blank_images() -> None:
    graph = Whole()
    found = Framed(graph, size=(40, 60), batch=3)(batch((40, 60)))
    assert len(found) == 1
    assert not graph.calls[0][0][1:].any()


def test_nothing_found() -> None:
    black = ImageBatch.from_images([torch.zeros(3, 20, 20, dtype=torch.uint8)])
    (found,) = Framed(Whole(), size=(40, 60), batch=1)(black)
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx", "model.xml"])
def test_a_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"nothing that a runtime reads")
    assert find_export(tmp_path) == tmp_path / name
    with pytest.raises(ValueError, match=name):
        open_exported(tmp_path)


def test_a_run_directory_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert find_export(tmp_path) is None
    with pytest.raises(ValueError, match="no exported model"):
        open_exported(tmp_path)
