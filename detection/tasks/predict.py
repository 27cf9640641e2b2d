"""Detects objects in image files: pictures with the boxes drawn, and predictions.json.

OUTPUT/predictions.json        path -> detections, or {"error": why} for an image that can't be read or predicted
OUTPUT/predictions.json.part   the same as far as it is written, until the end or where that did not come
OUTPUT/00000_NAME.jpg          pictures, numbered as the images are
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detection.data.images import read_image
from detection.data.objects import IMAGE_SUFFIXES
from detection.data.readers.image_files import images_below
from detection.evaluation.printable import printable
from detection.mask_geometry import paste
from detection.masks import RLE
from detection.predictor import Predictor
from detection.structures import Detections
from detection.visualize import draw_boxes, save_picture

__all__ = ["as_records", "find_images", "free_folder", "predict_images"]

PREDICTIONS = "predictions.json"
Records = list[dict[str, Any]]


def predict_images(
    paths: Sequence[Path],
    weights: str | Path,
    output: Path,
    *,
    min_score: float = 0.5,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> int:
    """Writes pictures and predictions.json to ``output``; returns how many images can't be read.

    Args:
        paths: image files, or folders of them.
        weights: a .safetensors checkpoint or a run directory.
        output: directory, made if needed; it must not hold a prediction.
        min_score: detections below this score are left out.
        device: "auto", "cpu" or "cuda".
        say: takes a line for each image.

    Raises:
        ValueError: a path that does not exist, no image, a bad checkpoint, or a prediction in ``output``.
        OSError: a file can't be written.
    """
    images = find_images(paths)
    predictor = Predictor.load(weights, device=device)
    failed = 0
    with _written(output) as write:
        for number, path in enumerate(images):
            try:
                records = _predict_image(predictor, path, output / f"{number:05d}_{path.stem}.jpg", min_score)
            except UnreadableError as error:
                failed += 1
                write(path, {"error": str(error)})
                say(printable(f"error: {error}"))
                continue
            write(path, records)
            counts = {name: sum(r["class"] == name for r in records) for name in predictor.class_names}
            found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            say(printable(f"{path}: {found or 'nothing'}"))
    if failed:
        say(f"{failed} of {len(images)} images can't be read; {output / PREDICTIONS} says why")
    return failed


class UnreadableError(ValueError):
    """An image that can't be read, or predicted."""


def free_folder(folder: Path) -> Path:
    """Returns ``folder``, or the first of folder-2, folder-3, ... if it holds a prediction already."""
    number, free = 1, folder
    while _holds_prediction(free):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Returns the image files among ``paths`` and in those that are folders and their subfolders, each once.

    Hidden ones are passed over, as those that macOS lays beside others ("._photo.jpg"), and the pictures of earlier
    predictions.

    Raises:
        ValueError: a path that does not exist, or no image at all.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists() and not path.is_symlink():  # a dangling link is told with the images that can't be read
            raise ValueError(f"no image or folder {path}")
        found |= dict.fromkeys(_images_in(path) if path.is_dir() else [path])
    if not found:
        raise ValueError(f"no image in {', '.join(map(str, paths))}; known endings: {', '.join(IMAGE_SUFFIXES)}")
    return [*found]


def as_records(detections: Detections, masks: Sequence[RLE] | None, class_names: tuple[str, ...]) -> Records:
    """Returns one entry per detection; its mask, if there is one, in COCO's compressed run-length code."""
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    records: Records = [{"class": class_names[label], "score": score, "box": box} for box, score, label in rows]
    for record, mask in zip(records, masks or (), strict=masks is not None):
        record["mask"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
    return records


def _images_in(folder: Path) -> list[Path]:
    found = [*images_below(folder)]
    predictions = {place for place in {path.parent for path in found} if place != folder and _holds_prediction(place)}
    return [path for path in found if path.parent not in predictions]


def _predict_image(predictor: Predictor, path: Path, picture: Path, min_score: float) -> Records:
    """Returns the records of the image at ``path`` and draws them into the file ``picture``."""
    try:
        image = read_image(path)
    except (OSError, ValueError) as error:
        named = str(error) if str(path) in str(error) else f"image {path} can't be read: {error}"
        raise UnreadableError(named) from error
    try:
        found = predictor(image)
        found = found[found.scores >= min_score]
        masks = None
        if found.masks is not None:
            masks = paste(found.masks, found.boxes, image.shape[:2], geometry=predictor.mask_geometry)
    except (RuntimeError, ValueError, MemoryError) as error:  # too large for the memory, or too thin for the network
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise UnreadableError(f"image {path} of {size} pixels can't be predicted: {error}") from error
    drawn = draw_boxes(
        image, found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), predictor.class_names, masks=masks
    )
    save_picture(picture, drawn)
    return as_records(found, masks, predictor.class_names)


@contextmanager
def _written(output: Path) -> Iterator[Callable[[Path, Any], None]]:
    """Gives what writes the entry of an image to ``output``/predictions.json, whose name comes with the last one."""
    if _holds_prediction(output):
        raise ValueError(f"{output} holds a prediction already; choose another --output-dir, or remove it")
    output.mkdir(parents=True, exist_ok=True)
    part, separator = output / f"{PREDICTIONS}.part", "{"
    with part.open("x", encoding="utf-8") as stream:

        def write(path: Path, entry: Any) -> None:
            nonlocal separator
            # A mapping of one entry, without its brackets: the whole is one mapping in the end.
            stream.write(separator + json.dumps({str(path): entry}, indent=1)[1:-2])
            stream.flush()
            separator = ","

        yield write
        stream.write("\n}\n")
    part.replace(output / PREDICTIONS)


def _holds_prediction(folder: Path) -> bool:
    return any((folder / name).exists() for name in (PREDICTIONS, f"{PREDICTIONS}.part"))
