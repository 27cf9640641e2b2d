"""Mirrors detection/tasks/alternating.py: the four steps by hand, then whole on a handful of tiny images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detection.build import build_detector
from detection.config.detection import (
    AlternatingConfig,
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    DetectorSolverConfig,
    RPNConfig,
)
from detection.data.cards import load_dataset
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader
from detection.data.proposals import StoredProposals, read_proposals
from detection.engine.log import RunLog
from detection.model.faster_rcnn import FasterRCNN
from detection.tasks.alternating import alternating_steps, run_alternating, write_training_proposals

RPN_STEPS, BOX_STEPS = 3, 2
ITERATIONS = {1: RPN_STEPS, 2: BOX_STEPS, 3: RPN_STEPS, 4: BOX_STEPS}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("root"), num_train=4, num_test=2).parent


@pytest.fixture(scope="module")
def config(root: Path) -> DetectionConfig:
    """Norm layers that learn statistics, and other numbers of proposals in training than in a test."""
    return DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", norm="bn", freeze_at=0, roi_size=2),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPNConfig(
            channels=16,
            allow_outside=True,
            samples_per_image=16,
            pre_nms_train=64,
            pre_nms_test=12,
            post_nms_train=20,
            post_nms_test=6,
            min_size=2.0,
        ),
        box=BoxConfig(samples_per_image=8),
        data=DetectorDataConfig(
            train=("digits:train",), test=("digits:test",), root=str(root), shorter_side=64, longer_side=96, workers=0
        ),
        solver=DetectorSolverConfig(checkpoint_every=1, log_every=1, clip_norm=5.0),
        alternating=AlternatingConfig(
            rpn_iterations=RPN_STEPS, rpn_steps=(2,), box_iterations=BOX_STEPS, box_steps=(1,)
        ),
        device="cpu",
    )


@pytest.fixture(scope="module")
def finished(config: DetectionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    result = run_alternating(config, output, say=lambda text: None)
    assert result["images"] == 2
    return output


def weights(output: Path, number: int) -> dict[str, Tensor]:
    """The last weights of a step."""
    return load_file(output / f"step{number}" / "checkpoints" / f"{ITERATIONS[number]:07d}.safetensors")


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    found = {key: tensor for key, tensor in state.items() if key.startswith(name + ".")}
    assert found
    return found


def differing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    assert set(found) == set(expected)
    return [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


class TestStepConfigs:
    """What each step trains, from where, on which proposals, for how long."""

    CONFIG = DetectionConfig(
        data=DetectorDataConfig(train=("a:train",), test=("a:test",)),
        solver=DetectorSolverConfig(iterations=7, steps=(5,), base_lr=0.02, precision="bf16"),
        alternating=AlternatingConfig(rpn_iterations=80, rpn_steps=(60, 70), box_iterations=40, box_steps=(30,)),
    )
    OUTPUT = Path("run")

    def test_parts_that_train(self) -> None:
        fixed = [set(step.fixed) for step in alternating_steps(self.CONFIG, self.OUTPUT)]
        assert fixed == [{"box_stage"}, {"rpn"}, {"backbone", "box_stage"}, {"backbone", "rpn"}]

    def test_weights_to_start_from(self) -> None:
        # Step 2 begins with the backbone's weights again: only the proposals come from step 1.
        starts = [step.config.init for step in alternating_steps(self.CONFIG, self.OUTPUT)]
        assert starts == [None, None, str(Path("run/step2")), str(Path("run/step3"))]

    def test_own_start_holds_for_the_two_first(self) -> None:
        started = replace(self.CONFIG, init="coco.safetensors")
        starts = [step.config.init for step in alternating_steps(started, self.OUTPUT)]
        assert starts[:2] == ["coco.safetensors", "coco.safetensors"]
        assert starts[2:] == [str(Path("run/step2")), str(Path("run/step3"))]

    def test_names_of_classes_are_translated_only_from_the_own_start(self) -> None:
        # The detectors of steps 2 and 3 know the classes by their names here.
        started = replace(self.CONFIG, init="coco.safetensors", init_classes={"aeroplane": "airplane"})
        renamed = [step.config.init_classes for step in alternating_steps(started, self.OUTPUT)]
        assert renamed == [{"aeroplane": "airplane"}, {"aeroplane": "airplane"}, {}, {}]

    def test_proposals(self) -> None:
        paths = [step.proposals for step in alternating_steps(self.CONFIG, self.OUTPUT)]
        first, third = (Path(f"run/proposals{number}.safetensors") for number in (1, 3))
        assert paths == [None, first, None, third]

    def test_lengths(self) -> None:
        lengths = [
            (step.config.solver.iterations, step.config.solver.steps)
            for step in alternating_steps(self.CONFIG, self.OUTPUT)
        ]
        assert lengths == [(80, (60, 70)), (40, (30,)), (80, (60, 70)), (40, (30,))]

    def test_images_of_a_step_may_differ(self) -> None:
        lengths = replace(self.CONFIG.alternating, rpn_images_per_step=8, box_images_per_step=16)
        steps = alternating_steps(replace(self.CONFIG, alternating=lengths), self.OUTPUT)
        assert [step.config.solver.images_per_step for step in steps] == [8, 16, 8, 16]
        steps = alternating_steps(self.CONFIG, self.OUTPUT)
        assert [step.config.solver.images_per_step for step in steps] == [self.CONFIG.solver.images_per_step] * 4

    def test_only_the_last_is_tested(self) -> None:
        # The others have an RPN or a box stage that never learned anything.
        assert [step.config.data.test for step in alternating_steps(self.CONFIG, self.OUTPUT)] == [
            (),
            (),
            (),
            ("a:test",),
        ]

    def test_all_else_stays(self) -> None:
        for step in alternating_steps(self.CONFIG, self.OUTPUT):
            solver = replace(step.config.solver, iterations=7, steps=(5,))
            data = replace(step.config.data, test=("a:test",))
            assert replace(step.config, solver=solver, data=data, init=None) == self.CONFIG


@pytest.mark.slow
class TestWholeRun:
    """What the four steps leave behind."""

    def test_last_trunk_is_that_of_step_2(self, finished: Path) -> None:
        second, third, fourth = (part(weights(finished, number), "backbone") for number in (2, 3, 4))
        assert any("running_mean" in name for name in second)
        assert differing(fourth, second) == []
        assert differing(third, second) == []

    def test_last_rpn_is_that_of_step_3(self, finished: Path) -> None:
        assert differing(part(weights(finished, 4), "rpn"), part(weights(finished, 3), "rpn")) == []

    def test_step_3_leaves_the_box_stage(self, finished: Path) -> None:
        # It has norm layers of its own, in the tail.
        second, third = (part(weights(finished, number), "box_stage") for number in (2, 3))
        assert any("running_mean" in name for name in second)
        assert differing(third, second) == []

    def test_every_step_trains_its_part(self, finished: Path) -> None:
        first, second, third, fourth = (weights(finished, number) for number in (1, 2, 3, 4))
        for name in ("backbone", "rpn", "box_stage"):
            assert differing(part(first, name), part(second, name))
        assert differing(part(third, "rpn"), part(second, "rpn"))
        assert differing(part(fourth, "box_stage"), part(third, "box_stage"))

    def test_statistics_move_only_in_the_part_that_trains(self, finished: Path) -> None:
        def steps(number: int, name: str) -> set[int]:
            counters = part(weights(finished, number), name).items()
            return {int(tensor) for key, tensor in counters if key.endswith("num_batches_tracked")}

        assert [steps(number, "backbone") for number in (1, 2, 3, 4)] == [{3}, {2}, {2}, {2}]
        assert [steps(number, "box_stage") for number in (1, 2, 3, 4)] == [{0}, {2}, {2}, {4}]

    def test_untrained_parts_start_as_the_seed_says(self, config: DetectionConfig, finished: Path) -> None:
        # So the first two steps begin with the same backbone.
        torch.manual_seed(config.seed)
        start = build_detector(config, 10).state_dict()
        assert differing(part(weights(finished, 1), "box_stage"), part(start, "box_stage")) == []
        assert differing(part(weights(finished, 2), "rpn"), part(start, "rpn")) == []

    def test_only_the_last_step_has_a_result(self, finished: Path) -> None:
        assert [(finished / f"step{number}" / "result.json").exists() for number in (1, 2, 3, 4)] == [
            False,
            False,
            False,
            True,
        ]


def load_train(config: DetectionConfig) -> AnnotationIndex:
    index, _ = load_dataset(config.data.train, Path(str(config.data.root)))
    return index


class TestProposals:
    """What steps 2 and 4 train on."""

    @pytest.mark.parametrize("number", [1, 3])
    def test_are_those_of_the_step_before(self, config: DetectionConfig, finished: Path, number: int) -> None:
        index = load_train(config)
        stored = read_proposals(finished / f"proposals{number}.safetensors", index)
        many = replace(config, rpn=replace(config.rpn, pre_nms_test=64, post_nms_test=20))  # as in training
        detector = build_detector(many, 10).eval()
        assert isinstance(detector, FasterRCNN)
        detector.load_state_dict(weights(finished, number))
        for batch in build_test_loader(index, config.data):
            (row,), (size,) = batch.rows, batch.images.size_list()
            with torch.no_grad():
                (wanted,) = detector.propose(detector.features(batch.images), batch.images).ragged()
            height, width = index.sizes[row].tolist()
            found = stored.of(row)
            factors = torch.tensor([width / size[1], height / size[0]] * 2)
            torch.testing.assert_close(found.boxes, wanted.boxes * factors, atol=1e-3, rtol=1e-5)
            assert torch.equal(found.scores, wanted.scores)
            assert len(found) > config.rpn.post_nms_test

    def test_differ_between_the_rpns(self, config: DetectionConfig, finished: Path) -> None:
        index = load_train(config)
        first, third = (read_proposals(finished / f"proposals{number}.safetensors", index) for number in (1, 3))
        assert not torch.equal(first.boxes, third.boxes)

    def test_writing_again_gives_the_same_file(self, config: DetectionConfig, finished: Path, tmp_path: Path) -> None:
        write_training_proposals(config, finished / "step1", tmp_path / "again.safetensors")
        again, expected = (
            load_file(path) for path in (tmp_path / "again.safetensors", finished / "proposals1.safetensors")
        )
        assert differing(again, expected) == []

    def test_those_on_the_disk_decide_what_step_2_learns(
        self, config: DetectionConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # With the first proposal of every image alone, the box stage sees other regions.
        read = read_proposals

        def first_only(path: str | Path, index: AnnotationIndex) -> StoredProposals:
            whole = read(path, index)
            starts = torch.cat([whole.ends.new_zeros(1), whole.ends[:-1]])
            return StoredProposals(torch.arange(1, len(starts) + 1), whole.boxes[starts], whole.scores[starts])

        monkeypatch.setattr("detection.data.loader.read_proposals", first_only)
        shutil.copytree(finished / "step1", tmp_path / "step1")
        run_alternating(config, tmp_path, say=lambda text: None)
        assert differing(part(weights(tmp_path, 2), "box_stage"), part(weights(finished, 2), "box_stage"))


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved on the way out."""


