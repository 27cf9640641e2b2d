"""Completes the folder of an exported model to a page for any static server."""

from __future__ import annotations

import shutil
from pathlib import Path

from detection.export.extras import optional
from detection.export.web.runtime import FILES

__all__ = ["SERVE", "write_page"]

SERVE = "python -m http.server 8000 --bind 127.0.0.1 --directory"  # a folder
OWN = (
    *("index.html", "page.mjs", "detector.mjs", "drawing.mjs", "worker.mjs"),
    "onnxruntime-web.LICENSE",  # missing in its npm package
)
NOTICES = "ThirdPartyNotices.txt"  # of the libraries in the runtime; from the Python package of the project


def write_page(folder: Path, runtime: Path) -> None:
    """Adds the page and the files of ``runtime`` to ``folder``, which also gets model.onnx and export.json."""
    for name in OWN:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    for name in FILES:
        shutil.copyfile(runtime / name, folder / name)
    notices = Path(optional("onnxruntime", "--format web").__file__).with_name(NOTICES)
    if notices.is_file():
        shutil.copyfile(notices, folder / f"onnxruntime-web.{NOTICES}")
