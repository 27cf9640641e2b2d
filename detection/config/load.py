"""Reads YAML configs with ``_BASE_`` inheritance into the frozen dataclasses of config.py, and writes them back.

The dataclasses are the schema: names, types, allowed values and defaults.  fvcore's CfgNode only follows
``_BASE_`` and never builds Python objects from YAML (``allow_unsafe`` stays False).
"""

from __future__ import annotations

import difflib
import sys
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from io import StringIO
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from fvcore.common.config import CfgNode

__all__ = ["build_dataclass", "dump_config", "load_config", "parse_config", "parse_yaml"]

# Characters of a YAML file once its aliases are written out; a few lines of aliases of aliases are otherwise gigabytes.
MAX_YAML = 1_000_000

# What PyYAML raises beside its own error: for an impossible date, `!!bool maybe`, `!!timestamp x`, a huge number.
UNREADABLE = (yaml.YAMLError, AttributeError, LookupError, OverflowError, TypeError, ValueError)

ConfigT = TypeVar("ConfigT")


def load_config(schema: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """The config at ``path``, its ``_BASE_`` files below it and ``section.key=value`` overrides on top.

    Raises:
        ValueError: the file is missing or is no YAML mapping; a key that ``schema`` lacks (the nearest is named); a
            value of the wrong type or outside the allowed ones; an override without "=".
    """
    if not Path(path).is_file():
        raise ValueError(f"no config file {str(path)!r}")
    try:
        tree: Any = _Files.load_yaml_with_base(str(path))
    except RecursionError as error:
        raise ValueError(f"{path} is its own _BASE_, directly or through another file, or nested too deeply") from error
    except (*UNREADABLE, AssertionError, OSError) as error:  # fvcore asserts that a section inherits from a section
        raise ValueError(f"{path} (or its _BASE_) can't be read as a YAML mapping: {error}") from error
    _mapping(tree, path)
    for override in overrides:
        _override(tree, override)
    return build_dataclass(schema, tree)


def parse_config(schema: type[ConfigT], text: str) -> ConfigT:
    """The config that ``dump_config`` wrote as ``text``."""
    return build_dataclass(schema, _mapping(parse_yaml(text) or {}, "the config"))


def parse_yaml(text: str) -> Any:
    """What the YAML ``text`` holds: plain values only, whatever tags it has.

    Raises:
        ValueError: it is no such YAML, is nested too deeply, or has more than ``MAX_YAML`` characters, aliases written
            out.
    """
    try:
        return _load(text)
    except RecursionError as error:
        raise ValueError("the YAML is nested too deeply") from error
    except UNREADABLE as error:
        raise ValueError(str(error)) from error


def dump_config(config: Any) -> str:
    """``config`` as YAML that ``load_config`` reads back to an equal config."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def build_dataclass(schema: type[ConfigT], values: Mapping[str, Any], where: str = "") -> ConfigT:
    """``values`` as the dataclass ``schema``; ``where`` stands before every key in an error.

    Raises:
        ValueError: see ``load_config``.
    """
    hints = get_type_hints(schema)
    known = [f.name for f in fields(schema)]  # pyright: ignore[reportArgumentType]  # TypeVar can't say "a dataclass"
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {where + nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
            raise ValueError(f"no config key {where + str(name)!r}; {hint}")
    try:
        return schema(**{name: _convert(value, hints[name], where + name) for name, value in values.items()})
    except TypeError as error:  # a key without a default is missing
        raise ValueError(f"{where or 'config: '}{str(error).partition('() ')[2]}") from error


class _Files(CfgNode):
    """Follows ``_BASE_`` through local files that may be loaded."""

    @classmethod
    def _open_cfg(cls, filename: str) -> StringIO:
        if not Path(filename).is_file():
            raise FileNotFoundError(f"no file {filename!r}")
        text = Path(filename).read_text(encoding="utf-8")
        _load(text)
        return StringIO(text)


def _load(text: str) -> Any:
    if len(text) > MAX_YAML:
        raise ValueError(f"it has {len(text)} characters, at most {MAX_YAML} are read")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > MAX_YAML:
            raise ValueError(f"with its aliases (*name) written out it has more than {MAX_YAML} characters")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """The characters of ``node``, one at least for every node below it; ``known`` are those counted already."""
    if node not in known:
        known[node] = MAX_YAML + 1  # stays where an alias names a node that it lies in: it has no end
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        own = 1 if children else 1 + len(node.value)
        known[node] = own + sum(_written_out(child, known) for child in children)
    return known[node]


def _mapping(tree: Any, source: str | Path) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ValueError(f"{source} must hold a YAML mapping of sections, got a {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    dotted_key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"an override reads section.key=value, got {override!r}")
    *sections, key = dotted_key.split(".")
    node: Any = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {override!r}: {section!r} is not a section")
    try:
        node[key] = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"override {override!r}: the value can't be read as YAML: {error}") from error


def _convert(value: Any, hint: Any, key: str) -> Any:
    """``value`` as the type that the annotation ``hint`` asks for."""
    kind, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build_dataclass(hint, value, key + ".")  # pyright: ignore[reportArgumentType]  # hint is a class here
    if kind is Literal and any(value == choice and type(value) is type(choice) for choice in args):
        return value
    if kind in (Union, UnionType):  # X | None; a Literal gives the first, a class the second
        return None if value is None else _convert(value, next(a for a in args if a is not NoneType), key)
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, args[0], f"{key}[{i}]") for i, item in enumerate(value))
    if kind is dict and isinstance(value, Mapping):
        return {str(name): _convert(item, args[1], f"{key}.{name}") for name, item in value.items()}
    if hint in (int, float) and isinstance(value, str):
        value = _number(value)  # YAML 1.1 reads 1e-4 as text
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    if kind is Literal:
        expected = f"one of {args}"
    else:
        expected = "a list, such as [a, b]" if kind is tuple else getattr(kind or hint, "__name__", str(hint))
    raise ValueError(f"config key {key!r} takes {expected}, got {value!r}")


def _number(text: str) -> Any:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two where it is nested too deeply
        return text


def _plain(value: Any) -> Any:
    """``value`` with tuples as lists, which is all that safe YAML knows."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
