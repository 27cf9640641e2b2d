"""Downloads the archives that data-set cards list and unpacks them below the data root."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from detection.data.cards import data_root, load_card
from detection.data.download import Archive, fetch, read_downloads, unpack

EXAMPLES = """examples:
  python datasets/download.py voc2007 voc2012            # 2.8 GB, into datasets/VOCdevkit
  python datasets/download.py coco2017 --root /data      # 19 GB, into /data/coco

An interrupted download goes on where it stopped when the command is run again.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        download_cards(options.names, options.root)
    except (ValueError, ConnectionError) as error:
        sys.exit(f"error: {error}")


def download_cards(names: Sequence[str], root: Path) -> None:
    """Fetches and unpacks below ``root`` what the cards called ``names`` list; all cards are read first."""
    console = Console()
    cards = [load_card(name) for name in names]
    downloads = [download for card in cards for download in read_downloads(card)]
    for download in downloads:
        path = _fetch_with_bar(download.archive, root / "archives", console)
        folder = root / download.into
        console.print(f"unpacking {path.name} into {folder}", highlight=False, soft_wrap=True)
        unpack(path, folder)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a card of datasets/, or the path of one")
    parser.add_argument(
        "--root",
        type=Path,
        default=data_root(),
        help="data root (default: $RESDET_DATA_ROOT, else datasets/)",
    )
    return parser.parse_args(arguments)


def _fetch_with_bar(archive: Archive, folder: Path, console: Console) -> Path:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(archive.name, total=None)
        return fetch(archive, folder, progress=lambda done, total: bar.update(task, completed=done, total=total))


if __name__ == "__main__":
    main()
