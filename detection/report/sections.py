"""The sections of an experiment's report, made only from the numbers in report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from detection.evaluation.matching import MAX_DETECTIONS
from detection.evaluation.metrics import NONE, Metric, percent, shown_in
from detection.pages.page import Block, Figure, Links, Notice, Pictures, Section, Table, Text
from detection.pages.plots import forest
from detection.report.conclusion import claims_tables, conclusion
from detection.report.costs import cost_section
from detection.report.details import classes_section, curves_section, errors_section, pictures_section
from detection.report.heads import by_head, heads_section
from detection.report.robustness import robustness_section
from detection.report.splits import copies_text
from detection.report.words import bar, best_cells, deciding, percent_interval, spread

__all__ = ["experiment_sections", "protocol_name"]

_MEANINGS = {
    "AP": "AP is COCO's, over boxes at IoU 0.50 to 0.95",
    "mIoU": "mIoU is the mean over the classes of their IoU over all pixels",
    "PQ": "PQ is the mean over the classes of their panoptic quality",
}
HASH_DIGITS = 16  # shown at most; report.json has all
_OBJECTS = (
    " s, m, l: objects under 32², up to 96² and over 96² pixels; AR1, AR10, AR100: average recall with as many "
    "detections per image."
)
PROTOCOLS = {
    "equal_steps": "equal steps",
    "equal_time": "equal training time",
    "learning_rate_grid": "each variant at its best learning rate of the same grid",
}


def experiment_sections(numbers: dict[str, Any], pictures: Sequence[Pictures]) -> list[Section]:
    """Returns all sections, the conclusion first; without a finished run only those that need none."""
    if not numbers["variants"]:
        return [
            Section("Conclusion", [Notice("No run has finished: there is nothing to compare yet.", warning=True)]),
            _fairness(numbers),
            _unfinished(numbers),
            _environment(numbers),
        ]
    sections = [
        conclusion(numbers),
        heads_section(numbers),
        _results(numbers),
        _fairness(numbers),
        cost_section(numbers),
        Section("Pairs", claims_tables(numbers) if numbers["pairs"] else []),
        classes_section(numbers),
        errors_section(numbers),
        curves_section(numbers),
        robustness_section(numbers["robustness"], numbers["confidence"]),
        pictures_section(numbers, pictures),
        _unfinished(numbers),
        _environment(numbers),
    ]
    return [section for section in sections if section.blocks]


def protocol_name(protocol: dict[str, Any]) -> str:
    """Returns the protocol in words."""
    name = PROTOCOLS[protocol["name"]]
    return name if protocol["minutes"] is None else f"{name}, {protocol['minutes']:g} minutes a run"


def _weights(variants: dict[str, Any]) -> str:
    """Returns a sentence on the tested weights."""
    kinds = dict.fromkeys(kind for variant in variants.values() for kind in variant.get("weights", ()))
    return f"Tested are the {'; '.join(kinds)}." if kinds else ""


def _results(numbers: dict[str, Any]) -> Section:
    variants, figure = numbers["variants"], deciding(numbers)
    metrics = [metric for metric in shown_in("report") if all(metric.name in v["metrics"] for v in variants.values())]
    rows = [
        [name, *(_over_seeds(variant, metric) for metric in metrics), str(len(variant["seeds"]))]
        for name, variant in variants.items()
    ]
    means = [[variant["metrics"][metric.name]["mean"] for metric in metrics] for variant in variants.values()]
    lower = [column for column, metric in enumerate(metrics) if metric.lower_is_better]
    caption = (
        f"Results in percent on {numbers['images']} images: mean ± standard deviation over the training seeds; bold: "
        "the best, proven or not. "
        f"{_weights(variants)}{_OBJECTS if any(metric.key.startswith('bbox.') for metric in metrics) else ''}"
    )
    if (numbers["base"].get("test.max_detections") or 0) > MAX_DETECTIONS:
        caption += f" AP and AR look at the best {MAX_DETECTIONS} detections of a class in an image, VOC mAP at all."
    drawn = {name: {figure: bar(variant["intervals"][figure])} for name, variant in variants.items()}
    seeds = {name: _known(variant["metrics"][figure]["values"]) for name, variant in variants.items()}
    drawing = Figure(
        "ap",
        forest("ap", drawn, x_label=f"{figure}, percent", dots=seeds),
        f"{figure} of these detectors with its interval over the choice of test images "
        f"({100 * numbers['confidence']:g} %), not of seeds; small strokes: the seeds. Two intervals may "
        "overlap although the difference, measured on the same images, is clear.",
        f"{figure} of " + ", ".join(f"{n} {percent_interval(v['intervals'][figure])}" for n, v in variants.items()),
    )
    header = ["variant", *(metric.name for metric in metrics), "seeds"]
    table = Table(caption, header, rows, bold=best_cells(means, lower=lower))
    return Section("Results", [table, drawing, *_paper_blocks(numbers)])


def _over_seeds(variant: dict[str, Any], metric: Metric) -> str:
    values = variant["metrics"][metric.name]
    return spread(values) if metric.is_fraction else spread(values, scale=1, digits=3)


def _paper_blocks(numbers: dict[str, Any]) -> list[Block]:
    """Returns the paper's figures beside ours, if the experiment repeats them."""
    verdicts = {True: "inside the band", False: "outside the band", None: "no band known"}
    rows = [
        [
            name,
            f"table {cell['table']}, {cell['metric']}",
            percent(cell["paper"]),
            percent(cell["ours"]),
            NONE if cell["accept_from"] is None else f"from {percent(cell['accept_from'])}",
            verdicts[cell["accepted"]],
        ]
        for name, variant in numbers["variants"].items()
        for cell in variant["paper"]
    ]
    if not rows:
        return []
    caption = (
        "Beside He et al., “Deep Residual Learning for Image Recognition” (2015), in percent; the band starts where an "
        "exact repetition would end up in 19 of 20 cases, by the noise of published trainings."
    )
    return [Table(caption, ["variant", "cell", "paper", "ours", "accepted", ""], rows)]


