"""Files and numbers made by hand to do harm: each is refused by name or counted, in little time and memory."""

import json
import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from backbones.weights.load import read_state_dict
from backbones.weights.pickles import read_pickle
from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config, parse_config, parse_yaml
from detection.data import cards, check, images, proposals, unpack
from detection.data.problems import Problem
from detection.data.readers import coco, segmentation, voc
from detection.masks import to_rle
from detection.model.matcher import Matcher
from detection.padded import Targets
from detection.structures import ImageBatch, Target

CLASSES = ("cat", "dog")
VOC_ENTRY = {"list": "ImageSets/Main/train.txt"}
BOX: dict[str, Any] = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 5]}
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _soon_and_small():
    """No test here takes more than 20 seconds of work or 2 GiB."""
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2 << 20  # KiB


def voc_problems(root, entry: dict[str, Any] = VOC_ENTRY):
    return shown(voc.read_voc(root, entry, CLASSES, drop=True, exif="apply")[1])


def coco_problems(file, *, fields: Collection[str] = ()):
    entry = {"annotations": "train.json", "images": "train"}
    return shown(coco.read_coco(file.parent, entry, CLASSES, drop=True, exif="apply", fields=fields)[1])


def shown(problems):
    return [f"{problem.severity}: {problem.kind}: {problem.detail}" for problem in problems]


ENTITIES = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))
DEEP = "<a>" * 200_000 + "</a>" * 200_000
SIZE = "<annotation><size><width>{}</width><height>{}</height></size></annotation>"
XML = {
    "billion laughs": f'<!DOCTYPE x [<!ENTITY e0 "lol">{ENTITIES}]><annotation>&e12;</annotation>',
    "a file": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><folder>&e;</folder></annotation>',
    "a server": '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><annotation>&e;</annotation>',
    "cut short": "<annotation><object>",
    "deep": DEEP,
    "deep elements": f"<annotation>{DEEP}</annotation>",
    **{f"{width} pixels": SIZE.format(width, 5) for width in ("1e300", "1e400", "nan")},
    "200000 pixels": SIZE.format(200_000, 200_000),
}
KINDS = {"deep": "XML that isn't VOC's", "deep elements": "element that isn't VOC's"}


@pytest.mark.parametrize("name", XML)
def test_xml_that_is_counted(make_voc, name) -> None:
    root = make_voc({"a": [], "b": []})
    (root / "Annotations" / "a.xml").write_text(XML[name])
    (problem,) = voc_problems(root)
    kind = KINDS.get(name, "size that can't be read" if "pixels" in name else "XML that does not parse")
    assert problem.startswith(f"error: {kind}: ")
    assert "root:" not in problem


