"""Mirrors pickles.py: what arrays need is read, all else is refused and none of it runs."""

import os
import pickle
import re
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbones.weights.pickles import NUMBERS, read_pickle

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
every_protocol = pytest.mark.parametrize("protocol", range(6))


@pytest.fixture
def read(tmp_path: Path):
    """Reads bytes, or an object pickled by some protocol, from a file."""

    def write_and_read(content: Any, protocol: int | None = 2) -> Any:
        path = tmp_path / "a.pkl"
        path.write_bytes(content if protocol is None else pickle.dumps(content, protocol=protocol))
        return read_pickle(path)

    return write_and_read


def refused(message: str):
    return pytest.raises(ValueError, match=rf"cannot read the pickle '.*a\.pkl': .*{message}")


def pickled_text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@every_protocol
def test_containers_numbers_and_arrays_come_back(read, protocol: int) -> None:
    content = {
        "model": OrderedDict(b=1, a=[1, 2.5, None, True, 10**30]),
        "__author__": "Müller",
        "pair": (b"bytes", b"", ()),
        3: {"nested": {}},
    }
    found = read(content, protocol)
    assert found == content
    assert list(found["model"]) == ["b", "a"]
    numbers = read([np.float32(1.5), np.int64(-3), np.bool_(True)], protocol)
    assert [(type(value), value) for value in numbers] == [(np.float32, 1.5), (np.int64, -3), (np.bool_, True)]
    arrays = {
        **{"plain": ARRAY, "fortran": np.asfortranarray(ARRAY), "strided": np.arange(24).reshape(2, 3, 4)[:, ::2]},
        **{"empty": np.zeros((0, 3)), "number": np.array(7, np.int64), "long": np.arange(5000, dtype=np.float64)},
        **{code: np.array([0, 1]).astype(code) for code in NUMBERS},
    }
    found = read(arrays | {"again": arrays["plain"]}, protocol)
    assert found.pop("again") is found["plain"]
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].flags.writeable) == (array.dtype, True)
        np.testing.assert_array_equal(found[name], array)


def test_bytes_of_python_2_are_latin_1(read) -> None:
    """As cPickle of Python 2 wrote arrays: module numpy.core, texts and the array's bytes as byte strings."""
    raw = ARRAY.astype("<f4").tobytes()
    found = read(
        b"\x80\x02}U\x05model}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U" + bytes([len(raw)]) + raw + b"tbssU\x06author" + b"U\x02M\xfcs.",
        None,
    )
    np.testing.assert_array_equal(found["model"]["conv1_w"], ARRAY)
    assert found["author"] == "Mü"


NAMES = """
posix:system os:system __builtin__:eval builtins:exec builtins:getattr builtins:bytearray copy_reg:_reconstructor
copyreg:__newobj__ numpy:load numpy.core.multiarray:fromfile torch._utils:_rebuild_tensor_v2
collections:OrderedDict.fromkeys backbones.weights.pickles:ADMITTED
"""


@pytest.mark.parametrize("place", NAMES.split())
def test_any_other_name_is_refused_and_not_called(tmp_path, read, place: str) -> None:
    mark, (module, name) = tmp_path / "mark", place.split(":")
    command = f"open({str(mark)!r}, 'w')" if name in ("eval", "exec") else f"touch {mark}"
    stacked = pickled_text(module) + pickled_text(name) + b"\x93"
    for found in (stacked, f"c{module}\n{name}\n".encode()):
        call = found + pickled_text(command) + b"\x85R"
        for content in (call, b"}" + pickled_text("model") + call + b"s"):
            with refused(f"it names {re.escape(f'{module}.{name}')}, which is no part of"):
                read(b"\x80\x04" + content + b".", None)
    assert not mark.exists()


def test_a_named_module_is_not_imported_and_harmful_pickles_do_harm_elsewhere(tmp_path, read, monkeypatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with refused(r"it names trap\.anything"):
        read(b"ctrap\nanything\n.", None)
    assert pickle.loads(b"\x80\x04cposix\nsystem\n" + pickled_text(f"touch {tmp_path / 'mark'}") + b"\x85R.") == 0
    assert (tmp_path / "mark").exists()


class Mark(dict):
    """Pickles as a call that leaves a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, (self["path"],)


@every_protocol
def test_an_array_of_objects_or_of_other_numbers_is_refused(tmp_path, read, protocol: int) -> None:
    for content, message in (
        (np.array([{}, None]), "an array of type 'O8'"),
        (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), r"type 'V12'|byte order '\|' or with fields"),
        (np.array(["text"]), "an array of type 'U4'"),
        (np.arange(3, dtype=">f4"), "byte order '>'"),
        (np.zeros(1, dtype=np.complex64), "an array of type 'c8'; numbers are read: b1, "),
        (np.array([Mark(path=str(tmp_path / "mark"))], dtype=object), r"(an array of type 'O8'|names posix\.mkdir)"),
    ):
        with refused(message):
            read({"w": content}, protocol)
    assert not (tmp_path / "mark").exists()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FLOAT32 = (
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
MINUS, HUGE = b"J\xff\xff\xff\xff", b"\x8a\x06" + (2**40).to_bytes(6, "little")  # LONG1
LENGTH = (2**40).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RECONSTRUCT + b"(K\x01" + HUGE + b"\x85" + FLOAT32 + b"\x89C\x04aaaatb.", r"4 bytes for .* shape \(1099"),
        (RECONSTRUCT + b"(K\x01" + 2 * MINUS + b"\x86" + FLOAT32 + b"\x89C\x04aaaatb.", r"shape \(-1, -1\)"),
        (RECONSTRUCT + b"(K\x01K\x02\x85" + FLOAT32 + b"\x89" + HUGE + b"tb.", "made of a int"),
        (b"cnumpy.core.multiarray\nscalar\n" + FLOAT32 + HUGE + b"\x86R.", "made of a int"),
        (b"cbuiltins\nbytes\n" + HUGE + b"\x85R.", "."),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00zlib_\x86R.", "encodes text as 'zlib_'"),
        (b"\x96" + LENGTH + b"a.", "."),  # BYTEARRAY8
        (b"\x8e" + LENGTH + b"a.", "."),  # BINBYTES8
        (b"\x95" + LENGTH + b"}.", "."),  # FRAME
        (b"}r\xff\xff\xff\x7f.", "memo slot 2147483647 at step 2"),  # LONG_BINPUT
        (b"}p2000000000\n.", "memo slot 2000000000"),  # PUT
        (b"Pelsewhere\n.", "an object 'elsewhere' outside the file"),
        (b"\x82\x01.", "."),  # EXT1, of copyreg's registry
        (b"cnumpy\nndarray\n)\x81.", "."),  # NEWOBJ of a stand-in
        (b"ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.", "."),  # attributes of a dict
        (b"(i__main__\nThing\n.", "names __main__.Thing"),  # INST
        *((content, ".") for content in (b"}", b".", b"", b"no pickle", bytes(range(256)))),
    ],
)
def test_false_claims_are_refused_in_little_memory(read, content: bytes, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refused(message):
        read(b"\x80\x04" + content, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_truncated_file_is_refused_wherever_it_ends_and_a_missing_one(tmp_path, read) -> None:
    for protocol in (2, 5):
        content = pickle.dumps({"model": {"w": ARRAY}, "__author__": "me"}, protocol=protocol)
        for length in range(len(content)):
            with refused(""):
                read(content[:length], None)
    with pytest.raises(ValueError, match=r"cannot read the pickle '.*absent\.pkl'"):
        read_pickle(tmp_path / "absent.pkl")
