"""Commands that compare detectors and analyse their errors."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from detection.commands.base import Call, Command, config_options, fraction, positive, read_config
from detection.config.detection import DetectionConfig
from detection.hub import results_folder
from detection.packaged import CONFIGS, find_config

__all__ = ["COMMANDS"]

COMPARE = """
Trains, tests and measures the variants and seeds of a base config alike, and proves in the report that they were.

examples:
  resdet compare configs/experiments/bccd.yaml --dry-run
  resdet compare configs/experiments/bccd.yaml
  resdet compare configs/experiments/voc_table7.yaml --gpus 0,1
  resdet compare configs/experiments/voc_table7.yaml --index $SLURM_ARRAY_TASK_ID
  resdet compare configs/experiments/bccd.yaml --latency-on cpu --threads 1
  resdet compare configs/experiments/bccd.yaml --plan --noise 1.5 1.0 --images 72
"""


def _compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("experiment", help="an experiment file, or its name, such as experiments/bccd")
    parser.add_argument("--output-dir", type=Path, help="folder for all files (default: output/experiments/NAME)")
    parser.add_argument("--jobs", type=int, help="runs in parallel (default: one, or one per GPU)")
    parser.add_argument("--gpus", default="", help="GPUs to place runs on, such as 0,1")
    parser.add_argument("--retry-failed", action="store_true", help="also continue failed runs")
    parser.add_argument("--robustness", action="store_true", help="also test every run on corrupted images")
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--dry-run", action="store_true", help="only show the runs and their hours, from timed iterations"
    )
    only.add_argument("--index", type=int, metavar="I", help="only train run I of --dry-run, for job arrays")
    only.add_argument("--costs", metavar="VARIANT", help="only measure the costs of a variant")
    only.add_argument("--report-only", action="store_true", help="only write the report of the finished runs")
    only.add_argument("--plan", action="store_true", help="only compute which true gap in AP the experiment can show")
    only.add_argument("--latency-on", choices=("cpu", "cuda"), help="only time the variants on this device")
    parser.add_argument(
        "--pilot",
        type=Path,
        metavar="REPORT.JSON",
        help="with --plan: report.json of a pilot (default: the experiment's own)",
    )
    parser.add_argument(
        "--noise", type=float, nargs=2, metavar=("SEED", "IMAGES"), help="with --plan: standard deviations in AP"
    )
    parser.add_argument(
        "--images", type=positive, help="with --plan: number of test images (default: the pilot's or data.test's)"
    )
    parser.add_argument("--gap", type=float, default=1.0, help="with --plan: true gap in AP (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="with --latency-on cpu: threads (default: those of PyTorch)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="with --latency-on: precision (default: %(default)s)",
    )
    parser.add_argument("--batch", type=positive, default=1, help="with --latency-on: images per forward pass")
    parser.add_argument("--exported", metavar="NAME", help="with --latency-on cpu: time export/NAME of each run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes of the base config, such as data.root=/data"
    )


def _compare(args: Namespace) -> Call:
    path = find_config(args.experiment)
    from detection.experiments.latency import Place
    from detection.experiments.runs import Placement
    from detection.report.compare import measure_costs, measure_latency, plan_claims, plan_comparison, run_comparison

    if args.plan:
        stated = None if args.noise is None else tuple(args.noise)
        sizes = {"pilot": args.pilot, "stated": stated, "images": args.images, "gap": args.gap}
        return partial(plan_claims, path, args.output_dir, **sizes, overrides=args.overrides), print
    if args.latency_on:
        place = Place(
            device=args.latency_on,
            threads=args.threads,
            precision=args.precision,
            batch=args.batch,
            exported=args.exported,
        )
        return partial(measure_latency, path, args.output_dir, place=place, overrides=args.overrides), lambda _: None
    if args.costs:
        costs = partial(measure_costs, path, args.output_dir, variant=args.costs, overrides=args.overrides)
        return costs, lambda _: None
    gpus = tuple(gpu for gpu in args.gpus.split(",") if gpu)
    placement = Placement(args.jobs if args.jobs is not None else max(1, len(gpus)), gpus)
    common = {"overrides": args.overrides, "placement": placement}
    if args.dry_run:
        return partial(plan_comparison, path, args.output_dir, **common), print
    train = {"retry_failed": args.retry_failed, "only": args.index, "train": not args.report_only}
    train["robustness"] = args.robustness
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's SIGTERM acts as Ctrl-C: the runs save
    return partial(run_comparison, path, args.output_dir, **common, **train), _show_comparison


def _show_comparison(done: bool) -> int:
    if not done:
        print("error: not every run is done; the lines above and status.json of each run say why", file=sys.stderr)
    return int(not done)


ANALYZE = """
Writes one HTML page, Markdown and JSON with error types, precision-recall and F1 curves, confusion matrix, and best and
worst images. Several runs are compared: intervals of their differences, and objects that only one of them finds.
Likely label errors, judged by all runs together, are shown as pictures and written for annotation tools to
label_errors.json (COCO) and label_studio.json.

examples:
  resdet analyze output/bccd/resnet18_c4
  resdet analyze output/bccd/resnet18_c4 output/bccd/resnet34_c4 --output-dir output/resnet18_against_34
  resdet analyze seed0 seed1 seed2 --output-dir doubted                 # labels that all seeds doubt
"""


def _analyze_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directory or tested export; several are compared"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="folder for the page (default: analysis/ in the last run directory)"
    )


def _analyze(args: Namespace) -> Call:
    from detection.export.runtime import find_export
    from detection.report.analysis import write_analysis

    exports = [find_export(run) for run in args.runs]  # an exported file stands for the test results beside it
    runs = [run if export is None else export.parent / "test" for run, export in zip(args.runs, exports, strict=True)]
    output = args.output_dir or runs[-1] / "analysis"
    return partial(write_analysis, runs, output), lambda page: print(f"analysis: {page}")


EVALUATE = """
Evaluates detections of any program in COCO's results format: COCO and VOC metrics with intervals and per class, error
types, curves, confusions, calibration, the score threshold for a precision or recall, and comparisons of methods.
Several files of a method are its seeds. Images are not read.

