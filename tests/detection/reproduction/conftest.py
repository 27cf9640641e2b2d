"""Stand-ins for VOC and COCO, in their real layouts, and a schedule of a few steps."""

from pathlib import Path

import pytest

from detection.data.cards import load_card

TINY = """
backbone.name=resnet18 backbone.weights=null backbone.norm=gn backbone.freeze_at=0 backbone.tail_stride=1
backbone.roi_size=2 anchors.sizes=[16,32] rpn.channels=16 rpn.allow_outside=true rpn.pre_nms_train=64
rpn.pre_nms_test=64 rpn.post_nms_train=16 rpn.post_nms_test=16 box.samples_per_image=16 test.score_threshold=0.01
data.shorter_side=48 data.longer_side=64 data.workers=0 solver.images_per_step=1 solver.accumulate=1
solver.checkpoint_every=0 solver.log_every=1 solver.log_sinks=[] solver.layout=contiguous alternating.rpn_iterations=2
alternating.rpn_steps=[] alternating.box_iterations=1 alternating.box_steps=[] alternating.rpn_images_per_step=1
alternating.box_images_per_step=1 device=cpu
"""


@pytest.fixture
def tiny(make_voc, make_coco, tmp_path) -> tuple[str, ...]:
    """Changes that make every detector train in a few steps on four images a split of VOC 2007, 2012 and COCO 2014."""
    for number, (year, split) in enumerate((("2007", "trainval"), ("2007", "test"), ("2012", "trainval"))):
        stems = [f"{'00' if year == '2007' else '2008_00'}{1000 * number + i:04d}" for i in range(4)]
        objects = [[(("cat", "dog")[i % 2], (10 + i, 8, 37 + i, 27), False)] for i in range(4)]
        make_voc(dict(zip(stems, objects, strict=True)), folder=f"data/VOCdevkit/VOC{year}", split=split)
    classes = load_card("coco2014").classes
    for first, split in ((1, "train2014"), (101, "val2014")):
        ids, box = range(first, first + 4), {"bbox": [10, 8, 28, 20], "area": 560, "iscrowd": 0}
        cats = [{"id": n, "image_id": n, "category_id": 1 + classes.index("cat"), **box} for n in ids]
        names = {n: f"COCO_{split}_{n:012d}.jpg" for n in ids}
        file: Path = make_coco(names, cats, categories=dict(enumerate(classes, 1)), folder="data/coco", split=split)
        (file.parent / "annotations").mkdir(exist_ok=True)
        file.rename(file.parent / "annotations" / f"instances_{split}.json")
    return (f"data.root={tmp_path / 'data'}", *TINY.split())
