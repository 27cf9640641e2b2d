"""Commands that train, test and use a detector."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detection.commands.base import (
    RESUMING,
    Call,
    Command,
    UsageError,
    config_name,
    config_options,
    folder_options,
    folder_project,
    fraction,
    positive,
    read_config,
    run_directory,
    run_options,
    show_tables,
    steps_options,
)
from detection.config.detection import DetectionConfig
from detection.hub import results_folder

__all__ = ["COMMANDS"]

ZOO_FOLDER, PREDICTIONS = Path("output/zoo"), Path("output/predictions")

TRAIN = f"""
CONFIG may also be a folder of images and labels, for which a card and a config are written as by resdet init.

examples:
  resdet train photos/
  resdet train photos/ --from faster_rcnn_R_50_FPN_3x solver.iterations=2000
  resdet train digits/resnet18_c4
  resdet train coco/resnet50_fpn --fit
  resdet train configs/voc/vgg16_c4_0712.yaml --output-dir output/vgg16 solver.precision=bf16
  resdet train configs/voc/vgg16_c4_0712.yaml --output-dir output/vgg16 --resume
{RESUMING}"""


def _train_options(parser: ArgumentParser) -> None:
    config_options(parser, "solver.base_lr=0.01")
    run_options(parser)
    parser.add_argument(
        "--fit",
        action="store_true",
        help="find the smallest solver.accumulate with which an iteration fits in GPU memory",
    )
    folder_options(parser)


def _train(args: Namespace) -> Call:
    name, changes = config_name(args)
    if (project := folder_project(args, name)) is not None:
        if project.classifies:
            raise UsageError(f"{name} has image classes and no boxes; type: resdet pretrain {project.config}")
        args.config_file, args.words, args.output_dir = str(project.config), changes, str(project.output)
    config, path = read_config(args, DetectionConfig)
    from detection.tasks.train import run_training

    output = run_directory(args, config, path)
    return partial(run_training, config, output, resume=args.resume, fit=args.fit), partial(show_tables, output=output)


TEST = """
Prints COCO AP and VOC AP; writes result.json, detections.json in COCO's results format, and pictures on request.
Segmentation networks get mean IoU or panoptic quality, label images and counts.

examples:
  resdet test configs/digits/resnet18_c4.yaml --weights output/digits/resnet18_c4
  resdet test configs/voc/vgg16_c4_0712.yaml --weights model.safetensors --visualize 20
  resdet test configs/bccd/resnet18_c4.yaml --weights output/bccd/resnet18_c4 test.refine=true test.vote_iou=0.5
  resdet test configs/coco/resnet101_c4.yaml --weights output/coco data.test=[cards/coco.yaml:test_dev] --submit
  resdet test --zoo faster_rcnn_R_50_FPN_3x
