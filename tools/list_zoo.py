"""Lists the published detectors, including those that do not load: the table of docs/weights.md.

examples:
  python tools/list_zoo.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detection.weights.published import REFUSED, ZOO, Entry

RECIPES = Path(__file__).parents[1] / "configs" / "coco" / "modern"
HEADER = (
    "name",
    "from",
    "tested on",
    "box AP",
    "mask AP, keypoint AP, mean IoU, PQ",
    "state",
    "recipe in configs/coco/modern",
)


def rows() -> list[tuple[str, ...]]:
    """Returns the cells of a line for each detector."""
    refused = [(f"`{name}`", "detectron2", "", "", "", f"refused: {reason}", "") for name, reason in REFUSED.items()]
    return [_row(entry) for entry in ZOO] + refused


def line(cells: tuple[str, ...]) -> str:
    """Returns ``cells`` as a line of a table."""
    return f"| {' | '.join(cells)} |"


def _row(entry: Entry) -> tuple[str, ...]:
    ap = "" if entry.ap is None else f"{entry.ap:.1f}"
    other_ap = "" if entry.mask_ap is None else f"{entry.mask_ap:.1f}"
    if entry.keypoint_ap is not None:
        other_ap = f"keypoints {entry.keypoint_ap:.1f}"
    if entry.pq is not None:
        other_ap += f" (PQ {entry.pq:.1f})"
    if entry.miou is not None:
        other_ap = f"IoU {entry.miou:.1f} (pixels {entry.pixel_accuracy:.1f})"
    if entry.ap50 is not None:
        ap += f" (AP50 {entry.ap50:.1f})"
    recipe = RECIPES / f"{entry.name.lower().replace('_r_', '_r').replace('_x_', '_x')}.yaml"
    name = recipe.name if recipe.is_file() else ""
    return f"`{entry.name}`", entry.source, entry.data, ap, other_ap, "loads", name


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_args()
    for cells in (HEADER, ("---",) * len(HEADER), *rows()):
        print(line(cells))
