"""Files and numbers made by hand to do harm: each is refused by name or counted, in little time and memory."""

from __future__ import annotations

import json
import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from backbones.weights.load import read_state_dict
from backbones.weights.pickles import read_pickle
from detection.build import build_detector
from detection.config.detection import AnchorConfig, BoxConfig, DetectionConfig, DetectorBackboneConfig, RPNConfig
from detection.config.load import load_config, parse_config, parse_yaml
from detection.data import download
from detection.data.cards import load_card
from detection.data.check import check_objects
from detection.data.download import unpack
from detection.data.images import image_size, read_image
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.data.proposals import read_proposals, write_proposals
from detection.data.readers.coco import read_coco
from detection.data.readers.segmentation import read_instances
from detection.data.readers.voc import read_voc
from detection.masks import to_rle
from detection.model.matcher import Matcher
from detection.padded import Targets
from detection.structures import ImageBatch, Proposals, Target

MakeVOC = Callable[..., Path]
MakeCOCO = Callable[..., Path]
MakeIndex = Callable[..., AnnotationIndex]
CLASSES = ("cat", "dog")
VOC_ENTRY = {"list": "ImageSets/Main/train.txt"}
BOX: dict[str, Any] = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 5]}


@pytest.fixture(autouse=True)
def _soon_and_small() -> Iterator[None]:
    """No test here takes more than 20 seconds of work or 2 GiB."""
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2 << 20  # KiB


def voc_problems(root: Path, entry: dict[str, Any] = VOC_ENTRY) -> list[str]:
    return shown(read_voc(root, entry, CLASSES, drop=True, exif="apply")[1])


def coco_problems(file: Path, *, fields: Collection[str] = ()) -> list[str]:
    entry = {"annotations": "train.json", "images": "train"}
    return shown(read_coco(file.parent, entry, CLASSES, drop=True, exif="apply", fields=fields)[1])


def shown(problems: list[Problem]) -> list[str]:
    return [f"{problem.severity}: {problem.kind}: {problem.detail}" for problem in problems]


# XML


ENTITIES = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f'<!DOCTYPE x [<!ENTITY e0 "lol">{ENTITIES}]><annotation>&e12;</annotation>', id="billion laughs"),
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><filename>&e;</filename></annotation>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><annotation>&e;</annotation>',
        "",
        "<annotation>\0</annotation>",
        "<annotation><object>",
    ],
)
def test_xml_that_does_not_parse_is_counted(make_voc: MakeVOC, content: str) -> None:
    root = make_voc({"a": [], "b": []})
    (root / "Annotations" / "a.xml").write_text(content)
    (problem,) = voc_problems(root)
    assert problem.startswith("error: XML that does not parse: ")
    assert "root:" not in problem


def test_deep_xml_is_refused_or_read(make_voc: MakeVOC) -> None:
    root = make_voc({"a": []})
    deep = "<a>" * 200_000 + "</a>" * 200_000
    for text, kind in (
        (deep, "XML that isn't VOC's"),
        (f"<annotation>{deep}</annotation>", "element that isn't VOC's"),
    ):
        (root / "Annotations" / "a.xml").write_text(text)
        (problem,) = voc_problems(root)
        assert problem.startswith(f"error: {kind}: ")
    (root / "Annotations" / "a.xml").write_text(f"<annotation><folder>{deep}</folder></annotation>")
    assert voc_problems(root) == []  # its size is the image's


@pytest.mark.parametrize(("width", "height"), [("200000", "200000"), ("1e300", "5"), ("1e400", "5"), ("nan", "5")])
def test_absurd_sizes_in_xml(make_voc: MakeVOC, width: str, height: str) -> None:
    root = make_voc({"a": []})
    (root / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size></annotation>"
    )
    (problem,) = voc_problems(root)
    assert problem.startswith("error: size that can't be read: ")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\x", "a/../../x"])
def test_list_entries_that_leave_the_folder(make_voc: MakeVOC, name: str) -> None:
    root = make_voc({"a": []})
    (root / VOC_ENTRY["list"]).write_text(f"a\n{name}\n")
    assert voc_problems(root) == [f"error: image name that leaves the folder: {name!r}"]


def test_the_filename_in_the_xml_is_not_followed(make_voc: MakeVOC) -> None:
    root = make_voc({"a": []})
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<size>", "<filename>../../etc/passwd</filename><size>"))
    index, problems = read_voc(root, VOC_ENTRY, CLASSES, drop=True, exif="apply")
    assert (index.paths[0], problems) == (str(root / "JPEGImages" / "a.jpg"), [])


