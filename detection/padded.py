"""Ground truth of a batch, padded to equally many rows per image, so that no shape depends on a value.

The model works on these alone; ``pad`` and ``ragged`` are the borders to the containers of single images.

Shapes: N images, M rows (G objects, P proposals, D detections), T objects of all images, H W height and width of the
padded batch, S side of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detection.structures import VOID, Detections, Proposals, Target, move, present

__all__ = ["Found", "Regions", "Targets"]

# Rows of targets are padded to a multiple of this, so that a compiled step meets few shapes.
GROUND_TRUTH_MULTIPLE = 8

OWN = frozenset(part.name for part in fields(Target))
OF_IMAGES = ("label_maps", "label_scores")  # fields without a row per object


@dataclass(frozen=True, slots=True)
class Batched:
    """Base of the containers of a batch."""

    boxes: Tensor  # (N, M, 4); anything finite where not valid
    valid: Tensor  # (N, M) bool: the others are padding

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> Self:
        return self._changed(lambda values: move(values, device))

    def pin_memory(self) -> Self:
        return self._changed(Tensor.pin_memory)

    def trimmed(self) -> Self:
        """Returns a copy without the last columns that are padding in every image, except one; waits for a GPU."""
        used = self.valid.any(dim=0)
        width = int((torch.arange(1, len(used) + 1, device=used.device) * used).amax().clamp(min=1))
        return self._with_columns(lambda values: values[:, :width])

    def widened(self, count: int) -> Self:
        """Returns a copy padded to ``count`` columns."""
        return self._with_columns(lambda values: _widened(values, count))

    def copied(self) -> Self:
        """Returns a copy with memory of its own."""
        return self._changed(Tensor.clone)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(values) for name, values in present(self).items()})

    def _with_columns(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Returns a copy with ``change`` applied to the columns (N, M, ...) of objects; fields of whole images stay."""
        whole = {name: values for name, values in present(self).items() if name in OF_IMAGES}
        return replace(replace(self, **dict.fromkeys(whole))._changed(change), **whole)


