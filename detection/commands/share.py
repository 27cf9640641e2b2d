"""Commands that share a detector: its model card, and the Hugging Face hub."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from detection.commands.base import Call, Command

__all__ = ["COMMANDS"]

CARD = """
Describes data, recipe, results with intervals, costs, licences, limits and loading from the records of the run, and
names what was not recorded. The Hugging Face hub reads the YAML at its head. An edited card is not overwritten.

examples:
  resdet card output/photos
  resdet card output/photos --licence cc-by-4.0
"""


def _card_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the directory of a detector's run")
    parser.add_argument("--licence", help="of the weights, such as apache-2.0 (default: the card's, else not stated)")
    parser.add_argument("--overwrite", action="store_true", help="also overwrite an edited README.md")


def _card(args: Namespace) -> Call:
    from detection.report.model_card import write_card

    write = partial(write_card, args.run, licence=args.licence, overwrite=args.overwrite)
    return write, lambda path: print(f"card: {path}")


PUSH = """
Uploads the card, the config, the chosen weights and the results. The token is HF_TOKEN, else that of `hf auth login`.
Needs pip install 'resdet[hub]'. See docs/share.md.

examples:
  resdet push output/photos me/photos --dry-run
  resdet push output/photos me/photos --exports --licence apache-2.0 --public
  resdet predict --weights hf://me/photos new_photos/
"""


def _push_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the directory of a detector's run")
    parser.add_argument("repo", metavar="NAME/REPO", help="repository of the hub; created if it does not exist")
    parser.add_argument("--licence", help="of the weights, such as apache-2.0 (default: the card's, else not stated)")
    parser.add_argument("--exports", action="store_true", help="also upload export/")
    parser.add_argument(
        "--public", action="store_true", help="create a public repository, or push to one (default: private)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only write the card and list files and sizes")


def _push(args: Namespace) -> Call:
    from detection.report.push import push_run

    options = {name: getattr(args, name) for name in ("licence", "exports", "public", "dry_run")}
    return partial(push_run, args.run, args.repo, **options), _show_push


def _show_push(address: str | None) -> None:
    if address is not None:
        print(f"load it with: resdet.Predictor.load({address!r})")


COMMANDS = {
    "card": Command("Writes the model card of a run", _card_options, _card, CARD),
    "push": Command("Pushes a run to the Hugging Face hub", _push_options, _push, PUSH),
}
