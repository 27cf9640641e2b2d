"""Mirrors load.py."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from backbones.norm import FrozenBatchNorm
from backbones.weights.load import SOURCES, LoadReport, download_torchvision, load_matching, our_names, read_state_dict

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))


def save(content, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_reads_what_was_saved_and_names_what_is_damaged(tmp_path, suffix: str) -> None:
    path = save(STATE, tmp_path / f"weights{suffix}")
    torch.testing.assert_close(read_state_dict(str(path)), STATE)
    broken = [path.read_bytes()[:-20], b"", b"not weights at all", b"PK\x03\x04 broken", bytes(range(256)) * 8]
    for wrapper in ("state_dict", "model") if suffix != ".safetensors" else ():
        torch.testing.assert_close(read_state_dict(save({wrapper: STATE, "epoch": 3}, path)), STATE)
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read weights from '.*weights\{suffix}'"):
            read_state_dict(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"no weights file '.*weights"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".pth", small_net(), r"cannot read weights from '.*other\.pth'.*more than tensors"),  # would run code
        (".pkl", small_net(), r"cannot read weights from '.*other\.pkl'.*it names torch\.nn\."),
        (".pkl", {"a": "text"}, "must map names to tensors, got a str at 'a'"),
        (".pth", [torch.zeros(1)], "must hold a mapping"),
        (".pth", torch.zeros(1), "must hold a mapping"),
        (".pth", {"a": 1}, "got a int at 'a'"),
        (".pth", {3: torch.zeros(1)}, "got a Tensor at 3"),
        (".pth", {"model": 1}, "got a int at 'model'"),
    ],
)
def test_file_without_a_mapping_of_tensors_is_named(tmp_path, suffix: str, content, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_state_dict(save(content, tmp_path / f"other{suffix}"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_reads_pickled_arrays_and_pairs_of_them(tmp_path, wrapped: bool) -> None:
    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "conv1_1": (np.ones((2, 3)), np.zeros(2))}
    content = {"model": arrays, "__author__": "me", "matching_heuristics": True} if wrapped else arrays
    state = read_state_dict(save(content, tmp_path / "weights.pkl"))
    assert {name: tuple(v.shape) for name, v in state.items()} == {"a": (2, 3), "conv1_1_w": (2, 3), "conv1_1_b": (2,)}
    torch.testing.assert_close(state["a"], STATE["a.weight"])


@pytest.mark.parametrize("digest", ["", "deadbeef"])
def test_download_is_checked_and_cached(tmp_path, monkeypatch, digest: str) -> None:
    draft = save(STATE, tmp_path / "draft.pth")
    path = draft.rename(tmp_path / f"resnet18-{digest or hashlib.sha256(draft.read_bytes()).hexdigest()[:8]}.pth")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    if not digest:
        torch.testing.assert_close(download_torchvision("resnet18"), STATE)
        path.unlink()
        torch.testing.assert_close(download_torchvision("resnet18"), STATE)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="invalid hash value" if digest else "give its path as weights"):
        download_torchvision("resnet18")


def test_a_load_reports_all_names_but_step_counters_of_either_side() -> None:
    source, target = small_net(), small_net()
    source.get_buffer("1.running_mean").fill_(5.0)
    state = dict(source.state_dict())
    report = load_matching(target, state, source="test")
    assert report == LoadReport(("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"), (), (), ())
    torch.testing.assert_close(dict(target.state_dict()), state)
    frozen = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), FrozenBatchNorm(4))
    assert load_matching(frozen, state, source="test") == report
    assert load_matching(source, frozen.state_dict(), source="test") == report
    assert load_matching(nn.ReLU(), {}, source="test") == LoadReport((), (), (), ())
    state |= {"head.bias": torch.ones(2)}
    report = load_matching(target, state, source="test", unused_ok=("head.", "neck."))
    assert (len(report.loaded), report.unused) == (5, ("head.bias",))
    with pytest.raises(ValueError, match=r"unused: 1: tail\.bias"):
        load_matching(target, state | {"tail.bias": torch.ones(2)}, source="test", unused_ok=("head.",))


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
    with pytest.raises(ValueError, match=r"'some\.pth' do not fit Sequential; nothing was loaded") as error:
        load_matching(net, state, source="'some.pth'")
    assert str(error.value).splitlines()[2:] == [
        "missing: 3: 1.bias, 1.running_mean, 1.running_var",
        "unused: 1: head.bias",
        "mismatched: 1: 0.weight (module (4, 3, 1, 1), weights (4, 1, 1, 1))",
    ]
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    long = str(LoadReport(("x",), tuple(f"p{i}" for i in range(13)), (), ()))
    assert long.splitlines()[1] == "missing: 13: p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, and 3 more"


def test_names_of_either_kind_become_ours() -> None:
    for name, ours, source in (
        ("classifier.0.weight", "fc6.weight", "torchvision"),
        ("classifier.3.bias", "fc7.bias", "torchvision"),
        ("layer1.0.bn1.bias", "layer1.0.bn1.bias", "torchvision"),
        ("classifier.6.bias", "fc.bias", "caffe"),
        ("conv1_1_w", "features.0.weight", "caffe"),
    ):
        assert list(our_names({name: Tensor()}, source=source)) == [ours]
    with pytest.raises(ValueError, match=r"have Caffe's names; set backbone\.weights_source to 'msra'"):
        our_names({"conv1_w": Tensor()}, source="torchvision")
    for name, mean in (("caffe", (102.9801, 115.9465, 122.7717)), ("msra", (103.53, 116.28, 123.675))):
        stats = SOURCES[name].input_stats
        assert (stats.mean, stats.std, stats.channel_order) == (mean, (1.0, 1.0, 1.0), "bgr")
        assert (SOURCES[name].stride_in, SOURCES[name].norm_eps) == ("1x1", 1e-5)