def files_of(output: Path) -> dict[str, int]:
    """Every file with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


@pytest.mark.slow
class TestGoingOn:
    """A second call does what is left."""

    def test_nothing_is_left(self, config: DetectionConfig, finished: Path) -> None:
        before, said = files_of(finished), []
        result = run_alternating(config, finished, say=said.append)
        assert result == json.loads((finished / "step4" / "result.json").read_text())
        assert said[:3] == [f"step {number} is done: {finished / f'step{number}'}" for number in (1, 2, 3)]
        assert files_of(finished) == before

    def test_last_step_again(self, config: DetectionConfig, finished: Path, tmp_path: Path) -> None:
        output = Path(shutil.copytree(finished, tmp_path / "run"))
        shutil.rmtree(output / "step4")
        before = files_of(output)
        torch.manual_seed(12345)
        assert run_alternating(config, output, say=lambda text: None)["images"] == 2
        assert differing(weights(output, 4), weights(finished, 4)) == []
        after = files_of(output)
        assert {path: after[path] for path in before} == before

    def test_killed_inside_step_3(self, config: DetectionConfig, finished: Path, tmp_path: Path) -> None:
        record, lines = RunLog.metrics, 0

        def interrupt(log: RunLog, step: int, values: Mapping[str, float]) -> None:
            nonlocal lines
            lines += 1
            record(log, step, values)
            if lines == RPN_STEPS + BOX_STEPS + 2:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "metrics", interrupt)
            with pytest.raises(Killed):
                run_alternating(config, tmp_path, say=lambda text: None)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["proposals1.safetensors", "step1", "step2", "step3"]
        assert [path.stem for path in (tmp_path / "step3" / "checkpoints").glob("*.safetensors")] == ["0000001"]
        torch.manual_seed(12345)
        said: list[str] = []
        run_alternating(config, tmp_path, say=said.append)
        assert [text.partition(":")[0] for text in said] == [
            "step 1 is done",
            "step 2 is done",
            "step 3 of 4",
            "step 4 of 4",
        ]
        for number in (1, 2, 3, 4):
            assert differing(weights(tmp_path, number), weights(finished, number)) == []

    def test_killed_before_the_first_checkpoint_of_step_3(
        self, config: DetectionConfig, finished: Path, tmp_path: Path
    ) -> None:
        output = Path(shutil.copytree(finished, tmp_path / "run"))
        for name in ("step3/checkpoints", "step4"):
            shutil.rmtree(output / name)
        (output / "proposals3.safetensors").unlink()
        run_alternating(config, output, say=lambda text: None)
        for number in (3, 4):
            assert differing(weights(output, number), weights(finished, number)) == []
