"""Stores the proposals of a whole data set in one file, for training or testing Fast R-CNN without an RPN.

A .safetensors file with packed arrays: image ids (N,), ends (N,), boxes (M, 4) in pixels of the stored images, best
first within an image, and scores (M,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones.weights.load import UNREADABLE
from detection.data.index import AnnotationIndex
from detection.files import require_file, write_whole
from detection.structures import Proposals

__all__ = ["StoredProposals", "read_proposals", "write_proposals"]

KINDS = {  # array -> its type and number of dimensions
    "image_ids": (torch.int64, 1),
    "ends": (torch.int64, 1),
    "boxes": (torch.float32, 2),
    "scores": (torch.float32, 1),
}
ROUNDING = 0.01  # pixels by which a box may exceed its image


@dataclass(frozen=True, slots=True)
class StoredProposals:
    """The proposals of every image of an index, row by row."""

    ends: Tensor  # (N,) int64
    boxes: Tensor  # (M, 4) float32, pixels of the stored image
    scores: Tensor  # (M,) float32

    def of(self, row: int) -> Proposals:
        """Returns the proposals of image ``row``."""
        rows = slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))
        return Proposals(boxes=self.boxes[rows], scores=self.scores[rows])


def write_proposals(path: Path, proposals: Sequence[Proposals], index: AnnotationIndex) -> None:
    """Writes the proposals of all images of ``index``, in its order and in pixels of the stored images."""
    if len(proposals) != len(index):
        raise ValueError(f"{len(proposals)} lists of proposals for {len(index)} images")
    tensors = {
        "image_ids": index.image_ids.contiguous(),
        "ends": torch.tensor([len(image) for image in proposals], dtype=torch.int64).cumsum(0),
        "boxes": torch.cat([image.boxes for image in proposals]).float().contiguous(),
        "scores": torch.cat([image.scores for image in proposals]).float().contiguous(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: save_file(tensors, temporary))


def read_proposals(path: str | Path, index: AnnotationIndex) -> StoredProposals:
    """Returns the proposals of the file ``path`` in the order of ``index``.

    Raises:
        ValueError: the file is missing or holds no proposals, its images are not those of ``index``, or a box is
            outside its image or without area.
    """
    try:
        require_file(Path(path))
        tensors = load_file(path)
    except UNREADABLE as error:
        raise ValueError(f"proposals {path} can't be read: {error}") from error
    missing = [key for key in KINDS if key not in tensors]
    if missing:
        raise ValueError(f"{path} is no file of proposals: it lacks {', '.join(missing)}")
    for key, kind in KINDS.items():
        if (tensors[key].dtype, tensors[key].ndim) != kind:
            raise ValueError(f"{path} is no file of proposals: {key} is {tensors[key].dtype}, {tensors[key].ndim}-d")
    image_ids, ends, boxes, scores = (tensors[key] for key in KINDS)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    if (
        boxes.shape[1:] != (4,)
        or len(image_ids) != len(ends)
        or len(boxes) != len(scores)
        or (counts < 0).any()
        or counts.sum() != len(boxes)
        or (ends > len(boxes)).any()  # differences of huge numbers overflow
    ):
        raise ValueError(f"{path} is no file of proposals: its arrays have shapes that do not agree")
    _check_images(path, image_ids, index)
    stored = StoredProposals(ends, boxes, scores)
    order = {number: row for row, number in enumerate(image_ids.tolist())}
    aligned = [stored.of(order[number]) for number in index.image_ids.tolist()]
    result = StoredProposals(
        torch.tensor([len(image) for image in aligned], dtype=torch.int64).cumsum(0),
        torch.cat([image.boxes for image in aligned]),
        torch.cat([image.scores for image in aligned]),
    )
    _check_boxes(path, result, index)
    return result


def _check_images(path: str | Path, image_ids: Tensor, index: AnnotationIndex) -> None:
    stored, wanted = set(image_ids.tolist()), set(index.image_ids.tolist())
    lacking, foreign = sorted(wanted - stored), sorted(stored - wanted)
    if lacking or foreign or len(stored) < len(image_ids):
        raise ValueError(
            f"proposals {path} are for other images than the data set's: they lack {len(lacking)} of its "
            f"{len(wanted)} images (ids {lacking[:5]}) and have {len(foreign)} others (ids {foreign[:5]})"
        )


def _check_boxes(path: str | Path, proposals: StoredProposals, index: AnnotationIndex) -> None:
    counts = torch.diff(proposals.ends, prepend=proposals.ends.new_zeros(1))
    rows = torch.arange(len(index)).repeat_interleave(counts)
    limits = index.sizes[rows].float().flip(1).repeat(1, 2)  # (M, 4) as width, height, width, height
    boxes = proposals.boxes
    wrong = (boxes < -ROUNDING).any(dim=1) | (boxes > limits + ROUNDING).any(dim=1)
    wrong |= (boxes[:, 2:] <= boxes[:, :2]).any(dim=1) | ~boxes.isfinite().all(dim=1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        height, width = index.sizes[rows[first]].tolist()
        raise ValueError(
            f"proposals {path}: {int(wrong.sum())} boxes lie outside their image or have no area, the first "
            f"{boxes[first].tolist()} in {index.paths[int(rows[first])]} ({width}x{height})"
        )
