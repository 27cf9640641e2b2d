"""Images of any size and number meet a graph of one size and batch, and what it finds is matched with PyTorch's."""

import numpy as np
import pytest
import torch
from torch import Tensor

from detection.export.proof import agreement
from detection.export.runtime import Framed, find_export, open_exported
from detection.structures import Detections, ImageBatch


class Whole:
    """A graph that finds each image as one box, and nothing in images that are black."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, pixels: Tensor, sizes: Tensor) -> list[np.ndarray]:
        self.calls.append((pixels, sizes))
        boxes = torch.cat([torch.zeros(len(sizes), 2), sizes.flip(1).float()], dim=1)[:, None]
        rows = torch.zeros(len(sizes), 1)
        return [part.numpy() for part in (boxes, rows.long(), rows + 0.5, pixels.flatten(1).any(dim=1).long())]


def batch(*sizes: tuple[int, int], value: int = 9) -> ImageBatch:
    return ImageBatch.from_images([torch.full((3, *size), value, dtype=torch.uint8) for size in sizes])


def test_boxes_are_in_pixels_of_the_images_whatever_the_frame_and_calls_are_filled_up() -> None:
    graph = Whole()
    found = Framed(graph, size=(40, 60), batch=2)(batch((40, 60), (31, 17), (80, 60), (7, 120)))
    assert [image.boxes[0].tolist()[2:] for image in found] == [[60, 40], [17, 31], [60, 80], [120, 7]]
    assert [pixels.shape for pixels, _ in graph.calls] == [(2, 3, 40, 60)] * 2
    assert graph.calls[1][1].tolist() == [[40, 30], [3, 60]]
    # With blank images, in which it finds nothing
    graph = Whole()
    assert len(Framed(graph, size=(40, 60), batch=3)(batch((40, 60)))) == 1
    assert not graph.calls[0][0][1:].any()
    (found,) = Framed(Whole(), size=(40, 60), batch=1)(batch((20, 20), value=0))
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx", "model.xml"])
def test_a_damaged_file_is_refused_by_name_and_a_run_directory_is_no_export(name: str, tmp_path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert find_export(tmp_path) is None
    with pytest.raises(ValueError, match="no exported model"):
        open_exported(tmp_path)
    (tmp_path / name).write_bytes(b"nothing that a runtime reads")
    assert find_export(tmp_path) == tmp_path / name
    with pytest.raises(ValueError, match=name):
        open_exported(tmp_path)


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Squares of side 10: (x, score, label)."""
    boxes = torch.tensor([[x, 0, x + 10, 10] for x, _, _ in rows]).float().reshape(-1, 4)
    scores, labels = (torch.tensor([row[place] for row in rows]) for place in (1, 2))
    return Detections(boxes, scores, labels.long())


def test_pairs_are_of_one_class_and_overlap_whatever_their_order() -> None:
    own = detections((0, 0.9, 0), (50, 0.8, 1), (90, 0.5, 0))
    found = agreement([own], [detections((50.5, 0.7, 1), (0, 0.9, 0), (90, 0.5, 2))])
    assert (found.detections, found.exported, found.matched, found.mask) == (3, 3, 2, None)
    assert (found.box, found.score, found.unmatched) == pytest.approx((0.5, 0.1, 1 / 3))
    own = detections((0, 0.9, 0), (0, 0.3, 0))
    assert agreement([own], [own[torch.tensor([1, 0])]]).score == pytest.approx(0)  # equal boxes are paired by score
    none, one = detections(), detections((0, 0.9, 0))
    assert (agreement([none], [none]).unmatched, agreement([one], [none]).unmatched) == (0, 1)
