"""Files damaged at random: every reader gives a value, counted problems or a ValueError, soon and in its folder.

The mutations are drawn with a seed, so that a failure names an input that comes back.  ``pytest -s`` prints the counts.
"""

import io
import json
import pickle
import pickletools
import re
import resource
import sys
import tarfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image
from safetensors.torch import save_file

from backbones.weights.load import read_state_dict
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, load_config
from detection.data import cards, images, proposals, unpack
from detection.data.readers import coco, segmentation, voc
from detection.engine import checkpoint
from detection.files import digest
from detection.masks import encode
from detection.structures import Proposals

QUICK, FULL, SLOW = 60, 3000, 600  # mutations of each format; SLOW replaces FULL where a mutation is a program
SECONDS, MEMORY = 5.0, 1 << 20  # for one input, all of which are small; KiB more than before
MANY = pytest.param(FULL, marks=[pytest.mark.faults, pytest.mark.timeout(900)])
counts = pytest.mark.parametrize("count", [QUICK, MANY])
NUMBERS = (b"0", b"-1", b"1e400", b"NaN", b"-Infinity", b"9" * 400, b"9" * 5000, b"200000", b"4294967296", b"1.5", b"")
TEXTS = (b"\0", b"\xff\xfe", b"\\ud800", b"../../x", b"&a;", b"*a", b"!!python/name:os.system ", b"'", b'"', b"{", b"<")
NESTED = (b"[" * 50_000, b'{"a":' * 5000, b"<a>" * 50_000, b"- " * 5000)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2.5, 1e30, float("nan"), float("inf"), 10**400, 2**63, 200_000, "", "x", "../../x"),
    *("/etc/passwd", "a\0b", "\ud800", "x" * 5000, "1" * 5000, [], {}, [1, 2], [[1, 2]], {"a": 1}),
)
BINARY = ("bits", "end", "gap", "repeat", "span", "text")


def damage(rng, data, kind) -> None:
    """Changes ``data`` in one place."""
    if kind == "bits":
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return
    if kind == "number":
        if numbers := list(re.finditer(rb"\d+", data)):
            start, end = rng.choice(numbers).span()
            data[start:end] = rng.choice(NUMBERS)
        return
    start = rng.randrange(len(data))
    if kind == "end":
        del data[start:]
    elif kind == "gap":
        del data[start : start + rng.randint(1, 64)]
    elif kind == "repeat":
        data[start:start] = data[start : start + rng.randint(1, 64)] * rng.choice((1, 1, 100))
    elif kind == "span":
        length = rng.randint(1, 16)
        data[start : start + length] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * length
    else:
        data[start:start] = rng.choice((*TEXTS, *TEXTS, *NESTED, rng.randbytes(8)))


def mutate_bytes(rng, data, kinds: Sequence[str] = BINARY):
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if changed:
            damage(rng, changed, rng.choice(kinds))
    return bytes(changed)


def mutate_text(rng, data):
    return mutate_bytes(rng, data, (*BINARY, "number", "number", "number"))


def mutate_tree(rng, tree) -> None:
    """Changes a value somewhere in ``tree``, or leaves it out, repeats it or buries it."""

    def places(tree):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]

    if not (found := places(tree)):
        return
    parent, key = rng.choice(found)
    kind = rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.extend([parent[key]] * rng.choice((1, 500)))
    elif kind == 2:
        for _ in range(rng.choice((1, 2, 80))):
            parent[key] = [parent[key]]
    else:
        parent[key] = deepcopy(rng.choice(VALUES))


def mutate_json(rng, data, share: float = 0.3, load: Any = json.loads, dump: Any = json.dumps):
    if rng.random() < share:
        return mutate_text(rng, data)
    tree = load(data)
    for _ in range(rng.randint(1, 3)):
        mutate_tree(rng, tree)
    sys.set_int_max_str_digits(0)
    try:
        return dump(tree).encode(errors="surrogatepass")
    finally:
        sys.set_int_max_str_digits(4300)


def mutate_yaml(rng, data):
    return mutate_json(rng, data, 0.5, yaml.safe_load, yaml.safe_dump)


