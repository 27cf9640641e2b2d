import json
import shutil
from typing import Any

import pytest

from detection.data.corruptions import CORRUPTIONS
from detection.report.robustness import robustness_numbers, robustness_section, write_robustness


@pytest.fixture
def runs(make_run, tmp_path):
    """Writes runs whose detections are worse on strongly blurred images and the same on all others."""

    def make(count: int):
        for seed in range(count):
            run = make_run(tmp_path / "runs" / str(seed), skill=0.95, seed=seed)
            worse = make_run(tmp_path / "worse" / str(seed), skill=0.4, seed=seed)
            (run / "robustness").mkdir()
            for corruption in CORRUPTIONS:
                source = worse if corruption.name == "blur_3" else run
                shutil.copy(source / "detections.json", run / "robustness" / f"{corruption.name}.json")
        return [tmp_path / "runs" / str(seed) for seed in range(count)]

    return make


def test_a_loss_is_found_where_there_is_one_and_shown(runs) -> None:
    (run,) = runs(1)
    numbers: Any = robustness_numbers([run])
    blur, noise = (numbers["corruptions"][name] for name in ("blur_3", "noise_3"))
    assert blur["loss"]["proven"]
    assert blur["loss"]["high"] < 0
    assert blur["loss"]["value"] == pytest.approx(blur["AP"]["value"] - numbers["clean"]["value"])
    assert (noise["loss"]["value"], noise["loss"]["proven"]) == (0, False)
    assert noise["AP"] == numbers["clean"]
    blocks: Any = robustness_section({"a": numbers, "b": None}, 0.95).blocks
    lost, reached = blocks
    assert lost.header == ["images", "a"]  # the variants that were tested
    assert [row[0] for row in reached.rows] == ["clean", *(corruption.name for corruption in CORRUPTIONS)]
    assert {row[0]: row[1] for row in lost.rows}["blur_3"].endswith("*")
    assert robustness_section({"b": None}, 0.95).blocks == []
    assert len(write_robustness(run).splitlines()) == 2 + len(CORRUPTIONS)
    assert json.loads((run / "robustness.json").read_text())["seeds"] == 1
    (run / "robustness" / "jpeg_2.json").unlink()
    assert robustness_numbers([run]) is None
    assert robustness_numbers([]) is None
    with pytest.raises(ValueError, match="robustness lacks"):
        write_robustness(run)


def test_three_seeds_are_read_together(runs) -> None:
    numbers: Any = robustness_numbers(runs(3))
    assert numbers["seeds"] == 3
    assert numbers["corruptions"]["blur_3"]["loss"]["proven"]
