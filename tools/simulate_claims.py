"""Measures coverage of the comparison's intervals and its rate of false claims, on simulated detectors.

Detectors of a simulated world find objects of images that are hard or easy, for all of them and for each method; seeds
shift a method's AP.  Real AP of real matches goes through the intervals and claims of ``detection.evaluation``.  Eight
arms are simulated: seven are alike, one is better by 2 AP; two, four or seven of them are compared.

False claims: the share of experiments in which some pair of equal methods is called different; of detectors, in which
some interval of a pair misses the truth.  They must stay at or under 5 %, and coverage of 95 % intervals at or over
94 % from 40 images on (92 % below), up to the Monte-Carlo error: one bound for all cells together.  Beside them, the
rule that these replace: percentiles of resampled images for one seed, Welch's t for more, each pair by itself.

Across heads: six arms are two variants under three heads; false: some gain is said to depend on the head.  Rates of
this table come with their 95 % interval over the simulated experiments (Clopper and Pearson).

examples:
  python tools/simulate_claims.py --json claims.json
  python tools/simulate_claims.py --quick --json claims.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri, stdtr

from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.heads import compare_heads
from detection.evaluation.jackknife import Sample, Statistic, jackknife
from detection.evaluation.matching import FlatMatches, MatchedRecords, pack
from detection.evaluation.noise import (
    Noise,
    half_width,
    images_half_width,
    p_value,
    pair_noise,
    pool_seeds,
)
from detection.evaluation.text_table import text_table

ALPHA, GAP = 0.05, 0.02
PROMISED = ("false", "false_beside_gap", "detectors_false", "heads_false", "heads_detectors_false")  # in 5 % at most
ARMS, SEEDS, VARIANTS = 8, (1, 2, 3, 5), (2, 4, 7)  # arm 0 is the better one
IMAGES = {20: 300, 40: 300, 72: 300, 500: 60}  # test images -> experiments
QUICK = {20: 60, 40: 60, 72: 40}
DEVIATIONS = {"0.3": (0.003, 0.003), "1.0": (0.01, 0.01), "0.3 and 2.0": (0.003, 0.02)}  # AP; of every other arm
COVERAGE = {20: 0.92}  # asked of 95 % intervals with so many images; 0.94 with more
IOUS = np.array([0.5, 0.75])
TASTE, OWN = 0.15, 0.4  # deviations of skill: of a method on an image, of a training on an object
RESAMPLES = 200  # of the old rule
PAIRS = np.array(list(combinations(range(ARMS), 2))).T  # (2, P)
# The arms of two variants, by head.
EQUAL_HEADS = {"x": {"a": "1", "b": "2"}, "y": {"a": "3", "b": "4"}, "z": {"a": "5", "b": "6"}}
GAP_HEADS = {"x": {"a": "1", "b": "0"}, "y": {"a": "3", "b": "2"}, "z": {"a": "5", "b": "4"}}
SLOPE_SPAN = 0.4  # of the quality, around 0: about 15 AP

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Test images: the image of each object, and how hard images and objects are."""

    images: NDArray[np.int64]  # (O,)
    hardness: Floats  # (O,) of the object, with that of its image
    false: Floats  # (N,) expected false alarms of each image
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One experiment of all arms and seeds."""

    values: Floats  # (5, 8) AP
    influence: Floats  # (5, G, 8)
    truths: Floats  # (5, 8) AP of each detector on endless images
    resampled: Floats  # (B, 8) AP of the first seeds on resampled images


def make_scene(rng: np.random.Generator, num_images: int) -> Scene:
    difficulty = rng.normal(0, 1, num_images)
    images = np.repeat(np.arange(num_images), 1 + rng.poisson(3.0, num_images))
    hardness = difficulty[images] + rng.normal(0, 0.9, len(images))
    return Scene(images=images, hardness=hardness, false=np.exp(0.4 + 0.4 * difficulty), num_images=num_images)


def detect(rng: np.random.Generator, scene: Scene, quality: float, taste: Floats) -> MatchedRecords:
    """Returns detections of a detector of some ``quality``; ``taste`` (N,) is the effect of its method per image."""
    skill = quality - scene.hardness + taste[scene.images] + rng.normal(0, OWN, len(scene.images))
    found = skill > -1
    false = np.repeat(np.arange(scene.num_images), rng.poisson(scene.false))
    scores = np.concatenate([skill[found] + rng.normal(0, 0.5, found.sum()), rng.normal(-0.6, 1, len(false))])
    ious = np.concatenate([1 / (1 + np.exp(-skill[found] - 0.5)), np.zeros(len(false))])
    rows = FlatMatches(
        images=np.concatenate([scene.images[found], false]),
        labels=np.zeros(len(scores), np.int64),
        scores=scores,
        hits=ious[:, None] >= IOUS,
        ignored=np.zeros((len(scores), len(IOUS)), np.bool_),
        gt_images=scene.images,
        gt_labels=np.zeros(len(scene.images), np.int64),
    )
    return pack(rows, ["object"], list(range(scene.num_images)))


def ap_of(matches: MatchedRecords, weights: NDArray[np.integer]) -> Floats:
    """Returns AP (B,)."""
    return mean_over_classes(average_precision(matches, weights).mean(axis=2))


def quality_curve(rng: np.random.Generator, num_images: int = 20_000) -> tuple[Floats, Floats]:
    """Returns qualities and the AP of each on many images."""
    scene = make_scene(rng, num_images)
    qualities = np.linspace(-SLOPE_SPAN, SLOPE_SPAN, 9)
    once = np.ones((1, num_images), np.int32)
    taste = rng.normal(0, TASTE, num_images)
    ap = np.array([ap_of(detect(np.random.default_rng(1), scene, q, taste), once)[0] for q in qualities])
    smooth = np.polynomial.Polynomial.fit(qualities, ap, 3)
    return qualities, np.asarray(smooth(qualities), np.float64)


def experiments(
    curve: tuple[Floats, Floats], num_images: int, deviations: tuple[float, float], count: int
) -> Iterator[Experiment]:
    """Yields ``count`` experiments."""
    qualities, ap = curve
    middle = float(np.interp(0.0, qualities, ap))
    for number in range(count):
        rng = np.random.default_rng((num_images, round(1e4 * sum(deviations)), number))
        scene = make_scene(rng, num_images)
        drawn = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=RESAMPLES)
        means = middle + GAP * (np.arange(ARMS) == 0)
        spread = np.resize(np.array(deviations), ARMS)
        truths = means + spread * rng.normal(0, 1, (max(SEEDS), ARMS))
        values, influence, resampled = np.empty_like(truths), [], np.empty((RESAMPLES, ARMS))
        for arm in range(ARMS):
            taste = rng.normal(0, TASTE, num_images)
            for seed in range(max(SEEDS)):
                quality = float(np.interp(truths[seed, arm], ap, qualities))
                matches = detect(rng, scene, quality, taste)
                statistic = Statistic(
                    names=("AP",),
                    compute=lambda weights, matches=matches: ap_of(matches, weights)[:, None],
                    images=np.array([num_images]),
                )
                sample = jackknife(statistic, num_images)
                values[seed, arm] = sample.values[0]
                influence.append(sample.influence[:, 0])
                if seed == 0:
                    resampled[:, arm] = ap_of(matches, drawn)
        shaped = np.stack(influence, axis=1).reshape(-1, ARMS, max(SEEDS))
        yield Experiment(values=values, influence=np.moveaxis(shaped, 2, 0), truths=truths, resampled=resampled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The claims about all pairs of one experiment with n seeds; arrays over the pairs."""

    seeds: int
    difference: Floats
    truth: Floats  # of these detectors
    noise: Noise
    old_p: Floats  # of the old rule


