"""Mirrors weights.py."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights

from backbones.norm import FrozenBatchNorm
from backbones.weights.load import (
    LoadReport,
    download_torchvision,
    load_matching,
    our_names,
    read_state_dict,
    rename_torchvision,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch, *, digest: str | None = None) -> Path:
    """A file that stands for torchvision's ResNet-18 on the network, under the name that carries its hash."""
    draft = folder / "draft.pth"
    torch.save(STATE, draft)
    digest = digest or hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
    path = draft.rename(folder / f"resnet18-{digest}.pth")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(folder / "cache"))
    return path


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_reads_what_torch_saved(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(STATE if wrapper is None else {wrapper: STATE, "epoch": 3}, path)
    torch.testing.assert_close(read_state_dict(path), STATE)


def test_reads_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    torch.testing.assert_close(read_state_dict(str(path)), STATE)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken", bytes(range(256)) * 8])
def test_damaged_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read weights from '.*weights\{suffix}'"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot read weights from"):
        read_state_dict(path)


def test_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(small_net(), path)
    with pytest.raises(ValueError, match=r"module\.pth.*more than tensors"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1), {"a": 1}, {3: torch.zeros(1)}, {"model": 1}])
def test_file_without_a_mapping_of_tensors_is_named(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"other\.pth' must .* names to tensors"):
        read_state_dict(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weights file '.*absent\.pth'"):
        read_state_dict(tmp_path / "absent.pth")


def test_download_is_checked_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path, monkeypatch)
    torch.testing.assert_close(download_torchvision("resnet18"), STATE)
    path.unlink()
    torch.testing.assert_close(download_torchvision("resnet18"), STATE)


def test_download_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, monkeypatch, digest="deadbeef")
    with pytest.raises(ValueError, match="invalid hash value"):
        download_torchvision("resnet18")


def test_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, monkeypatch).unlink()
    with pytest.raises(ValueError, match=r"weights of resnet18 from file:.*give its path as weights"):
        download_torchvision("resnet18")


def test_download_of_an_unknown_model() -> None:
    with pytest.raises(ValueError, match="torchvision has no ImageNet weights for 'mynet'"):
        download_torchvision("mynet")


def test_torchvision_names_become_ours() -> None:
    names = [
        "features.0.weight",
        "classifier.0.weight",
        "classifier.3.bias",
        "classifier.6.weight",
        "layer1.0.bn1.bias",
    ]
    renamed = rename_torchvision(dict.fromkeys(names, torch.zeros(1)))
    assert list(renamed) == ["features.0.weight", "fc6.weight", "fc7.bias", "fc.weight", "layer1.0.bn1.bias"]


def test_complete_load_reports_all_names_but_step_counters() -> None:
    source, target = small_net(), small_net()
    source.get_buffer("1.running_mean").fill_(5.0)
    report = load_matching(target, source.state_dict(), source="test")
    assert report.loaded == ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert (report.missing, report.unused, report.mismatched) == ((), (), ())
    torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_step_counters_may_be_on_either_side_only() -> None:
    frozen = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), FrozenBatchNorm(4))
    counting = small_net()
    assert len(load_matching(frozen, counting.state_dict(), source="test").loaded) == 5
    assert len(load_matching(counting, frozen.state_dict(), source="test").loaded) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_single_value_that_is_not_finite_is_refused_with_its_tensor(value: float) -> None:
    net = small_net()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["1.bias"][2] = value
    with pytest.raises(ValueError, match=r"'some\.pth' have values that are not finite in 1 of .*1\.bias \(1 of 4"):
        load_matching(net, state, source="'some.pth'")
    assert net.state_dict()["1.bias"].isfinite().all()


def test_misfit_lists_every_name_with_shapes_and_changes_nothing() -> None:
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {"0.weight": torch.ones(4, 1, 1, 1), "1.weight": torch.ones(4), "head.bias": torch.ones(2)}
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load_matching(net, state, source="'some.pth'")
    assert "weights from 'some.pth' do not fit Sequential" in str(error.value)
    assert "missing: 3: 1.bias, 1.running_mean, 1.running_var" in str(error.value)
    assert "unused: 1: head.bias" in str(error.value)
    assert "mismatched: 1: 0.weight (module (4, 3, 1, 1), weights (4, 1, 1, 1))" in str(error.value)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_allowed_names_are_reported_and_the_rest_is_loaded() -> None:
    net = small_net()
    state = {name: torch.ones_like(value) for name, value in net.state_dict().items()} | {"head.bias": torch.ones(2)}
    report = load_matching(net, state, source="test", unused_ok=("head.", "neck."))
    assert report.loaded == ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert report.unused == ("head.bias",)
    assert net.get_parameter("0.weight").eq(1).all()


def test_allowing_some_names_does_not_allow_others() -> None:
    state = {**small_net().state_dict(), "head.bias": torch.ones(2), "tail.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=r"unused: 1: tail\.bias"):
        load_matching(small_net(), state, source="test", unused_ok=("head.",))


def test_empty_state_dict_of_a_module_without_parameters() -> None:
    assert load_matching(nn.ReLU(), {}, source="test") == LoadReport((), (), (), ())


def test_long_lists_are_cut() -> None:
    report = LoadReport(("x",), tuple(f"p{i}" for i in range(13)), (), ())
    assert str(report).splitlines() == [
        "loaded: 1",
        "missing: 13: p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, and 3 more",
        "unused: 0",
        "mismatched: 0",
    ]


@pytest.mark.parametrize("wrapped", [False, True])
def test_reads_pickled_arrays_and_pairs_of_them(tmp_path: Path, wrapped: bool) -> None:
    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "conv1_1": (np.ones((2, 3)), np.zeros(2))}
    content = {"model": arrays, "__author__": "me", "matching_heuristics": True} if wrapped else arrays
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content, protocol=2))
    state = read_state_dict(tmp_path / "weights.pkl")
    assert list(state) == ["a", "conv1_1_w", "conv1_1_b"]
    torch.testing.assert_close(state["a"], torch.arange(6.0).reshape(2, 3))
    assert state["conv1_1_w"].shape == (2, 3)


def test_pickle_with_other_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(small_net()))
    with pytest.raises(ValueError, match=r"cannot read weights from '.*weights\.pkl'.*it names torch\.nn\."):
        read_state_dict(path)
    path.write_bytes(pickle.dumps({"a": "text"}))
    with pytest.raises(ValueError, match=r"must map names to tensors, got a str at 'a'"):
        read_state_dict(path)


def test_names_of_either_kind_become_ours() -> None:
    assert our_names({}, source="torchvision") == {}
    assert list(our_names({"classifier.6.bias": torch.zeros(1)}, source="caffe")) == ["fc.bias"]
    assert list(our_names({"conv1_1_w": torch.zeros(1)}, source="caffe")) == ["features.0.weight"]
    with pytest.raises(ValueError, match=r"have Caffe's names; set backbone\.weights_source to 'msra'"):
        our_names({"conv1_w": torch.zeros(1)}, source="torchvision")
