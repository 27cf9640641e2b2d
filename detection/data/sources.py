"""Reads images to predict from files, folders, URLs, arrays, PIL images, videos and cameras.

Pictures are yielded one by one, so memory does not grow with their number.  An unreadable source gives a picture
without pixels but with the error.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TypeGuard
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detection.data.images import UNREADABLE, ImageError, read_image, to_rgb
from detection.data.readers.image_files import images_below
from detection.data.video import VIDEO_SUFFIXES, VideoError, frames

__all__ = ["Picture", "Source", "is_url", "pictures", "read_picture"]

Source = str | Path | int | NDArray[np.uint8] | Image.Image  # a number is a camera

URL_BYTES = 64 << 20  # more than a JPEG of good quality with MAX_PIXELS
URL_TIMEOUT, URL_SECONDS = 10.0, 60.0  # seconds without a byte, and in all


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image to predict.

    Attributes:
        source: path or URL, or a name such as "array" or "camera 0".
        pixels: (H, W, 3) RGB; None if it can't be read.
        error: why it can't be read, or "".
        frame: number of the frame in a video, from 0.
        fps: frames per second of the video, 0 if unknown.
    """

    source: str
    pixels: NDArray[np.uint8] | None = None
    error: str = ""
    frame: int | None = None
    fps: float = 0.0

    @property
    def name(self) -> str:
        """The source; for a frame "VIDEO#NUMBER"."""
        return self.source if self.frame is None else f"{self.source}#{self.frame}"


def is_url(source: object) -> bool:
    """Returns whether ``source`` is a URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def pictures(sources: Source | Iterable[Source], *, max_frames: int | None = None) -> Iterator[Picture]:
    """Yields the images of ``sources``; a folder gives those in it and its subfolders, a video its frames.

    Args:
        sources: one source or several.
        max_frames: limit for each video and camera; None: all frames, and a camera never ends.

    Raises:
        ValueError: an array is no image.
    """
    if isinstance(sources, str | Path | int | np.ndarray | Image.Image):
        sources = [sources]
    for source in sources:
        if isinstance(source, int) or _is_video(source):
            yield from _frames(source, max_frames)
        elif isinstance(source, str | Path) and not is_url(source) and Path(source).is_dir():
            yield from map(_loaded, images_below(Path(source)))
        else:
            yield _loaded(source)


def read_picture(source: Source) -> Picture:
    """Returns the single image of ``source``: a file, a URL, an array or a PIL image.

    Raises:
        ImageError: the source can't be read, or is no single image.
        ValueError: an array is no image.
    """
    if isinstance(source, int) or _is_video(source) or (not is_url(source) and _is_folder(source)):
        raise ImageError(f"{source} is no single image; read it with predictor.stream({source!r})")
    if isinstance(source, np.ndarray):
        _check_array(source)
        return Picture("array", source)
    if isinstance(source, Image.Image):
        return Picture(getattr(source, "filename", "") or "PIL image", _from_pil(source))
    if is_url(source):
        return Picture(str(source), _from_url(str(source)))
    return Picture(str(source), read_image(source))


def _loaded(source: Source) -> Picture:
    """Returns the picture of ``read_picture``; if it can't be read, one with the error."""
    try:
        return read_picture(source)
    except (ImageError, OSError) as error:
        name, text = str(source), str(error)
        return Picture(name, error=text if name in text else f"image {name} can't be read: {text}")


def _frames(source: str | Path | int, max_frames: int | None) -> Iterator[Picture]:
    name = f"camera {source}" if isinstance(source, int) else str(source)
    try:
        for number, (pixels, fps) in enumerate(frames(source, max_frames=max_frames)):
            yield Picture(name, pixels, frame=number, fps=fps)
    except VideoError as error:
        yield Picture(name, error=str(error))


def _is_video(source: Source) -> TypeGuard[str | Path]:
    if not isinstance(source, str | Path) or is_url(source):
        return False
    return str(source).lower().endswith(VIDEO_SUFFIXES) and not Path(source).is_dir()


def _is_folder(source: Source) -> bool:
    return isinstance(source, str | Path) and Path(source).is_dir()


def _check_array(image: NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except UNREADABLE as error:
        raise ImageError(f"a PIL image of mode {image.mode} can't be read: {error}") from error


def _from_url(url: str) -> NDArray[np.uint8]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image")
        try:
            path.write_bytes(_download(url))
        except (URLError, HTTPException, OSError, ValueError) as error:
            raise ImageError(f"image {url} can't be read: {error}") from error
        try:
            return read_image(path)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), url)) from error


def _download(url: str) -> bytes:
    """Returns the content at ``url``, within limits of size and time.

    Raises:
        ValueError: the content has too many bytes.
        OSError: the server refuses, does not answer or is too slow.
    """
    end, content = time.monotonic() + URL_SECONDS, bytearray()
    # urllib follows redirects only to http, https and ftp, so never to a file of this machine.
    with urlopen(Request(url, headers={"User-Agent": "resdet"}), timeout=URL_TIMEOUT) as response:
        while part := response.read1(1 << 16):
            content += part
            if len(content) > URL_BYTES:
                raise ValueError(f"it has more than {URL_BYTES >> 20} MiB; download it and pass its path")
            if time.monotonic() > end:
                raise TimeoutError(f"it took more than {URL_SECONDS:.0f} s; download the file and pass its path")
    return bytes(content)
