"""Makes the folder of an exported model one that any static server shows as a page."""

from __future__ import annotations

import shutil
from pathlib import Path

from detection.export.extras import optional
from detection.export.web.runtime import FILES

__all__ = ["SERVE", "write_page"]

SERVE = "python -m http.server 8000 --bind 127.0.0.1 --directory"  # a folder
OWN = (
    *("index.html", "page.mjs", "detector.mjs", "drawing.mjs", "worker.mjs"),
    "onnxruntime-web.LICENSE",  # which its npm package lacks
)
NOTICES = "ThirdPartyNotices.txt"  # of what is built into the runtime; the Python package of the project has them


def write_page(folder: Path, runtime: Path) -> None:
    """Adds to ``folder``, which gets model.onnx and export.json too, the page and the files of ``runtime``."""
    for name in OWN:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    for name in FILES:
        shutil.copyfile(runtime / name, folder / name)
    notices = Path(optional("onnxruntime", "--format web").__file__).with_name(NOTICES)
    if notices.is_file():
        shutil.copyfile(notices, folder / f"onnxruntime-web.{NOTICES}")
