"""The command that reproduces a table of the paper."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from detection.commands.base import Call, Command

__all__ = ["COMMANDS"]

REPRODUCE = """
Shows the plan: the runs of a table, their data, weights and hours, and the command for what is missing. Trains and
tests what it can, and ends in the paper's cells beside ours. Run again, it goes on where it stopped.

examples:
  resdet reproduce table7 --dry-run
  resdet reproduce table9 --dry-run --time data.root=/data
  resdet reproduce table7 data.root=/data
"""


def _reproduce_options(parser: ArgumentParser) -> None:
    parser.add_argument("table", help="table6 to table12, or a YAML file such as those of configs/reproduce")
    parser.add_argument("--output-dir", type=Path, help="of all runs, which tables share (default: output/reproduce)")
    parser.add_argument("--dry-run", action="store_true", help="only show the plan")
    parser.add_argument(
        "--time",
        action="store_true",
        help="with --dry-run: time a step of each run whose data are there, for its hours",
    )
    parser.add_argument("--resume", action="store_true", help="changes nothing: what is there is always gone on with")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of all configs, such as data.root=/data")


def _reproduce(args: Namespace) -> Call:
    from detection.reproduction.tables import load_table
    from detection.reproduction.task import plan_table, reproduce_table

    load_table(args.table)  # a wrong name ends here
    if args.dry_run or args.time:
        return partial(plan_table, args.table, args.output_dir, overrides=args.overrides, timed=args.time), print
    return partial(reproduce_table, args.table, args.output_dir, overrides=args.overrides), _show_state


def _show_state(done: bool) -> int:
    if not done:
        print("error: not every run is done; the lines above say why", file=sys.stderr)
    return int(not done)


COMMANDS = {
    "reproduce": Command("Reproduces a table of the paper", _reproduce_options, _reproduce, REPRODUCE),
}
