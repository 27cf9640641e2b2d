"""Reads YAML configs with ``_BASE_`` inheritance into checked dataclasses (schema.py), and writes them.

fvcore's CfgNode only follows ``_BASE_``; it never builds Python objects from YAML (``allow_unsafe`` is False).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import yaml
from fvcore.common.config import CfgNode
from pydantic import TypeAdapter, ValidationError

from detection.config.compat import FORMAT, migrate
from detection.config.messages import describe
from detection.packaged import CONFIGS

__all__ = [
    "build_dataclass",
    "dump_config",
    "json_schema",
    "load_config",
    "parse_config",
    "parse_section",
    "parse_yaml",
    "section_names",
]

# Limit of characters of a YAML file after expanding aliases: a few lines of nested aliases can expand to gigabytes.
MAX_YAML = 1_000_000

# Errors of PyYAML other than its own class: for an impossible date, `!!bool maybe`, `!!timestamp x`, a huge number.
UNREADABLE = (yaml.YAMLError, AttributeError, LookupError, OverflowError, TypeError, ValueError)

ConfigT = TypeVar("ConfigT")


def load_config(schema: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Returns the config at ``path``, over its ``_BASE_`` files and with ``section.key=value`` overrides.

    Raises:
        ValueError: the file is missing or no YAML mapping, there are unknown keys or invalid values (the message lists
            all, with the nearest keys), or an override has no "=".
    """
    return build_dataclass(schema, _overridden(_migrated(schema, _read_tree(path), str(path)), overrides))


def section_names(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the sections in the config at ``path``, its ``_BASE_`` files or ``overrides``.

    Raises:
        ValueError: the file is missing or no YAML mapping, or an override has no "=".
    """
    return tuple(_overridden(_read_tree(path), overrides))


def _read_tree(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"no config file {str(path)!r}")
    try:
        tree: Any = _Files.load_yaml_with_base(str(path))
    except RecursionError as error:
        raise ValueError(f"{path} is its own _BASE_, directly or through another file, or nested too deeply") from error
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: {error}; a _BASE_ is a path from the folder of its file, and those that come with resdet are in "
            f"{CONFIGS}"
        ) from error
    except (*UNREADABLE, AssertionError, OSError) as error:  # fvcore asserts that a section inherits from a section
        raise ValueError(f"{path} (or its _BASE_) can't be read as a YAML mapping: {error}") from error
    return _mapping(tree, path)


def parse_config(schema: type[ConfigT], text: str) -> ConfigT:
    """Returns the config in ``text``, written by ``dump_config`` of this or an earlier version.

    Raises:
        ValueError: as ``load_config``.
    """
    tree = _mapping(parse_yaml(text) or {}, "the config")
    return build_dataclass(schema, _migrated(schema, tree, "the config"))


def parse_section(schema: type[ConfigT], text: str, name: str) -> ConfigT:
    """Returns the section ``name`` of a config written by ``dump_config``, without keys unknown to ``schema``.

    Raises:
        ValueError: as ``load_config``.
    """
    tree = _mapping(parse_yaml(text) or {}, "the config").get(name, {})
    known = {f.name for f in fields(schema)}  # pyright: ignore[reportArgumentType]  # TypeVar can't say "a dataclass"
    return build_dataclass(schema, {key: value for key, value in tree.items() if key in known})


def parse_yaml(text: str) -> Any:
    """Returns the content of the YAML ``text`` as plain values, never as Python objects.

    Raises:
        ValueError: ``text`` is no such YAML, is nested too deeply, or has more than ``MAX_YAML`` characters after
            expanding aliases.
    """
    try:
        return _load(text)
    except RecursionError as error:
        raise ValueError("the YAML is nested too deeply") from error
    except UNREADABLE as error:
        raise ValueError(str(error)) from error


def dump_config(config: Any) -> str:
    """Returns ``config`` as YAML from which ``load_config`` reads an equal config."""
    return yaml.dump({"format": FORMAT} | json.loads(json.dumps(asdict(config))), Dumper=_Dumper, sort_keys=False)


def build_dataclass(schema: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Builds the ``checked`` dataclass ``schema`` from ``values``.

    Raises:
        ValueError: as ``load_config``.
    """
    try:
        # In JSON mode pydantic takes a list for a tuple, and otherwise stays strict.
        return TypeAdapter(schema).validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ValueError(describe(error, schema)) from error


def json_schema(schema: type) -> dict[str, Any]:
    """Returns the JSON Schema of ``schema``, with which editors complete and check YAML configs."""
    tree = TypeAdapter(schema).json_schema()
    for key, described in (("_BASE_", "config file to start from"), ("format", "of a config that a run wrote")):
        tree["properties"][key] = {"description": described, "type": "string" if key == "_BASE_" else "integer"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that numbers such as 1e-4 are no text."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that ``_Loader`` would read as numbers."""


for kind in (_Loader, _Dumper):
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?|\.\d)\d*[eE][-+]?\d+$"), list("-+.0123456789")
    )


class _Files(CfgNode):
    """Follows ``_BASE_`` through local files."""

    @classmethod
    def _open_cfg(cls, filename: str) -> StringIO:
        if not Path(filename).is_file():
            raise FileNotFoundError(f"no file {filename!r}")
        return StringIO(yaml.safe_dump(_load(Path(filename).read_text(encoding="utf-8"))))


def _load(text: str) -> Any:
    if len(text) > MAX_YAML:
        raise ValueError(f"it has {len(text)} characters, at most {MAX_YAML} are read")
    loader = _Loader(text)
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
    """Returns the number of characters of ``node``, at least one per node below it; ``known`` caches counts."""
    if node not in known:
        known[node] = MAX_YAML + 1  # stays if an alias refers to a node that contains it, which never ends
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        own = 1 if children else 1 + len(node.value)
        known[node] = own + sum(_written_out(child, known) for child in children)
    return known[node]


def _migrated(schema: type, tree: dict[str, Any], source: str) -> dict[str, Any]:
    try:
        return migrate(tree, schema, program=getattr(schema, "program", ""))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _mapping(tree: Any, source: str | Path) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ValueError(f"{source} must hold a YAML mapping of sections, got a {type(tree).__name__}")
    return tree


def _overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns ``tree`` with the ``overrides``."""
    for override in overrides:
        _override(tree, override)
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    dotted_key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"an override has the form section.key=value, got {override!r}")
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
