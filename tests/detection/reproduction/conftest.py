"""Stand-ins for VOC and COCO, in their real layouts, and a schedule of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.cards import load_card

VOC_LISTS = {"VOC2007": ("trainval", "test"), "VOC2012": ("trainval",)}
COCO_SPLITS = ("train", "val")
COLOURS = {"cat": (230, 60, 40), "dog": (40, 90, 230)}
SIZE = (48, 64)  # height, width

TINY = (
    "backbone.name=resnet18",
    "backbone.weights=null",
    "backbone.norm=gn",
    "backbone.freeze_at=0",
    "backbone.tail_stride=1",
    "backbone.roi_size=2",
    "anchors.sizes=[16,32]",
    "rpn.channels=16",
    "rpn.allow_outside=true",
    "rpn.pre_nms_train=64",
    "rpn.pre_nms_test=64",
    "rpn.post_nms_train=16",
    "rpn.post_nms_test=16",
    "box.samples_per_image=16",
    "test.score_threshold=0.01",
    "data.shorter_side=48",
    "data.longer_side=64",
    "data.workers=0",
    "solver.images_per_step=1",
    "solver.accumulate=1",
    "solver.checkpoint_every=0",
    "solver.log_every=1",
    "solver.log_sinks=[]",
    "solver.layout=contiguous",
    "alternating.rpn_iterations=2",
    "alternating.rpn_steps=[]",
    "alternating.box_iterations=1",
    "alternating.box_steps=[]",
    "alternating.rpn_images_per_step=1",
    "alternating.box_images_per_step=1",
    "device=cpu",
)


def draw(path: Path, seed: int) -> tuple[str, tuple[int, int, int, int]]:
    """Writes a picture of one coloured rectangle; returns its class and (x1, y1, x2, y2)."""
    rng = np.random.default_rng(seed)
    name = ("cat", "dog")[seed % 2]
    pixels = rng.integers(0, 90, (*SIZE, 3), dtype=np.uint8)
    x, y = (int(value) for value in rng.integers(2, 24, 2))
    pixels[y : y + 20, x : x + 28] = COLOURS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return name, (x, y, x + 28, y + 20)


def write_voc(root: Path) -> None:
    """VOCdevkit/VOC2007 and VOC2012 with JPEGImages, Annotations and ImageSets/Main."""
    for year, lists in VOC_LISTS.items():
        folder = root / "VOCdevkit" / year
        for part, split in enumerate(lists):
            stems = [
                f"{1000 * part + number:06d}" if year == "VOC2007" else f"2008_{number:06d}" for number in range(4)
            ]
            for number, stem in enumerate(stems):
                seed = int(year[3:]) + 10 * part + number
                name, (x1, y1, x2, y2) = draw(folder / "JPEGImages" / f"{stem}.jpg", seed)
                xml = (
                    f"<annotation><filename>{stem}.jpg</filename>"
                    f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
                    f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
                    f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
                )
                (folder / "Annotations").mkdir(exist_ok=True)
                (folder / "Annotations" / f"{stem}.xml").write_text(xml)
            listed = folder / "ImageSets" / "Main" / f"{split}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(f"{stem}\n" for stem in stems))


def write_coco(root: Path) -> None:
    """coco/annotations/instances_{train,val}2014.json and the folders of their images."""
    ids = {name: number for number, name in enumerate(load_card("coco2014").classes, start=1)}
    for part, split in enumerate(COCO_SPLITS):
        images, annotations = [], []
        for number in range(1, 5):
            file = f"COCO_{split}2014_{number + 100 * part:012d}.jpg"
            name, (x1, y1, x2, y2) = draw(root / "coco" / f"{split}2014" / file, 40 + 10 * part + number)
            box = [x1, y1, x2 - x1, y2 - y1]
            images.append({"id": number + 100 * part, "file_name": file, "height": SIZE[0], "width": SIZE[1]})
            annotations.append(
                {
                    "id": number,
                    "image_id": number + 100 * part,
                    "category_id": ids[name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        file = root / "coco" / "annotations" / f"instances_{split}2014.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with four images a split of VOC 2007, VOC 2012 and COCO 2014."""
    root = tmp_path_factory.mktemp("data")
    write_voc(root)
    write_coco(root)
    return root


@pytest.fixture(scope="session")
def tiny(stand_ins: Path) -> tuple[str, ...]:
    """Changes that make every detector of the tables train on the stand-ins in a few steps."""
    return (f"data.root={stand_ins}", *TINY)
