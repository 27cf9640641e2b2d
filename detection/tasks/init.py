"""Writes the card, split and config for training on a folder of images and labels.

OUTPUT/init/card.yaml     the data set: format, classes, splits
OUTPUT/init/train.txt     and val.txt, test.txt: the images of the splits, if the folder has none
OUTPUT/init/config.yaml   the training: every value with its reason
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detection.config.detection import DetectionConfig
from detection.config.load import parse_yaml
from detection.data.cards import load_card
from detection.data.index import AnnotationIndex
from detection.data.readers.table import FormatName
from detection.data.recognise import data_root_of, recognise
from detection.engine.checkpoint import Checkpoint
from detection.files import write_text
from detection.progress import SCREEN, bar
from detection.tasks.first_card import card_text, draw_card
from detection.tasks.label_recipe import choose_for_labels, choose_for_segments
from detection.tasks.recipe import FEW_IMAGES, Choice, Machine, choose, config_text, has_masks
from detection.weights.origin import read_origin
from detection.weights.zoo import find_entry

__all__ = ["Project", "Wishes", "init_folder"]

# Published detectors that are tried if none is named: whether they need masks -> names in order of preference.
STARTS = {
    False: ("faster_rcnn_R_50_FPN_3x", "fasterrcnn_resnet50_fpn_v2"),
    True: ("mask_rcnn_R_50_FPN_3x", "maskrcnn_resnet50_fpn_v2"),
}
LABELS_START = ("deeplabv3_resnet50", "fcn_resnet50")  # the same for label images
SEGMENTS_START = ("panoptic_fpn_R_50_3x", "panoptic_fpn_R_50_1x")  # the same for panoptic data sets

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Project:
    """The files that ``init_folder`` wrote or found.

    Attributes:
        output: the run directory for the training.
        card: the card.
        config: the config.
        classifies: true if images have classes and no boxes; then the config is for resdet pretrain.
    """

    output: Path
    card: Path
    config: Path
    classifies: bool


@dataclass(frozen=True, slots=True)
class Wishes:
    """Choices of the user; the defaults follow from the data.

    Attributes:
        start: a run, a checkpoint, a name in the zoo, a file of another project, or "none"; None: a published detector
            if one is available.
        group: regular expression on the path of an image; images with the same match stay in one split.
        format: format of the labels.
        seed: seed of the split.
        overwrite: replace existing files.
    """

    start: str | None = None
    group: str | None = None
    format: FormatName | None = None
    seed: int = 0
    overwrite: bool = False


def init_folder(
    folder: Path,
    output: Path | None = None,
    *,
    wishes: Wishes = Wishes(),
    machine: Machine | None = None,
    say: Say = SCREEN.print,
) -> Project:
    """Writes card, split and config for the data in ``folder``, unless they exist; returns their paths.

    Args:
        folder: folder of images and labels, or a file of labels in it, or a data.yaml.
        output: run directory for the training; None: output/NAME of the folder.
        wishes: choices of the user.
        machine: machine that trains; None: this one.
        say: called with each line of progress.

    Raises:
        ValueError: no known labels, no usable image, or files of another data set in ``output``.
        OSError: a file can't be written.
    """
    root = data_root_of(folder).resolve()
    output = output or Path("output") / root.name
    place = output / "init"
    project = Project(output, place / "card.yaml", place / "config.yaml", classifies=False)
    if project.config.is_file() and not wishes.overwrite:
        return _existing(project, root, wishes, say)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{project.config} does not exist yet, and only one process may write it; first type: resdet init {folder}"
        )
    found = recognise(folder, format=wishes.format)
    for line in found.lines:
        say(line)
    first = draw_card(found, place, group=wishes.group, seed=wishes.seed, say=say)
    specs = {name: f"{project.card.resolve()}:{name}" for name in first.sets}
    if found.format == "image_folder":
        project, text = replace(project, classifies=True), _classifier(specs)
    else:
        text = _detector(first.sets, specs, output, wishes, machine or Machine.this(), say)
    place.mkdir(parents=True, exist_ok=True)
    for name, lines in first.lists.items():
        write_text(place / name, "".join(f"{line}\n" for line in lines))
    write_text(project.card, card_text(first.card, found))
    write_text(project.config, text)
    load_card(str(project.card))
    say(f"card: {project.card}")
    say(f"config: {project.config}, with a reason for every value")
    return project


def _existing(project: Project, root: Path, wishes: Wishes, say: Say) -> Project:
    """Returns the files of an earlier call; raises ValueError if they belong to another folder or other wishes."""
    card = load_card(str(project.card))
    anew = "add --overwrite to replace it, or choose another --output-dir"
    if Path(str(card.root)) != root:
        raise ValueError(f"{project.card} is the card of {card.root}, not of {root}; {anew}")
    if wishes.group is not None or wishes.format not in (None, card.format):
        raise ValueError(f"{project.card} exists, and --group and --format are for a new card; {anew}")
    content = parse_yaml(project.config.read_text(encoding="utf-8"))
    start = content.get("init") if isinstance(content, Mapping) else None
    if wishes.start is not None and wishes.start != (start or "none"):
        raise ValueError(f"{project.config} starts from {start or 'none'}, not from {wishes.start}; {anew}")
    say(f"card and config of an earlier call: {project.card}, {project.config} (--overwrite replaces them)")
    return replace(project, classifies=card.format == "image_folder")


def _detector(
    sets: Mapping[str, AnnotationIndex],
    specs: Mapping[str, str],
    output: Path,
    wishes: Wishes,
    machine: Machine,
    say: Say,
) -> str:
    """Returns the config of a detector, or of a semantic or panoptic network if the images have label maps."""
    index = sets["train"]
    maps = index.label_maps
    if maps is None:
        kind, starts, choose_all = "detector", STARTS[has_masks(index)], choose
    elif maps.segments is None:
        kind, starts, choose_all = "semantic network", LABELS_START, choose_for_labels
    else:
        kind, starts, choose_all = "panoptic network", SEGMENTS_START, choose_for_segments
    init, origin = _start(wishes.start, starts, kind, len(index), say)
    measured = dict(specs) if "test" in specs else {**specs, "test": specs["val"]}
    chosen = choose_all(index, measured, machine, init, origin)
    choices = [Choice("output_dir", str(output)), *chosen]
    command = f"resdet train {output}/init/config.yaml"
    header = (
        f"A {kind} on {Path(output).name}: what follows from its data and from {machine}.",
        f"Command:  {command}",
    )
    return config_text(choices, header)


def _start(
    wanted: str | None, names: Sequence[str], kind: str, images: int, say: Say
) -> tuple[str | None, Checkpoint[DetectionConfig] | None]:
    """Returns where training starts; from scratch if none of the published ``names`` can be downloaded.

    Raises:
        ValueError, ConnectionError: ``wanted`` is not available.
    """
    if wanted == "none":
        say(f"starts from scratch, as requested. {_needs(kind, images)}")
        return None, None
    if wanted is not None:
        with bar(wanted, unit="bytes") as move:
            return wanted, read_origin(wanted, progress=move)
    reasons = list[str]()
    for name in names:
        try:
            say(f"starts from {name} if it is available: {find_entry(name).url}")
            with bar(name, unit="bytes") as move:
                return name, read_origin(name, progress=move, attempts=1)
        except (ValueError, OSError) as error:
            reasons.append(str(error))
    say(f"no published {kind} is available ({reasons[0]}). {_needs(kind, images)}")
    say(f"  on a machine with a network: download {find_entry(names[0]).url}, copy it here, and add --from FILE")
    return None, None


def _needs(kind: str, images: int) -> str:
    """Returns a line on the data that training a network of ``kind`` from scratch needs."""
    enough = f"{images} images are enough to try" if images >= FEW_IMAGES else f"{images} images make a weak one"
    return f"From scratch a {kind} needs some {FEW_IMAGES:,} images and many epochs (COCO: 118,000); {enough}"


def _classifier(specs: Mapping[str, str]) -> str:
    """Returns the config of a classifier, for resdet pretrain."""
    choices = [
        Choice("backbone.name", "resnet18", "small; resdet list backbones has others"),
        Choice("data.train", [specs["train"]]),
        Choice("data.val", [specs["val"]] if "val" in specs else [], "chooses the best weights"),
        Choice("data.test", [specs[name] for name in ("test", "val") if name in specs][:1]),
    ]
    return config_text(choices, ("A classifier; its weights can start a detector (backbone.weights).",))
