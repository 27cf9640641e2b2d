"""Compares classifiers that were tested on the same images: figures with intervals, claims, and a report.

A test leaves each image's share of every figure in per_image.json, since top-1 accuracy and F2 are means over images: a
bit for each image where all are right or wrong, else a list of numbers.  Intervals and claims are those of
evaluation/inference.py, as for detectors.

Shapes: n seeds, N images, M figures, B resamples.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from detection.classification.config import ClassificationConfig
from detection.config.load import load_config
from detection.config.schema import flatten
from detection.evaluation.inference import Claim, Comparison, Interval, Pair, compare_samples
from detection.evaluation.jackknife import Sample, Statistic, jackknife
from detection.evaluation.metrics import named
from detection.files import write_text

__all__ = ["PER_IMAGE", "compare_classifiers", "dump_shares", "image_statistic", "read_shares"]

PER_IMAGE = "per_image.json"
NO_DIFFERENCE = ("seed", "output_dir", "device", "data.root", "data.workers")  # these figures decide no comparison


def compare_classifiers(
    variants: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    confidence: float = 0.95,
    pool: bool = False,
    title: str = "Classifiers compared",
    sections: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes comparison.json and report.md of ``variants`` to ``output``; returns the content of the first.

    Args:
        variants: name -> the directory of a run or of a test per seed.
        output: directory, made if needed.
        confidence: confidence of intervals, and 1 minus the rate of false claims.
        pool: use one seed deviation for all variants in claims about methods.
        title: title of the report.
        sections: lines of Markdown that end the report.

    Raises:
        ValueError: fewer than two variants, a run that was not tested, or one on other images.
    """
    if len(variants) < 2:
        raise ValueError(f"a comparison takes two or more variants, NAME=RUN,RUN each; got {list(variants) or 'none'}")
    samples = {name: [_sample(run) for run in runs] for name, runs in variants.items()}
    first_name, first = next((name, own[0]) for name, own in samples.items())
    for name, own in samples.items():
        for run, (digest, _) in zip(variants[name], own, strict=True):
            if digest != first[0]:
                raise ValueError(
                    f"{run} of {name} was tested on other images than {variants[first_name][0]} of {first_name}; test "
                    "them on one data.test"
                )
    seeds = {name: [sample for _, sample in own] for name, own in samples.items()}
    found = compare_samples(seeds, confidence=confidence, pool=pool)
    result = {
        "confidence": confidence,
        "runs": {name: list(map(str, runs)) for name, runs in variants.items()},
        "differences": _differences(variants),
        "pooling": found.pooling and asdict(found.pooling),
        "variants": {name: asdict(variant) for name, variant in found.variants.items()},
        "pairs": [
            {key: value for key, value in asdict(pair).items() if key != "noise"}  # arrays for the claims
            for pair in found.pairs
        ],
    }
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "comparison.json", json.dumps(result, indent=2) + "\n")
    write_text(output / "report.md", _report(title, found, result["differences"], sections))
    return result


def dump_shares(content: Mapping[str, Any]) -> str:
    """Returns ``content``, the digest of "images" and each image's share of "figures" by key, as per_image.json."""
    figures = {key: _packed(shares) for key, shares in content.get("figures", {}).items()}
    return json.dumps({**content, **({"figures": figures} if figures else {})}) + "\n"


def read_shares(run: Path) -> tuple[str, dict[str, Sequence[float]]]:
    """Returns the digest of the images that ``run`` was tested on, and their shares (N,) of every figure.

    Raises:
        ValueError: the run was not tested.
    """
    path = run / PER_IMAGE
    if not path.is_file():
        raise ValueError(f"{run} has no {PER_IMAGE}; train it with data.test, or test it with resdet pretrain --test")
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["images"], {key: _unpacked(values) for key, values in content["figures"].items()}


def _packed(shares: Sequence[float]) -> Any:
    values = np.asarray(shares)
    if not np.isin(values, (0, 1)).all():
        return [*shares]
    bits = np.packbits(values.astype(np.uint8)).tobytes()
    return {"bits": base64.b64encode(bits).decode("ascii"), "count": len(shares)}


def _unpacked(shares: Any) -> Sequence[float]:
    if isinstance(shares, list):
        return shares
    packed = np.frombuffer(base64.b64decode(shares["bits"]), dtype=np.uint8)
    return np.unpackbits(packed, count=shares["count"]).astype(np.float64).tolist()


def image_statistic(shares: Mapping[str, Sequence[float]]) -> Statistic:
    """Returns figures that are means over images, of each image's share (N,) by key."""
    values = np.array([*shares.values()], dtype=np.float64)  # (M, N)
    return Statistic(
        names=tuple(shares),
        compute=lambda weights: (weights @ values.T) / weights.sum(axis=1, keepdims=True),
        images=np.full(len(shares), values.shape[1], dtype=np.int64),
    )


