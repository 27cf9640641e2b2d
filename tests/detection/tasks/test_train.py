import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_dataset
from detection.data.digits import CLASSES
from detection.data.images import ImageError
from detection.data.index import AnnotationIndex
from detection.data.jpeg import END
from detection.data.loader import build_train_loader
from detection.engine import trainer
from detection.engine.checkpoint import read_checkpoint
from detection.engine.log import RunLog
from detection.engine.loop import NotFiniteError, step
from detection.engine.manifest import read_manifest
from detection.tasks.pictures import IMAGES, LONGEST
from detection.tasks.test import run_test
from detection.tasks.train import run_training

STEPS = 4
LOSSES = ["loss/rpn_objectness", "loss/rpn_box", "loss/box_class", "loss/box_regression", "loss/total"]


@pytest.fixture
def watched(tiny, lab) -> DetectionConfig:
    """Looks at its test set in training, too."""
    return lab.changed(tiny, data__val=tiny.data.test)


@pytest.fixture
def untested(tiny, lab) -> DetectionConfig:
    return lab.changed(tiny, data__test=())


@pytest.fixture
def other_root(digits, tmp_path) -> Path:
    """A copy of the data that a test may spoil."""
    return Path(shutil.copytree(digits, tmp_path / "root"))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny, finished, lab, tmp_path) -> None:
    lab.run_until(tiny, tmp_path, STEPS - 1)  # the checkpoint is one step older
    torch.manual_seed(12345)  # a new process has another random state
    run_training(tiny, tmp_path, resume=True)
    lab.is_finished(tmp_path)
    names, lines = ("iteration", *LOSSES, "learning_rate", "test/bbox.AP", "test/voc.mAP"), lab.metrics_of(tmp_path)
    found, expected = ([[line.get(n) for n in names] for line in r] for r in (lines, lab.metrics_of(finished.path)))
    assert found == expected
    assert lab.iterations(tmp_path) == [1, 2, 3, 4, 4]  # the last one: evaluation
    (entry,), (first, second) = read_manifest(finished.path), read_manifest(tmp_path)
    assert (entry["exit"], entry["first_iteration"], entry["last_iteration"]) == ("finished", 0, STEPS)
    assert {name: part["images"] for name, part in entry["data"].items()} == {"train": 6, "test": 2}
    for key in ("config_sha256", "data", "versions", "hardware", "commit"):
        assert entry[key] == first[key] == second[key]
    assert first["weights_sha256"] == entry["weights_sha256"] != second["weights_sha256"]
    assert second["first_iteration"] == 2


def test_training_can_be_prolonged_and_needs_no_test_set(untested, lab, tmp_path) -> None:
    for iterations in (2, 3):
        given = lab.changed(untested, solver__iterations=iterations)
        assert run_training(given, tmp_path, resume=iterations == 3) == {}
    assert lab.iterations(tmp_path) == [1, 2, 3]
    assert read_checkpoint(tmp_path).iteration == 3
    assert not (tmp_path / "result.json").exists()


def test_resume_without_a_checkpoint_starts_anew(tiny, lab, tmp_path) -> None:
    lab.run_until(tiny, tmp_path, 1)
    run_training(tiny, tmp_path, resume=True)
    assert lab.iterations(tmp_path) == [1, 2, 3, 4, 4]
    lab.is_finished(tmp_path)


