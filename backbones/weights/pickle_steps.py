"""Simulates the steps of a pickle, and rejects one that would take unbounded time or memory.

A pickle is a program of small steps. A short one can ask for a list of a hundred gigabytes, hash a tuple for years or
fill a dict with keys that all collide. Here no value is built: a note stands for each. A pickle of
``MAX_STEPS`` steps takes some 4 s and 80 MiB.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["check_steps"]

MAX_STEPS = 500_000  # a tensor takes some 40, a number in a list 1
MAX_TUPLE = 1000  # values; shapes have some
MAX_KEYS = 1000  # keys that are neither texts nor small whole numbers: whoever chooses them can make them all collide
MAX_NOTED, MAX_NAME = 64, 200  # characters of a text, and of a name in a message

WORD = re.compile(r"\S+")
SMALL = 2**31  # whole numbers below are their own hash
LATIN = ("latin1", "latin-1")
HASHING = ("collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set")
ENCODING = ("_codecs.encode", "builtins.bytearray", "__builtin__.bytearray")


@dataclass(slots=True, eq=False)
class _Note:
    """A stand-in for a value.

    Attributes:
        kind: "text", "small" (a whole number, None or a truth value), "list", "dict", "set", "tuple", "name", "made" by
            a call, or "other".
        weight: number of its values, those of nested tuples included.
        size: bytes of a text, or of what was made of one.
        text: the beginning of a text, a name, or the name of what made it.
        parts: of a list, set or tuple; the keys of a dict.
    """

    kind: str
    weight: int = 1
    size: int = 0
    text: str = ""
    parts: list[_Note] = field(default_factory=list)


SMALL_NOTE, OTHER_NOTE = _Note("small"), _Note("other")
CONTAINERS = {"LIST": ("list", "APPENDS"), "DICT": ("dict", "SETITEMS"), "SET": ("set", "ADDITEMS")}
FILLED = {"APPEND": "list", "APPENDS": "list", "SETITEM": "dict", "SETITEMS": "dict", "ADDITEMS": "set"}


def check_steps(
    stream: BinaryIO, *, admits: Callable[[str], bool], calls: Collection[str], room: int, max_word: int | None = None
) -> None:
    """Raises if a pickle is harmful, read from the position of ``stream`` to the pickle's end.

    Args:
        stream: of the pickle.
        admits: tells whether a full name is allowed.
        calls: names that may be called.
        room: bytes of text that it may repeat; the file's size is enough.
        max_word: the most characters of a text without a space.

    Raises:
        ValueError: it is damaged, names something else, or takes more than the limits of this file.
    """
    paper = _Paper(admits, calls, room, max_word)
    for opcode, argument, _ in pickletools.genops(stream):
        paper.step(opcode, argument)


class _Paper:
    def __init__(self, admits: Callable[[str], bool], calls: Collection[str], room: int, max_word: int | None) -> None:
        self.admits, self.calls, self.room, self.max_word = admits, calls, room, max_word
        self.stack, self.memo = list[_Note | None](), dict[Any, _Note]()  # None is a mark
        self.steps = self.keys = 0

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        self._count(1)
        match opcode.name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if argument is None or argument >= self.steps:
                    raise ValueError(f"it asks for memo slot {argument} at step {self.steps - 1}")
                self.memo[argument] = self._top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            case "GET" | "BINGET" | "LONG_BINGET":
                self._repeat(self.memo[argument])
            case "DUP":
                self._repeat(self._top())
            case "INST":
                self._name(argument.replace(" ", "."))
                raise ValueError(f"its step INST calls {argument!r:.200}")
            case "OBJ" | "NEWOBJ" | "NEWOBJ_EX" | "EXT1" | "EXT2" | "EXT4":
                raise ValueError(f"its step {opcode.name} makes an object, not an array or a plain container")
            case "REDUCE" | "BUILD" | "PERSID" | "BINPERSID":
                self._act(opcode, argument)
            case name:
                taken = _take(self.stack, opcode)
                if name in FILLED:
                    self._fill(name, taken[0], taken[1:])
                    self.stack.append(taken[0])
                else:
                    self._push(opcode, argument, taken)

    def _push(self, opcode: pickletools.OpcodeInfo, argument: Any, taken: list[_Note]) -> None:
        """Notes the value that a step makes without calling anything."""
        name, after = opcode.name, [kind.name for kind in opcode.stack_after]
        if name in ("GLOBAL", "STACK_GLOBAL"):
            full = argument.replace(" ", ".") if name == "GLOBAL" else ".".join(note.text for note in taken)
            self.stack.append(self._name(full))
        elif name.startswith("TUPLE") or name in ("EMPTY_TUPLE", "FROZENSET"):
            self.stack.append(self._tuple(taken, hashed=name == "FROZENSET"))
        elif (made := CONTAINERS.get(name.removeprefix("EMPTY_"))) is not None:
            self.stack.append(_Note(made[0]))
            self._fill(made[1], self._top(), taken)
        elif isinstance(argument, (str, bytes, bytearray)) and after:
            self.stack.append(self._text(name, argument))
        elif after == ["mark"]:
            self.stack.append(None)
        else:
            small = (isinstance(argument, int) and abs(argument) < SMALL) or after in (["None"], ["bool"])
            self.stack += [SMALL_NOTE if small else OTHER_NOTE for _ in after]

    def _act(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Notes the result of a call, or an object outside the pickle."""
        taken = _take(self.stack, opcode)
        if opcode.name == "REDUCE":
            called, args = taken
            self.stack.append(self._call(called, args))
        elif opcode.name == "BUILD":
            target, state = taken
            if state.kind not in ("tuple", "dict") or target.kind != "made":
                raise ValueError(f"it sets the state of a {target.kind} to a {state.kind}")
            if state.kind == "dict" and target.text != "collections.OrderedDict":
                raise ValueError(f"it sets attributes of what {target.text} makes")
            self._count(len(state.parts))
            self._spend(sum(part.size for part in state.parts))
            self.stack.append(target)
        else:
            if any(part.kind in ("list", "dict", "set", "tuple") for note in taken for part in note.parts):
                raise ValueError("it refers to an object outside the file by a container")
            self.stack.append(OTHER_NOTE)

    def _name(self, full: str) -> _Note:
        if not self.admits(full):
            raise ValueError(f"it names {full[:MAX_NAME]}, which is no part of an array or a plain container; not run")
        return _Note("name", text=full)

    def _tuple(self, parts: list[_Note], *, hashed: bool) -> _Note:
        weight = 1 + sum(part.weight for part in parts)
        if weight > MAX_TUPLE:
            raise ValueError(f"it holds a tuple of more than {MAX_TUPLE} values, those of its tuples counted")
        if hashed:
            self._hash(parts)
        return _Note("tuple", weight, parts=parts)

    def _fill(self, step: str, container: _Note, items: list[_Note]) -> None:
        if container.kind != FILLED[step] and (FILLED[step], container.text) != ("dict", HASHING[0]):
            raise ValueError(f"its step {step} fills a {container.kind}")
        if step.startswith("SETITEM"):
            items = items[::2]
            self._hash(items)
        elif step == "ADDITEMS":
            self._hash(items)
        container.parts += items

    def _call(self, called: _Note, args: _Note) -> _Note:
        if called.kind != "name" or called.text not in self.calls or args.kind != "tuple":
            raise ValueError(f"it calls a {called.kind} {called.text!r} with a {args.kind}, which makes no plain value")
        if called.text in HASHING:
            for note in args.parts:
                self._count(len(note.parts))
                self._hash([_key(part) for part in note.parts])
        elif called.text in ENCODING:
            if [note.kind for note in args.parts] != ["text", "text"] or args.parts[1].text not in LATIN:
                said = args.parts[-1].text if args.parts else ""
                raise ValueError(f"it encodes text as {said!r}; bytes are written as latin1")
        elif any(note.kind in ("list", "dict", "set") for note in _flat(args)):
            raise ValueError(f"it calls {called.text} with a list or dict")
        parts = [part for note in args.parts for part in note.parts] if called.text in HASHING else []
        return _Note("made", size=sum(note.size for note in args.parts), text=called.text, parts=parts)

    def _text(self, step: str, argument: str | bytes | bytearray) -> _Note:
        longest, words = self.max_word, WORD.finditer(argument) if isinstance(argument, str) else ()
        if longest is not None and any(word.end() - word.start() > longest for word in words):
            raise ValueError(f"it holds a {step} with a word of more than {longest} characters")
        noted = argument[:MAX_NOTED]
        return _Note("text", size=len(argument), text=noted if isinstance(noted, str) else "")

    def _top(self) -> _Note:
        if (note := self.stack[-1]) is None:
            raise ValueError("it takes a mark for a value")
        return note

    def _repeat(self, note: _Note) -> None:
        self._spend(note.size)
        self.stack.append(note)

    def _spend(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise ValueError("it repeats its texts too often")

    def _hash(self, keys: Iterable[_Note]) -> None:
        self.keys += sum(key.weight for key in keys if key.kind not in ("text", "small"))
        if self.keys > MAX_KEYS:
            raise ValueError(f"it has more than {MAX_KEYS} keys that are neither texts nor small whole numbers")

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ValueError(f"it takes more than {MAX_STEPS} steps")


def _take(stack: list[_Note | None], opcode: pickletools.OpcodeInfo) -> list[_Note]:
    """Pops the arguments of ``opcode`` from the stack and returns them in order."""
    before, taken = opcode.stack_before, list[_Note | None]()
    if pickletools.markobject in before:  # all down to the mark, and what the step takes below it
        place = next((i for i in range(len(stack) - 1, -1, -1) if stack[i] is None), None)
        if place is None:
            raise ValueError(f"its step {opcode.name} finds no mark")
        taken = stack[place + 1 :]
        del stack[place:]
        before = before[: before.index(pickletools.markobject)]
    below = stack[len(stack) - len(before) :]
    if len(below) < len(before) or None in below:
        raise ValueError(f"its step {opcode.name} finds too little on the stack")
    del stack[len(stack) - len(before) :]
    return [note for note in below + taken if note is not None]


def _key(part: _Note) -> _Note:
    """Returns the key of a pair [key, value] of Python 2's OrderedDict; else ``part``, as lists are no keys."""
    return part.parts[0] if part.kind == "list" and part.parts else part


def _flat(note: _Note) -> Iterable[_Note]:
    """Returns the values of a tuple and of those in it, MAX_TUPLE at most."""
    waiting = [note]
    while waiting:
        for part in waiting.pop().parts:
            yield part
            if part.kind == "tuple":
                waiting.append(part)
