"""Mirrors ppm.py."""

import time

import numpy as np
import pytest

from detection.data.images import image_size, read_image

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
