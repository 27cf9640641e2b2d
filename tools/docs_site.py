"""Adds generated pages to the site of docs/: a hook of MkDocs, see mkdocs.yml.

index.md, datasets.md, ...     files of the repository outside docs/
reference/configuration/*.md   every key of a config, from the schemas and the comments beside their fields
reference/commands.md          every command, from its parser
reference/api.md               what docs/public_api.md declares public, for mkdocstrings
source/*.md                    files of the repository that a page links to

A link from a page to a file of the repository works on GitHub, and here it leads to the page of that file.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import os
import posixpath
import re
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import resdet
from detection.classification.config import ClassificationConfig
from detection.cli import COMMANDS, command_parser
from detection.config.detection import DetectionConfig
from detection.config.load import json_schema
from detection.config.schema import section_classes
from detection.edges.config import EdgesConfig
from detection.localization.config import LocalizationConfig

ROOT = Path(__file__).resolve().parents[1]

# Files outside docs/ that are pages of their own: file of the repository -> page.
INCLUDED = {
    "README.md": "index.md",
    "datasets/README.md": "datasets.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
SCHEMAS = {
    DetectionConfig: ("Configs of detectors", "`resdet train`, `test`, `compare` and their like"),
    ClassificationConfig: ("Configs of classifiers", "`resdet pretrain`"),
    LocalizationConfig: ("Configs of localisation", "`resdet localize`"),
    EdgesConfig: ("Configs of edges", "`resdet edges`"),
}
# Public names are declared by the table of docs/public_api.md, which tests/test_release.py holds to the code.
PUBLIC = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
METHODS = {"Predictor": ["load", "__call__", "stream"]}
PAGE = re.compile(r"docs/[a-z]+\.md")
QUIET = ("---", "search: {boost: 0.5}", "---")  # guides come first among what a search finds
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json"}
PICTURE = re.compile(r"!\[((?:[^\]\\]|\\.)*)\]\(([^)\s]+)\)")  # of reports, which a clone may lack
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages, and those of files that pages link to."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]  # an extra

    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in INCLUDED.items()}
    pages |= {f"reference/configuration/{kind.program}.md": config_page(kind) for kind in SCHEMAS}
    pages |= {"reference/commands.md": commands_page(), "reference/api.md": api_page()}
    texts = pages | {file.src_uri: file.content_string for file in files.documentation_pages()}
    for page, text in texts.items():
        for target in linked_files(page, text):
            pages[f"source/{target}.md"] = source_page(target)
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites links to files of the repository to their pages; missing pictures of reports become text."""
    uri = page.file.src_uri
    return lead_links(
        without_missing(markdown, ROOT / "docs" / uri) if uri.startswith("experiments/") else markdown, uri
    )


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Replaces the names in signatures of the API page by public names."""
    if page.file.src_uri != "reference/api.md":
        return html
    for name, home in resdet._HOMES.items():
        html = html.replace(f'<span class="nf">{home.rpartition(":")[2]}</span>', f'<span class="nf">{name}</span>')
    return html


def without_missing(markdown: str, path: Path) -> str:
    """Returns the text of the page ``path``, with missing pictures replaced by their alternative text."""
    return PICTURE.sub(lambda found: found[0] if (path.parent / found[2]).is_file() else f"*{found[1]}*", markdown)


def linked_files(page: str, text: str) -> Iterator[str]:
    """Yields the files of the repository, outside docs/ and without a page of their own, that ``page`` links to."""
    for found in LINK.finditer(text):
        target = _repository_path(page, found[2])
        if not target.startswith("docs/") and target not in INCLUDED and (ROOT / target).is_file():
            yield target


def lead_links(markdown: str, page: str) -> str:
    """Returns ``markdown`` with the links of ``page`` to files of the repository as links between pages."""

    def lead(found: re.Match[str]) -> str:
        target = _repository_path(page, found[2])
        if target in INCLUDED:
            target = INCLUDED[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif (ROOT / target).is_file():
            target = f"source/{target}.md"
        else:
            return found[0]  # a page made here; MkDocs warns of any other
        return f"{found[1]}{posixpath.relpath(target, posixpath.dirname(page) or '.')}{found[3] or ''}{found[4]}"

    return LINK.sub(lead, markdown)


def _repository_path(page: str, target: str) -> str:
    """Returns the target of the link ``target`` of ``page`` as a path from the root of the repository."""
    if target.startswith("/"):
        return target[1:]
    home = {made: name for name, made in INCLUDED.items()}.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), target))


def source_page(target: str) -> str:
    """Returns a page that shows the file ``target`` of the repository."""
    path = ROOT / target
    return f"# {path.name}\n\n`{target}`\n\n````{LANGUAGES.get(path.suffix, '')}\n{path.read_text('utf-8')}````\n"


def config_page(schema: type) -> str:
    """Returns a page of all keys of a config class: values, defaults and the comments beside the fields."""
    tree = json_schema(schema)
    sections = section_classes(schema)
    title, commands = SCHEMAS[schema]
    lines = [
        *QUIET,
        f"# {title}",
        "",
        f"The keys that {commands} take. [How configs work](../../configuration.md).",
        "",
    ]
    top = {name: value for name, value in tree["properties"].items() if name not in sections and name != "format"}
    lines += ["## At the top of the file", "", *_keys("", top, schema, tree)]
    notes = field_comments(schema)
    for name, kind in sections.items():
        doc = "" if (kind.__doc__ or "").startswith(f"{kind.__name__}(") else inspect.cleandoc(kind.__doc__ or "")
        note = f"({notes[name].rstrip('.')})" if notes.get(name) else ""
        lines += [f"## {name}", "", _prose(f"{doc} {note}".strip()), ""]
        lines += _keys(f"{name}.", tree["$defs"][kind.__name__]["properties"], kind, tree)
    return "\n".join(lines)


def _keys(prefix: str, properties: Mapping[str, Any], kind: type, tree: Mapping[str, Any]) -> Iterator[str]:
    """Yields the entries of the keys of one dataclass, and of those that a key holds."""
    notes = field_comments(kind)
    for name, value in properties.items():
        nested = [part for part in (value, *value.get("anyOf", ())) if "$ref" in part]
        default = f", default `{_plain(value['default'])}`" if "default" in value else ""
        note = value.get("description") or notes.get(name, "")
        yield f"`{prefix}{name}`{{ #{prefix}{name} }}"
        yield f":   {_takes(value)}{default}" + (f"<br>{_prose(note[:1].upper() + note[1:])}" if note else "")
        yield ""
        for part in nested:
            inner = part["$ref"].rpartition("/")[2]
            yield from _keys(f"{prefix}{name}.", tree["$defs"][inner]["properties"], _class_of(kind, inner), tree)


def _class_of(kind: type, name: str) -> type:
    return next(found for found in section_classes(kind).values() if found.__name__ == name)


def _takes(schema: Mapping[str, Any]) -> str:
    """Describes the values that a JSON Schema accepts."""
    if "anyOf" in schema:
        return " or ".join(map(_takes, schema["anyOf"]))
    if "$ref" in schema:
        return "a section"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "prefixItems" in schema:
        return f"a list of {schema['minItems']}: {_takes(schema['prefixItems'][0])} each"
    if schema["type"] == "array":
        return f"a list: {_takes(schema['items'])} each"
    if schema["type"] == "object":
        return "a mapping"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "`true` or `false`"}
    names = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "and below"}
    bounds = [f"{word} {schema[name]}" for name, word in names.items() if name in schema]
    return " ".join([words.get(str(schema["type"]), str(schema["type"])), *bounds])


def _plain(value: Any) -> str:
    """Formats a default as YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_plain(inner)}' for key, inner in value.items())}}}"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def field_comments(kind: type) -> dict[str, str]:
    """Returns the comments above and beside each field of a dataclass and of those that it inherits from."""
    notes = dict[str, str]()
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
        names = {item.name for item in fields(base)}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in names:
                first = node.lineno
                while first - 1 in comments and not comments[first - 1].line[: comments[first - 1].start[1]].strip():
                    first -= 1
                last = node.end_lineno or node.lineno
                found = [comments[row].string.lstrip("# ") for row in range(first, last + 1) if row in comments]
                above = node.lineno - first
                notes[node.target.id] = "; ".join(filter(None, (" ".join(found[:above]), " ".join(found[above:]))))
    return notes


