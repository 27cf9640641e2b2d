"""Commands that share a detector: exported files, its model card, and the Hugging Face hub."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path

from detection.commands.base import Call, Command, UsageError, fraction, positive
from detection.hub import results_folder

__all__ = ["COMMANDS"]

EXPORT = """
Writes one file that maps uint8 pixels to boxes, and compares it with PyTorch: detections, AP, latency and memory, on
data.test or --images. The files are written to RUN/export/FORMAT, or not at all if a limit is exceeded. Images are
resized outside the file. See docs/export.md.

examples:
  resdet export output/digits/resnet18_c4 --format onnx
  resdet export output/bccd/fpn_resnet18 --format openvino --int8 --images photos/
  resdet export output/bccd/fpn_resnet18 --format torch --size 480x640 --batch 4
  resdet export output/digits/resnet18_c4 --format web
"""


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, or a .safetensors checkpoint")
    parser.add_argument("--format", required=True, choices=("torch", "onnx", "openvino", "web"))
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", dest="precision", action="store_const", const="fp16", help="float16 weights")
    precision.add_argument(
        "--int8",
        dest="precision",
        action="store_const",
        const="int8",
        help="int8 weights and activations; not with torch",
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="input size (default: the smallest that holds the images)"
    )
    parser.add_argument("--batch", type=positive, default=1, help="images per call (default: %(default)s)")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to compare and calibrate on (default: the run's data)"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=20,
        metavar="N",
        help="compare and calibrate on N images (default: %(default)s)",
    )
    parser.add_argument("--timed", type=int, default=20, metavar="N", help="time N images (default: %(default)s)")
    parser.add_argument("--licence", help="licence of the weights, for the file's metadata")
    parser.add_argument(
        "--runtime", type=Path, metavar="FOLDER", help="for web: dist folder of onnxruntime-web (default: from npm)"
    )
    parser.add_argument("--output-dir", type=Path, help="output folder (default: export/FORMAT in the run directory)")
    parser.add_argument(
        "--max-unmatched",
        type=fraction,
        metavar="F",
        help="allowed share of detections without a match (default: 0.01; half 0.05, int8 0.3)",
    )
    parser.add_argument(
        "--max-ap-loss",
        type=float,
        default=1.0,
        metavar="P",
        help="allowed loss of AP in points (default: %(default)s)",
    )
    parser.add_argument(
        "--part-loss",
        type=fraction,
        default=0.02,
        metavar="F",
        help="int8: a part that loses a larger share of detections stays float (default: %(default)s)",
    )


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not x or not height.isdecimal() or not width.isdecimal() or min(int(height), int(width)) < 1:
        raise ArgumentTypeError(f"takes HEIGHTxWIDTH in pixels such as 800x1333, got {text!r}")
    return int(height), int(width)


def _export(args: Namespace) -> Call:
    if args.runtime is not None and args.format != "web":
        raise UsageError(f"--runtime is for --format web; leave it out with {args.format}")
    from detection.engine.checkpoint import read_checkpoint
    from detection.export.web.page import SERVE
    from detection.tasks.export import Limits, Wanted, run_export

    checkpoint, precision = read_checkpoint(args.run), args.precision or "fp32"
    name = args.format if precision == "fp32" else f"{args.format}_{precision}"
    output = args.output_dir or results_folder(args.run, checkpoint.path.parent.parent) / "export" / name
    wanted = Wanted(
        format="onnx" if args.format == "web" else args.format,
        precision=precision,
        size=args.size,
        batch=args.batch,
        images=args.images,
        count=args.limit,
        timed=args.timed,
        licence=args.licence,
        page=args.format == "web",
        runtime=args.runtime,
        limits=Limits(unmatched=args.max_unmatched, ap=args.max_ap_loss, part=args.part_loss),
    )
    serve = f"\nsee it:  {SERVE} {output}  and http://localhost:8000" if wanted.page else ""
    return partial(run_export, checkpoint, output, wanted), lambda _: print(f"export: {output}{serve}")


CARD = """
Describes data, recipe, results with intervals, costs, licences, limits and loading from the records of the run, and
names what was not recorded. The Hugging Face hub reads the YAML at its head. An edited card is not overwritten.

examples:
  resdet card output/photos
  resdet card output/photos --licence cc-by-4.0
"""


def _card_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the directory of a detector's run")
    parser.add_argument("--licence", help="of the weights, such as apache-2.0 (default: the card's, else not stated)")
    parser.add_argument("--overwrite", action="store_true", help="also overwrite an edited README.md")


def _card(args: Namespace) -> Call:
    from detection.report.model_card import write_card

    write = partial(write_card, args.run, licence=args.licence, overwrite=args.overwrite)
    return write, lambda path: print(f"card: {path}")


PUSH = """
Uploads the card, the config, the chosen weights and the results. The token is HF_TOKEN, else that of `hf auth login`.
Needs pip install 'resdet[hub]'. See docs/share.md.

examples:
  resdet push output/photos me/photos --dry-run
  resdet push output/photos me/photos --exports --licence apache-2.0 --public
  resdet predict --weights hf://me/photos new_photos/
"""


def _push_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the directory of a detector's run")
    parser.add_argument("repo", metavar="NAME/REPO", help="repository of the hub; created if it does not exist")
    parser.add_argument("--licence", help="of the weights, such as apache-2.0 (default: the card's, else not stated)")
    parser.add_argument("--exports", action="store_true", help="also upload export/")
    parser.add_argument(
        "--public", action="store_true", help="create a public repository, or push to one (default: private)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only write the card and list files and sizes")


def _push(args: Namespace) -> Call:
    from detection.report.push import push_run

    options = {name: getattr(args, name) for name in ("licence", "exports", "public", "dry_run")}
    return partial(push_run, args.run, args.repo, **options), _show_push


def _show_push(address: str | None) -> None:
    if address is not None:
        print(f"load it with: resdet.Predictor.load({address!r})")


COMMANDS = {
    "export": Command("Exports a detector, and compares the file with PyTorch", _export_options, _export, EXPORT),
    "card": Command("Writes the model card of a run", _card_options, _card, CARD),
    "push": Command("Pushes a run to the Hugging Face hub", _push_options, _push, PUSH),
}
