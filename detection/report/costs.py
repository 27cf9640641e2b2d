"""Costs of each variant of an experiment, and accuracy against cost."""

from __future__ import annotations

from typing import Any

from detection.evaluation.metrics import percent
from detection.pages.page import Block, Figure, Section, Table, Text
from detection.pages.plots import Point, scatter
from detection.report.latency import latency_blocks
from detection.report.words import bar, deciding, number, spread

__all__ = ["cost_section"]

COSTS = {"gflops": "GFLOPs per image", "latency": "milliseconds per image, p50"}


def cost_section(numbers: dict[str, Any]) -> Section:
    """Returns the section with cost and accuracy of each variant, and figures of accuracy against cost."""
    trained = {name: variant for name, variant in numbers["variants"].items() if not variant["files"]}
    rows = [_cost_row(name, variant) for name, variant in trained.items()]
    notes = {v["costs"]["flops_note"] for v in numbers["variants"].values() if "flops_note" in v["costs"]}
    devices = {v["costs"]["latency_ms"]["device"] for v in numbers["variants"].values() if "latency_ms" in v["costs"]}
    header = [
        "variant",
        "parameters, M",
        "trained, M",
        "head, M",
        "GFLOPs",
        "ms p50",
        "ms p95",
        "test GiB",
        "training GiB",
        "training hours",
    ]
    figure = deciding(numbers)
    worth = (
        f"What it is worth: {figure} in percent, per GFLOP and per millisecond (p50). On the Pareto front: no variant "
        "that costs at most as much is proven better."
    )
    blocks: list[Block] = [
        Table("What each variant costs; M: millions of parameters.", header, rows),
        Table(
            worth, ["variant", figure, f"{figure} per GFLOP", f"{figure} per ms", "Pareto front"], _worth_rows(numbers)
        ),
        *latency_blocks(numbers["latency"], [*trained]),
        *_cost_figures(numbers),
    ]
    if notes:
        blocks.append(Text(f"GFLOPs: {'; '.join(sorted(notes))}. Time on {', '.join(sorted(devices))}."))
    return Section("Accuracy against cost", blocks)


def _cost_row(name: str, variant: dict[str, Any]) -> list[str]:
    costs = variant["costs"]
    latency = costs.get("latency_ms", {})
    return [
        name,
        *(_millions(costs.get(key)) for key in ("parameters", "trainable_parameters", "head_parameters")),
        number(costs.get("gflops")),
        number(latency.get("p50"), 0),
        number(latency.get("p95"), 0),
        number(costs.get("peak_memory_gib"), 2),
        spread(variant["training_memory_gib"], scale=1, digits=2),
        spread(variant["hours"], scale=1, digits=2),
    ]


def _worth_rows(numbers: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, variant in numbers["variants"].items():
        if variant["files"]:
            continue
        fronts = [what for what, key in (("GFLOPs", "gflops"), ("time", "latency")) if variant["pareto"][key]]
        ratios = (_scaled(variant[key]) for key in ("ap_per_gflop", "ap_per_ms"))
        rows.append([name, spread(variant["metrics"][deciding(numbers)]), *ratios, " and ".join(fronts) or "no"])
    return rows


def _millions(count: int | None) -> str:
    return number(None if count is None else count / 1e6)


def _scaled(ratio: float | None) -> str:
    return number(None if ratio is None else 100 * ratio, 2)


def _cost_figures(numbers: dict[str, Any]) -> list[Block]:
    figures: list[Block] = []
    for key, label in COSTS.items():
        costs = {
            name: v["costs"].get("gflops") if key == "gflops" else v["costs"].get("latency_ms", {}).get("p50")
            for name, v in numbers["variants"].items()
        }
        points = [
            Point(
                name=name, cost=cost, bar=bar(variant["intervals"][deciding(numbers)]), on_front=variant["pareto"][key]
            )
            for (name, variant), cost in zip(numbers["variants"].items(), costs.values(), strict=True)
            if cost is not None
        ]
        if points:
            figures.append(
                Figure(
                    f"ap_against_{key}",
                    scatter(f"ap_against_{key}", points, x_label=label, y_label=f"{deciding(numbers)}, percent"),
                    f"{deciding(numbers)} against {label}. Hollow: one that costs at most as much is proven better; "
                    "the dashed line joins the others.",
                    "; ".join(
                        f"{p.name}: {number(p.cost)} {label}, {deciding(numbers)} {percent(p.bar.value)}"
                        for p in points
                    ),
                )
            )
    return figures
