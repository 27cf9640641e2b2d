"""Times loading annotations of COCO train2017's size, first and later, and measures memory, also of workers.

Writes a JSON file with 860,001 boxes and polygons on 118,287 images into a temporary folder; the images are links to a
few JPEG files.  Separate processes read the annotations, first and later, when the index is kept, and load the data set
as a training does, first and later, when its images are known.  Their workers touch all objects.  Linux only, as it
reads /proc.

examples:
  python tools/benchmark_index.py
  python tools/benchmark_index.py --images 2000000 --objects 30000000 --boxes --annotations   # Objects365's size
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import yaml
from PIL import Image

from detection.data.cards import load_card, load_dataset
from detection.data.index import AnnotationIndex
from detection.data.readers.coco import read_coco

CLASSES = tuple(f"class {number}" for number in range(80))
LINKS = 60_000  # of a file; ext4 has 65,000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--boxes", action="store_true", help="without polygons")
    parser.add_argument("--annotations", action="store_true", help="do not look at images, 0.1 ms each the first time")
    parser.add_argument("--workers", type=int, default=4)
    return parser.parse_args()


def write_coco(folder: Path, images: int, objects: int, *, polygons: bool) -> Path:
    """Writes a card and a COCO file with ``objects`` random boxes on ``images`` images, and these; returns the file.

    Records are written as they are made, so that a large file takes no memory.
    """
    rng, path = random.Random(0), folder / "instances.json"
    (folder / "images").mkdir()
    card = {"format": "coco", "classes": [*CLASSES], "root": str(folder)}
    card["splits"] = {"train": {"annotations": path.name, "images": "images"}}
    (folder / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    with path.open("w", encoding="utf-8") as stream:
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
        stream.write(f'{{"info": {{}}, "categories": {json.dumps(categories)}, "images": [')
        for number in range(images):
            name = f"{number:012d}.jpg"
            _add_image(folder, number, name)
            stream.write(f'{", " * (number > 0)}{{"id": {number}, "file_name": "{name}", "height": 480, "width": 640}}')
        stream.write('], "annotations": [')
        for number in range(objects):
            stream.write(f"{', ' * (number > 0)}{_annotation(number, images, rng, polygons=polygons)}")
        stream.write("]}")
    return path


def _add_image(folder: Path, number: int, name: str) -> None:
    original = folder / f"{number // LINKS}.jpg"
    if number % LINKS == 0:
        Image.new("RGB", (640, 480)).save(original)
    os.link(original, folder / "images" / name)


def _annotation(number: int, images: int, rng: random.Random, *, polygons: bool) -> str:
    drawn = rng.random
    polygon = ", ".join(f"{400 * drawn():.2f}" for _ in range(40)) if polygons else ""
    return (
        f'{{"id": {number + 1}, "image_id": {int(images * drawn())}, "category_id": {int(len(CLASSES) * drawn()) + 1}, '
        f'"bbox": [{500 * drawn():.2f}, {400 * drawn():.2f}, 60.5, 50.25], "area": 2000.0, "iscrowd": 0, '
        f'"segmentation": [{f"[{polygon}]" if polygons else ""}]}}'
    )


def in_a_process(work: Callable[[Path, Connection, int], None], folder: Path, workers: int) -> None:
    """Runs ``work`` in a new process and prints its line."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(folder, sender, workers))
    process.start()
    sender.close()
    print(receiver.recv(), flush=True)
    process.join()


def _told(what: str, index: AnnotationIndex, started: float, cpu: float) -> str:
    seconds, own = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = f"{len(index)} images, {len(index.boxes)} objects"
    return f"{what}: {size} in {seconds:.1f} s ({own:.1f} s of a core), peak {peak:.0f} MiB"


def read(folder: Path, answer: Connection, _workers: int) -> None:
    """Reads only the annotations."""
    os.environ["RESDET_CACHE"] = str(folder / "cache")
    what = "annotations, later" if (folder / "cache").exists() else "annotations, first"
    card = load_card(str(folder / "card.yaml"))
    started, cpu = time.perf_counter(), time.process_time()
    index, problems = read_coco(folder, card.splits["train"], CLASSES, drop=True, exif="apply")
    assert not problems, problems[:3]
    answer.send(_told(what, index, started, cpu))


def load(folder: Path, answer: Connection, workers: int) -> None:
    """Loads the data set as a training does."""
    os.environ["RESDET_CACHE"] = str(folder / "cache")
    what = "data set, later" if [*folder.glob("cache/data/*.json")] else "data set, first"
    started, cpu = time.perf_counter(), time.process_time()
    index, problems = load_dataset([f"{folder / 'card.yaml'}:train"], folder)
    assert not problems, problems[:3]
    told = _told(what, index, started, cpu)
    if workers:
        told += f"\neach of {workers} workers adds (MiB): {', '.join(f'{mib:.1f}' for mib in added(index, workers))}"
    answer.send(told)


def added(index: AnnotationIndex, workers: int) -> list[float]:
    """Returns the private MiB of each of so many forked workers after it has touched every object."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = [context.Process(target=touch, args=(index, sender)) for _, sender in pipes]
    for process in processes:
        process.start()
    found = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join()
    return found


def touch(index: AnnotationIndex, answer: Connection) -> None:
    before = private_mib()
    for row in range(len(index)):
        _ = index.target(row), index.paths[row]
    answer.send(private_mib() - before)
    time.sleep(1)  # so that all workers are alive while the others measure


def private_mib() -> float:
    """Returns the private MiB of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_coco(folder, args.images, args.objects, polygons=not args.boxes)
        print(f"annotation file: {path.stat().st_size / 2**20:.0f} MiB", flush=True)
        for work in (read, read) if args.annotations else (read, read, load, load):
            in_a_process(work, folder, args.workers)
        kept = (folder / "cache").rglob("*.safetensors")
        print(f"kept: {sum(file.stat().st_size for file in kept) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
