"""Mirrors detection/data/images.py."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, Dataset

from detection.data.images import ImageError, check_header, image_size, read_image

RED, BLUE = (254, 0, 0), (0, 0, 254)


def assert_color(pixels: NDArray[np.uint8], color: tuple[int, int, int]) -> None:
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.reshape(-1, 3).astype(int), np.broadcast_to(color, (pixels.size // 3, 3)), atol=4)


def photograph(path: Path, *, orientation: int | None = None) -> Path:
    """A photograph of 40x60 (height x width), red on the left and blue on the right."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = RED, BLUE
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, quality=95, subsampling=0, exif=exif)
    return path


# kinds of files


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_pixels_come_as_they_are_stored(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)  # which only webp reads
    read = read_image(path, size=(5, 7))
    np.testing.assert_array_equal(read, pixels)
    assert read.dtype == np.uint8


def test_a_jpeg_is_rgb_not_bgr(tmp_path: Path) -> None:
    pixels = read_image(str(photograph(tmp_path / "a.jpg")), size=(40, 60))
    assert_color(pixels[:, :30], RED)
    assert_color(pixels[:, 34:], BLUE)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_greyscale_becomes_rgb(tmp_path: Path, name: str) -> None:
    Image.new("L", (8, 6), 100).save(tmp_path / name)
    pixels = read_image(tmp_path / name, size=(6, 8))
    assert pixels.shape == (6, 8, 3)
    assert_color(pixels, (100, 100, 100))


def test_black_and_white_becomes_rgb(tmp_path: Path) -> None:
    Image.new("1", (8, 6), 1).save(tmp_path / "a.png")
    assert_color(read_image(tmp_path / "a.png"), (255, 255, 255))


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])], ids=["opaque", "one colour", "per colour"])
def test_a_palette_with_transparency_becomes_rgb(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=transparency)
    pixels = read_image(tmp_path / "a.png", size=(6, 8))
    assert_color(pixels[1:], (0, 255, 0))
    assert_color(pixels[:1, :1], (255, 0, 0))


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (10, 20, 30, 0)), ("LA", (10, 0))])
def test_transparency_is_left_out(tmp_path: Path, mode: str, color: tuple[int, ...]) -> None:
    Image.new(mode, (8, 6), color).save(tmp_path / "a.png")
    assert_color(read_image(tmp_path / "a.png"), (10, 20, 30) if mode == "RGBA" else (10, 10, 10))


def test_a_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    pixels = read_image(tmp_path / "a.jpg", size=(6, 8))
    assert pixels.shape == (6, 8, 3)
    assert_color(pixels, (255, 0, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [12, 16])
def test_greys_of_twelve_and_sixteen_bits_fill_eight(tmp_path: Path, suffix: str, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 8 * 6).reshape(6, 8).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(ramp).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat((ramp >> (bits - 8))[..., None], 3, axis=2))


# files that are no pictures


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(ValueError, match=re.escape(f"image {path} can't be read") + ".*truncated"):
        read_image(path)


def test_a_truncated_png_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=re.escape(f"image {path} can't be read")):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"GIF of a cat", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"image {path} can't be read")) as error:
        read_image(path)
    assert "Reader" not in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"image {tmp_path / 'a.jpg'} can't be read")):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=re.escape(f"image {tmp_path} can't be read")):
        read_image(tmp_path)


def test_a_header_that_claims_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photograph(tmp_path / "a.jpg")
    for limit in (2000, 1000):  # Pillow warns over its limit of pixels and raises over twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=re.escape(f"image {path} can't be read")):
            read_image(path)


def test_two_threads_that_read_at_a_time_leave_the_warning_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = photograph(tmp_path / "1.jpg"), photograph(tmp_path / "2.jpg")
    first_inside, second_inside, first_done = Event(), Event(), Event()
    open_image, before = Image.open, list(warnings.filters)

    def open_overlapping(stream: io.BufferedReader, formats: tuple[str, ...]) -> Image.Image:
        """Keeps the first inside until the second is, and the second until the first is done."""
        is_first = stream.name == str(first)
        (first_inside if is_first else second_inside).set()
        (second_inside if is_first else first_done).wait(timeout=1)
        return open_image(stream, formats=formats)

    monkeypatch.setattr(Image, "open", open_overlapping)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(read_image, first)
        first_inside.wait(timeout=1)
        other = pool.submit(read_image, second)
        one.result()
        first_done.set()
        other.result()
    assert list(warnings.filters) == before


# sizes and EXIF


