"""What test_two_processes.py runs under torchrun: what happened on each rank goes to FOLDER/outcomes.RANK.json.

Every FOLDER/jobs/NAME.yaml is a config, which is trained into FOLDER/NAME; a directory that holds a run goes on.
FOLDER/classifier.yaml is that of a classifier.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as torch_distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detection.classification.config import ClassificationConfig
from detection.classification.task import run_pretraining
from detection.config.detection import AlternatingConfig, DetectionConfig
from detection.config.load import load_config
from detection.engine import distributed
from detection.engine.checkpoint import read_checkpoint
from detection.tasks.alternating import run_alternating
from detection.tasks.test import proposal_recall, run_test
from detection.tasks.train import run_training

# Jobs whose parts are not all trained.
FIXED = {"rpn_alone": ("box_stage",), "boxes_alone": ("rpn", "backbone"), "masks_fixed": ("box_stage",)}


def attempt(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, or its error in words."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  # whatever it is, the test looks at it
        return f"{type(error).__name__}: {error}"


def fail_on(*ranks: int) -> None:
    with distributed.together("reading a batch"):
        if distributed.rank() in ranks:
            raise ValueError(f"no image {distributed.rank()}.jpg")


def shares(count: int) -> list[int] | None:
    return distributed.collect(range(count)[distributed.rank() :: distributed.world_size()])


def shared_statistics() -> list[float]:
    """Running means of a batch norm that has seen other numbers on every rank."""
    layer = nn.BatchNorm1d(1, momentum=1.0)
    layer(torch.tensor([[1.0], [3.0]]) + 10 * distributed.rank())
    distributed.share_buffers(layer)
    return layer.running_mean.tolist() if layer.running_mean is not None else []


def wait_for_a_late_one() -> None:
    """Rank 1 comes later than rank 0 waits."""
    time.sleep(3 * distributed.rank())
    distributed.gather(None, doing="taking step 7", timeout=timedelta(seconds=1))


def wait_inside_a_step() -> None:
    """Rank 1 comes to the gradients later than rank 0 waits for it; in a group of their own, which this breaks."""
    group = torch_distributed.new_group(timeout=timedelta(seconds=2))
    replica = DistributedDataParallel(nn.Linear(1, 1), process_group=group)
    with distributed.exchanges("training"):
        loss = replica(torch.ones(1, 1)).sum()
        time.sleep(4 * distributed.rank())
        loss.backward()


def evaluations(folder: Path) -> dict[str, Any]:
    """Results on shares that are uneven (3 images) and empty (1 image), of the run FOLDER/one."""
    config, checkpoint = load_config(DetectionConfig, folder / "one" / "config.yaml"), read_checkpoint(folder / "one")
    found = {str(n): attempt(lambda n=n: run_test(config, checkpoint, folder / f"test{n}", limit=n)) for n in (1, 3)}
    return found | {"recall": attempt(lambda: proposal_recall(config, checkpoint, folder / "test_recall", limit=3))}


def alternate(folder: Path) -> dict[str, Any]:
    """The four steps of alternating training, one iteration each, into FOLDER/alternating."""
    config = load_config(DetectionConfig, folder / "one" / "config.yaml")
    short = AlternatingConfig(rpn_iterations=1, box_iterations=1, rpn_steps=(), box_steps=())
    return run_alternating(replace(config, alternating=short), folder / "alternating")


def main() -> None:
    folder = Path(sys.argv[1])
    distributed.start(torch.device("cpu"))
    distributed.start(torch.device("cpu"))  # a second call does nothing
    outcomes: dict[str, Any] = {
        "ranks": [distributed.rank(), distributed.world_size(), distributed.is_main()],
        "gather": distributed.gather({"rank": distributed.rank()}),
        "mean": distributed.mean({"loss": float(distributed.rank())}),
        "collect": [shares(count) for count in (0, 1, 4, 5)],
        "one fails": attempt(lambda: fail_on(1)),
        "both fail": attempt(lambda: fail_on(0, 1)),
        "none fails": attempt(fail_on),
        "statistics": shared_statistics(),
        "evaluations": evaluations(folder),
        "alternating": attempt(lambda: alternate(folder)),
    }
    for job in sorted((folder / "jobs").glob("*.yaml")):
        config = load_config(DetectionConfig, job)
        fixed = FIXED.get(job.stem, ())
        outcomes[job.stem] = attempt(
            lambda config=config, run=folder / job.stem, fixed=fixed: run_training(
                config, run, resume=True, fixed=fixed
            )
        )
    classifier = load_config(ClassificationConfig, folder / "classifier.yaml")
    outcomes["classifier"] = attempt(lambda: run_pretraining(classifier, folder / "classifier"))
    outcomes["late in a step"] = attempt(wait_inside_a_step)
    outcomes["late"] = attempt(wait_for_a_late_one)  # the last: then they have lost each other
    (folder / f"outcomes.{distributed.rank()}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
