"""Commands that compare detectors and explain what they do."""

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
A base config, its variants and seeds, trained, tested and measured alike, with a proof of it.

examples:
  resdet compare configs/experiments/bccd.yaml --dry-run
  resdet compare configs/experiments/bccd.yaml
  resdet compare configs/experiments/voc_table7.yaml --gpus 0,1
  resdet compare configs/experiments/voc_table7.yaml --index $SLURM_ARRAY_TASK_ID
  resdet compare configs/experiments/bccd.yaml --latency-on cpu --threads 1
  resdet compare configs/experiments/bccd.yaml --plan --noise 1.5 1.0 --images 72
"""


def _compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("experiment", help="a YAML file of configs/experiments/, or its name: experiments/bccd")
    parser.add_argument("--output-dir", type=Path, help="for all files (default: output/experiments/NAME)")
    parser.add_argument("--jobs", type=int, help="runs at once (default: one, or one per GPU)")
    parser.add_argument("--gpus", default="", help="GPUs that runs are placed on, such as 0,1")
    parser.add_argument("--retry-failed", action="store_true", help="go on with failed runs too")
    parser.add_argument("--robustness", action="store_true", help="test every run also on corrupted images")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="only show the runs, and their hours from timed steps")
    only.add_argument("--index", type=int, metavar="I", help="only run I of --dry-run, for arrays of jobs")
    only.add_argument("--costs", metavar="VARIANT", help="only measure the costs of a variant")
    only.add_argument("--report-only", action="store_true", help="only write the report of what is there")
    only.add_argument("--plan", action="store_true", help="only say which true gap in AP the experiment will show")
    only.add_argument("--latency-on", choices=("cpu", "cuda"), help="only time the variants on this machine")
    parser.add_argument("--pilot", type=Path, metavar="REPORT.JSON", help="with --plan (default: its own, if run)")
    parser.add_argument("--noise", type=float, nargs=2, metavar=("SEED", "IMAGES"), help="with --plan: deviations, AP")
    parser.add_argument("--images", type=positive, help="with --plan (default: the pilot's or data.test's)")
    parser.add_argument("--gap", type=float, default=1.0, help="with --plan: in AP (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="with --latency-on cpu (default: torch's choice)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="with --latency-on")
    parser.add_argument("--batch", type=positive, default=1, help="images at once, with --latency-on")
    parser.add_argument("--exported", metavar="NAME", help="with --latency-on cpu: time export/NAME of each run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the base, such as data.root=/data")


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is Ctrl-C: the runs save
    return partial(run_comparison, path, args.output_dir, **common, **train), _show_comparison


def _show_comparison(done: bool) -> int:
    if not done:
        print("error: not every run is done; the lines above and status.json of each run say why", file=sys.stderr)
    return int(not done)


ANALYZE = """
Writes one HTML page, Markdown and JSON: types of errors, precision-recall and F1 curves, confusion matrix, best and
worst images; of several runs also the intervals of their differences and the objects that one of them finds alone.
Likely label errors, by all runs together, are pictures there, and files for annotation tools: label_errors.json (COCO)
and label_studio.json.

examples:
  resdet analyze output/bccd/resnet18_c4
  resdet analyze output/bccd/resnet18_c4 output/bccd/resnet34_c4 --output-dir output/resnet18_against_34
  resdet analyze seed0 seed1 seed2 --output-dir doubted                 # labels that no seed believes
"""


def _analyze_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a tested export; several are compared"
    )
    parser.add_argument("--output-dir", type=Path, help="for the page (default: analysis/ in the last run directory)")


def _analyze(args: Namespace) -> Call:
    from detection.export.runtime import find_export
    from detection.report.analysis import write_analysis

    exports = [find_export(run) for run in args.runs]  # an exported file means what resdet test wrote beside it
    runs = [run if export is None else export.parent / "test" for run, export in zip(args.runs, exports, strict=True)]
    output = args.output_dir or runs[-1] / "analysis"
    return partial(write_analysis, runs, output), lambda page: print(f"analysis: {page}")


EVALUATE = """
Judges detections of any program in COCO's results format: COCO's and VOC's numbers with intervals, per class, types of
errors, curves, confusions, calibration, the score for a wished precision or recall, and the comparison of methods.
Several files of a method are its seeds. No image is opened.

With --label-maps it judges label images of any program, in the values of the data set's card, or COCO's panoptic
format: mean IoU, pixel accuracy and panoptic quality.

examples:
  resdet evaluate --gt instances_val.json --detections yolo.json detr.json
  resdet evaluate --gt instances_val.json --detections yolo=y1.json,y2.json,y3.json detr=d1.json,d2.json,d3.json
  resdet evaluate --gt voc2012_segmentation:val --label-maps deeplab=found/deeplab fcn=found/seed1,found/seed2
  resdet evaluate --gt coco2017_panoptic:val --label-maps fpn=found/panoptic.json
"""


def _evaluate_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--gt", required=True, metavar="TRUTH", help="a JSON file in COCO's format; for label maps CARD:SPLIT"
    )
    found = parser.add_mutually_exclusive_group(required=True)
    found.add_argument("--detections", nargs="+", metavar="FILE", help="A.json, or NAME=A1.json,A2.json for seeds")
    found.add_argument(
        "--label-maps", nargs="+", metavar="FOLDER", help="of PNGs, or panoptic JSON beside its folder; or NAME=F1,F2"
    )
    parser.add_argument("--data-root", type=Path, help="folder of data sets (default: RESDET_DATA_ROOT, else datasets)")
    parser.add_argument("--output-dir", type=Path, default=Path("output/evaluation"), help="(default: %(default)s)")
    parser.add_argument("--voc-metric", choices=("11point", "area", "imagenet"), default="area", help="of VOC mAP")
    parser.add_argument("--precision", type=fraction, default=0.9, help="to find a score for (default: %(default)s)")
    parser.add_argument("--recall", type=fraction, default=0.9, help="to find a score for (default: %(default)s)")
    parser.add_argument(
        "--keypoint-sigmas",
        nargs="+",
        type=float,
        default=(),
        metavar="SIGMA",
        help="of OKS, one for each keypoint (default: COCO's by their names, else 0.05)",
    )
    parser.add_argument("--boundary", action="store_true", help="also boundary AP of masks, which takes longer")


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
    parser.add_argument("--context-weights", metavar="W", help="a checkpoint trained with box.context=true")
    parser.add_argument("--ensemble", action="append", default=[], metavar="W", help="a further checkpoint")
    parser.add_argument(
        "--table", default=CONFIGS / "methods" / "table9.yaml", help="the rows (default: configs/methods/table9.yaml)"
    )
    parser.add_argument("--output-dir", help="for results (default: methods/ in the run directory of the weights)")
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
    "compare": Command("Compares backbones", _compare_options, _compare, COMPARE),
    "analyze": Command(
        "Shows what goes wrong in a run, how runs differ, and which labels they doubt",
        _analyze_options,
        _analyze,
        ANALYZE,
    ),
    "evaluate": Command("Judges detections of any program", _evaluate_options, _evaluate, EVALUATE),
    "methods": Command("Tests a detector under a table of settings, Table 9", _methods_options, _methods, METHODS),
}
