"""Mirrors detection/packaged.py, here in a clone; tests/test_wheel.py has the same of an installed package."""

from pathlib import Path

import pytest

from detection.packaged import CONFIGS, DATA, find_config, headlines, names_below

ROOT = Path(__file__).parents[2]


def test_a_packaged_config_is_found_from_any_folder_unless_a_file_has_its_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("configs/voc/vgg16_c4_07.yaml")
    for name in ("voc/vgg16_c4_07", "voc/vgg16_c4_07.yaml", own):
        assert find_config(name).resolve() == ROOT / own
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert find_config(own) == own
    with pytest.raises(ValueError, match="no config file 'voc/resnet101_c4_712'; did you mean 'voc/resnet101_c4_0712'"):
        find_config("voc/resnet101_c4_712")


def test_names_and_headlines_are_those_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.yaml").write_text("# The first.\n# More.\nkey: 1\n")
    (tmp_path / "a.yaml").write_text("key: 1\n")
    (tmp_path / "notes.txt").touch()
    assert names_below(tmp_path) == ["a", "b/one"]
    assert headlines(tmp_path) == [("a", ""), ("b/one", "The first.")]
    assert [name for name, line in headlines(CONFIGS) if not line] == []
    assert DATA == ROOT / "datasets"
