"""Generates a small detection data set: handwritten digits pasted on crops of photographs.

Digits and photographs come with scikit-learn, so no network is needed.  Train and test images share no digits, but use
crops of the same two photographs.  Objects have masks and, in COCO's layout, four keypoints.  Each image also has a
label image, which gives the class of every pixel, and panoptic segments: the digits, and the rest of the photograph as
stuff.  An image depends only on the seed, its split and its number, so generating more images leaves the first ones
unchanged.
"""

from __future__ import annotations

import colorsys
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from detection.data.panoptic_files import panoptic_annotation, panoptic_categories, save_segments
from detection.label_colors import color_map
from detection.segments import Segment, Segments

__all__ = ["CLASSES", "KEYPOINTS", "STUFF", "DigitSource", "Scene", "draw_scene", "load_sources", "write_digits"]

CLASSES = tuple("0123456789")
# Ends of a digit's ink. Digits are never flipped.
KEYPOINTS = ("top", "bottom", "left_end", "right_end")
STUFF = ("building", "flower")  # of scikit-learn's two photographs
MARKER = ".made_by_make_digits"  # a folder without this file was made by somebody else and is not touched

CATEGORY_IDS = range(1, len(CLASSES) + len(STUFF) + 1)  # COCO counts from 1

_SIDE = (128, 192)  # pixels of an image side
_COUNT = (2, 6)  # digits per image
_SCALE = (28, 62)  # side in pixels to which a digit's 8 cells are scaled
_ANGLE = 15.0  # degrees, either way
_MAX_OVERLAP = 0.08  # intersection of two boxes over the smaller one
_TRAIN_SHARE = 0.8  # of scikit-learn's 1,797 digits; they are sorted by writer, so few writers are in both splits
_END = 0.1  # of a digit's height or width
_SHARPEN = [min(max(round(127.5 + (value - 115) * 4), 0), 255) for value in range(256)]  # firm edges


@dataclass(frozen=True, slots=True)
class DigitSource:
    """The digits of one split, and the photographs."""

    digits: NDArray[np.uint8]  # (M, 8, 8), ink is 255
    labels: NDArray[np.int64]  # (M,) 0..9
    photos: tuple[Image.Image, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """One image with its digits."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    objects: NDArray[np.uint8]  # (H, W) 0 for the background, i + 1 for the visible pixels of digit i
    labels: tuple[int, ...]  # (N,)
    stuff: int = 0  # of STUFF, where there is no digit

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W)."""
        return self.objects == np.arange(1, len(self.labels) + 1)[:, None, None]

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """(H, W): 0 for the background, digit + 1 for its visible pixels."""
        return np.array([0, *(label + 1 for label in self.labels)], np.uint8)[self.objects]

    @property
    def segments(self) -> Segments:
        """The digits, numbered as in ``objects``, and the photograph as stuff."""
        count = len(self.labels)
        found = [Segment(number, label) for number, label in enumerate(self.labels, start=1)]
        stuff = Segment(count + 1, len(CLASSES) + self.stuff)
        return Segments(np.where(self.objects > 0, self.objects, stuff.id).astype(np.int32), (*found, stuff))

    @property
    def boxes(self) -> NDArray[np.int64]:
        """(N, 4) tight boxes of the masks, pixels x1, y1, x2, y2 with width = x2 - x1."""
        return np.array([_extent(mask) for mask in self.masks], dtype=np.int64).reshape(-1, 4)

    @property
    def keypoints(self) -> NDArray[np.float64]:
        """(N, 4, 2) x, y of ``KEYPOINTS`` in COCO's 0-based pixels, rounded to a tenth."""
        return np.array([_ends(mask) for mask in self.masks], dtype=np.float64).reshape(-1, len(KEYPOINTS), 2)


def load_sources() -> tuple[DigitSource, DigitSource]:
    """Returns the sources of the train images and of the test images.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError('the digits come with scikit-learn; install it with: pip install "resdet[demo]"') from error
    images, labels = load_digits(return_X_y=True)
    digits = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    photos = tuple(Image.fromarray(photo) for photo in load_sample_images()["images"])
    end = int(len(digits) * _TRAIN_SHARE)
    train, test = slice(None, end), slice(end, None)
    return DigitSource(digits[train], labels[train], photos), DigitSource(digits[test], labels[test], photos)


def draw_scene(source: DigitSource, rng: np.random.Generator) -> Scene:
    """Returns a crop of a photograph with up to six digits, whose boxes lie inside the crop and hardly overlap."""
    height, width = (int(side) for side in rng.integers(_SIDE[0], _SIDE[1] + 1, size=2))
    pixels, photo = _background(source, (height, width), rng)
    objects = np.zeros((height, width), np.uint8)
    labels: list[int] = []
    taken: list[NDArray[np.int64]] = []
    for index in rng.integers(len(source.digits), size=rng.integers(_COUNT[0], _COUNT[1] + 1)):
        layer = _place(source.digits[index], (height, width), taken, rng)
        if layer is None:  # no room left
            continue
        labels.append(int(source.labels[index]))
        objects[layer > 127] = len(labels)
        taken.append(_extent(layer > 127))
        pixels = _paint(pixels, layer, rng)
    return Scene(np.rint(pixels).astype(np.uint8), objects, tuple(labels), photo)


def _background(
    source: DigitSource, size: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.floating], int]:
    """Returns a crop (H, W, 3) of a photograph, shrunk by a factor of up to two, and the photograph's number."""
    height, width = size
    number = int(rng.integers(len(source.photos)))
    photo = source.photos[number]
    shrink = rng.uniform(1, 2)
    crop_width, crop_height = int(width * shrink), int(height * shrink)
    x, y = rng.integers(photo.width - crop_width + 1), rng.integers(photo.height - crop_height + 1)
    box = (int(x), int(y), int(x) + crop_width, int(y) + crop_height)
    return np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box), np.float32), number