With --label-maps it evaluates label images, in the values of the data set's card, or COCO's panoptic format: mean IoU,
pixel accuracy and panoptic quality.

examples:
  resdet evaluate --gt instances_val.json --detections yolo.json detr.json
  resdet evaluate --gt instances_val.json --detections yolo=y1.json,y2.json,y3.json detr=d1.json,d2.json,d3.json
  resdet evaluate --gt voc2012_segmentation:val --label-maps deeplab=found/deeplab fcn=found/seed1,found/seed2
  resdet evaluate --gt coco2017_panoptic:val --label-maps fpn=found/panoptic.json
"""


def _evaluate_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--gt",
        required=True,
        metavar="TRUTH",
        help="ground truth: a JSON file in COCO's format; for label maps CARD:SPLIT",
    )
    found = parser.add_mutually_exclusive_group(required=True)
    found.add_argument(
        "--detections", nargs="+", metavar="FILE", help="A.json, or NAME=A1.json,A2.json for several seeds"
    )
    found.add_argument(
        "--label-maps",
        nargs="+",
        metavar="FOLDER",
        help="folder of PNGs, or panoptic JSON beside its folder; or NAME=F1,F2",
    )
    parser.add_argument("--data-root", type=Path, help="data root (default: $RESDET_DATA_ROOT, else datasets/)")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("output/evaluation"), help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--voc-metric",
        choices=("11point", "area", "imagenet"),
        default="area",
        help="definition of VOC AP (default: %(default)s)",
    )
    parser.add_argument(
        "--precision", type=fraction, default=0.9, help="find its score threshold (default: %(default)s)"
    )
    parser.add_argument("--recall", type=fraction, default=0.9, help="find its score threshold (default: %(default)s)")
    parser.add_argument(
        "--keypoint-sigmas",
        nargs="+",
        type=float,
        default=(),
        metavar="SIGMA",
        help="sigma of OKS for each keypoint (default: COCO's for its keypoint names, else 0.05)",
    )
    parser.add_argument("--boundary", action="store_true", help="also compute boundary AP of masks, which takes longer")


def _evaluate(args: Namespace) -> Call:
    from detection.report.calibration import Wanted
    from detection.report.evaluation import write_evaluation, write_map_evaluation
    from detection.tasks.evaluate import name_files

    if args.label_maps:
        files = name_files(args.label_maps, option="--label-maps")
        judge = partial(write_map_evaluation, args.gt, files, args.output_dir, root=args.data_root)
        return judge, lambda written: print(f"{written.tables}\nevaluation: {written.page}")
    evaluate = partial(
        write_evaluation,
        Path(args.gt),
        name_files(args.detections),
        args.output_dir,
        voc_metric=args.voc_metric,
        wanted=Wanted(precision=args.precision, recall=args.recall),
        keypoint_sigmas=args.keypoint_sigmas,
        boundary=args.boundary,
    )
    return evaluate, lambda written: print(f"{written.tables}\nevaluation: {written.page}")


METHODS = """
examples:
  resdet methods configs/bccd/resnet18_c4.yaml --weights output/bccd/resnet18_c4
  resdet methods configs/coco/resnet101_c4.yaml --weights output/coco/resnet101_c4 \\
      --context-weights output/coco/resnet101_context --ensemble output/coco/resnet50_c4
"""


def _methods_options(parser: ArgumentParser) -> None:
    config_options(parser, "test.nms_iou=0.5")
    parser.add_argument("--weights", required=True, help="a .safetensors checkpoint, or a run directory")
    parser.add_argument("--context-weights", metavar="W", help="checkpoint trained with box.context=true")
    parser.add_argument(
        "--ensemble", action="append", default=[], metavar="W", help="a further checkpoint (may be repeated)"
    )
    parser.add_argument(
        "--table",
        default=CONFIGS / "methods" / "table9.yaml",
        help="YAML file of the settings (default: configs/methods/table9.yaml)",
    )
    parser.add_argument(
        "--output-dir", help="folder for results (default: methods/ in the run directory of the weights)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="test only the first N images")


def _methods(args: Namespace) -> Call:
    config, _ = read_config(args, DetectionConfig)
    from detection.engine.checkpoint import read_checkpoint
    from detection.experiments.methods import format_outcomes, load_rows, run_methods

    checkpoint = read_checkpoint(args.weights)
    methods = partial(
        run_methods,
        config,
        load_rows(find_config(args.table)),
        checkpoint,
        Path(args.output_dir or results_folder(args.weights, checkpoint.path.parent.parent) / "methods"),
        context=read_checkpoint(args.context_weights) if args.context_weights else None,
        ensemble=[read_checkpoint(path) for path in args.ensemble],
        limit=args.limit,
    )
    return methods, lambda outcomes: print(format_outcomes(outcomes))


COMMANDS = {
    "compare": Command(
        "Compares detectors that differ in their backbone or another setting", _compare_options, _compare, COMPARE
    ),
    "analyze": Command(
        "Analyses the errors of a run, differences between runs, and likely label errors",
        _analyze_options,
        _analyze,
        ANALYZE,
    ),
    "evaluate": Command("Evaluates detections and label maps of any program", _evaluate_options, _evaluate, EVALUATE),
    "methods": Command("Tests a detector with the test-time settings of Table 9", _methods_options, _methods, METHODS),
}