def test_what_the_xml_does_not_decide(make_voc) -> None:
    root = make_voc({"a": []})
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<size>", "<filename>../../etc/passwd</filename><size>"))
    index, problems = voc.read_voc(root, VOC_ENTRY, CLASSES, drop=True, exif="apply")
    assert (index.paths[0], problems) == (str(root / "JPEGImages" / "a.jpg"), [])
    file.write_text(f"<annotation><folder>{DEEP}</folder></annotation>")
    assert voc_problems(root) == []  # its size is the image's


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])  # to open a pipe would wait for a writer
def test_what_is_no_file_is_not_opened(make, make_voc, make_index, tmp_path) -> None:
    root, file = make_voc({"a": []}), tmp_path / "train.json"
    for path in (root / "Annotations" / "a.xml", root / "list", file):
        path.unlink(missing_ok=True)
        make(path)
    for problem, *_ in (voc_problems(root), voc_problems(root, {"list": "list"}), coco_problems(file)):
        assert "is no file but a folder, a pipe or a device" in problem
    problems = list[Problem]()
    assert segmentation.read_instances(file, [(0, 0, 9, 9)], (60, 80), problems) == [None]
    assert len(problems) == 1
    for read in (
        lambda: proposals.read_proposals(file, make_index([[]])),
        lambda: read_pickle(file),
        lambda: read_state_dict(file),
        lambda: load_config(DetectionConfig, file),
        lambda: unpack.unpack(file, tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"train\.json"):
            read()


ANNOTATIONS: dict[str, list[dict[str, Any]]] = {
    "error: annotation record: ": [
        *({"id": value} for value in (10**30, INF, NAN, 1.5)),
        *({"area": value} for value in (INF, NAN, -1)),
        *({"bbox": value} for value in ([10**400, 0, 1, 1], [1, 2, 3])),
        *({"image_id": -(2**64)}, {"category_id": 3.5}),
    ],
    "error: category id out of range: annotation 1 of image 7, category": [
        {"category_id": n} for n in (-3, 0, 10**18, 4)
    ],
    "dropped: box outside the image or without area: ": [{"bbox": [v, 20, v, 5]} for v in (NAN, INF, -INF, 1e300)],
    "dropped: mask that is missing or can't be used; the object's box is kept: ": [{"segmentation": [[1, 1, 5, 5]]}],
}
IMAGES: dict[str, list[dict[str, Any]]] = {
    "error: missing image: ": [{"file_name": "a\0.jpg"}, {"file_name": "n" * 5000}],
    "error: image record: ": [{"file_name": "\ud800.jpg"}, {"height": 10**30}, {"height": INF}, {"id": 2**63}],
    "error: image size: ": [{"height": 200_000, "width": 200_000}],
}


@pytest.mark.parametrize(("section", "kinds"), [("annotations", ANNOTATIONS), ("images", IMAGES)])
def test_coco_records_that_can_not_be_used(make_coco, section, kinds) -> None:
    file = make_coco({7: "a.jpg"}, [BOX] * (section == "annotations"))
    original = file.read_text()
    for problem, changes in ((problem, changes) for problem, cases in kinds.items() for changes in cases):
        content = json.loads(original)
        content[section][0] |= changes
        file.write_text(json.dumps(content))
        (found,) = coco_problems(file, fields=("masks",) if "segmentation" in changes else ())
        assert found.startswith(problem), changes


def test_json_that_can_not_be_read(make_coco) -> None:
    file = make_coco({7: "a.jpg"}, [])
    for content in (b"", b"[" * 10**6, b'{"images": ' * 10**5, b"\xff\xfe\0", b'{"a": 1' + b"0" * 5000 + b"}", b"\0"):
        file.write_bytes(content)
        (problem,) = coco_problems(file)
        assert problem.startswith("error: JSON that can't be read: "), content[:9]


def test_many_objects_take_no_square_of_time(make_coco, make_index) -> None:
    count = 10_000
    names = {number: f"{number}{'x' * 90}" for number in range(count)}
    annotations = [{**BOX, "id": n, "category_id": n % 2 and 10**6 + n} for n in range(count)]
    assert len(coco_problems(make_coco({7: "a.jpg"}, annotations, categories=names))) == count + 1
    assert check.check_objects(make_index([[(tuple(box), 0, False) for box in crowd(3000, (60, 80)).boxes.tolist()]]))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5, 10**400, 9]], "expected numbers"),
        ([[0, 0, 1e5, 1e5] * 5000], r"outline is \d+ pixels long"),
        ([[0, 0, 1e5, 1e5, 0, 9]] * 100, r"outline is \d+ pixels long"),
        ({"size": [60, 80], "counts": [-1, 4801]}, "expected run lengths"),
        ({"size": [60, 80], "counts": [10**30]}, "sum to"),
        ({"size": [200_000, 200_000], "counts": [40_000_000_000]}, "the image has"),
        ({"size": [60, 80], "counts": "o" * 10**6}, "no compressed RLE"),
        ({"size": [60, 80], "counts": "\ud800"}, "surrogates"),
    ],
)
def test_masks_that_are_absurd(segmentation, message) -> None:
    with pytest.raises(ValueError, match=message):
        to_rle(segmentation, (60, 80))


