"""Measures the AP of perfect masks of 28 x 28 cells, cropped and pasted by each geometry.

The ground truth of every object is cropped to its box as a training target, and pasted back as if a network had
predicted it; no detector is used.  The figures are upper bounds for detectors of that geometry.

examples:
  RESDET_DATA_ROOT=DATA python tools/mask_oracle.py --json docs/measured/mask_oracle.json
  RESDET_DATA_ROOT=DATA python tools/mask_oracle.py --data coco2017:val --side 14
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from detection.data.cards import data_root, load_dataset
from detection.data.index import AnnotationIndex
from detection.engine.evaluate import make_record
from detection.engine.manifest import made_by
from detection.evaluation.coco import CocoResult, evaluate_coco
from detection.evaluation.record import Record
from detection.files import write_text
from detection.mask_geometry import MaskGeometry, crop_and_resize
from detection.mask_pasting import paste

GEOMETRIES: tuple[MaskGeometry, ...] = get_args(MaskGeometry)
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", default="coco128:seg_val", metavar="CARD:SPLIT", help="default: %(default)s")
    parser.add_argument("--side", type=int, default=28, help="cells of a side (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and what made them, there too")
    return parser.parse_args()


def perfect_record(index: AnnotationIndex, row: int, side: int, geometry: MaskGeometry) -> Record:
    """Returns image ``row`` with a detection for each object: its box, and its mask in ``side`` x ``side`` cells."""
    objects = index.target(row, fields=("masks",))
    objects = objects[~objects.ignore]
    assert objects.masks is not None
    height, width = index.sizes[row].tolist()
    cells = crop_and_resize(objects.masks, objects.boxes, side, geometry=geometry)
    return make_record(
        index,
        row,
        boxes=objects.boxes.numpy(),
        scores=np.ones(len(objects), dtype=np.float32),
        labels=objects.labels.numpy(),
        fields={"masks": tuple(paste(cells, objects.boxes, (height, width), geometry=geometry))},
    )


def measure(index: AnnotationIndex, side: int, geometry: MaskGeometry) -> CocoResult:
    """Returns COCO's metrics of perfect masks of ``side`` x ``side`` cells."""
    records = [perfect_record(index, row, side, geometry) for row in range(len(index))]
    return evaluate_coco(records, index.class_names, iou_type="segm")


def main() -> None:
    args = parse_args()
    index, _ = load_dataset([args.data], data_root(), fields=("masks",))
    objects, found = int((~index.ignore).sum()), {}
    print(f"{args.data}, {objects} objects, {args.side} x {args.side} cells")
    print(f"{'':12}{''.join(f'{name:>7}' for name in COLUMNS)}")
    for geometry in GEOMETRIES:
        result = measure(index, args.side, geometry)
        found[geometry] = {name: getattr(result, name) for name in COLUMNS}
        print(f"{geometry:12}{''.join(f'{100 * value:7.1f}' for value in found[geometry].values())}")
    if args.json:
        content = {**made_by(torch.device("cpu")), "data": args.data, "objects": objects, "side": args.side}
        write_text(args.json, json.dumps(content | {"figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
