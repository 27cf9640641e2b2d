"""Images to predict, from wherever they are: files, folders, addresses, arrays, PIL images, videos and cameras.

Pictures come one by one, so memory does not grow with their number.  What can't be read is a picture without pixels,
which has the reason.
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

URL_BYTES = 64 << 20  # an image of MAX_PIXELS as a JPEG of good quality has less
URL_TIMEOUT, URL_SECONDS = 10.0, 60.0  # without a byte, and in all


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image to predict.

    Attributes:
        source: path or address; "array" or "camera 0" where there is none.
        pixels: (H, W, 3) RGB; None where it can't be read.
        error: why it can't be read, or "".
        frame: its number in a video, from 0.
        fps: frames per second of the video, 0 where it is not known.
    """

    source: str
    pixels: NDArray[np.uint8] | None = None
    error: str = ""
    frame: int | None = None
    fps: float = 0.0

    @property
    def name(self) -> str:
        """The source, of a frame "VIDEO#NUMBER"."""
        return self.source if self.frame is None else f"{self.source}#{self.frame}"


def is_url(source: object) -> bool:
    """Tells whether ``source`` is an address on the web."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def pictures(sources: Source | Iterable[Source], *, max_frames: int | None = None) -> Iterator[Picture]:
    """Yields the image of each of ``sources``; of a folder those in it and its subfolders, of a video its frames.

    Args:
        sources: one, or any number of them.
        max_frames: of each video and camera; None: all, and of a camera without end.

    Raises:
        ValueError: an array that is no image.
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
    """Returns the one image that ``source`` is: a file, an address, an array or a PIL image.

    Raises:
        ImageError: it can't be read, or is no single image.
        ValueError: an array that is no image.
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
    """Returns ``read_picture``'s, or where that can't be read one with the reason."""
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
    """Returns the content at ``url``, which is bounded in size and time.

    Raises:
        ValueError: it has too many bytes.
        OSError: the server refuses, is silent or too slow.
    """
    end, content = time.monotonic() + URL_SECONDS, bytearray()
    # Redirections are followed to http, https and ftp alone, so never to a file of this machine.
    with urlopen(Request(url, headers={"User-Agent": "resdet"}), timeout=URL_TIMEOUT) as response:
        while part := response.read1(1 << 16):
            content += part
            if len(content) > URL_BYTES:
                raise ValueError(f"it has more than {URL_BYTES >> 20} MiB; download it and give the file")
            if time.monotonic() > end:
                raise TimeoutError(f"it did not come in {URL_SECONDS:.0f} s; download it and give the file")
    return bytes(content)
