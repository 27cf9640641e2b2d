"""Edits of annotation files, and pictures to read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image

from detection.data.packed_strings import PackedStrings
from detection.masks import encode


@pytest.fixture(scope="session")
def edit_json():
    """Applies a change to what a JSON file holds."""

    def edit(file, change):
        change(content := json.loads(file.read_text()))
        file.write_text(json.dumps(content))

    return edit


@pytest.fixture(scope="session")
def draw():
    """Writes a picture of ``size`` (height, width), black or of these pixels, with its EXIF orientation."""

    def draw(path, pixels=None, *, size=(60, 80), orientation=None, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        if orientation is not None:
            options["exif"] = Image.Exif()
            options["exif"][ExifTags.Base.Orientation] = orientation
        Image.fromarray(np.zeros((*size, 3), np.uint8) if pixels is None else pixels).save(path, **options)
        return path

    return draw


@pytest.fixture(scope="session")
def with_masks():
    """Gives the objects of an index these masks."""

    def give(index, masks):
        return replace(index, fields={"masks": PackedStrings.pack([encode(own.numpy())["counts"] for own in masks])})

    return give
