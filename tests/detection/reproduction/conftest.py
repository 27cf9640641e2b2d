"""Stand-ins for VOC and COCO, in their real layouts, and a schedule of a few steps."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.cards import load_card

COLOURS = {"cat": (230, 60, 40), "dog": (40, 90, 230)}
HEIGHT, WIDTH = 48, 64

TINY = """
backbone.name=resnet18 backbone.weights=null backbone.norm=gn backbone.freeze_at=0 backbone.tail_stride=1
backbone.roi_size=2 anchors.sizes=[16,32] rpn.channels=16 rpn.allow_outside=true rpn.pre_nms_train=64
rpn.pre_nms_test=64 rpn.post_nms_train=16 rpn.post_nms_test=16 box.samples_per_image=16 test.score_threshold=0.01
data.shorter_side=48 data.longer_side=64 data.workers=0 solver.images_per_step=1 solver.accumulate=1
solver.checkpoint_every=0 solver.log_every=1 solver.log_sinks=[] solver.layout=contiguous alternating.rpn_iterations=2
alternating.rpn_steps=[] alternating.box_iterations=1 alternating.box_steps=[] alternating.rpn_images_per_step=1
alternating.box_images_per_step=1 device=cpu
"""


def draw(path: Path, seed: int) -> tuple[str, tuple[int, int, int, int]]:
    """Writes a picture of one coloured rectangle; returns its class and (x1, y1, x2, y2)."""
    rng, name = np.random.default_rng(seed), ("cat", "dog")[seed % 2]
    pixels = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    x, y = rng.integers(2, 24, 2).tolist()
    pixels[y : y + 20, x : x + 28] = COLOURS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return name, (x, y, x + 28, y + 20)


def write_voc(folder: Path, split: str, stems: list[str]) -> None:
    """JPEGImages, Annotations and ImageSets/Main of a split of one year."""
    for seed, stem in enumerate(stems, start=int(stems[0][-4:])):
        name, (x1, y1, x2, y2) = draw(folder / "JPEGImages" / f"{stem}.jpg", seed)
        xml = (
            f"<annotation><filename>{stem}.jpg</filename>"
            f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
            f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
        )
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(xml)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def write_coco(root: Path, split: str, first: int) -> None:
    """Images of one split, and annotations/instances_SPLIT.json."""
    ids = {name: number for number, name in enumerate(load_card("coco2014").classes, start=1)}
    images, annotations = [], []
    for number in range(first, first + 4):
        file = f"COCO_{split}_{number:012d}.jpg"
        name, (x1, y1, x2, y2) = draw(root / split / file, number)
        images.append({"id": number, "file_name": file, "height": HEIGHT, "width": WIDTH})
        own = {"id": number, "image_id": number, "category_id": ids[name], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotations.append(own | {"area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[str, ...]:
    """Changes that make every detector train in a few steps on four images a split of VOC 2007, 2012 and COCO 2014."""
    root = tmp_path_factory.mktemp("data")
    for number, (year, split) in enumerate((("2007", "trainval"), ("2007", "test"), ("2012", "trainval"))):
        prefix = "00" if year == "2007" else "2008_00"
        stems = [f"{prefix}{1000 * number + i:04d}" for i in range(4)]
        write_voc(root / "VOCdevkit" / f"VOC{year}", split, stems)
    for first, split in ((1, "train2014"), (101, "val2014")):
        write_coco(root / "coco", split, first)
    return (f"data.root={root}", *TINY.split())
