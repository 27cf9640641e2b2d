"""The page in a real browser and as Markdown."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from detection.pages.page import Figure, Notice, Page, Pictures, Section, Table, Text, write_page
from detection.pages.plots import Bar, forest

CHROMIUM = shutil.which("chromium")
HOSTILE = '<script>x</script> & "q" | *b* `c`'

# Writes how far the page reaches over the window's edge into its title, which --dump-dom shows.
PROBE = (
    "<script>const e = document.documentElement;"
    "document.title = `${e.scrollWidth - e.clientWidth} over ${window.innerWidth}`</script>"
)


def make_page(*, columns: int = 14, rows: int = 3) -> Page:
    svg = forest("f", {"a": {"x": Bar(value=0.1, low=0.0, high=0.2)}}, x_label="AP")
    table = Table("A wide table", [f"column {i}" for i in range(columns)], [["12.3 ± 4.5"] * columns] * rows)
    blocks = [
        Notice("a is better"),
        Text("word " * 80),
        table,
        Figure("plot a/b", svg, "A plot", "dots"),
        Figure("plot 2", svg, "Another", "dots"),
        Pictures("pair", [b"first", b"second"], "Two", ["left", "right"]),
        Table("Words", ["what", "value"], [["path", "/a" * 90]], words=True),
    ]
    return Page("Title", "Subtitle", [("fact", "value")], [Section("One section", blocks), Section("Empty", [])])


class TestFiles:
    def test_html_asks_no_network(self, tmp_path: Path) -> None:
        html = write_page(make_page(), tmp_path, "report").read_text()
        assert not re.findall(r"(?:src|href|action|data)\s*=\s*[\"']?\s*(?:https?:)?//", html)
        assert not re.findall(r"url\(\s*[\"']?(?!#)|@import|<script|<link|<iframe", html)

    def test_text_from_outside_stays_text(self, tmp_path: Path) -> None:
        blocks = [Text(HOSTILE), Notice(HOSTILE), Table(HOSTILE, [HOSTILE], [[HOSTILE]])]
        svg = forest(HOSTILE, {HOSTILE: {HOSTILE: Bar(value=0.1, low=0.0, high=0.2)}}, x_label=HOSTILE)
        blocks.append(Figure("plot", svg, HOSTILE, HOSTILE))
        page = Page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [Section(HOSTILE, blocks)])
        html = write_page(page, tmp_path, "report").read_text()
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert not re.search(r"(?<!\\)[<`*]\w", (tmp_path / "report.md").read_text().replace("\n*", "\n"))

    def test_tables_say_what_heads_what(self, tmp_path: Path) -> None:
        html = write_page(make_page(columns=2, rows=1), tmp_path, "report").read_text()
        assert html.count('<th scope="col">') == 4
        assert html.count('<th scope="row">') == 2
        assert html.count("<caption>") == 2

    def test_every_picture_says_what_it_shows(self, tmp_path: Path) -> None:
        html = write_page(make_page(), tmp_path, "report").read_text()
        assert re.findall(r'<img src="data:image/jpeg;base64,[^"]+" alt="(\w+)">', html) == ["left", "right"]
        assert html.count('role="img" aria-label="dots"') == 2

    def test_markdown_tables_and_figures_beside_it(self, tmp_path: Path) -> None:
        write_page(make_page(columns=2, rows=1), tmp_path, "report")
        text = (tmp_path / "report.md").read_text()
        assert "| column 0 | column 1 |\n| --- | ---: |\n| 12.3 ± 4.5 | 12.3 ± 4.5 |" in text
        named = re.findall(r"\]\((figures/[^)]+)\)", text)
        plain = [re.sub(r"-[0-9a-f]{8}", "", name) for name in named]
        assert plain == ["figures/plot_a_b.svg", "figures/plot_2.svg", "figures/pair_0.jpg", "figures/pair_1.jpg"]
        assert (tmp_path / named[2]).read_bytes() == b"first"
        assert (tmp_path / named[0]).read_text().startswith("<svg")

    def test_a_bar_in_a_cell_does_not_end_it(self, tmp_path: Path) -> None:
        page = Page("t", "s", [], [Section("s", [Table("c", ["h"], [["a|b"]])])])
        write_page(page, tmp_path, "report")
        assert "| a\\|b |" in (tmp_path / "report.md").read_text()

    def test_names_that_only_differ_in_signs_have_files_of_their_own(self, tmp_path: Path) -> None:
        blocks = [Figure(name, f"<svg>{name}</svg>", "c", "a") for name in ("a b", "a/b", "a_b", "x" * 300)]
        write_page(Page("t", "s", [], [Section("s", blocks)]), tmp_path, "report")
        named = re.findall(r"\]\((figures/[^)]+)\)", (tmp_path / "report.md").read_text())
        assert len({(tmp_path / name).read_text() for name in named}) == 4

    def test_line_ends_and_control_characters_break_nothing(self, tmp_path: Path) -> None:
        name = "a\n# b\0 $x$\ud800 & ~c~"
        blocks = [Text(name), Notice(name), Table(name, [name, name], [[name, name]])]
        html = write_page(Page(name, name, [(name, name)], [Section(name, blocks)]), tmp_path, "report").read_text()
        assert not re.findall(r"a\n|\0", html)
        assert r"<h1>a\n# b\x00 $x$\ud800 &amp; ~c~</h1>" in html
        lines = (tmp_path / "report.md").read_text().splitlines()
        escaped = r"a\\n\# b\\x00 \$x\$\\ud800 \& \~c\~"
        assert [line for line in lines if line and not line.startswith("| ---")] == [
            f"# {escaped}",
            escaped,
            f"- {escaped}: {escaped}",
            f"## {escaped}",
            escaped,
            f"> {escaped}",
            f"*{escaped}*",
            f"| {escaped} | {escaped} |",
            f"| {escaped} | {escaped} |",
        ]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
class TestInABrowser:
    def test_a_phone_shows_it_without_scrolling_sideways(self, tmp_path: Path) -> None:
        path = write_page(make_page(), tmp_path, "report")
        path.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
        # A window is at least 500 pixels wide; a frame is as narrow as a phone.
        frame = tmp_path / "frame.html"
        frame.write_text(
            '<iframe src="report.html" width="360" height="700" style="border:0"></iframe>'
            "<script>onload = () => document.title = frames[0].document.title</script>"
        )
        dom = browse("--dump-dom", "--allow-file-access-from-files", str(frame))
        assert "<title>0 over 360</title>" in dom

    def test_it_prints_to_pages(self, tmp_path: Path) -> None:
        path = write_page(make_page(rows=120), tmp_path, "report")
        browse(f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer", str(path))
        pdf = (tmp_path / "report.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 2


def browse(*args: str) -> str:
    *options, file = args
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *options, f"file://{file}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