"""


def _test_options(parser: ArgumentParser) -> None:
    config_options(parser, "test.nms_iou=0.5")
    parser.add_argument(
        "--weights", help="a .safetensors checkpoint, a run directory, an exported file, or hf://NAME/REPO"
    )
    parser.add_argument(
        "--zoo",
        metavar="NAME",
        help=f"a published detector (resdet list zoo) instead of CONFIG and --weights; converted to {ZOO_FOLDER}",
    )
    parser.add_argument(
        "--ensemble", action="append", default=[], metavar="W", help="a further checkpoint (may be repeated)"
    )
    parser.add_argument("--output-dir", help="for results (default: test/ in the run directory of the weights)")
    parser.add_argument("--visualize", type=positive, default=0, metavar="N", help="draw the detections of N images")
    parser.add_argument("--limit", type=positive, metavar="N", help="test only the first N images")
    parser.add_argument(
        "--submit", action="store_true", help="write submission/, the files that the challenge's server reads"
    )
    parser.add_argument(
        "--robustness", action="store_true", help="also test blurred, noisy, darker and JPEG-compressed images"
    )
    parser.add_argument(
        "--proposals", action="store_true", help="only average recall of the RPN at 100, 300 and 1000 proposals"
    )


def _test(args: Namespace) -> Call:
    name, changes = config_name(args)
    if bool(args.zoo) == bool(name or args.weights) or bool(name) != bool(args.weights):
        wrong = "--weights is" if name else "the config, RUN/config.yaml of a run, is" if args.weights else "both are"
        raise UsageError(f"give a config and --weights, or --zoo alone{'' if args.zoo else f'; {wrong} missing'}")
    if args.robustness and (args.ensemble or args.proposals):
        raise UsageError("--robustness tests one detector's boxes; leave out --ensemble and --proposals")
    if args.submit and (args.limit or args.proposals):
        raise UsageError("--submit takes the detections of the whole split; leave out --limit and --proposals")
    published = ""
    if args.zoo:
        args.weights, published = _from_zoo(args.zoo)
        args.words, args.config_file = changes, args.weights / "config.yaml"
    config, _ = read_config(args, DetectionConfig)
    from detection.engine.checkpoint import read_checkpoint
    from detection.export.runtime import Exported, load
    from detection.tasks.test import proposal_recall, run_test

    checkpoint = load(args.weights)
    folder = checkpoint.path.parent if isinstance(checkpoint, Exported) else checkpoint.path.parent.parent
    output = Path(args.output_dir or results_folder(args.weights, folder) / "test")
    if isinstance(checkpoint, Exported) and (args.proposals or args.robustness):
        raise UsageError("an exported file has no --proposals and no --robustness; leave them out")
    if args.proposals and not isinstance(checkpoint, Exported):
        return partial(proposal_recall, config, checkpoint, output, limit=args.limit), _show_recall
    ensemble = [read_checkpoint(path) for path in args.ensemble]
    test = partial(
        run_test,
        config,
        checkpoint,
        output,
        ensemble=ensemble,
        limit=args.limit,
        pictures=args.visualize,
        submit=args.submit,
    )
    more = [name for name, asked in (("pictures", args.visualize), ("submission", args.submit)) if asked]
    show = partial(_show_test, output=output, published=published, folders=more)
    if not args.robustness or isinstance(checkpoint, Exported):
        return test, show
    from detection.tasks.robustness import run_corrupted

    corrupted = partial(run_corrupted, config, checkpoint, output, limit=args.limit)
    return lambda: (test(), corrupted()), partial(_show_robustness, show=show, output=output)


def _from_zoo(name: str) -> tuple[Path, str]:
    """Returns the directory of a published detector and its published figures; downloads it if it is missing."""
    from detection.progress import bar
    from detection.weights import zoo

    entry = zoo.find_entry(name)
    print(f"{entry.name}: {entry.url}, {entry.licence}")
    with bar(entry.name, unit="bytes") as move:
        return zoo.fetch(entry, ZOO_FOLDER, progress=move), entry.figures


def _show_recall(recall: dict[str, float | None]) -> None:
    from detection.engine.distributed import is_main

    if is_main():
        for name, value in recall.items():
            print(f"{name:8} {'-' if value is None else f'{100 * value:.1f}'}")


def _show_test(result: dict[str, Any], *, output: Path, published: str, folders: Sequence[str]) -> None:
    from detection.engine.distributed import is_main

    show_tables(result)
    if not is_main():
        return
    if published:
        print(published)
    files = {"bbox": "detections: detections.json", "panoptic": "panoptic: panoptic.json"}
    found = [text for section, text in files.items() if section in result] or ["label maps: label_maps"]
    shown = [text.partition(": ") for text in ("result: result.json", *found)]
    print("  ".join(f"{what}: {output / name}" for what, _, name in shown))
    for folder in folders:
        print(f"{folder}: {output / folder}")


def _show_robustness(
    results: tuple[dict[str, Any], None], *, show: Callable[[dict[str, Any]], None], output: Path
) -> None:
    from detection.engine.distributed import is_main
    from detection.report.robustness import write_robustness

    show(results[0])
    if is_main():
        print(write_robustness(output))


PREDICT = """
Prints the detections, draws them, and writes predictions.json. Images that can't be read are listed there, and the exit
status is 1.

