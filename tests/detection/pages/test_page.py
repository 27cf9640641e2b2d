import re
from typing import Any

import pytest

from detection.pages import page as parts
from detection.pages.page import Figure, Links, Notice, Page, Section, Table, Text, write_page
from detection.pages.plots import Bar, Point, forest, scatter

HOSTILE = '<script>x</script> & "q" | *b* `c`'


def make_page(*, columns: int = 14, rows: int = 3) -> Page:
    svg = forest("f", {"a": {"x": Bar(value=0.1, low=0.0, high=0.2)}}, x_label="AP")
    bars = [Bar(value=0.4 + 0.001 * i, low=0.3, high=0.5) for i in range(5)]  # of points that lie together
    points = [Point(name=f"backbone {i}", cost=10 + 0.3 * i, bar=bar, on_front=True) for i, bar in enumerate(bars)]
    blocks = [
        Notice("a is better"),
        Text("word " * 80),
        Table("A wide table", [f"column {i}" for i in range(columns)], [["12.3 ± 4.5"] * columns] * rows),
        Figure("plot a/b", svg, "A plot", "dots"),
        Figure("plot 2", scatter("s", points, x_label="GFLOPs", y_label="AP"), "Another", "dots"),
        parts.Pictures("pair", [b"first", b"second"], "Two", ["left", "right"]),
        parts.Code("Lines to copy", ["anchors:", f"  sizes: [1, 2] # {'reason ' * 40}"]),
        Table("Words", ["what", "value"], [["path", "/a" * 90]], words=True),
    ]
    sections = [Section("One section", blocks), Section("Empty", [])]
    return Page("Title", "Subtitle", [("fact", "value")], sections, lead=["a is proven best.", "What it takes", "more"])


@pytest.fixture
def written(tmp_path):
    """A page, or blocks of one, as HTML and as Markdown."""

    def write(*own: Any, lead: Any = ()) -> tuple[str, str]:
        page = own[0] if isinstance(own[0], Page) else Page("t", "s", [], [Section("s", [*own])], lead=lead)
        return write_page(page, tmp_path, "report").read_text(), (tmp_path / "report.md").read_text()

    return write


def test_html_asks_no_network_and_says_what_it_shows(written, tmp_path) -> None:
    html, _ = written(make_page(columns=2, rows=1))
    assert not re.findall(r"(?:src|href|action|data)\s*=\s*[\"']?\s*(?:https?:)?//", html)
    assert not re.findall(r"url\(\s*[\"']?(?!#)|@import|<script[^>]|<link|<iframe", html)
    assert not re.findall(r"fetch|XMLHttpRequest|import\(|eval|innerHTML", html.partition("<script>")[2])
    assert [html.count(part) for part in ('<th scope="col">', '<th scope="row">', "<caption>")] == [4, 2, 2]
    assert re.findall(r'<img src="data:image/jpeg;base64,[^"]+" alt="(\w+)">', html) == ["left", "right"]
    assert html.count('role="img" aria-label="dots"') == 2
    (tmp_path / "one").mkdir()
    alone = parts.write_html(make_page(), tmp_path / "one" / "one.html")  # one file holds it all
    assert alone.read_text().count("data:image/jpeg") == 2
    assert [path.name for path in alone.parent.iterdir()] == ["one.html"]


def test_text_from_outside_stays_text(written) -> None:
    blocks = [Text(HOSTILE), Notice(HOSTILE), Table(HOSTILE, [HOSTILE], [[HOSTILE]] * 2, bold={(0, 0)})]
    svg = forest(HOSTILE, {HOSTILE: {HOSTILE: Bar(value=0.1, low=0.0, high=0.2)}}, x_label=HOSTILE)
    blocks.append(Figure("plot", svg, HOSTILE, HOSTILE))
    html, text = written(Page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [Section(HOSTILE, blocks)], lead=[HOSTILE]))
    assert html.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in html
    assert not re.search(r"(?<!\\)[<`*]\w", text.replace("\n*", "\n"))
    html, text = written(parts.Code("c", ["a:", f"  b: {HOSTILE}"]))  # lines to copy stay lines
    assert "<pre>a:\n  b: &lt;script&gt;x&lt;/script&gt; &amp; " in html
    assert f"    a:\n      b: {HOSTILE}" in text


