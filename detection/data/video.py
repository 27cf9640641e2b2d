"""Reads frames of a video file or camera one at a time, and writes video files, with OpenCV's FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.files import require_file

__all__ = ["VIDEO_SUFFIXES", "VideoError", "VideoFile", "frames"]

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")

FPS = 25.0  # frames per second of a written video if its source does not tell
MISSING = 0.1  # largest fraction of a file's declared frames that may be missing at its end


class VideoError(ValueError):
    """A video or camera that can't be read."""


def frames(source: str | Path | int, *, max_frames: int | None = None) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yields each frame (H, W, 3), RGB and upright, with the source's frames per second, or 0 if unknown.

    Args:
        source: file, or number of a camera.
        max_frames: number of frames to read; None: all.

    Raises:
        VideoError: the source can't be opened, has no frame, or ends long before its declared length.
    """
    if not isinstance(source, int):
        try:
            require_file(Path(source))
        except (OSError, ValueError) as error:
            raise VideoError(f"video {source} can't be read: {error}") from error
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    what, count = f"camera {source}" if isinstance(source, int) else f"video {source}", 0
    try:
        fps, expected = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        while max_frames is None or count < max_frames:
            found, frame = capture.read()
            if not found:
                break
            count += 1
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8), fps if 0 < fps < 1000 else 0.0
    finally:
        capture.release()
    if not count:
        repair = (
            "check its number and that no other program uses it" if isinstance(source, int) else "convert it to MP4"
        )
        raise VideoError(f"{what} can't be read: OpenCV finds no frame; {repair}")
    if max_frames is None and not isinstance(source, int) and count < (1 - MISSING) * expected:
        raise VideoError(f"{what} ends after {count} of {expected:.0f} frames: the file is cut or damaged")


class VideoFile:
    """Writes an MP4 file picture by picture; the end of the ``with`` block closes it.

    Args:
        path: file that ends in .mp4; its folder is created.
        fps: frames per second; 0: 25.
        size: (height, width) of the pictures.

    Raises:
        ValueError: the file can't be written.
    """

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.size = path, size
        codec = cv2.VideoWriter.fourcc(*"mp4v")  # in every build of OpenCV; most lack H.264
        self._writer = cv2.VideoWriter(str(path), codec, fps or FPS, (size[1], size[0]))
        if not self._writer.isOpened():
            raise ValueError(f"can't write the video {path} of {size[1]}x{size[0]} pixels")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.release()

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Adds ``picture`` (H, W, 3), RGB; one of another size is resized."""
        if picture.shape[:2] != self.size:
            picture = np.asarray(cv2.resize(picture, (self.size[1], self.size[0])), np.uint8)
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
