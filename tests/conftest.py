"""Builders of tiny data sets and of objects that several test files share; each fixture gives a function."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from detection.cli import main
from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.data.packed_strings import PackedStrings
from detection.structures import Proposals, Target

Box = tuple[float, float, float, float]
VOCObjects = Sequence[tuple[str, Box, bool]]  # class name, (xmin, ymin, xmax, ymax) as in the XML, difficult
Objects = Sequence[tuple[Box, int, bool]]  # (x1, y1, x2, y2), label, ignore
CLASSES = ("cat", "dog")
TINY = yaml.safe_load("""
backbone: {name: resnet18, norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, samples_per_image: 16, pre_nms_train: 64, pre_nms_test: 64,
  post_nms_train: 16, post_nms_test: 16, min_size: 2}
box: {samples_per_image: 8}
data: {train: ["digits:train"], shorter_side: 64, longer_side: 96, workers: 1}
device: cpu
""")


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def nothing_kept() -> None:
    """Tests find out for themselves what data sets hold; those of what is kept name a folder."""
    os.environ["RESDET_CACHE"] = "off"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    status: Any  # its exit status
    out: str
    err: str


@pytest.fixture(scope="session")
def resdet() -> Callable[..., Outcome]:
    """Runs ``resdet`` with these arguments, but in this process, which saves its imports."""

    def run(*arguments: str | Path) -> Outcome:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as end:
                status = end.code
        return Outcome(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def succeeds(resdet: Callable[..., Outcome]) -> Callable[..., str]:
    """Runs ``resdet`` with these arguments, which must end well and name no error; gives what it printed."""

    def run(*arguments: str | Path) -> str:
        outcome = resdet(*arguments)
        assert (outcome.status or 0, outcome.err) == (0, "")
        return outcome.out

    return run


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """A VOC data set of 60x80 (height x width) pictures at tmp_path/FOLDER with one split."""

    def make(images: Mapping[str, VOCObjects], folder: str = "voc", split: str = "train", sizes: Any = None) -> Path:
        root = tmp_path / folder
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / part).mkdir(parents=True, exist_ok=True)
        for number, (stem, objects) in enumerate(images.items()):
            size = (sizes or {}).get(stem, (60, 80))
            _noise(size, seed=number).save(root / "JPEGImages" / f"{stem}.jpg")
            (root / "Annotations" / f"{stem}.xml").write_text(_voc_xml(size, objects))
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in images))
        return root

    return make


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """A COCO data set of 60x80 (height x width) pictures at tmp_path/FOLDER with one split; gives its JSON file."""

    def make(
        images: Mapping[int, str],
        annotations: Any,
        *,
        categories: Any = None,
        folder: str = "coco",
        split: str = "train",
    ) -> Path:
        root = tmp_path / folder
        (root / split).mkdir(parents=True, exist_ok=True)
        for number, name in images.items():
            _noise((60, 80), seed=number).save(root / split / name)
        records = [{"id": number, "file_name": name, "height": 60, "width": 80} for number, name in images.items()]
        classes = [{"id": n, "name": name} for n, name in (categories or {3: "cat", 18: "dog"}).items()]
        file = root / f"{split}.json"
        file.write_text(json.dumps({"images": records, "annotations": list(annotations), "categories": classes}))
        return file

    return make


@pytest.fixture
def write_card(tmp_path: Path) -> Callable[..., str]:
    """A card at tmp_path/NAME.yaml for what make_voc or make_coco wrote; keys given as None are left out."""

    def write(kind: str, *, card: str | None = None, **keys: Any) -> str:
        voc, coco = {"list": "ImageSets/Main/train.txt"}, {"annotations": "train.json", "images": "train"}
        entry = voc if kind == "voc" else coco
        values = {"format": kind, "root": kind, "classes": ["cat", "dog"], "splits": {"train": entry}} | keys
        path = tmp_path / f"{card or kind}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return str(path)

    return write


@pytest.fixture
def make_index() -> Callable[..., AnnotationIndex]:
    """An index made by hand, without files: one list of objects per image; an area is that of the box."""

    def make(
        images: Sequence[Objects], *, ids: Any = None, sizes: Any = None, paths: Any = None, class_names: Any = CLASSES
    ) -> AnnotationIndex:
        objects = [item for image in images for item in image]
        boxes = torch.tensor([box for box, _, _ in objects], dtype=torch.float32).reshape(-1, 4)
        return AnnotationIndex(
            class_names=class_names,
            category_ids=tuple(range(1, len(class_names) + 1)),
            paths=PackedStrings.pack(paths or [f"{row}.jpg" for row in range(len(images))]),
            image_ids=torch.tensor(ids or range(1, len(images) + 1), dtype=torch.int64),
            sizes=torch.tensor(sizes or [(60, 80)] * len(images), dtype=torch.int32).reshape(-1, 2),
            apply_exif=torch.ones(len(images), dtype=torch.bool),
            ends=torch.tensor([len(image) for image in images], dtype=torch.int64).cumsum(0),
            boxes=boxes,
            labels=torch.tensor([label for _, label, _ in objects], dtype=torch.int64),
            ignore=torch.tensor([ignore for _, _, ignore in objects], dtype=torch.bool),
            areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        )

    return make


@pytest.fixture(scope="session")
def make_target() -> Callable[..., Target]:
    """The objects of one image; labels are 0 and nothing is ignored unless said."""

    def make(
        boxes: Sequence[Sequence[float]] = (), labels: Any = (), ignore: Any = (), *, masks: Tensor | None = None
    ) -> Target:
        return Target(
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
            ignore=torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
            masks=masks,
        )

    return make


@pytest.fixture(scope="session")
def make_proposals() -> Callable[..., Proposals]:
    """Proposals of one image, all with the score 0 unless said."""

    def make(*boxes: Sequence[float], scores: Sequence[float] = ()) -> Proposals:
        rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return Proposals(boxes=rows, scores=torch.tensor(scores or [0.0] * len(boxes)))

    return make


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DetectionConfig]:
    """A training so small that it can be tried many times, with the named keys of its solver section, of 8 images."""
    root = write_digits(tmp_path_factory.mktemp("root"), num_train=8, num_test=1).parent

    def make(**solver: Any) -> DetectionConfig:
        options = {"log_every": 1, "steps": [], "clip_norm": 5.0, **solver}
        return build_dataclass(DetectionConfig, TINY | {"data": TINY["data"] | {"root": str(root)}, "solver": options})

    return make


@pytest.fixture
def not_under_nohup() -> Iterator[None]:
    """Lets SIGHUP be heard, which stays ignored where the tests were started under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def data_root_for_tests() -> Path:
    """The folder with the small real data sets bccd and coco128, for tests marked ``data``."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("RESDET_TEST_DATA") or beside)
    missing = [name for name in ("bccd", "coco128") if not (root / name).is_dir()]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} in {root}; set RESDET_TEST_DATA to the folder that holds them")
    return root


def _noise(size: tuple[int, int], *, seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _voc_xml(size: tuple[int, int], objects: VOCObjects) -> str:
    width, height = (f"<{key}>{side}</{key}>" for key, side in (("width", size[1]), ("height", size[0])))
    parts = ["<annotation><size>", width, height, "<depth>3</depth></size>"]
    for name, box, difficult in objects:
        sides = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        parts.append(f"<object><name>{escape(name)}</name><difficult>{int(difficult)}</difficult>")
        parts.append(f"<bndbox>{sides}</bndbox></object>")
    return "".join([*parts, "</annotation>"])