@pytest.mark.parametrize("name", ["a\0b", "x\0/y", "n" * 5000, f"{'n' * 5000}/y"])
def test_names_that_no_file_can_have(make_voc: MakeVOC, name: str) -> None:
    root = make_voc({"a": []})
    (root / VOC_ENTRY["list"]).write_text(f"a\n{name}\n")
    (problem,) = voc_problems(root)
    assert problem.startswith("error: missing image: ")


def test_a_pattern_of_lists_outside_the_data_set(make_voc: MakeVOC) -> None:
    with pytest.raises(ValueError, match=r"below the data set's folder, got '/etc/\*'"):
        voc_problems(make_voc({"a": []}), {"list": "/etc/*"})


# pipes and folders in place of files: to open a pipe would wait for a writer


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_opened(
    make: Callable[[Path], None], make_voc: MakeVOC, make_index: MakeIndex, tmp_path: Path
) -> None:
    root, file = make_voc({"a": []}), tmp_path / "train.json"
    for path in (root / "Annotations" / "a.xml", root / "list", file):
        path.unlink(missing_ok=True)
        make(path)
    index, problems = make_index([[]]), list[Problem]()
    assert "is no file but a folder, a pipe or a device" in voc_problems(root)[0]
    assert "is no file but a folder, a pipe or a device" in voc_problems(root, {"list": "list"})[0]
    assert "is no file but a folder, a pipe or a device" in coco_problems(file)[0]
    assert read_instances(file, [(0, 0, 9, 9)], (60, 80), problems) == [None]
    assert len(problems) == 1
    readers: list[Callable[[], object]] = [
        lambda: read_proposals(file, index),
        lambda: read_pickle(file),
        lambda: read_state_dict(file),
        lambda: load_config(DetectionConfig, file),
        lambda: unpack(file, tmp_path / "out"),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=r"train\.json"):
            read()


# JSON


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 10**30),
        ("id", float("inf")),
        ("id", float("nan")),
        ("id", 1.5),
        ("image_id", -(2**64)),
        ("category_id", 3.5),
        ("bbox", [10**400, 0, 1, 1]),
        ("bbox", [1, 2, 3]),
        ("area", float("nan")),
        ("area", -1),
        ("area", float("inf")),
    ],
)
def test_numbers_that_no_annotation_has(make_coco: MakeCOCO, field: str, value: object) -> None:
    (problem,) = coco_problems(make_coco({7: "a.jpg"}, [{**BOX, field: value}]))
    assert problem.startswith("error: annotation record: ")


@pytest.mark.parametrize("category", [-3, 0, 10**18, 4])
def test_categories_out_of_range(make_coco: MakeCOCO, category: int) -> None:
    (problem,) = coco_problems(make_coco({7: "a.jpg"}, [{**BOX, "category_id": category}]))
    assert problem.startswith("error: category id out of range: annotation 1 of image 7, category_id ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_boxes_that_are_no_boxes_are_dropped(make_coco: MakeCOCO, value: float) -> None:
    (problem,) = coco_problems(make_coco({7: "a.jpg"}, [{**BOX, "bbox": [value, 20, value, 5]}]))
    assert problem.startswith("dropped: box outside the image or without area: ")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"file_name": "../../etc/passwd"}, "image outside the data set's folder"),
        ({"file_name": "/etc/passwd"}, "image outside the data set's folder"),
        ({"file_name": "a\0.jpg"}, "missing image"),
        ({"file_name": "n" * 5000}, "missing image"),
        ({"file_name": "\ud800.jpg"}, "image record"),
        ({"height": 200_000, "width": 200_000}, "image size"),
        ({"height": 10**30}, "image record"),
        ({"height": float("inf")}, "image record"),
        ({"id": 2**63}, "image record"),
    ],
)
def test_images_that_can_not_be_used(make_coco: MakeCOCO, changes: dict[str, Any], kind: str) -> None:
    file = make_coco({7: "a.jpg"}, [])
    content = json.loads(file.read_text())
    content["images"][0] |= changes
    file.write_text(json.dumps(content))
    (problem,) = coco_problems(file)
    assert problem.startswith(f"error: {kind}: ")


@pytest.mark.parametrize(
    "content", [b"", b"[" * 10**6, b'{"images": ' * 10**5, b"\xff\xfe\x00", b'{"a": 1' + b"0" * 5000 + b"}", b"\0"]
)
def test_json_that_can_not_be_read(make_coco: MakeCOCO, content: bytes) -> None:
    file = make_coco({7: "a.jpg"}, [])
    file.write_bytes(content)
    (problem,) = coco_problems(file)
    assert problem.startswith("error: JSON that can't be read: ")


def test_many_objects_of_unknown_categories_take_no_square_of_time(make_coco: MakeCOCO) -> None:
    count = 10_000
    names = {number: f"{number}{'x' * 90}" for number in range(count)}
    annotations = [{**BOX, "id": n, "category_id": n % 2 and 10**6 + n} for n in range(count)]
    assert len(coco_problems(make_coco({7: "a.jpg"}, annotations, categories=names))) == count + 1