def _place(
    digit: NDArray[np.uint8], size: tuple[int, int], taken: list[NDArray[np.int64]], rng: np.random.Generator
) -> NDArray[np.uint8] | None:
    """Returns the ink (H, W) of ``digit`` (8, 8) at a free place of the image, or None after fifty failed tries."""
    height, width = size
    for _ in range(50):
        glyph = _turn_and_scale(digit, rng)
        x1, y1, x2, y2 = (int(side) for side in _extent(np.asarray(glyph) > 127))
        x, y = int(rng.integers(width - (x2 - x1) + 1)), int(rng.integers(height - (y2 - y1) + 1))
        box = np.array([x, y, x + x2 - x1, y + y2 - y1])
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in taken):
            layer = Image.new("L", (width, height))
            layer.paste(glyph, (x - x1, y - y1))  # what lies outside the image is cut off, and is no ink
            return np.asarray(layer)
    return None


def _turn_and_scale(digit: NDArray[np.uint8], rng: np.random.Generator) -> Image.Image:
    """Returns the ink of ``digit``, randomly turned and scaled, with sharp but smooth edges."""
    padded = Image.fromarray(np.pad(digit, 1))  # strokes touch the border of their 8x8 cells
    side = round(rng.uniform(*_SCALE) * padded.width / 8)
    glyph = padded.resize((side, side), Image.Resampling.BICUBIC)
    glyph = glyph.rotate(rng.uniform(-_ANGLE, _ANGLE), Image.Resampling.BICUBIC, expand=True)
    return glyph.point(_SHARPEN)


def _paint(pixels: NDArray[np.floating], layer: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.floating]:
    """Returns ``pixels`` (H, W, 3) with the ink of ``layer`` (H, W), bright in a dark halo or the reverse."""
    hue, bright = rng.uniform(), rng.uniform() < 0.6
    ink = colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.5), 1.0) if bright else colorsys.hsv_to_rgb(hue, 0.9, 0.3)
    halo = colorsys.hsv_to_rgb(hue, 0.5, 0.12) if bright else colorsys.hsv_to_rgb(hue, 0.12, 1.0)
    blurred = np.asarray(Image.fromarray(layer).filter(ImageFilter.GaussianBlur(3)), np.float32)[..., None]
    for color, alpha in ((halo, np.minimum(blurred / 255 * 3, 0.85)), (ink, layer[..., None] / 255)):
        pixels = pixels + (np.array(color, np.float32) * 255 - pixels) * alpha.astype(np.float32)
    return pixels


