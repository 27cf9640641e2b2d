"""Two processes under torchrun, with half of every step's images each, against one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from detection.classification.config import ClassificationConfig, ClassifierConfig, ClassifierSolverConfig
from detection.classification.task import run_pretraining
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    DetectorSolverConfig,
    MaskConfig,
    RPNConfig,
)
from detection.config.load import dump_config
from detection.config.sections import BackboneConfig, DataConfig
from detection.data.digits import write_digits
from detection.engine.checkpoint import read_checkpoint
from detection.tasks.test import proposal_recall, run_test
from detection.tasks.train import run_training

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
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


def make_config(root: Path) -> DetectionConfig:
    """So few samples an image that every image has them all: then both halves of a step have the same weight."""
    return DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2, freeze_at=2),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPNConfig(
            channels=16,
            allow_outside=True,
            samples_per_image=16,
            pre_nms_train=64,
            pre_nms_test=64,
            post_nms_train=24,
            post_nms_test=16,
            nms_iou=0.95,
            min_size=2.0,
        ),
        box=BoxConfig(samples_per_image=8),
        data=DetectorDataConfig(
            train=("digits:train",),
            test=("digits:test",),
            root=str(root),
            augment=({"HorizontalFlip": {"p": 0.5}}, {"Resize": {"height": 64, "width": 64}}),  # no padding
            shorter_side=64,
            longer_side=96,
            group_by_aspect=False,  # batches and their parts have the same images then
            workers=0,
        ),
        solver=DetectorSolverConfig(
            iterations=STEPS, images_per_step=4, log_every=1, steps=(2,), clip_norm=5.0, checkpoint_every=2
        ),
        device="cpu",
    )


def with_solver(config: DetectionConfig, **options: Any) -> DetectionConfig:
    return replace(config, solver=replace(config.solver, **options))


def untested(config: DetectionConfig) -> DetectionConfig:
    return replace(config, data=replace(config.data, test=()))


def with_masks(config: DetectionConfig) -> DetectionConfig:
    """The mask loss is a mean over positive regions, and the images have different numbers of them."""
    return replace(untested(config), architecture="mask_rcnn", mask=MaskConfig(channels=8))


def make_classifier(folder: Path) -> ClassificationConfig:
    """Of two classes with an odd number of test images; no statistics of a batch, of which each process has a part."""
    for split, dark in (("train", 4), ("test", 3)):
        for name, count, brightness in (("dark", dark, 40), ("light", 4, 160)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 80, (32, 32, 3)) + brightness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number}.png")
    splits = {split: {"folder": split} for split in ("train", "test")}
    card = folder / "card.yaml"
    card.write_text(yaml.safe_dump({"format": "image_folder", "root": str(folder), "splits": splits}))
    return ClassificationConfig(
        backbone=BackboneConfig(name="cifar_resnet20", norm="gn"),
        data=DataConfig(train=(f"{card}:train",), test=(f"{card}:test",), shorter_side=32, longer_side=32, workers=0),
        solver=ClassifierSolverConfig(iterations=STEPS, images_per_step=8, log_every=1),
        classification=ClassifierConfig(crop=32, shorter_side=32, label_smoothing=0.1),
        device="cpu",
    )


def make_jobs(config: DetectionConfig) -> dict[str, DetectionConfig]:
    """The runs of two processes by name."""
    quick = untested(with_solver(config, iterations=2))
    return {
        "two": config,
        "two_parts": with_solver(quick, accumulate=2),
        "compiled": with_solver(quick, accumulate=2, compile=True),
        "resumed": config,  # one process took its first steps
        "rpn_alone": with_solver(quick, ema_decay=0.9),
        "boxes_alone": quick,
        "masks_fixed": replace(quick, architecture="mask_rcnn", mask=MaskConfig(channels=8)),
        "masks": with_masks(config),
        "uneven": with_solver(quick, images_per_step=5),
        "sync_bn": replace(quick, backbone=replace(config.backbone, norm="sync_bn")),
    }


def torchrun(script: Path, arguments: Sequence[str], options: Sequence[str]) -> subprocess.Popen[str]:
    signals = "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"  # docs/distributed.md
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # docs/distributed.md
    }
    command = [sys.executable, "-m", "torch.distributed.run", signals, *options, str(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def launch(script: Path, *arguments: str, processes: int = 2, restarts: int = 0, ends: int = 0) -> str:
    """What ``script`` printed under torchrun, which ends with the status ``ends``."""
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    with torchrun(script, arguments, options) as running:
        try:
            printed, errors = running.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            running.terminate()  # a kill would leave its processes behind
            raise
    assert running.returncode == ends, printed + errors
    return printed if ends == 0 else printed + errors


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    root = write_digits(folder / "data", num_train=8, num_test=5).parent
    config = make_config(root)
    run_training(config, folder / "one")
    run_training(with_solver(untested(config), accumulate=2), folder / "one_of_parts")
    run_training(with_solver(with_masks(config), accumulate=2), folder / "masks_of_parts")
    shutil.copytree(folder / "one", folder / "resumed")
    for file in (folder / "resumed" / "checkpoints").glob(f"{STEPS:07d}.*"):
        file.unlink()
    (folder / "jobs").mkdir()
    for name, job in make_jobs(config).items():
        (folder / "jobs" / f"{name}.yaml").write_text(dump_config(job))
    (folder / "rounds.yaml").write_text(dump_config(untested(config)))
    (folder / "unreadable.yaml").write_text(dump_config(with_solver(untested(config), checkpoint_every=0)))
    classifier = make_classifier(folder / "pictures")
    run_pretraining(classifier, folder / "one_classifier")
    (folder / "classifier.yaml").write_text(dump_config(classifier))
    printed = launch(HERE / "two_processes.py", str(folder))
    outcomes = tuple(json.loads((folder / f"outcomes.{rank}.json").read_text()) for rank in (0, 1))
    yield Both(folder, config, outcomes, printed)
    shutil.rmtree(folder)  # 2 GB of checkpoints


def weights(run: Path, iteration: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"{iteration:07d}.safetensors")


def losses(run: Path, names: Sequence[str] = LOSSES) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[f"loss/{name}"] for name in names] for line in lines if "loss/total" in line]


def assert_same_weights(found: Path, expected: Path) -> None:
    """The same up to rounding: sums are taken in another order."""
    ours, theirs = weights(found), weights(expected)
    assert set(ours) == set(theirs)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


def without_times(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("seconds_per_image", "peak_memory_gib")}


class TestExchange:
    """What the processes tell each other."""

    def test_every_process_knows_its_place(self, both: Both) -> None:
        assert [outcome["ranks"] for outcome in both.outcomes] == [[0, 2, True], [1, 2, False]]

    def test_all_get_the_values_of_all(self, both: Both) -> None:
        assert [outcome["gather"] for outcome in both.outcomes] == [[{"rank": 0}, {"rank": 1}]] * 2
        assert [outcome["mean"] for outcome in both.outcomes] == [{"loss": 0.5}] * 2

    def test_the_main_process_gets_what_was_shared_out_in_its_order(self, both: Both) -> None:
        main, other = (outcome["collect"] for outcome in both.outcomes)
        assert main == [list(range(count)) for count in (0, 1, 4, 5)]
        assert other == [None] * 4

    def test_an_error_ends_all_and_names_its_rank(self, both: Both) -> None:
        assert both.outcomes[0]["one fails"] == (
            "RankError: rank 1 of 2 failed, reading a batch: ValueError: no image 1.jpg"
        )
        assert both.outcomes[1]["one fails"] == "ValueError: no image 1.jpg"

    def test_each_process_keeps_its_own_error(self, both: Both) -> None:
        assert [outcome["both fail"] for outcome in both.outcomes] == [f"ValueError: no image {n}.jpg" for n in (0, 1)]
        assert [outcome["none fails"] for outcome in both.outcomes] == [None, None]

    def test_statistics_become_those_of_the_main_process(self, both: Both) -> None:
        assert [outcome["statistics"] for outcome in both.outcomes] == [[2.0], [2.0]]

    def test_a_process_that_does_not_come_is_named(self, both: Both) -> None:
        waiting, late = (outcome["late"] for outcome in both.outcomes)
        assert waiting.startswith("RankError: rank 0 of 2 waited in vain for the others, taking step 7: ")
        assert "Ranks 1 failed" in waiting
        assert "1000 ms" in waiting
        assert late.startswith("RankError: rank 1 of 2 waited in vain for the others, taking step 7: ")

    def test_so_is_one_that_does_not_come_to_the_flag(self, both: Both) -> None:
        waiting, late = (outcome["late to the flag"] for outcome in both.outcomes)
        assert waiting.startswith("RankError: rank 0 of 2 waited in vain for the others, taking step 8: ")
        assert late.startswith("RankError: rank 1 of 2 waited in vain for the others, taking step 8: ")

    def test_so_is_who_waits_inside_a_step(self, both: Both) -> None:
        waiting, late = (outcome["late in a step"] for outcome in both.outcomes)
        assert waiting.startswith("RankError: rank 0 of 2 waited in vain for the others, training: ")
        assert late.startswith("RankError: rank 1 of 2 waited in vain for the others, training: ")


class TestTraining:
    """Two processes with half the images each are one process with all of them."""

    def test_losses_equal_those_of_one_process(self, both: Both) -> None:
        found, expected = losses(both.folder / "two"), losses(both.folder / "one")
        assert len(found) == STEPS
        assert [value for line in found for value in line] == pytest.approx(
            [value for line in expected for value in line], rel=1e-4
        )

    def test_weights_equal_those_of_one_process(self, both: Both) -> None:
        assert_same_weights(both.folder / "two", both.folder / "one")

    def test_parts_are_added_up_before_they_are_averaged(self, both: Both) -> None:
        found, expected = losses(both.folder / "two_parts"), losses(both.folder / "one_of_parts")
        assert found[1] == pytest.approx(expected[1], rel=1e-4)

    def test_compiled_parts_are_as_eager_ones(self, both: Both) -> None:
        found, expected = losses(both.folder / "compiled"), losses(both.folder / "two_parts")
        assert found[0] == pytest.approx(expected[0], rel=1e-4)
        assert found[1] == pytest.approx(expected[1], rel=1e-4)

    def test_processes_with_unequal_numbers_of_samples_are_as_parts_of_a_step(self, both: Both) -> None:
        found, expected = (weights(both.folder / name) for name in ("masks", "masks_of_parts"))
        assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []

    def test_the_average_precision_is_that_of_one_process(self, both: Both) -> None:
        expected = without_times(json.loads((both.folder / "one" / "result.json").read_text()))
        found = [without_times(outcome["two"]) for outcome in both.outcomes]
        assert found[0] == found[1]
        assert found[0]["bbox"]["AP"] == pytest.approx(expected["bbox"]["AP"], rel=1e-3)
        assert found[0]["images"] == 5

    def test_a_run_of_one_process_goes_on_with_two(self, both: Both) -> None:
        assert_same_weights(both.folder / "resumed", both.folder / "one")
        assert len(losses(both.folder / "resumed")) == STEPS

    def test_a_run_of_two_processes_goes_on_with_one(self, both: Both) -> None:
        moved = shutil.copytree(both.folder / "two", both.folder / "two_then_one")
        for file in (moved / "checkpoints").glob(f"{STEPS:07d}.*"):
            file.unlink()
        run_training(both.config, moved, resume=True)
        assert_same_weights(moved, both.folder / "one")

    @pytest.mark.parametrize("job", ["rpn_alone", "boxes_alone", "masks_fixed"])
    def test_fixed_parts_keep_no_process_waiting(self, both: Both, job: str) -> None:
        assert [outcome[job] for outcome in both.outcomes] == [{}, {}]
        assert torch.tensor(losses(both.folder / job, ["total"])).isfinite().all()

    def test_alternating_training_writes_its_proposals_once_and_goes_on(self, both: Both) -> None:
        first, second = (outcome["alternating"] for outcome in both.outcomes)
        assert first == second
        assert first["images"] == 5
        assert both.printed.count("step 4 of 4") == 1

    def test_a_step_takes_one_exchange_and_no_barrier(self, both: Both) -> None:
        # Four more steps; the gradients are DistributedDataParallel's own business.
        nothing = {"monitored_barrier": 0, "all_gather_object": 0, "gather_object": 0, "broadcast": 0}
        assert [outcome["rounds"] for outcome in both.outcomes] == [{"all_reduce": 4, **nothing}] * 2

    def test_an_unreadable_image_of_one_process_costs_no_step(self, both: Both) -> None:
        main, other = (outcome["unreadable"] for outcome in both.outcomes)
        assert other.startswith("ImageError: image ")
        assert main == f"RankError: rank 1 of 2 failed, reading a batch: {other}"
        assert read_checkpoint(both.folder / "unreadable").iteration == 2
        assert both.printed.count("stopped; saved ") == 1
        run_training(with_solver(untested(both.config), accumulate=2), both.folder / "unreadable", resume=True)
        assert_same_weights(both.folder / "unreadable", both.folder / "one_of_parts")

    def test_an_unreadable_image_in_the_first_step_ends_all(self, both: Both) -> None:
        main, other = (outcome["unreadable_first"] for outcome in both.outcomes)
        assert other.startswith("ImageError: image ")
        assert main == f"RankError: rank 1 of 2 failed, reading a batch: {other}"
        assert not (both.folder / "unreadable_first" / "checkpoints").exists()

    def test_a_classifier_is_that_of_one_process(self, both: Both) -> None:
        found, expected = (losses(both.folder / name, ["classification"]) for name in ("classifier", "one_classifier"))
        assert len(found) == STEPS
        assert [loss for (loss,) in found] == pytest.approx([loss for (loss,) in expected], rel=1e-4)
        assert_same_weights(both.folder / "classifier", both.folder / "one_classifier")
        result = json.loads((both.folder / "one_classifier" / "result.json").read_text())
        results = [without_times(outcome["classifier"]) for outcome in both.outcomes]
        assert results[0] == results[1] == without_times(result)
        assert result["images"] == 7

    def test_only_the_main_process_prints(self, both: Both) -> None:
        assert both.printed.count("4 images a step on 2 processes: 2 each; learning rate as configured for 4") == 17
        lines = [line for line in both.printed.splitlines() if line.lstrip().startswith(f"1/{STEPS} ")]
        assert len(lines) == 4  # of "two", "masks", "unreadable" and the classifier


def with_workers(both: Both) -> Path:
    """The config of "two", whose images now come from a worker of each process: they are the same."""
    file = both.folder / "with_workers.yaml"
    config = with_solver(both.config, checkpoint_every=1)
    file.write_text(dump_config(replace(config, data=replace(config.data, workers=1))))
    return file


def assert_equals_two(both: Both, run: Path) -> None:
    """Bit for bit."""
    expected, found = weights(both.folder / "two"), weights(run)
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []
    assert losses(run) == losses(both.folder / "two")


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_costs_no_more_than_the_steps_since_the_checkpoint(both: Both, victim: int) -> None:
    run = both.folder / f"killed{victim}"
    printed = launch(HERE / "faulty_once.py", str(with_workers(both)), str(run), str(victim), restarts=1)
    assert printed.count("came to the end") == 2
    assert f"iteration 1 of {STEPS}" in printed  # where the second attempt began
    assert_equals_two(both, run)


@pytest.mark.faults
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_torchrun_ends_all_processes_with_their_work_saved(both: Both, signal: str) -> None:
    run = both.folder / signal
    command = [HERE / "faulty_once.py", str(with_workers(both)), str(run)]
    printed = launch(*command, "torchrun", signal, restarts=3, ends=1)
    assert printed.count(f"StoppedError: {signal} ended the run after iteration 1 of {STEPS}") == 2
    assert read_checkpoint(run).iteration == 1
    launch(*command, "none")
    assert_equals_two(both, run)


@pytest.mark.faults
def test_two_torchruns_that_meet_are_as_one(both: Both) -> None:
    """As on two machines with one file system."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={place}"]
    arguments = [str(with_workers(both)), str(both.folder / "machines"), "none"]
    machines = [
        torchrun(HERE / "faulty_once.py", arguments, [*options, "--rdzv-id=1", "--local-addr=127.0.0.1"]) for _ in "ab"
    ]
    printed = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert sum(said.count("4 images a step on 2 processes: 2 each") for said, _ in printed) == 1
    assert_equals_two(both, both.folder / "machines")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_gpu_trains_with_batch_norm_over_processes(both: Both) -> None:
    config = replace(both.config, backbone=replace(both.config.backbone, norm="sync_bn"), device="cuda")
    file, run = both.folder / "gpu.yaml", both.folder / "gpu"
    file.write_text(dump_config(config))
    assert "came to the end" in launch(HERE / "faulty_once.py", str(file), str(run), "none", processes=1)
    assert torch.tensor(losses(run)).isfinite().all()


