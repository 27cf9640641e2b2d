"""What goes wrong in one run, or how two runs differ on the same test images: one HTML page, Markdown and JSON.

Types of errors, precision-recall and F1 curves, confusion matrix, best and worst images; of two runs also the interval
of their difference and the objects that one of them finds alone.

examples:
  python tools/analyze.py output/bccd/resnet18_c4
  python tools/analyze.py output/bccd/resnet18_c4 output/bccd/resnet34_c4 --output-dir output/resnet18_against_34
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.report.analysis import RESAMPLES, write_analysis


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory; two are compared")
    parser.add_argument("--output-dir", type=Path, help="for the page (default: analysis/ in the last run directory)")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"for the intervals (default: {RESAMPLES})")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    page = write_analysis(args.runs, args.output_dir or args.runs[-1] / "analysis", resamples=args.resamples)
    print(f"analysis: {page}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
