"""Mirrors pickle_steps.py and plain.py: files that take time or memory without end, and what torch.save may hold."""

import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.weights import pickle_steps, plain
from backbones.weights.load import read_state_dict, read_torch
from backbones.weights.plain import check_plain

KEYS, STEPS = "more than 1000 keys that are neither texts nor small", "more than [0-9]+ steps"
ORDERED = b"ccollections\nOrderedDict\n"


def number(value: int) -> bytes:
    return b"\x8a\x0b" + value.to_bytes(11, "little")  # LONG1


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def called(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def listed(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def bombs(keys: int, steps: int) -> dict[str, tuple[bytes, str]]:
    """Pickles of about so many colliding keys or steps, and why they are refused."""
    colliding = [number(k * (2**61 - 1)) for k in range(1, keys + 1)]  # the hash of these multiples is 0
    pairs, dictionary = [b"](" + key + b"Ne" for key in colliding], b"}(%bu"
    return {
        "a dict whose keys collide": (dictionary % b"".join(key + b"N" for key in colliding), KEYS),
        "many such dicts": ((dictionary % b"".join(key + b"N" for key in colliding[:900]) + b"0") * 2 + b"N", KEYS),
        "tuples as keys": (dictionary % b"".join(key + b"\x85N" for key in colliding), KEYS),
        "an OrderedDict of pairs": (called("collections.OrderedDict", listed(pairs)), KEYS),
        "a list that grows after its call is made": (
            ORDERED + b"]q\x00\x85q\x010h\x00(" + b"".join(pairs) + b"e0h\x01R",
            f"{KEYS}|too little|calls a tuple",
        ),
        "steps of a byte": (b"N" * steps, STEPS),
        "marks": (b"(" * steps, STEPS),
        "lists": (b"]" * steps, STEPS),
        "an object called again and again": (ORDERED + b"q\x00" + b"h\x00)R0" * (steps // 4) + b"N", STEPS),
        "a long list, called again and again": (
            ORDERED + b"q\x00" + listed([b"](K\x00Ne"] * (steps // 500)) + b"\x85q\x01" + b"h\x00h\x01R" * 600,
            STEPS,
        ),
        "a text repeated": (text("a " * (1 << 19)) + b"q\x00" + b"h\x00" * 1000, "repeats its texts"),
        "another encoding": (called("_codecs.encode", text("a"), text("hex_codec")), "encodes text as 'hex_codec'"),
        "a name that is no function": (b"]q\x00h\x002\x86\x85R", "calls a list|a list"),
        "an object": (ORDERED + b")\x81", "NEWOBJ"),
    }


def bombs_of_torch(keys: int) -> dict[str, tuple[bytes, str]]:
    """Names that torch.load takes and that no file of weights needs."""
    colliding = [number(k * (2**61 - 1)) for k in range(1, keys + 1)]
    again = b"cbuiltins\nset\nq\x00" + listed(colliding[:900]) + b"\x85Rq\x01" + b"h\x00h\x01\x85R0" * 9 + b"N"
    return {
        "a set by a call": (called("builtins.set", listed(colliding)), KEYS),
        "a count": (called("collections.Counter", listed(colliding)), KEYS),
        "a set of Python 2": (called("__builtin__.set", listed(colliding)), KEYS),
        "a set of a set, again and again": (again, KEYS),
        "ten billion bytes": (called("builtins.bytearray", number(10**10)), "encodes text as"),
        "ten billion numbers": (called("torch.FloatTensor", number(10**10)), r"names torch\.FloatTensor"),
        "bytes of storage": (called("torch.storage.UntypedStorage", number(10**10)), "calls a name 'torch.storage"),
        "a function by another": (called("torch._tensor._rebuild_from_type_v2"), "_rebuild_from_type_v2"),
    }


SMALL, OF_TORCH = bombs(2000, 20_000), bombs_of_torch(2000)


def as_pkl(folder: Path, content: bytes) -> Path:
    (folder / "a.pkl").write_bytes(b"\x80\x02" + content + b".")
    return folder / "a.pkl"


def as_pth(folder: Path, content: bytes, *, name: str = "data.pkl") -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w") as archive:
        archive.writestr(f"a/{name}", b"\x80\x02" + content + b".")
        archive.writestr("a/version", "3\n")
    return folder / "a.pth"


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{path.name}.*({message})"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", [*SMALL, *OF_TORCH])
@pytest.mark.parametrize("write", [as_pkl, as_pth])
def test_bombs_are_refused(tmp_path, monkeypatch, write, kind: str) -> None:
    """With fewer steps and keys than do harm; those that do are below."""
    monkeypatch.setattr(pickle_steps, "MAX_STEPS", 10_000 if STEPS in (SMALL | OF_TORCH)[kind] else 500_000)
    content, message = (SMALL | OF_TORCH)[kind]
    refuse(write(tmp_path, content), message if kind in SMALL or write is as_pth else "names")


def test_members_in_capitals_are_looked_at_and_compressed_or_overlapping_ones_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pickle_steps, "MAX_STEPS", 10_000)
    refuse(as_pth(tmp_path, b"N" * 20_000, name="DATA.PKL"), STEPS)
    for place, name in enumerate(("a/data.pkl", "a/data/0")):
        path = tmp_path / f"{place}.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(1 << 20))
            archive.writestr("a/version", "3\n")
        refuse(path, f"member '{name}' is compressed")
    path = as_pth(tmp_path, b"}" + b"0}" * 1000)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += archive.filelist * 3  # entries of the directory at the end, not content
        archive.writestr("a/more", "")
    refuse(path, r"its members claim \d+ bytes, the file has")


def test_the_file_of_torch_that_others_write_is_read(tmp_path) -> None:
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
        "others": (torch.device("cpu"), torch.Size([2, 3])),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "b.pth", _use_new_zipfile_serialization=zipped)
        read = read_state_dict(tmp_path / "b.pth")
        assert list(read) == list(content["state_dict"])
        assert torch.equal(read["weight"], layer.weight)
    pair = b"](" + text("a") + called("collections.OrderedDict") + b"e"
    refuse(as_pth(tmp_path, called("collections.OrderedDict", listed([pair]))), "got a OrderedDict at 'a'")


LIMITED = """
import resource, sys
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
def test_the_guard_itself_needs_little_memory_and_time(tmp_path) -> None:
    """All bombs in a process that may take 512 MiB more than torch, and none of them finds that too little.

    The last takes the most steps that pass on paper, to be read in bounds too.
    """
    large = bombs(60_000, 5_000_000) | bombs_of_torch(60_000)
    large["most steps"] = listed([b"]"] * (pickle_steps.MAX_STEPS - 10)), ""
    paths = list[Path]()
    for name, (content, _) in large.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        paths += [as_pkl(folder, content), as_pth(folder, content)]
    said = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, check=False)
    assert (said.stderr, said.stdout.count("refused")) == ("", len(paths))


def holding_itself(times: int = 1) -> list[Any]:
    made = list[Any]()
    made.extend([made] * times)
    return made


def doubled() -> list[Any]:
    made = list[Any]()
    for _ in range(40):
        made = [made, made]
    return made


ODD = {
    "stride 0": (lambda: torch.zeros(1).expand(10**12), "4000000000000 bytes in a memory of 4"),
    "sparse": (lambda: torch.ones(3).to_sparse(), "sparse|not dense|_rebuild_sparse"),
    "compressed": (lambda: torch.ones(3, 3).to_sparse_csr(), "sparse|not dense"),
    "conjugate": (lambda: torch.ones(3, dtype=torch.complex64).conj(), "conjugate|with a list or dict"),
    "negated": (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, "negated|with a list or dict"),
    "meta": (lambda: torch.ones(3, device="meta"), "meta"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "not dense|qtensor"),
    "itself": (holding_itself, "hold themselves"),
    "a dict of itself": (lambda: {"a": holding_itself()}, "hold themselves"),
    "doubled": (doubled, "hold themselves"),
    "itself many times": (lambda: holding_itself(4000), "hold themselves|steps"),
    "one memory many times": (lambda: [torch.zeros(50_000)] * 100, "times the bytes of the file"),
}


@pytest.mark.filterwarnings("ignore")  # torch's on kinds that are in beta
@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_plain_is_refused(tmp_path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(plain, "MAX_VALUES", 10_000)
    make, message = ODD[kind]
    torch.save({"a": make()}, tmp_path / "a.pt")
    for read in (lambda: check_plain(make(), 1 << 20), lambda: read_torch(tmp_path / "a.pt")):
        with pytest.raises(ValueError, match=message):
            read()


def test_views_and_shared_memory_are_plain_but_no_tensor_larger_than_the_file() -> None:
    whole = torch.zeros(10, 10)
    check_plain({"a": whole, "b": (whole.T, whole[:, 3]), 3: [None, True, 1.5, "x", b"x"], "empty": whole[:0]}, 500)
    with pytest.raises(ValueError, match="a tensor of 400 bytes in a memory of 400; the file has 399"):
        check_plain({"a": [whole]}, 399)