def png(path, side, data):
    """A square greyscale PNG file with the compressed ``data``, whatever its header claims."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_images_and_a_format_that_starts_a_program(tmp_path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    (tmp_path / "a.jpg").write_bytes(data)
    wide, long = zlib.compress(bytes(1 << 20)), zlib.compress(bytes(9500 * 9501))
    for path in (png(tmp_path / "a.png", 200_000, wide), png(tmp_path / "b.png", 9500, long), tmp_path / "a.jpg"):
        for read in (images.read_image, images.image_size):
            with pytest.raises(ValueError, match=rf"image .*{path.name} can't be read.*pixels"):
                read(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="it is no image, or of another format than JPEG"):
        images.read_image(tmp_path / "b.jpg")


def bomb(first, opening, closing):
    lines = [f"a{i}: &a{i} {opening}[{', '.join([f'*a{i - 1}'] * 9)}]{closing}\n" for i in range(1, 12)]
    return f"a0: &a0 {first}\n{''.join(lines)}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("[x, x, x, x, x, x, x, x, x]", "", ""), r"aliases \(\*name\) written out it has more than 1000000"),
        (bomb("{x: 1, y: 2}", "{<<: ", "}"), r"aliases \(\*name\) written out it has more than 1000000"),
        ("seed: &a [*a]", "written out"),
        ("x" * 1_000_001, "it has 1000001 characters"),
        ("[" * 2000, "nested too deeply"),
        ("seed: !!python/object/apply:os.system ['true']", "python/object/apply"),
        ("seed: 2001-99-99", "month"),
        ("seed: !!bool maybe", "maybe"),
        ("seed: !!timestamp x", "match|NoneType"),
        ("seed: a\0b", "#x0000"),
        ("? [a]\n: b", "unhashable"),
        ("seed: *nothing", "undefined alias"),
    ],
    ids=range(12),
)
def test_yaml_that_is_not_read(tmp_path, text, message) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    for place, read in (
        ("", lambda: parse_yaml(text)),
        ("", lambda: parse_config(DetectionConfig, text)),
        (r"bad\.yaml.*", lambda: load_config(DetectionConfig, file)),
        (r"bad\.yaml.*", lambda: cards.load_card(str(file))),
    ):
        with pytest.raises(ValueError, match=f"(?s){place}({message})"):
            read()


def test_files_and_numbers_that_no_config_has(tmp_path) -> None:
    file = tmp_path / "bad.yaml"
    for content in (b"seed: \xff\xfe", b"\xff\xfes\0", b"- a", b"seed", b"_BASE_: 5", b"_BASE_: [[x]]"):
        file.write_bytes(content)
        for read in (lambda: load_config(DetectionConfig, file), lambda: cards.load_card(str(file))):
            with pytest.raises(ValueError, match=r"bad\.yaml"):
                read()
    (tmp_path / "base.yaml").write_text("solver: 5\n")
    merged = ("base.yaml\nsolver: {base_lr: 1.0}", "Cannot inherit key 'solver'")
    bases = [(base, "no file") for base in ("https://127.0.0.1:9/x.yaml", "/dev/zero", "missing.yaml")]
    for base, message in (merged, *bases):
        file.write_text(f"_BASE_: {base}\n")
        with pytest.raises(ValueError, match=message):
            load_config(DetectionConfig, file)
    for value in ("1" + "0" * 400, "'" + "(" * 5000 + "'", "'" + "9" * 5000 + "'"):
        with pytest.raises(ValueError, match=r"config key 'solver\.base_lr' takes a "):
            parse_config(DetectionConfig, f"solver: {{base_lr: {value}}}")


def test_aliases_are_read_as_ever() -> None:
    text = "a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2\n"
    assert parse_yaml(text) == yaml.safe_load(text) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


# weights, proposals and archives; members outside the folder are in test_download.py

SIDES = b"(" + b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"q\x00" + b"h\x00" * 900 + b"tq\x01"  # without a product
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
FLOATS = b"cnumpy\ndtype\nU\x02f4\x85R\x89U\x00tb."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02})" + b"2\x86" * 40 + b"K\x01s.", "more than 1000 values"),  # hashed for years
        (b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.", "more than 1000 values"),  # hashed too deep
        (b"\x80\x02]" + b"]2\x86" * 3 + b"Q.", "outside the file"),
        (b"\x80\x02" + ARRAY + SIDES + FLOATS, r"an array of shape|limit \(4300 digits\)"),
        (b"", "empty"),
        (b"\x80\x02", "ran out|exhausted|pop|STOP"),
    ],
    ids=range(6),
)
def test_pickles_that_are_traps(tmp_path, content, message) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pkl.*({message})"):
        read_pickle(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_name_without_end_in_a_file_of_torch(tmp_path, zipped) -> None:
    path, one = tmp_path / "a.pth", torch.zeros(1)
    torch.save({"state_dict": {"a": one}, "text": "a b " * 9999}, path, _use_new_zipfile_serialization=zipped)
    assert list(read_state_dict(path)) == ["a"]
    torch.save({"x" * 300_000: one}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a\.pth.*a word of more than 4096 characters"):
        read_state_dict(path)


def test_an_archive_larger_than_the_disk_writes_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(unpack, "free_bytes", lambda _: 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1001))
    with pytest.raises(ValueError, match=r"its files have 1001 bytes, .*out has 1000 free; nothing was unpacked"):
        unpack.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def crowd(count, size):
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([size[1], size[0]]) * 0.9
    boxes = torch.cat([corners, corners + 0.1 * torch.tensor([size[1], size[0]])], dim=1)
    return Target(boxes=boxes, labels=torch.zeros(count, dtype=torch.int64), ignore=torch.arange(count) % 50 == 0)


@pytest.mark.slow
def test_ten_thousand_objects_train() -> None:
    torch.manual_seed(0)
    rest = "rpn: {channels: 32, post_nms_train: 2000}\nbox: {samples_per_image: 16}\nanchors: {sizes: [16, 32]}"
    config = parse_config(DetectionConfig, "backbone: {name: resnet18, norm: gn, roi_size: 4}\n" + rest)
    detector = build_detector(config, 2, pretrained=False)
    batch = ImageBatch.from_images([torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)])
    assert all(loss.isfinite() for loss in detector(batch, [crowd(10_000, (96, 128))]).values())


@pytest.mark.slow
def test_a_quarter_of_a_million_anchors_meet_500_objects_in_little_memory() -> None:
    anchors = torch.rand(243_000, 4, generator=torch.Generator().manual_seed(0)) * 400
    anchors = torch.cat([anchors[:, :2], anchors[:, :2] + anchors[:, 2:]], dim=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    targets, usable = Targets.pad([crowd(500, (800, 800))]), torch.ones(1, len(anchors), dtype=torch.bool)
    matches = Matcher(0.7, 0.3, match_best=True)(anchors[None], targets, usable)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # KiB; the matrix alone has 464 MiB
    assert matches.positive.sum() > 400