def test_markdown_has_tables_and_figures_in_files_of_their_own(written, tmp_path) -> None:
    _, text = written(make_page(columns=2, rows=1))
    assert "| column 0 | column 1 |\n| --- | ---: |\n| 12.3 ± 4.5 | 12.3 ± 4.5 |" in text
    named = re.findall(r"\]\((figures/[^)]+)\)", text)
    plain = [re.sub(r"-[0-9a-f]{8}", "", name) for name in named]
    assert plain == ["figures/plot_a_b.svg", "figures/plot_2.svg", "figures/pair_0.jpg", "figures/pair_1.jpg"]
    assert (tmp_path / named[2]).read_bytes() == b"first"
    assert (tmp_path / named[0]).read_text().startswith("<svg")
    _, text = written(*(Figure(name, f"<svg>{name}</svg>", "c", "a") for name in ("a b", "a/b", "a_b", "x" * 300)))
    assert len({(tmp_path / name).read_text() for name in re.findall(r"\]\((figures/[^)]+)\)", text)}) == 4


def test_the_answer_stands_first_the_best_cells_are_bold_and_links_lead_beside_the_page(written) -> None:
    table = Table("c", ["name", "AP"], [["a|b", "1"], ["b", "2"]], bold={(1, 1)})
    links = Links("Configs:", [("a <b>", "../runs/a b/0/config.yaml"), ("c", "../c")])
    html, text = written(table, links, lead=["take b"])
    assert html.index("take b") < html.index("<nav")
    assert re.findall(r'<td class="best">(.*?)</td>', html) == ["2"]
    assert text.startswith("# t\n\n**take b**\n")
    assert "| b | **2** |" in text
    assert "| a\\|b |" in text  # a bar in a cell does not end it
    targets = re.findall(r'<a href="(\.\.[^"]*)">([^<]*)</a>', html)
    assert targets == [("../runs/a%20b/0/config.yaml", "a &lt;b&gt;"), ("../c", "c")]
    assert "[c](../c)" in text


def test_line_ends_and_control_characters_break_nothing(written) -> None:
    name = "a\n# b\0 $x$\ud800 & ~c~"
    blocks = [Text(name), Notice(name), Table(name, [name, name], [[name, name]])]
    html, text = written(Page(name, name, [(name, name)], [Section(name, blocks)]))
    assert not re.findall(r"a\n|\0", html)
    assert r"<h1>a\n# b\x00 $x$\ud800 &amp; ~c~</h1>" in html
    shown = r"a\\n\# b\\x00 \$x\$\\ud800 \& \~c\~"
    lines = [f"# {shown}", shown, f"- {shown}: {shown}", f"## {shown}", shown, f"> {shown}", f"*{shown}*"]
    found = [line for line in text.splitlines() if line and not line.startswith("| ---")]
    assert found == [*lines, f"| {shown} | {shown} |", f"| {shown} | {shown} |"]


class TestInABrowser:
    def test_nothing_is_outside_overlaps_or_is_pale(self, tmp_path, assert_readable) -> None:
        assert_readable(write_page(make_page(), tmp_path, "report"))

    def test_the_probe_sees_faults(self, tmp_path, inspect_page) -> None:
        paragraph = "document.querySelector('section > p:not(.notice)').style"
        script = f"{paragraph}.color = '#aaa'; {paragraph}.whiteSpace = 'nowrap';"
        script += "document.querySelector('nav li').style.marginRight = '-90px';"
        script += "document.querySelectorAll('svg text')[1].style.fill = '#999'"
        seen = inspect_page(write_page(make_page(), tmp_path, "report"), 390, script=script)
        assert seen["outside"]
        assert seen["overlap"]
        assert {told.partition(" ")[0] for told in seen["pale"]} == {"P", "text"}

    def test_tables_are_sorted_by_the_column_that_is_pressed(self, tmp_path, inspect_page) -> None:
        cells = [["b", "\N{MINUS SIGN}3.5 ± 1"], ["a", "-"], ["c 10", "1,200.0"], ["c 9", "9.0"]]
        page = Page("t", "s", [], [Section("s", [Table("c", ["name", "AP"], cells), Table("d", ["x"], [["y"]])])])
        names = "[...document.querySelectorAll('table')[0].querySelectorAll('tbody th')].map(e => e.textContent)"
        # What is pale is told.
        script = "const h1 = document.querySelector('h1'); h1.style.color = '#eee'; h1.textContent = '';"
        for column in (1, 1, 0):
            script += f"document.querySelectorAll('th button')[{column}].click();"
            script += f"h1.textContent += {names}.join('').replaceAll('c ', '') + '/';"
        seen = inspect_page(write_page(page, tmp_path, "report"), 390, script=script)
        assert seen["pale"][0].split("/")[:3] == ["H1 109ba", "b910a", "ab910"]

    def test_it_prints_to_pages(self, tmp_path, print_page) -> None:
        pdf = print_page(write_page(make_page(rows=120), tmp_path, "report"))
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 2
