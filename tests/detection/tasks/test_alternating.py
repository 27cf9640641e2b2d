import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detection.build import build_detector
from detection.config.detection import AlternatingConfig, DetectionConfig
from detection.config.load import dump_config, parse_config
from detection.data.cards import load_dataset
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader
from detection.data.proposals import StoredProposals, read_proposals
from detection.tasks.alternating import alternating_steps, run_alternating, write_training_proposals

ITERATIONS = {1: 3, 2: 2, 3: 3, 4: 2}
CONFIG = """
data: {train: [a:train], test: [a:test]}
solver: {iterations: 7, steps: [5], base_lr: 0.02, precision: bf16}
alternating: {rpn_iterations: 80, rpn_steps: [60, 70], box_iterations: 40, box_steps: [30]}
"""


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    found = {key: tensor for key, tensor in state.items() if key.startswith(name + ".")}
    assert found
    return found


def test_what_each_step_trains_from_where_on_which_proposals_and_for_how_long() -> None:
    config, run = parse_config(DetectionConfig, CONFIG), Path("run")
    steps = alternating_steps(config, run)
    own = [step.config for step in steps]
    fixed = ["box_stage"], ["rpn"], ["backbone", "box_stage"], ["backbone", "rpn"]
    assert [sorted(step.fixed) for step in steps] == [*fixed]
    # Step 2 begins with the backbone's weights again: only the proposals come from step 1.
    assert [one.init for one in own] == [None, None, str(run / "step2"), str(run / "step3")]
    first, third = (run / f"proposals{number}.safetensors" for number in (1, 3))
    assert [step.proposals for step in steps] == [None, first, None, third]
    lengths = [(one.solver.iterations, one.solver.steps) for one in own]
    assert lengths == [(80, (60, 70)), (40, (30,)), (80, (60, 70)), (40, (30,))]
    # Only the last is tested: the others have an RPN or a box stage that never learned anything.
    assert [one.data.test for one in own] == [(), (), (), ("a:test",)]
    for one in own:  # all else stays
        solver = replace(one.solver, iterations=7, steps=(5,))
        assert replace(one, solver=solver, data=replace(one.data, test=("a:test",)), init=None) == config
    # Names of classes are translated only from the own start: the steps know the classes by their names here.
    started = replace(config, init="coco.safetensors", init_classes={"aeroplane": "airplane"})
    own = [step.config for step in alternating_steps(started, run)]
    assert [one.init for one in own] == ["coco.safetensors"] * 2 + [str(run / "step2"), str(run / "step3")]
    assert [one.init_classes for one in own] == [{"aeroplane": "airplane"}] * 2 + [{}, {}]
    images = replace(config.alternating, rpn_images_per_step=8, box_images_per_step=16)
    steps = alternating_steps(replace(config, alternating=images), run)
    assert [step.config.solver.images_per_step for step in steps] == [8, 16, 8, 16]


@pytest.fixture(scope="module")
def config(tiny, lab) -> DetectionConfig:
    """Norm layers that learn statistics in both parts, and other numbers of proposals in training than in a test."""
    own = lab.changed(tiny, rpn__pre_nms_test=12, rpn__post_nms_test=6, rpn__post_nms_train=20)
    own = lab.changed(own, box__head_convs=1, box__head_fcs=1, box__head_norm="bn", box__pool_size=3)
    lengths = AlternatingConfig(rpn_iterations=3, rpn_steps=(2,), box_iterations=2, box_steps=(1,))
    return lab.changed(own, alternating=lengths, solver__checkpoint_every=1)


