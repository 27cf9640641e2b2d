"""Lists every backbone: paper, size, multiply-adds, weights and licence, errors published and measured here.

The names are those of backbones/registry.py and those that configs/backbones takes from timm and torchvision. Errors
measured here are those of CIFAR-10 runs, RUNS/cifar10_NAME, with NAME such as resnet20 or cifar_resnet20.

examples:
  python tools/list_backbones.py
  python tools/list_backbones.py --document docs/backbones.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from backbones.registry import backbone_names
from backbones.summary import BackboneSummary, describe
from detection.config.detection import DetectionConfig
from detection.config.load import load_config

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- what follows is written by tools/list_backbones.py -->"
END = "<!-- end of what is written by tools/list_backbones.py -->"

TRAIN_IMAGES = 50_000  # of CIFAR-10

IMAGENET_HEADER = (
    "name | paper | parameters, M | 224 x 224, G | 600 x 1000 to stride 16, G | channels at stride 16 "
    "| weights | licence | published error, 10-crop | error of the weights, 1-crop"
)
CIFAR_HEADER = "name | paper | parameters, M | 32 x 32, M | published error | measured here"
TINY_HEADER = "name | paper | parameters, M | 64 x 64, M | published error | measured here"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--document", type=Path, metavar="FILE", help="write the tables between its two marks (default: print them)"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "docs" / "runs", metavar="DIR", help="runs on CIFAR-10 (default: docs/runs)"
    )
    return parser.parse_args()


def library_names() -> list[str]:
    """Returns the backbones of other libraries that configs/backbones names."""
    paths = sorted(path for path in (ROOT / "configs" / "backbones").glob("*.yaml") if path.stem != "recipe")
    return [load_config(DetectionConfig, path).backbone.name for path in paths]


def render(entries: Sequence[BackboneSummary], runs: Path) -> str:
    """Renders four tables: ImageNet networks from here, from other libraries, CIFAR-10's and Tiny-ImageNet's."""
    own = [entry for entry in entries if entry.num_classes == 1000 and ":" not in entry.name]
    library = [entry for entry in entries if ":" in entry.name]
    small = [entry for entry in entries if entry.num_classes == 10]
    tiny = [entry for entry in entries if entry.num_classes == 200]
    tables = (
        ("ImageNet networks, 1000 classes", IMAGENET_HEADER, [imagenet_row(entry) for entry in own]),
        ("Networks of timm and torchvision, 1000 classes", IMAGENET_HEADER, [imagenet_row(entry) for entry in library]),
        (
            "CIFAR networks, 10 classes",
            CIFAR_HEADER,
            [cifar_row(entry, measured(entry, runs)) for entry in small],
        ),
        ("Tiny-ImageNet networks, 200 classes", TINY_HEADER, [cifar_row(entry, "not run") for entry in tiny]),
    )
    return "\n\n".join(f"## {title}\n\n{table(header, rows)}" for title, header, rows in tables if rows)


def table(header: str, rows: Sequence[Sequence[str]]) -> str:
    ruler = "|".join("---" for _ in header.split("|"))
    return "\n".join([f"| {header} |", f"|{ruler}|", *("| " + " | ".join(row) + " |" for row in rows)])


def imagenet_row(entry: BackboneSummary) -> list[str]:
    return [
        f"`{entry.name}`",
        entry.paper,
        f"{entry.parameters / 1e6:.2f}",
        f"{entry.multiply_adds / 1e9:.2f}",
        "" if entry.trunk_multiply_adds is None else f"{entry.trunk_multiply_adds / 1e9:.1f}",
        str(entry.map_channels or ""),
        "; ".join(weights.source for weights in entry.weights),
        "; ".join(weights.licence for weights in entry.weights),
        "" if entry.ten_crop_error is None else f"{entry.ten_crop_error:.2f}",
        "; ".join("?" if weights.top1_error is None else f"{weights.top1_error:.4g}" for weights in entry.weights),
    ]


def cifar_row(entry: BackboneSummary, figure: str) -> list[str]:
    return [
        f"`{entry.name}`",
        entry.paper,
        f"{entry.parameters / 1e6:.2f}",
        f"{entry.multiply_adds / 1e6:.0f}",
        entry.cifar10_error,
        figure,
    ]


def measured(entry: BackboneSummary, runs: Path) -> str:
    """Returns the percentage of CIFAR-10's test images that a run here got wrong, and how long it trained."""
    folders = (runs / f"cifar10_{name}" for name in (entry.name.removeprefix("cifar_"), entry.name))
    run = next((folder for folder in folders if (folder / "result.json").is_file()), None)
    if run is None:
        return "not run"
    error = 100 * (1 - json.loads((run / "result.json").read_text(encoding="utf-8"))["classification"]["top1"])
    solver = load_config(DetectionConfig, run / "config.yaml").solver
    return f"{error:.2f} ({solver.iterations * solver.images_per_step / TRAIN_IMAGES:.0f} passes)"


def write_between_marks(document: Path, content: str) -> None:
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{document} must have a line {BEGIN!r} and below it a line {END!r}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    document.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    args = parse_args()
    entries = [describe(name) for name in [*backbone_names(), *library_names()]]
    content = render(entries, args.runs)
    if args.document is None:
        print(content)
    else:
        write_between_marks(args.document, content)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
