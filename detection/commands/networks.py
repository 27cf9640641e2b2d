"""Commands for classifiers, edge detectors, weights and ImageNet localisation."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from detection.classification.config import ClassificationConfig
from detection.commands.base import (
    RESUMING,
    Call,
    Command,
    UsageError,
    config_options,
    fraction,
    read_config,
    run_directory,
    run_options,
    steps_options,
)
from detection.config.detection import DetectionConfig
from detection.edges.config import EdgesConfig
from detection.hub import results_folder
from detection.localization.config import LocalizationConfig

__all__ = ["COMMANDS"]

PRETRAIN = f"""
To start a detector from the backbone of RUN, train it with backbone.weights=RUN.

examples:
  resdet pretrain configs/cifar10/resnet20.yaml
  resdet pretrain configs/imagenet/cls_resnet50.yaml --output-dir output/r50 --resume
  resdet pretrain configs/imagenet/cls_resnet50.yaml --test output/r50 classification.views=dense
  resdet pretrain configs/cifar10/resnet20.yaml --test output/a --test output/b
  resdet pretrain configs/imagenet/cls_weights.yaml --test-weights backbone.name=timm:densenet161 backbone.weights=timm
{RESUMING}"""


def _pretrain_options(parser: ArgumentParser) -> None:
    config_options(parser, "solver.base_lr=0.01")
    run_options(parser)
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="RUN",
        help="test the weights of this run, or of several as an ensemble, without training (may be repeated); writes "
        "to RUN/test of the first run, or to --output-dir",
    )
    parser.add_argument(
        "--test-weights",
        action="store_true",
        help="test the published backbone.weights with their own head, without training",
    )


def _pretrain(args: Namespace) -> Call:
    if args.test and args.resume:
        raise UsageError("--resume continues a training and --test trains nothing; give only one of them")
    if args.test_weights and (args.test or args.resume):
        raise UsageError("--test-weights tests published weights; leave out --test and --resume")
    config, path = read_config(args, ClassificationConfig)
    from detection.classification.task import evaluate_classifiers, evaluate_weights, run_pretraining
    from detection.engine.checkpoint import read_checkpoint

    if args.test_weights:
        output = run_directory(args, config, path)
        return partial(evaluate_weights, config, output), partial(_show_accuracy, output=output)
    if not args.test:
        output = run_directory(args, config, path)
        return partial(run_pretraining, config, output, resume=args.resume), partial(_show_accuracy, output=output)
    checkpoints = [read_checkpoint(run, ClassificationConfig) for run in args.test]
    output = Path(args.output_dir or results_folder(args.test[0], checkpoints[0].path.parent.parent) / "test")
    return partial(evaluate_classifiers, config, checkpoints, output), partial(_show_accuracy, output=output)


def _show_accuracy(result: dict[str, Any], *, output: Path) -> None:
    from detection.classification.task import format_accuracy
    from detection.engine.distributed import is_main

    if result and is_main():
        print(format_accuracy(result))
        print(f"result: {output / 'result.json'}")


COMPARE_CLASSIFIERS = """
All runs must be tested on the same images, and the runs of a variant may differ only in their seed.

examples:
  for seed in 0 1 2; do
    resdet pretrain configs/cifar10/short_resnet20.yaml seed=$seed --output-dir output/resnet20_$seed
    resdet pretrain configs/cifar10/short_plain20.yaml seed=$seed --output-dir output/plain20_$seed
  done
  resdet compare-classifiers plain20=output/plain20_0,output/plain20_1,output/plain20_2 \\
      resnet20=output/resnet20_0,output/resnet20_1,output/resnet20_2 --output-dir output/plain_or_residual
"""


def _compare_classifiers_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "variants",
        nargs="+",
        metavar="NAME=RUN,RUN",
        help="name of a variant and its runs of resdet pretrain, one per seed",
    )
    parser.add_argument("--output-dir", required=True, help="holds report.md and comparison.json")
    parser.add_argument(
        "--confidence", type=fraction, default=0.95, help="confidence of the intervals (default: %(default)s)"
    )


def _compare_classifiers(args: Namespace) -> Call:
    variants = dict[str, list[Path]]()
    for word in args.variants:
        name, equals, runs = word.partition("=")
        if not equals or not runs or name in variants:
            raise UsageError(f"expected a variant as NAME=RUN,RUN with a unique name, got {word!r}")
        variants[name] = [Path(run) for run in runs.split(",")]
    from detection.classification.compare import compare_classifiers

    output = Path(args.output_dir)
    compare = partial(compare_classifiers, variants, output, confidence=args.confidence)
    return compare, lambda _: print((output / "report.md").read_text(encoding="utf-8"))


EDGES = f"""
examples:
  resdet edges configs/bsds/hed_vgg16.yaml
  resdet edges configs/bsds/hed_vgg16.yaml --test output/bsds/hed_vgg16
{RESUMING}"""


def _edges_options(parser: ArgumentParser) -> None:
    config_options(parser, "solver.base_lr=0.0001")
    run_options(parser)
    parser.add_argument(
        "--test",
        metavar="RUN",
        help="test the weights of this run without training; writes results and edge maps to RUN/test or --output-dir",
    )


def _edges(args: Namespace) -> Call:
    if args.test and args.resume:
        raise UsageError("--resume continues a training and --test trains nothing; give only one of them")
    config, path = read_config(args, EdgesConfig)
    from detection.edges.task import evaluate_edges, run_edges
    from detection.engine.checkpoint import read_checkpoint

    if args.test is None:
        output = run_directory(args, config, path)
        return partial(run_edges, config, output, resume=args.resume), partial(_show_edges, output=output)
    checkpoint = read_checkpoint(args.test, EdgesConfig)
    output = Path(args.output_dir or results_folder(args.test, checkpoint.path.parent.parent) / "test")
    return partial(evaluate_edges, config, checkpoint, output), partial(_show_edges, output=output)


def _show_edges(result: dict[str, Any], *, output: Path) -> None:
    from detection.edges.task import format_edges
    from detection.engine.distributed import is_main

    if result and is_main():
        print(format_edges(result))
        print(f"result: {output / 'result.json'}")


LOCALIZE = """
Run the command again to continue where it stopped.