examples:
  resdet predict --weights output/bccd/resnet18_c4 cells.jpg
  resdet predict --weights model.safetensors --output-dir found --min-score 0.7 --min-score dog=0.4 photos/
  resdet predict --weights model.safetensors --slice 800 aerial.tif https://example.com/photo.jpg
  resdet predict --weights model.safetensors street.mp4
"""


def _predict_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        type=_source,
        metavar="IMAGE",
        help="image or video file, folder of images, http(s) address, or number of a camera",
    )
    parser.add_argument(
        "--weights", required=True, help="a .safetensors checkpoint, a run directory, or hf://NAME/REPO"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        help=f"new output folder (default: the first free of {PREDICTIONS}, {PREDICTIONS}-2, ...)",
    )
    parser.add_argument(
        "--min-score",
        type=_min_score,
        action="append",
        metavar="[CLASS=]S",
        help="score threshold of all classes or of one (may be repeated; default: that of the run's best F1, else 0.5)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=1,
        metavar="N",
        help="images or frames per forward pass (default: %(default)s)",
    )
    parser.add_argument("--max-frames", type=positive, metavar="N", help="stop after N frames of each video and camera")
    parser.add_argument("--slice", type=positive, metavar="SIDE", help="cut large images into windows of SIDE pixels")
    parser.add_argument(
        "--slice-overlap", type=fraction, metavar="S", help="overlap of neighbouring windows as a share of SIDE"
    )
    parser.add_argument(
        "--slice-merge", choices=("ios", "nms"), help="how detections of overlapping windows are merged"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _source(text: str) -> Path | str | int:
    if text.lower().startswith(("http://", "https://")):
        return text
    return int(text) if text.isdecimal() and not Path(text).exists() else Path(text)


def _min_score(text: str) -> tuple[str, float]:
    """Returns the class ("" for all) and its score threshold."""
    name, _, score = text.rpartition("=")
    return name, fraction(score)


def _predict(args: Namespace) -> Call:
    from detection.predictor import Predictor
    from detection.tasks.predict import free_folder, predict_sources

    output = args.output_dir or free_folder(PREDICTIONS)
    test = {
        key: value for key in ("slice", "slice_overlap", "slice_merge") if (value := getattr(args, key)) is not None
    }
    predictor = Predictor.load(args.weights, device=args.device, batch_size=args.batch, **test)
    by_class: dict[str, float] = dict(args.min_score or ())
    rest = by_class.pop("", None)
    of_rest = {} if rest is None else dict.fromkeys(predictor.class_names, rest)
    min_score = of_rest | by_class if by_class else rest
    predict = partial(predict_sources, args.images, predictor, output, min_score=min_score, max_frames=args.max_frames)
    return predict, partial(_show_prediction, output=output)


def _show_prediction(failed: int, *, output: Path) -> int:
    print(f"pictures and predictions.json: {output}")
    return min(failed, 1)


ALTERNATING = """
Run the command again to continue where it stopped.

examples:
  resdet alternating configs/voc/vgg16_c4_0712.yaml --output-dir output/vgg16_4step
  resdet alternating configs/bccd/resnet18_c4.yaml --output-dir output/bccd_4step \\
      alternating.rpn_iterations=400 alternating.box_iterations=350
"""


def _alternating_options(parser: ArgumentParser) -> None:
    config_options(parser, "alternating.rpn_iterations=400")
    steps_options(parser, "holds step1 to step4; step4 is the detector")


def _alternating(args: Namespace) -> Call:
    config, _ = read_config(args, DetectionConfig)
    from detection.tasks.alternating import run_alternating

    return partial(run_alternating, config, Path(args.output_dir)), show_tables


COMMANDS = {
    "train": Command("Trains a detector", _train_options, _train, TRAIN),
    "test": Command("Tests a detector", _test_options, _test, TEST),
    "predict": Command("Detects objects in your own images", _predict_options, _predict, PREDICT),
    "alternating": Command(
        "Trains a Faster R-CNN by the 4-step alternating training of the paper",
        _alternating_options,
        _alternating,
        ALTERNATING,
    ),
}