@pytest.fixture(scope="module")
def file(config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(dump_config(config))
    return path


@pytest.fixture(scope="module")
def whole(file, succeeds, tmp_path_factory) -> Path:
    """The directory of a run of the command that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    done = succeeds("alternating", file, "--output-dir", output)
    assert [f"step {number} of 4: {output / f'step{number}'}" in done for number in (1, 2, 3, 4)] == [True] * 4
    assert done.count("COCO box AP") == 1  # of the last step
    assert [(output / f"step{n}" / "result.json").exists() for n in (1, 2, 3, 4)] == [False, False, False, True]
    return output


@pytest.fixture(scope="module")
def weights(lab):
    return lambda output, number: lab.weights_of(output / f"step{number}", ITERATIONS[number])


def test_parts_come_from_their_step_and_only_what_trains_changes(config, whole, weights, lab) -> None:
    first, second, third, fourth = (weights(whole, number) for number in (1, 2, 3, 4))
    for later, earlier, name in (
        *((fourth, second, "backbone"), (third, second, "backbone")),
        *((fourth, third, "rpn"), (third, second, "box_stage")),
    ):
        assert lab.differing(part(later, name), part(earlier, name)) == []
    for name in ("backbone", "rpn", "box_stage"):
        assert lab.differing(part(first, name), part(second, name))
    assert lab.differing(part(third, "rpn"), part(second, "rpn"))
    assert lab.differing(part(fourth, "box_stage"), part(third, "box_stage"))
    for name, moved in (("backbone", [3, 2, 2, 2]), ("box_stage", [0, 2, 2, 4])):  # statistics
        for state, count in zip((first, second, third, fourth), moved, strict=True):
            counters = {int(v) for key, v in part(state, name).items() if key.endswith("num_batches_tracked")}
            assert counters == {count}
    torch.manual_seed(config.seed)  # untrained parts start as the seed says: the first two with the same backbone
    start = build_detector(config, 10).state_dict()
    assert lab.differing(part(first, "box_stage"), part(start, "box_stage")) == []
    assert lab.differing(part(second, "rpn"), part(start, "rpn")) == []


class TestProposals:
    def test_are_those_of_the_step_before(self, config, digits, lab, whole, weights, tmp_path) -> None:
        many = lab.changed(config, rpn__pre_nms_test=64, rpn__post_nms_test=20)  # as in training
        index, _ = load_dataset(config.data.train, digits)
        read = {number: read_proposals(whole / f"proposals{number}.safetensors", index) for number in (1, 3)}
        assert not torch.equal(read[1].boxes, read[3].boxes)
        for number, stored in read.items():
            detector: Any = build_detector(many, 10).eval()
            detector.load_state_dict(weights(whole, number))
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
        write_training_proposals(config, whole / "step1", tmp_path / "again.safetensors")
        again = read_proposals(tmp_path / "again.safetensors", index)
        assert torch.equal(again.boxes, read[1].boxes)
        assert torch.equal(again.scores, read[1].scores)

    def test_those_stored_decide_what_step_2_learns(self, config, whole, weights, lab, tmp_path, monkeypatch) -> None:
        def first_only(path: str | Path, index: AnnotationIndex) -> StoredProposals:
            stored = read_proposals(path, index)  # of every image the first alone: the box stage sees other regions
            starts = torch.cat([stored.ends.new_zeros(1), stored.ends[:-1]])
            return StoredProposals(torch.arange(1, len(starts) + 1), stored.boxes[starts], stored.scores[starts])

        monkeypatch.setattr("detection.data.loader.read_proposals", first_only)
        shutil.copytree(whole / "step1", tmp_path / "step1")
        run_alternating(config, tmp_path, say=lambda text: None)
        assert lab.differing(part(weights(tmp_path, 2), "box_stage"), part(weights(whole, 2), "box_stage"))


class TestGoingOn:
    @staticmethod
    def files_of(output: Path) -> dict[str, int]:
        """Every file with the time of its last change."""
        return {str(path): path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}

    def test_nothing_is_left(self, config, file, whole, resdet) -> None:
        before, said = self.files_of(whole), list[str]()
        result = run_alternating(config, whole, say=said.append)
        assert result == json.loads((whole / "step4" / "result.json").read_text())
        assert said[:3] == [f"step {number} is done: {whole / f'step{number}'}" for number in (1, 2, 3)]
        again = resdet("alternating", file, "--output-dir", whole)
        assert (again.status, again.out.splitlines()[:3]) == (0, said[:3])
        assert f"{whole / 'step4'} is finished, at iteration 2;" in again.out
        assert self.files_of(whole) == before

    def test_last_step_again(self, config, whole, weights, lab, tmp_path) -> None:
        output = Path(shutil.copytree(whole, tmp_path / "run"))
        shutil.rmtree(output / "step4")
        before = self.files_of(output)
        torch.manual_seed(12345)
        assert run_alternating(config, output, say=lambda text: None)["images"] == 2
        assert lab.differing(weights(output, 4), weights(whole, 4)) == []
        after = self.files_of(output)
        assert {path: after[path] for path in before} == before

    def test_killed_inside_step_3_also_before_its_first_checkpoint(self, config, whole, weights, lab, tmp_path) -> None:
        output = tmp_path / "run"
        with lab.ends_at(3 + 2 + 2) as killed, pytest.raises(killed):
            run_alternating(config, output, say=lambda text: None)
        assert sorted(path.name for path in output.iterdir()) == ["proposals1.safetensors", "step1", "step2", "step3"]
        assert [path.stem for path in (output / "step3" / "checkpoints").glob("*.safetensors")] == ["0000001"]
        early = Path(shutil.copytree(output, tmp_path / "early"))
        shutil.rmtree(early / "step3" / "checkpoints")
        for run in (output, early):
            torch.manual_seed(12345)
            said = list[str]()
            run_alternating(config, run, say=said.append)
            kinds = ["step 1 is done", "step 2 is done", "step 3 of 4", "step 4 of 4"]
            assert [text.partition(":")[0] for text in said] == kinds
            for number in (1, 2, 3, 4):
                assert lab.differing(weights(run, number), weights(whole, number)) == []

    def test_what_a_signal_advises_goes_on_with_the_overrides(self, file, resdet, succeeds, lab, tmp_path) -> None:
        options = ("--output-dir", tmp_path, "data.limit=2", "alternating.box_iterations=1")  # in every step
        with lab.ends_at(1, signal.SIGTERM):
            stopped = resdet("alternating", file, *options)
        assert stopped.status == 75
        assert "the same command with --resume continues" in stopped.err
        done = succeeds("alternating", file, *options, "--resume")
        assert "2 images" in done
        assert json.loads((tmp_path / "step4" / "result.json").read_text())["images"] == 2
        newest = [max(path.stem for path in (tmp_path / f"step{n}").rglob("0*.safetensors")) for n in (1, 2, 3, 4)]
        assert newest == ["0000003", "0000001"] * 2
