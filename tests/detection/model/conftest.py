"""Objects with masks and samples of regions, which the tests of later stages share."""

from collections.abc import Callable, Sequence

import pytest
import torch

from detection.model.box_stage import RegionSample
from detection.model.select import gather_rows
from detection.padded import Targets
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
def make_sample() -> Callable[..., RegionSample]:
    """Of each image: positive regions with the rows of their objects, one region of the background, then padding."""

    def make(
        targets: Targets,
        boxes: Sequence[Sequence[Sequence[float]]],
        objects: Sequence[Sequence[int]],
        *,
        background: int,
    ) -> RegionSample:
        most, counts = max(map(len, objects)) + 2, torch.tensor([[len(own)] for own in objects])
        rows = torch.tensor([[*own, *[0] * (most - len(own))] for own in objects])
        regions = [[*own, (0, 0, 9, 9), *[(0, 0, 0, 0)] * (most - 1 - len(own))] for own in boxes]
        positive, valid = torch.arange(most) < counts, torch.arange(most) <= counts
        labels = torch.where(positive, targets.labels.gather(1, rows), background)
        filled = torch.tensor(regions, dtype=torch.float32)
        return RegionSample(filled, labels, rows, gather_rows(targets.boxes, rows), positive, valid)

    return make
