"""Mirrors tools/docs_site.py."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from detection.cli import COMMANDS
from detection.config.detection import DetectionConfig
from detection.config.schema import flatten

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(ROOT / "tools" / "docs_site.py"))


def test_page_of_a_config_has_every_key_once_with_what_it_takes_its_default_and_comments(tool) -> None:
    page = tool["config_page"](DetectionConfig)
    keys = re.findall(r"^`([^`]+)`\{ #", page, re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert flatten(DetectionConfig()).keys() <= set(keys)
    assert {"_BASE_", "data.jitter.size"} <= set(keys)
    for key, *parts in (
        ("solver.momentum", "a number from 0 to 1, default `0.9`", "For SGD; AdamW has torch's betas"),
        ("solver.ema_decay", "a number from 0 and below 1, default `0.0`", "Decay of the averaged weights"),
        ("backbone.dropblock", "a number from 0 to 1 or null, default `null`", "Fraction of cells dropped"),
        ("box.coder_weights", "a list of 4: a number above 0 each", "default `[10.0, 10.0, 5.0, 5.0]`"),
        ("backbone.stride_in", "`1x1`, `3x3` or null", "The convolution of a bottleneck"),
    ):
        entry = page.partition(f"`{key}`{{")[2].partition("\n\n")[0]
        assert all(part in entry for part in parts), entry


def test_pages_have_every_command_with_its_options_and_what_is_public_in_python(tool) -> None:
    page = tool["commands_page"]()
    assert re.findall(r"^## resdet (\S+)$", page, re.MULTILINE) == [*COMMANDS]
    assert "`--split-seed SPLIT_SEED`\n:   for a folder: seed of the random split (default: 0)" in page
    assert "--config-file" not in page  # hidden
    page = tool["api_page"]()
    assert 'heading: "resdet.train"' in page
    assert "::: detection.predictor.Predictor\n" in page
    assert "__version__" not in page


@pytest.mark.parametrize(
    ("page", "link", "led"),
    [
        ("data.md", "[cards](../datasets/README.md#keys-of-a-card)", "[cards](datasets.md#keys-of-a-card)"),
        ("gpu/README.md", "[cost](../cost.md)", "[cost](../cost.md)"),
        ("index.md", "[data](docs/data.md)", "[data](data.md)"),  # README.md
        ("datasets.md", "[own data](../docs/own_data.md)", "[own data](own_data.md)"),
        ("keypoints.md", "[code](../resdet.py)", "[code](source/resdet.py.md)"),
        ("data.md", "[none](../nowhere.py)", "[none](../nowhere.py)"),  # MkDocs warns
        ("data.md", "[web](https://example.org)", "[web](https://example.org)"),
    ],
)
def test_links_lead_to_pages(page, link, led, tool) -> None:
    assert tool["lead_links"](link, page) == led


def test_missing_pictures_become_text_and_linked_files_pages(tool, tmp_path) -> None:
    (tmp_path / "a.svg").touch()
    text = r"![loss](a.svg) and ![AP of vgg11\_bn \[1, 2\]](figures/b.svg)"
    assert tool["without_missing"](text, tmp_path / "report.md") == r"![loss](a.svg) and *AP of vgg11\_bn \[1, 2\]*"
    assert [*tool["linked_files"]("data.md", "[a](../resdet.py) [b](cost.md) [c](../README.md)")] == ["resdet.py"]
    assert tool["source_page"]("resdet.py").startswith("# resdet.py\n\n`resdet.py`\n\n````python\n")


def test_pages_have_no_links_in_html(tool) -> None:
    """MkDocs neither checks nor leads them."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in tool["INCLUDED"])]
    assert [page.name for page in pages if re.search(r"<(img|a) ", page.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs pip install -e '.[docs]'")
def test_site_is_built_without_a_warning(tmp_path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "api" / "index.html").is_file()