def test_a_size_that_disagrees_is_named(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    message = f"image {path} is 60x40 pixels, its annotation says 61x40; correct the annotation or the file"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_image(path, size=(40, 61))


def test_a_turned_photograph_is_put_upright(tmp_path: Path) -> None:
    pixels = read_image(photograph(tmp_path / "a.jpg", orientation=6), size=(60, 40))  # a quarter turn clockwise
    assert pixels.shape == (60, 40, 3)
    assert_color(pixels[:30], RED)
    assert_color(pixels[34:], BLUE)


def test_a_mirrored_photograph_is_put_right(tmp_path: Path) -> None:
    pixels = read_image(photograph(tmp_path / "a.jpg", orientation=2), size=(40, 60))
    assert_color(pixels[:, :26], BLUE)
    assert_color(pixels[:, 30:], RED)


@pytest.mark.parametrize("orientation", [1, 2, 6, 8])
def test_a_tag_may_be_ignored(tmp_path: Path, orientation: int) -> None:
    path = photograph(tmp_path / "a.jpg", orientation=orientation)
    pixels = read_image(path, size=(40, 60), apply_exif=False)
    assert_color(pixels[:, :30], RED)


def test_a_size_that_disagrees_because_of_the_tag_names_tag_and_fix(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", orientation=6)
    with pytest.raises(ValueError, match=r"is 40x60 pixels, its annotation says 60x40; its EXIF tag .*`exif: ignore`"):
        read_image(path, size=(40, 60))


def test_a_size_that_fits_only_the_turned_picture_names_tag_and_fix(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", orientation=6)
    with pytest.raises(ValueError, match=r"is 60x40 pixels, its annotation says 40x60; .*EXIF.*`exif: apply`"):
        read_image(path, size=(60, 40), apply_exif=False)


# Clockwise from the first row's start: how the pixels of a stored picture [[0, 1, 2], [3, 4, 5]] stand upright.
UPRIGHT = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[3, 0], [4, 1], [5, 2]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[2, 5], [1, 4], [0, 3]],
}
BLOCK = 16  # pixels of one colour, so that JPEG keeps it


def blocks(numbers: list[list[int]]) -> NDArray[np.uint8]:
    return (40 * np.kron(numbers, np.ones((BLOCK, BLOCK))))[..., None].repeat(3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "tif lzw", "tif 16 bits", "tif grey"])
def test_pixels_and_sizes_agree_under_every_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    path, exif, stored = tmp_path / f"a.{kind[:4].strip()}", Image.Exif(), blocks(UPRIGHT[1])
    exif[ExifTags.Base.Orientation] = orientation
    options: dict[str, Any] = {"tif lzw": {"compression": "tiff_lzw"}, "webp": {"lossless": True}}.get(kind, {})
    grey = {"tif 16 bits": stored[..., 0].astype(np.uint16) << 8, "tif grey": stored[..., 0]}
    image = Image.fromarray(grey.get(kind, stored))
    image.save(path, exif=exif, **options)
    for apply, expected in ((True, blocks(UPRIGHT[orientation])), (False, stored)):
        size = expected.shape[0], expected.shape[1]
        assert image_size(path, apply_exif=apply) == size
        np.testing.assert_allclose(read_image(path, size=size, apply_exif=apply).astype(int), expected, atol=3)
        check_header(path, size=size, apply_exif=apply)
    if orientation > 4:
        with pytest.raises(ImageError, match="exif: ignore"):
            read_image(path, size=(2 * BLOCK, 3 * BLOCK))
        with pytest.raises(ImageError, match="exif: apply"):
            check_header(path, size=(3 * BLOCK, 2 * BLOCK), apply_exif=False)


# damage


def noise(height: int = 120, width: int = 160) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


KINDS: dict[str, dict[str, Any]] = {
    "standard": {},
    "optimized": {"optimize": True},
    "full chroma": {"subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
}


def jpeg(**options: Any) -> bytes:
    stream = io.BytesIO()
    noise().save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def start_of_scan(data: bytes) -> int:
    marker = data.index(b"\xff\xda")
    return marker + 2 + int.from_bytes(data[marker + 2 : marker + 4], "big")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
def test_a_jpeg_cut_anywhere_is_refused_with_and_without_an_end_marker(tmp_path: Path, kind: str, part: float) -> None:
    data, path = jpeg(**KINDS[kind]), tmp_path / "a.jpg"
    start = start_of_scan(data)
    cut = data[: start + int(part * (len(data) - start))]
    for end in (b"", b"\xff\xd9", b"\xff\xd9 and more"):
        path.write_bytes(cut + end)
        with pytest.raises(ImageError, match=re.escape(f"image {path} can't be read: it is truncated")):
            read_image(path)


def test_a_progressive_jpeg_cut_is_found_where_it_is_asked_for(tmp_path: Path) -> None:
    data, path = jpeg(progressive=True), tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_image(path, thorough=True).shape == (120, 160, 3)
    for part in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(part * len(data))] + b"\xff\xd9")
        with pytest.raises(ImageError, match="truncated"):
            read_image(path, thorough=True)


@pytest.mark.parametrize("options", [*KINDS.values(), {"progressive": True}])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read(tmp_path: Path, options: dict[str, object]) -> None:
    data, path = jpeg(**options), tmp_path / "a.jpg"
    path.write_bytes(data)
    whole = read_image(path)
    path.write_bytes(data.removesuffix(b"\xff\xd9"))
    np.testing.assert_array_equal(read_image(path, thorough=True), whole)
    check_header(path, size=(120, 160), apply_exif=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [True, False])
