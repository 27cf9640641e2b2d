"""Folders of images with the same objects in every label format, and pages in a headless browser."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detection.engine import compiled
from detection.engine.checkpoint import read_checkpoint
from detection.progress import SCREEN
from detection.tasks.test import run_test

Box = tuple[float, float, float, float]
CLASSES = ("bolt", "nut")


@dataclass(frozen=True, slots=True)
class Thing:
    """An object with its polygon, whose extent is the box."""

    name: str
    box: Box

    @property
    def polygon(self) -> list[tuple[float, float]]:
        """Eight points: the box with its corners cut off."""
        x1, y1, x2, y2 = self.box
        dx, dy = (x2 - x1) / 4, (y2 - y1) / 4
        return [
            (x1 + dx, y1), (x2 - dx, y1), (x2, y1 + dy), (x2, y2 - dy),
            (x2 - dx, y2), (x1 + dx, y2), (x1, y2 - dy), (x1, y1 + dy),
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file's name and size, and what is in it."""

    name: str
    height: int
    width: int
    things: tuple[Thing, ...]


def scenes(count: int = 12) -> list[Picture]:
    """Pictures of two sizes with one to three objects at whole pixels; the last has none."""
    generator, pictures = np.random.default_rng(0), list[Picture]()
    for number in range(count):
        height, width = ((60, 80), (96, 64))[number % 2]
        things = list[Thing]()
        for place in range(0 if number == count - 1 else 1 + number % 3):
            x, y = (int(generator.integers(0, side - 33)) for side in (width, height))
            box = (float(x), float(y), float(x + generator.integers(12, 33)), float(y + generator.integers(12, 33)))
            things.append(Thing(CLASSES[(number + place) % 2], box))
        pictures.append(Picture(f"photo{number}.jpg", height, width, tuple(things)))
    return pictures


