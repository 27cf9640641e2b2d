"""The built wheel, installed without the checkout in sight and used from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = (
    *("backbones/**/*", "detection/**/*", "configs/**/*.yaml", "datasets/*.yaml", "resdet.py"),
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
)
SMALL = (
    *("device=cpu", "data.workers=0", "data.shorter_side=64", "data.longer_side=96", "solver.iterations=2"),
    *("solver.images_per_step=2", "solver.log_every=1", "test.score_threshold=0.001"),
)

pytestmark = pytest.mark.slow


def run(command, cwd):
    """Returns what a program printed that was told nothing of the checkout."""
    told = {"PYTHONPATH", "RESDET_DATA_ROOT", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made from a copy of the sources, since building leaves files beside them."""
    source = tmp_path_factory.mktemp("source")
    for path in (path for pattern in SOURCES for path in ROOT.glob(pattern)):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "wheels")
    run([sys.executable, "-m", "pip", "wheel", *options, source], source)
    (built,) = (source / "wheels").glob("resdet-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel; its dependencies are those of this one, without what is installed editable."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = ("--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run([sys.executable, "-m", "pip", *install], folder)
    # A .pth file adds a folder, and leaves that folder's own .pth files alone, of which an editable install is made.
    (site_packages(folder) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def site_packages(environment):
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_packages_and_the_very_cards_and_configs(wheel) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        files = [*ROOT.glob("datasets/*.yaml"), *ROOT.glob("configs/**/*.yaml")]
        data = {f"detection/package_data/{path.relative_to(ROOT)}": path.read_bytes() for path in files}
        assert {name: archive.read(name) for name in names if name.endswith(".yaml")} == data
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    code = {path for top in ("backbones", "detection") for path in ROOT.glob(f"{top}/**/*") if path.is_file()}
    kept = {str(path.relative_to(ROOT)) for path in code if "__pycache__" not in path.parts}
    assert names - data.keys() == kept | {"resdet.py"}
    assert {"backbones/py.typed", "detection/py.typed"} <= names


def test_help_names_and_the_api_are_there_from_an_empty_folder(environment, tmp_path) -> None:
    resdet = environment / "bin" / "resdet"
    assert "usage: resdet COMMAND" in run([resdet, "--help"], tmp_path)
    assert "voc/resnet101_c4_0712" in run([resdet, "list", "configs"], tmp_path)
    assert "bccd" in run([resdet, "list", "cards"], tmp_path)
    code = "import detection, resdet; print(detection.__file__, resdet.__version__)"
    where, version = run([environment / "bin" / "python", "-c", code], tmp_path).split()
    assert Path(where).is_relative_to(environment)
    assert f"resdet {version}\n" == run([resdet, "--version"], tmp_path)
    assert files_below(tmp_path) == set()


def test_check_train_test_and_predict_from_an_empty_folder(environment, make_voc, make_coco, tmp_path) -> None:
    resdet, empty = environment / "bin" / "resdet", tmp_path / "empty"
    installed = files_below(site_packages(environment))
    objects = [("cat", (1, 1, 40, 50), False), ("dog", (20, 10, 70, 55), False)]
    make_voc({"a": objects, "b": objects[:1]}, folder="empty/datasets/pets")
    rows = [(1, 3, [1, 1, 39, 49]), (1, 18, [20, 10, 50, 45]), (2, 3, [5, 5, 40, 30])]
    names = ("id", "image_id", "category_id", "bbox", "area")
    boxes = [dict(zip(names, (n, i, c, b, b[2] * b[3]), strict=True)) for n, (i, c, b) in enumerate(rows)]
    make_coco({1: "a.png", 2: "b.png"}, boxes, folder="empty/datasets/toys")
    lists = {"pets": ("voc", {"list": "ImageSets/Main/train.txt"})}
    lists["toys"] = ("coco", {"annotations": "train.json", "images": "train"})
    for name, (kind, entry) in lists.items():
        card = {"splits": {"train": entry}, "format": kind, "classes": ["cat", "dog"]}
        (empty / "datasets" / f"{name}.yaml").write_text(yaml.safe_dump(card))
        assert "no errors" in run([resdet, "check", name], empty)

    image = "datasets/pets/JPEGImages/a.jpg"
    config = ("digits/resnet18_c4", "data.train=[pets:train]", "data.test=[toys:train]", *SMALL)
    assert "COCO box AP" in run([resdet, "train", *config, "--output-dir", "run"], empty)
    assert "COCO box AP" in run([resdet, "test", *config, "--weights", "run", "--visualize", "1"], empty)
    run([resdet, "predict", image, "--weights", "run", "--output-dir", "found", "--min-score", "0"], empty)

    result, tested = (json.loads((empty / "run" / name).read_text()) for name in ("result.json", "test/result.json"))
    assert result["images"] == tested["images"] == 2
    assert result["bbox"] == tested["bbox"]
    assert len(list((empty / "run" / "test" / "pictures").iterdir())) == 1
    assert json.loads((empty / "found" / "predictions.json").read_text()).keys() == {image}
    assert (empty / "run" / "checkpoints" / "0000002.safetensors").is_file()
    assert {path.name for path in empty.iterdir()} == {"datasets", "run", "found"}
    assert files_below(site_packages(environment)) == installed