def _sample(run: Path) -> tuple[str, Sample]:
    images, shares = read_shares(run)
    return images, jackknife(image_statistic(shares), len(next(iter(shares.values()))))


def _differences(variants: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, Any]]:
    """Returns the config keys in which the first runs differ, if their directories have a config."""
    paths = {name: runs[0] / "config.yaml" for name, runs in variants.items()}
    if not all(path.is_file() for path in paths.values()):
        return {}
    flat = {name: flatten(load_config(ClassificationConfig, path)) for name, path in paths.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values if key not in NO_DIFFERENCE)
    found = {key: {name: values.get(key) for name, values in flat.items()} for key in keys}
    return {
        key: values for key, values in found.items() if any(v != next(iter(values.values())) for v in values.values())
    }


def _report(
    title: str, found: Comparison, differences: Mapping[str, Mapping[str, Any]], sections: Sequence[str]
) -> str:
    keys = [*next(iter(found.variants.values())).detectors]
    lines = [f"# {title}", "", _best(found, keys[0]), ""]
    lines += [f"Intervals of {100 * found.confidence:g} %; those of pairs hold together.", *_pooled(found), ""]
    for key in keys:
        lines += [f"## {named(key).name}, %", ""]
        lines += ["| variant | seeds | these networks | trained anew |", "|---|---|---|---|"]
        for name, variant in found.variants.items():
            anew = "takes two seeds" if variant.methods is None else _interval(variant.methods[key])
            lines.append(f"| {name} | {variant.seeds} | {_interval(variant.detectors[key])} | {anew} |")
        lines += [
            "",
            "Trained anew:",
            "",
            *_said([(pair, None if pair.methods is None else pair.methods[key]) for pair in found.pairs]),
        ]
        lines += ["", "These networks, on other images:", ""]
        lines += [*_said([(pair, pair.detectors[key]) for pair in found.pairs]), ""]
    if differences:
        lines += [
            "## What differs",
            "",
            f"| key | {' | '.join(found.variants)} |",
            f"|---|{'---|' * len(found.variants)}",
        ]
        lines += [f"| `{key}` | {' | '.join(map(_cell, values.values()))} |" for key, values in differences.items()]
    return "\n".join([*lines, "", *sections]).rstrip() + "\n"


def _best(found: Comparison, key: str) -> str:
    """Returns the variants that are not proven worse than another: as methods, if there are enough seeds."""
    anew = all(pair.methods is not None for pair in found.pairs)
    claims = [(pair, pair.detectors[key] if pair.methods is None else pair.methods[key]) for pair in found.pairs]
    worse = {pair.a if claim.value > 0 else pair.b for pair, claim in claims if claim.proven}
    left = [name for name in found.variants if name not in worse]
    what = f"by {named(key).name}, {'trained anew' if anew else 'these networks on other images'}"
    if len(left) == 1 and all(claim.proven for pair, claim in claims if left[0] in (pair.a, pair.b)):
        return f"{left[0]} is proven best {what}."
    return f"No variant is proven best {what}; not proven worse than another: {', '.join(left)}."


def _pooled(found: Comparison) -> list[str]:
    if found.pooling is None:
        return []
    pooling = found.pooling
    said = ", ".join(
        f"{100 * deviation:.2f} points of {named(key).name} (p {pooling.equal_p[key]:.2f} that it is one)"
        for key, deviation in pooling.deviation.items()
    )
    return ["", f"All variants take one deviation of a seed, of {pooling.freedom} degrees of freedom: {said}."]


def _interval(figure: Interval) -> str:
    return f"{100 * figure.value:.2f} ({100 * figure.low:.2f} to {100 * figure.high:.2f})"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")


def _said(claims: Sequence[tuple[Pair, Claim | None]]) -> list[str]:
    """Returns the claims about pairs: a line for each pair that differs, and one for all others."""
    lines, alike, missing = list[str](), list[str](), dict[str, None]()
    for pair, claim in claims:
        if claim is None:
            missing[pair.missing or "two seeds"] = None
            continue
        low, high = 100 * claim.low, 100 * claim.high
        if claim.proven:
            better, worse = (pair.b, pair.a) if claim.value > 0 else (pair.a, pair.b)
            near, far = sorted((abs(low), abs(high)))
            lines.append(f"- {better} is better than {worse} by {near:.2f} to {far:.2f} points")
        else:
            alike.append(f"{pair.a} and {pair.b} ({low:.2f} to {high:.2f} points)")
    if alike:
        lines.append(f"- no difference shown between {'; '.join(alike)}")
    if missing:
        what = ", ".join(missing) if len(missing) == 1 else "a second seed of every variant that has one"
        lines.append(f"- nothing is said of the methods, which takes {what}")
    return lines
