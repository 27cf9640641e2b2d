"""Writes mosaics of a data set's images, large ones with small objects, as a COCO data set with its card.

examples:
  python tools/write_mosaics.py bccd:test mosaics --side 3 --count 4
  resdet test RUN/config.yaml --weights RUN "data.test=[mosaics/card.yaml:test]" test.slice=600
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from detection.data.cards import data_root, load_dataset
from detection.data.index import AnnotationIndex

__all__ = ["main", "write_mosaics"]


def write_mosaics(index: AnnotationIndex, output: Path, *, side: int, count: int) -> None:
    """Writes ``count`` mosaics of ``side`` x ``side`` images in the order of ``index``, each in a cell of one size."""
    used = index.sizes[: count * side * side]
    cell = used.amax(dim=0).tolist()
    (output / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], list[dict[str, Any]]()
    for number in range(1, count + 1):
        canvas = np.zeros((side * cell[0], side * cell[1], 3), np.uint8)
        for place in range(side * side):
            row = (number - 1) * side * side + place
            top, left = place // side * cell[0], place % side * cell[1]
            height, width = index.sizes[row].tolist()
            canvas[top : top + height, left : left + width] = index.image(row)
            annotations += _objects(index, row, image_id=number, corner=(top, left), start=len(annotations))
        Image.fromarray(canvas).save(output / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": canvas.shape[0], "width": canvas.shape[1]})
    categories = [{"id": label, "name": name} for label, name in enumerate(index.class_names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (output / "test.json").write_text(json.dumps(content), encoding="utf-8")
    splits = {"test": {"annotations": "test.json", "images": "images"}}
    card = {"format": "coco", "root": str(output.resolve()), "classes": [*index.class_names], "splits": splits}
    (output / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")


def _objects(
    index: AnnotationIndex, row: int, *, image_id: int, corner: tuple[int, int], start: int
) -> list[dict[str, Any]]:
    target, (top, left) = index.target(row), corner
    rows = zip(target.boxes.tolist(), target.labels.tolist(), target.ignore.tolist(), strict=True)
    return [
        {
            "id": start + number,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x1 + left, y1 + top, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(ignore),
        }
        for number, ((x1, y1, x2, y2), label, ignore) in enumerate(rows, start=1)
    ]


def main() -> None:
    """Parses the command line and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="card:split")
    parser.add_argument("output", type=Path)
    parser.add_argument("--side", type=int, default=3, help="images in a row and in a column (default: %(default)s)")
    parser.add_argument("--count", type=int, default=4, help="mosaics (default: %(default)s)")
    parser.add_argument("--root", help="data root (default: $RESDET_DATA_ROOT, else datasets/)")
    args = parser.parse_args()
    index, _ = load_dataset([args.data], data_root(args.root))
    if len(index) < args.side**2 * args.count:
        parser.error(f"{args.data} has {len(index)} images; make --side or --count smaller")
    write_mosaics(index, args.output, side=args.side, count=args.count)
    print(args.output / "card.yaml")


if __name__ == "__main__":
    main()
