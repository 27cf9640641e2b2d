"""The page in a real browser and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.pages.page import (
    Code,
    Figure,
    Links,
    Notice,
    Page,
    Pictures,
    Section,
    Table,
    Text,
    write_html,
    write_page,
)
from detection.pages.plots import Bar, Point, forest, scatter

Inspect = Callable[..., dict[str, Any]]

HOSTILE = '<script>x</script> & "q" | *b* `c`'


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
        Code("Lines to copy", ["anchors:", f"  sizes: [1, 2] # {'reason ' * 40}"]),
        Table("Words", ["what", "value"], [["path", "/a" * 90]], words=True),
    ]
    sections = [Section("One section", blocks), Section("Empty", [])]
    return Page("Title", "Subtitle", [("fact", "value")], sections, lead=["a is proven best.", "What it takes", "more"])


class TestFiles:
    def test_html_asks_no_network(self, tmp_path: Path) -> None:
        html = write_page(make_page(), tmp_path, "report").read_text()
        assert not re.findall(r"(?:src|href|action|data)\s*=\s*[\"']?\s*(?:https?:)?//", html)
        assert not re.findall(r"url\(\s*[\"']?(?!#)|@import|<script[^>]|<link|<iframe", html)
        assert not re.findall(r"fetch|XMLHttpRequest|import\(|eval|innerHTML", html.partition("<script>")[2])

    def test_text_from_outside_stays_text(self, tmp_path: Path) -> None:
        blocks = [Text(HOSTILE), Notice(HOSTILE), Table(HOSTILE, [HOSTILE], [[HOSTILE]] * 2, bold={(0, 0)})]
        svg = forest(HOSTILE, {HOSTILE: {HOSTILE: Bar(value=0.1, low=0.0, high=0.2)}}, x_label=HOSTILE)
        blocks.append(Figure("plot", svg, HOSTILE, HOSTILE))
        page = Page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [Section(HOSTILE, blocks)], lead=[HOSTILE])
        html = write_page(page, tmp_path, "report").read_text()
        assert html.count("<script") == 1  # the page's own
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

    def test_the_answer_stands_first_and_the_best_cells_are_bold(self, tmp_path: Path) -> None:
        table = Table("c", ["name", "AP"], [["a", "1"], ["b", "2"]], bold={(1, 1)})
        html = write_page(Page("t", "s", [], [Section("s", [table])], lead=["take b"]), tmp_path, "report").read_text()
        assert html.index("take b") < html.index("<nav")
        assert re.findall(r'<td class="best">(.*?)</td>', html) == ["2"]
        text = (tmp_path / "report.md").read_text()
        assert text.startswith("# t\n\n**take b**\n")
        assert "| b | **2** |" in text

    def test_lines_to_copy_stay_lines_and_text(self, tmp_path: Path) -> None:
        page = Page("t", "s", [], [Section("s", [Code("c", ["a:", f"  b: {HOSTILE}"])])])
        html = write_page(page, tmp_path, "report").read_text()
        assert "<pre>a:\n  b: &lt;script&gt;x&lt;/script&gt; &amp; " in html
        assert f"    a:\n      b: {HOSTILE}" in (tmp_path / "report.md").read_text()

    def test_one_file_holds_it_all(self, tmp_path: Path) -> None:
        assert write_html(make_page(), tmp_path / "one.html").read_text().count("data:image/jpeg") == 2
        assert [path.name for path in tmp_path.iterdir()] == ["one.html"]

    def test_links_lead_to_files_beside_the_page(self, tmp_path: Path) -> None:
        links = Links("Configs:", [("a <b>", "../runs/a b/0/config.yaml"), ("c", "../c")])
        html = write_page(Page("t", "s", [], [Section("s", [links])]), tmp_path, "report").read_text()
        assert re.findall(r'<a href="(\.\.[^"]*)">([^<]*)</a>', html) == [
            ("../runs/a%20b/0/config.yaml", "a &lt;b&gt;"),
            ("../c", "c"),
        ]
        assert "[c](../c)" in (tmp_path / "report.md").read_text()

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


class TestInABrowser:
    @pytest.mark.parametrize("width", [390, 1280])
    def test_nothing_reaches_over_the_edge_overlaps_or_is_pale(
        self, tmp_path: Path, inspect_page: Inspect, width: int
    ) -> None:
        seen = inspect_page(write_page(make_page(), tmp_path, "report"), width)
        assert seen == {"width": width, "over": 0, "outside": [], "overlap": [], "pale": []}

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            ("document.querySelector('p').style.color = '#aaa'", "pale"),
            ("document.querySelector('p').style.whiteSpace = 'nowrap'", "outside"),
            ("document.querySelector('nav li').style.marginRight = '-90px'", "overlap"),
            ("document.querySelectorAll('svg text')[1].style.fill = '#999'", "pale"),
        ],
    )
    def test_the_probe_sees_faults(self, tmp_path: Path, inspect_page: Inspect, fault: str, told: str) -> None:
        page = make_page()
        seen = inspect_page(
            write_page(page, tmp_path, "report"), 390, script=fault.replace("'p'", "'section > p:not(.notice)'")
        )
        assert seen[told]

    def test_tables_are_sorted_by_the_column_that_is_pressed(self, tmp_path: Path, inspect_page: Inspect) -> None:
        cells = [["b", "\N{MINUS SIGN}3.5 ± 1"], ["a", "-"], ["c 10", "1,200.0"], ["c 9", "9.0"]]
        page = Page("t", "s", [], [Section("s", [Table("c", ["name", "AP"], cells), Table("d", ["x"], [["y"]])])])
        path = write_page(page, tmp_path, "report")
        found = []
        for presses in ([], [1], [1, 1], [0]):
            script = "".join(f"document.querySelectorAll('th button')[{i}].click();" for i in presses)
            names = "[...document.querySelectorAll('table:first-of-type tbody th')].map(e => e.textContent).join('/')"
            shown = f"const h1 = document.querySelector('h1'); h1.textContent = {names}; h1.style.color = '#eee'"
            seen = inspect_page(path, 390, script=f"{script}{shown}")  # what is pale is told
            found.append(seen["pale"][0].partition(" ")[2].partition(":")[0])
        assert found == ["b/a/c 10/c 9/y", "c 10/c 9/b/a/y", "b/c 9/c 10/a/y", "a/b/c 9/c 10/y"]

    def test_names_of_points_that_lie_together_stay_apart(self, tmp_path: Path, inspect_page: Inspect) -> None:
        points = [
            Point(
                name=f"backbone {i}",
                cost=10 + 0.3 * i,
                bar=Bar(value=0.4 + 0.001 * i, low=0.3, high=0.5),
                on_front=True,
            )
            for i in range(5)
        ]
        svg = scatter("s", points, x_label="GFLOPs", y_label="AP")
        page = Page("t", "s", [], [Section("s", [Figure("s", svg, "c", "a")])])
        seen = inspect_page(write_page(page, tmp_path, "report"), 390)
        assert (seen["overlap"], seen["outside"]) == ([], [])

    def test_it_prints_to_pages(self, tmp_path: Path, print_page: Callable[[Path], bytes]) -> None:
        pdf = print_page(write_page(make_page(rows=120), tmp_path, "report"))
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 2
