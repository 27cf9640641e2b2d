"""Recompute a backbone's batch-norm statistics as a true average over a training set, before they are frozen.

examples:
  python tools/recompute_bn.py --config-file configs/voc/resnet101_c4_0712.yaml --output resnet101.safetensors
  python tools/recompute_bn.py --config-file configs/voc/resnet101_c4_0712.yaml --output resnet101.safetensors \
      --image-folder /data/imagenet/train
  python tools/train_net.py --config-file configs/voc/resnet101_c4_0712.yaml backbone.weights=resnet101.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.tasks.precise_bn import recompute_statistics


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config-file", required=True, help="a YAML file of configs/")
    parser.add_argument("--output", required=True, type=Path, help="a .safetensors file to write")
    parser.add_argument(
        "--image-folder",
        type=Path,
        metavar="DIR",
        help="a classification set, one subfolder per class (default: the config's data.train)",
    )
    parser.add_argument("--images", type=int, default=10_000, help="at most so many (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as backbone.weights=resnet101.pth")
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    config = load_config(DetectionConfig, args.config_file, args.overrides)
    used = recompute_statistics(config, args.output, images=args.images, folder=args.image_folder)
    print(f"statistics of {used} images: {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