@dataclass(frozen=True, slots=True)
class Targets(Batched):
    """Ground truth of a batch; M is G."""

    labels: Tensor  # (N, G) int64
    ignore: Tensor  # (N, G) bool
    masks: Tensor | None = None  # (T, H, W) bool, image after image
    mask_rows: Tensor | None = None  # (N, G) int64, the row of ``masks`` of each object
    keypoints: Tensor | None = None  # (N, G, J, 3) x, y and visibility: 0 not labelled, 1 hidden, 2 visible
    label_maps: Tensor | None = None  # (N, H, W) uint8 class of each pixel; VOID where unknown and in the padding
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # (N, G, ...) any further fields, by name

    @property
    def wanted(self) -> Tensor:
        """(N, G) bool: objects that are to be found."""
        return self.valid & ~self.ignore

    @classmethod
    def pad(cls, targets: Sequence[Target]) -> Self:
        """Returns the ``targets`` of N images; G is a multiple of 8, at least 8."""
        count = max(1, *map(len, targets)) if targets else 1
        count = -(-count // GROUND_TRUTH_MULTIPLE) * GROUND_TRUTH_MULTIPLE
        masks = [target.masks for target in targets if target.masks is not None]
        keypoints = [target.keypoints for target in targets if target.keypoints is not None]
        maps = [target.label_map for target in targets if target.label_map is not None]
        padded = cls(
            boxes=_padded([target.boxes for target in targets], count),
            valid=_filled(targets, count),
            labels=_padded([target.labels for target in targets], count),
            ignore=_padded([target.ignore for target in targets], count),
            keypoints=_padded(keypoints, count) if targets and len(keypoints) == len(targets) else None,
            label_maps=_framed(maps, _largest(maps), VOID) if targets and len(maps) == len(targets) else None,
            others=_further(targets, count),
        )
        return padded._with_masks(masks) if len(masks) == len(targets) else padded  # its own

    def framed(self, count: int, masks: int, size: tuple[int, int]) -> Self:
        """Returns a copy with G = ``count`` and, if there are masks, T = ``masks`` of ``size`` (height, width)."""
        wide = replace(self, masks=None).widened(count)
        if self.label_maps is not None:
            wide = replace(wide, label_maps=_framed(self.label_maps, size, VOID))
        if self.masks is None:
            return wide
        rows, height, width = self.masks.shape
        padded = self.masks.new_zeros(masks, *size)
        padded[:rows, :height, :width] = self.masks
        return replace(wide, masks=padded)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        others = {name: change(values) for name, values in self.others.items()}
        own = {name: change(values) for name, values in present(self).items() if name != "others"}
        return replace(self, **own, others=others)

    def _with_masks(self, masks: Sequence[Tensor]) -> Self:
        height, width = max(mask.shape[1] for mask in masks), max(mask.shape[2] for mask in masks)
        counts = [len(mask) for mask in masks]
        joined = torch.zeros((max(sum(counts), 1), height, width), dtype=torch.bool, device=self.boxes.device)
        for rows, mask in zip(joined[: sum(counts)].split(counts), masks, strict=True):
            rows[:, : mask.shape[1], : mask.shape[2]] = mask
        rows = self.valid.flatten().cumsum(0).sub(1).clamp(min=0).view_as(self.valid)
        return replace(self, masks=joined, mask_rows=rows)


@dataclass(frozen=True, slots=True)
class Regions(Batched):
    """Proposals of a batch, best first; M is P."""

    scores: Tensor  # (N, P) objectness logits

    @classmethod
    def pad(cls, proposals: Sequence[Proposals]) -> Self:
        """Returns the ``proposals`` of N images, as many rows as the most of them, at least one."""
        count = max(1, *map(len, proposals)) if proposals else 1
        boxes, scores = [image.boxes for image in proposals], [image.scores for image in proposals]
        return cls(boxes=_padded(boxes, count), valid=_filled(proposals, count), scores=_padded(scores, count))

    def ragged(self) -> list[Proposals]:
        """Returns the proposals of each image without the padding; waits for a GPU."""
        return [
            Proposals(boxes=boxes[valid], scores=scores[valid])
            for boxes, scores, valid in zip(self.boxes, self.scores, self.valid, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Found(Batched):
    """Detections of a batch, best first; M is D."""

    scores: Tensor  # (N, D) probabilities; -inf where not valid
    labels: Tensor  # (N, D) int64
    masks: Tensor | None = None  # (N, D, S, S) probabilities in the box
    keypoints: Tensor | None = None  # (N, D, J, 3) x, y and score
    label_scores: Tensor | None = None  # (N, K, H, W) logits of each class of label maps, of each pixel of the batch

    def ragged(self) -> list[Detections]:
        """Returns the detections of each image without the padding of rows; waits for a GPU.

        ``label_scores`` keep the padding of images: Architecture.ragged takes it off.
        """
        counts = self.valid.sum(dim=1).tolist()  # the valid ones come first
        held = {name: values for name, values in present(self).items() if name != "valid"}
        return [
            Detections(**{name: own[row] if name in OF_IMAGES else own[row, :count] for name, own in held.items()})
            for row, count in enumerate(counts)
        ]


def _largest(maps: Sequence[Tensor]) -> tuple[int, int]:
    """Returns the (height, width) that all ``maps`` (H, W) fit in."""
    return max(image.shape[0] for image in maps), max(image.shape[1] for image in maps)


def _framed(maps: Sequence[Tensor] | Tensor, size: tuple[int, int], fill: int) -> Tensor:
    """Returns (N, *``size``) of N ``maps`` (H, W) at the top left, ``fill`` elsewhere."""
    framed = maps[0].new_full((len(maps), *size), fill)
    for whole, image in zip(framed, maps, strict=True):
        whole[: image.shape[0], : image.shape[1]] = image
    return framed


def _further(targets: Sequence[Target], count: int) -> dict[str, Tensor]:
    """Returns the fields, (N, ``count``, ...) each, that all of ``targets`` have and ``Target`` has not."""
    found = [{name: values for name, values in present(target).items() if name not in OWN} for target in targets]
    shared = [name for name in found[0] if all(name in own for own in found)] if found else []
    return {name: _padded([own[name] for own in found], count) for name in shared}


def _filled(images: Sequence[Target] | Sequence[Proposals], count: int) -> Tensor:
    """Returns (N, ``count``) bool: which rows are no padding."""
    lengths = torch.tensor([len(image) for image in images])
    return (torch.arange(count) < lengths[:, None]).to(images[0].boxes.device)


def _padded(rows: Sequence[Tensor], count: int) -> Tensor:
    """Returns (N, ``count``, ...) of N tensors of at most ``count`` rows; padding is zero."""
    return _widened(pad_sequence(list(rows), batch_first=True), count)


def _widened(values: Tensor, count: int) -> Tensor:
    """Returns (N, ``count``, ...) of ``values`` (N, M, ...); padding is zero."""
    return torch.cat([values, values.new_zeros(len(values), count - values.shape[1], *values.shape[2:])], dim=1)