def draw(picture: Picture, path: Path) -> None:
    """Writes the picture: noise of its own, and its objects in the colour of their class."""
    generator = np.random.default_rng(int("".join(filter(str.isdigit, picture.name)) or 0))
    coarse = Image.fromarray(generator.integers(0, 200, (6, 6, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((picture.width, picture.height), Image.Resampling.BICUBIC))
    for thing in picture.things:
        x1, y1, x2, y2 = map(int, thing.box)
        pixels[y1:y2, x1:x2] = (255, 40, 40) if thing.name == "bolt" else (40, 255, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def element(parent: ElementTree.Element, name: str, text: Any = None, /, **attributes: Any) -> ElementTree.Element:
    node = ElementTree.SubElement(parent, name, {key: str(value) for key, value in attributes.items()})
    node.text = None if text is None else str(text)
    return node


def draw_all(folder: Path, pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        draw(picture, folder / picture.name)


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def write_voc(folder: Path, pictures: Sequence[Picture], images: str = "JPEGImages", xml: str = "Annotations") -> None:
    draw_all(folder / images, pictures)
    (folder / xml).mkdir(exist_ok=True)
    for picture in pictures:
        root = ElementTree.Element("annotation")
        size = element(root, "size")
        for key, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
            element(size, key, value)
        for thing in picture.things:
            node = element(root, "object")
            element(node, "name", thing.name)
            bounds, (x1, y1, x2, y2) = element(node, "bndbox"), thing.box
            for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                element(bounds, key, f"{value:g}")
        ElementTree.ElementTree(root).write(folder / xml / Path(picture.name).with_suffix(".xml"))


def write_voc_flat(folder: Path, pictures: Sequence[Picture]) -> None:
    write_voc(folder, pictures, images=".", xml=".")


def coco_content(pictures: Sequence[Picture]) -> dict[str, Any]:
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, picture in enumerate(pictures):
        sizes = {"height": picture.height, "width": picture.width}
        images.append({"id": number, "file_name": picture.name, **sizes})
        for thing in picture.things:
            (x1, y1, x2, y2), ids = thing.box, {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            polygon = [[value for point in thing.polygon for value in point]]
            category = 1 + CLASSES.index(thing.name)
            annotations.append({**ids, "category_id": category, **shape, "segmentation": polygon})
    # As Roboflow writes them, with a class above the others.
    categories = [{"id": 0, "name": "parts", "supercategory": "none"}]
    categories += [{"id": 1 + n, "name": name, "supercategory": "parts"} for n, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, pictures: Sequence[Picture]) -> None:
    draw_all(folder / "images", pictures)
    write_json(folder / "labels.json", coco_content(pictures))


def write_roboflow(folder: Path, pictures: Sequence[Picture]) -> None:
    """COCO as Roboflow exports it: a file beside the images of each split."""
    for split, own in (("train", pictures[:-4]), ("valid", pictures[-4:-2]), ("test", pictures[-2:])):
        draw_all(folder / split, own)
        write_json(folder / split / "_annotations.coco.json", coco_content(own))


def yolo_lines(picture: Picture, *, polygons: bool) -> str:
    lines, width, height = list[str](), picture.width, picture.height
    for thing in picture.things:
        x1, y1, x2, y2 = thing.box
        corners = [value for x, y in thing.polygon for value in (x / width, y / height)]
        box = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        values = " ".join(f"{value:.6f}" for value in (corners if polygons else box))
        lines.append(f"{CLASSES.index(thing.name)} {values}\n")
    return "".join(lines)


def write_yolo(folder: Path, pictures: Sequence[Picture], *, polygons: bool = False) -> None:
    """As Ultralytics: images/train, labels/train and a data.yaml."""
    for split, own in (("train", pictures[:-3]), ("val", pictures[-3:])):
        draw_all(folder / "images" / split, own)
        (folder / "labels" / split).mkdir(parents=True)
        for picture in own:
            if picture.things:
                label = folder / "labels" / split / Path(picture.name).with_suffix(".txt")
                label.write_text(yolo_lines(picture, polygons=polygons))
    names = "path: ../somewhere\ntrain: images/train\nval: images/val\nnames: {0: bolt, 1: nut}\n"
    (folder / "data.yaml").write_text(names)


def write_yolo_plain(folder: Path, pictures: Sequence[Picture]) -> None:
    """Text files beside the images, and a file with a class a line."""
    draw_all(folder, pictures)
    for picture in pictures:
        (folder / picture.name).with_suffix(".txt").write_text(yolo_lines(picture, polygons=False))
    (folder / "classes.txt").write_text("bolt\nnut\n")


def write_labelme(folder: Path, pictures: Sequence[Picture]) -> None:
    draw_all(folder, pictures)
    for number, picture in enumerate(pictures):
        shapes = list[dict[str, Any]]()
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            # Rectangles may begin at any corner.
            points = [[x2, y1], [x1, y2]] if number % 2 else [[*point] for point in thing.polygon]
            kind = "rectangle" if number % 2 else "polygon"
            shapes.append({"label": thing.name, "points": points, "shape_type": kind, "group_id": None, "flags": {}})
        image = {"imagePath": f"..\\pictures\\{picture.name}", "imageData": None}
        sizes = {"imageHeight": picture.height, "imageWidth": picture.width}
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, **image, **sizes}
        write_json((folder / picture.name).with_suffix(".json"), content)


def write_cvat(folder: Path, pictures: Sequence[Picture]) -> None:
    draw_all(folder / "images", pictures)
    root = ElementTree.Element("annotations")
    element(root, "version", "1.1")
    labels = element(element(element(root, "meta"), "task"), "labels")
    for name in CLASSES:
        element(element(labels, "label"), "name", name)
    for number, picture in enumerate(pictures):
        node = element(root, "image", id=number, name=picture.name, width=picture.width, height=picture.height)
        for place, thing in enumerate(picture.things):
            if place % 2:
                element(
                    node, "polygon", label=thing.name, points=";".join(f"{x:.2f},{y:.2f}" for x, y in thing.polygon)
                )
            else:
                corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), (f"{value:.2f}" for value in thing.box), strict=True))
                element(node, "box", label=thing.name, occluded=0, **corners)
    ElementTree.ElementTree(root).write(folder / "annotations.xml")


def studio_value(picture: Picture, thing: Thing, *, polygon: bool) -> dict[str, Any]:
    (x1, y1, x2, y2), across, down = thing.box, 100 / picture.width, 100 / picture.height
    sides = {"original_width": picture.width, "original_height": picture.height}
    if polygon:
        points = [[100 * x / picture.width, 100 * y / picture.height] for x, y in thing.polygon]
        return {"points": points, "closed": True, "polygonlabels": [thing.name], **sides}
    shape = {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across, "height": (y2 - y1) * down, "rotation": 0}
    return {**shape, "rectanglelabels": [thing.name], **sides}


def write_label_studio(folder: Path, pictures: Sequence[Picture]) -> None:
    """JSON-MIN, with names as they are after an upload."""
    draw_all(folder / "images", pictures)
    tasks = list[dict[str, Any]]()
    for number, picture in enumerate(pictures):
        task: dict[str, Any] = {"id": number, "image": f"/data/upload/1/0a1b2c3d-{picture.name}", "annotator": 1}
        if picture.things:
            task["label"] = [studio_value(picture, thing, polygon=bool(number % 2)) for thing in picture.things]
        tasks.append(task)
    write_json(folder / "project-1-min.json", tasks)


def write_label_studio_full(folder: Path, pictures: Sequence[Picture]) -> None:
    draw_all(folder / "images", pictures)
    tasks, box = list[dict[str, Any]](), {"x": 0, "y": 0, "width": 9, "height": 9, "rectanglelabels": ["nut"]}
    wrong = {"was_cancelled": True, "result": [{"value": box}]}
    for number, picture in enumerate(pictures):
        values = [studio_value(picture, thing, polygon=False) for thing in picture.things]
        results = [{"type": "rectanglelabels", "value": value, **value} for value in values]
        image = f"/data/local-files/?d=disk/images/{picture.name}"
        tasks.append({"id": number, "data": {"image": image}, "annotations": [wrong, {"result": results}]})
    write_json(folder / "export.json", tasks)


def write_rows(file: Path, rows: Sequence[Sequence[Any]], *, delimiter: str = ",") -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)


