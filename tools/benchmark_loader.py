"""Times the training loader against decoding and resizing alone, and its images per second with several workers.

Augmentation is off.  OpenCV decodes and resizes files in memory on one thread: once into the same buffer, which stays
in the caches, and once into a new batch, as a loader must.  The loader also reads and checks the files and makes the
targets.  They take turns, and times are CPU times, so that other programs do not count.

examples:
  RESDET_DATA_ROOT=DATA python tools/benchmark_loader.py
  RESDET_DATA_ROOT=DATA python tools/benchmark_loader.py --data coco2017:val --images 500 --workers 1 2 4 8
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.config.detection import DetectorDataConfig
from detection.data.cards import data_root, load_dataset
from detection.data.dataset import DetectionDataset, collate
from detection.data.index import AnnotationIndex
from detection.data.loader import detection_loader
from detection.data.transforms import Resize


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", default="coco128:train", metavar="CARD:SPLIT", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=100, help="of the data set (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images of a batch (default: %(default)s)")
    parser.add_argument("--side", type=int, default=800, help="shorter side, pixels (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds over the images (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    return parser.parse_args()


def decode(content: bytes) -> NDArray[np.uint8]:
    """Returns the pixels (H, W, 3), RGB, of a JPEG file."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return np.asarray(pixels, np.uint8)


def resize_alone(contents: Sequence[bytes], resize: Resize) -> None:
    """Decodes and resizes each image, the least that any loader does."""
    for pixels in map(decode, contents):
        height, width = resize.size(pixels.shape[:2])
        cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_into_batch(contents: Sequence[bytes], resize: Resize) -> None:
    """Decodes and resizes each image into its place in a batch, padded with zeros."""
    images = [decode(content) for content in contents]
    sizes = [resize.size(pixels.shape[:2]) for pixels in images]
    batch = np.empty((len(images), *(max(sides) for sides in zip(*sizes, strict=True)), 3), np.uint8)
    for pixels, place, (height, width) in zip(images, batch, sizes, strict=True):
        place[height:], place[:height, width:] = 0, 0
        cv2.resize(pixels, (width, height), dst=place[:height, :width], interpolation=cv2.INTER_LINEAR)


def milliseconds(index: AnnotationIndex, resize: Resize, batch: int, repeats: int) -> list[list[float]]:
    """Returns CPU milliseconds per image, by round: alone, into batches, and of the loader."""
    dataset = DetectionDataset(index, resize=resize)
    contents = [Path(path).read_bytes() for path in index.paths]
    batches = [range(first, min(first + batch, len(index))) for first in range(0, len(index), batch)]
    ways: tuple[Callable[[range], object], ...] = (
        lambda rows: resize_alone(contents[rows.start : rows.stop], resize),
        lambda rows: resize_into_batch(contents[rows.start : rows.stop], resize),
        lambda rows: collate(dataset.__getitems__([(row, row) for row in rows])),
    )
    times = [list[float]() for _ in ways]
    for _ in range(repeats):
        for way, seconds in zip(ways, times, strict=True):
            started = time.process_time()
            for rows in batches:
                way(rows)
            seconds.append((time.process_time() - started) / len(index) * 1e3)
    return times


def images_per_second(index: AnnotationIndex, config: DetectorDataConfig, batch: int) -> float:
    """Returns the rate of the training loader once its workers run."""
    batches = iter(detection_loader(index, config, batch_size=batch, seed=0))
    next(batches)
    count, started = max(20, len(index) // batch), time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch / (time.perf_counter() - started)


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(1)
    index, _ = load_dataset([args.data], data_root())
    index = index.first(args.images)
    config = DetectorDataConfig(train=(args.data,), shorter_side=args.side, augment=(), skip_empty=False)
    times = milliseconds(index, Resize(args.side, config.longer_side), args.batch, args.repeats)
    print(f"{args.data}, {len(index)} images to {args.side} px; medians of {args.repeats} rounds")
    for name, taken in zip(
        ("decoding and resizing alone", "the same into batches", "loader, one process"), times, strict=True
    ):
        ratio = statistics.median(own / alone for own, alone in zip(taken, times[0], strict=True))
        print(f"{name:28} {statistics.median(taken):6.2f} ms an image, {ratio:.2f} times")
    for workers in args.workers:
        rate = images_per_second(index, replace(config, workers=workers), args.batch)
        print(f"{workers} workers                    {rate:6.1f} images a second")


if __name__ == "__main__":
    main()