def _extent(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the tight box (4,) of a non-empty mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _ends(mask: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Returns x, y of each end of a mask (H, W): the mean of its pixels in the outer tenth of its height or width.

    The outermost pixel alone would jump from one tip of a flat stroke to the other.
    """
    y, x = np.nonzero(mask)
    height, width = np.ptp(y) + 1, np.ptp(x) + 1
    parts = (
        y < y.min() + _END * height,
        y > y.max() - _END * height,
        x < x.min() + _END * width,
        x > x.max() - _END * width,
    )
    return [(round(float(x[part].mean()), 1), round(float(y[part].mean()), 1)) for part in parts]


def _overlap(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Returns the intersection of two boxes (4,) over the area of the smaller one, 0..1."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    smaller = min(np.prod(first[2:] - first[:2]), np.prod(second[2:] - second[:2]))
    return float(np.prod(sides.clip(min=0)) / smaller)


def write_digits(root: Path, *, num_train: int = 600, num_test: int = 100, seed: int = 0) -> Path:
    """Writes the data set to ``root``/digits, in VOC layout (voc/) and in COCO layout (coco/), and returns the folder.

    Raises:
        ValueError: the folder exists and was not made here, or a count is negative.
        ImportError: scikit-learn is not installed.
    """
    if min(num_train, num_test, seed) < 0:
        raise ValueError(f"counts and seed must not be negative, got {num_train}, {num_test} and {seed}")
    target = (root / "digits").resolve()
    if target.exists() and not (target / MARKER).is_file():
        raise ValueError(f"{target} was not made by resdet digits and was not changed; move it or pass another --root")
    target.parent.mkdir(parents=True, exist_ok=True)
    train, test = load_sources()
    # A sibling folder shares the file system, so that the finished folder takes its place in one step.
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=target.parent) as work:
        made, old = Path(work, "made"), Path(work, "old")
        _write_split(made, "train", (_scene(train, seed, 0, i) for i in range(num_train)), first_id=1)
        _write_split(made, "test", (_scene(test, seed, 1, i) for i in range(num_test)), first_id=num_train + 1)
        (made / MARKER).write_text("resdet digits replaces this folder as a whole\n", encoding="utf-8")
        if target.exists():
            target.rename(old)
        try:
            made.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    return target


def _scene(source: DigitSource, seed: int, split: int, index: int) -> Scene:
    return draw_scene(source, np.random.default_rng((seed, split, index)))


def _write_split(folder: Path, split: str, scenes: Iterable[Scene], first_id: int) -> None:
    voc, coco = folder / "voc", folder / "coco"
    for path in ("JPEGImages", "Annotations", "SegmentationObject", "ImageSets/Main", "ImageSets/Segmentation"):
        (voc / path).mkdir(parents=True, exist_ok=True)
    for path in (split, "annotations", f"labels/{split}", f"segments/{split}"):
        (coco / path).mkdir(parents=True, exist_ok=True)
    images, annotations, segments, stems = [], [], [], []
    for image_id, scene in enumerate(scenes, start=first_id):
        stem = f"{image_id:06d}"
        jpeg = _jpeg(scene.image)
        (voc / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg)
        (coco / split / f"{stem}.jpg").write_bytes(jpeg)
        (voc / "Annotations" / f"{stem}.xml").write_bytes(_voc_xml(scene, f"{stem}.jpg"))
        _palette_image(scene.objects).save(voc / "SegmentationObject" / f"{stem}.png")
        _palette_image(scene.label_map).save(coco / "labels" / split / f"{stem}.png")
        height, width = scene.objects.shape
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width})
        annotations.extend(_coco_annotations(scene, image_id, first_id=len(annotations) + 1))
        save_segments(scene.segments, coco / "segments" / split / f"{stem}.png")
        segments.append(panoptic_annotation(scene.segments, CATEGORY_IDS, image_id=image_id, file_name=f"{stem}.png"))
        stems.append(stem)
    for task in ("Main", "Segmentation"):
        (voc / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    tree = {
        "info": {"description": f"handwritten digits on photographs, {split}"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {
                "id": number,
                "name": name,
                "supercategory": "digit",
                "keypoints": [*KEYPOINTS],
                "skeleton": [[1, 2], [3, 4]],  # from 1
            }
            for number, name in enumerate(CLASSES, start=1)
        ],
    }
    (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree), encoding="utf-8")
    categories = panoptic_categories((*CLASSES, *STUFF), CATEGORY_IDS, len(CLASSES))
    (coco / "annotations" / f"panoptic_{split}.json").write_text(
        json.dumps(tree | {"annotations": segments, "categories": categories}), encoding="utf-8"
    )


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _palette_image(objects: NDArray[np.uint8]) -> Image.Image:
    """Returns object or class numbers (H, W) as a palette image with VOC's colours."""
    image = Image.fromarray(objects)
    image.putpalette(color_map().tobytes())
    return image


def _voc_xml(scene: Scene, file_name: str) -> bytes:
    """Returns one annotation file; its boxes are 1-based and include their last pixel."""
    height, width = scene.objects.shape
    root = ElementTree.Element("annotation")
    _add(root, folder="voc", filename=file_name, segmented=1)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    for label, (x1, y1, x2, y2) in zip(scene.labels, scene.boxes.tolist(), strict=True):
        item = ElementTree.SubElement(root, "object")
        _add(item, name=CLASSES[label], pose="Unspecified", truncated=0, difficult=0)
        _add(ElementTree.SubElement(item, "bndbox"), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
    ElementTree.indent(root)
    return ElementTree.tostring(root) + b"\n"


def _add(parent: ElementTree.Element, **children: object) -> None:
    for name, value in children.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _coco_annotations(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, object]]:
    rows = zip(scene.labels, scene.boxes.tolist(), scene.masks, scene.keypoints.tolist(), strict=True)
    for annotation_id, (label, (x1, y1, x2, y2), mask, ends) in enumerate(rows, start=first_id):
        rle: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))  # its stubs declare the bytes as text
        yield {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": label + 1,  # COCO counts from 1
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(mask.sum()),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            "iscrowd": 0,
            "keypoints": [value for x, y in ends for value in (x, y, 2)],
            "num_keypoints": len(ends),
        }
