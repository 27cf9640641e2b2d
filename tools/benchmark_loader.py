"""Time the training loader beside decoding and resizing alone, and count its images per second with several workers.

Augmentation is off.  Decoding and resizing are OpenCV's, on one thread, of files that are in memory; the loader also
reads and checks the files, makes the targets and puts batches together.  The two take turns, and other programs don't
count: the time is that of a core.

examples:
  RESDET_DATA_ROOT=DATA python tools/benchmark_loader.py
  RESDET_DATA_ROOT=DATA python tools/benchmark_loader.py --data coco2017:val --images 500 --workers 1 2 4 8
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

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


def decode_and_resize(content: bytes, resize: Resize) -> None:
    """Does what no loader can leave out."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    height, width = resize.size(pixels.shape[:2])
    cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def milliseconds(index: AnnotationIndex, resize: Resize, batch: int, repeats: int) -> tuple[list[float], list[float]]:
    """Returns milliseconds of a core an image, by round: of decoding and resizing alone, and of the loader."""
    dataset = DetectionDataset(index, resize=resize)
    contents = [Path(path).read_bytes() for path in index.paths]
    alone, loader = list[float](), list[float]()
    for _ in range(repeats):
        started = time.process_time()
        for content in contents:
            decode_and_resize(content, resize)
        between = time.process_time()
        for first in range(0, len(index), batch):
            collate(dataset.__getitems__([(row, row) for row in range(first, min(first + batch, len(index)))]))
        alone.append((between - started) / len(index) * 1e3)
        loader.append((time.process_time() - between) / len(index) * 1e3)
    return alone, loader


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
    alone, loader = milliseconds(index, Resize(args.side, config.longer_side), args.batch, args.repeats)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(loader, alone, strict=True))
    print(f"{args.data}, {len(index)} images to {args.side} px; medians of {args.repeats} rounds")
    print(f"decoding and resizing alone  {statistics.median(alone):6.2f} ms an image")
    print(f"loader, one process          {statistics.median(loader):6.2f} ms an image, {ratio:.2f} times")
    for workers in args.workers:
        rate = images_per_second(index, replace(config, workers=workers), args.batch)
        print(f"{workers} workers                    {rate:6.1f} images a second")


if __name__ == "__main__":
    main()
