"""Mirrors tasks/init.py, first_card.py and recipe.py: from a folder to a trained detector in three commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.commands.base import data_folder
from detection.config.detection import DetectionConfig
from detection.config.load import load_config, parse_yaml
from detection.data.cards import load_card, load_dataset
from detection.engine.checkpoint import Checkpoint
from detection.tasks import init
from detection.tasks.init import Wishes, init_folder
from detection.tasks.recipe import Machine
from detection.weights import origin, zoo

ROOT = Path(__file__).parents[3]

MadeFolder = Callable[..., Path]
SCRATCH = Wishes(start="none")
CPU, GPU = Machine("cpu", 0.0, 2), Machine("cuda", 80.0, 16)

# A training of a second.
SHORT = ("solver.iterations=2", "solver.warmup_iterations=0", "data.workers=0", "solver.log_sinks=[]", "device=cpu")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to output/ of the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No published detector can be had."""

    def refused(*_: Any, **__: Any) -> Path:
        raise ConnectionError("the network is unreachable")

    monkeypatch.setattr(zoo, "download", refused)


def config_of(project_config: Path) -> DetectionConfig:
    return load_config(DetectionConfig, project_config)


class TestThreeCommands:
    """check, train and predict, on folders as other tools write them."""

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["yolo_polygons", "labelme", "cvat", "csv"])
    def test_a_folder_is_checked_trained_on_and_predicted(
        self, made_folder: MadeFolder, resdet: Callable[..., Any], kind: str
    ) -> None:
        folder = made_folder(kind)
        checked = resdet("check", folder, "--from", "none")
        assert (checked.status, checked.err) == (0, "")
        title = {"yolo_polygons": "YOLO txt", "labelme": "LabelMe JSON", "cvat": "CVAT XML", "csv": "CSV of boxes"}[
            kind
        ]
        assert f"{folder}: {title}" in checked.out
        assert "2 classes: bolt, nut" in checked.out
        trained = resdet("train", folder, *SHORT)
        assert (trained.status, trained.err) == (0, "")
        output = Path("output") / kind
        assert {path.name for path in output.iterdir()} >= {"checkpoints", "config.yaml", "init", "result.json"}
        predicted = resdet("predict", "--weights", output, folder, "--min-score", "0")
        assert (predicted.status, predicted.err) == (0, "")
        entries = json.loads(Path("output/predictions/predictions.json").read_text())
        assert len(entries) == 12
        assert all(isinstance(entry, list) for entry in entries.values())

    @pytest.mark.slow
    @pytest.mark.data
    @pytest.mark.parametrize("name", ["bccd", "coco128"])
    def test_real_folders_are_checked_trained_on_and_predicted(
        self, data_root_for_tests: Path, tmp_path: Path, resdet: Callable[..., Any], name: str
    ) -> None:
        folder = data_root_for_tests / name
        if name == "bccd":  # without its lists
            folder = tmp_path / "bccd"
            shutil.copytree(data_root_for_tests / name, folder, ignore=shutil.ignore_patterns("ImageSets"))
        checked = resdet("check", folder, "--from", "none", "--skip-images")
        assert checked.status == 0
        assert ("PASCAL VOC XML" if name == "bccd" else "COCO JSON") in checked.out
        small = ("data.shorter_side=96", "data.longer_side=128", "data.limit=8", "data.val=[]")
        assert resdet("train", folder, *SHORT, *small).status == 0
        image = next(path for path in sorted(folder.rglob("*.jpg")))
        assert resdet("predict", "--weights", Path("output") / name, image).status == 0

    @pytest.mark.slow
    def test_train_takes_a_data_yaml_and_goes_on_with_resume(
        self, made_folder: MadeFolder, resdet: Callable[..., Any]
    ) -> None:
        folder = made_folder("yolo")
        assert resdet("train", folder / "data.yaml", "--from", "none", *SHORT).status == 0
        again = resdet("train", folder, "--from", "none", "--resume", *SHORT[1:], "solver.iterations=3")
        assert again.status == 0
        assert (Path("output/yolo/checkpoints") / "0000003.safetensors").is_file()

    @pytest.mark.slow
    def test_a_training_that_nobody_reads_any_more_goes_on_to_its_end(self, made_folder: MadeFolder) -> None:
        command = " ".join(
            (sys.executable, "-m", "resdet", "train", f"'{made_folder('csv')}'", "--from", "none", *SHORT)
        )
        small = " data.shorter_side=32 data.longer_side=48 data.val=[] | head -1; exit ${PIPESTATUS[0]}"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-c", command + small], check=False, capture_output=True, text=True, env=environment, timeout=240
        )
        assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")
        assert Path("output/csv/result.json").is_file()

    def test_options_of_a_folder_without_one_are_refused(self, resdet: Callable[..., Any]) -> None:
        for option in (("--from", "none"), ("--group", "x"), ("--overwrite",)):
            outcome = resdet("train", "bccd/resnet18_c4", *option)
            assert (outcome.status, option[0] in outcome.err) == (2, True)

    def test_a_format_that_is_not_known_is_refused(self, made_folder: MadeFolder, resdet: Callable[..., Any]) -> None:
        outcome = resdet("init", made_folder("csv"), "--format", "tfrecord")
        assert (outcome.status, "tfrecord" in outcome.err, "yolo" in outcome.err) == (2, True, True)

    @pytest.mark.slow
    def test_image_folders_get_a_config_of_pretrain(
        self, made_folder: MadeFolder, tmp_path: Path, resdet: Callable[..., Any]
    ) -> None:
        for number, photo in enumerate(sorted(made_folder("csv").glob("photos/*.jpg"))):
            target = tmp_path / "pets" / ("cat" if number % 2 else "dog") / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, target)
        begun = resdet("init", tmp_path / "pets")
        assert begun.status == 0
        assert "resdet pretrain output/pets/init/config.yaml" in begun.out
        assert resdet("train", tmp_path / "pets").status == 2
        small = ("backbone.name=resnet18", "classification.crop=32", "classification.shorter_side=32")
        trained = resdet("pretrain", "output/pets/init/config.yaml", *SHORT, *small, "--output-dir", tmp_path / "run")
        assert (trained.status, trained.err) == (0, "")


