"""Training curves from metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from detection.report.reading import read_metrics


def test_a_repeated_iteration_counts_once_and_a_cut_line_not_at_all(tmp_path: Path) -> None:
    lines = [
        '{"iteration": 20, "l": 2.0}',
        '{"iteration": 10, "l": 9}',
        '{"iteration": 20, "l": 1.5}',
        '{"iteration": 3',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path, "l") == ([10, 20], [9.0, 1.5])
    assert read_metrics(tmp_path, "other") == ([], [])


def test_no_file_is_no_curve(tmp_path: Path) -> None:
    assert read_metrics(tmp_path, "l") == ([], [])
