from typing import Any

import pytest
import torch

from detection.build import build_detector
from detection.data.loader import load_data
from detection.data.transforms import Resize
from detection.tasks import fit
from detection.tasks.fit import fewest_parts, largest_images, smallest_accumulate


@pytest.mark.parametrize(("at_once", "expected"), [(12, 1), (11, 2), (6, 2), (5, 3), (1, 12), (0, None)])
def test_the_fewest_parts_that_are_small_enough(at_once, expected) -> None:
    tried = list[int]()

    def holds(accumulate: int) -> bool:
        tried.append(accumulate)
        return 12 // accumulate <= at_once

    assert smallest_accumulate(12, holds) == expected
    assert len(tried) <= 3


def test_the_largest_images_have_objects_and_go_together(make_index) -> None:
    sizes = [(60, 80), (80, 60), (60, 120), (120, 60), (60, 90), (60, 600)]  # (height, width)
    box = ((0, 0, 9, 9), 0, False)
    index = make_index([[box], [box], [box], [box, box], [box], []], sizes=sizes)
    resize = Resize(60, 1000)
    assert largest_images(index, resize, 2, mixed=False).tolist() == [3, 1]  # upright
    assert largest_images(index, resize, 4, mixed=True).tolist() == [3, 1, 2, 4]


def test_the_memory_decides_the_parts_and_the_model_stays(tiny, lab, monkeypatch) -> None:
    config, take_step, at_once = lab.changed(tiny, solver__images_per_step=4), fit.step, [0]
    index = load_data(config.data, say=lambda _: None)["train"]
    detector = build_detector(config, len(index.class_names), pretrained=False)
    before = {name: value.clone() for name, value in detector.state_dict().items()}

    def with_less_memory(state: Any, replica: Any, feed: Any, *rest: Any) -> Any:
        if any(len(part.images) > at_once[0] for part in feed._next):
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return take_step(state, replica, feed, *rest) if at_once == [1] else {}  # the fewest images, for time

    monkeypatch.setattr(fit, "step", with_less_memory)
    with pytest.raises(MemoryError, match=r"data\.shorter_side.*\(64, 96\).*solver\.precision"):
        fewest_parts(config, detector, index, torch.device("cpu"), lambda _: None)
    for at_once[0], expected in ((1, 4), (2, 2), (3, 2), (4, 1)):
        assert fewest_parts(config, detector, index, torch.device("cpu"), lambda _: None) == expected
        assert lab.differing(detector.state_dict(), before) == []


def test_a_cpu_says_that_nothing_has_to_fit(tiny_file, succeeds, tmp_path) -> None:
    short = ("solver.iterations=1", "data.test=[]", "solver.log_sinks=[]")
    trained = succeeds("train", tiny_file, "--output-dir", tmp_path / "run", "--fit", *short)
    assert "--fit: a CPU" in trained
