"""Two processes under torchrun, with half of every step's images each, against one process."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from detection.classification.config import ClassificationConfig
from detection.classification.task import run_pretraining
from detection.config.detection import DetectionConfig, MaskConfig
from detection.config.load import build_dataclass, dump_config
from detection.data.digits import write_digits
from detection.engine.checkpoint import read_checkpoint
from detection.tasks.test import proposal_recall, run_test
from detection.tasks.train import run_training

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_processes.py")
STEPS = 3
LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_regression", "total")


@dataclass(frozen=True)
class Both:
    """What was run in one process, here, and in two."""

    # Of one process "one", "one_of_parts", "masks_of_parts" and "one_classifier"; of two "two" and the other jobs.
    folder: Path
    config: DetectionConfig
    outcomes: tuple[Mapping[str, Any], ...]  # by rank
    printed: str

    def of(self, job):
        return [outcome[job] for outcome in self.outcomes]


# So few samples an image that every image has them all: then both halves of a step have the same weight. Images need no
# padding, and batches and their parts have the same ones.
CONFIG = yaml.safe_load("""
backbone: {name: resnet18, norm: gn, roi_size: 2, freeze_at: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, samples_per_image: 16, nms_iou: 0.95, min_size: 2, pre_nms_train: 64,
  pre_nms_test: 64, post_nms_train: 24, post_nms_test: 16}
box: {samples_per_image: 8}
data: {train: ["digits:train"], test: ["digits:test"], workers: 0, augment: [{HorizontalFlip: {p: 0.5}}, {Resize: {
  height: 64, width: 64}}], shorter_side: 64, longer_side: 96, group_by_aspect: false}
