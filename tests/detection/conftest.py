"""A page in a headless browser: what reaches over the edge, overlaps, or is too pale to read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")

# Looks at every element with text of its own.  An element in a box that scrolls may reach over the window's edge, and
# white text of a figure stands on its dark cells.
PROBE = """
const root = document.documentElement, edge = root.clientWidth;
const seen = { width: innerWidth, over: root.scrollWidth - edge, outside: [], overlap: [], pale: [] };
const texts = [...document.querySelectorAll("body *")].filter(e => !e.closest("script, style, defs, title") &&
  [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
const name = e => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`;
const box = e => { const r = document.createRange(); r.selectNodeContents(e); return r.getBoundingClientRect(); };
const light = c => c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const rgb = text => (text.match(/[\\d.]+/g) || [255, 255, 255]).map(Number);
const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
for (const e of texts) {
  const b = box(e), style = getComputedStyle(e);
  if (!b.width || style.visibility === "hidden") continue;
  if (!e.closest(".scroll") && (b.right > edge + 1 || b.left < -1)) seen.outside.push(name(e));
  const svg = e.closest("svg"), ink = rgb(svg ? style.fill : style.color).slice(0, 3);
  const [a, c] = [light(ink), light(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (c + 0.05);
  if (!(svg && light(ink) > 0.5) && ratio < 4.5) seen.pale.push(`${name(e)}: ${ratio.toFixed(1)}`);
}
// What shares a table's row or a figure is compared; a column that stays in sight may cover others.
for (const group of document.querySelectorAll("svg, thead tr, tbody tr, nav, dl, .lead")) {
  const own = texts.filter(e => group.contains(e)).map(e => [e, box(e)]);
  own.forEach(([e, a], i) => own.slice(i + 1).forEach(([f, b]) => {
    if (e.contains(f) || f.contains(e)) return;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1.5 && high > 3) seen.overlap.push(`${name(e)} / ${name(f)}`);
  }));
}
document.title = JSON.stringify(seen);
"""


def browse(*args: str) -> str:
    """Runs a headless browser with options and, last, a file; returns what it prints."""
    *options, file = args
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *options, f"file://{file}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def inspect_page() -> Callable[..., dict[str, Any]]:
    """What a page of this width (pixels) shows: see ``PROBE``; skipped where there is no browser."""
    if CHROMIUM is None:
        pytest.skip("chromium is not on PATH")

    def inspect(page: Path, width: int, *, script: str = "") -> dict[str, Any]:
        # A window is at least 500 pixels wide; a frame is as narrow as a phone.
        probed, frame = page.with_name("probed.html"), page.with_name("frame.html")
        probed.write_text(page.read_text().replace("</body>", f"<script>{script};{PROBE}</script></body>"))
        frame.write_text(
            f'<iframe src="probed.html" width="{width}" height="900" style="border:0"></iframe>'
            "<script>onload = () => document.title = frames[0].document.title</script>"
        )
        size = f"--window-size={max(width, 500) + 40},1000"
        dom = browse("--dump-dom", "--allow-file-access-from-files", size, str(frame))
        title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
        assert title is not None
        return json.loads(html.unescape(title[1]))

    return inspect


@pytest.fixture
def print_page() -> Callable[[Path], bytes]:
    """The PDF of a page; skipped where there is no browser."""
    if CHROMIUM is None:
        pytest.skip("chromium is not on PATH")

    def print_it(page: Path) -> bytes:
        pdf = page.with_suffix(".pdf")
        browse(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", str(page))
        return pdf.read_bytes()

    return print_it
