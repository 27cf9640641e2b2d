"""Writes RUN/README.md: a model card for the Hugging Face hub, only from what the run recorded.

Source of the YAML at its head: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from detection.build import label_names, needed_fields
from detection.engine.threshold import run_threshold
from detection.evaluation.coco import COCO_CLASS_NUMBERS, COCO_NUMBERS, KEYPOINT_NUMBERS
from detection.evaluation.metrics import deciding_key, figures, named, shown_in
from detection.evaluation.report import describe_choice
from detection.export.card import summary
from detection.files import write_text
from detection.pages.page import Block, Code, Notice, Page, Section, Table, Text, markdown
from detection.report.card_sections import costs_section, data_section, licence_section, names, recipe_section
from detection.report.numbers import as_json
from detection.report.recorded import Recorded, Tested, read_run
from detection.report.words import percent_interval

__all__ = ["card_text", "is_edited", "write_card"]

MARK = re.compile(r"\n<!-- resdet card ([0-9a-f]{64}) -->\n\Z")
UNKNOWN = "unknown"  # the hub's word for an unstated licence
# The hub's identifiers that are usual for weights; any other licence becomes "other" with a name.
LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "cc0-1.0"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail", UNKNOWN),
)
INDEXED = (
    *(f"{section}.{name}" for section in ("bbox", "segm", "keypoints") for name in COCO_CLASS_NUMBERS),
    "voc.mAP",
    "semseg.mIoU",
    "semseg.pixel_accuracy",
    "panoptic.PQ",
)
SIZES = {"APs": "small (below 32 x 32 pixels)", "APm": "medium", "APl": "large (from 96 x 96 pixels)"}


def write_card(run: Path, *, licence: str | None = None, repo: str | None = None, overwrite: bool = False) -> Path:
    """Writes the model card of the directory ``run`` and returns its path.

    Args:
        run: run directory of a detector.
        licence: licence of the weights; None: that of the card there, else not stated.
        repo: NAME/REPO of the hub from which the example in the card loads; None: ``run``.
        overwrite: also replace an edited card.

    Raises:
        ValueError: no run, a run of another program, a damaged file, or an edited card.
    """
    if not run.is_dir():
        raise ValueError(f"{run} is no directory of a run; give one such as output/photos")
    path = run / "README.md"
    if path.is_file() and is_edited(path) and not overwrite:
        raise ValueError(f"{path} was not written by resdet card, or was edited since; --overwrite replaces it")
    write_text(path, card_text(read_run(run), run, licence=licence or _stated(path), repo=repo))
    return path


def is_edited(path: Path) -> bool:
    """Returns true unless ``path`` is unchanged since ``write_card`` wrote it."""
    text = path.read_text(encoding="utf-8")
    mark = MARK.search(text)
    return mark is None or mark[1] != _digest(text[: mark.start()])


def card_text(recorded: Recorded, run: Path, *, licence: str | None, repo: str | None) -> str:
    """Returns the card of ``recorded``, whose directory is ``run``."""
    name, classes, tested = repo or run.resolve().name, _classes(recorded), recorded.tested
    page = Page(
        title=name,
        subtitle=f"{_architecture(recorded)} {_does(recorded)} {_count(classes, 'class', 'classes')}: "
        f"{', '.join(classes)}. Written by resdet card from what the run recorded.",
        facts=(),
        lead=[] if tested is None else [_headline(tested)],
        sections=[
            _loading(f"hf://{repo}" if repo else str(run), objects=recorded.checkpoint.config.finds_objects),
            _use(recorded),
            *([] if tested is None else [_results(recorded, tested)]),
            data_section(recorded),
            recipe_section(recorded),
            costs_section(recorded),
            *([_exports(recorded)] if recorded.exports else []),
            licence_section(recorded, licence),
            *(
                [Section("Missing from the record", [Text(line) for line in recorded.missing])]
                if recorded.missing
                else []
            ),
        ],
    )
    head = yaml.safe_dump(_front_matter(recorded, name, licence), sort_keys=False, allow_unicode=True, width=120)
    text = f"---\n{head}---\n\n{markdown(page)}"
    return f"{text}\n<!-- resdet card {_digest(text)} -->\n"


def _front_matter(recorded: Recorded, name: str, licence: str | None) -> dict[str, Any]:
    known = (licence or UNKNOWN).lower()
    stated = {"license": known} if known in LICENCES else {"license": "other", "license_name": licence}
    config, masks = recorded.checkpoint.config, recorded.checkpoint.config.finds_masks
    keypoints = "keypoint" in config.architecture
    maps = config.finds_label_maps
    tags = [
        *(["object-detection"] if config.finds_objects else ["semantic-segmentation"]),
        *(["panoptic-segmentation"] if maps and config.finds_objects else []),
        *(["instance-segmentation"] if masks else []),
        *(["keypoint-detection"] if keypoints else []),
        config.architecture,
        config.backbone.name,
    ]
    matter = {
        **stated,
        "library_name": "resdet",
        "pipeline_tag": "image-segmentation"
        if masks or maps
        else "keypoint-detection"
        if keypoints
        else "object-detection",
        "tags": [tag.replace("_", "-").replace(":", "-") for tag in dict.fromkeys(tags)],
        "datasets": sorted({found.card for found in recorded.sets}),
    }
    return matter | ({} if recorded.tested is None else {"model-index": [_index_entry(recorded.tested, name)]})


def _index_entry(tested: Tested, name: str) -> dict[str, Any]:
    """Returns the metrics in percent, in the form that the hub's leaderboards read."""
    known = figures(dict(tested.result))
    metrics = [
        {"type": key, "name": f"{'box ' * key.startswith('bbox.')}{named(key).name}, %", "value": round(100 * value, 2)}
        for key in INDEXED
        if (value := known.get(key)) is not None
    ]
    task = "object-detection" if "bbox" in tested.result else "image-segmentation"
    data = {"name": names(tested.sets), "type": tested.sets[0].card, "split": tested.sets[0].name.rpartition(":")[2]}
    return {"name": name, "results": [{"task": {"type": task}, "dataset": data, "metrics": metrics}]}


