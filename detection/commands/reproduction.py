"""The command that reproduces a table of the paper."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from detection.commands.base import Call, Command

__all__ = ["COMMANDS"]

REPRODUCE = """
Shows the runs of a table, their data, weights and hours, and the command that gets what is missing. Trains and tests
the runs whose data and weights are there, and prints the paper's figures beside the measured ones. Run the command
again to continue where it stopped.

examples:
  resdet reproduce table7 --dry-run
  resdet reproduce table9 --dry-run --time data.root=/data
  resdet reproduce table7 data.root=/data
"""


def _reproduce_options(parser: ArgumentParser) -> None:
    parser.add_argument("table", help="table6 to table12, or a YAML file such as those of configs/reproduce")
    parser.add_argument(
        "--output-dir", type=Path, help="folder of all runs, shared by the tables (default: output/reproduce)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show the plan")
    parser.add_argument(
        "--time",
        action="store_true",
        help="with --dry-run: estimate the hours of each run whose data are there from a timed iteration",
    )
    parser.add_argument("--resume", action="store_true", help="has no effect: existing runs are always continued")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes of all configs, such as data.root=/data"
    )


def _reproduce(args: Namespace) -> Call:
    from detection.reproduction.tables import load_table
    from detection.reproduction.task import plan_table, reproduce_table

    load_table(args.table)  # fails early on a wrong name
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
