"""The way from the command to a loss is seven functions of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detection.data.digits import write_digits
from detection.model import losses

ROOT = Path(__file__).parents[1]
CONFIG = """
backbone: {name: resnet18, norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, pre_nms_train: 64, post_nms_train: 16}
box: {samples_per_image: 16}
data: {train: [digits:train], shorter_side: 64, longer_side: 96, workers: 0}
solver: {iterations: 1, images_per_step: 2}
device: cpu
"""


def own_functions() -> list[str]:
    """The functions of the packages on the stack, the command first."""
    frames = [frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(ROOT / "detection")]
    names = [f"{Path(frame.filename).stem}.{frame.function}" for frame in frames]
    # A context manager of torch is none of them, and a comprehension is no function.
    return [name for name in reversed(names) if not name.endswith((".<listcomp>", ".<genexpr>", ".<dictcomp>"))]


@pytest.mark.parametrize(("stage", "last"), [("rpn", "rpn.losses"), ("box_stage", "box_stage.losses")])
def test_seven_functions(
    stage: str, last: str, tmp_path: Path, resdet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chains: list[list[str]] = []

    def noted(deltas: Tensor, targets: Tensor, beta: float, *, weight: Tensor) -> Tensor:
        chains.append(own_functions())
        return losses.smooth_l1(deltas, targets, beta, weight=weight)

    monkeypatch.setattr(f"detection.model.{stage}.smooth_l1", noted)
    root = write_digits(tmp_path / "data", num_train=2, num_test=1).parent
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    torch.manual_seed(0)
    ended = resdet("train", config, "--output-dir", tmp_path / "run", f"data.root={root}")
    assert ended.status == 0, ended.err
    ways = {tuple(chain) for chain in chains}
    assert ways == {("cli.main", "train.run_training", "trainer.run", "loop.step", "faster_rcnn.forward", last)}
