"""Downloads the archives that data-set cards list and unpacks them below the data root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from detection.data.cards import load_card
from detection.data.download import Archive, fetch, read_downloads, unpack

__all__ = ["download_cards"]


def download_cards(names: Sequence[str], root: Path) -> None:
    """Fetches and unpacks below ``root`` what the cards called ``names`` list; all cards are read first.

    Raises:
        ValueError: no such card, one that lists no archive, or an archive that is not what its card says.
        ConnectionError: the connection dropped again and again; what came so far is kept.
    """
    console = Console()
    cards = [load_card(name) for name in names]
    downloads = [download for card in cards for download in read_downloads(card)]
    for download in downloads:
        path = _fetch_with_bar(download.archive, root / "archives", console)
        folder = root / download.into
        console.print(f"unpacking {path.name} into {folder}", highlight=False, soft_wrap=True)
        unpack(path, folder)


def _fetch_with_bar(archive: Archive, folder: Path, console: Console) -> Path:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(archive.name, total=None)
        return fetch(archive, folder, progress=lambda done, total: bar.update(task, completed=done, total=total))