def analyse(experiment: Experiment, seeds: int) -> Analysis:
    values, influence = experiment.values[:seeds], experiment.influence[:seeds]
    a, b = PAIRS
    images = np.full(len(a), influence.shape[1])
    noise = pair_noise((values[:, a], influence[:, :, a]), (values[:, b], influence[:, :, b]), images)
    difference = values[:, b].mean(axis=0) - values[:, a].mean(axis=0)
    truths = experiment.truths[:seeds].mean(axis=0)
    resampled = experiment.resampled[:, b] - experiment.resampled[:, a]
    return Analysis(
        seeds=seeds,
        difference=difference,
        truth=truths[b] - truths[a],
        noise=noise,
        old_p=welch_p(difference, noise) if seeds > 1 else percentile_p(difference, resampled),
    )


def welch_p(difference: Floats, noise: Noise) -> Floats:
    """Returns the p-values of the old rule for several seeds."""
    total = noise.images + noise.seeds.sum(axis=-1)
    squares = noise.images**2 / noise.image_freedom + (noise.seeds**2 / noise.seed_freedom).sum(axis=-1)
    return 2 * stdtr(total**2 / squares, -np.abs(difference) / np.sqrt(total))


def percentile_p(difference: Floats, resampled: Floats) -> Floats:
    """Returns at which level the old rule's interval, percentiles of resampled images, ends at zero."""
    below = (resampled - resampled.mean(axis=0) + difference <= 0).mean(axis=0)
    return 2 * np.minimum(below, 1 - below)