examples:
  resdet localize configs/imagenet/loc_resnet101.yaml --output-dir output/loc_resnet101
  resdet localize configs/imagenet/loc_resnet101.yaml --output-dir output/loc_resnet101 \\
      localization.classifier=classifier.pth
"""


def _localize_options(parser: ArgumentParser) -> None:
    config_options(parser, "localization.rcnn_iterations=20000")
    steps_options(parser, "holds rpn, rcnn, the proposals and localization.json")


def _localize(args: Namespace) -> Call:
    config, _ = read_config(args, LocalizationConfig)
    from detection.localization.task import format_errors, run_localization

    return partial(run_localization, config, Path(args.output_dir)), lambda result: print(format_errors(result))


PRECISE_BN = """
examples:
  resdet precise-bn configs/voc/resnet101_c4_0712.yaml --output resnet101.safetensors
  resdet precise-bn configs/voc/resnet101_c4_0712.yaml --output resnet101.safetensors \\
      --image-folder /data/imagenet/train
  resdet train configs/voc/resnet101_c4_0712.yaml backbone.weights=resnet101.safetensors
"""


def _precise_bn_options(parser: ArgumentParser) -> None:
    config_options(parser, "backbone.weights=resnet101.pth")
    parser.add_argument("--output", required=True, type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--image-folder",
        type=Path,
        metavar="DIR",
        help="a classification set, one subfolder per class (default: the config's data.train)",
    )
    parser.add_argument("--images", type=int, default=10_000, help="use at most so many images (default: %(default)s)")


def _precise_bn(args: Namespace) -> Call:
    config, _ = read_config(args, DetectionConfig)
    from detection.tasks.precise_bn import recompute_statistics

    recompute = partial(recompute_statistics, config, args.output, images=args.images, folder=args.image_folder)
    return recompute, lambda used: print(f"statistics of {used} images: {args.output}")


CONVERT = """
examples:
  resdet convert fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --output output/torchvision_v2
  resdet convert model_final_280758.pkl --output output/detectron2_fpn
  resdet convert mine.pth --output mine.safetensors --classes bccd --norm-eps 0
  resdet convert lvis.pkl --output output/lvis --classes lvis.yaml --settings config.yaml
  resdet convert output/torchvision_v2 --to torchvision --output mine.pth
  resdet test output/torchvision_v2/config.yaml --weights output/torchvision_v2 "data.test=[coco2017:val]"
"""


def _convert_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights", type=Path, help="torchvision's .pth, or Detectron2's .pkl or .pth; with --to: a run of resdet"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="the run directory or .safetensors file to write; with --to: a .pth file",
    )
    parser.add_argument("--to", choices=("torchvision", "detectron2"), help="convert a run of resdet for this project")
    parser.add_argument(
        "--settings", type=Path, metavar="YAML", help="Detectron2's config.yaml (default: that of its model zoo)"
    )
    parser.add_argument(
        "--classes",
        metavar="CARD",
        help="a card that lists the classes in the order of the weights (default: coco2017)",
    )
    parser.add_argument(
        "--norm-eps",
        type=float,
        metavar="EPS",
        help="batch-norm epsilon of a fine-tuned v1 of torchvision; see docs/weights.md",
    )


def _convert(args: Namespace) -> Call:
    if args.to and (args.settings or args.classes or args.norm_eps is not None):
        raise UsageError(
            "--settings, --classes and --norm-eps are for weights of other projects; leave them out with --to"
        )
    from detection.tasks.convert import convert_back, convert_weights

    if args.to:
        return partial(convert_back, args.weights, args.output, to=args.to), print
    options = {"classes": args.classes or "coco2017", "norm_eps": args.norm_eps, "settings": args.settings}
    return partial(convert_weights, args.weights, args.output, **options), print


COMMANDS = {
    "pretrain": Command("Trains a backbone to classify, or tests classifiers", _pretrain_options, _pretrain, PRETRAIN),
    "compare-classifiers": Command(
        "Compares classifiers, with confidence intervals",
        _compare_classifiers_options,
        _compare_classifiers,
        COMPARE_CLASSIFIERS,
    ),
    "edges": Command("Trains or tests HED, an edge detector", _edges_options, _edges, EDGES),
    "localize": Command("Trains and tests ImageNet localisation", _localize_options, _localize, LOCALIZE),
    "precise-bn": Command(
        "Recomputes a backbone's batch-norm statistics over a data set", _precise_bn_options, _precise_bn, PRECISE_BN
    ),
    "convert": Command(
        "Converts a detector of torchvision or Detectron2, and back", _convert_options, _convert, CONVERT
    ),
}
