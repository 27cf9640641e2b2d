"""Detects objects in images, folders, videos and cameras, and writes pictures and predictions.json.

OUTPUT/predictions.json        name -> detections, or {"error": reason} for an image that failed; the name of a frame
                               is VIDEO#NUMBER
OUTPUT/predictions.json.part   the same while it is written; remains after an interruption
OUTPUT/PATH                    picture of an image; PATH is relative to the folder that all sources share
OUTPUT/PATH.mp4                drawn frames of a video or camera
OUTPUT/PATH.labels.png         label map of an image (not of videos), from semantic and panoptic networks: palette image
                               of class indices from 0, and 255 where nothing is predicted
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from detection.data.objects import IMAGE_SUFFIXES
from detection.data.readers.image_files import images_below
from detection.data.sources import is_url
from detection.data.video import VideoFile
from detection.evaluation.printable import printable
from detection.label_overlay import save_labels
from detection.prediction import Prediction
from detection.predictor import MinScore, Predictor
from detection.progress import SCREEN
from detection.visualize import WRITTEN, save_picture

__all__ = ["OutputNames", "find_sources", "free_folder", "predict_sources"]

PREDICTIONS = "predictions.json"
CliSource = Path | str | int  # a file or folder, a URL, or the number of a camera


def predict_sources(
    sources: Sequence[CliSource],
    predictor: Predictor,
    output: Path,
    *,
    min_score: MinScore | None = None,
    max_frames: int | None = None,
    say: Callable[[str], None] = SCREEN.print,
) -> int:
    """Writes pictures, videos and predictions.json to ``output``; returns how many images or videos failed.

    Args:
        sources: image and video files, folders of images, addresses, numbers of cameras.
        predictor: the detector.
        output: directory, made if needed; it must not hold a prediction.
        min_score: score threshold, one for all classes or by class; None: the predictor's threshold.
        max_frames: maximum number of frames of each video and camera.
        say: called with a line for each image and video.

    Raises:
        ValueError: a missing path, no image, an unknown class, or a prediction in ``output``.
        OSError: a file can't be written.
    """
    found, draw = find_sources(sources), _Drawer(output, OutputNames(sources))
    if min_score is None and predictor.finds_objects:
        say(f"detections of score {predictor.threshold.score:.2f} or more: {predictor.threshold.origin}")
    failed, seen = 0, 0
    stream = predictor.stream(found, min_score=min_score, max_frames=max_frames)
    with _written(output) as write:

        def written(prediction: Prediction) -> Prediction:
            nonlocal failed, seen
            write(prediction.picture.name, {"error": prediction.error} if prediction.error else prediction.records())
            failed, seen = failed + bool(prediction.error), seen + 1
            return prediction

        for (_, is_video), predictions in groupby(map(written, stream), key=_film):
            for line in draw(predictions, is_video=is_video):
                say(printable(line))
    if failed:
        say(f"{failed} of {seen} images failed; {output / PREDICTIONS} says why")
    return failed


def _film(prediction: Prediction) -> tuple[str, bool]:
    """Returns the source, and whether it is a video."""
    return prediction.picture.source, prediction.picture.frame is not None


class _Drawer:
    """Writes pictures and videos with detections drawn, and yields a line about each."""

    def __init__(self, output: Path, names: OutputNames) -> None:
        self.output, self.names = output, names

    def __call__(self, predictions: Iterable[Prediction], *, is_video: bool) -> Iterator[str]:
        """Yields a line for each image, or one for a video."""
        return iter([self._video(predictions)]) if is_video else map(self._image, predictions)

    def _image(self, prediction: Prediction) -> str:
        if prediction.error:
            return f"error: {prediction.error}"
        path = save_picture(self.output / self.names.of(prediction.picture.source), prediction.plot())
        if prediction.label_map is not None:
            save_labels(path.with_name(f"{path.name}.labels.png"), prediction.label_map, prediction.label_names)
        return f"{prediction.picture.name}: {_Counts().add(prediction)}"

    def _video(self, predictions: Iterable[Prediction]) -> str:
        """Draws frames of one size into one file; leaves out frames that could not be predicted."""
        found, frames, source = _Counts(), 0, ""
        with ExitStack() as opened:
            file = None
            for prediction in predictions:
                source = prediction.picture.source
                if prediction.error:
                    continue
                drawn, frames = prediction.plot(), frames + 1
                if file is None:
                    path = self.output / self.names.of(source, suffix=".mp4")
                    size = drawn.shape[0], drawn.shape[1]
                    file = opened.enter_context(VideoFile(path, fps=prediction.picture.fps, size=size))
                file.add(drawn)
                found.add(prediction)
        return f"{source}: {frames} frames with {found}"


class _Counts:
    """Counts of the objects of each class, and the mean pixel share of each class of stuff."""

    def __init__(self) -> None:
        self.objects, self.shares, self.classes, self.images = Counter[str](), Counter[str](), (), 0

    def add(self, prediction: Prediction) -> Self:
        self.objects.update(prediction.names)
        self.shares.update({entry["class"]: entry["share"] for entry in prediction.records() if "share" in entry})
        self.classes, self.images = prediction.class_names, self.images + 1
        return self

    def __str__(self) -> str:
        objects = [f"{self.objects[name]} {name}" for name in self.classes if self.objects[name]]
        shares = [f"{100 * share / self.images:.0f} % {name}" for name, share in self.shares.most_common()]
        return ", ".join(objects + shares) or "nothing"


class OutputNames:
    """Paths of pictures in an output folder: the paths of the sources relative to the folder that all share.

    Paths are unique, even on file systems that treat "A.jpg" and "a.jpg" as the same.

    Args:
        sources: sources as the user gave them.
    """

    def __init__(self, sources: Iterable[CliSource]) -> None:
        folders = [_folder(source) for source in sources if isinstance(source, Path)]
        try:
            self._base = os.path.commonpath(folders) if folders else ""
        except ValueError:  # paths on several drives of Windows
            self._base = ""
        self._taken: set[str] = set()

    def of(self, source: str, *, suffix: str = "") -> Path:
        """Returns the path for the picture of ``source``; it ends in ``suffix``, or in that of an image format."""
        path = self._relative(source)
        if path.suffix.lower() not in ((suffix,) if suffix else WRITTEN):
            path = path.with_name(path.name + (suffix or ".jpg"))
        free, number = path, 1
        while free.as_posix().casefold() in self._taken:
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        self._taken.add(free.as_posix().casefold())
        return free

    def _relative(self, source: str) -> Path:
        if is_url(source):
            parts = urlsplit(source)
            return Path(_plain(parts.netloc), *[_plain(part) for part in parts.path.split("/") if _plain(part)])
        path = _absolute(source)
        if self._base and path.is_relative_to(self._base):
            return path.relative_to(self._base)
        return Path(*[_plain(part) for part in path.parts if _plain(part)])


def _folder(path: Path) -> str:
    return str(_absolute(path if path.is_dir() else path.parent))


def _absolute(path: str | Path) -> Path:
    """Returns ``path`` as an absolute path without "..", without following links."""
    return Path(os.path.abspath(path))  # noqa: PTH100  # resolve() follows links


def _plain(part: str) -> str:
    """Returns a part of an address as a safe file name, without characters that lead to other folders."""
    return re.sub(r"[^\w.\-]+", "_", part).strip("._")


def free_folder(folder: Path) -> Path:
    """Returns ``folder``, or the first of folder-2, folder-3, ... if it holds a prediction already."""
    number, free = 1, folder
    while _holds_prediction(free):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def find_sources(sources: Sequence[CliSource]) -> list[CliSource]:
    """Returns ``sources``, with folders replaced by the images in them and their subfolders, without repetitions.

    Hidden files, such as those of macOS ("._photo.jpg"), and pictures of earlier predictions are skipped.

    Raises:
        ValueError: a missing path, or no image at all.
    """
    found: dict[CliSource, None] = {}
    for source in sources:
        if not isinstance(source, Path):
            found[source] = None
        elif source.is_dir():
            found |= dict.fromkeys(_images_in(source))
        elif source.exists() or source.is_symlink():  # a dangling link is reported later, with the unreadable images
            found[source] = None
        else:
            raise ValueError(f"no image or folder {source}")
    if not found:
        raise ValueError(f"no image in {', '.join(map(str, sources))}; known endings: {', '.join(IMAGE_SUFFIXES)}")
    return [*found]


def _images_in(folder: Path) -> Iterator[Path]:
    known: dict[Path, bool] = {folder: False}  # whether a folder belongs to an earlier prediction

    def predicted(place: Path) -> bool:
        if place not in known:
            known[place] = predicted(place.parent) or _holds_prediction(place)
        return known[place]

    return (path for path in images_below(folder) if not predicted(path.parent))


@contextmanager
def _written(output: Path) -> Iterator[Callable[[str, Any], None]]:
    """Yields a function that writes the entry of an image to predictions.json.part, which is renamed at the end."""
    if _holds_prediction(output):
        raise ValueError(f"{output} holds a prediction already; choose another --output-dir, or remove it")
    output.mkdir(parents=True, exist_ok=True)
    part, separator = output / f"{PREDICTIONS}.part", "{"
    with part.open("x", encoding="utf-8") as stream:

        def write(name: str, entry: Any) -> None:
            nonlocal separator
            # Each entry without its braces, so that the entries form one mapping.
            stream.write(separator + json.dumps({name: entry}, indent=1)[1:-2])
            stream.flush()
            separator = ","

        yield write
        stream.write("\n}\n" if separator == "," else "{}\n")
    part.replace(output / PREDICTIONS)


def _holds_prediction(folder: Path) -> bool:
    return any((folder / name).exists() for name in (PREDICTIONS, f"{PREDICTIONS}.part"))
