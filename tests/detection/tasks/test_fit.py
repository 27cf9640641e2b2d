"""Mirrors detection/tasks/fit.py; a stand-in step has as much memory as a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.loader import load_data
from detection.data.transforms import Resize
from detection.tasks import fit
from detection.tasks.fit import fewest_parts, largest_images, smallest_accumulate
from detection.tasks.init import Wishes, init_folder

MadeFolder = Callable[..., Path]
IMAGES = 4


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


class TestParts:
    """Whole trials, on data as resdet init writes it."""

    @pytest.fixture
    def config(self, made_folder, tmp_path) -> DetectionConfig:
        project = init_folder(made_folder("csv"), tmp_path / "run", wishes=Wishes(start="none"), say=lambda _: None)
        changes = ("data.shorter_side=32", "data.longer_side=64", f"solver.images_per_step={IMAGES}", "device=cpu")
        return load_config(DetectionConfig, project.config, changes)

    def parts(self, config: DetectionConfig, monkeypatch: pytest.MonkeyPatch, at_once: int) -> int:
        """The parts that are found where no more than ``at_once`` images have memory."""
        take_step = fit.step

        def with_less_memory(state: Any, replica: Any, feed: Any, *rest: Any) -> Any:
            if any(len(part.images) > at_once for part in feed._next):
                raise torch.OutOfMemoryError("tried to allocate 3 GiB")
            return take_step(state, replica, feed, *rest) if at_once == 1 else {}  # the fewest images, for time

        monkeypatch.setattr(fit, "step", with_less_memory)
        index = load_data(config.data, say=lambda _: None)["train"]
        detector = build_detector(config, len(index.class_names), pretrained=False)
        before = {name: value.clone() for name, value in detector.state_dict().items()}
        found = fewest_parts(config, detector, index, torch.device("cpu"), lambda _: None)
        assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
        return found

    @pytest.mark.parametrize(("at_once", "expected"), [(1, 4), (2, 2), (3, 2), (IMAGES, 1)])
    def test_the_memory_decides_and_the_model_stays(self, config, monkeypatch, at_once, expected) -> None:
        assert self.parts(config, monkeypatch, at_once) == expected

    def test_too_little_for_one_image_names_the_knobs(self, config, monkeypatch) -> None:
        with pytest.raises(MemoryError, match=r"data\.shorter_side.*\(32, 64\).*solver\.precision"):
            self.parts(config, monkeypatch, 0)


def test_a_cpu_says_that_nothing_has_to_fit(made_folder, resdet, tmp_path) -> None:
    begun = resdet("init", made_folder("csv"), "--from", "none", "--output-dir", tmp_path / "run")
    assert begun.status == 0
    short = ("solver.iterations=1", "solver.warmup_iterations=0", "data.workers=0", "data.val=[]", "data.test=[]")
    trained = resdet("train", tmp_path / "run/init/config.yaml", "--fit", "device=cpu", "solver.log_sinks=[]", *short)
    assert (trained.status, trained.err) == (0, "")
    assert "--fit: a CPU" in trained.out