# masks


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5]], "at least 3 points"),
        ([[1, 1, 5, 5, float("nan"), 9]], "expected pixels"),
        ([[1, 1, 5, 5, 1e9, 9]], "expected pixels"),
        ([[1, 1, 5, 5, 10**400, 9]], "expected numbers"),
        ([[0, 0, 1e5, 1e5] * 5000], r"outline is \d+ pixels long"),
        ([[0, 0, 1e5, 1e5, 0, 9]] * 100, r"outline is \d+ pixels long"),
        ({"size": [60, 80], "counts": [1, 2, 3]}, "sum to 6"),
        ({"size": [60, 80], "counts": [-1, 4801]}, "expected run lengths"),
        ({"size": [60, 80], "counts": [10**30]}, "sum to"),
        ({"size": [200_000, 200_000], "counts": [40_000_000_000]}, "the image has"),
        ({"size": [60, 80], "counts": "o" * 10**6}, "no compressed RLE"),
        ({"size": [60, 80], "counts": "\ud800"}, "surrogates"),
    ],
)
def test_masks_that_are_no_masks(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rle(segmentation, (60, 80))


def test_a_mask_that_is_none_costs_the_mask_and_not_the_box(make_coco: MakeCOCO) -> None:
    file = make_coco({7: "a.jpg"}, [{**BOX, "segmentation": [[1, 1, 5, 5]]}])
    (problem,) = coco_problems(file, fields=("masks",))
    assert problem.startswith("dropped: mask that is missing or can't be used; the object's box is kept: annotation 1")


# images


def png(path: Path, width: int, height: int, data: bytes) -> Path:
    """A greyscale PNG file with the compressed ``data``, whatever its header claims."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def huge_jpeg(path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_headers_of_absurd_images(tmp_path: Path) -> None:
    bombs = [
        png(tmp_path / "a.png", 200_000, 200_000, zlib.compress(bytes(1 << 20))),
        png(tmp_path / "b.png", 9500, 9500, zlib.compress(bytes(9500 * 9501))),
        huge_jpeg(tmp_path / "a.jpg"),
    ]
    for path in bombs:
        for read in (read_image, image_size):
            with pytest.raises(ValueError, match=rf"image .*{path.name} can't be read.*pixels"):
                read(path)


def test_a_format_that_starts_a_program_is_no_image(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="it is no image, or of another format than JPEG"):
        read_image(tmp_path / "a.jpg")


# YAML


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(BOMB, r"aliases \(\*name\) written out it has more than 1000000", id="aliases"),
        pytest.param(MERGE_BOMB, r"aliases \(\*name\) written out it has more than 1000000", id="merge keys"),
        ("seed: &a [*a]", "written out"),
        pytest.param("x" * 1_000_001, "it has 1000001 characters", id="long"),
        pytest.param("[" * 5000, "nested too deeply", id="deep"),
        ("seed: !!python/object/apply:os.system ['true']", "python/object/apply"),
        ("seed: 2001-99-99", "month"),
        ("seed: !!bool maybe", "maybe"),
        ("seed: !!timestamp x", "match|NoneType"),
        ("seed: a\0b", "#x0000"),
        ("? [a]\n: b", "unhashable"),
        ("seed: *nothing", "undefined alias"),
    ],
)
def test_yaml_that_is_not_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    with pytest.raises(ValueError, match=message):
        parse_config(DetectionConfig, text)
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    for read in (lambda: load_config(DetectionConfig, file), lambda: load_card(str(file))):
        with pytest.raises(ValueError, match=rf"(?s)bad\.yaml.*({message})"):
            read()


@pytest.mark.parametrize(
    "content", [b"seed: \xff\xfe", b"\xff\xfes\0", b"- a", b"seed", b"_BASE_: 5", b"_BASE_: [[x]]"]
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    for read in (lambda: load_config(DetectionConfig, file), lambda: load_card(str(file))):
        with pytest.raises(ValueError, match=r"bad\.yaml"):
            read()


def test_a_base_is_a_local_file_and_its_sections_are_sections(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    (tmp_path / "base.yaml").write_text("solver: 5\n")
    file.write_text("_BASE_: base.yaml\nsolver: {base_lr: 1.0}\n")
    with pytest.raises(ValueError, match="Cannot inherit key 'solver'"):
        load_config(DetectionConfig, file)
    for base in ("https://127.0.0.1:9/x.yaml", "/dev/zero", "missing.yaml"):
        file.write_text(f"_BASE_: {base}\n")
        with pytest.raises(ValueError, match="no file"):
            load_config(DetectionConfig, file)


@pytest.mark.parametrize("value", ["1" + "0" * 400, "'" + "(" * 5000 + "'", "'" + "9" * 5000 + "'"])
def test_numbers_that_no_config_has(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"config key 'solver\.base_lr' takes a "):
        parse_config(DetectionConfig, f"solver: {{base_lr: {value}}}")


def test_aliases_are_read_as_ever() -> None:
    text = "a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2\n"
    assert parse_yaml(text) == yaml.safe_load(text) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


# weights and proposals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\x80\x02})" + b"2\x86" * 40 + b"K\x01s.", "more than 1000 values", id="hashed for years"),
        pytest.param(b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.", "more than 1000 values", id="hashed too deep"),
        pytest.param(b"\x80\x02]" + b"]2\x86" * 3 + b"Q.", "outside the file", id="shown"),
        (b"", "empty"),
        (b"\x80\x02", "ran out|exhausted|pop|STOP"),
    ],
)
def test_pickles_that_are_traps(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pkl.*({message})"):
        read_pickle(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_name_without_end_in_a_file_of_torch(tmp_path: Path, zipped: bool) -> None:
    path, text = tmp_path / "a.pth", "x" * 300_000
    torch.save(
        {"state_dict": {"a": torch.zeros(1)}, "text": "a b " * 9999}, path, _use_new_zipfile_serialization=zipped
    )
    assert list(read_state_dict(path)) == ["a"]
    torch.save({text: torch.zeros(1)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a\.pth.*a word of more than 4096 characters"):
        read_state_dict(path)


def test_a_pickled_array_whose_sides_have_no_product(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    shape = b"(" + b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"q\x00" + b"h\x00" * 900 + b"tq\x01"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    path.write_bytes(b"\x80\x02" + array + b"(K\x01" + shape + b"cnumpy\ndtype\nU\x02f4\x85R\x89U\x00tb.")
    with pytest.raises(ValueError, match=r"an array of shape|limit \(4300 digits\)"):
        read_pickle(path)


@pytest.mark.parametrize("ends", [torch.tensor([2**63 - 1, 1]), torch.tensor([2**62, -(2**62)]), torch.tensor([-1, 1])])
def test_proposals_whose_ends_overflow(tmp_path: Path, make_index: MakeIndex, ends: torch.Tensor) -> None:
    path, index = tmp_path / "a.safetensors", make_index([[], []])
    one = Proposals(boxes=torch.tensor([[0.0, 0, 9, 9]]), scores=torch.zeros(1))
    write_proposals(path, [one, one[:0]], index)
    save_file(load_file(path) | {"ends": ends}, path)
    with pytest.raises(ValueError, match="do not agree"):
        read_proposals(path, index)


# archives; members outside the folder are in test_download.py


def test_an_archive_larger_than_the_disk_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_free_bytes", lambda _: 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1001))
    with pytest.raises(ValueError, match=r"its files have 1001 bytes, .*out has 1000 free; nothing was unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# 10,000 objects in one image


def crowd(count: int, size: tuple[int, int]) -> Target:
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([size[1], size[0]]) * 0.9
    boxes = torch.cat([corners, corners + 0.1 * torch.tensor([size[1], size[0]])], dim=1)
    return Target(boxes=boxes, labels=torch.zeros(count, dtype=torch.int64), ignore=torch.arange(count) % 50 == 0)


@pytest.mark.slow
def test_ten_thousand_objects_train() -> None:
    torch.manual_seed(0)
    config = DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=4),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPNConfig(channels=32, post_nms_train=2000),
        box=BoxConfig(samples_per_image=16),
    )
    detector = build_detector(config, 2, pretrained=False)
    images = ImageBatch.from_images([torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)])
    losses = detector(images, [crowd(10_000, (96, 128))])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
def test_a_quarter_of_a_million_anchors_meet_500_objects_in_little_memory() -> None:
    anchors = torch.rand(243_000, 4, generator=torch.Generator().manual_seed(0)) * 400
    anchors = torch.cat([anchors[:, :2], anchors[:, :2] + anchors[:, 2:]], dim=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    targets, usable = Targets.pad([crowd(500, (800, 800))]), torch.ones(1, len(anchors), dtype=torch.bool)
    matches = Matcher(0.7, 0.3, match_best=True)(anchors[None], targets, usable)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # KiB; the matrix alone has 464 MiB
    assert matches.positive.sum() > 400


def test_three_thousand_objects_are_checked_for_doubles(make_index: MakeIndex) -> None:
    boxes = crowd(3000, (60, 80)).boxes.tolist()
    notes = check_objects(make_index([[(tuple(box), 0, False) for box in boxes]]))
    assert notes
