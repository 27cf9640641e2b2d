"""Mirrors small programs of tools/ and datasets/, and those that only call a command by a name of old."""

import json

import numpy as np
import pytest

from detection.data.cards import load_dataset

COMMANDS = {"analyze": "analyze", "check_data": "check", "compare_backbones": "compare", "convert_weights": "convert"}
COMMANDS |= {"localize": "localize", "predict": "predict", "pretrain_net": "pretrain", "recompute_bn": "precise-bn"}
COMMANDS |= {"test_methods": "methods", "test_net": "test", "train_alternating": "alternating", "train_net": "train"}
COMMANDS = {f"tools/{name}.py": command for name, command in COMMANDS.items()}
COMMANDS |= {"datasets/download.py": "download", "datasets/make_digits.py": "digits"}
GEOMETRIES = "exact", "detectron2"
OPTIONS = {
    "tools/train_net.py": "digits/resnet18_c4.yaml --output-dir x --resume",
    "tools/test_net.py": "digits/resnet18_c4.yaml --weights x --ensemble y --visualize 2 --limit 3",
    "tools/pretrain_net.py": "cifar10/resnet20.yaml --output-dir x --test y",
    "tools/localize.py": "imagenet/loc_resnet101.yaml --output-dir x --resume",
    "tools/train_alternating.py": "bccd/resnet18_c4.yaml --output-dir x",
    "tools/test_methods.py": "bccd/resnet18_c4.yaml --weights x --table z --limit 3",
    "tools/recompute_bn.py": "voc/resnet101_c4_0712.yaml --output x --image-folder y --images 3",
}


@pytest.mark.parametrize(("path", "command"), COMMANDS.items())
def test_every_program_is_a_command(path, command, program) -> None:
    status, out, _ = program(path, "--help")
    assert (status, out[: len(command) + 15]) == (0, f"usage: resdet {command} ")


@pytest.mark.parametrize(("path", "options"), OPTIONS.items())
def test_old_options_are_still_taken(path, options, program) -> None:
    # The misspelt key is found after the options were parsed and before anything is read or written.
    status, _, err = program(path, f"--config-file configs/{options} solver.base_rl=1")
    assert (status, err) == (1, "error: no config key 'solver.base_rl'; did you mean 'solver.base_lr'?\n")


def test_runs_are_plotted_as_curves_of_their_names_or_their_figures_named(tmp_path, program) -> None:
    runs, picture = [tmp_path / "shallow", tmp_path / "deep"], tmp_path / "a.svg"
    for run in runs:
        run.mkdir()
        rows = [json.dumps({"iteration": 10 * i, "loss/total": 3.0 - i}) for i in (1, 2)]
        (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    status, _, _ = program("tools/plot_runs.py", f"--key bbox.AP --output {picture}", *runs)
    assert status == f"error: no figure 'bbox.AP' in {runs[0] / 'metrics.jsonl'}, which has iteration, loss/total"
    assert not picture.exists()
    _, out, _ = program("tools/plot_runs.py", f"--key loss/total --output {picture}", *runs)
    assert out == f"2 runs: {picture}\n"
    drawn = picture.read_text()
    assert drawn.startswith("<svg")
    assert all(text in drawn for text in (">shallow<", ">deep<", ">iterations<", ">loss/total<"))


def test_a_mosaic_has_the_pixels_and_objects_of_its_images(make_coco, write_card, tmp_path, names_of) -> None:
    box = {"category_id": 18, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0}
    objects = [{"id": 1, "image_id": 4, **box}, {"id": 2, "image_id": 1, **box}]
    make_coco({number: f"{number}.png" for number in range(1, 5)}, objects)
    index, _ = load_dataset([f"{write_card('coco')}:train"], tmp_path)
    names_of("write_mosaics.py")["write_mosaics"](index, tmp_path / "large", side=2, count=1)
    large, problems = load_dataset([f"{tmp_path / 'large' / 'card.yaml'}:test"], tmp_path)
    assert (len(large), problems, large.sizes.tolist()) == (1, [], [[120, 160]])
    np.testing.assert_array_equal(large.image(0)[60:, 80:], index.image(3))
    assert large.boxes.tolist() == [[10, 20, 40, 35], [90, 80, 120, 95]]
    assert large.labels.tolist() == [1, 1]


def test_each_kind_of_config_has_a_schema_of_its_keys(tmp_path, names_of) -> None:
    names_of("write_schemas.py")["main"](tmp_path / "schema")
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "schema").iterdir()}
    assert set(written) == {"classification", "detection", "edges", "localization"}
    assert "architecture" in written["detection"]["properties"]
    assert all(schema["additionalProperties"] is False for schema in written.values())


@pytest.mark.data
@pytest.mark.parametrize("geometry", ["torchvision", *(pytest.param(g, marks=pytest.mark.slow) for g in GEOMETRIES)])
def test_perfect_masks_of_coco128_keep_their_shape_but_for_torchvisions_geometry(
    geometry, data_root_for_tests, names_of
) -> None:
    index, _ = load_dataset(["coco128:seg_val"], data_root_for_tests, fields=("masks",))
    result = names_of("mask_oracle.py")["measure"](index, 28, geometry)
    if geometry == "torchvision":
        assert (100 * result.AP, 100 * result.APs) == (pytest.approx(88.4, abs=0.3), pytest.approx(74.4, abs=0.5))
    else:
        assert result.AP > 0.954
        assert result.APs > 0.963
