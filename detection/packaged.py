"""Finds the cards and configs that come with the package.

In a clone they are datasets/ and configs/. A wheel holds the same files in package_data/, where setup.py puts them.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from detection.hub import local_path

__all__ = ["CARDS", "CONFIGS", "DATA", "find_config", "headlines", "names_below"]

_SHIPPED = Path(__file__).parent / "package_data"
_ROOT = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[1]

CARDS = _ROOT / "datasets"
CONFIGS = _ROOT / "configs"
DATA = Path("datasets") if _SHIPPED.is_dir() else CARDS  # the default data root; nothing is kept in site-packages


def find_config(name: str | Path) -> Path:
    """Returns the config file at the path ``name``, else the packaged one of that name, such as voc/vgg16_c4_07.

    ``name`` may be an address hf://NAME/REPO/config.yaml.

    Raises:
        ValueError: there is neither; the nearest names are listed.
        ConnectionError, ImportError: as ``local_path``.
    """
    stem = str(name).removesuffix(".yaml")
    for path in (local_path(name), CONFIGS / f"{stem}.yaml", _ROOT / f"{stem}.yaml"):
        if path.is_file():
            return path
    nearest = difflib.get_close_matches(stem.removeprefix("configs/"), names_below(CONFIGS), n=3)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "resdet list configs shows the names"
    what = "config file" if str(name).endswith(".yaml") else "config file and no folder"
    raise ValueError(f"no {what} {str(name)!r}; {hint}")


def names_below(folder: Path) -> list[str]:
    """Returns the names of the YAML files in ``folder`` and its subfolders, such as voc/vgg16_c4_07, sorted."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def headlines(folder: Path) -> list[tuple[str, str]]:
    """Returns the names of the YAML files in ``folder`` with the first sentence of the comment in each."""
    return [(name, _headline(folder / f"{name}.yaml")) for name in names_below(folder)]


def _headline(path: Path) -> str:
    words = list[str]()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = line.removeprefix("#").strip()
            if not line.startswith("#") or not text or text.startswith("Command:"):
                break
            words.append(text)
    comment = " ".join(words)
    end = re.search(r"(?<! al)[.?](?= |$)", comment)
    return comment[: end.end()] if end else comment
