"""Compare backbones: a base config, its variants and seeds, trained, tested and measured alike, with a proof of it.

examples:
  python tools/compare_backbones.py configs/experiments/bccd.yaml --dry-run
  python tools/compare_backbones.py configs/experiments/bccd.yaml
  python tools/compare_backbones.py configs/experiments/voc_table7.yaml --gpus 0,1
  python tools/compare_backbones.py configs/experiments/voc_table7.yaml --index $SLURM_ARRAY_TASK_ID
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from detection.experiments.comparison import Comparison, measure_variant
from detection.experiments.experiment import load_experiment
from detection.experiments.runs import Placement, Programs
from detection.report.build import write_report

TOOLS = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("experiment", help="a YAML file of configs/experiments/")
    parser.add_argument("--output-dir", type=Path, help="for all files (default: output/experiments/NAME)")
    parser.add_argument("--jobs", type=int, help="runs at once (default: one, or one per GPU)")
    parser.add_argument("--gpus", default="", help="GPUs that runs are placed on, such as 0,1")
    parser.add_argument("--retry-failed", action="store_true", help="go on with failed runs too")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="only show the runs, and their hours from timed steps")
    only.add_argument("--index", type=int, metavar="I", help="only run I of --dry-run, for arrays of jobs")
    only.add_argument("--costs", metavar="VARIANT", help="only measure the costs of a variant")
    only.add_argument("--report-only", action="store_true", help="only write the report of what is there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the base, such as data.root=/data")
    return parser.parse_intermixed_args()


def programs(args: argparse.Namespace, output: Path) -> Programs:
    """The tools beside this one."""
    own = (str(Path(__file__).resolve()), args.experiment, "--output-dir", str(output), *args.overrides)
    train, test = (str(TOOLS / f"{name}.py") for name in ("train_net", "test_net"))
    return Programs((sys.executable, train), (sys.executable, test), (sys.executable, *own))


def main() -> None:
    args = parse_args()
    experiment = load_experiment(args.experiment, args.overrides)
    output = args.output_dir or Path("output") / "experiments" / experiment.name
    gpus = tuple(gpu for gpu in args.gpus.split(",") if gpu)
    placement = Placement(args.jobs if args.jobs is not None else max(1, len(gpus)), gpus)
    comparison = Comparison(experiment, output, programs(args, output), placement)
    if args.costs:
        measure_variant(experiment, output, args.costs)
        return
    if args.dry_run:
        print(comparison.plan())
        return
    done = True
    if args.index is not None:
        done = comparison.run_one(args.index, retry_failed=args.retry_failed)
    elif not args.report_only:
        done = comparison.run(retry_failed=args.retry_failed)
    if args.index is None:
        print(f"report: {write_report(output)}")
    if not done:
        sys.exit("error: not every run is done; the lines above and status.json of each run say why")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is Ctrl-C: the runs save
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