def test_runs_that_a_command_must_not_go_on_with_are_refused(tiny, lab, tmp_path) -> None:
    lab.run_until(tiny, tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run \(0000002\.safetensors\); add --resume"):
        run_training(tiny, tmp_path)
    sizes = (40.0, *tiny.anchors.sizes[1:])
    for values, message in (
        ({"backbone__name": "timm:test_resnet.r160_in1k"}, r"backbone\.name is 'timm:test_resnet\.r160_in1k' here"),
        ({"box__head_channels": 8}, "do not fit"),
        ({"anchors__sizes": sizes}, r"anchors\.sizes is \[40\.0, .*\] here, and was \[16\.0, .*\]$"),
        ({"backbone__freeze_at": 3}, r"groups of \[[\d, ]+\] parameters, .*\[[\d, ]+\].*backbone\.freeze_at and norm"),
    ):
        with pytest.raises(ValueError, match=message):
            run_training(lab.changed(tiny, **values), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"groups of .* parameters"):
        run_training(tiny, tmp_path, resume=True, fixed=("rpn",))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert read_checkpoint(tmp_path).iteration == 2


def test_files_of_a_run(tiny, finished, lab) -> None:
    run, result = finished.path, finished.result
    *steps, evaluation = lab.metrics_of(run)
    timing = {"seconds_per_step", "data_seconds", "memory_gib", "time"}
    assert [line["iteration"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert set(line) == {"iteration", "learning_rate", *LOSSES, *timing}
        assert line["loss/total"] == pytest.approx(sum(line[name] for name in LOSSES[:-1]))
    assert [line["learning_rate"] for line in steps] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])
    tested = {f"test/{name}" for name in ("bbox.AP", "bbox.AP50", "bbox.AP75", "voc.mAP")}
    assert set(evaluation) == {"iteration", *tested, "memory_gib", "time"}
    assert evaluation["test/bbox.AP"] == result["bbox"]["AP"]
    assert json.loads((run / "result.json").read_text()) == result
    assert (result["images"], result["voc"]["metric"]) == (2, "area")
    assert result["seconds_per_image"] > 0
    assert set(result["bbox"]["per_class"]) == set(result["voc"]["per_class"]) == set(CLASSES)
    assert (result["trained"], result["weights"]["iteration"]) == (STEPS, STEPS)
    assert result["weights"]["chosen_by"] is None
    assert load_config(DetectionConfig, run / "config.yaml") == tiny
    read = read_checkpoint(run)
    assert (read.config, read.class_names, read.iteration) == (tiny, CLASSES, STEPS)


def test_workers_and_looks_on_the_way_change_no_weight(tiny, watched, lab, tmp_path) -> None:
    looking = lab.changed(watched, solver__evaluate_every=2, solver__checkpoint_every=0)
    for own, lines in ((lab.changed(tiny, data__workers=1), [1, 2, 3, 4, 4]), (looking, [1, 2, 2, 3, 4, 4, 4])):
        torch.manual_seed(999)
        run_training(own, run := tmp_path / str(len(lines)))
        lab.is_finished(run)
        assert lab.iterations(run) == lines


def test_parts_of_a_step(untested, lab, tmp_path) -> None:
    accumulated = lab.changed(untested, solver__images_per_step=4, solver__accumulate=2, solver__iterations=3)
    lab.run_until(accumulated, tmp_path / "cut", 3)
    run_training(accumulated, tmp_path / "cut", resume=True)
    run_training(accumulated, tmp_path / "whole")
    cut, whole = ([[line[name] for name in LOSSES] for line in lab.metrics_of(tmp_path / r)] for r in ("cut", "whole"))
    assert cut == whole


def test_bfloat16(tiny, lab, tmp_path) -> None:
    result = run_training(lab.changed(tiny, solver__precision="bf16", solver__iterations=2), tmp_path)
    assert (result["images"], lab.iterations(tmp_path)) == (2, [1, 2, 2])
    assert {w.dtype for w in lab.weights_of(tmp_path, 2).values() if w.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("change", [lambda content: content.pop("annotations"), lambda c: c["annotations"].clear()])
def test_sets_without_ground_truth_or_objects_give_no_metric_and_choose_nothing(
    watched, lab, other_root, tmp_path, change
) -> None:
    file, run = other_root / "digits" / "coco" / "annotations" / "instances_test.json", tmp_path / "run"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    own = lab.changed(watched, data__root=str(other_root), solver__evaluate_every=1, solver__iterations=2)
    result = run_training(own, run)
    assert (result["bbox"]["AP"], result["voc"]["mAP"], result["weights"]["chosen_by"]) == (None, None, None)
    assert read_checkpoint(run).path.name == "0000002.safetensors"
    assert not [key for line in lab.metrics_of(run) for key in line if "AP" in key]


def test_averaged_weights_are_resumed_and_tested(watched, lab, tmp_path) -> None:
    """By AdamW, so that its state is part of the resume as well."""
    adamw = {"solver__optimizer": "adamw", "solver__base_lr": 1e-4, "solver__clip_norm": None}
    averaging, whole, cut = lab.changed(watched, solver__ema_decay=0.9, **adamw), tmp_path / "whole", tmp_path / "cut"
    run_training(averaging, whole)
    lab.run_until(averaging, cut, STEPS - 1)
    torch.manual_seed(12345)
    run_training(averaging, cut, resume=True)
    assert lab.differing(lab.weights_of(whole), lab.weights_of(cut)) == []
    states = [torch.load(run / "checkpoints" / f"{STEPS:07d}.state.pt") for run in (whole, cut)]
    assert [state["ema"]["steps"] for state in states] == [STEPS, STEPS]
    trained = [state["ema"]["trained"] for state in states]
    assert lab.differing(*trained) == []
    assert lab.differing(trained[0], lab.weights_of(whole))  # the average is another model
    best = whole / "checkpoints" / "best.safetensors"
    assert lab.differing(load_file(best), lab.weights_of(whole)) == []
    for number, checkpoint in enumerate((whole, best)):
        output = tmp_path / str(number)
        run_test(averaging, read_checkpoint(checkpoint), output, say=lambda text: None)
        assert (output / "detections.json").read_bytes() == (whole / "detections.json").read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data__train": ()}, r"data\.train is empty"),
        ({"data__train": ("digit:train",)}, "did you mean 'digits'"),
        # Labels of one set mean nothing in the other, and the figures would be wrong without a word.
        ({"data__test": ("reversed.yaml:test",)}, "classes"),
        ({"solver__best_metric": "bbox.ap50"}, r"solver\.best_metric"),
        ({"data__train": ("voc.yaml:train",), "data__test": (), "data__copy_paste": 0.5}, "masks.* data.copy_paste"),
        ({"init": "absent"}, "init 'absent' is no run, no file"),
        ({"init": "RUN", "init_classes": {"3": "three"}}, "init_classes maps '3' to 'three'"),
    ],
)
def test_mistakes_are_named_before_any_step(
    tiny, lab, finished, make_voc, write_card, digits, tmp_path, monkeypatch, values, message
) -> None:
    splits = {"test": {"annotations": "annotations/instances_test.json", "images": "test"}}
    write_card("coco", card="reversed", root=str(digits / "digits" / "coco"), classes=[*CLASSES[::-1]], splits=splits)
    make_voc({"a": [("cat", (11, 21, 40, 50), False)]})
    write_card("voc", root=str(tmp_path / "voc"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(finished.path)
    with pytest.raises(ValueError, match=message):
        run_training(lab.changed(tiny, **values), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_pasting_reads_the_masks_without_a_mask_stage(tiny, lab, make_coco, write_card, tmp_path) -> None:
    square = {"bbox": [5, 5, 10, 10], "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]], "area": 100, "iscrowd": 0}
    make_coco({1: "a.jpg"}, [{"id": 1, "image_id": 1, "category_id": 3, **square}])
    card = (f"{write_card('coco')}:train",)
    own = lab.changed(tiny, data__train=card, data__test=card, data__root=str(tmp_path), data__copy_paste=0.5)
    run_training(lab.changed(own, solver__iterations=1), tmp_path / "run")
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.parametrize("form", ["bbox.per_class.{}.AP50", "voc.per_class.{}"])
def test_a_best_metric_of_a_class_that_val_lacks_is_said_at_the_start(
    untested, digits, lab, tmp_path, capsys, form
) -> None:
    one = {"data__limit": 1, "data__val": untested.data.train, "solver__iterations": 1, "solver__checkpoint_every": 0}
    short = lab.changed(untested, **one, rpn__post_nms_train=6000, solver__log_sinks=())
    index = load_dataset(short.data.train, digits)[0].first(1)
    present = index.class_names[int(index.labels[0])]
    lacking = next(name for label, name in enumerate(index.class_names) if label not in index.labels)
    for name in (present, lacking):
        run_training(lab.changed(short, solver__best_metric=form.format(name)), tmp_path / name)
        said = capsys.readouterr().out
        assert (f"data.val has no object of class '{lacking}'" in said) == (name == lacking)
        assert "warning: rpn.post_nms_train 6000" in said


@pytest.mark.parametrize(
    ("momentum", "decay", "factor", "decays", "factors"),
    [(0.0, 0.25, 3.0, {0.25, 0.0}, {3.0, 1.0}), (0.5, 0.0, 1.0, {0.0}, {1.0})],
)
def test_a_run_that_goes_on_with_another_config_takes_that_config_s_word_and_says_so(
    untested, lab, finished, tmp_path, capsys, momentum, decay, factor, decays, factors
) -> None:
    lab.run_until(untested, tmp_path, 3)  # the checkpoint is of iteration 2
    keys = {"solver__momentum": momentum, "solver__weight_decay": decay, "solver__bias_lr_factor": factor}
    half = {"solver__precision": "fp16"} if momentum else {}
    run_training(lab.changed(untested, **keys, **half, solver__base_lr=0.02), tmp_path, resume=True)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("config changed")]
    assert "config changed: solver.base_lr: 0.001 -> 0.02" in said
    assert f"config changed: solver.momentum: 0.9 -> {momentum}" in said
    assert len(said) == 4 + len(half)
    state = torch.load(tmp_path / "checkpoints" / f"{STEPS:07d}.state.pt", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert {group["momentum"] for group in groups} == {momentum}
    assert {group["weight_decay"] for group in groups} == decays
    assert {group["lr_factor"] for group in groups} == factors
    assert [line["learning_rate"] for line in lab.metrics_of(tmp_path)] == pytest.approx([1e-3, 1e-3, 2e-2, 2e-3])
    assert lab.differing(lab.weights_of(tmp_path), lab.weights_of(finished.path))
    assert all(weight.isfinite().all() for weight in lab.weights_of(tmp_path).values())


def later_image(config: DetectionConfig) -> Path:
    """An image of the third step that no step before has seen."""
    index, _ = load_dataset(config.data.train, Path(str(config.data.root)))
    batches = iter(build_train_loader(index, config.data, batch_size=2, seed=config.seed))
    first, second, third = (next(batches).paths for _ in range(3))
    (path, *_) = [path for path in third if path not in (*first, *second)]
    return Path(path)


class TestErrorsOnTheWay:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_unreadable_image(self, tiny, lab, other_root, tmp_path, workers) -> None:
        own = lab.changed(tiny, data__root=str(other_root), data__workers=workers, solver__checkpoint_every=0)
        path, run = later_image(own), tmp_path / "run"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + END)
        with pytest.raises(ImageError) as error:
            run_training(own, run)
        message = str(error.value)
        assert message.startswith(f"image {path} can't be read: ")
        assert "\n" not in message
        assert "Traceback" not in message
        assert read_checkpoint(run).iteration == 2
        path.write_bytes(whole)  # with the image put right, nothing is lost
        run_training(own, run, resume=True)
        lab.is_finished(run)

    def test_killed_worker(self, tiny, lab, tmp_path) -> None:
        own = lab.changed(tiny, data__workers=1, solver__checkpoint_every=0)
        path, read, trainer_pid = later_image(own), AnnotationIndex.image, os.getpid()

        def kill(index: AnnotationIndex, row: int) -> Any:
            if index.paths[row] == str(path) and os.getpid() != trainer_pid:
                time.sleep(0.5)  # for the batches before to arrive
                os.kill(os.getpid(), signal.SIGKILL)
            return read(index, row)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AnnotationIndex, "image", kill)
            with pytest.raises(ChildProcessError, match=r"loader worker \d+ was killed"):
                run_training(own, tmp_path)
        assert read_checkpoint(tmp_path).iteration >= 1
        run_training(own, tmp_path, resume=True)
        lab.is_finished(tmp_path)

    def test_unreadable_images_of_the_first_step(self, tiny, lab, other_root, tmp_path) -> None:
        own, run = lab.changed(tiny, data__root=str(other_root)), tmp_path / "run"
        for path in other_root.rglob("*.jpg"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + END)
        with pytest.raises(ImageError):
            run_training(own, run)
        assert not (run / "checkpoints").exists()  # there is nothing to save
        for path in other_root.rglob("*.jpg"):
            path.write_bytes(b"")
        named = r"(?s)digits:train' has 6 errors.*000001\.jpg.*000006\.jpg.*bad_images: drop"
        with pytest.raises(ValueError, match=named):  # found out beforehand
            run_training(own, run)

    def test_ctrl_c(self, tiny, lab, tmp_path, monkeypatch, said) -> None:
        monkeypatch.setattr(RunLog, "say", lambda log, text: said.append(text))
        lab.run_until(tiny, tmp_path, 3, KeyboardInterrupt)
        monkeypatch.undo()
        saved = tmp_path / "checkpoints" / "0000003.safetensors"
        assert said[-1] == f"stopped; saved {saved}; --resume continues from it"
        assert read_checkpoint(tmp_path).iteration == 3
        run_training(tiny, tmp_path, resume=True)
        lab.is_finished(tmp_path)

    def test_no_memory_left(self, tiny, tmp_path, monkeypatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "step", fail)
            with pytest.raises(MemoryError) as error:
                run_training(tiny, tmp_path / "step")
        for part in ("iteration 0: raise solver.accumulate (now 1, of 2 images a step)", "(64, 96)", "3 GiB"):
            assert part in str(error.value)
        assert not (tmp_path / "step" / "checkpoints").exists()
        monkeypatch.setattr("detection.tasks.train.measure", fail)  # in the evaluation
        with pytest.raises(MemoryError, match="iteration 4"):
            run_training(tiny, tmp_path / "test")
        assert read_checkpoint(tmp_path / "test").iteration == STEPS


def test_tensorboard_shows_objects_beside_detections_of_the_same_images(watched, lab, tmp_path) -> None:
    run_training(lab.changed(watched, solver__evaluate_every=2, solver__log_sinks=("tensorboard",)), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert 1 <= len(tags) <= IMAGES
    for tag in tags:
        shown = events.Images(tag)
        assert [event.step for event in shown] == [2, 4]
        assert {(event.height <= LONGEST, event.width <= 2 * LONGEST) for event in shown} == {(True, True)}
        first, second = (np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in shown)
        half = first.shape[1] // 2
        assert (first[:, :half] == second[:, :half]).all()  # the objects stay


class TestEvaluationThatIsDue:
    """A run that ended between a checkpoint and its evaluation makes up for it."""

    @pytest.fixture
    def cut_at(self, monkeypatch):
        """Ends a training where it would call the function at ``place``."""

        def fail(*_: Any, **__: Any) -> None:
            raise SystemExit

        def train(place: str, config: DetectionConfig, output: Path) -> None:
            monkeypatch.setattr(place, fail)
            with pytest.raises(SystemExit):
                run_training(config, output, resume=True)
            monkeypatch.undo()

        return train

    def test_last_one(self, watched, finished, cut_at, lab, tmp_path) -> None:
        for place in ("detection.tasks.train.measure", "detection.engine.checkpoint.shutil.copyfile"):
            cut_at(place, watched, tmp_path)
        result = run_training(watched, tmp_path, resume=True)
        assert result["bbox"] == finished.result["bbox"]
        assert lab.iterations(tmp_path) == [1, 2, 3, 4, 4, 4]
        best = load_file(tmp_path / "checkpoints" / "best.safetensors")
        assert lab.differing(best, lab.weights_of(finished.path)) == []
        assert run_training(watched, tmp_path, resume=True) == result

    def test_one_on_the_way(self, watched, lab, cut_at, tmp_path) -> None:
        often = lab.changed(watched, solver__evaluate_every=2, solver__checkpoint_every=0)
        cut_at("detection.tasks.train.measure", often, tmp_path)
        assert read_checkpoint(tmp_path).iteration == 2
        run_training(often, tmp_path, resume=True)
        assert lab.iterations(tmp_path) == [1, 2, 2, 3, 4, 4, 4]

    def test_one_that_a_signal_came_before(self, watched, lab, tmp_path) -> None:
        often = lab.changed(watched, solver__evaluate_every=3, solver__checkpoint_every=0)
        lab.run_until(often, tmp_path, 3, signal.SIGTERM)
        assert lab.iterations(tmp_path) == [1, 2, 3]
        run_training(often, tmp_path, resume=True)
        assert lab.iterations(tmp_path) == [1, 2, 3, 3, 4, 4, 4]


class TestSignals:
    @pytest.mark.usefixtures("not_under_nohup")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
    def test_the_same_command_goes_on(self, tiny, lab, tmp_path, number) -> None:
        message = lab.run_until(lab.changed(tiny, solver__checkpoint_every=0), tmp_path, 3, number)
        assert message.startswith(f"{number.name} ended the run after iteration 3 of 4; the same command with --resume")
        assert read_checkpoint(tmp_path).iteration == 3
        assert not (tmp_path / "result.json").exists()
        run_training(tiny, tmp_path, resume=True)
        lab.is_finished(tmp_path)
        first, second = read_manifest(tmp_path)
        assert (first["exit"], first["last_iteration"]) == (f"StoppedError: {message}", 3)
        assert (second["exit"], second["first_iteration"], second["last_iteration"]) == ("finished", 3, 4)

    def test_files_cut_short_do_not_stop_a_resume(self, tiny, lab, tmp_path, capsys) -> None:
        lab.run_until(tiny, tmp_path, 3, signal.SIGTERM)
        for name in ("manifest.json", "metrics.jsonl"):
            content = (tmp_path / name).read_text()
            (tmp_path / name).write_text(content[: len(content) - 9])
        (tmp_path / "result.json").write_text('{"bbox": {')
        result = run_training(lab.changed(tiny, data__limit=5), tmp_path, resume=True)
        assert json.loads((tmp_path / "result.json").read_text()) == result
        assert "manifest.json.damaged" in capsys.readouterr().out
        (tmp_path / "result.json").write_text('{"bbox": {')
        assert run_training(tiny, tmp_path, resume=True)["bbox"] == result["bbox"]
        assert "warning: data.train has changed since the last start: 5 -> 6 images" in capsys.readouterr().out


class TestNotFinite:
    @pytest.fixture
    def train(self, untested, lab):
        """Trains with losses that are not a number in the steps that begin at ``iterations``."""

        def train(output: Path, *iterations: int, resume: bool = False, **solver: Any) -> None:
            def broken(state: Any, replica: Any, *rest: Any) -> Any:
                def spoilt(*given: Any) -> Any:
                    return {name: loss * float("nan") for name, loss in replica(*given).items()}

                chosen: Any = spoilt if state.iteration in iterations else replica
                return step(state, chosen, *rest)

            keys = {f"solver__{key}": value for key, value in solver.items()}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer, "step", broken)
                run_training(lab.changed(untested, **keys), output, resume=resume)

        return train

    def test_stop_leaves_all_it_takes_to_repeat_the_step(self, untested, train, lab, tmp_path) -> None:
        run = tmp_path / "run"
        with pytest.raises(NotFiniteError, match=r"iteration 3: .*not_finite/0000003\.json has all it takes"):
            train(run, 3)
        dump = json.loads((run / "not_finite" / "0000003.json").read_text())
        assert (dump["iteration"], dump["seed"]) == (3, untested.seed)
        assert dump["config"]["solver"]["base_lr"] == untested.solver.base_lr
        (((first, second),),) = dump["files"]
        assert Path(first).is_file()
        assert Path(second).is_file()
        folder = run / "not_finite" / "0000003"
        assert dump["replay"].endswith(f"train {folder / 'config.yaml'} --output-dir {folder} --resume")
        seen = list[tuple[list[Any], dict[str, float]]]()

        def look(state: Any, replica: Any, feed: Any, *rest: Any) -> Any:
            paths = [part.paths for part in feed._next]
            losses: Any = step(state, replica, feed, *rest)
            seen.append((paths, losses))
            return losses

        with pytest.MonkeyPatch.context() as patch:  # the command takes that one step on the same images
            patch.setattr(trainer, "step", look)
            run_training(load_config(DetectionConfig, folder / "config.yaml"), folder, resume=True)
        ((paths, losses),) = seen
        assert paths == [(first, second)]
        run_training(untested, tmp_path / "whole")
        line = lab.metrics_of(tmp_path / "whole")[3]
        assert [line[f"loss/{name}"] for name in losses] == list(losses.values())

    def test_skip_up_to_so_many(self, train, lab, tmp_path) -> None:
        one, cut = tmp_path / "one", tmp_path / "cut"
        train(one, 1, on_not_finite="skip")
        assert lab.metrics_of(one)[1]["loss/total"] == 0
        with lab.ends_at(3) as killed, pytest.raises(killed):  # a run that was killed in between ends the same
            train(cut, 1, on_not_finite="skip")
        train(cut, resume=True, on_not_finite="skip")
        assert lab.differing(lab.weights_of(cut), lab.weights_of(one)) == []
        state = torch.load(cut / "checkpoints" / "0000004.state.pt", weights_only=True)
        assert state["not_finite"] == 1
        with pytest.raises(NotFiniteError, match=r"iteration 2: .*it is number 3, solver\.max_not_finite is 2"):
            train(tmp_path / "many", 0, 1, 2, on_not_finite="skip", max_not_finite=2)
        names = sorted(path.name for path in (tmp_path / "many" / "not_finite").iterdir())
        assert names == ["0000000", "0000000.json", "0000001.json", "0000002.json"]  # the state of the first only

    def test_roll_back_takes_the_weights_of_the_checkpoint_and_goes_on(self, train, lab, tmp_path, capsys) -> None:
        # The checkpoint is of iteration 2; the steps that begin at 2 and 3 are lost, and no further one follows.
        train(tmp_path / "late", 3, on_not_finite="roll_back")
        assert lab.differing(lab.weights_of(tmp_path / "late"), lab.weights_of(tmp_path / "late", 2)) == []
        assert lab.iterations(tmp_path / "late") == [1, 2, 3, 4]
        train(tmp_path / "early", 0, on_not_finite="roll_back")
        said = capsys.readouterr().out
        assert "skipped a step from the same weights, since no checkpoint is saved yet, 1 of 10" in said

    def test_weights_that_explode_are_not_saved(self, untested, lab, tmp_path) -> None:
        wild = lab.changed(untested, solver__base_lr=1e30, solver__clip_norm=None, solver__checkpoint_every=1)
        with pytest.raises(NotFiniteError) as error:
            run_training(wild, tmp_path / "new")
        for part in ("iteration 1", "rpn_objectness", "box_regression", ".jpg"):
            assert part in str(error.value)
        kept = sorted(path.name for path in (tmp_path / "new" / "checkpoints").iterdir())
        assert kept == ["0000001.safetensors", "0000001.state.pt"]
        lab.run_until(untested, tmp_path / "old", 3)
        folder = tmp_path / "old" / "checkpoints"
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(NotFiniteError, match="iteration 3"):
            run_training(lab.changed(wild, solver__checkpoint_every=0), tmp_path / "old", resume=True)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_deterministic_runs_of_several_threads_are_the_same(untested, lab, tmp_path, monkeypatch) -> None:
    sizes, threads = {"data__shorter_side": 192, "data__longer_side": 256}, torch.get_num_threads()
    settings = lab.changed(untested, **sizes, solver__iterations=2, deterministic=True)
    try:
        torch.set_num_threads(3)
        for name in ("one", "two"):
            run_training(settings, tmp_path / name)
    finally:
        torch.set_num_threads(threads)
    assert lab.differing(lab.weights_of(tmp_path / "one", 2), lab.weights_of(tmp_path / "two", 2)) == []
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr("detection.tasks.train.choose_device", lambda config: torch.device("cuda"))
    with pytest.raises(ValueError, match=r"set box\.pool to roi_align, or deterministic to false"):
        run_training(settings, tmp_path / "gpu")  # pooling without an order
    assert not (tmp_path / "gpu").exists()


def test_a_run_starts_from_the_weights_of_another_once(untested, lab, finished, tmp_path, capsys) -> None:
    source, run = Path(shutil.copytree(finished.path, tmp_path / "source")), tmp_path / "run"
    slow = lab.changed(untested, solver__iterations=1, solver__base_lr=1e-12, seed=5, init=str(source))
    run_training(slow, run)
    said, kept = capsys.readouterr().out, f"classes kept: {', '.join(CLASSES)}\n  classes new: none"
    assert f"starts from {source}" in said
    assert kept in said
    started = lab.weights_of(run, 1)
    for name, weight in lab.weights_of(finished.path).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(started[name], weight, atol=1e-6, rtol=1e-6)
    shutil.rmtree(source)
    run_training(lab.changed(slow, solver__iterations=2), run, resume=True)
    assert read_checkpoint(run).iteration == 2