solver: {iterations: 3, images_per_step: 4, log_every: 1, steps: [2], clip_norm: 5, checkpoint_every: 2}
device: cpu
""")
# No statistics of a batch, of which each process has a part.
CLASSIFIER = yaml.safe_load("""
backbone: {name: cifar_resnet20, norm: gn}
data: {shorter_side: 32, longer_side: 32, workers: 0}
solver: {iterations: 3, images_per_step: 8, log_every: 1}
classification: {crop: 32, shorter_side: 32, label_smoothing: 0.1}
device: cpu
""")


def make_config(root):
    return build_dataclass(DetectionConfig, CONFIG | {"data": CONFIG["data"] | {"root": str(root)}})


def with_solver(config, **options):
    return replace(config, solver=replace(config.solver, **options))


def untested(config):
    return replace(config, data=replace(config.data, test=()))


def with_masks(config):
    """The mask loss is a mean over positive regions, and the images have different numbers of them."""
    return replace(untested(config), architecture="mask_rcnn", mask=MaskConfig(channels=8))


def make_classifier(folder):
    """Of two classes with an odd number of test images."""
    for split, dark in (("train", 4), ("test", 3)):
        for name, count, brightness in (("dark", dark, 40), ("light", 4, 160)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 80, (32, 32, 3)) + brightness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number}.png")
    card = folder / "card.yaml"
    splits = "{train: {folder: train}, test: {folder: test}}"
    card.write_text(f"format: image_folder\nroot: {folder}\nsplits: {splits}\n")
    data = CLASSIFIER["data"] | {split: [f"{card}:{split}"] for split in ("train", "test")}
    return build_dataclass(ClassificationConfig, CLASSIFIER | {"data": data})


def make_jobs(config):
    """The runs of two processes by name."""
    quick = untested(with_solver(config, iterations=2))
    return {
        "two": config,
        "two_parts": with_solver(quick, accumulate=2),
        "compiled": with_solver(quick, accumulate=2, compile=True),
        "resumed": config,  # one process took its first steps
        "rpn_alone": with_solver(quick, ema_decay=0.9),
        "boxes_alone": quick,
        "masks_fixed": with_masks(quick),
        "masks": with_masks(config),
        "uneven": with_solver(quick, images_per_step=5),
        "sync_bn": replace(quick, backbone=replace(config.backbone, norm="sync_bn")),
    }


def torchrun(arguments, options):
    signals = "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"  # docs/distributed.md, as is the store
    paths = {"PYTHONPATH": str(Path(__file__).parents[2]), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", signals, *options, str(SCRIPT), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | paths
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def launch(*arguments, processes: int = 2, restarts: int = 0, ends: int = 0):
    """What the script printed under torchrun, which ends with the status ``ends``."""
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    with torchrun([str(argument) for argument in arguments], options) as running:
        try:
            printed, errors = running.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            running.terminate()  # a kill would leave its processes behind
            raise
    assert running.returncode == ends, printed + errors
    return printed if ends == 0 else printed + errors


def without_last_step(run):
    for file in (run / "checkpoints").glob(f"{STEPS:07d}.*"):
        file.unlink()
    return run


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    config = make_config(write_digits(folder / "data", num_train=8, num_test=5).parent)
    run_training(config, folder / "one")
    run_training(with_solver(untested(config), accumulate=2), folder / "one_of_parts")
    run_training(with_solver(with_masks(config), accumulate=2), folder / "masks_of_parts")
    without_last_step(shutil.copytree(folder / "one", folder / "resumed"))
    (folder / "jobs").mkdir()
    for name, job in make_jobs(config).items():
        (folder / "jobs" / f"{name}.yaml").write_text(dump_config(job))
    (folder / "rounds.yaml").write_text(dump_config(untested(config)))
    (folder / "unreadable.yaml").write_text(dump_config(with_solver(untested(config), checkpoint_every=0)))
    classifier = make_classifier(folder / "pictures")
    run_pretraining(classifier, folder / "one_classifier")
    (folder / "classifier.yaml").write_text(dump_config(classifier))
    printed = launch(folder)
    outcomes = tuple(json.loads((folder / f"outcomes.{rank}.json").read_text()) for rank in (0, 1))
    yield Both(folder, config, outcomes, printed)
    shutil.rmtree(folder)  # 2 GB of checkpoints


def weights(run, iteration: int = STEPS):
    return load_file(run / "checkpoints" / f"{iteration:07d}.safetensors")


def losses(run, names: Sequence[str] = LOSSES):
    """(steps, names)"""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [[line[f"loss/{name}"] for name in names] for line in lines if "loss/total" in line]
    return torch.tensor(rows, dtype=torch.float64)


def assert_close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


def assert_same_weights(found, expected) -> None:
    """The same up to rounding: sums are taken in another order."""
    torch.testing.assert_close(weights(found), weights(expected), rtol=1e-4, atol=1e-6)


def without_times(result):
    return {name: value for name, value in result.items() if name not in ("seconds_per_image", "peak_memory_gib")}


def test_what_the_processes_tell_each_other_and_what_they_cannot_do(both) -> None:
    assert both.of("ranks") == [[0, 2, True], [1, 2, False]]
    assert both.of("gather") == [[{"rank": 0}, {"rank": 1}]] * 2
    assert both.of("mean") == [{"loss": 0.5}] * 2
    assert both.of("statistics") == [[2.0], [2.0]]  # those of the main process
    assert both.of("collect") == [[list(range(count)) for count in (0, 1, 4, 5)], [None] * 4]
    own = [f"ValueError: no image {rank}.jpg" for rank in (0, 1)]
    assert both.of("one fails") == [f"RankError: rank 1 of 2 failed, reading a batch: {own[1]}", own[1]]
    assert (both.of("both fail"), both.of("none fails")) == (own, [None, None])
    share = "must be a multiple of 2 processes x solver.accumulate 1; the nearest is 4"
    assert both.of("uneven") == [f"ValueError: solver.images_per_step 5 {share}"] * 2
    norm = "needs GPUs where there is more than one process; on CPUs set it to gn or bn"
    assert both.of("sync_bn") == [f"ValueError: norm sync_bn {norm}"] * 2


@pytest.mark.parametrize(
    ("job", "doing"), [("late", "taking step 7"), ("late to the flag", "taking step 8"), ("late in a step", "training")]
)
def test_a_process_that_does_not_come_is_named(both, job, doing) -> None:
    for rank, said in enumerate(both.of(job)):
        assert said.startswith(f"RankError: rank {rank} of 2 timed out waiting for the others, {doing}: ")
    waiting = both.of("late")[0]
    assert "Ranks 1 failed" in waiting
    assert "1000 ms" in waiting


def test_steps_of_two_processes_are_those_of_one(both) -> None:
    assert len(losses(both.folder / "two")) == STEPS
    assert_close(losses(both.folder / "two"), losses(both.folder / "one"))
    assert_same_weights(both.folder / "two", both.folder / "one")
    parts = losses(both.folder / "two_parts")  # added up before they are averaged
    assert_close(parts[1], losses(both.folder / "one_of_parts")[1])
    assert_close(losses(both.folder / "compiled")[:2], parts[:2])
    # Of unequal numbers of samples.
    found, expected = (weights(both.folder / name) for name in ("masks", "masks_of_parts"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    one, two = json.loads((both.folder / "one" / "result.json").read_text()), both.of("two")
    assert without_times(two[0]) == without_times(two[1])
    assert two[0]["bbox"]["AP"] == pytest.approx(one["bbox"]["AP"], rel=1e-3)
    assert two[0]["images"] == 5


def test_a_run_goes_on_with_another_number_of_processes(both) -> None:
    assert_same_weights(both.folder / "resumed", both.folder / "one")
    assert len(losses(both.folder / "resumed")) == STEPS
    moved = without_last_step(shutil.copytree(both.folder / "two", both.folder / "two_then_one"))
    run_training(both.config, moved, resume=True)
    assert_same_weights(moved, both.folder / "one")


def test_no_process_waits_for_parts_that_are_fixed_or_for_more_than_one_exchange(both) -> None:
    for job in ("rpn_alone", "boxes_alone", "masks_fixed"):
        assert both.of(job) == [{}, {}]
        assert losses(both.folder / job, ["total"]).isfinite().all()
    # Four more steps; the gradients are DistributedDataParallel's own business.
    nothing = {"monitored_barrier": 0, "all_gather_object": 0, "gather_object": 0, "broadcast": 0}
    assert both.of("rounds") == [{"all_reduce": 4, **nothing}] * 2


def test_only_the_main_process_prints_and_alternating_training_writes_its_proposals_once(both) -> None:
    first, second = both.of("alternating")
    assert first == second
    assert (first["images"], both.printed.count("step 4 of 4")) == (5, 1)
    assert both.printed.count("4 images a step on 2 processes: 2 each; learning rate as configured for 4") == 17
    lines = [line for line in both.printed.splitlines() if line.lstrip().startswith(f"1/{STEPS} ")]
    assert len(lines) == 4  # of "two", "masks", "unreadable" and the classifier


def test_an_unreadable_image_of_one_process_costs_no_step(both) -> None:
    for job in ("unreadable", "unreadable_first"):
        main, other = both.of(job)
        assert other.startswith("ImageError: image ")
        assert main == f"RankError: rank 1 of 2 failed, reading a batch: {other}"
    assert not (both.folder / "unreadable_first" / "checkpoints").exists()
    assert read_checkpoint(both.folder / "unreadable").iteration == 2
    assert both.printed.count("stopped; saved ") == 1
    run_training(with_solver(untested(both.config), accumulate=2), both.folder / "unreadable", resume=True)
    assert_same_weights(both.folder / "unreadable", both.folder / "one_of_parts")


def test_a_classifier_is_that_of_one_process(both) -> None:
    found, expected = (both.folder / name for name in ("classifier", "one_classifier"))
    assert len(losses(found, ["classification"])) == STEPS
    assert_close(losses(found, ["classification"]), losses(expected, ["classification"]))
    assert_same_weights(found, expected)
    result = json.loads((expected / "result.json").read_text())
    assert [without_times(own) for own in both.of("classifier")] == [without_times(result)] * 2
    assert result["images"] == 7


def test_uneven_and_empty_shares_of_images_give_the_result_of_one_process(both) -> None:
    checkpoint = read_checkpoint(both.folder / "one")
    for limit in (1, 3):
        folder, there = both.folder / f"here{limit}", both.folder / f"test{limit}"
        expected = run_test(both.config, checkpoint, folder, limit=limit)
        for outcome in both.of("evaluations"):
            assert without_times(outcome[str(limit)]) == without_times(expected)
        assert (folder / "detections.json").read_text() == (there / "detections.json").read_text()
    recall = proposal_recall(both.config, checkpoint, both.folder / "here_recall", limit=3)
    assert [outcome["recall"] for outcome in both.of("evaluations")] == [recall] * 2


def with_workers(both):
    """The config of "two", whose images now come from a worker of each process: they are the same."""
    file, config = both.folder / "with_workers.yaml", with_solver(both.config, checkpoint_every=1)
    file.write_text(dump_config(replace(config, data=replace(config.data, workers=1))))
    return file


def assert_equals_two(both, run) -> None:
    """Bit for bit."""
    torch.testing.assert_close(weights(run), weights(both.folder / "two"), rtol=0, atol=0)
    assert torch.equal(losses(run), losses(both.folder / "two"))


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_costs_no_more_than_the_steps_since_the_checkpoint(both, victim) -> None:
    run = both.folder / f"killed{victim}"
    printed = launch(with_workers(both), run, victim, restarts=1)
    assert printed.count("came to the end") == 2
    assert f"iteration 1 of {STEPS}" in printed  # where the second attempt began
    assert_equals_two(both, run)


@pytest.mark.faults
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_torchrun_ends_all_processes_with_their_work_saved(both, signal) -> None:
    run = both.folder / signal
    command = [with_workers(both), run]
    printed = launch(*command, "torchrun", signal, restarts=3, ends=1)
    assert printed.count(f"StoppedError: {signal} ended the run after iteration 1 of {STEPS}") == 2
    assert read_checkpoint(run).iteration == 1
    launch(*command, "none")
    assert_equals_two(both, run)


@pytest.mark.faults
def test_two_torchruns_that_meet_are_as_one(both) -> None:
    """As on two machines with one file system."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"--rdzv-endpoint=127.0.0.1:{server.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=1", "--local-addr=127.0.0.1"]
    arguments = [str(with_workers(both)), str(both.folder / "machines"), "none"]
    machines = [torchrun(arguments, [*options, place]) for _ in "ab"]
    printed = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert sum(said.count("4 images a step on 2 processes: 2 each") for said, _ in printed) == 1
    assert_equals_two(both, both.folder / "machines")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_gpu_trains_with_batch_norm_over_processes(both) -> None:
    config = replace(both.config, backbone=replace(both.config.backbone, norm="sync_bn"), device="cuda")
    file, run = both.folder / "gpu.yaml", both.folder / "gpu"
    file.write_text(dump_config(config))
    assert "came to the end" in launch(file, run, "none", processes=1)
    assert losses(run).isfinite().all()
