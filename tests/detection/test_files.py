"""Mirrors detection/files.py, and detection/packaged.py in a clone; tests/test_wheel.py has the same of a package."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from detection.files import digest, write_text, write_whole
from detection.packaged import CONFIGS, DATA, find_config, headlines, names_below

ROOT = Path(__file__).parents[2]


def test_new_content_takes_the_place_of_the_old_with_the_permissions_of_any_file(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.txt", tmp_path / "plain"
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
    plain.touch()
    write_whole(path, lambda temporary: save_file({"x": torch.zeros(1)}, temporary))
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_an_error_on_the_way_leaves_the_old_content(tmp_path: Path, kind) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fails(temporary: Path) -> None:
        temporary.write_text("ne")
        raise kind("file write failed")

    with pytest.raises(OSError, match=r"a\.txt can't be written: file write failed; \d+ MiB are free there"):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"absent/a\.txt can't be written: .*No such file or directory"):
        write_text(tmp_path / "absent" / "a.txt", "new")


def test_digest_by_hand_tells_apart_what_differs_and_nothing_else() -> None:
    assert digest(None) == hashlib.sha256(b"None").hexdigest()
    expected = hashlib.sha256(b"mapping of 1" + b"'a'" + b"torch.uint8(2,)" + bytes([1, 2])).hexdigest()
    assert digest({"a": torch.tensor([1, 2], dtype=torch.uint8)}) == expected
    for one, other in (
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([1, [2]], [1, 2]),
        ([], {}),
        (1, 1.0),
        ("1", 1),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(0), torch.zeros(0, 1)),
        (torch.tensor(1.0), torch.tensor(-1.0)),
    ):
        assert digest(one) != digest(other), (one, other)
    assert digest({"a": (1, 2), "b": 2}) == digest({"b": 2, "a": [1, 2]})
    for shape in ((0,), (0, 4), (3, 0)):  # numpy's empty arrays have no memory of their own
        assert digest(torch.from_numpy(np.zeros(shape, np.int64))) == digest(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_digest_sees_values_of_every_type_and_no_memory_format(dtype: torch.dtype) -> None:
    values = (torch.arange(24).reshape(1, 2, 3, 4) % 2).to(dtype)
    other = values.clone()
    other[0, 1, 2, 3] = 1 - other[0, 1, 2, 3].int()
    assert digest(values.to(memory_format=torch.channels_last)) == digest(values) != digest(other)


# Packaged files


def test_a_packaged_config_is_found_from_any_folder_unless_a_file_has_its_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("configs/voc/vgg16_c4_07.yaml")
    for name in ("voc/vgg16_c4_07", "voc/vgg16_c4_07.yaml", own):
        assert find_config(name).resolve() == ROOT / own
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert find_config(own) == own
    with pytest.raises(
        ValueError, match="no config file and no folder 'voc/resnet101_c4_712'; did you mean 'voc/resnet101_c4_0712'"
    ):
        find_config("voc/resnet101_c4_712")


def test_names_and_headlines_are_those_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.yaml").write_text("# Of A et al. 2015,\n# the first.  More.\nkey: 1\n")
    (tmp_path / "a.yaml").write_text("key: 1\n")
    (tmp_path / "notes.txt").touch()
    assert names_below(tmp_path) == ["a", "b/one"]
    assert headlines(tmp_path) == [("a", ""), ("b/one", "Of A et al. 2015, the first.")]
    assert [name for name, line in headlines(CONFIGS) if not line] == []
    assert DATA == ROOT / "datasets"
