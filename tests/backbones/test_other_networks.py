"""Mirrors all_conv.py, cifar_resnet.py, attention.py, attention_net.py, shake_shake.py and tiny_net.py.

The contract of all networks is in test_base.py, and their sizes are in test_sizes.py.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from backbones.all_conv import AllCNN
from backbones.attention import CBAM, Gate
from backbones.attention_net import AttentionNet, CifarAttentionNet, SoftMask
from backbones.base import FeatureSpec
from backbones.cifar_resnet import CifarResNet
from backbones.classifier import Classifier
from backbones.registry import build_backbone, pyramid_features
from backbones.residual import BasicBlock, PreactBasicBlock, PreactBottleneck
from backbones.shake_shake import ShakeBlock, ShakeShake, shake

ALL = {"norm": "bn", "activation": "prelu", "stochastic_depth": 0.5, "shortcut": "C"}
TRAINED = {
    "CBAM": (lambda: build_backbone("cbam_resnet18", norm="gn"), 0.01, 6, 32),
    "residual attention": (lambda: CifarAttentionNet(56, norm="bn"), 0.05, 14, 16),
    "naive attention": (lambda: CifarAttentionNet(56, norm="bn", attention="naive"), 0.05, 14, 16),
    # a map of one cell has no statistics
    "large attention": (lambda: AttentionNet(56, norm="gn"), 0.003, 14, 16),
    "shake-shake": (lambda: ShakeShake(8, norm="bn"), 0.05, 20, 16),
    "basic blocks": (lambda: CifarResNet(8, BasicBlock, **ALL), 0.1, 30, 16),
    "pre-activation blocks": (lambda: CifarResNet(8, PreactBasicBlock, **ALL), 0.1, 30, 16),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind == "large attention" else []) for kind in TRAINED]
)
def test_trains(kind: str) -> None:
    """Steps on four images of four classes halve the loss, and all parameters have a part in it."""
    torch.manual_seed(0)
    make, rate, steps, side = TRAINED[kind]
    network = Classifier(make(), 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    images, labels, losses = torch.randn(4, 3, side, side), torch.arange(4), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert min(losses[-5:]) < losses[0] / 2


@torch.no_grad()
def test_all_conv_has_convolutions_and_no_pool_and_classifies_by_the_average_of_cells() -> None:
    layers = [m for m in AllCNN(out_features=("c2",)).modules() if not list(m.children())]
    assert {type(m) for m in layers} == {nn.Conv2d, nn.ReLU, nn.Dropout}
    assert [m.stride[0] for m in layers if isinstance(m, nn.Conv2d)] == [1, 1, 2, 1, 1, 2, 1, 1]
    for backbone, rates in ((AllCNN(), [0.2, 0.5, 0.5]), (AllCNN(dropout=0), [0, 0, 0])):
        assert [m.p for m in backbone.modules() if isinstance(m, nn.Dropout)] == rates
    assert {name[:2] for name, p in AllCNN(freeze_at=2).named_parameters() if p.requires_grad} == {"c2"}
    torch.manual_seed(0)
    backbone, image = AllCNN(out_features=("c2",)).eval(), torch.rand(1, 3, 96, 80)
    # cells far from the border do not depend on the size of the image
    whole, part = backbone(image)["c2"], backbone(image[:, :, 16:80, 8:72])["c2"]
    torch.testing.assert_close(part[:, :, 6:-6, 6:-6], whole[:, :, 10:14, 8:12], rtol=1e-5, atol=1e-5)
    assert whole.std() > 0.01
    classifier, images = Classifier(build_backbone("all_cnn_c"), 10).eval(), torch.rand(2, 3, 45, 20)
    maps = classifier.tail.maps(classifier.backbone(images)["c1"])
    per_cell = functional.conv2d(maps, classifier.fc.weight[:, :, None, None], classifier.fc.bias)
    torch.testing.assert_close(classifier(images), per_cell.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


def test_stages_of_cifar_resnets_by_hand() -> None:
    with torch.device("meta"):
        specs = CifarResNet(20, BasicBlock, out_features=("c0", "c1", "c2")).specs
        wide = CifarResNet(164, PreactBottleneck, out_features=("c2",)).specs
        tail = CifarResNet(20, BasicBlock).tail()
        residual, plain = (build_backbone(f"cifar_{kind}20").state_dict() for kind in ("resnet", "plain"))
        assert (tail.roi_size, tail.maps(torch.zeros(1, 32, 14, 14)).shape) == (14, (1, 64, 7, 7))
    assert specs == {"c0": FeatureSpec(16, 1), "c1": FeatureSpec(32, 2), "c2": FeatureSpec(64, 4)}
    assert wide == {"c2": FeatureSpec(256, 4)}
    assert list(residual) == list(plain)
    assert not any("downsample" in name for name in residual)
    with pytest.raises(ValueError, match="for a feature pyramid"):
        pyramid_features("cifar_resnet20")
    for name in ("all_cnn_c", "cifar_resnet20"):
        with pytest.raises(ValueError, match="c2 is one of the features c0, c2; end them at c1"):
            build_backbone(name, out_features=("c2", "c0")).tail()


@torch.no_grad()
def test_cbam_by_hand() -> None:
    layer, x = CBAM(16), torch.ones(1, 16, 1, 2)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    x[0, 0, 0] = torch.tensor([1.0, 5.0])  # average 3, maximum 5
    layer.fc1.weight[0, 0] = layer.fc2.weight[1, 0] = 1.0  # channel 1 has 3 + 5 from channel 0, the others 0
    layer.spatial.weight[0, :, 3, 3] = torch.tensor([2.0, -1.0])  # of the mean over channels, and of their maximum
    weighed = x * torch.zeros(16).index_fill(0, torch.tensor([1]), 8.0).sigmoid().view(1, 16, 1, 1)
    cells = 2 * weighed.mean(dim=1, keepdim=True) - weighed.amax(dim=1, keepdim=True)
    torch.testing.assert_close(layer(x), weighed * cells.sigmoid())


@pytest.mark.parametrize("residual", [True, False])
def test_attention_weighs_by_the_map_or_by_one_more_than_the_map(meta, residual: bool) -> None:
    features, attention = torch.tensor([[[[2.0, -4.0]]]]), torch.tensor([[[[0.5, 0.0]]]])
    assert Gate(residual=residual)(features, attention).flatten().tolist() == ([3.0, -4.0] if residual else [1.0, 0.0])
    for kind in (AttentionNet, CifarAttentionNet):
        modules = list(meta(kind, 56, attention="residual" if residual else "naive").modules())
        assert [gate.residual for gate in modules if isinstance(gate, Gate)] == [residual] * 3
        assert [len(mask.down) for mask in modules if isinstance(mask, SoftMask)] == [3, 2, 1]  # to the same size


@pytest.mark.parametrize(
    ("kind", "depth", "options", "message"),
    [
        (CifarAttentionNet, 100, {}, "depth must be .*92"),
        (AttentionNet, 57, {}, "depth must be .*56, 92"),
        (CifarAttentionNet, 56, {"attention": "both"}, "attention must be one of .* got 'both'"),
    ],
)
def test_attention_networks_that_there_are_not(kind, depth: int, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(depth, **options)


def test_gradient_of_shake_shake_is_shared_otherwise_than_the_values_and_evenly_in_a_test() -> None:
    torch.manual_seed(0)
    one, other = torch.ones(64, 2, 3, 3, requires_grad=True), torch.zeros(64, 2, 3, 3, requires_grad=True)
    mixed = shake(one, other)  # the share of ``one``, image by image
    first, second = torch.autograd.grad(mixed.sum(), (one, other))
    torch.testing.assert_close(first + second, torch.ones_like(one))
    shares = torch.stack([mixed[:, 0, 0, 0], first[:, 0, 0, 0]])
    assert mixed.eq(shares[0].view(-1, 1, 1, 1)).all()  # one share an image
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.mean(dim=1).tolist() == pytest.approx([0.5, 0.5], abs=0.15)
    assert shares.diff(dim=0).abs().min() > 0
    assert shares.corrcoef()[0, 1].abs() < 0.4
    block, x = ShakeBlock(8, 8, stride=1, norm=nn.BatchNorm2d).eval(), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x + 0.5 * block.branch1(x) + 0.5 * block.branch2(x))
    assert not torch.equal(block.train()(x), block(x))


def test_prelu_and_dropout_of_a_tiny_net_are_where_they_are_asked_for() -> None:
    network = Classifier(build_backbone("tiny_net5_3x3", activation="prelu", dropout=0.5), 7)
    assert [m.num_parameters for m in network.modules() if isinstance(m, nn.PReLU)] == [64, 128, 256, 512]
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5]
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 7)