def _loading(address: str, *, objects: bool) -> Section:
    shown = (
        "print(found.names, found.scores, found.boxes)  # pixels: x1, y1, x2, y2"
        if objects
        else "print(found.label_map, found.shares)  # (H, W) numbers into found.label_names"
    )
    lines = (
        "import resdet",
        "",
        f"predictor = resdet.Predictor.load({address!r})",
        'found = predictor("photo.jpg")  # or an array, RGB, or a PIL image',
        shown,
    )
    where = " (of a hub: resdet[hub])" if address.startswith("hf:") else ""
    return Section("How to load it", [Code(f"With resdet{where}, in Python:", lines)])


def _headline(tested: Tested) -> str:
    images = _count(tested.result["images"], "image", "images")
    key = deciding_key(figures(tested.result))
    name = f"{'Box ' * key.startswith('bbox.')}{named(key).name}"
    return f"{name} {_interval(key, tested)} on {images} of {names(tested.sets)}"


def _use(recorded: Recorded) -> Section:
    config, tested = recorded.checkpoint.config, recorded.tested
    shown = run_threshold(recorded.checkpoint)
    beside = next((f" and {part}" for part in needed_fields(config)), "")
    rows = [
        ["meant for", f"images like those of {names(recorded.data['train'])}, the only ones in training"],
        ["finds", f"only the classes above, {'as boxes' + beside if config.finds_objects else 'as label maps'}"],
        [
            "image size",
            f"resized to a shorter side of {config.data.shorter_side} pixels, at most {config.data.longer_side}",
        ],
        *([["scores shown", f"from {shown.score:.2f} on: {shown.origin}"]] if config.finds_objects else []),
        *_limits_of_test(recorded, tested),
        ["other images, cameras, places", "not measured"],
        [
            "corrupted images",
            f"measured: {tested.folder.name}/robustness" if tested and tested.corrupted else "not measured",
        ],
        ["another training (seed)", "not measured by this run; the intervals are over the choice of test images alone"],
    ]
    return Section(
        "Intended use and limits", [Table("What can be said from the record.", ["", "recorded"], rows, words=True)]
    )


def _limits_of_test(recorded: Recorded, tested: Tested | None) -> list[list[str]]:
    if tested is None:
        return [["accuracy", "not measured"]]
    sizes = [text for name, text in SIZES.items() if tested.result.get("bbox", {name: 0}).get(name) is None]
    objects = (tested.objects or {}) if "bbox" in tested.result else {}
    unseen = [name for name, count in objects.items() if not count]
    rows = [["tested weights", describe_choice(dict(tested.result)) if "weights" in tested.result else "the last"]]
    if sizes:
        rows.append(["objects by size", f"{', '.join(sizes)}: not measured, the test set has none"])
    if unseen:
        rows.append(["classes without a test object", f"{', '.join(unseen)}: not measured"])
    if same := [found for found in tested.sets if found in recorded.data["train"]]:
        rows.append(["attention", f"{names(same)} was trained on and tested on: the figures are too high"])
    return rows


