"""Draws a loss or metric of several runs over their iterations, from their metrics.jsonl.

examples:
  python tools/plot_runs.py output/cifar10/plain20 output/cifar10/plain56 --key loss/classification --output loss.svg
  python tools/plot_runs.py output/voc/* --key bbox.AP50 --output ap50.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from detection.files import write_text
from detection.pages.plots import lines
from detection.report.reading import read_metrics


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--key", required=True, help="of metrics.jsonl; metrics are drawn in percent, losses as they are"
    )
    parser.add_argument("--output", required=True, type=Path, help="an .svg file")
    parser.add_argument("--limit", type=float, help="where the axis of a loss ends")
    return parser.parse_args()


def known_keys(run: Path) -> str:
    """Returns the keys of the run's first and last line, for a message."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return "which is missing"
    rows = path.read_text(encoding="utf-8").splitlines()
    return "which has " + ", ".join(sorted({key for row in (rows[:1] + rows[-1:]) for key in json.loads(row)}))


def main() -> None:
    args = parse_args()
    series, names = {}, [run.name for run in args.runs]
    for run in args.runs:
        iterations, values = read_metrics(run, args.key)
        if not iterations:
            raise ValueError(f"no figure {args.key!r} in {run / 'metrics.jsonl'}, {known_keys(run)}")
        series[run.name if names.count(run.name) == 1 else str(run)] = [(iterations, values)]
    figure = lines(
        args.output.stem, series, x_label="iterations", y_label=args.key, percent="." in args.key, limit=args.limit
    )
    write_text(args.output, figure)
    print(f"{len(series)} runs: {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
