"""The page of an export in a real browser finds what PyTorch finds, and says what is wrong."""

import json
import os
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import parse_config
from detection.data.images import read_image
from detection.data.transforms import Resize
from detection.engine.checkpoint import Checkpoint
from detection.export.graph import DetectorGraph
from detection.export.runtime import Framed
from detection.export.web.runtime import find_runtime
from detection.structures import Detections
from detection.tasks.export import Wanted, run_export

RUNTIME = os.environ.get("RESDET_ONNXRUNTIME_WEB")  # a folder with onnxruntime-web's files; else npm brings them
TEXT = """
architecture: mask_rcnn
backbone: {name: resnet18, weights: null, fpn: true, fpn_channels: 16}
anchors: {sizes: [16, 32, 64, 128, 256]}
rpn: {channels: 16, pre_nms_test: 50, post_nms_test: 20}
box: {head: fc, head_channels: 16, pool: roi_align}
mask: {pool_size: 7, convs: 1, channels: 8}
data: {test: [], shorter_side: 64, longer_side: 96}
"""
CONFIG = parse_config(DetectionConfig, TEXT)
FRAME = 64, 96
TOOL = runpy.run_path(str(Path(__file__).parents[4] / "tools" / "browse_export.py"))
NAMES = ("cat", "<b>dog</b>", "cow")

NO_BROWSER = TOOL["CHROMIUM"] is None or os.name == "nt"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NO_BROWSER, reason="chromium is not on PATH")]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint[DetectionConfig]:
    torch.manual_seed(0)
    detector = build_detector(CONFIG, len(NAMES), pretrained=False)
    for name, values in detector.named_buffers():
        if name.endswith("bn2.weight"):
            values.fill_(0.2)  # else random residual branches add up to infinity
    for layer in detector.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == len(NAMES) + 1:
            nn.init.normal_(layer.weight, std=3.0)  # scores of 0.09 to 0.76
    return Checkpoint(Path("0000007.safetensors"), detector.state_dict(), CONFIG, NAMES, iteration=7)


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """An image of 90 x 135 pixels, which is resized to 64 x 96."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 135, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, photo, tmp_path_factory) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    if RUNTIME is None and shutil.which("npm") is None:
        pytest.skip("neither npm nor RESDET_ONNXRUNTIME_WEB, a folder with onnxruntime-web's files")
    try:
        runtime = find_runtime(None if RUNTIME is None else Path(RUNTIME), kept=tmp_path_factory.mktemp("runtime"))
    except ValueError as error:
        if RUNTIME is not None:
            raise
        pytest.skip(str(error))  # npm without a network
    folder = tmp_path_factory.mktemp("export") / "web"
    wanted = Wanted(format="onnx", page=True, runtime=runtime, images=photo.parent, timed=0, licence="CC0")
    run_export(checkpoint, folder, wanted, say=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def browser():
    with TOOL["open_browser"]() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(folder: Path):
    """The address of a plain server of ``folder``, and what it was asked for."""
    with TOOL["serve"](folder) as served:
        yield served


def expected(checkpoint: Checkpoint[DetectionConfig], photo: Path) -> Detections:
    """What PyTorch finds, in pixels of the photo."""
    detector = build_detector(CONFIG, len(NAMES), pretrained=False).eval()
    detector.load_state_dict(checkpoint.weights)
    graph = DetectorGraph(detector)
    framed = Framed(lambda *call: [part.numpy() for part in graph(*call)], size=FRAME, batch=1)
    return TOOL["find"](framed, Resize(64, 96), photo)[0]


def test_it_finds_what_pytorch_finds(browser, server, checkpoint, photo: Path, tmp_path: Path) -> None:
    tall = tmp_path / "tall.png"  # the photo on its side, which exceeds the frame
    Image.fromarray(read_image(photo).transpose(1, 0, 2)).save(tall)
    assert browser.open(f"{server[0]}/index.html").startswith("Ready")
    for file, pixels in ((photo, 1e-3), (tall, 2e-2)):  # the second is smoothed, where a float32 may round otherwise
        wanted, found = expected(checkpoint, file), browser.look_at(file)["found"]
        assert [one["label"] for one in found] == wanted.labels.tolist()
        assert len(found) >= 10
        seen = TOOL["as_detections"](found)
        torch.testing.assert_close(seen.boxes, wanted.boxes, rtol=0, atol=pixels)
        torch.testing.assert_close(seen.scores, wanted.scores, rtol=0, atol=pixels / 10)
        torch.testing.assert_close(seen.masks, wanted.masks, rtol=0, atol=pixels / 10)


def test_it_shows_what_the_user_wants_to_see(browser, server, photo: Path, page_probe: str) -> None:
    browser.open(f"{server[0]}/index.html")
    found = browser.look_at(photo)["found"]
    set_least = "{{ const it = document.getElementById('threshold'); it.value = {}; it.oninput() }}"

    def shown(after: Any) -> list[str]:
        browser.run(after if isinstance(after, str) else set_least.format(after))
        return browser.run("[...document.querySelectorAll('#rows th')].map(cell => cell.textContent)")

    assert shown(0) == [NAMES[one["label"]] for one in found]
    least = sorted(one["score"] for one in found)[len(found) // 2]
    best = shown(np.floor(100 * least) / 100)
    assert len(set(best)) == 2
    assert len(best) < len(found)
    without = [name for name in best if name != NAMES[1]]
    assert shown("document.querySelectorAll('#classes input')[1].click()") == without
    assert shown("document.getElementById('none').click()") == []
    assert shown(f"document.getElementById('all').click(); {set_least.format(0)}")
    for width in (390, 1280):
        browser("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        for scheme in ("light", "dark"):
            browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            browser.run(f"{{ {page_probe} }}")
            seen = json.loads(browser.run("document.title"))
            assert (seen["width"], seen["over"]) == (width, 0)
            assert seen["outside"] == seen["overlap"] == seen["pale"] == []


def test_nothing_leaves_the_browser(browser, server, photo: Path) -> None:
    address, asked = server
    browser.requests.clear()
    browser.open(f"{address}/index.html")
    browser.look_at(photo)
    assert {url.removeprefix("blob:").startswith(f"{address}/") for url in browser.requests} == {True}
    assert {line.partition(" ")[0] for line in asked} == {"GET"}
    elsewhere = address.replace("127.0.0.1", "localhost")
    outcome = f"fetch('{elsewhere}/export.json?sent', {{ mode: 'no-cors' }}).then(() => 'sent', () => 'refused')"
    assert browser.run(outcome) == "refused"
    assert not any("?sent" in line for line in asked)


def test_what_goes_wrong_is_told(browser, server, folder: Path, photo: Path, tmp_path: Path) -> None:
    page = f"{server[0]}/index.html"
    assert "python -m http.server" in browser.open(f"file://{folder}/index.html")
    assert browser.open(page).startswith("Ready")
    (tmp_path / "notes.png").write_text("no image")
    browser.choose(tmp_path / "notes.png")
    assert "notes.png" in browser.wait("no image")
    assert browser.look_at(photo)["found"]  # and it goes on
    before = browser("Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.WebAssembly")["identifier"]
    assert "WebAssembly" in browser.open(page)
    browser("Page.removeScriptToEvaluateOnNewDocument", identifier=before)
    (folder / "model.onnx").rename(folder / "elsewhere.onnx")
    assert "model.onnx" in browser.open(page)
    (folder / "elsewhere.onnx").rename(folder / "model.onnx")