def write_open_images(folder: Path, pictures: Sequence[Picture]) -> None:
    draw_all(folder / "images", pictures)
    header = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
    rows: list[list[Any]] = [[*header]]
    for picture in pictures:
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            corners = [x1 / picture.width, x2 / picture.width, y1 / picture.height, y2 / picture.height]
            name = {"bolt": "/m/01", "nut": "/m/02"}[thing.name]
            rows.append([Path(picture.name).stem, "xclick", name, 1, *(f"{value:.6f}" for value in corners), 0])
    write_rows(folder / "boxes.csv", rows)
    write_rows(folder / "class-descriptions-boxable.csv", [["/m/01", "bolt"], ["/m/02", "nut"]])


def write_csv(folder: Path, pictures: Sequence[Picture]) -> None:
    """As TensorFlow's tutorials: filename, width, height, class and corners; here with semicolons."""
    draw_all(folder / "photos", pictures)
    rows: list[list[Any]] = [["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]]
    for picture in pictures:
        things = [[thing.name, *thing.box] for thing in picture.things] or [[""] * 5]
        rows += [[picture.name, picture.width, picture.height, *own] for own in things]
    write_rows(folder / "boxes.csv", rows, delimiter=";")


def write_csv_without_header(folder: Path, pictures: Sequence[Picture]) -> None:
    draw_all(folder, pictures)
    rows = list[list[Any]]()
    for picture in pictures:
        rows += [[picture.name, *own] for own in [[*thing.box, thing.name] for thing in picture.things] or [[""] * 5]]
    write_rows(folder / "boxes.csv", rows)


FORMATS = [write_voc, write_voc_flat, write_coco, write_roboflow, write_yolo, write_yolo_plain, write_labelme]
FORMATS += [write_cvat, write_label_studio, write_label_studio_full, write_open_images]
FORMATS += [write_csv, write_csv_without_header]
WRITERS: dict[str, Callable[..., None]] = {write.__name__.removeprefix("write_"): write for write in FORMATS}
WRITERS["yolo_polygons"] = partial(write_yolo, polygons=True)


@pytest.fixture
def made_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes pictures of bolts and nuts in one of ``WRITERS`` formats; gives their folder."""

    def make(kind: str, *, count: int = 12, name: str | None = None) -> Path:
        folder = tmp_path / (name or kind)
        folder.mkdir(parents=True)
        WRITERS[kind](folder, scenes(count))
        return folder

    return make


@pytest.fixture
def made_boxes() -> Callable[..., dict[str, list[tuple[str, Box]]]]:
    """What ``made_folder`` writes: file name -> class and box of its objects."""

    def boxes(count: int = 12) -> dict[str, list[tuple[str, Box]]]:
        return {p.name: [(thing.name, thing.box) for thing in p.things] for p in scenes(count)}

    return boxes


@pytest.fixture(scope="session")
def random_boxes() -> Callable[..., Tensor]:
    """Boxes (.., 4) that overlap a good deal: sides of ``least`` to ``most``, lower corners up to ``span``."""

    def make(*shape: int, seed: int = 0, span: float = 60, least: float = 5, most: float = 45) -> Tensor:
        corners, sides = torch.rand(2, *shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return torch.cat([span * corners, span * corners + least + (most - least) * sides], dim=-1).float()

    return make


# pages in a headless browser

CHROMIUM = shutil.which("chromium")

# Looks at every element with text of its own.  An element in a box that scrolls may reach over the window's edge, and
# white text of a figure stands on its dark cells.
PROBE = """
const root = document.documentElement, edge = root.clientWidth;
const seen = { width: innerWidth, over: root.scrollWidth - edge, outside: [], overlap: [], pale: [] };
const texts = [...document.querySelectorAll("body *")].filter(e => !e.closest("script, style, defs, title") &&
  [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
const name = e => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`;
const box = e => { const r = document.createRange(); r.selectNodeContents(e); return r.getBoundingClientRect(); };
const light = c => c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const rgb = text => (text.match(/[\\d.]+/g) || [255, 255, 255]).map(Number);
const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
for (const e of texts) {
  const b = box(e), style = getComputedStyle(e);
  if (!b.width || style.visibility === "hidden") continue;
  if (!e.closest(".scroll") && (b.right > edge + 1 || b.left < -1)) seen.outside.push(name(e));
  const svg = e.closest("svg"), ink = rgb(svg ? style.fill : style.color).slice(0, 3);
  const [a, c] = [light(ink), light(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (c + 0.05);
  if (!(svg && light(ink) > 0.5) && ratio < 4.5) seen.pale.push(`${name(e)}: ${ratio.toFixed(1)}`);
}
// What shares a table's row or a figure is compared; a column that stays in sight may cover others.
for (const group of document.querySelectorAll("svg, thead tr, tbody tr, nav, dl, .lead")) {
  const own = texts.filter(e => group.contains(e)).map(e => [e, box(e)]);
  own.forEach(([e, a], i) => own.slice(i + 1).forEach(([f, b]) => {
    if (e.contains(f) || f.contains(e)) return;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1.5 && high > 3) seen.overlap.push(`${name(e)} / ${name(f)}`);
  }));
}
document.title = JSON.stringify(seen);
"""


@pytest.fixture
def page_probe() -> str:
    """A script that puts into the title of a page what it sees there, as JSON."""
    return PROBE


@pytest.fixture
def browse() -> Callable[..., str]:
    """Runs a headless browser with options and, last, a file; gives what it prints."""
    if CHROMIUM is None:
        pytest.skip("chromium is not on PATH")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]

    def run(*options: str, file: Path) -> str:
        started = [*command, *options, f"file://{file}"]
        return subprocess.run(started, check=True, capture_output=True, text=True, timeout=120).stdout

    return run


@pytest.fixture
def inspect_page(browse) -> Callable[..., dict[str, Any]]:
    """What a page of this width (pixels) shows: see ``PROBE``; skipped where there is no browser."""

    def inspect(page: Path, width: int, *, script: str = "") -> dict[str, Any]:
        # A window is at least 500 pixels wide; a frame is as narrow as a phone.
        probed, frame = page.with_name("probed.html"), page.with_name("frame.html")
        probed.write_text(page.read_text().replace("</body>", f"<script>{script};{PROBE}</script></body>"))
        inner = f'<iframe src="probed.html" width="{width}" height="900" style="border:0"></iframe>'
        frame.write_text(f"{inner}<script>onload = () => document.title = frames[0].document.title</script>")
        size = f"--window-size={max(width, 500) + 40},1000"
        dom = browse("--dump-dom", "--allow-file-access-from-files", size, file=frame)
        title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
        assert title is not None
        return json.loads(html.unescape(title[1]))

    return inspect


@pytest.fixture(scope="session")
def write_colors() -> Callable[..., None]:
    """Writes so many red and blue images a split, such as ``train=6``, below a folder, and their card.yaml."""

    def write(folder: Path, **counts: int) -> None:
        random = np.random.default_rng(0)
        for split, count in counts.items():
            for channel, name in ((0, "red"), (2, "blue")):
                (folder / split / name).mkdir(parents=True)
                for number in range(count):
                    pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                    pixels[..., channel] += 100
                    Image.fromarray(pixels).save(folder / split / name / f"{number:04}.png")
        card = {"format": "image_folder", "root": str(folder), "classes": ["red", "blue"]}
        write_json(folder / "card.yaml", card | {"splits": {split: {"folder": split} for split in counts}})

    return write


@pytest.fixture
def assert_readable(inspect_page) -> Callable[[Path], None]:
    """Asserts that on a phone and on a desk nothing of a page is outside, overlaps or is pale."""

    def check(page: Path) -> None:
        for width in (390, 1280):
            assert inspect_page(page, width) == {"width": width, "over": 0, "outside": [], "overlap": [], "pale": []}

    return check


@pytest.fixture
def print_page(browse) -> Callable[[Path], bytes]:
    """The PDF of a page; skipped where there is no browser."""

    def print_it(page: Path) -> bytes:
        pdf = page.with_suffix(".pdf")
        browse(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", file=page)
        return pdf.read_bytes()

    return print_it


@pytest.fixture
def said() -> list[str]:
    """Takes lines: ``say=said.append``."""
    return []


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo makes the graphs, and eager PyTorch runs them."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch.compiler.reset()


class Terminal(io.StringIO):
    """A terminal of 80 columns, as far as a program that writes to it can tell."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """Every line that was ever drawn, without control sequences and empty ones."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Takes what is drawn on SCREEN."""
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(SCREEN, "_file", made)
    monkeypatch.setattr(SCREEN, "_width", 80)
    monkeypatch.setattr(SCREEN, "is_interactive", True)  # found out when it was made
    return made


class _NoReader(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture
def no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads what is printed, as after ``| head`` has ended."""
    monkeypatch.setattr(SCREEN, "quiet", False)  # and as before once the test is over
    monkeypatch.setattr(sys, "stdout", _NoReader())


@pytest.fixture(scope="session")
def tested_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with masks, tested on its four training images; a test that writes copies it."""
    old = Path(__file__).parents[1] / "old_runs"
    run = tmp_path_factory.mktemp("tested") / "parts"
    shutil.copytree(old / "format2" / "mask", run)
    checkpoint, data = read_checkpoint(run), old / "data"
    spec = f"{data / 'old_coco.yaml'}:train"
    config = replace(checkpoint.config, data=replace(checkpoint.config.data, test=(spec,), root=str(data), workers=0))
    run_test(config, checkpoint, run / "test", say=lambda _: None)
    return run
