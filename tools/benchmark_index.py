"""Time loading annotations of COCO train2017's size, and measure what worker processes add to memory.

Writes 118,287 empty image files and a JSON file with 860,001 boxes and polygons into a temporary folder, loads them as
training does, and lets every worker process touch all objects.  Linux only: it reads /proc.

examples:
  python tools/benchmark_index.py
  python tools/benchmark_index.py --images 10000 --objects 70000 --workers 8
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from detection.data.index import AnnotationIndex
from detection.data.readers.coco import read_coco

CLASSES = tuple(f"class {number}" for number in range(80))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--workers", type=int, default=4)
    return parser.parse_args()


def write_coco(folder: Path, images: int, objects: int, *, polygons: bool) -> Path:
    """Writes a COCO file with ``objects`` random boxes on ``images`` images, and the empty image files.

    Records are written as they are made, so that a large file takes no memory.
    """
    rng = random.Random(0)
    (folder / "images").mkdir()
    path = folder / "instances.json"
    with path.open("w", encoding="utf-8") as stream:
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)]
        stream.write(f'{{"info": {{}}, "categories": {json.dumps(categories)}, "images": [')
        for number in range(images):
            name = f"{number:012d}.jpg"
            (folder / "images" / name).touch()
            stream.write(f'{", " * (number > 0)}{{"id": {number}, "file_name": "{name}", "height": 480, "width": 640}}')
        stream.write('], "annotations": [')
        for number in range(objects):
            stream.write(f"{', ' * (number > 0)}{_annotation(number, images, rng, polygons=polygons)}")
        stream.write("]}")
    return path


def _annotation(number: int, images: int, rng: random.Random, *, polygons: bool) -> str:
    drawn = rng.random
    polygon = ", ".join(f"{400 * drawn():.2f}" for _ in range(40)) if polygons else ""
    return (
        f'{{"id": {number + 1}, "image_id": {int(images * drawn())}, "category_id": {int(len(CLASSES) * drawn()) + 1}, '
        f'"bbox": [{500 * drawn():.2f}, {400 * drawn():.2f}, 60.5, 50.25], "area": 2000.0, "iscrowd": 0, '
        f'"segmentation": [{f"[{polygon}]" if polygons else ""}]}}'
    )


def memory_mib(kinds: tuple[str, ...]) -> float:
    """MiB of this process that /proc counts as any of ``kinds``."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 1024


def work(index: AnnotationIndex, answer: Connection) -> None:
    """Touches every object and answers with the memory that this worker has for itself."""
    before = memory_mib(("Private_Clean", "Private_Dirty"))
    touched = sum(len(index.target(row)) + len(index.paths[row]) for row in range(len(index)))
    answer.send((touched, memory_mib(("Private_Clean", "Private_Dirty")) - before))
    time.sleep(1)  # so that all workers are alive while the others measure


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"writing {args.images} images and {args.objects} objects")
        path = write_coco(Path(folder), args.images, args.objects, polygons=True)
        gc.collect()
        print(f"annotation file: {path.stat().st_size / 2**20:.0f} MiB")
        started = time.perf_counter()
        entry = {"annotations": path.name, "images": "images"}
        index, problems = read_coco(Path(folder), entry, CLASSES, drop=True, exif="apply")
        print(f"loaded {len(index)} images, {len(index.boxes)} objects in {time.perf_counter() - started:.1f} s")
        assert not problems, problems[:3]
    gc.collect()
    tensors = (index.paths.characters, index.paths.ends, index.boxes, index.labels, index.ignore, index.areas)
    print(f"index: {sum(tensor.nbytes for tensor in tensors) / 2**20:.0f} MiB")
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(args.workers)]
    workers = [multiprocessing.Process(target=work, args=(index, sender)) for _, sender in pipes]
    for worker in workers:
        worker.start()
    added = [receiver.recv()[1] for receiver, _ in pipes]
    for worker in workers:
        worker.join()
    print(f"each of {args.workers} workers adds (MiB): {', '.join(f'{mib:.1f}' for mib in added)}")


if __name__ == "__main__":
    main()
