"""Mirrors pickles.py: what arrays need is read, all else is refused and none of it runs."""

from __future__ import annotations

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


def written(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_numbers_come_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "model": OrderedDict(b=1, a=[1, 2.5, None, True, 10**30]),
        "__author__": "Müller",
        "pair": (b"bytes", b"", ()),
        3: {"nested": {}},
    }
    read = read_pickle(written(tmp_path / "a.pkl", content, protocol))
    assert read == content
    assert list(read["model"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "plain": ARRAY,
        "fortran": np.asfortranarray(ARRAY),
        "strided": np.arange(24).reshape(2, 3, 4)[:, ::2],
        "empty": np.zeros((0, 3)),
        "number": np.array(7, dtype=np.int64),
        "long": np.arange(5000, dtype=np.float64),
        **{code: np.array([0, 1]).astype(code) for code in NUMBERS},
    }
    read = read_pickle(written(tmp_path / "a.pkl", arrays, protocol))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_numbers_come_back(tmp_path: Path, protocol: int) -> None:
    read = read_pickle(written(tmp_path / "a.pkl", [np.float32(1.5), np.int64(-3), np.bool_(True)], protocol))
    assert read == [1.5, -3, True]
    assert [type(value) for value in read] == [np.float32, np.int64, np.bool_]


def test_bytes_of_python_2_are_latin_1(tmp_path: Path) -> None:
    """As cPickle of Python 2 wrote arrays: module numpy.core, texts and the array's bytes as byte strings."""
    raw = ARRAY.astype("<f4").tobytes()
    short = b"U" + bytes([len(raw)]) + raw  # SHORT_BINSTRING
    content = (
        b"\x80\x02}U\x05model}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89" + short + b"tbssU\x06author" + b"U\x02M\xfcs."
    )
    (tmp_path / "a.pkl").write_bytes(content)
    read = read_pickle(tmp_path / "a.pkl")
    np.testing.assert_array_equal(read["model"]["conv1_w"], ARRAY)
    assert read["author"] == "Mü"


def test_one_object_in_two_places_is_one_object(tmp_path: Path) -> None:
    first, second = read_pickle(written(tmp_path / "a.pkl", [ARRAY, ARRAY]))
    assert first is second


NAMES = [
    ("posix", "system"),
    ("os", "system"),
    ("__builtin__", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "bytearray"),
    ("copy_reg", "_reconstructor"),
    ("copyreg", "__newobj__"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "fromfile"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("collections", "OrderedDict.fromkeys"),
    ("backbones.weights.pickles", "ADMITTED"),
]


@pytest.mark.parametrize("in_model", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("module", "name"), NAMES)
def test_any_other_name_is_refused_and_not_called(
    tmp_path: Path, module: str, name: str, stacked: bool, in_model: bool
) -> None:
    path, mark = tmp_path / "a.pkl", tmp_path / "mark"
    command = f"open({str(mark)!r}, 'w')" if name in ("eval", "exec") else f"touch {mark}"
    found = pickled_text(module) + pickled_text(name) + b"\x93" if stacked else f"c{module}\n{name}\n".encode()
    call = found + pickled_text(command) + b"\x85R"
    path.write_bytes(b"\x80\x04" + (b"}" + pickled_text("model") + call + b"s." if in_model else call + b"."))
    with pytest.raises(ValueError, match=rf"a\.pkl': it names {re.escape(f'{module}.{name}')}, which is no part of"):
        read_pickle(path)
    assert not mark.exists()


def pickled_text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def test_the_harmful_pickles_above_do_harm_elsewhere(tmp_path: Path) -> None:
    call = b"cposix\nsystem\n" + pickled_text(f"touch {tmp_path / 'mark'}") + b"\x85R."
    assert pickle.loads(b"\x80\x04" + call) == 0
    assert (tmp_path / "mark").exists()


def test_a_module_that_is_named_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.pkl").write_bytes(b"ctrap\nanything\n.")
    with pytest.raises(ValueError, match=r"it names trap\.anything"):
        read_pickle(tmp_path / "a.pkl")


class Mark:
    """Pickles as a call that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_an_array_of_objects_is_refused(tmp_path: Path, protocol: int) -> None:
    for content in (np.array([{}, None]), np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), np.array(["text"])):
        with pytest.raises(
            ValueError, match=r"it holds an array of (type '(O8|V12|U4)'|byte order '\|' or with fields)"
        ):
            read_pickle(written(tmp_path / "a.pkl", {"w": content}, protocol))
    path = written(tmp_path / "a.pkl", np.array([Mark(tmp_path / "mark")], dtype=object), protocol)
    with pytest.raises(ValueError, match=r"an array of type 'O8'|names posix\.mkdir"):
        read_pickle(path)
    assert not (tmp_path / "mark").exists()


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"byte order '>'.*little-endian"):
        read_pickle(written(tmp_path / "a.pkl", np.arange(3, dtype=">f4")))
    with pytest.raises(ValueError, match=r"an array of type 'c8'; numbers are read: b1, "):
        read_pickle(written(tmp_path / "a.pkl", np.zeros(1, dtype=np.complex64)))


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FLOAT32 = (
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")  # LONG1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            RECONSTRUCT + b"(K\x01" + HUGE + b"\x85" + FLOAT32 + b"\x89C\x04aaaatb.",
            r"4 bytes for an array of shape \(1099",
        ),
        (
            RECONSTRUCT + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + FLOAT32 + b"\x89C\x04aaaatb.",
            r"shape \(-1, -1\)",
        ),
        (RECONSTRUCT + b"(K\x01K\x02\x85" + FLOAT32 + b"\x89" + HUGE + b"tb.", "made of a int"),
        (b"cnumpy.core.multiarray\nscalar\n" + FLOAT32 + HUGE + b"\x86R.", "made of a int"),
        (b"cbuiltins\nbytes\n" + HUGE + b"\x85R.", "."),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00zlib_\x86R.", "encodes text as 'zlib_'"),
        (b"\x96" + (2**40).to_bytes(8, "little") + b"a.", "."),  # BYTEARRAY8
        (b"\x8e" + (2**40).to_bytes(8, "little") + b"a.", "."),  # BINBYTES8
        (b"\x95" + (2**40).to_bytes(8, "little") + b"}.", "."),  # FRAME
        (b"}r\xff\xff\xff\x7f.", "memo slot 2147483647 at step 2"),  # LONG_BINPUT
        (b"}p2000000000\n.", "memo slot 2000000000"),  # PUT
        (b"Pelsewhere\n.", "an object 'elsewhere' outside the file"),
        (b"\x82\x01.", "."),  # EXT1, of copyreg's registry
        (b"cnumpy\nndarray\n)\x81.", "."),  # NEWOBJ of a stand-in
        (b"ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.", "."),  # attributes of a dict
        (b"(i__main__\nThing\n.", "names __main__.Thing"),  # INST
        (b"}", "."),
        (b".", "."),
        (b"", "."),
        (b"no pickle", "."),
        (bytes(range(256)), "."),
    ],
)
def test_false_claims_are_refused_in_little_memory(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"cannot read the pickle '.*a\.pkl': .*{message}"):
        read_pickle(tmp_path / "a.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"model": {"w": ARRAY}, "__author__": "me"}, protocol=protocol)
    for length in range(len(content)):
        (tmp_path / "a.pkl").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cannot read the pickle '.*a\.pkl': "):
            read_pickle(tmp_path / "a.pkl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the pickle '.*absent\.pkl'"):
        read_pickle(tmp_path / "absent.pkl")