def covered(analysis: Analysis) -> dict[str, float]:
    """Returns the share of the pairs whose own 95 % interval holds the truth."""
    of_detectors = np.abs(analysis.difference - analysis.truth) <= images_half_width(analysis.noise, ALPHA)
    of_methods = np.abs(analysis.difference + GAP * (PAIRS[0] == 0)) <= half_width(analysis.noise, ALPHA)
    return {"detectors": float(of_detectors.mean())} | (
        {"methods": float(of_methods.mean())} if analysis.seeds > 1 else {}
    )


def outcome(analysis: Analysis, experiment: Experiment, variants: int) -> dict[str, Any]:
    """Returns the outcome of comparing some variants: rates are 0 or 1, power is the share of the pairs with a gap."""
    equal, gap = (PAIRS[0] > 0) & (PAIRS[1] <= variants), PAIRS[1] < variants
    better = PAIRS[0][gap] == 0  # of the pairs in ``gap``
    count = int(equal.sum())
    missed = np.abs(analysis.difference - analysis.truth) > images_half_width(analysis.noise, ALPHA / count)
    found: dict[str, Any] = {
        "detectors_false": missed[equal].any(),
        "old_false": (analysis.old_p[equal] <= ALPHA).any(),
        "old_power": (analysis.old_p[gap] <= ALPHA)[better].mean(),
    }
    if analysis.seeds == 1:
        return found
    if variants == VARIANTS[-1]:
        found |= across_heads(experiment, analysis.seeds)
    p = p_value(analysis.noise, analysis.difference, arms=variants)
    pooled = {name: _pooled_claims(analysis, experiment, pairs) for name, pairs in (("e", equal), ("g", gap))}
    return found | {
        "false": (p[equal] <= ALPHA).any(),
        "false_beside_gap": (p[gap] <= ALPHA)[~better].any(),
        "power": (p[gap] <= ALPHA)[better].mean(),
        "pooled_false": pooled["e"].any(),
        "pooled_power": pooled["g"][better].mean(),
        "smallest": [p[equal].min(), analysis.old_p[equal].min()],
        "of_gap": [p[gap][better], analysis.old_p[gap][better]],
    }


