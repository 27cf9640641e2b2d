"""Train a backbone to classify images, or test such classifiers; a detector starts from one with backbone.weights=RUN.

examples:
  python tools/pretrain_net.py --config-file configs/cifar10/resnet20.yaml
  python tools/pretrain_net.py --config-file configs/imagenet/cls_resnet50.yaml --output-dir output/r50 --resume
  python tools/pretrain_net.py --config-file configs/imagenet/cls_resnet50.yaml \
      --test output/r50 classification.views=dense
  python tools/pretrain_net.py --config-file configs/cifar10/resnet20.yaml --test output/a --test output/b

With --resume from the start, the same command goes on after whatever ended it. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C save
and end with exit status 75, mistakes and failures with 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.classification.task import evaluate_classifiers, format_accuracy, run_pretraining
from detection.config.detection import Config
from detection.config.load import load_config
from detection.engine.checkpoint import read_checkpoint
from detection.engine.distributed import RankError, is_main
from detection.engine.loop import NotFiniteError
from detection.engine.signals import EXIT_STOPPED, StoppedError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, help="a YAML file of configs/")
    parser.add_argument("--output-dir", help="run directory (default: output/<folder>/<name of the config file>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="RUN",
        help="test the weights of this run, or of several together, and train nothing (may be repeated); results go to "
        "RUN/test of the first, or to --output-dir",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as solver.base_lr=0.01")
    args = parser.parse_intermixed_args()
    if args.test and args.resume:
        parser.error("--resume goes on with a training, and --test trains nothing; give one of them")
    return args


def main() -> None:
    args = parse_args()
    config = load_config(Config, args.config_file, args.overrides)
    path = Path(args.config_file)
    output = Path(args.output_dir or config.output_dir or Path("output") / path.resolve().parent.name / path.stem)
    if args.test:
        checkpoints = [read_checkpoint(run) for run in args.test]
        output = Path(args.output_dir or checkpoints[0].path.parent.parent / "test")
        result = evaluate_classifiers(config, checkpoints, output)
    else:
        result = run_pretraining(config, output, resume=args.resume)
    if result and is_main():
        print(format_accuracy(result))
        print(f"result: {output / 'result.json'}")


if __name__ == "__main__":
    try:
        main()
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (ValueError, OSError, MemoryError, NotFiniteError, RankError) as error:
        sys.exit(f"error: {error}")
