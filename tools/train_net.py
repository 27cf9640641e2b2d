"""Train a detector.

examples:
  python tools/train_net.py --config-file configs/digits/resnet18_c4.yaml
  python tools/train_net.py --config-file configs/voc/vgg16_c4_0712.yaml --output-dir output/vgg16 solver.precision=bf16
  python tools/train_net.py --config-file configs/voc/vgg16_c4_0712.yaml --output-dir output/vgg16 --resume

With --resume from the start, the same command goes on after whatever ended it. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C save
and end with exit status 75, mistakes and failures with 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.config.detection import Config
from detection.config.load import load_config
from detection.engine.distributed import RankError, is_main
from detection.engine.loop import NotFiniteError
from detection.engine.signals import EXIT_STOPPED, StoppedError
from detection.evaluation.report import format_tables
from detection.tasks.train import run_training


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, help="a YAML file of configs/")
    parser.add_argument("--output-dir", help="run directory (default: output/<folder>/<name of the config file>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as solver.base_lr=0.01")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    config = load_config(Config, args.config_file, args.overrides)
    path = Path(args.config_file)
    output = Path(args.output_dir or config.output_dir or Path("output") / path.resolve().parent.name / path.stem)
    result = run_training(config, output, resume=args.resume)
    if result and is_main():
        print(format_tables(result))
        print(f"result: {output / 'result.json'}")


if __name__ == "__main__":
    try:
        main()
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (ValueError, OSError, MemoryError, NotFiniteError, RankError) as error:
        sys.exit(f"error: {error}")