class TestCard:
    """What is written of the data."""

    def test_a_drawn_split_holds_every_image_once_and_every_class(self, made_folder: MadeFolder) -> None:
        project = init_folder(made_folder("labelme", count=24), wishes=SCRATCH, machine=CPU, say=lambda _: None)
        card = load_card(str(project.card))
        assert (card.format, card.classes, [*card.splits]) == ("labelme", ("bolt", "nut"), ["train", "val"])
        sets = {name: load_dataset([f"{project.card}:{name}"], Path())[0] for name in card.splits}
        paths = [path for index in sets.values() for path in index.paths]
        assert len(paths) == len(set(paths)) == 24
        assert all(set(index.labels.tolist()) == {0, 1} for index in sets.values())

    def test_a_hundred_images_give_a_test_set_too(self, made_folder: MadeFolder) -> None:
        project = init_folder(made_folder("csv", count=100), wishes=SCRATCH, machine=CPU, say=lambda _: None)
        assert [*load_card(str(project.card)).splits] == ["train", "val", "test"]
        config = config_of(project.config)
        assert config.data.test == (f"{project.card.resolve()}:test",)

    @pytest.mark.parametrize("kind", ["voc", "voc_flat", "coco", "yolo_plain", "cvat", "label_studio", "open_images"])
    def test_the_lists_of_every_format_are_read_back(self, made_folder: MadeFolder, kind: str) -> None:
        project = init_folder(made_folder(kind), wishes=SCRATCH, machine=CPU, say=lambda _: None)
        sizes = {}
        for name in ("train", "val"):
            index, problems = load_dataset([f"{project.card}:{name}"], Path())
            assert problems == []
            listed = (project.card.parent / f"{name}.txt").read_text().splitlines()
            assert len(listed) == len(index)
            sizes[name] = len(index)
        assert sum(sizes.values()) == (11 if kind == "open_images" else 12)

    def test_copies_and_near_copies_are_never_on_both_sides(self, made_folder: MadeFolder) -> None:
        from PIL import Image

        folder = made_folder("labelme", count=20)
        for number in range(0, 20, 2):
            for suffix in ("copy", "again"):
                name = f"z{number * 7}{suffix}"
                if suffix == "copy":
                    shutil.copy(folder / f"photo{number}.jpg", folder / f"{name}.jpg")
                else:
                    Image.open(folder / f"photo{number}.jpg").save(folder / f"{name}.jpg", quality=50)
                content = json.loads((folder / f"photo{number}.json").read_text())
                (folder / f"{name}.json").write_text(json.dumps(content | {"imagePath": f"{name}.jpg"}))
        said = list[str]()
        project = init_folder(folder, wishes=SCRATCH, machine=CPU, say=said.append)
        where = {
            name: split
            for split in ("train", "val")
            for name in (project.card.parent / f"{split}.txt").read_text().splitlines()
        }
        assert len(where) == 40
        for number in range(0, 20, 2):
            assert (
                len(
                    {
                        where[name]
                        for name in (f"photo{number}.jpg", f"z{number * 7}copy.jpg", f"z{number * 7}again.jpg")
                    }
                )
                == 1
            )
        assert any("10 copies and 10 near copies" in line for line in said)
        assert not any("warning" in line for line in said)

    def test_an_image_in_two_of_the_folder_s_own_splits_is_named(self, made_folder: MadeFolder) -> None:
        folder = made_folder("yolo")
        first = sorted((folder / "images" / "train").iterdir())[0]
        shutil.copy(first, folder / "images" / "val" / "leaked.jpg")
        said = list[str]()
        init_folder(folder, wishes=SCRATCH, machine=CPU, say=said.append)
        (warning,) = [line for line in said if line.startswith("warning")]
        assert "leaked.jpg" in warning
        assert str(first.name) in warning

    def test_groups_of_a_pattern_stay_together(self, made_folder: MadeFolder) -> None:
        folder = made_folder("csv", count=40)
        wishes = Wishes(start="none", group=r"photo(\d)")
        project = init_folder(folder, wishes=wishes, machine=CPU, say=lambda _: None)
        digits = [
            {Path(line).name[5] for line in (project.card.parent / f"{name}.txt").read_text().splitlines()}
            for name in ("train", "val")
        ]
        assert digits[0].isdisjoint(digits[1])

    def test_a_second_call_keeps_the_files_and_another_folder_is_refused(self, made_folder: MadeFolder) -> None:
        folder = made_folder("csv")
        project = init_folder(folder, wishes=SCRATCH, machine=CPU, say=lambda _: None)
        project.config.write_text(project.config.read_text() + "seed: 5\n")
        said = list[str]()
        assert init_folder(folder, machine=CPU, say=said.append) == project
        assert config_of(project.config).seed == 5
        assert "--overwrite" in said[0]
        other = made_folder("labelme", name="elsewhere/csv")
        with pytest.raises(ValueError, match="--output-dir"):
            init_folder(other, wishes=SCRATCH, machine=CPU, say=lambda _: None)
        with pytest.raises(ValueError, match="starts from none"):
            init_folder(folder, wishes=Wishes(start="output/run"), machine=CPU, say=lambda _: None)
        init_folder(folder, wishes=Wishes(start="none", overwrite=True), machine=CPU, say=lambda _: None)
        assert config_of(project.config).seed == 0

    def test_what_argument_means_a_folder(self, made_folder: MadeFolder, tmp_path: Path) -> None:
        folder = made_folder("yolo")
        config = tmp_path / "config.yaml"
        config.write_text("solver: {iterations: 3}\n")
        for path in (folder, folder / "data.yaml"):
            assert data_folder(str(path)) == path
        assert [data_folder(word) for word in (str(config), "bccd/resnet18_c4", "x=1")] == [None, None, None]

    def test_a_data_yaml_that_lies_elsewhere_leads_to_its_folder(self, made_folder: MadeFolder, tmp_path: Path) -> None:
        folder, file = made_folder("yolo"), tmp_path / "lists" / "mine.yaml"
        (folder / "data.yaml").unlink()
        file.parent.mkdir()
        file.write_text("path: ../yolo\ntrain: images/train\nval: images/val\nnames: [screw, washer]\n")
        project = init_folder(file, wishes=SCRATCH, machine=CPU, say=lambda _: None)
        card = load_card(str(project.card))
        assert (card.name, card.classes, [*card.splits]) == ("yolo", ("screw", "washer"), ["train", "val"])
        assert len(load_dataset([f"{project.card}:train"], Path())[0]) == 9

    def test_several_processes_do_not_write_at_once(
        self, made_folder: MadeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        folder = made_folder("csv")
        with pytest.raises(ValueError, match="resdet init"):
            init_folder(folder, wishes=SCRATCH, machine=CPU, say=lambda _: None)
        monkeypatch.setenv("WORLD_SIZE", "1")
        project = init_folder(folder, wishes=SCRATCH, machine=CPU, say=lambda _: None)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert init_folder(folder, machine=CPU, say=lambda _: None) == project


class TestConfig:
    """What follows from data and machine."""

    def test_every_section_has_reasons_and_the_file_is_a_config(self, made_folder: MadeFolder) -> None:
        project = init_folder(made_folder("csv"), wishes=SCRATCH, machine=CPU, say=lambda _: None)
        config, text = config_of(project.config), project.config.read_text()
        assert config.architecture == "faster_rcnn"
        assert (config.data.train, config.data.val) == tuple(
            (f"{project.card.resolve()}:{name}",) for name in ("train", "val")
        )
        assert config.data.test == config.data.val
        for key in ("shorter_side", "sizes", "iterations", "images_per_step", "augment", "architecture"):
            line = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
            assert "#" in line, key

    def test_objects_with_masks_get_a_mask_branch(self, made_folder: MadeFolder) -> None:
        project = init_folder(made_folder("yolo_polygons"), wishes=SCRATCH, machine=CPU, say=lambda _: None)
        config = config_of(project.config)
        assert (config.architecture, config.solver.best_metric) == ("mask_rcnn", "segm.AP")

    def test_a_gpu_gets_larger_batches_and_images(self, made_folder: MadeFolder) -> None:
        folder = made_folder("csv")
        cpu, gpu = (
            config_of(init_folder(folder, Path(kind), wishes=SCRATCH, machine=machine, say=lambda _: None).config)
            for kind, machine in (("a", CPU), ("b", GPU))
        )
        assert gpu.solver.images_per_step > cpu.solver.images_per_step
        assert (gpu.solver.precision, cpu.solver.precision) == ("bf16", "fp32")

    def test_digits_and_sides_are_not_mirrored(self, made_folder: MadeFolder) -> None:
        folder = made_folder("yolo_plain")
        (folder / "classes.txt").write_text("left_hand\nnut\n")
        assert config_of(init_folder(folder, wishes=SCRATCH, machine=CPU, say=lambda _: None).config).data.augment == ()

    def test_where_nothing_can_be_had_the_needs_of_training_from_nothing_are_said(
        self, made_folder: MadeFolder, no_network: None
    ) -> None:
        said = list[str]()
        project = init_folder(made_folder("csv"), machine=CPU, say=said.append)
        assert config_of(project.config).init is None
        assert any("10,000 images" in line and "network is unreachable" in line for line in said)
        assert any("--from FILE" in line for line in said)

    def test_a_start_that_was_asked_for_and_can_t_be_had_is_an_error(
        self, made_folder: MadeFolder, no_network: None
    ) -> None:
        for start, kind in (("faster_rcnn_R_50_FPN_3x", ConnectionError), ("missing.pth", ValueError)):
            with pytest.raises(kind):
                init_folder(made_folder("csv", name=start), wishes=Wishes(start=start), machine=CPU, say=lambda _: None)


class TestTransfer:
    """Fine-tuning from detectors whose classes are others."""

    def carried(self, resdet: Callable[..., Any], folder: Path, start: str | Path) -> str:
        trained = resdet("train", folder, "--from", start, *SHORT, "data.shorter_side=64", "data.longer_side=96")
        assert (trained.status, trained.err) == (0, "")
        return trained.out

    @pytest.mark.parametrize("name", ["retinanet", "fcos", "keypoint_rcnn", "mask_rcnn"])
    def test_keys_of_parts_that_the_detector_lacks_are_left_out(
        self, made_folder: MadeFolder, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = load_config(DetectionConfig, ROOT / f"configs/digits/{name}_resnet18_fpn.yaml")
        source = Checkpoint(Path("x"), {}, config, ("0",), 1)
        monkeypatch.setattr(init, "read_origin", lambda *_, **__: source)
        project = init_folder(made_folder("csv"), wishes=Wishes(start="x"), machine=CPU)
        written = parse_yaml(project.config.read_text())
        one_stage = name in ("retinanet", "fcos")
        assert [key for key in ("rpn", "box", "dense", "mask", "keypoint") if key in written] == (
            ["dense"] if one_stage else ["rpn", "box"]
        )
        assert "sizes" in written["anchors"] if name != "fcos" else "anchors" not in written
        assert config_of(project.config).architecture == (name if one_stage else "faster_rcnn")

    @pytest.mark.slow
    def test_a_run_of_ours(self, made_folder: MadeFolder, resdet: Callable[..., Any]) -> None:
        first, folder = made_folder("csv"), made_folder("yolo_plain")
        assert resdet("train", first, "--from", "none", *SHORT).status == 0
        (folder / "classes.txt").write_text("cat\ndog\n")
        out = self.carried(resdet, folder, "output/csv")
        tensors = len(origin.read_origin("output/csv").weights)
        assert f"{tensors} of {tensors} tensors carried over" in out.replace(" num", "")
        assert "classes kept: none\n  classes new: cat, dog" in out
        config = config_of(Path("output/yolo_plain/init/config.yaml"))
        assert (config.init, config.anchors) == ("output/csv", config_of(Path("output/csv/init/config.yaml")).anchors)
