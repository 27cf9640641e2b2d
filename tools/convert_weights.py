"""Turn a detector of torchvision or of Detectron2's model zoo into a checkpoint of this project.

examples:
  python tools/convert_weights.py fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --output output/torchvision_v2
  python tools/convert_weights.py model_final_280758.pkl --output output/detectron2_fpn
  python tools/convert_weights.py mine.pth --output mine.safetensors --classes bccd --norm-eps 0
  python tools/test_net.py --config-file output/torchvision_v2/config.yaml --weights output/torchvision_v2 \\
      "data.test=[coco2017:val]"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from backbones.weights.load import read_state_dict
from detection.config.detection import DetectionConfig
from detection.data.cards import load_card
from detection.engine.checkpoint import write_converted
from detection.weights.detectron2 import convert_detectron2
from detection.weights.torchvision import convert_torchvision


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("weights", type=Path, help="torchvision's .pth, or Detectron2's .pkl or .pth")
    parser.add_argument("--output", required=True, type=Path, help="a run directory, or a .safetensors file, to write")
    parser.add_argument(
        "--classes", default="coco2017", metavar="CARD", help="a card with the classes in order (default: %(default)s)"
    )
    parser.add_argument(
        "--norm-eps", type=float, metavar="EPS", help="torchvision's v1 trained further: see docs/weights.md"
    )
    return parser.parse_args()


def convert(
    state: Mapping[str, Tensor], class_names: tuple[str, ...], norm_eps: float | None
) -> tuple[DetectionConfig, dict[str, Tensor]]:
    """DetectionConfig and weights by our names; Detectron2 calls its RPN the proposal generator."""
    if not any(name.startswith("proposal_generator.") for name in state):
        return convert_torchvision(state, class_names=class_names, norm_eps=norm_eps)
    if norm_eps is not None:
        raise ValueError("--norm-eps is for torchvision's weights, these are Detectron2's; leave it out")
    return convert_detectron2(state, class_names=class_names)


def main() -> None:
    args = parse_args()
    class_names = load_card(args.classes).classes
    config, state = convert(read_state_dict(args.weights), class_names, args.norm_eps)
    path = write_converted(args.output, config, class_names, state)
    print(f"{len(state)} tensors, {len(class_names)} classes, {config.backbone.name}: {path}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
