"""The commands that keep what is printed and what was run together."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands.base import Call, Command

if TYPE_CHECKING:
    from detection.evidence.verify import Verdict

__all__ = ["COMMANDS"]

VERIFY = """
Recomputes every figure between marks in README.md and docs from the records in docs/runs and docs/experiments, and the
reports of experiments from their runs. Exit status 1 where a figure does not follow: file, line, both values and the
command that writes it again. Tables and sentences outside the marks need an entry in docs/evidence/unbound.yaml.

examples:
  resdet verify
  resdet verify --write                                  # after new records
  RESDET_DATA_ROOT=DATA resdet verify --full             # from detections too, where the labels are on this machine
"""


def _verify_options(parser: ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path(), help="a checkout (default: the current folder)")
    parser.add_argument("--write", action="store_true", help="write the blocks that differ anew")
    parser.add_argument("--full", action="store_true", help="recompute results and reports from detections, minutes")


def _verify(args: Namespace) -> Call:
    from detection.evidence.verify import verify

    return partial(verify, args.root, write=args.write, full=args.full), _show_verdict


def _show_verdict(verdict: Verdict) -> int:
    print("\n".join(verdict.lines()))
    return int(bool(verdict.findings))


COMMANDS = {
    "verify": Command("Recomputes the figures of README and docs from records", _verify_options, _verify, VERIFY),
}
