"""Test a detector under a list of settings, one on top of the other: Table 9 of the ResNet paper.

examples:
  python tools/test_methods.py --config-file configs/bccd/resnet18_c4.yaml --weights output/bccd/resnet18_c4
  python tools/test_methods.py --config-file configs/coco/resnet101_c4.yaml --weights output/coco/resnet101_c4 \\
      --context-weights output/coco/resnet101_context --ensemble output/coco/resnet50_c4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.checkpoint import read_checkpoint
from detection.experiments.methods import format_outcomes, load_rows, run_methods

TABLE9 = Path(__file__).resolve().parents[1] / "configs" / "methods" / "table9.yaml"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, help="a YAML file of configs/")
    parser.add_argument("--weights", required=True, help="a .safetensors checkpoint, or a run directory")
    parser.add_argument("--context-weights", metavar="W", help="a checkpoint trained with box.context=true")
    parser.add_argument("--ensemble", action="append", default=[], metavar="W", help="a further checkpoint")
    parser.add_argument("--table", default=TABLE9, help="the rows (default: configs/methods/table9.yaml)")
    parser.add_argument("--output-dir", help="for results (default: methods/ in the run directory of the weights)")
    parser.add_argument("--limit", type=int, metavar="N", help="test only the first N images")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as test.nms_iou=0.5")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    config = load_config(DetectionConfig, args.config_file, args.overrides)
    checkpoint = read_checkpoint(args.weights)
    output = Path(args.output_dir) if args.output_dir else checkpoint.path.parent.parent / "methods"
    outcomes = run_methods(
        config,
        load_rows(args.table),
        checkpoint,
        output,
        context=read_checkpoint(args.context_weights) if args.context_weights else None,
        ensemble=[read_checkpoint(path) for path in args.ensemble],
        limit=args.limit,
    )
    print(format_outcomes(outcomes))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