def test_a_stretch_of_zeros_is_refused(tmp_path: Path, kind: str, tail: bool) -> None:
    data, path = jpeg(**KINDS[kind]), tmp_path / "a.jpg"
    middle = (start_of_scan(data) + len(data)) // 2
    path.write_bytes(data[:middle] + bytes(512) + (b"" if tail else data[middle + 512 :]))
    with pytest.raises(ImageError, match=r"zeros|truncated"):
        read_image(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("size", [(120, 160), (121, 161), (7, 5)])
def test_flat_and_grey_jpegs_are_whole(tmp_path: Path, mode: str, grey: int, size: tuple[int, int]) -> None:
    path, image = tmp_path / "a.jpg", noise().resize((size[1], size[0])).convert(mode)
    image.paste(Image.new(mode, (size[1], size[0]), (grey,) * len(image.getbands())), (0, size[0] // 3))
    for optimize in (False, True):  # whose codes for a flat area are all zeros
        image.save(path, optimize=optimize)
        assert read_image(path, size=size, thorough=True).shape == (*size, 3)


def test_a_photograph_before_another_in_one_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise().save(path, "MPO", save_all=True, append_images=[noise(64, 64)])
    assert read_image(path, thorough=True).shape == (120, 160, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "jp2", "ppm"])
def test_half_a_file_of_any_format_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=re.escape(f"image {path} can't be read: ")):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_header_and_the_last_bytes_tell_most_bad_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise().save(path)
    data = path.read_bytes()
    check_header(path, size=(120, 160), apply_exif=True)
    with pytest.raises(ImageError, match="its annotation says 161x120"):
        check_header(path, size=(120, 161), apply_exif=True)
    for content in (data[: len(data) // 2], b"", b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=re.escape(f"image {path} can't be read: ")):
            check_header(path, size=(120, 160), apply_exif=True)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match="a pipe"):
            read(tmp_path / "a.jpg")


# real data


@pytest.mark.data
@pytest.mark.parametrize("name", ["train2017/000000000086.jpg", "val2017/000000007888.jpg"])
def test_the_greyscale_photographs_of_coco128_become_rgb(data_root_for_tests: Path, name: str) -> None:
    path = data_root_for_tests / "coco128" / name
    with Image.open(path) as image:
        assert image.mode == "L"
        size = image.height, image.width
    pixels = read_image(path, size=size)
    assert pixels.shape == (*size, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert np.ptp(pixels) > 100


@pytest.mark.data
def test_damage_is_found_in_photographs_and_only_there(data_root_for_tests: Path, tmp_path: Path) -> None:
    rng, copy = random.Random(0), tmp_path / "a.jpg"
    for path in sorted((data_root_for_tests / "coco128" / "val2017").glob("*.jpg"))[::3]:
        assert read_image(path, thorough=True).size
        data = path.read_bytes()
        start = data.rindex(b"\xff\xda") + 12
        place = rng.randrange(start, len(data) - 600)
        for damaged in (data[:place] + b"\xff\xd9", data[:place] + bytes(512) + data[place + 512 :]):
            copy.write_bytes(damaged)
            with pytest.raises(ImageError, match=r"truncated|zeros"):
                read_image(copy)


# errors on their way to the user


class Files(Dataset[torch.Tensor]):
    """Reads files as a data set does."""

    def __init__(self, *paths: Path, size: tuple[int, int] | None = None) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(read_image(self.paths[row], size=self.size).copy())


def error_of(files: Files, workers: int) -> ImageError:
    with pytest.raises(ImageError) as error:
        list(DataLoader(files, batch_size=1, num_workers=workers))
    return error.value


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "missing"])
def test_an_error_reads_the_same_through_a_worker_process(tmp_path: Path, content: bytes | None) -> None:
    good, bad = photograph(tmp_path / "good.jpg"), tmp_path / "bad.jpg"
    if content is not None:
        bad.write_bytes(content)
    here, there = (str(error_of(Files(good, bad), workers)) for workers in (0, 1))
    assert there == here
    assert here.startswith(f"image {bad} can't be read: ")
    assert "\n" not in here


def test_a_size_that_disagrees_reads_the_same_through_a_worker_process(tmp_path: Path) -> None:
    files = Files(photograph(tmp_path / "a.jpg"), size=(20, 30))
    message = (
        f"image {tmp_path / 'a.jpg'} is 60x40 pixels, its annotation says 30x20; correct the annotation or the file, "
        "or set `other_size: scale` in the card if the boxes fit its size"
    )
    assert [str(error_of(files, workers)) for workers in (0, 1)] == [message, message]


def test_an_error_survives_pickling_and_a_copy() -> None:
    error = ImageError("image a.jpg can't be read: OSError: it ends early")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "image a.jpg can't be read: OSError: it ends early"
    assert isinstance(error, ValueError)  # what the programs show as one line
