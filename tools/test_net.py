"""Test a detector: COCO AP and VOC AP, detections in COCO's results format, pictures.

examples:
  python tools/test_net.py --config-file configs/digits/resnet18_c4.yaml --weights output/digits/resnet18_c4
  python tools/test_net.py --config-file configs/voc/vgg16_c4_0712.yaml --weights model.safetensors --visualize 20
  python tools/test_net.py --config-file configs/bccd/resnet18_c4.yaml --weights output/bccd/resnet18_c4 \\
      test.refine=true test.vote_iou=0.5
  python tools/test_net.py --zoo faster_rcnn_R_50_FPN_3x
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.checkpoint import read_checkpoint
from detection.engine.distributed import RankError, is_main, only_main
from detection.evaluation.report import format_tables
from detection.tasks.test import proposal_recall, run_test
from detection.weights.zoo import Entry, fetch, find_entry

ZOO_FOLDER = Path("output/zoo")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", help="a YAML file of configs/")
    parser.add_argument("--weights", help="a .safetensors checkpoint, or a run directory")
    parser.add_argument(
        "--zoo",
        metavar="NAME",
        help=f"in their place: a published detector of docs/weights.md, downloaded to {ZOO_FOLDER} and converted",
    )
    parser.add_argument(
        "--ensemble", action="append", default=[], metavar="W", help="a further checkpoint (may be repeated)"
    )
    parser.add_argument("--output-dir", help="for results (default: test/ in the run directory of the weights)")
    parser.add_argument("--visualize", type=_count, default=0, metavar="N", help="draw the detections of N images")
    parser.add_argument("--limit", type=_count, metavar="N", help="test only the first N images")
    parser.add_argument("--proposals", action="store_true", help="only the RPN: average recall at 100, 300, 1000")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as test.nms_iou=0.5")
    args = parser.parse_intermixed_args()
    if (args.zoo and (args.config_file or args.weights)) or not (args.zoo or (args.config_file and args.weights)):
        parser.error("give --config-file and --weights, or --zoo alone")
    return args


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a number from 1, got {text!r}")
    return int(text)


def _fetch(entry: Entry) -> Path:
    print(f"{entry.name}: {entry.url}, {entry.licence}")
    return fetch(entry, ZOO_FOLDER)


def _published(entry: Entry) -> str:
    figures = {"box AP": entry.ap, "box AP50": entry.ap50, "mask AP": entry.mask_ap}
    shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items() if value is not None)
    return f"published for {entry.data}: {shown}"


def main() -> None:
    args = parse_args()
    entry = find_entry(args.zoo) if args.zoo else None
    if entry:
        args.weights = _fetch(entry)
        args.config_file = args.weights / "config.yaml"
    config = load_config(DetectionConfig, args.config_file, args.overrides)
    checkpoint = read_checkpoint(args.weights)
    output = Path(args.output_dir) if args.output_dir else checkpoint.path.parent.parent / "test"
    if args.proposals:
        recall = proposal_recall(config, checkpoint, output, limit=args.limit)
        only_main(print)(
            "\n".join(f"{name:8} {'-' if value is None else f'{100 * value:.1f}'}" for name, value in recall.items())
        )
        return
    ensemble = [read_checkpoint(path) for path in args.ensemble]
    result = run_test(config, checkpoint, output, ensemble=ensemble, limit=args.limit, pictures=args.visualize)
    if not is_main():
        return
    print(format_tables(result))
    if entry:
        print(_published(entry))
    print(f"result: {output / 'result.json'}  detections: {output / 'detections.json'}")
    if args.visualize:
        print(f"pictures: {output / 'pictures'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RankError) as error:
        sys.exit(f"error: {error}")
