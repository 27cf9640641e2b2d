"""Commands that keep the figures in README and docs equal to the recorded runs."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands.base import Call, Command, positive

if TYPE_CHECKING:
    from detection.evidence.verify import Verdict

__all__ = ["COMMANDS"]

VERIFY = """
Recomputes every figure between marks in README.md and docs from the records in docs/runs and docs/experiments, and the
reports of experiments from their runs. A figure that differs is listed with file, line, both values and the command
that rewrites it, and the exit status is 1. Tables and sentences outside the marks need an entry in
docs/evidence/unbound.yaml.

examples:
  resdet verify
  resdet verify --write                                  # after new records
  resdet verify --full                                   # from detections too
"""


def _verify_options(parser: ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path(), help="checkout to verify (default: the current folder)")
    parser.add_argument("--write", action="store_true", help="rewrite the blocks that differ")
    parser.add_argument(
        "--full", action="store_true", help="also recompute results and reports from detections; takes minutes"
    )


def _verify(args: Namespace) -> Call:
    from detection.evidence.verify import verify

    return partial(verify, args.root, write=args.write, full=args.full), _show_verdict


def _show_verdict(verdict: Verdict) -> int:
    print("\n".join(verdict.lines()))
    return int(bool(verdict.findings))


EVIDENCE = """
Trains the missing runs of the experiments that README and docs cite, and rewrites reports and figures. Runs that have
records in docs/experiments count as done, also in a fresh clone. Ctrl-C saves, and the same command continues. Run it
in a checkout, with the data sets in RESDET_DATA_ROOT.

examples:
  resdet evidence --plan
  resdet evidence --only bccd_pretraining
  resdet evidence --jobs 2
"""


def _evidence_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--list", default="evidence", metavar="FILE", help="list of experiments (default: configs/evidence.yaml)"
    )
    parser.add_argument("--plan", action="store_true", help="only show which runs are done and the hours of the others")
    parser.add_argument("--only", metavar="NAME", help="only this experiment of the list")
    parser.add_argument("--jobs", type=positive, default=1, help="runs in parallel (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="also continue failed runs")


def _evidence(args: Namespace) -> Call:
    from detection.evidence.plan import format_plan, load_evidence, plan_evidence
    from detection.evidence.run import run_evidence

    if args.plan:
        evidence = load_evidence(args.list)
        return lambda: format_plan(evidence, plan_evidence(evidence, Path())), print
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's SIGTERM acts as Ctrl-C: the runs save
    run = partial(run_evidence, args.list, only=args.only, jobs=args.jobs, retry_failed=args.retry_failed)
    return run, _show_evidence


def _show_evidence(verdict: Verdict | None) -> int:
    if verdict is None:
        print("error: not every run is done; the lines above and status.json of each run say why", file=sys.stderr)
        return 1
    return _show_verdict(verdict)


COMMANDS = {
    "evidence": Command("Runs the experiments that README and docs cite", _evidence_options, _evidence, EVIDENCE),
    "verify": Command("Recomputes the figures of README and docs from recorded runs", _verify_options, _verify, VERIFY),
}
