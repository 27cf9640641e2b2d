"""Objects with masks, and losses of regions and detections, which the tests of later stages share."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from detection.model.box_stage import RegionSample
from detection.model.select import gather_rows
from detection.padded import Found, Targets
from detection.structures import Target


@pytest.fixture(scope="session")
def make_masked(make_target: Callable[..., Target]) -> Callable[..., Target]:
    """Objects whose masks fill their boxes, but for rows that are ``empty``."""

    def make(
        *boxes: Sequence[int], labels: Sequence[int] = (), empty: Sequence[int] = (), size: tuple[int, int] = (128, 128)
    ) -> Target:
        masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for row, (x1, y1, x2, y2) in enumerate(boxes):
            masks[row, y1:y2, x1:x2] = row not in empty
        return make_target(boxes, labels, masks=masks)

    return make


@pytest.fixture(scope="session")
def losses_of() -> Callable[..., dict[str, Tensor]]:
    """A stage's losses of each image's positive regions with the rows of their objects; one of the background follows
    them, whose label is no class, then padding.
    """

    def losses(stage: Any, feature: Tensor, images: Sequence[Target], boxes: Any, objects: Any, *seeds: Tensor) -> Any:
        targets, most = Targets.pad(images), max(map(len, objects)) + 2
        counts = torch.tensor([[len(own)] for own in objects])
        rows = torch.tensor([[*own, *[0] * (most - len(own))] for own in objects])
        regions = [[*own, (0, 0, 9, 9), *[(0, 0, 0, 0)] * (most - 1 - len(own))] for own in boxes]
        positive, valid = torch.arange(most) < counts, torch.arange(most) <= counts
        labels, filled = torch.where(positive, targets.labels.gather(1, rows), 99), torch.tensor(regions).float()
        sample = RegionSample(filled, labels, rows, gather_rows(targets.boxes, rows), positive, valid)
        return stage.losses([feature], sample, targets, *seeds)

    return losses


@pytest.fixture(scope="session")
def make_found() -> Callable[..., Found]:
    """Detections (N, D), of which those with the label -1 are padding, with the score 0."""

    def make(boxes: Any, labels: Any) -> Found:
        rows, valid = torch.tensor(labels, dtype=torch.int64), torch.tensor(labels) >= 0
        shaped = torch.tensor(boxes, dtype=torch.float32).view(*rows.shape, 4)
        return Found(shaped, valid, valid.float(), rows.clamp(min=0))

    return make
