"""Makes a small detection data set without a network: handwritten digits on photographs, in VOC and in COCO layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detection.data.cards import data_root
from detection.data.digits import write_digits

EXAMPLES = """examples:
  python datasets/make_digits.py                                  # 600 train and 100 test images, datasets/digits
  python datasets/make_digits.py --root /data --train 5000 --seed 1

The cards digits (COCO layout, with masks) and digits_voc (VOC layout) read it.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        folder = write_digits(options.root, num_train=options.train, num_test=options.test, seed=options.seed)
    except (ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {options.train} train and {options.test} test images to {folder}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, default=data_root(), help="data root (default: $RESDET_DATA_ROOT, else datasets/)"
    )
    parser.add_argument("--train", type=int, default=600, help="train images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=100, help="test images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
