"""Reads pickles of arrays and plain containers without running anything that they name.

A pickle is a program: it may name any function of any module and call it. Here a name is looked up in a short table,
and calling it makes a value by the code of this file: arrays of numbers, dicts and bytes. Every other name is refused,
before its module is imported.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import reprlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from backbones.weights.pickle_steps import check_steps

__all__ = ["check_torch_file", "read_pickle"]

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

MAX_DIMENSIONS = 64  # of numpy 2

MAX_WORD = 4096  # characters without a space
ROOM = 1 << 20  # bytes of texts that a small pickle may repeat

# The beginning of files by torch.save since PyTorch 1.6; before, a mark, a version, the system, the content and the
# names of its storages were pickled one after the other.
ZIP = b"PK\x03\x04"
LEGACY_PICKLES = 5

# What is called for dense tensors and plain containers, and the types that are named with them. Left out of what
# ``torch.load`` takes: sparse, nested, quantized and meta tensors, and functions that make as much as a number says.
TORCH_CALLS = (
    "collections.OrderedDict",
    "collections.Counter",  # of MultiStepLR
    "_codecs.encode",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")),
    "torch.Size",
    "torch.device",
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
)
TORCH_TYPES = re.compile(r"torch\.((cuda\.)?[A-Z]\w*Storage|storage\.(Typed|Untyped)Storage|[a-z]+\d*(_\w+)?)")

# Errors of pickle and pickletools for files that are damaged, of another format, or made to do harm.
UNREADABLE = (
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)


def read_pickle(path: str | Path) -> Any:
    """Reads the pickle at ``path``: dicts, lists, tuples, strings, numbers, and numpy arrays of numbers.

    Texts of Python 2, which are bytes, come back as latin-1.

    Raises:
        ValueError: no such file, a damaged one, or one that names anything but an array or an OrderedDict.
    """
    try:
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        # Reading from a map never takes more memory than the file has bytes, whatever length the pickle claims.
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            stream = cast(BinaryIO, content)
            check_steps(stream, admits=ADMITTED.__contains__, calls=ADMITTED, room=len(content) + ROOM)
            content.seek(0)
            return _Unpickler(stream, encoding="latin1").load()
    except UNREADABLE as error:
        raise ValueError(f"cannot read the pickle {str(path)!r}: {error}") from error


def check_torch_file(path: Path) -> None:
    """Raises if ``torch.load`` would take unbounded time or memory for a file by torch.save.

    Beyond ``check_steps``, it rejects compressed or overlapping zip members, by which a mebibyte becomes a gibibyte
    when read, and very long words, for which torch's error message takes quadratic time.

    Raises:
        ValueError: one of these problems, or a damaged file.
        OSError, zipfile.BadZipFile: it can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                _check_torch_pickle(file, size)
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"its member {member.filename!r} is compressed, as torch.save writes none")
        if (claimed := sum(member.file_size for member in members)) > size:
            raise ValueError(f"its members claim {claimed} bytes, the file has {size}")
        for member in members:
            if member.filename.lower().endswith(".pkl"):  # torch's reader takes capitals for small letters
                with io.BufferedReader(cast(io.RawIOBase, archive.open(member))) as stream:
                    _check_torch_pickle(stream, member.file_size)


def _check_torch_pickle(stream: BinaryIO, size: int) -> None:
    check_steps(stream, admits=_is_torchs, calls=TORCH_CALLS, room=size + ROOM, max_word=MAX_WORD)


def _is_torchs(name: str) -> bool:
    """Tells whether it is a function that makes tensors, or the type of a storage or number."""
    return name in TORCH_CALLS or TORCH_TYPES.fullmatch(name) is not None


class _Global:
    """A stand-in for an admitted name until the pickle calls it."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


class _DType:
    """The type of an array's elements, numbers only: numpy's own would also take objects."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_: object) -> None:
        if code not in NUMBERS:
            raise ValueError(f"it holds an array of type {reprlib.repr(code)}; numbers are read: {', '.join(NUMBERS)}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state
        if order not in ("<", "|") or structure[:3] != [None, None, None]:
            raise ValueError(
                f"it holds an array of byte order {reprlib.repr(order)} or with fields; little-endian numbers are read"
            )


class _Array(np.ndarray):
    """An array that gets its content after it is made, as pickle does; only what fits exactly."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # text: bytes of Python 2
        if not _is_shape(shape):
            raise ValueError(f"it holds an array of the impossible shape {reprlib.repr(shape)}")
        if not isinstance(data, (bytes, bytearray)):
            raise ValueError(f"it holds an array of shape {shape} made of a {type(data).__name__}")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError(f"it holds {len(data)} bytes for an array of shape {shape} and type {dtype.dtype}")
        # numpy's own annotation wants its bool, which its code refuses.
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), bytes(data)))  # pyright: ignore[reportArgumentType]


def _is_shape(shape: Any) -> bool:
    """Returns whether numpy can have an array of this shape, perhaps with no element."""
    return len(shape) <= MAX_DIMENSIONS and all(type(side) is int and 0 <= side < 2**63 for side in shape)


def _empty_array(*_: object) -> _Array:
    return _Array((0,), np.uint8)


def _array_from_buffer(buffer: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    array = _empty_array()
    array.__setstate__((1, shape, dtype, order == "F", buffer))
    return array


def _scalar(dtype: _DType, data: Any) -> Any:
    return _array_from_buffer(data, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it encodes text as {reprlib.repr(encoding)}; bytes are written as latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


# Full name -> what a call of it makes. numpy 2 renamed its core, Python 3 its builtins.
ADMITTED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": dict,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
    "numpy.dtype": _DType,
    "numpy.ndarray": _empty_array,
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in ADMITTED:
            raise ValueError(f"it names {full_name}, which is no part of an array or a plain container; not run")
        return _Global(ADMITTED[full_name])

    def persistent_load(self, pid: Any, /) -> Any:
        raise ValueError(f"it refers to an object {reprlib.repr(pid)} outside the file")
