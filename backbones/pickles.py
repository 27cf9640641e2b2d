"""Reads pickles of arrays and plain containers without running anything that they name.

A pickle is a program: it may name any function of any module and call it. Here a name is looked up in a short table,
and calling it makes a value by the code of this file: arrays of numbers, dicts and bytes. Every other name is refused,
before its module is imported.
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

__all__ = ["read_pickle"]

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

# What pickle and pickletools raise for files that are damaged, of another format, or made to do harm.
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
    """What the pickle at ``path`` holds: dicts, lists, tuples, strings, numbers, and numpy arrays of numbers.

    Texts of Python 2, which are bytes, come back as latin-1.

    Raises:
        ValueError: no such file, a damaged one, or one that names anything but an array or an OrderedDict.
    """
    try:
        # Reading from a map never takes more memory than the file has bytes, whatever length the pickle claims.
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            stream = cast(BinaryIO, content)
            _check_claims(stream)
            content.seek(0)
            return _Unpickler(stream, encoding="latin1").load()
    except UNREADABLE as error:
        raise ValueError(f"cannot read the pickle {str(path)!r}: {error}") from error


def _check_claims(stream: BinaryIO) -> None:
    """Refuses lengths beyond the file's end and memo slots beyond its steps; pickle makes room for both."""
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument is None or argument > step):
            raise ValueError(f"it asks for memo slot {argument} at step {step}")


class _Global:
    """What an admitted name stands for until the pickle calls it."""

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
            raise ValueError(f"it holds an array of type {code!r}; numbers are read: {', '.join(NUMBERS)}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state
        if order not in ("<", "|") or structure[:3] != [None, None, None]:
            raise ValueError(
                f"it holds an array of byte order {order!r} or with fields; little-endian numbers are read"
            )


class _Array(np.ndarray):
    """An array that gets its content after it is made, as pickle does; only what fits exactly."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # text: bytes of Python 2
        if not isinstance(data, (bytes, bytearray)) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"it holds an array of shape {shape} made of a {type(data).__name__}")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError(f"it holds {len(data)} bytes for an array of shape {shape} and type {dtype.dtype}")
        # numpy's own annotation wants its bool, which its code refuses.
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), bytes(data)))  # pyright: ignore[reportArgumentType]


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
        raise ValueError(f"it encodes text as {encoding!r}; bytes are written as latin1")
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
        raise ValueError(f"it refers to an object {pid!r} outside the file")
