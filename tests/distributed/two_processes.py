"""What test_two_processes.py runs under torchrun: what happened on each rank goes to FOLDER/outcomes.RANK.json.

Every FOLDER/jobs/NAME.yaml is a config, which is trained into FOLDER/NAME; a directory that holds a run goes on.
FOLDER/classifier.yaml is that of a classifier.

With CONFIG, OUTPUT and VICTIM it trains CONFIG into OUTPUT, and something happens to VICTIM: a rank is killed, on the
first attempt only; "torchrun" gets SIGNAL, a fourth argument; "none" is nobody.
"""

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed as torch_distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detection.classification.config import ClassificationConfig
from detection.classification.task import run_pretraining
from detection.config.detection import AlternatingConfig, DetectionConfig
from detection.config.load import load_config
from detection.data.dataset import DetectionDataset
from detection.data.images import ImageError
from detection.data.loader import detection_loader
from detection.engine import compiled, distributed
from detection.engine.checkpoint import read_checkpoint
from detection.tasks import train
from detection.tasks.alternating import run_alternating
from detection.tasks.test import proposal_recall, run_test
from detection.tasks.train import run_training

# Jobs whose parts are not all trained.
FIXED = {"rpn_alone": ("box_stage",), "boxes_alone": ("rpn", "backbone"), "masks_fixed": ("box_stage",)}


def attempt(work, *args, **options):
    """What ``work`` gives, or its error in words."""
    try:
        return work(*args, **options)
    except Exception as error:  # noqa: BLE001  # whatever it is, the test looks at it
        return f"{type(error).__name__}: {error}"


def fail_on(*ranks) -> None:
    with distributed.together("reading a batch"):
        if distributed.rank() in ranks:
            raise ValueError(f"no image {distributed.rank()}.jpg")


def shares(count):
    return distributed.collect(range(count)[distributed.rank() :: distributed.world_size()])


def shared_statistics():
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


def wait_for_the_flag() -> None:
    """Rank 1 comes later than rank 0 waits; the flags of the run are then unusable."""
    joined = distributed._joined[0]
    group = torch_distributed.new_group(backend="gloo", timeout=timedelta(seconds=2))
    with patch.object(distributed, "_joined", [replace(joined, flags=group)]):
        time.sleep(4 * distributed.rank())
        distributed.any_rank(False, doing="taking step 8")


def broken_on_rank_1(batch):
    """DetectionDataset's samples, but in rank 1 none of the images of ``batch`` and later can be read."""
    read = DetectionDataset.__getitems__

    def get(dataset, keys):
        for position, row in keys:
            if distributed.rank() == 1 and position // 4 >= batch:
                raise ImageError(f"image {dataset.index.paths[row]} can't be read")
        return read(dataset, keys)

    return get


def count_rounds(config, output):
    """Calls of torch's exchanges of values, and barriers, in the trainings of three and of seven steps, by difference.

    Those of a report, a checkpoint, the start and the end are the same in both.
    """
    names = ("all_reduce", "monitored_barrier", "all_gather_object", "gather_object", "broadcast")
    counts: list[list[int]] = []
    for steps in (3, 7):
        with ExitStack() as stack:
            patches = [patch.object(torch_distributed, n, wraps=getattr(torch_distributed, n)) for n in names]
            calls = [stack.enter_context(one) for one in patches]
            solver = replace(config.solver, iterations=steps, log_every=100, checkpoint_every=0)
            run_training(replace(config, solver=solver), output / str(steps))
        counts.append([call.call_count for call in calls])
    return {name: many - few for name, few, many in zip(names, *counts, strict=True)}


def evaluations(folder):
    """Results on shares that are uneven (3 images) and empty (1 image), of the run FOLDER/one."""
    config, checkpoint = load_config(DetectionConfig, folder / "one" / "config.yaml"), read_checkpoint(folder / "one")
    found = {str(n): attempt(run_test, config, checkpoint, folder / f"test{n}", limit=n) for n in (1, 3)}
    return found | {"recall": attempt(proposal_recall, config, checkpoint, folder / "test_recall", limit=3)}


def alternate(folder):
    """The four steps of alternating training, one iteration each, into FOLDER/alternating."""
    config = load_config(DetectionConfig, folder / "one" / "config.yaml")
    short = AlternatingConfig(rpn_iterations=1, box_iterations=1, rpn_steps=(), box_steps=())
    return run_alternating(replace(config, alternating=short), folder / "alternating")


KILLED_AFTER, STOPPED_AFTER = 2, 1  # steps


def faulty_loader(*args, **kwargs):
    noting = signal.getsignal(signal.SIGTERM)  # the handler until a signal has come
    for number, batch in enumerate(detection_loader(*args, **kwargs)):
        first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if number == KILLED_AFTER and first_attempt and str(distributed.rank()) == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == STOPPED_AFTER and sys.argv[3] == "torchrun":
            if distributed.rank() == 0:
                os.kill(os.getppid(), signal.Signals[sys.argv[4]])
            while signal.getsignal(signal.SIGTERM) is noting:  # torchrun hands it on to every process
                time.sleep(0.01)
        yield batch


def train_with_a_fault() -> None:
    with patch.object(train, "detection_loader", faulty_loader):  # all that training asks of it
        run_training(load_config(DetectionConfig, sys.argv[1]), Path(sys.argv[2]), resume=True)
    sys.stdout.write(f"rank {distributed.rank()} came to the end\n")


def main() -> None:
    folder = Path(sys.argv[1])
    distributed.start(torch.device("cpu"))
    distributed.start(torch.device("cpu"))  # a second call does nothing
    outcomes: dict[str, Any] = {
        "ranks": [distributed.rank(), distributed.world_size(), distributed.is_main()],
        "gather": distributed.gather({"rank": distributed.rank()}),
        "mean": distributed.mean({"loss": float(distributed.rank())}),
        "collect": [shares(count) for count in (0, 1, 4, 5)],
        "one fails": attempt(fail_on, 1),
        "both fail": attempt(fail_on, 0, 1),
        "none fails": attempt(fail_on),
        "statistics": shared_statistics(),
        "evaluations": evaluations(folder),
        "alternating": attempt(alternate, folder),
    }
    for job in sorted((folder / "jobs").glob("*.yaml")):
        config, fixed, run = load_config(DetectionConfig, job), FIXED.get(job.stem, ()), folder / job.stem
        with patch.object(compiled, "BACKEND", "eager"):  # graphs are made as always, and no compiler runs them
            outcomes[job.stem] = attempt(run_training, config, run, resume=True, fixed=fixed)
    classifier = load_config(ClassificationConfig, folder / "classifier.yaml")
    outcomes["classifier"] = attempt(run_pretraining, classifier, folder / "classifier")
    rounds, unreadable = (load_config(DetectionConfig, folder / f"{name}.yaml") for name in ("rounds", "unreadable"))
    outcomes["rounds"] = attempt(count_rounds, rounds, folder / "rounds")
    for name, batch in (("unreadable", 2), ("unreadable_first", 0)):
        with patch.object(DetectionDataset, "__getitems__", broken_on_rank_1(batch)):
            outcomes[name] = attempt(run_training, unreadable, folder / name)
    outcomes["late in a step"] = attempt(wait_inside_a_step)
    outcomes["late to the flag"] = attempt(wait_for_the_flag)
    outcomes["late"] = attempt(wait_for_a_late_one)  # the last: then they have lost each other
    (folder / f"outcomes.{distributed.rank()}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main() if len(sys.argv) == 2 else train_with_a_fault()
