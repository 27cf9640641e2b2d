"""Commands for data sets, and ``resdet list``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from detection.commands.base import Call, Command, UsageError, folder_options, folder_project
from detection.packaged import CARDS, CONFIGS, find_config, headlines

__all__ = ["COMMANDS"]

INIT = """
Recognises VOC, COCO, YOLO, LabelMe, CVAT, Label Studio, OpenImages, a CSV of boxes and image folders. Writes to
output/NAME/init a card, a split if the folder has none, and a config with a reason for every value.

examples:
  resdet init photos/
  resdet init photos/ --from faster_rcnn_R_50_FPN_3x --group 'video\\d+'
"""


def _init_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", help="images and their labels")
    parser.add_argument("--output-dir", help="run directory for the training (default: output/NAME of the folder)")
    folder_options(parser)


def _init(args: Namespace) -> Call:
    def init() -> str:
        project = folder_project(args, args.folder)
        if project is None:
            raise UsageError(f"no folder {args.folder!r}")
        return f"resdet pretrain {project.config}" if project.classifies else f"resdet train {project.config}"

    return init, lambda command: print(f"next: {command}")


CHECK = """
A folder is first prepared as by resdet init.

examples:
  resdet check photos/
  resdet check bccd
  resdet check bccd --page data.html --config bccd/resnet18_c4
  resdet check my_data.yaml --split train --root /data
Exit status: 0 without errors, 1 with errors that would stop a training.
"""


def _check_options(parser: ArgumentParser) -> None:
    parser.add_argument("card", help="a folder of data, or the name (resdet list cards) or path of a card")
    parser.add_argument("--output-dir", help="for a folder: where its card is written (default: output/NAME)")
    folder_options(parser)
    parser.add_argument("--split", action="append", default=[], help="only this split (may be repeated)")
    parser.add_argument("--root", help="data root (default: $RESDET_DATA_ROOT, else datasets/)")
    parser.add_argument("--skip-images", action="store_true", help="do not decode the images")
    parser.add_argument(
        "--page", type=Path, metavar="FILE.html", help="also write all findings to one HTML page, with pictures"
    )
    parser.add_argument(
        "--config", help="detector whose anchors are compared with the objects (default: the config of a folder)"
    )


def _check(args: Namespace) -> Call:
    from detection.data.cards import data_root
    from detection.tasks.check import check_card

    project = folder_project(args, args.card)
    card = args.card if project is None else str(project.card)
    config = None if args.config is None else find_config(args.config)
    if config is None and project is not None and not project.classifies:
        config = project.config
    check = partial(
        check_card,
        card,
        data_root(args.root),
        splits=args.split,
        images=not args.skip_images,
        page=args.page,
        config=config,
    )
    return check, lambda errors: min(errors, 1)


DOWNLOAD = """
examples:
  resdet download voc2007 voc2012            # 2.8 GB, into VOCdevkit below the data root
  resdet download coco2017 --root /data      # 19 GB, into /data/coco
Run the command again to continue an interrupted download.
"""


def _download_options(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="the name (resdet list cards) or path of a card")
    parser.add_argument("--root", help="data root (default: $RESDET_DATA_ROOT, else datasets/)")


def _download(args: Namespace) -> Call:
    from detection.data.cards import data_root
    from detection.tasks.download import download_cards

    return partial(download_cards, args.names, data_root(args.root)), lambda _: None


DIGITS = """
Pastes handwritten digits on photographs, in VOC and COCO layout. Its cards are digits (COCO, with masks), digits_labels
(label images), digits_panoptic and digits_voc.

examples:
  resdet digits                                  # 600 train and 100 test images, datasets/digits
  resdet digits --root /data --train 5000 --seed 1
"""


def _digits_options(parser: ArgumentParser) -> None:
    parser.add_argument("--root", help="data root (default: $RESDET_DATA_ROOT, else datasets/)")
    parser.add_argument("--train", type=int, default=600, help="number of training images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=100, help="number of test images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random generator (default: %(default)s)")


def _digits(args: Namespace) -> Call:
    from detection.data.cards import data_root
    from detection.data.digits import write_digits

    write = partial(write_digits, data_root(args.root), num_train=args.train, num_test=args.test, seed=args.seed)
    return write, lambda folder: print(f"wrote {args.train} train and {args.test} test images to {folder}")


def _list_options(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=("configs", "cards", "backbones", "zoo"))


def _list(args: Namespace) -> Call:
    return partial(_rows, args.what), _show_rows


def _rows(what: str) -> list[tuple[str, str]]:
    """Returns the names of a kind, each with a line about it."""
    if what in ("configs", "cards"):
        return headlines(CONFIGS if what == "configs" else CARDS)
    if what == "backbones":
        from backbones.registry import backbone_names

        return [(name, "") for name in backbone_names()]
    from detection.weights.published import REFUSED, ZOO

    refused = [(name, f"detectron2, does not load: {reason}") for name, reason in REFUSED.items()]
    return [(entry.name, f"{entry.source}, {entry.figures}") for entry in ZOO] + refused


def _show_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:{width}}  {text}".rstrip())


COMMANDS = {
    "init": Command("Writes card, split and config for a folder of images and labels", _init_options, _init, INIT),
    "check": Command("Lists the errors in a data set, with counts per class", _check_options, _check, CHECK),
    "download": Command("Downloads the archives that cards list", _download_options, _download, DOWNLOAD),
    "digits": Command("Makes a small data set offline", _digits_options, _digits, DIGITS),
    "list": Command("Lists configs, cards, backbones or published detectors", _list_options, _list),
}
