"""4-step alternating training of an RPN and a Fast R-CNN, which share their trunk in the end.

1. an RPN, from the backbone's weights;
2. a Fast R-CNN, from the backbone's weights again, on the stored proposals of step 1;
3. an RPN on the frozen trunk of step 2;
4. the box stage on the same frozen trunk, on the stored proposals of step 3.

Source: Faster R-CNN, section 3.2; "Deep Residual Learning" trains all its detectors this way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.data.loader import build_test_loader, load_index
from detection.data.proposals import write_proposals
from detection.engine.checkpoint import load_detector_weights, read_checkpoint
from detection.engine.device import choose_device
from detection.engine.distributed import EVALUATION_TIMEOUT, is_main, only_main, start, together
from detection.engine.evaluate import propose
from detection.engine.trainer import is_finished
from detection.progress import SCREEN
from detection.tasks.train import run_training

__all__ = ["Step", "alternating_steps", "run_alternating", "write_training_proposals"]

Part = Literal["backbone", "rpn", "box_stage"]


@dataclass(frozen=True, slots=True)
class Step:
    """One of the four trainings."""

    config: DetectionConfig
    fixed: tuple[Part, ...]  # parts that are not trained
    proposals: Path | None = None  # file of the proposals that the box stage is trained on


def alternating_steps(config: DetectionConfig, output: Path) -> tuple[Step, ...]:
    """Returns the four steps; their files lie in ``output``/step1 to step4."""

    def step(number: int, *fixed: Part, init: int | None = None, proposals: int | None = None) -> Step:
        lengths = config.alternating
        rpn = "rpn" not in fixed
        last = number == 4  # the other steps leave the RPN or the box stage untrained
        solver = replace(
            config.solver,
            iterations=lengths.rpn_iterations if rpn else lengths.box_iterations,
            steps=lengths.rpn_steps if rpn else lengths.box_steps,
            images_per_step=(lengths.rpn_images_per_step if rpn else lengths.box_images_per_step)
            or config.solver.images_per_step,
            patience=config.solver.patience if last else 0,
        )
        watched = {"val": config.data.val, "test": config.data.test} if last else {"val": (), "test": ()}
        data = replace(config.data, **watched)
        own = replace(config, solver=solver, data=data)
        if init is not None:
            own = replace(own, init=str(_folder(output, init)), init_classes={})
        return Step(own, fixed, None if proposals is None else _proposals_path(output, proposals))

    return (
        step(1, "box_stage"),
        step(2, "rpn", proposals=1),
        step(3, "backbone", "box_stage", init=2),
        step(4, "backbone", "rpn", init=3, proposals=3),
    )


def run_alternating(
    config: DetectionConfig, output: Path, *, say: Callable[[str], None] = SCREEN.print
) -> dict[str, Any]:
    """Runs the steps that are not done yet and returns the result of step 4; ``output``/step4 is the detector.

    Raises:
        ValueError: as ``run_training``.
        NotFiniteError: as ``run_training``.
    """
    start(choose_device(config.device))
    say, result = only_main(say), dict[str, Any]()
    for number, step in enumerate(alternating_steps(config, output), start=1):
        folder = _folder(output, number)
        if number < 4 and is_finished(folder, step.config):  # the test of the last step may be missing
            say(f"step {number} is done: {folder}")
            continue
        if step.proposals is not None:
            with together("writing proposals", timeout=EVALUATION_TIMEOUT):
                if is_main() and not step.proposals.is_file():
                    write_training_proposals(step.config, _folder(output, number - 1), step.proposals)
        say(f"step {number} of 4: {folder}")
        result = run_training(step.config, folder, resume=True, fixed=step.fixed, proposals=step.proposals)
    return result


def write_training_proposals(config: DetectionConfig, run: Path, path: Path) -> None:
    """Writes the proposals of the RPN of ``run`` on ``config.data.train`` to ``path``, as many as in training."""
    index = load_index(config.data, config.data.train, key="data.train", say=print, limit=config.data.limit)
    rpn = replace(config.rpn, pre_nms_test=config.rpn.pre_nms_train, post_nms_test=config.rpn.post_nms_train)
    device = choose_device(config.device)
    detector = build_detector(replace(config, rpn=rpn), len(index.class_names), pretrained=False)
    load_detector_weights(detector, read_checkpoint(run), index.class_names)
    loader = build_test_loader(index, config.data)
    write_proposals(path, propose(detector.to(device), loader, index, device=device), index)


def _folder(output: Path, number: int) -> Path:
    return output / f"step{number}"


def _proposals_path(output: Path, number: int) -> Path:
    return output / f"proposals{number}.safetensors"