def _fairness(numbers: dict[str, Any]) -> Section:
    fairness = numbers["fairness"]
    hashes = fairness["hashes"]
    blocks: list[Block] = [
        Text(
            f"Protocol: {protocol_name(numbers['protocol'])}. The resolved configurations were compared before "
            f"training: all {len(numbers['base'])} keys are equal but those below, and only "
            f"{', '.join(fairness['allowed']) or 'none'} may differ{' under one head' if 'heads' in fairness else ''}."
        ),
        *_minutes(numbers),
        *_differences(fairness, "What differs: configuration keys", "key", "differences"),
        *_differences(fairness, "What changes with it all the same, without a key of its own", "what", "also_changes"),
    ]
    foreign = [name for name, variant in numbers["variants"].items() if variant["files"]]
    if foreign:
        blocks.append(
            Text(f"Of {', '.join(foreign)} only detections are known, not what they were trained on, or how.")
        )
    blocks += copies_text(numbers)
    flat = [("code", hashes["code"]), *hashes["data"].items()]
    flat += [(f"initial weights of {name}", value) for name, value in hashes["initial_weights"].items()]
    rows = [[name, "from scratch" if value is None else value[:HASH_DIGITS]] for name, value in flat]
    blocks.append(
        Table(
            f"What all of it was made of: the first {HASH_DIGITS} digits of SHA-256", ["what", "hash"], rows, words=True
        )
    )
    if numbers["grid"] is not None:
        blocks += [_grid_table(numbers["grid"]), Text(_search_noise(numbers))]
    configs = [
        (f"{name}, seed {seed}", f"../{path}")
        for name, variant in numbers["variants"].items()
        for seed, path in zip(variant["seeds"], variant["configs"], strict=False)  # arms of other programs have no run
    ]
    if configs:
        blocks.append(Links("The whole configuration of each run:", configs))
    return Section("Is it fair?", blocks)