def mutate_header(rng, data, change=mutate_json):
    """Changes the header of a .safetensors file, which is JSON behind its length."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data) if change is mutate_json else mutate_header(rng, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header = change(rng, data[8:end])
    return len(header).to_bytes(8, "little") + header + data[end:]


def change_texts(rng, header):
    """Changes the texts of a checkpoint, without the checksum that would give them away."""
    tree = json.loads(header)
    texts = tree["__metadata__"]
    texts.pop("sha256", None)
    key = rng.choice(sorted(texts))
    mutate = mutate_yaml if key == "config" else mutate_text
    texts[key] = mutate(rng, texts[key].encode()).decode(errors="replace")
    return json.dumps(tree).encode()


def mutate_fields(rng, data):
    """Changes numbers in a header of a tar file and makes its checksum right again."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, data)
    headers = [i for i in range(len(data) // 512) if data[512 * i + 257 :][:5] == b"ustar"]
    changed, start = bytearray(data), 512 * rng.choice(headers)
    place, length = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 100)))
    field = rng.choice((b"\xff" * length, b"\x80" + rng.randbytes(length), b"7" * length, bytes(length), b"../x", b"L"))
    changed[start + place : start + place + length] = field[:length].ljust(length, b"\0")
    changed[start + 148 : start + 156] = b" " * 8
    changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)