class TestMistakes:
    """What two processes cannot do."""

    def test_images_that_cannot_be_shared_out(self, both: Both) -> None:
        message = (
            "ValueError: solver.images_per_step 5 must be a multiple of 2 processes x solver.accumulate 1; "
            "the nearest is 4"
        )
        assert [outcome["uneven"] for outcome in both.outcomes] == [message] * 2

    def test_batch_norm_over_processes_on_cpus(self, both: Both) -> None:
        message = "ValueError: norm sync_bn needs GPUs where there is more than one process; on CPUs set it to gn or bn"
        assert [outcome["sync_bn"] for outcome in both.outcomes] == [message] * 2


class TestEvaluation:
    """Images are tested by turns and judged together."""

    @pytest.mark.parametrize("limit", [1, 3])
    def test_uneven_and_empty_shares_give_the_result_of_one_process(self, both: Both, limit: int) -> None:
        checkpoint, folder = read_checkpoint(both.folder / "one"), both.folder / f"here{limit}"
        expected = run_test(both.config, checkpoint, folder, limit=limit)
        for outcome in both.outcomes:
            assert without_times(outcome["evaluations"][str(limit)]) == without_times(expected)
        there = both.folder / f"test{limit}" / "detections.json"
        assert json.loads(there.read_text()) == json.loads((folder / "detections.json").read_text())

    def test_recall_of_proposals(self, both: Both) -> None:
        expected = proposal_recall(
            both.config, read_checkpoint(both.folder / "one"), both.folder / "here_recall", limit=3
        )
        assert [outcome["evaluations"]["recall"] for outcome in both.outcomes] == [expected] * 2