def _minutes(numbers: dict[str, Any]) -> list[Block]:
    """Returns the minutes of training of each run, if all had the same time."""
    allowed = numbers["protocol"]["minutes"]
    if allowed is None:
        return []
    taken = {name: _known(variant["hours"]["values"]) for name, variant in numbers["variants"].items()}
    listed = "; ".join(
        f"{name} {', '.join(f'{60 * hours:.1f}' for hours in of_runs)}" for name, of_runs in taken.items() if of_runs
    )
    return [Text(f"Minutes of training, of {allowed:g} that were allowed: {listed or 'not known'}.")]


def _grid_table(grid: dict[str, Any]) -> Table:
    """Returns the search of the learning rates, one run per factor and variant."""
    factors = list(dict.fromkeys(factor for found in grid["variants"].values() for factor in found["scores"]))
    rows = [
        [
            name,
            *(percent(found["scores"].get(factor)) for factor in factors),
            NONE if found["base_lr"] is None else f"{found['base_lr']:g}",
        ]
        for name, found in grid["variants"].items()
    ]
    caption = (
        f"Search of the learning rate: {grid['metric']} on {', '.join(grid['validation'])}, in percent, at each factor "
        "of solver.base_lr, and the rate chosen."
    )
    return Table(caption, ["variant", *(f"x {factor}" for factor in factors), "rate"], rows)


def _search_noise(numbers: dict[str, Any]) -> str:
    """Returns the lead of the chosen learning rate, and the noise of a single training per rate."""
    leads = []
    for name, found in numbers["grid"]["variants"].items():
        best = sorted((score for score in found["scores"].values() if score is not None), reverse=True)[:2]
        leads += [f"{name} by {percent(best[0] - best[1])}"] if len(best) > 1 else []
    noise = (numbers.get("planning") or {}).get("noise")
    text = f"Each rate was trained once. The best leads the next: {', '.join(leads) or 'no variant has two scores'}."
    if noise is None:
        return f"{text} How much of that is the luck of one seed is unknown: no two variants have two seeds."
    # Noise of two trainings with the same rate on these test images; on the validation images it is similar.
    deviation = math.sqrt(2 * (noise["seed"] ** 2 + noise["own"] ** 2 / numbers["images"]))
    return (
        f"{text} Two trainings at one rate differ by {percent(deviation)} (standard deviation, on the test images): a "
        "lead below twice that may be luck, and the intervals of this page do not hold the choice of the rates."
    )


def _differences(fairness: dict[str, Any], caption: str, corner: str, name: str) -> list[Block]:
    """Returns a table of the entries ``name``; with heads, first those between heads, then those between variants."""
    entries = [(entry[corner], entry["values"]) for entry in fairness[name]]
    groups = by_head(entries, fairness["heads"]) if "heads" in fairness else {"": entries}
    return [
        block
        for where, rows in groups.items()
        for block in _values_table(f"{caption}{where and f', {where}'}.", corner, rows)
    ]


def _values_table(caption: str, corner: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Block]:
    if not rows:
        return []
    variants = list(dict.fromkeys(name for _, values in rows for name in values))
    cells = [[what, *(_shown(values.get(name)) for name in variants)] for what, values in rows]
    return [Table(caption, [corner, *variants], cells, words=True)]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "default"
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case _:
            return json.dumps(value)


def _unfinished(numbers: dict[str, Any]) -> Section:
    rows = [[f"{r['variant']}, seed {r['seed']}", r["state"], r["error"] or NONE] for r in numbers["unfinished"]]
    if not rows:
        return Section("Runs without a result", [])
    return Section(
        "Runs without a result", [Table("Not in any number of this page.", ["run", "state", "error"], rows, words=True)]
    )


def _environment(numbers: dict[str, Any]) -> Section:
    rows = [[name, "none" if value is None else _shown(value)] for name, value in numbers["environment"].items()]
    blocks: list[Block] = [Table("Where it ran.", ["what", "value"], rows, words=True)]
    if "blocks" in numbers:
        blocks.append(
            Text(
                "Intervals come from the figures "
                f"{'without each image' if numbers['blocks'] == numbers['images'] else 'on random halves'} (jackknife, "
                "Student's t), the same for all variants, and from the seeds; docs/compare.md says how often they "
                f"cover and claim falsely. {_MEANINGS[deciding(numbers)]}; all numbers of this page are in report.json."
            )
        )
    return Section("Environment and method", blocks)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
