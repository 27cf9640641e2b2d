from typing import Any

from detection.pages.page import Table
from detection.report.latency import latency_blocks


def place(**variants: tuple[float, float, str | None]) -> dict[str, Any]:
    rows = {name: {"p50": p50, "p95": p95, "weights": weights} for name, (p50, p95, weights) in variants.items()}
    return {"host": "laptop", "described": "CPU, 4 threads", "precision": "bf16", "batch": 8, "variants": rows}


def test_a_column_for_each_place_and_a_dash_for_what_is_missing() -> None:
    blocks = latency_blocks([place(a=(12.34, 15, "run"), b=(250.4, 300, None)), place(a=(1, 2, "run"))], ["a", "b"])
    (table,) = blocks
    assert isinstance(table, Table)
    assert table.header[1] == "laptop: CPU, 4 threads, bf16, 8 images at once"
    assert table.rows == [["a", "12.3 (15.0)", "1.0 (2.0)"], ["b", "250 (300)", "-"]]
    assert table.caption.endswith("detector's: b.")


def test_nothing_measured_again_shows_nothing() -> None:
    assert latency_blocks([], ["a"]) == []
