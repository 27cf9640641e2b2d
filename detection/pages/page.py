"""A report of text, tables and figures, written as one self-contained HTML page and as Markdown.

The HTML embeds its figures and pictures and needs no network; a few lines of script sort its tables.  The Markdown
refers to files beside it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detection.evaluation.printable import printable
from detection.files import digest, write_text

__all__ = [
    "Block",
    "Code",
    "Figure",
    "Links",
    "Notice",
    "Page",
    "Pictures",
    "Section",
    "Table",
    "Text",
    "markdown",
    "write_html",
    "write_page",
]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A highlighted paragraph: a conclusion or, with ``warning``, a problem."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy, such as those of a config."""

    caption: str
    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Links:
    """A paragraph that ends with links to files beside the page: names and paths relative to it."""

    text: str
    targets: Sequence[tuple[str, str]]

    @property
    def quoted(self) -> list[tuple[str, str]]:
        """Names, and paths quoted for a URL."""
        return [(name, quote(path)) for name, path in self.targets]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under ``header``; the first cell names the row, the others are numbers unless ``words``.

    Columns of numbers can be sorted if there are several rows, unless the order is ``fixed``.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    fixed: bool = False
    bold: Collection[tuple[int, int]] = ()  # (row, column) of cells such as the best of a column

    @property
    def sortable(self) -> bool:
        return len(self.rows) > 1 and not self.words and not self.fixed


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot as SVG text; ``name`` is unique on the page and names its file."""

    name: str
    svg: str
    caption: str
    alt: str  # text alternative of the plot

    @property
    def files(self) -> dict[str, bytes]:
        """File name -> content."""
        return {f"{_file_stem(self.name)}.svg": self.svg.encode()}


@dataclass(frozen=True, slots=True)
class Pictures:
    """JPEG pictures that belong together, side by side if there is room."""

    name: str  # unique on the page
    jpegs: Sequence[bytes]
    caption: str
    alts: Sequence[str]  # text alternative of each picture

    @property
    def files(self) -> dict[str, bytes]:
        """File name -> content."""
        return {f"{_file_stem(self.name)}_{number}.jpg": jpeg for number, jpeg in enumerate(self.jpegs)}

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Each picture as a data URI, and its text alternative."""
        encoded = (f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in self.jpegs)
        return list(zip(encoded, self.alts, strict=True))


Block = Text | Notice | Code | Links | Table | Figure | Pictures


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]  # name and value, under the title
    sections: Sequence[Section]
    lead: Sequence[str] = ()  # the answer, in the first lines of the page


def write_page(page: Page, folder: Path, stem: str) -> Path:
    """Writes STEM.html, STEM.md and its figures into ``folder``; returns the path of the HTML."""
    figures = folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    blocks = (block for section in page.sections for block in section.blocks)
    for name, content in (file for b in blocks if isinstance(b, (Figure, Pictures)) for file in b.files.items()):
        figures.mkdir(exist_ok=True)
        (figures / name).write_bytes(content)
    (folder / f"{stem}.md").write_text(markdown(page), encoding="utf-8")
    return write_html(page, folder / f"{stem}.html")


def write_html(page: Page, path: Path) -> Path:
    """Writes ``page`` to the single file ``path`` and returns ``path``."""
    write_text(path, _html(page))
    return path


def _html(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("detection.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # Markup is made here
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment.get_template("page.html").render(page=page, groups=_groups)


def _inline(svg: str) -> Markup:
    """Returns ``svg`` without its own size, so that it takes that of its box."""
    root, end, rest = svg.partition(">")
    return Markup(re.sub(r' (?:width|height)="[^"]*"', "", root) + end + rest)  # made here, of escaped text


def _groups(blocks: Sequence[Block]) -> list[list[Block]]:
    """Groups neighbouring ``blocks`` of a kind that are shown side by side on a wide page."""
    groups: list[list[Block]] = []
    for block in blocks:
        if groups and isinstance(block, (Figure, Pictures)) and type(block) is type(groups[-1][0]):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def markdown(page: Page) -> str:
    """Returns ``page`` as Markdown that refers to figures/ beside it."""
    facts = [f"- {_escaped(name)}: {_escaped(value)}" for name, value in page.facts]
    lead = [f"**{_escaped(line)}**" for line in page.lead]
    parts = [f"# {_escaped(page.title)}", *lead, _escaped(page.subtitle), *(["\n".join(facts)] if facts else [])]
    for section in page.sections:
        parts += [f"## {_escaped(section.title)}", *(_markdown_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Text(text):
            return _escaped(text)
        case Notice(text, warning):
            return f"> {'**Attention:** ' if warning else ''}{_escaped(text)}"
        case Code(caption, lines):
            return f"{_escaped(caption)}\n\n" + "\n".join(f"    {printable(line)}" for line in lines)
        case Links(text):
            return f"{_escaped(text)} {', '.join(f'[{_escaped(name)}]({path})' for name, path in block.quoted)}"
        case Table():
            rule = ["---", *(["---" if block.words else "---:"] * (len(block.header) - 1))]
            cells = [
                [
                    f"**{_cell(cell)}**" if (row, column) in block.bold else _cell(cell)
                    for column, cell in enumerate(of_row)
                ]
                for row, of_row in enumerate(block.rows)
            ]
            rows = [list(map(_cell, block.header)), rule, *cells]
            return f"*{_escaped(block.caption)}*\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
        case Figure() | Pictures():
            alts = [block.alt] if isinstance(block, Figure) else block.alts
            images = [f"![{_escaped(alt)}](figures/{name})" for name, alt in zip(block.files, alts, strict=True)]
            return f"{' '.join(images)}\n\n*{_escaped(block.caption)}*"


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _file_stem(name: str) -> str:
    """Returns ``name`` as a file name; different names stay different even if characters are removed."""
    stem = re.sub(r"[^\w.+-]", "_", name)[:50]
    return stem if stem == name else f"{stem}-{digest(name)[:8]}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#$&~])", r"\\\1", printable(text))
