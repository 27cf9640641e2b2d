"""Train and test ImageNet localisation as in the paper; run again, it goes on where it stopped.

examples:
  python tools/localize.py --config-file configs/imagenet/loc_resnet101.yaml --output-dir output/loc_resnet101
  python tools/localize.py --config-file configs/imagenet/loc_resnet101.yaml --output-dir output/loc_resnet101 \\
      localization.classifier=classifier.pth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.config.load import load_config
from detection.engine.loop import NotFiniteError
from detection.engine.signals import EXIT_STOPPED, StoppedError
from detection.localization.config import LocalizationConfig
from detection.localization.task import format_errors, run_localization


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, help="a YAML file of configs/")
    parser.add_argument("--output-dir", required=True, help="holds rpn, rcnn, the proposals and localization.json")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as localization.rcnn_iterations=20000")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    config = load_config(LocalizationConfig, args.config_file, args.overrides)
    print(format_errors(run_localization(config, Path(args.output_dir))))


if __name__ == "__main__":
    try:
        main()
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (ValueError, OSError, MemoryError, NotFiniteError) as error:
        sys.exit(f"error: {error}")
