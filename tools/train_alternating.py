"""Train a detector in the 4 alternating steps of the paper; run again, it goes on where it stopped.

examples:
  python tools/train_alternating.py --config-file configs/voc/vgg16_c4_0712.yaml --output-dir output/vgg16_4step
  python tools/train_alternating.py --config-file configs/bccd/resnet18_c4.yaml --output-dir output/bccd_4step \\
      alternating.rpn_iterations=400 alternating.box_iterations=350
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.distributed import RankError, is_main
from detection.engine.loop import NotFiniteError
from detection.engine.signals import EXIT_STOPPED, StoppedError
from detection.evaluation.report import format_tables
from detection.tasks.alternating import run_alternating


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, help="a YAML file of configs/")
    parser.add_argument("--output-dir", required=True, help="holds step1 to step4; step4 is the detector")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as alternating.rpn_iterations=400")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    result = run_alternating(load_config(DetectionConfig, args.config_file, args.overrides), Path(args.output_dir))
    if result and is_main():
        print(format_tables(result))


if __name__ == "__main__":
    try:
        main()
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (ValueError, OSError, MemoryError, NotFiniteError, RankError) as error:
        sys.exit(f"error: {error}")
