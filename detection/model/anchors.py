"""Anchors: the reference boxes of the region proposal network, one set per cell of the feature map.

Source: Faster R-CNN, section 3.1.1 (3 scales x 3 ratios; appendix of ResNet: 4 scales on COCO).
Shapes: A anchors per cell, H W height and width of the feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["AnchorGenerator", "cell_points", "deal"]


def deal(sizes: Sequence[float], levels: int) -> list[tuple[float, ...]]:
    """Splits anchor ``sizes`` evenly over ``levels`` feature maps, in their order.

    Raises:
        ValueError: the number of sizes is no multiple of ``levels``.
    """
    count = len(sizes) // levels
    if not count or len(sizes) != count * levels:
        raise ValueError(
            f"anchors.sizes needs equally many sizes for each of the {levels} levels, got {tuple(sizes)}; "
            "list those of the finest level first"
        )
    return [tuple(sizes[count * level : count * (level + 1)]) for level in range(levels)]


def cell_points(
    size: tuple[int, int],
    stride: int,
    *,
    offset: float,
    padded: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Returns a point (H, W, 2) as (x, y) of every cell of a feature map, in pixels of the resized image.

    Args:
        size: (H, W) of the feature map.
        stride: pixels of the image per cell.
        offset: where in its cell the point lies, 0 (top left) to 1.
        padded: (height, width) in pixels of the images of the feature map; if given, cells are whole pixels apart, as
            in torchvision, which on coarse levels can be less than the stride.
        device: device of the points.
    """
    height, width = size
    cells = torch.arange(max(height, width), device=device) + offset
    if padded is None:
        centers = cells * stride
        y, x = centers[:height], centers[:width]
    else:
        y, x = cells[:height] * (padded[0] // height), cells[:width] * (padded[1] // width)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1)


class AnchorGenerator(nn.Module):
    """Lays the same A = sizes x ratios boxes over every cell of a feature map.

    Args:
        stride: pixels of the image per cell.
        sizes: square roots of the anchors' areas, pixels of the resized image.
        ratios: height / width.
        offset: where in its cell an anchor is centred, 0 (top left) to 1.
        rounded: as in torchvision, anchors have whole coordinates in their cell and cells are whole pixels apart, which
            on the coarsest level of a pyramid can be less than the stride.
    """

    cell_anchors: Tensor

    def __init__(
        self,
        stride: int,
        *,
        sizes: Sequence[float],
        ratios: Sequence[float],
        offset: float = 0.5,
        rounded: bool = False,
    ) -> None:
        super().__init__()
        if not sizes or not ratios or min(*sizes, *ratios) <= 0:
            raise ValueError(f"anchors need positive sizes and ratios, got {tuple(sizes)} and {tuple(ratios)}")
        self.stride, self.offset, self.rounded = stride, offset, rounded
        size, ratio = torch.meshgrid(
            torch.tensor(sizes, dtype=torch.float32), torch.tensor(ratios, dtype=torch.float32).sqrt(), indexing="ij"
        )
        half = torch.stack([size / ratio, size * ratio], dim=-1).reshape(-1, 2) / 2  # (A, 2) as (width, height)
        corners = torch.cat([-half, half], dim=1)
        # Computed from the config, so a checkpoint does not need them.
        self.register_buffer("cell_anchors", corners.round() if rounded else corners, persistent=False)

    @property
    def num_anchors(self) -> int:
        """A, per cell."""
        return len(self.cell_anchors)

    def forward(self, height: int, width: int, padded: tuple[int, int] | None = None) -> Tensor:
        """Returns anchors (H * W * A, 4) in pixels of the resized image, row by row, all A of a cell together.

        ``padded`` is the (height, width) in pixels that the feature map was computed from; rounded anchors need it.
        """
        assert padded is not None or not self.rounded
        points = cell_points(
            (height, width),
            self.stride,
            offset=self.offset,
            padded=padded if self.rounded else None,
            device=self.cell_anchors.device,
        )
        return (points[:, :, None, None] + self.cell_anchors.view(-1, 2, 2)).reshape(-1, 4)