def commands_page() -> str:
    """Returns a page of all commands with their options."""
    os.environ["COLUMNS"] = "84"  # argparse folds usage to it
    lines = [
        *QUIET,
        "# Commands",
        "",
        "`resdet COMMAND --help` shows the same. All commands take `--debug`, which shows the",
    ]
    lines += ["traceback of an error.", ""]
    for name, command in COMMANDS.items():
        parser = command_parser(name)
        usage = parser.format_usage().removeprefix("usage: ").strip()
        lines += [f"## resdet {name}", "", f"{_prose(command.summary)}.", "", "```text", usage, "```", ""]
        lines += [*_details(command.details), *_options(parser)]
    return "\n".join(lines)


def _details(text: str) -> Iterator[str]:
    """Yields a command's description: paragraphs, and indented lines as code."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        for indented, part in _runs(paragraph.splitlines()):
            yield from (
                ("```text", *textwrap.dedent("\n".join(part)).splitlines(), "```") if indented else map(_prose, part)
            )
            yield ""


def _runs(lines: list[str]) -> list[tuple[bool, list[str]]]:
    """Groups ``lines`` into runs of indented and other lines."""
    found = list[tuple[bool, list[str]]]()
    for line in lines:
        if not found or found[-1][0] != line.startswith(" "):
            found.append((line.startswith(" "), []))
        found[-1][1].append(line)
    return found


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for action in parser._actions:  # argparse has no public list of them
        if action.help is argparse.SUPPRESS or {"--help", "--debug"} & {*action.option_strings}:
            continue
        value = (
            action.metavar if isinstance(action.metavar, str) else (action.dest.upper() if action.nargs != 0 else "")
        )
        if action.choices and action.metavar is None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        spelled = " ".join([", ".join(action.option_strings), value]).strip()
        yield f"`{spelled}`"
        yield f":   {_prose(formatter._expand_help(action)) if action.help else 'required'}"
        yield ""


def api_page() -> str:
    """Returns a page of the names that docs/public_api.md declares public, for mkdocstrings."""
    lines = ["# Python API", "", "What [a version number promises](../public_api.md) holds for these names.", ""]
    declared = PUBLIC.findall((ROOT / "docs" / "public_api.md").read_text(encoding="utf-8"))
    entries = [(f"resdet.{name}", resdet._HOMES[name].replace(":", "."), METHODS.get(name, [])) for name in declared]
    for shown, home, members in [*entries, ("backbones.registry.register",) * 2 + ([],)]:
        lines += [f"::: {home}", "    options:", f'      heading: "{shown}"', f'      toc_label: "{shown}"']
        lines += [f"      members: [{', '.join(members)}]" if members else "      members: false", ""]
    return "\n".join(lines)


def _prose(text: str) -> str:
    """Escapes Markdown markup in ``text``, and turns names of pages into links."""
    escaped = re.sub(r"([*_\[\]`{}\\])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
    return PAGE.sub(lambda found: f"[{found[0]}](/{found[0]})" if (ROOT / found[0]).is_file() else found[0], escaped)