def across_heads(experiment: Experiment, seeds: int) -> dict[str, Any]:
    """Returns the outcome of comparing two variants under three heads, with several seeds."""
    equal, pooled, gap = (
        [found.contrast for found in compare_heads(_samples(experiment, seeds, heads), heads, pool=pool).interactions]
        for heads, pool in ((EQUAL_HEADS, False), (EQUAL_HEADS, True), (GAP_HEADS, False))
    )
    truths = experiment.truths[:seeds].mean(axis=0)
    gains = {head: truths[int(named["b"])] - truths[int(named["a"])] for head, named in EQUAL_HEADS.items()}
    differences = [gains[second] - gains[first] for first, second in combinations(gains, 2)]
    detectors = zip(differences, (contrast.detectors["AP"] for contrast in equal), strict=True)
    return {
        "heads_false": any(contrast.methods and contrast.methods["AP"].proven for contrast in equal),
        # The first head alone has a gain, of 2 AP.
        "heads_power": np.mean([bool(contrast.methods and contrast.methods["AP"].proven) for contrast in gap[:2]]),
        "heads_pooled_false": any(contrast.methods and contrast.methods["AP"].proven for contrast in pooled),
        "heads_detectors_false": not all(claim.low <= truth <= claim.high for truth, claim in detectors),
    }


def _samples(experiment: Experiment, seeds: int, heads: Mapping[str, Mapping[str, str]]) -> dict[str, list[Sample]]:
    """Returns the arms of ``heads`` as the intervals take them."""
    images = np.array([experiment.influence.shape[1]])
    return {
        arm: [
            Sample(names=("AP",), values=values[[int(arm)]], influence=influence[:, [int(arm)]], images=images)
            for values, influence in zip(experiment.values[:seeds], experiment.influence[:seeds], strict=True)
        ]
        for named in heads.values()
        for arm in named.values()
    }


