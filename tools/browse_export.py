"""Runs the page of a web export in headless Chromium, beside PyTorch and ONNX Runtime in Python.

Prints the agreement of detections with PyTorch, and the milliseconds of each model with one thread, in turn.

examples:
  resdet export RUN --format web && python tools/browse_export.py RUN photos/
  python tools/browse_export.py RUN photos/ --limit 5 --screenshots shots/
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch

from detection.build import build_detector
from detection.data.images import read_image
from detection.data.readers.image_files import images_below
from detection.data.transforms import Resize
from detection.engine.checkpoint import load_detector_weights, read_checkpoint
from detection.export.graph import DetectorGraph
from detection.export.proof import agreement
from detection.export.runtime import Framed, open_exported
from detection.model.postprocess import rescale
from detection.structures import Detections, ImageBatch, Target

CHROMIUM = shutil.which("chromium")
WIDTHS = (390, 1280)  # of screenshots, pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="a run directory with export/web")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="so many images (default: %(default)s)")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="of the last image")
    return parser.parse_args()


class Browser:
    """A headless browser, driven through two pipes by the Chrome DevTools Protocol."""

    def __init__(self, folder: Path) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        )
        # The browser looks at descriptors 3 and 4.
        start = f"import os, sys; os.dup2({orders}, 3); os.dup2({answers}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-S", "-c", start, str(CHROMIUM), *options, "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(orders, answers), stderr=subprocess.DEVNULL)
        os.close(orders)
        os.close(answers)
        self._came, self._number, self._session = b"", 0, dict[str, str]()
        self.requests = list[str]()  # addresses
        page = next(target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page")
        found = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        self("Network.enable")
        self("Page.enable")

    def __call__(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        order = {"id": self._number, "method": method, "params": values, **self._session}
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._came:
            assert select.select([self._answers], [], [], 60)[0], "the browser says nothing"
            came = os.read(self._answers, 1 << 16)
            assert came, "the browser ended"
            self._came += came
        first, _, self._came = self._came.partition(b"\0")
        return json.loads(first)

    def run(self, script: str) -> Any:
        """Returns the value of ``script``, which may be a promise."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str) -> str:
        """Opens the page and returns its status when it is ready or has failed."""
        self("Page.navigate", url=address)
        return self.wait("Ready|WebAssembly|http.server|answered")

    def wait(self, pattern: str) -> str:
        """Returns the status of the page once it matches ``pattern``."""
        said, end = None, time.monotonic() + 60
        while time.monotonic() < end:
            said = self.run("document.readyState === 'complete' && document.getElementById('status')?.textContent")
            if said and re.search(pattern, said):
                return said
            time.sleep(0.05)
        raise TimeoutError(f"the page says {said!r}")

    def choose(self, file: Path) -> None:
        """Chooses ``file`` as a user does."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def look_at(self, file: Path) -> dict[str, Any]:
        """Returns the detections of the page in the image ``file``."""
        detected = "new Promise(done => document.addEventListener('detected', e => done(e.detail), { once: true }))"
        self.run(f"globalThis.next = {detected}; null")
        self.choose(file)
        found = "found.map(one => ({ ...one, mask: one.mask && Array.from(one.mask) }))"
        return self.run(f"next.then(({{ found, ...rest }}) => ({{ ...rest, found: {found} }}))")

    def photograph(self, file: Path, width: int) -> None:
        """Writes the whole page, ``width`` pixels wide, to a PNG file."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        time.sleep(0.5)  # it draws again
        picture = self("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(picture))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._orders)
        os.close(self._answers)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Yields a browser with an empty profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(Path(folder))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the address of a static server of ``folder``, and the list of requested paths."""
    asked = list[str]()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.requestline)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def as_detections(found: Sequence[dict[str, Any]]) -> Detections:
    """Converts the detections of the page to ``Detections``."""
    masks = [np.reshape(one["mask"], (round(len(one["mask"]) ** 0.5),) * 2) for one in found if one["mask"]]
    return Detections(
        boxes=torch.tensor([one["box"] for one in found]).reshape(-1, 4),
        scores=torch.tensor([one["score"] for one in found]),
        labels=torch.tensor([one["label"] for one in found]).long(),
        masks=torch.from_numpy(np.stack(masks)).float() if masks else None,
    )


def load_framed(run: Path, exported: Framed) -> Framed:
    """Returns PyTorch's detector of ``run`` in the frame of ``exported``."""
    checkpoint = read_checkpoint(run)
    detector = build_detector(checkpoint.config, len(checkpoint.class_names), pretrained=False).eval()
    load_detector_weights(detector, checkpoint, checkpoint.class_names)
    graph = DetectorGraph(detector)
    return Framed(lambda *call: [part.numpy() for part in graph(*call)], size=exported.size, batch=1)


@torch.inference_mode()
def find(detect: Framed, resize: Resize, path: Path) -> tuple[Detections, float]:
    """Returns the detections in the image file ``path``, in its pixels, and the milliseconds of ``detect``."""
    pixels = read_image(path)
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), ignore=torch.zeros(0).bool())
    resized = torch.from_numpy(resize(pixels, nothing)[0]).permute(2, 0, 1)
    start = time.perf_counter()
    (found,) = detect(ImageBatch.from_images([resized]))
    milliseconds = 1000 * (time.perf_counter() - start)
    return rescale(found, (resized.shape[1], resized.shape[2]), (pixels.shape[0], pixels.shape[1])), milliseconds


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    exported = open_exported(args.run / "export" / "web", threads=1)
    eager, resize = load_framed(args.run, exported), Resize(*exported.facts.resize)
    expected, found, times = list[Detections](), list[Detections](), list[tuple[float, float, float]]()
    with serve(exported.path.parent) as (address, _), open_browser() as browser:
        print(browser.open(f"{address}/index.html"))
        for path in islice(images_below(args.images), args.limit):
            own, eager_time = find(eager, resize, path)
            _, runtime_time = find(exported, resize, path)
            seen = browser.look_at(path)
            expected.append(own)
            found.append(as_detections(seen["found"]))
            times.append((seen["milliseconds"], runtime_time, eager_time))
        for width in WIDTHS if args.screenshots else ():
            browser.photograph(args.screenshots / f"web_{width}.png", width)
    print(agreement(expected, found))
    for name, values in zip(("browser", "ONNX Runtime", "PyTorch"), zip(*times[1:], strict=True), strict=True):
        print(f"{name:12} {statistics.median(values):.0f} ms an image (median of {len(values)})")


if __name__ == "__main__":
    main()
