"""Mirrors pickle_steps.py: pickles that would take time or memory without end, as .pkl and in files of torch.save."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from backbones.weights.load import read_state_dict
from backbones.weights.pickle_steps import MAX_STEPS

PRIME = 2**61 - 1  # the hash of its multiples is 0


def number(value: int) -> bytes:
    return b"\x8a\x0b" + value.to_bytes(11, "little")  # LONG1


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def called(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def listed(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


COLLIDING = [number(k * PRIME) for k in range(1, 60_001)]
PAIRS = [b"](" + key + b"Ne" for key in COLLIDING]
KEYS, STEPS = "more than 1000 keys that are neither texts nor small", f"more than {MAX_STEPS} steps"

BOMBS = {
    "a dict whose keys collide": (b"}(" + b"".join(key + b"N" for key in COLLIDING) + b"u", KEYS),
    "many such dicts": ((b"}(" + b"".join(key + b"N" for key in COLLIDING[:900]) + b"u0") * 2 + b"N", KEYS),
    "tuples as keys": (b"}(" + b"".join(key + b"\x85N" for key in COLLIDING) + b"u", KEYS),
    "an OrderedDict of pairs": (called("collections.OrderedDict", listed(PAIRS)), KEYS),
    "a list that grows after its call is made": (
        b"ccollections\nOrderedDict\n]q\x00\x85q\x010h\x00(" + b"".join(PAIRS) + b"e0h\x01R",
        f"{KEYS}|too little|calls a tuple",
    ),
    "steps of a byte": (b"N" * 5_000_000, STEPS),
    "marks": (b"(" * 5_000_000, STEPS),
    "lists": (b"]" * 5_000_000, STEPS),
    "an object called again and again": (b"ccollections\nOrderedDict\nq\x00" + b"h\x00)R0" * 1_000_000 + b"N", STEPS),
    "a long list, called again and again": (
        b"ccollections\nOrderedDict\nq\x00" + listed([b"](K\x00Ne"] * 10_000) + b"\x85q\x01" + b"h\x00h\x01R" * 5000,
        STEPS,
    ),
    "a text repeated": (text("a " * (1 << 19)) + b"q\x00" + b"h\x00" * 1000, "repeats its texts"),
    "another encoding": (called("_codecs.encode", text("a"), text("hex_codec")), "encodes text as 'hex_codec'"),
    "a name that is no function": (b"]q\x00h\x002\x86\x85R", "calls a list|a list"),
    "an object": (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
}
# Names that torch.load takes and that no file of weights needs.
TORCH_BOMBS = {
    "a set by a call": (called("builtins.set", listed(COLLIDING)), KEYS),
    "a count": (called("collections.Counter", listed(COLLIDING)), KEYS),
    "a set of Python 2": (called("__builtin__.set", listed(COLLIDING)), KEYS),
    "a set of a set, again and again": (
        b"cbuiltins\nset\nq\x00" + listed(COLLIDING[:900]) + b"\x85Rq\x01" + b"h\x00h\x01\x85R0" * 9 + b"N",
        KEYS,
    ),
    "ten billion bytes": (called("builtins.bytearray", number(10**10)), "encodes text as"),
    "ten billion numbers": (called("torch.FloatTensor", number(10**10)), r"names torch\.FloatTensor"),
    "bytes of storage": (called("torch.storage.UntypedStorage", number(10**10)), "calls a name 'torch.storage"),
    "a function by another": (called("torch._tensor._rebuild_from_type_v2"), "_rebuild_from_type_v2"),
}


def as_pkl(folder: Path, content: bytes) -> Path:
    (folder / "a.pkl").write_bytes(b"\x80\x02" + content + b".")
    return folder / "a.pkl"


def as_pth(folder: Path, content: bytes, *, name: str = "data.pkl") -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w") as archive:
        archive.writestr(f"a/{name}", b"\x80\x02" + content + b".")
        archive.writestr("a/version", "3\n")
    return folder / "a.pth"


def refuse(path: Path, message: str) -> None:
    """Refuses within 20 s of work, far below what any of these would take, and 200 MiB."""
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"{path.name}.*({message})"):
        read_state_dict(path)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 << 10  # KiB


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("write", [as_pkl, as_pth])
def test_bombs_are_refused(tmp_path: Path, write: type, kind: str) -> None:
    content, message = BOMBS[kind]
    refuse(write(tmp_path, content), message)


@pytest.mark.parametrize("kind", TORCH_BOMBS)
def test_bombs_of_torch_are_refused(tmp_path: Path, kind: str) -> None:
    content, message = TORCH_BOMBS[kind]
    refuse(as_pth(tmp_path, content), message)


def test_a_pickle_in_capitals_is_looked_at_too(tmp_path: Path) -> None:
    refuse(as_pth(tmp_path, b"N" * 5_000_000, name="DATA.PKL"), STEPS)


@pytest.mark.faults
def test_the_most_steps_are_read(tmp_path: Path) -> None:
    """What passes on paper is read in bounds too."""
    refuse(as_pth(tmp_path, listed([b"]"] * (MAX_STEPS - 10))), "must hold a mapping")


@pytest.mark.slow
def test_a_compressed_member_is_refused_unread(tmp_path: Path) -> None:
    """A mebibyte on the disk, a gibibyte once it is read."""
    for place, name in enumerate(("a/data.pkl", "a/data/0")):
        path = tmp_path / f"{place}.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(name, "w") as member:
                for _ in range(1024):
                    member.write(bytes(1 << 20))
            archive.writestr("a/version", "3\n")
        assert path.stat().st_size < 2 << 20
        refuse(path, f"member '{name}' is compressed")


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    path = as_pth(tmp_path, b"}" + b"0}" * 1000)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += archive.filelist * 3  # entries of the directory at the end, not content
        archive.writestr("a/more", "")
    refuse(path, r"its members claim \d+ bytes, the file has")


def test_the_file_of_torch_that_others_write_is_read(tmp_path: Path) -> None:
    """Parameters, buffers of any type, an optimizer, texts, a set, bytes, and pairs as Python 2 wrote them."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    types = (torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.complex64)
    content = {
        "state_dict": OrderedDict(layer.state_dict())
        | {"own": torch.nn.Parameter(torch.ones(2)), **{str(kind): torch.ones(3, dtype=kind) for kind in types}},
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5]).state_dict(),
        "hyper": {"betas": (0.9, 0.999), "seen": {"a", "b"}, "raw": b"bytes", "dtype": torch.float16, 1.5: 2**70},
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
    }
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        read = read_state_dict(path)
        assert list(read) == list(content["state_dict"])
        assert torch.equal(read["weight"], layer.weight)
    pair = b"](" + text("a") + called("collections.OrderedDict") + b"e"
    with pytest.raises(ValueError, match="must map names to tensors, got a OrderedDict at 'a'"):
        read_state_dict(as_pth(tmp_path, called("collections.OrderedDict", listed([pair]))))


LIMITED = """
import resource, sys, time
from pathlib import Path
from backbones.weights.load import read_state_dict
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
for path in sys.argv[1:]:
    try:
        read_state_dict(path)
    except ValueError as error:
        assert not isinstance(error.__cause__, MemoryError), path
        print("refused")
"""


@pytest.mark.faults
def test_the_guard_itself_needs_little_memory(tmp_path: Path) -> None:
    """All bombs in a process that may take 512 MiB more than torch, and none of them finds that too little."""
    paths = list[Path]()
    for name, (content, _) in (BOMBS | TORCH_BOMBS).items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        paths += [as_pkl(folder, content), as_pth(folder, content)]
    said = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, check=False)
    assert (said.stderr, said.stdout.count("refused")) == ("", len(paths))