def multiples(count):
    """Whole numbers of one hash, as a pickle has them."""
    return [b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") for k in range(1, count + 1)]


# What a pickle may be told to do between two of its steps; each leaves the stack as it was.
STEPS = (
    *(b"}(" + b"".join(key + b"N" for key in multiples(count)) + b"u0" for count in (10, 900, 5000)),
    b"](" + b"".join(multiples(2000)) + b"e0",
    b"cbuiltins\nset\n](" + b"".join(multiples(5000)) + b"e\x85R0",
    b"ccollections\nOrderedDict\n](" + b"".join(b"](" + key + b"Ne" for key in multiples(3000)) + b"e\x85R0",
    b"]q\x07" + b"h\x07h\x07\x86q\x07" * 30 + b"0" * 31,
    b"]q\x07h\x07a0",
    b"X\x00\x00\x01\x00" + b"a " * 32768 + b"q\x07" + b"h\x070" * 5000 + b"0",
    b"(" * 1000 + b"1" * 1000,
    b"N0" * 30_000,
    b"cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R0",
    b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x09\x00\x00\x00hex_codec\x86R0",
    *(b"\x82\x01", b"R", b"b", b"s", b"\x81"),
)


def mutate_steps(rng, data):
    """Puts other steps between two of a pickle."""
    places = [place for _, _, place in pickletools.genops(data) if place] or [2]
    for _ in range(rng.randint(1, 2)):
        place = rng.choice(places)
        data = data[:place] + rng.choice(STEPS) + data[place:]
    return data


def mutate_members(rng, data):
    """Changes the pickle of a file by torch.save, or compresses, repeats, renames or inflates members."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            kind = rng.randrange(6 if name.endswith(".pkl") else 60)
            if name.endswith(".pkl") and kind < 4:
                content = mutate_steps(rng, content) if kind < 3 else mutate_bytes(rng, content)
            content += bytes(1 << 22) if kind == 4 else b""
            called = name.replace("data.pkl", "DATA.PKL") if rng.random() < 0.05 else name
            new.writestr(called, content, zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED)
        new.filelist += new.filelist * rng.choice((0, 0, 0, 0, 0, 1, 1000))
        new.writestr(f"{old.namelist()[0].partition('/')[0]}/more", "")
    return written.getvalue()


@dataclass(frozen=True)
class Subject:
    """A valid file, how it is mutated, and its reader, which gives the problems that it counts."""

    file: Path
    read: Callable[[], Any]
    mutate: Callable[[Random, bytes], bytes]


def raising(file, read, mutate):
    """A subject whose reader raises instead of counting."""
    return Subject(file, lambda: (read(), ())[1], mutate)


CLASSES = ("cat", "dog")
OBJECTS = [("cat", (10, 20, 40, 25), False), ("dog", (1, 1, 80, 60), True)]
CARD = """{format: voc, classes: [cat, dog], names: {kitten: cat}, splits: {train: {list: a}}, download: [{
  url: "https://example.org/a.tar", md5: "00000000000000000000000000000000", into: .}], exif: apply, bad_boxes: drop}"""
POLYGON = [[10, 10, 30, 10, 30, 30, 10.5, 30]]
WEIGHTS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "conv.bias": torch.zeros(2, dtype=torch.float16)}


def voc_subject(file, made):
    root = made.voc({"a": OBJECTS, "b": OBJECTS})
    return Subject(root / file, lambda: read_voc(root)[1], mutate_text)


def proposals_subject(made):
    file, index = made.folder / "proposals.safetensors", made.index([[], []])
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 50, 50]])
    proposals.write_proposals(file, [Proposals(boxes=boxes, scores=torch.tensor([0.5, 0.25]))] * 2, index)
    return raising(file, lambda: proposals.read_proposals(file, index), mutate_header)


def card_subject(made):
    file = made.folder / "pets.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(CARD)))
    return raising(file, lambda: cards.load_card(str(file)), mutate_yaml)


def config_subject(made):
    file, sections = made.folder / "config.yaml", yaml.safe_load(dump_config(DetectionConfig()))
    (made.folder / "base.yaml").write_text("seed: 3\nsolver: {base_lr: 1e-4}\n")
    kept = {name: sections[name] for name in ("backbone", "anchors", "mask", "test", "seed")}
    file.write_text("_BASE_: base.yaml\n" + yaml.safe_dump(kept))
    return raising(file, lambda: load_config(DetectionConfig, file), mutate_yaml)


def checkpoint_subject(made):
    file = made.folder / "model.safetensors"
    checkpoint.write_converted(file, DetectionConfig(), CLASSES, WEIGHTS)
    return raising(file, lambda: checkpoint.read_checkpoint(file), partial(mutate_header, change=change_texts))


def read_voc(root):
    return voc.read_voc(root, {"list": "ImageSets/Main/train.txt"}, CLASSES, drop=True, exif="apply")


def read_coco(file, **options):
    entry = {"annotations": "train.json", "images": "train"}
    return coco.read_coco(file.parent, entry, CLASSES, drop=True, exif="apply", **options)


def coco_subject(made):
    box: dict[str, Any] = {"category_id": 3, "bbox": [10, 20, 30, 5], "area": 150}
    runs = {"size": [60, 80], "counts": [100, 50, 60 * 80 - 150]}
    compressed = {"size": [60, 80], "counts": encode(np.eye(60, 80, dtype=np.uint8))["counts"].decode()}
    own = ((7, POLYGON, 0), (7, runs, 1), (9, compressed, 0))
    names = ("image_id", "segmentation", "iscrowd")
    annotations = [{"id": n, **box, **dict(zip(names, values, strict=True))} for n, values in enumerate(own, start=1)]
    file = made.coco({7: "a.jpg", 9: "b.jpg"}, annotations)
    return Subject(file, lambda: read_coco(file, fields=("masks",))[1], mutate_json)


def image_subject(suffix, made):
    file, exif = made.folder / f"a.{suffix}", Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(file, exif=exif)
    return raising(file, lambda: (images.image_size(file), images.read_image(file)), mutate_bytes)


def instances_subject(made):
    file, numbers, problems = made.folder / "a.png", np.zeros((24, 32), np.uint8), list[Any]()
    numbers[2:10, 3:20], numbers[12:20, 3:20] = 1, 2
    Image.fromarray(numbers, mode=None).convert("P").save(file)
    boxes = [(3.0, 2.0, 20.0, 10.0), (3.0, 12.0, 20.0, 20.0)]

    def read():
        problems.clear()
        segmentation.read_instances(file, boxes, (24, 32), problems)
        return problems

    return Subject(file, read, mutate_bytes)


def training_state_subject(made):
    file = made.folder / "0000001.state.pt"
    momentum, random_state = {0: {"momentum_buffer": torch.arange(12.0)}}, torch.Generator().get_state()
    state = {"optimizer": {"state": momentum}, "iteration": 1, "best": None, "random": [{"cpu": random_state}]}
    torch.save({"sha256": digest(state), **state}, file)
    # Its file is not read: to parse its config takes longer than all else.
    beside = checkpoint.Checkpoint(file.with_name("0000001.safetensors"), {}, DetectionConfig(), (), iteration=1)
    return raising(file, lambda: checkpoint._read_state(beside), mutate_bytes)


def pairs_subject(made):
    """State and weights, of which one comes from another run or another moment; never read as one checkpoint."""
    file, states = made.folder / "0000001.state.pt", list[bytes]()
    for run in range(4):
        for iteration in (1, 2):
            own = {name: tensor + run + iteration - 1 for name, tensor in WEIGHTS.items()}
            state = {"optimizer": {}, "iteration": iteration, "run": run, "weights_sha256": digest(own)}
            torch.save({**state, "sha256": digest(state)}, file)
            states.append(file.read_bytes())
    file.write_bytes(states[0])
    beside = checkpoint.Checkpoint(file.with_name("0000001.safetensors"), WEIGHTS, DetectionConfig(), (), iteration=1)

    def read() -> None:
        state = checkpoint._read_state(beside)
        assert (state["run"], state["iteration"]) == (0, 1)

    def mutate(rng, data):
        return rng.choice(states[1:]) if rng.random() < 0.7 else mutate_bytes(rng, rng.choice(states))

    return raising(file, read, mutate)


def weights_subject(suffix, mutate, made):
    file, arrays = made.folder / f"model.{suffix}", {name: value.numpy() for name, value in WEIGHTS.items()}
    if suffix == "safetensors":
        save_file(WEIGHTS, file)
    elif suffix == "pkl":
        file.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "pair": (1, 2)}, protocol=2))
    else:
        torch.save({"model": WEIGHTS}, file, _use_new_zipfile_serialization=suffix == "pth")
    return raising(file, lambda: read_state_dict(file), mutate)


def archive_subject(suffix, mutate, made):
    file, numbers = made.folder / f"a.{suffix}", iter(range(1 << 30))
    if suffix == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("good/a.txt", "text" * 100)
            archive.writestr("good/b.txt", "other")
    else:
        with tarfile.open(file, "w:gz" if suffix == "tar.gz" else "w") as tar:
            for name in ("good/a.txt", "good/b.txt"):
                info = tarfile.TarInfo(name)
                info.size = 700
                tar.addfile(info, io.BytesIO(b"x" * 700))
            link = tarfile.TarInfo("good/link")
            link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
            tar.addfile(link)
    return raising(file, lambda: unpack.unpack(file, made.folder / "out" / str(next(numbers))), mutate)


SUBJECTS: dict[str, Callable[..., Subject]] = {
    "voc xml": partial(voc_subject, "Annotations/a.xml"),
    "voc list": partial(voc_subject, "ImageSets/Main/train.txt"),
    **{"coco json": coco_subject, "proposals": proposals_subject, "card": card_subject, "config": config_subject},
    **{suffix: partial(image_subject, suffix) for suffix in ("jpg", "png", "tif", "webp", "bmp", "gif")},
    **{"instances png": instances_subject, "checkpoint": checkpoint_subject, "training state": training_state_subject},
    "weights safetensors": partial(weights_subject, "safetensors", mutate_header),
    **{f"weights {suffix}": partial(weights_subject, suffix, mutate_bytes) for suffix in ("pkl", "pth", "legacy")},
    "steps pkl": partial(weights_subject, "pkl", mutate_steps),
    "steps pth": partial(weights_subject, "pth", mutate_members),
    **{"pairs": pairs_subject, "tar": partial(archive_subject, "tar", mutate_fields)},
    **{suffix: partial(archive_subject, suffix, mutate_bytes) for suffix in ("zip", "tar.gz")},
}


@pytest.fixture
def made(tmp_path, make_voc, make_coco, make_index):
    """A folder for files, and the builders of data sets."""
    return SimpleNamespace(folder=tmp_path, voc=make_voc, coco=make_coco, index=make_index)


@counts
@pytest.mark.parametrize("name", SUBJECTS)
def test_damaged_files(made, tmp_path, name, count) -> None:
    subject, outcomes, slowest = SUBJECTS[name](made), Counter[str](), 0.0
    original, before = subject.file.read_bytes(), files_outside(tmp_path)
    assert not subject.read()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(min(count, SLOW) if name.startswith("steps") else count):
        subject.file.write_bytes(subject.mutate(Random(f"{name} {number}"), original))
        start = time.process_time()
        outcomes[outcome(subject, f"{name}, mutation {number}")] += 1
        slowest = max(slowest, time.process_time() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    counted = f"{outcomes.total()} files, {dict(sorted(outcomes.items()))}"
    sys.stdout.write(f"\n{name}: {counted}, slowest {slowest:.2f} s, {memory >> 10} MiB\n")
    assert slowest < SECONDS
    assert memory < MEMORY
    assert files_outside(tmp_path) == before
    assert outcomes["refused"] + outcomes["problems"] > 0


def outcome(subject, described):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on damaged metadata
        try:
            return "problems" if subject.read() else "read"
        except ValueError:
            return "refused"
        except Exception as error:
            raise AssertionError(f"{described}: {type(error).__name__}: {error}") from error


def files_outside(folder):
    """Everything beside the folder that archives are unpacked in, which is OUT."""
    return {path for path in folder.rglob("*") if folder / "out" not in (path, *path.parents)}


FIELDS = {"images": ("id", "height", "width"), "categories": ("id",)}
FIELDS |= {"annotations": ("id", "image_id", "category_id", "bbox", "iscrowd", "area")}


@counts
def test_values_of_other_types_are_the_same_or_refused(made, count) -> None:
    """Of COCO's records: text and floats that spell the same value, and what is no such value at all."""

    def respell(rng, value):
        spelt = [value, float(value), str(value), f" {value} ", str(float(value)), f"+{value}"]
        return rng.choice(spelt[:5] if value in (0, 1) else spelt)

    def replace_kind(rng, value):
        words: list[object] = ["", "x", "1,5", "1_0", "0x1", "--1", "zero", None, [], {}, [value], {"0": value}]
        return rng.choice([*words, 10**400, float("nan"), 1e39, 2 if value in (0, 1) else True])

    def read_index():
        index, _ = read_coco(subject.file)
        parts = (index.image_ids, index.sizes, index.boxes, index.labels, index.ignore, index.areas)
        return [value.tolist() for value in parts]

    subject = coco_subject(made)
    original, expected, outcomes = subject.file.read_bytes(), read_index(), Counter[str]()
    for number in range(count):
        rng, tree = Random(f"values {number}"), json.loads(original)
        section = rng.choice([key for key in FIELDS for _ in FIELDS[key]])
        record = rng.choice(tree[section])
        key = rng.choice(FIELDS[section])
        same = rng.random() < 0.5
        change = respell if same else replace_kind
        if isinstance(record[key], list):
            place = rng.randrange(len(record[key]))
            record[key][place] = change(rng, record[key][place])
        else:
            record[key] = change(rng, record[key])
        subject.file.write_text(json.dumps(tree))
        problems = subject.read()
        described = f"values, mutation {number}: {section} {key} {record[key]!r}"
        if same or not problems:
            assert (problems, read_index()) == ([], expected), described
        outcomes["refused" if problems else "the same"] += 1
    sys.stdout.write(f"\nvalues: {count} files, {dict(outcomes)}\n")


@counts
def test_foreign_xml_never_loses_an_object_without_a_word(make_voc, count) -> None:
    """Elements are renamed, wrapped in another, moved to a namespace or made attributes."""

    def change(rng, text):
        kind = rng.choice(("name", "name", "wrap", "namespace", "attribute"))
        if kind == "attribute":
            return re.sub(r"<(\w+)>([^<]*)</\1>", r'<\1 value="\2"/>', text, count=rng.randint(1, 20))
        tags = sorted(set(re.findall(r"<(\w+)>", text)))
        if kind == "name":
            for tag in tags if rng.random() < 0.1 else [rng.choice(tags)]:
                new = rng.choice((tag.title(), tag.upper(), f"{tag}s", f"x:{tag}", f"{tag}_", "box", "item", "x"))
                text = text.replace(f"<{tag}>", f"<{new}>").replace(f"</{tag}>", f"</{new}>")
            return text.replace("<annotation>", '<annotation xmlns:x="http://example.org">')
        tag = rng.choice(tags)
        if kind == "wrap":
            new = rng.choice(("objects", "data", "box", "x"))
            return text.replace(f"<{tag}>", f"<{new}><{tag}>").replace(f"</{tag}>", f"</{tag}></{new}>")
        return text.replace(f"<{tag}>", f'<{tag} xmlns="http://example.org/{tag}">')

    root, outcomes = make_voc({"a": OBJECTS, "b": OBJECTS}), Counter[str]()
    file = root / "Annotations" / "a.xml"
    original, (expected, _) = file.read_text(), read_voc(root)
    for number in range(count):
        rng, text = Random(f"foreign {number}"), original
        for _ in range(rng.randint(1, 2)):
            text = change(rng, text)
        file.write_text(text)
        index, problems = read_voc(root)
        same = torch.equal(index.boxes, expected.boxes) and torch.equal(index.ignore, expected.ignore)
        assert same or problems, f"foreign, mutation {number}: {text}"
        outcomes["said" if problems else "the same"] += 1
    sys.stdout.write(f"\nforeign XML: {count} files, {dict(outcomes)}\n")
