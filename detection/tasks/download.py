"""Downloads the archives that data-set cards list and unpacks them below the data root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detection.data.cards import load_card
from detection.data.download import fetch, read_downloads
from detection.data.unpack import unpack
from detection.progress import SCREEN, bar

__all__ = ["download_cards"]


def download_cards(names: Sequence[str], root: Path) -> None:
    """Downloads the archives of the cards ``names`` and unpacks them below ``root``; reads all cards first.

    Raises:
        ValueError: no such card, one that lists no archive, or an archive that is not what its card says.
        ConnectionError: the connection dropped repeatedly; the downloaded part is kept.
    """
    cards = [load_card(name) for name in names]
    downloads = [download for card in cards for download in read_downloads(card)]
    for download in downloads:
        with bar(download.archive.name, unit="bytes") as move:
            path = fetch(download.archive, root / "archives", progress=move)
        folder = root / download.into
        SCREEN.print(f"unpacking {path.name} into {folder}")
        unpack(path, folder)
