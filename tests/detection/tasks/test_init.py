import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
CPU, GPU = Machine("cpu", 0.0, 2), Machine("cuda", 80.0, 16)
# A training of a second.
SHORT = ("solver.iterations=2", "solver.warmup_iterations=0", "data.workers=0", "solver.log_sinks=[]", "device=cpu")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch) -> None:
    """Runs go to output/ of the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def begin(folder: Path, output: Any = None, *, say: Any = lambda _: None, machine: Any = CPU, **wishes: Any) -> Any:
    chosen = Wishes(**dict[str, Any](start="none") | wishes)
    return init_folder(folder, output, wishes=chosen, machine=machine, say=say)


def config_of(project: Any) -> DetectionConfig:
    return load_config(DetectionConfig, project.config)


def listed(project: Any, split: str) -> list[str]:
    return (project.card.parent / f"{split}.txt").read_text().splitlines()


class TestThreeCommands:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "title"),
        [("yolo_polygons", "YOLO txt"), ("labelme", "LabelMe JSON"), ("cvat", "CVAT XML"), ("csv", "CSV of boxes")],
    )
    def test_a_folder_is_checked_trained_on_and_predicted(self, made_folder, succeeds, kind, title) -> None:
        folder, output = made_folder(kind), Path("output") / kind
        checked = succeeds("check", folder, "--from", "none")
        assert f"{folder}: {title}" in checked
        assert "2 classes: bolt, nut" in checked
        succeeds("train", folder, *SHORT)
        assert {path.name for path in output.iterdir()} >= {"checkpoints", "config.yaml", "init", "result.json"}
        succeeds("predict", "--weights", output, folder, "--min-score", "0")
        entries = json.loads(Path("output/predictions/predictions.json").read_text())
        assert len(entries) == 12
        assert all(isinstance(entry, list) for entry in entries.values())

    @pytest.mark.slow
    @pytest.mark.data
    @pytest.mark.parametrize(("name", "title"), [("bccd", "PASCAL VOC XML"), ("coco128", "COCO JSON")])
    def test_real_folders(self, data_root_for_tests, tmp_path, resdet, name, title) -> None:
        folder = data_root_for_tests / name
        if name == "bccd":  # without its lists
            ignored = shutil.ignore_patterns("ImageSets")
            folder = shutil.copytree(data_root_for_tests / name, tmp_path / "bccd", ignore=ignored)
        checked = resdet("check", folder, "--from", "none", "--skip-images")
        assert (checked.status, title in checked.out) == (0, True)
        small = ("data.shorter_side=96", "data.longer_side=128", "data.limit=8", "data.val=[]")
        assert resdet("train", folder, *SHORT, *small).status == 0
        image = next(path for path in sorted(folder.rglob("*.jpg")))
        assert resdet("predict", "--weights", Path("output") / name, image).status == 0

    @pytest.mark.slow
    def test_train_takes_a_data_yaml_and_goes_on_with_resume(self, made_folder, succeeds) -> None:
        folder = made_folder("yolo")
        succeeds("train", folder / "data.yaml", "--from", "none", *SHORT)
        succeeds("train", folder, "--from", "none", "--resume", *SHORT[1:], "solver.iterations=3")
        assert (Path("output/yolo/checkpoints") / "0000003.safetensors").is_file()

    @pytest.mark.slow
    def test_a_training_that_nobody_reads_any_more_goes_on_to_its_end(self, made_folder) -> None:
        resdet = (sys.executable, "-m", "resdet", "train", f"'{made_folder('csv')}'", "--from", "none", *SHORT)
        small = "data.shorter_side=32 data.longer_side=48 data.val=[] | head -1; exit ${PIPESTATUS[0]}"
        command, env = ["bash", "-c", f"{' '.join(resdet)} {small}"], os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=240)
        assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")
        assert Path("output/csv/result.json").is_file()

    def test_options_of_a_folder_without_one_and_unknown_formats_are_refused(self, made_folder, resdet) -> None:
        for option in (("--from", "none"), ("--group", "x"), ("--overwrite",)):
            outcome = resdet("train", "bccd/resnet18_c4", *option)
            assert (outcome.status, option[0] in outcome.err) == (2, True)
        outcome = resdet("init", made_folder("csv"), "--format", "tfrecord")
        assert (outcome.status, "tfrecord" in outcome.err, "yolo" in outcome.err) == (2, True, True)

    @pytest.mark.slow
    def test_image_folders_get_a_config_of_pretrain(self, made_folder, tmp_path, resdet, succeeds) -> None:
        for number, photo in enumerate(sorted(made_folder("csv").glob("photos/*.jpg"))):
            target = tmp_path / "pets" / ("cat" if number % 2 else "dog") / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, target)
        begun = resdet("init", tmp_path / "pets")
        assert (begun.status, "resdet pretrain output/pets/init/config.yaml" in begun.out) == (0, True)
        assert resdet("train", tmp_path / "pets").status == 2
        small = ("backbone.name=resnet18", "classification.crop=32", "classification.shorter_side=32")
        succeeds("pretrain", "output/pets/init/config.yaml", *SHORT, *small, "--output-dir", tmp_path / "run")


class TestCard:
    def test_a_drawn_split_holds_every_image_once_and_every_class(self, made_folder) -> None:
        project = begin(made_folder("labelme", count=24))
        card = load_card(str(project.card))
        assert (card.format, card.classes, [*card.splits]) == ("labelme", ("bolt", "nut"), ["train", "val"])
        sets = [load_dataset([f"{project.card}:{name}"], Path())[0] for name in card.splits]
        paths = [path for index in sets for path in index.paths]
        assert len(paths) == len(set(paths)) == 24
        assert all(set(index.labels.tolist()) == {0, 1} for index in sets)
        project = begin(made_folder("csv", count=100))  # which is enough for a test set, too
        assert [*load_card(str(project.card)).splits] == ["train", "val", "test"]
        assert config_of(project).data.test == (f"{project.card.resolve()}:test",)

    @pytest.mark.parametrize("kind", ["voc", "voc_flat", "coco", "yolo_plain", "cvat", "label_studio", "open_images"])
    def test_the_lists_of_every_format_are_read_back(self, made_folder, kind) -> None:
        project, count = begin(made_folder(kind)), 0
        for name in ("train", "val"):
            index, problems = load_dataset([f"{project.card}:{name}"], Path())
            assert (problems, len(listed(project, name))) == ([], len(index))
            count += len(index)
        assert count == (11 if kind == "open_images" else 12)

    def test_copies_near_copies_and_groups_are_never_on_both_sides(self, made_folder, said) -> None:
        folder = made_folder("labelme", count=20)
        for number in range(0, 20, 2):
            photo, label = folder / f"photo{number}.jpg", json.loads((folder / f"photo{number}.json").read_text())
            shutil.copy(photo, folder / f"z{number * 7}copy.jpg")
            Image.open(photo).save(folder / f"z{number * 7}again.jpg", quality=50)
            for name in (f"z{number * 7}copy", f"z{number * 7}again"):
                (folder / f"{name}.json").write_text(json.dumps(label | {"imagePath": f"{name}.jpg"}))
        project = begin(folder, say=said.append)
        where = {name: split for split in ("train", "val") for name in listed(project, split)}
        assert len(where) == 40
        for number in range(0, 20, 2):
            names = (f"photo{number}.jpg", f"z{number * 7}copy.jpg", f"z{number * 7}again.jpg")
            assert len({where[name] for name in names}) == 1
        assert any("10 copies and 10 near copies" in line for line in said)
        assert not any("warning" in line for line in said)
        project = begin(made_folder("csv", count=40), group=r"photo(\d)")
        digits = [{Path(line).name[5] for line in listed(project, name)} for name in ("train", "val")]
        assert digits[0].isdisjoint(digits[1])
        folder = made_folder("yolo")  # where an image in two of its own splits is named
        first = sorted((folder / "images" / "train").iterdir())[0]
        shutil.copy(first, folder / "images" / "val" / "leaked.jpg")
        begin(folder, say=said.append)
        (warning,) = [line for line in said if line.startswith("warning")]
        assert "leaked.jpg" in warning
        assert first.name in warning

    def test_a_second_call_keeps_the_files_and_another_folder_is_refused(self, made_folder, monkeypatch) -> None:
        folder, said = made_folder("csv"), list[str]()
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="resdet init"):  # several processes do not write at once
            begin(folder)
        monkeypatch.delenv("WORLD_SIZE")
        project = begin(folder)
        project.config.write_text(project.config.read_text() + "seed: 5\n")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert init_folder(folder, machine=CPU, say=said.append) == project
        monkeypatch.delenv("WORLD_SIZE")
        assert config_of(project).seed == 5
        assert "--overwrite" in said[0]
        with pytest.raises(ValueError, match="--output-dir"):
            begin(made_folder("labelme", name="elsewhere/csv"))
        with pytest.raises(ValueError, match="starts from none"):
            begin(folder, start="output/run")
        begin(folder, overwrite=True)
        assert config_of(project).seed == 0

    def test_which_argument_means_a_folder(self, made_folder, tmp_path) -> None:
        folder, config, file = made_folder("yolo"), tmp_path / "config.yaml", tmp_path / "lists" / "mine.yaml"
        config.write_text("solver: {iterations: 3}\n")
        for path in (folder, folder / "data.yaml"):
            assert data_folder(str(path)) == path
        assert [data_folder(word) for word in (str(config), "bccd/resnet18_c4", "x=1")] == [None, None, None]
        (folder / "data.yaml").unlink()  # one that lies elsewhere leads to its folder
        file.parent.mkdir()
        file.write_text("path: ../yolo\ntrain: images/train\nval: images/val\nnames: [screw, washer]\n")
        project = begin(file)
        card = load_card(str(project.card))
        assert (card.name, card.classes, [*card.splits]) == ("yolo", ("screw", "washer"), ["train", "val"])
        assert len(load_dataset([f"{project.card}:train"], Path())[0]) == 9


class TestConfig:
    def test_every_section_has_reasons_and_follows_from_data_and_machine(self, made_folder) -> None:
        folder = made_folder("csv")
        project = begin(folder)
        config, text = config_of(project), project.config.read_text()
        sets = [(f"{project.card.resolve()}:{name}",) for name in ("train", "val", "val")]
        assert [config.data.train, config.data.val, config.data.test] == sets
        for key in ("shorter_side", "sizes", "iterations", "images_per_step", "augment", "architecture"):
            line = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
            assert "#" in line, key
        gpu = config_of(begin(folder, Path("gpu"), machine=GPU))
        assert gpu.solver.images_per_step > config.solver.images_per_step
        assert (gpu.solver.precision, config.solver.precision) == ("bf16", "fp32")
        masked = config_of(begin(made_folder("yolo_polygons")))
        found = [(one.architecture, one.solver.best_metric) for one in (config, masked)]
        assert found == [("faster_rcnn", "bbox.AP"), ("mask_rcnn", "segm.AP")]
        sided = made_folder("yolo_plain")
        (sided / "classes.txt").write_text("left_hand\nnut\n")
        assert config_of(begin(sided)).data.augment == ()  # sides are not mirrored

    def test_where_no_published_detector_can_be_had(self, made_folder, monkeypatch, said) -> None:
        def refused(*_: Any, **__: Any) -> Path:
            raise ConnectionError("the network is unreachable")

        monkeypatch.setattr(zoo, "download", refused)
        project = init_folder(made_folder("csv"), machine=CPU, say=said.append)
        assert config_of(project).init is None
        assert any("10,000 images" in line and "network is unreachable" in line for line in said)
        assert any("--from FILE" in line for line in said)
        for start, kind in (("faster_rcnn_R_50_FPN_3x", ConnectionError), ("missing.pth", ValueError)):
            with pytest.raises(kind):
                begin(made_folder("csv", name=start), start=start)


class TestTransfer:
    @pytest.mark.parametrize("name", ["retinanet", "fcos", "keypoint_rcnn", "mask_rcnn"])
    def test_keys_of_parts_that_the_detector_lacks_are_left_out(self, made_folder, name, monkeypatch) -> None:
        config = load_config(DetectionConfig, ROOT / f"configs/digits/{name}_resnet18_fpn.yaml")
        monkeypatch.setattr(init, "read_origin", lambda *_, **__: Checkpoint(Path("x"), {}, config, ("0",), 1))
        project = begin(made_folder("csv"), start="x")
        written, one_stage = parse_yaml(project.config.read_text()), name in ("retinanet", "fcos")
        sections = [key for key in ("rpn", "box", "dense", "mask", "keypoint") if key in written]
        assert sections == (["dense"] if one_stage else ["rpn", "box"])
        assert "sizes" in written["anchors"] if name != "fcos" else "anchors" not in written
        assert config_of(project).architecture == (name if one_stage else "faster_rcnn")

    @pytest.mark.slow
    def test_a_run_of_ours(self, made_folder, succeeds) -> None:
        first, folder = made_folder("csv"), made_folder("yolo_plain")
        succeeds("train", first, "--from", "none", *SHORT)
        (folder / "classes.txt").write_text("cat\ndog\n")
        small = ("data.shorter_side=64", "data.longer_side=96")
        trained = succeeds("train", folder, "--from", "output/csv", *SHORT, *small)
        tensors = len(origin.read_origin("output/csv").weights)
        assert f"{tensors} of {tensors} tensors carried over" in trained.replace(" num", "")
        assert "classes kept: none\n  classes new: cat, dog" in trained
        files = [f"output/{name}/init/config.yaml" for name in ("yolo_plain", "csv")]
        own, theirs = (load_config(DetectionConfig, file) for file in files)
        assert (own.init, own.anchors) == ("output/csv", theirs.anchors)
