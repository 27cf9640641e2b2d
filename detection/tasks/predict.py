"""Detects objects in image files: pictures with the boxes drawn, and predictions.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detection.data.images import read_image
from detection.data.objects import IMAGE_SUFFIXES
from detection.files import write_text
from detection.masks import RLE, paste
from detection.predictor import Predictor
from detection.structures import Detections
from detection.visualize import draw_boxes, save_picture

__all__ = ["as_records", "find_images", "predict_images"]


def predict_images(
    paths: Sequence[Path],
    weights: str | Path,
    output: Path,
    *,
    min_score: float = 0.5,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> dict[str, list[dict[str, Any]]]:
    """Returns the detections in image files by path, and writes pictures and predictions.json to ``output``.

    Args:
        paths: image files, or folders of them.
        weights: a .safetensors checkpoint or a run directory.
        output: directory, made if needed.
        min_score: detections below this score are left out.
        device: "auto", "cpu" or "cuda".
        say: takes a line for each image.

    Raises:
        ValueError: a path that does not exist, no image, an image or a checkpoint that can't be read.
    """
    images = find_images(paths)
    predictor = Predictor.load(weights, device=device)
    records = {}
    for number, path in enumerate(images):
        picture = output / f"{number:05d}_{path.stem}.jpg"
        records[str(path)] = _predict_image(predictor, path, picture, min_score)
        counts = {name: sum(r["class"] == name for r in records[str(path)]) for name in predictor.class_names}
        say(f"{path}: {', '.join(f'{count} {name}' for name, count in counts.items() if count) or 'nothing'}")
    write_text(output / "predictions.json", json.dumps(records, indent=1) + "\n")
    return records


def _predict_image(predictor: Predictor, path: Path, picture: Path, min_score: float) -> list[dict[str, Any]]:
    """Returns the records of the image at ``path`` and draws them into the file ``picture``."""
    image = read_image(path)
    found = predictor(image)
    found = found[found.scores >= min_score]
    masks = None if found.masks is None else paste(found.masks, found.boxes, image.shape[:2])
    drawn = draw_boxes(
        image, found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), predictor.class_names, masks=masks
    )
    save_picture(picture, drawn)
    return as_records(found, masks, predictor.class_names)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Returns the image files among ``paths`` and directly in those that are folders.

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
    """Returns one entry per detection; its mask, if there is one, in COCO's compressed run-length code."""
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    records: list[dict[str, Any]] = [
        {"class": class_names[label], "score": score, "box": box} for box, score, label in rows
    ]
    for record, mask in zip(records, masks or (), strict=masks is not None):
        record["mask"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
    return records
