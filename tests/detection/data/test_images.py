"""Mirrors detection/data/images.py, jpeg.py and ppm.py."""

import io
import os
import pickle
import random
import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from PIL import Image

from detection.data.images import ImageError, check_header, image_size, read_image

RED, BLUE = (254, 0, 0), (0, 0, 254)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def assert_color(pixels, color) -> None:
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.reshape(-1, 3).astype(int), np.broadcast_to(color, (pixels.size // 3, 3)), atol=4)


@pytest.fixture
def photograph(draw, tmp_path):
    """Writes a photograph of 40x60 (height x width), red on the left and blue on the right."""
    pixels = np.full((40, 60, 3), BLUE, np.uint8)
    pixels[:, :32] = RED
    options = {"quality": 95, "subsampling": 0}
    return lambda name="a.jpg", orientation=1: draw(tmp_path / name, pixels, orientation=orientation, **options)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_pixels_come_as_they_are_stored(draw, tmp_path, suffix) -> None:
    pixels = draw(tmp_path / f"a.{suffix}", NOISE[:5, :7], lossless=True)  # which only webp reads
    np.testing.assert_array_equal(read_image(pixels, size=(5, 7)), NOISE[:5, :7])


def test_a_jpeg_is_rgb_not_bgr_and_a_size_that_disagrees_named_with_tag_and_repair(photograph) -> None:
    for orientation in (None, 1):  # without a tag and with one
        pixels = read_image(str(photograph(orientation=orientation)), size=(40, 60))
        assert_color(pixels[:, :30], RED)
        assert_color(pixels[:, 34:], BLUE)
    path = photograph()
    with pytest.raises(ValueError, match=re.escape(f"image {path} is 60x40 pixels, its annotation says 61x40")):
        read_image(path, size=(40, 61))
    path = photograph(orientation=6)
    with pytest.raises(ValueError, match=r"is 40x60 pixels, its annotation says 60x40; .*EXIF.*`exif: ignore`"):
        read_image(path, size=(40, 60))
    with pytest.raises(ValueError, match=r"is 60x40 pixels, its annotation says 40x60; .*EXIF.*`exif: apply`"):
        read_image(path, size=(60, 40), apply_exif=False)


def test_every_mode_and_palette_becomes_rgb_and_transparency_is_left_out(tmp_path) -> None:
    for name, mode, color, expected in [
        ("a.jpg", "L", 100, (100, 100, 100)),
        ("a.png", "L", 100, (100, 100, 100)),
        ("a.png", "1", 1, (255, 255, 255)),
        ("a.png", "RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("a.png", "LA", (10, 0), (10, 10, 10)),
        ("a.jpg", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ]:
        Image.new(mode, (8, 6), color).save(tmp_path / name)
        pixels = read_image(tmp_path / name, size=(6, 8))
        assert pixels.shape == (6, 8, 3)
        assert_color(pixels, expected)
    image = Image.new("P", (8, 6), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    for transparency in (None, 0, bytes([0, 128])):  # opaque, of one colour, of each
        image.save(tmp_path / "a.png", transparency=transparency)
        pixels = read_image(tmp_path / "a.png", size=(6, 8))
        assert_color(pixels[1:], (0, 255, 0))
        assert_color(pixels[:1, :1], (255, 0, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_greys_of_twelve_and_sixteen_bits_fill_eight(draw, tmp_path, suffix) -> None:
    for bits in (12, 16):
        ramp = np.linspace(0, 2**bits - 1, 8 * 6).reshape(6, 8).astype(np.uint16)
        pixels = read_image(draw(tmp_path / f"a.{suffix}", ramp))
        np.testing.assert_array_equal(pixels, np.repeat((ramp >> (bits - 8))[..., None], 3, axis=2))


def test_what_is_no_picture_is_named(photograph, tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.jpg"
    for content in (b"", b"GIF of a cat", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"image {path} can't be read")) as error:
            read_image(path)
        assert "Reader" not in str(error.value)
    for other in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ValueError, match=re.escape(f"image {other} can't be read")):
            read_image(other)
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match="a pipe"):
            read(tmp_path / "pipe.jpg")
    photograph()
    for limit in (2000, 1000):  # Pillow warns over its limit of pixels and raises over twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=re.escape(f"image {path} can't be read")):
            read_image(path)


def test_two_threads_that_read_at_a_time_leave_the_warning_filters(photograph, monkeypatch) -> None:
    first, second = photograph("1.jpg"), photograph("2.jpg")
    first_inside, second_inside, first_done = Event(), Event(), Event()
    open_image, before = Image.open, list(warnings.filters)

    def open_overlapping(stream, formats):
        """Keeps the first inside until the second is, and the second until the first is done."""
        is_first = stream.name == str(first)
        (first_inside if is_first else second_inside).set()
        (second_inside if is_first else first_done).wait(timeout=1)
        return open_image(stream, formats=formats)

    monkeypatch.setattr(Image, "open", open_overlapping)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(read_image, first)
        assert first_inside.wait(timeout=1)
        other = pool.submit(read_image, second)
        one.result()
        first_done.set()
        other.result()
    assert list(warnings.filters) == before


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


def blocks(numbers):
    return (40 * np.kron(numbers, np.ones((BLOCK, BLOCK))))[..., None].repeat(3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "tif lzw", "tif 16 bits", "tif grey"])
def test_pixels_and_sizes_agree_under_every_orientation(draw, tmp_path, kind) -> None:
    stored = blocks(UPRIGHT[1])
    grey = {"tif 16 bits": stored[..., 0].astype(np.uint16) << 8, "tif grey": stored[..., 0]}
    options = {"tif lzw": {"compression": "tiff_lzw"}, "webp": {"lossless": True}}.get(kind, {})
    for orientation, numbers in UPRIGHT.items():
        path = tmp_path / f"a.{kind[:4].strip()}"
        draw(path, grey.get(kind, stored), orientation=orientation, **options)
        for apply, expected in ((True, blocks(numbers)), (False, stored)):
            size = expected.shape[0], expected.shape[1]
            assert image_size(path, apply_exif=apply) == size
            np.testing.assert_allclose(read_image(path, size=size, apply_exif=apply).astype(int), expected, atol=3)
            check_header(path, size=size, apply_exif=apply)
        if orientation > 4:
            with pytest.raises(ImageError, match="exif: ignore"):
                read_image(path, size=(2 * BLOCK, 3 * BLOCK))
            with pytest.raises(ImageError, match="exif: apply"):
                check_header(path, size=(3 * BLOCK, 2 * BLOCK), apply_exif=False)


def smooth(height=120, width=160):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


KINDS = [{}, {"optimize": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
END = b"\xff\xd9"


def jpeg(**options):
    """A JPEG, and where its scan starts."""
    smooth().save(stream := io.BytesIO(), "JPEG", quality=90, **options)
    data = stream.getvalue()
    marker = data.index(b"\xff\xda")
    return data, marker + 2 + int.from_bytes(data[marker + 2 : marker + 4], "big")


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_is_cut_or_has_zeros_is_refused(tmp_path, kind) -> None:
    (data, start), path = jpeg(**kind), tmp_path / "a.jpg"
    for part in (0.05, 0.5, 0.99):
        for end in (b"", END, END + b" and more"):
            path.write_bytes(data[: start + int(part * (len(data) - start))] + end)
            with pytest.raises(ImageError, match=re.escape(f"image {path} can't be read: it is truncated")):
                read_image(path)
    middle = (start + len(data)) // 2
    for tail in (b"", data[middle + 512 :]):
        path.write_bytes(data[:middle] + bytes(512) + tail)
        with pytest.raises(ImageError, match=r"zeros|truncated"):
            read_image(path)


@pytest.mark.parametrize("options", [*KINDS, {"progressive": True}])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read(tmp_path, options) -> None:
    (data, _), path = jpeg(**options), tmp_path / "a.jpg"
    path.write_bytes(data)
    whole = read_image(path, thorough=True)
    path.write_bytes(data.removesuffix(END))
    np.testing.assert_array_equal(read_image(path, thorough=True), whole)
    check_header(path, size=(120, 160), apply_exif=True)
    for part in (0.3, 0.6, 0.9) if "progressive" in options else ():  # whose cuts are found where they are asked for
        path.write_bytes(data[: int(part * len(data))] + END)
        with pytest.raises(ImageError, match="truncated"):
            read_image(path, thorough=True)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_flat_and_grey_jpegs_are_whole(tmp_path, mode) -> None:
    for size in ((120, 160), (121, 161), (7, 5)):
        path, image = tmp_path / "a.jpg", smooth().resize((size[1], size[0])).convert(mode)
        for grey in (0, 128, 255):
            image.paste(Image.new(mode, (size[1], size[0]), (grey,) * len(image.getbands())), (0, size[0] // 3))
            for optimize in (False, True):  # whose codes for a flat area are all zeros
                image.save(path, optimize=optimize)
                assert read_image(path, size=size, thorough=True).shape == (*size, 3)
    smooth().save(tmp_path / "b.jpg", "MPO", save_all=True, append_images=[smooth(64, 64)])  # before another picture
    assert read_image(tmp_path / "b.jpg", thorough=True).shape == (120, 160, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "jp2", "ppm"])
def test_half_a_file_of_any_format_is_refused_and_most_by_the_header(tmp_path, suffix) -> None:
    path, size = tmp_path / f"a.{suffix}", (120, 160)
    smooth().save(path)
    data = path.read_bytes()
    check_header(path, size=size, apply_exif=True)
    with pytest.raises(ImageError, match="its annotation says 161x120"):
        check_header(path, size=(120, 161), apply_exif=True)
    for content in (data[: len(data) // 2], b"", b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=re.escape(f"image {path} can't be read: ")):
            read_image(path)
        if suffix in ("jpg", "png") or len(content) < 20:
            with pytest.raises(ImageError, match=re.escape(f"image {path} can't be read: ")):
                check_header(path, size=size, apply_exif=True)


@pytest.mark.data
def test_damage_is_found_in_photographs_and_only_there(data_root_for_tests, tmp_path) -> None:
    grey = read_image(data_root_for_tests / "coco128/train2017/000000000086.jpg")
    assert ((grey[..., 0] == grey[..., 2]).all(), np.ptp(grey) > 100) == (True, True)
    rng, copy = random.Random(0), tmp_path / "a.jpg"
    for path in sorted((data_root_for_tests / "coco128/val2017").glob("*.jpg"))[::3]:
        assert read_image(path, thorough=True).size
        data = path.read_bytes()
        place = rng.randrange(data.rindex(b"\xff\xda") + 12, len(data) - 600)
        for damaged in (data[:place] + END, data[:place] + bytes(512) + data[place + 512 :]):
            copy.write_bytes(damaged)
            with pytest.raises(ImageError, match=r"truncated|zeros"):
                read_image(copy)


def test_an_error_survives_pickling_and_a_copy() -> None:
    error = ImageError("image a.jpg can't be read: OSError: it ends early")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "image a.jpg can't be read: OSError: it ends early"
    assert isinstance(error, ValueError)  # what the programs show as one line


PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
WRITTEN = b" ".join(b"%d" % value for value in PIXELS.ravel())
BINARY, TEXT = b"2 2 255\n" + PIXELS.tobytes(), b"P3\n2 2\n# the pixels\n255\n" + WRITTEN


@pytest.mark.parametrize("content", [b"P6 " + BINARY, b"P6\n# by hand\n# more\n" + BINARY, TEXT])
def test_what_others_write_is_read(tmp_path, content) -> None:
    (tmp_path / "a.ppm").write_bytes(content)
    assert image_size(tmp_path / "a.ppm") == (2, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.ppm"), PIXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"P6\n#" + b"x" * 20_000_000, "comments and blanks", id="a comment"),
        pytest.param(b"P6\n" + b"#\n" * 10_000_000, "comments and blanks", id="comments"),
        pytest.param(b"P6" + b" " * 20_000_000, "comments and blanks", id="blanks"),
        pytest.param(b"P3 2 2 255\n0\n" + b"#\n" * 10_000_000 + WRITTEN, "more than 1000 comments", id="in the pixels"),
        pytest.param(b"P3 2 2 255\n" + b"0 " * 99_999 + b"#\n" * 9_999_999, "1000 comments", id="behind them"),
        pytest.param(b"P6", "EOF", id="nothing"),
    ],
)
def test_comments_without_end_are_refused_at_once(tmp_path, content, message) -> None:
    (tmp_path / "a.ppm").write_bytes(content)
    start = time.process_time()
    for read in (image_size, read_image):
        with pytest.raises(ValueError, match=rf"image .*a\.ppm can't be read: .*{message}"):
            read(tmp_path / "a.ppm")
    assert time.process_time() - start < 2