def _pooled_claims(analysis: Analysis, experiment: Experiment, pairs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the claimed ``pairs`` with one seed deviation for all of their arms."""
    arms, n = np.unique(PAIRS[:, pairs]), analysis.seeds
    variance = experiment.values[:n, arms].var(axis=0, ddof=1).mean()
    pooled = pool_seeds(analysis.noise, variance, len(arms) * (n - 1.0), np.array([n, n]))
    return (np.abs(analysis.difference) > half_width(pooled, ALPHA, arms=len(arms)))[pairs]


def simulate(images: int, name: str, count: int, curve: tuple[Floats, Floats]) -> list[dict[str, Any]]:
    """Returns the cells, one for each number of seeds and of variants, of so many images and of deviations ``name``."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    coverage: dict[int, list[dict[str, float]]] = {}
    for experiment in experiments(curve, images, DEVIATIONS[name], count):
        for seeds in SEEDS:
            analysis = analyse(experiment, seeds)
            coverage.setdefault(seeds, []).append(covered(analysis))
            for variants in VARIANTS:
                found.setdefault((seeds, variants), []).append(outcome(analysis, experiment, variants))
    return [
        {"images": images, "deviation": name, "seeds": seeds, "variants": variants, "experiments": count}
        | _rates(outcomes)
        | {"coverage": {key: _mean([row[key] for row in coverage[seeds]]) for key in coverage[seeds][0]}}
        for (seeds, variants), outcomes in found.items()
    ]


def _rates(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rates: dict[str, float | None] = {
        key: float(np.mean([row[key] for row in outcomes])) for key in outcomes[0] if key not in ("smallest", "of_gap")
    }
    if "smallest" not in outcomes[0]:
        return rates
    # At equal rates: both thresholds are moved to where 5 % of the experiments without a gap make a claim.
    limits = np.quantile([row["smallest"] for row in outcomes], ALPHA, axis=0)
    for key, column in (("power_at_5", 0), ("old_power_at_5", 1)):
        claimed = np.mean([row["of_gap"][column] <= limits[column] for row in outcomes])
        rates[key] = float(claimed) if limits[column] < 1 else None  # p-values end at 1, and order nothing there
    return rates


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"value": float(np.mean(values)), "error": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def judge(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each rate that misses its limit beyond the Monte-Carlo error, at 5 % over all cells."""
    rates = [(cell, key) for cell in cells for key in PROMISED if key in cell]
    shares = [(cell, key) for cell in cells if cell["variants"] == VARIANTS[0] for key in cell["coverage"]]
    level = ALPHA / (len(rates) + len(shares))
    broken = []
    for cell, key in rates:
        lowest = share_interval(cell[key], cell["experiments"], 2 * level)[0]
        if lowest > ALPHA:
            broken.append(f"{_name(cell)}: {key} {100 * cell[key]:.1f} %, at least {100 * lowest:.1f} %, expected 5 %")
    for cell, key in shares:
        share, asked = cell["coverage"][key], COVERAGE.get(cell["images"], 0.94)
        highest = share["value"] - float(ndtri(level)) * share["error"]
        if highest < asked:
            broken.append(f"{_name(cell)}: {key} covered {100 * share['value']:.1f} %, expected {100 * asked:.0f} %")
    return broken


def share_interval(share: float, count: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the interval of Clopper and Pearson of a rate that was ``share`` in ``count`` experiments."""
    hits = share * count
    low = betaincinv(hits, count - hits + 1, alpha / 2) if hits else 0.0
    high = betaincinv(hits + 1, count - hits, 1 - alpha / 2) if hits < count else 1.0
    return float(low), float(high)


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['images']} images, deviation {cell['deviation']}, {cell['seeds']} seeds, {cell['variants']} variants"


COLUMNS = {
    "images": "images",
    "deviation": "seed deviation, AP",
    "seeds": "seeds",
    "false": "false",
    "power": "power",
    "pooled_false": "pooled: false",
    "pooled_power": "power",
    "detectors_false": "detectors: false",
}


HEADS_RATES = ("false", "power", "pooled_false", "detectors_false")


def heads_table(cells: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the rows of the table of interactions: rates in percent with their Monte-Carlo intervals."""
    rows = []
    for cell in (cell for cell in cells if "heads_false" in cell):
        row = [str(cell[key]) for key in ("images", "deviation", "seeds")]
        for share in (cell[f"heads_{rate}"] for rate in HEADS_RATES):
            low, high = share_interval(share, cell["experiments"])
            row.append(f"{100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}]")
        rows.append(row)
    return rows


def table(cells: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the rows of the table, percent for 2 / 4 / 7 variants, and coverage."""
    rows = []
    for first in (cell for cell in cells if cell["variants"] == VARIANTS[0]):
        same = [c for c in cells if all(c[key] == first[key] for key in ("images", "deviation", "seeds"))]
        shown = [str(first[key]) for key in ("images", "deviation", "seeds")]
        shown += [
            " / ".join("-" if c[key] is None else f"{100 * c[key]:.0f}" for c in same if key in c) or "-"
            for key in list(COLUMNS)[3:]
        ]
        rows.append([*shown, " / ".join(f"{100 * share['value']:.0f}" for share in first["coverage"].values())])
    return rows


def _record(cells: Sequence[dict[str, Any]]) -> str:
    """Returns JSON with a line for each of ``cells``."""
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    return f'{{"cells": [\n{lines}\n],\n"broken": {json.dumps(judge(cells))}}}\n'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="fewer experiments, and none on 500 images: a minute")
    parser.add_argument("--json", type=Path, metavar="F", help="write all cells to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/claims.md")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    curve = quality_curve(np.random.default_rng(0))
    tasks = [
        (images, name, count, curve)
        for images, count in (QUICK if args.quick else IMAGES).items()
        for name in DEVIATIONS
    ]
    cells: list[dict[str, Any]] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for part in pool.map(simulate, *zip(*tasks, strict=True)):
            cells += part
            if args.json:  # what is there so far
                args.json.write_text(_record(cells), "utf-8")
    tables = (
        ([*COLUMNS.values(), "coverage: detectors / methods"], table(cells)),
        (
            ["images", "seed deviation, AP", "seeds", "false", "power", "pooled: false", "detectors: false"],
            heads_table(cells),
        ),
    )
    for header, rows in tables:
        if args.markdown:
            print("\n".join(f"| {' | '.join(row)} |" for row in [header, ["---:"] * len(header), *rows]) + "\n")
        else:
            print(text_table(header, rows) + "\n")
    broken = judge(cells)
    print("\n".join(broken) or f"all {len(cells)} cells keep the promises, within the Monte-Carlo error")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
