"""A tiny data set and detector, its finished run, and what tests of whole runs do with them; once a session."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, parse_config
from detection.data.digits import write_digits
from detection.engine.log import RunLog
from detection.engine.signals import StoppedError
from detection.tasks.train import run_training

TINY = """
backbone: {name: timm:test_resnet, norm: bn, fpn: true, fpn_channels: 16}
anchors: {sizes: [16, 24, 32, 48, 64]}
rpn: {channels: 16, allow_outside: true, samples_per_image: 16, min_size: 2,
  pre_nms_train: 64, pre_nms_test: 200, post_nms_train: 16, post_nms_test: 64}
box: {samples_per_image: 8, head: fc, head_channels: 16}
test: {score_threshold: 0.01}
data: {train: [digits:train], test: [digits:test], shorter_side: 64, longer_side: 96, workers: 0}
solver: {iterations: 4, steps: [3], clip_norm: 5, checkpoint_every: 2, log_every: 1, layout: channels_last}
device: cpu
"""


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The data root of six training and two test images."""
    return write_digits(tmp_path_factory.mktemp("digits"), num_train=6, num_test=2).parent


@pytest.fixture(scope="session")
def tiny(digits) -> DetectionConfig:
    """A detector of 0.4 million weights that trains for four steps with a checkpoint after every second one."""
    return Lab.changed(parse_config(DetectionConfig, TINY), data__root=str(digits))


@pytest.fixture
def tiny_file(tiny: DetectionConfig, tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny))
    return tmp_path / "tiny.yaml"


@dataclass(frozen=True, slots=True)
class Run:
    """The directory of a run, and what its training returned."""

    path: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> Run:
    """A run that nothing interrupted; a test that writes copies it."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    return Run(path, run_training(tiny, path))


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved on the way out."""


class Lab:
    """What tests do with configs and runs."""

    def __init__(self, finished: Run) -> None:
        self.finished = finished

    @staticmethod
    def changed(config: DetectionConfig, **values: Any) -> DetectionConfig:
        """``config`` with other values, such as ``solver__iterations=2, seed=5``."""
        for key, value in values.items():
            section, _, name = key.rpartition("__")
            own = {section: replace(getattr(config, section), **{name: value})} if section else {name: value}
            config = replace(config, **own)
        return config

    @staticmethod
    def weights_of(run: Path, iteration: int = 4) -> dict[str, Tensor]:
        return load_file(run / "checkpoints" / f"{iteration:07d}.safetensors")

    @staticmethod
    def metrics_of(run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def iterations(self, run: Path) -> list[int]:
        return [line["iteration"] for line in self.metrics_of(run)]

    @staticmethod
    def differing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
        """Names of the tensors that differ by a bit; the names must be the same."""
        assert set(found) == set(expected)
        return [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]

    def is_finished(self, run: Path) -> None:
        """Asserts that ``run`` ended with the weights of the one that nothing interrupted."""
        assert self.differing(self.weights_of(run), self.weights_of(self.finished.path)) == []

    @contextmanager
    def ends_at(self, count: int, how: signal.Signals | type[BaseException] = Killed) -> Iterator[type[Killed]]:
        """A context in which a run ends right after it reported ``count`` steps: killed, or by a signal or an error."""
        record, seen = RunLog.metrics, 0

        def interrupt(log: RunLog, iteration: int, values: Mapping[str, float]) -> None:
            nonlocal seen
            record(log, iteration, values)
            seen += 1
            if seen == count and isinstance(how, signal.Signals):
                os.kill(os.getpid(), how)
            elif seen == count and not isinstance(how, signal.Signals):
                raise how

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "metrics", interrupt)
            yield Killed

    def run_until(self, config: DetectionConfig, output: Path, count: int, how: Any = Killed) -> str:
        """Trains until the process is killed, or ends in another way, right after ``count`` steps; gives the error."""
        error = StoppedError if isinstance(how, signal.Signals) else how
        with self.ends_at(count, how), pytest.raises(error) as ended:
            run_training(config, output)
        return str(ended.value)


@pytest.fixture(scope="session")
def lab(finished) -> Lab:
    return Lab(finished)
