"""Detect objects in your own images: prints them, draws them, and writes predictions.json.

examples:
  python tools/predict.py --weights output/bccd/resnet18_c4 cells.jpg
  python tools/predict.py --weights model.safetensors --output-dir found --min-score 0.7 photos/
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection.data.images import read_image
from detection.data.objects import IMAGE_SUFFIXES
from detection.masks import RLE, paste
from detection.predictor import Predictor
from detection.structures import Detections
from detection.visualize import draw_boxes, save_picture


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--weights", required=True, help="a .safetensors checkpoint, or a run directory")
    parser.add_argument("--output-dir", type=Path, default=Path("output/predictions"), help="(default: %(default)s)")
    parser.add_argument("--min-score", type=float, default=0.5, help="(default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args()


def find_images(paths: list[Path]) -> list[Path]:
    """The image files among ``paths`` and directly in those that are folders.

    Raises:
        ValueError: a path that does not exist, or no image at all.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"no image or folder {path}")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        found += inside
    if not found:
        raise ValueError(f"no image in {', '.join(map(str, paths))}; known endings: {', '.join(IMAGE_SUFFIXES)}")
    return found


def as_records(
    detections: Detections, masks: Sequence[RLE] | None, class_names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One entry per detection; its mask, if there is one, in COCO's compressed run-length code."""
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    records: list[dict[str, Any]] = [
        {"class": class_names[label], "score": score, "box": box} for box, score, label in rows
    ]
    for record, mask in zip(records, masks or (), strict=masks is not None):
        record["mask"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
    return records


def main() -> None:
    args = parse_args()
    images = find_images(args.images)
    predictor = Predictor.load(args.weights, device=args.device)
    records = {}
    for number, path in enumerate(images):
        image = read_image(path)
        found = predictor(image)
        found = found[found.scores >= args.min_score]
        masks = None if found.masks is None else paste(found.masks, found.boxes, image.shape[:2])
        records[str(path)] = as_records(found, masks, predictor.class_names)
        drawn = draw_boxes(
            image, found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), predictor.class_names, masks=masks
        )
        save_picture(args.output_dir / f"{number:05d}_{path.stem}.jpg", drawn)
        counts = {name: sum(r["class"] == name for r in records[str(path)]) for name in predictor.class_names}
        print(f"{path}: {', '.join(f'{count} {name}' for name, count in counts.items() if count) or 'nothing'}")
    (args.output_dir / "predictions.json").write_text(json.dumps(records, indent=1) + "\n")
    print(f"pictures and predictions.json: {args.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