def _results(recorded: Recorded, tested: Tested) -> Section:
    blocks = _map_results(tested)
    if "bbox" in tested.result:
        blocks += _object_results(recorded, tested)
    if tested.no_intervals is not None:
        blocks.append(Notice(f"No intervals: {tested.no_intervals}", warning=True))
    return Section("Results", blocks)


def _map_results(tested: Tested) -> list[Block]:
    """Returns tables of label maps, panoptic ones first; empty for detectors."""
    scope = "in brackets 95 % intervals over the choice of test images" if tested.intervals else "no intervals"
    blocks: list[Block] = []
    for section, of_class in (("panoptic", "PQ"), ("semseg", "IoU")):
        if section in tested.result:
            metrics = shown_in("console", f"{section}.")
            rows = [[metric.name, _interval(metric.key, tested)] for metric in metrics]
            classes = [
                [name, _interval(f"{section}.per_class.{name}.{of_class}", tested)]
                for name in tested.result[section]["per_class"]
            ]
            blocks.append(Table(f"Percent; {scope}.", ["", "label maps"], rows))
            blocks.append(Table(f"{of_class} of each class, percent.", ["class", of_class], classes))
    return blocks


def _object_results(recorded: Recorded, tested: Tested) -> list[Block]:
    sections = [name for name in ("bbox", "segm") if name in tested.result]
    rows = [[number, *(_interval(f"{name}.{number}", tested) for name in sections)] for number in COCO_NUMBERS]
    rows.append(["VOC mAP", _interval("voc.mAP", tested), *([""] * (len(sections) - 1))])
    header = ["", *({"bbox": "boxes", "segm": "masks"}[name] for name in sections)]
    scope = "in brackets 95 % intervals over the choice of test images" if tested.intervals else "no intervals"
    blocks: list[Block] = [Table(f"Percent; {scope}. A dash: the test set has no such object.", header, rows)]
    if "keypoints" in tested.result:
        of_keypoints = [[number, _interval(f"keypoints.{number}", tested)] for number in KEYPOINT_NUMBERS]
        blocks.append(Table("Keypoints, percent.", ["", "keypoints"], of_keypoints))
    classes = [
        [
            name,
            "-" if tested.objects is None else f"{tested.objects[name]:,}",
            *(_interval(f"bbox.per_class.{name}.{number}", tested) for number in ("AP", "AP50")),
        ]
        for name in recorded.checkpoint.class_names
    ]
    blocks.append(Table("Boxes of each class, percent.", ["class", "test objects", "AP", "AP50"], classes))
    return blocks


def _exports(recorded: Recorded) -> Section:
    return Section(
        "Exports",
        [Table(f"export/{name}", ["", ""], [[*_halves(line)] for line in summary(proof)], words=True)
         for name, proof in recorded.exports.items()],
    )  # fmt: skip


def _halves(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name, value


def _interval(key: str, tested: Tested) -> str:
    """Returns the metric ``key`` of a test with its interval, if it has one."""
    interval = as_json(tested.intervals.get(key)) or {"low": None, "high": None}
    value = figures(dict(tested.result)).get(key)
    return percent_interval({**interval, "value": value})


def _architecture(recorded: Recorded) -> str:
    config = recorded.checkpoint.config
    pyramid = " and a feature pyramid" if config.backbone.fpn else ""
    return (
        f"{config.architecture.replace('_', ' ').title().replace('Rcnn', 'R-CNN')} with {config.backbone.name}{pyramid}"
    )


def _classes(recorded: Recorded) -> tuple[str, ...]:
    """Returns all classes, including stuff."""
    checkpoint = recorded.checkpoint
    return label_names(checkpoint.config, checkpoint.class_names) or tuple(checkpoint.class_names)


def _does(recorded: Recorded) -> str:
    config = recorded.checkpoint.config
    if not config.finds_label_maps:
        return "that detects"
    return "for panoptic segmentation into" if config.finds_objects else "that labels every pixel with one of"


def _count(many: Sequence[Any] | int, one: str, several: str) -> str:
    number = many if isinstance(many, int) else len(many)
    return f"{number:,} {one if number == 1 else several}"


def _stated(path: Path) -> str | None:
    """Returns the licence that a card states; None without a card or a licence."""
    if not path.is_file():
        return None
    parts = path.read_text(encoding="utf-8").split("---\n", 2)
    try:
        matter = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError:
        return None
    if not isinstance(matter, Mapping):
        return None
    stated = matter.get("license_name") or matter.get("license")
    return None if stated == UNKNOWN else stated


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
