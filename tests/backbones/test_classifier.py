"""Mirrors classifier.py: with torchvision's weights the outputs are torchvision's, and with timm's they are timm's."""

import math
import re
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from backbones.classifier import Classifier
from backbones.registry import build_backbone


def random_state(module: nn.Module) -> dict[str, Tensor]:
    """Values for every entry of a state dict, statistics of batch normalisation included, that keep outputs near 1."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, entry in module.state_dict().items():
        low, high = (-0.2, 0.2) if name.endswith(("running_mean", "bias")) else (0.5, 1.5)
        if entry.ndim > 1:
            high = math.sqrt(3 / entry[0].numel())
            low = -high
        counter = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(7) if counter else torch.empty(entry.shape).uniform_(low, high, generator=generator)
    return state


@torch.no_grad()
def assert_equal(ours: nn.Module, theirs: nn.Module, dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected, got = theirs.to(dtype).eval()(images), ours.to(dtype).eval()(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "vgg11", "vgg16_bn"])
def test_outputs_equal_torchvisions(meta, name: str) -> None:
    theirs = meta(get_model, name, weights=None)
    state = random_state(theirs)
    theirs.load_state_dict(state, assign=True)
    ours = Classifier(meta(name), 1000).to_empty(device="cpu")
    report = ours.load_torchvision(state)
    assert len(report.loaded) == sum(not key.endswith("num_batches_tracked") for key in state)
    assert (report.missing, report.unused, report.mismatched) == ((), (), ())
    assert_equal(ours, theirs, torch.float32)


@pytest.mark.parametrize(
    "name", ["seresnet18", "seresnet50", "resnet18d", "resnet50c", "resnet101d", "resnetv2_18", "resnetv2_50"]
)
def test_outputs_equal_timms(meta, name: str) -> None:
    timm = pytest.importorskip("timm")
    options = {}
    if name == "seresnet18":  # timm squeezes 64 channels to 8, the next multiple of 8; the paper to 64 / 16
        options["block_args"] = {"attn_layer": partial(timm.layers.SEModule, rd_divisor=1)}
    theirs = timm.create_model(name, **options)
    state = random_state(theirs)
    theirs.load_state_dict(state, assign=True)
    ours = Classifier(meta(name.replace("resnetv2_", "preact_resnet")), 1000).to_empty(device="cpu")
    renamed = {rename_timm(key): value for key, value in state.items()}
    renamed["fc.weight"] = renamed["fc.weight"].flatten(1)  # a 1x1 convolution in some
    if name == "resnetv2_18":  # its first shortcut starts before the first activation, the paper's after it
        first = theirs.stages[0].blocks[0]
        theirs.stem.append(first.norm1)
        first.norm1 = nn.Identity()
    ours.load_torchvision(renamed)
    # In float64: a folded normalisation rounds otherwise, and a hundred layers of random weights carry that on.
    assert_equal(ours, theirs, torch.float64)


def rename_timm(name: str) -> str:
    """A name of timm's -> torchvision's, and for pre-activation networks ours.

    The first normalisation in a network of the latter stands before the pool here and after it there. They commute
    where its weights are positive, as those of ``random_state`` are.
    """
    name = name.replace("stages.0.blocks.0.norm1.", "bn1.").replace("stem.conv.", "conv1.").replace("head.fc.", "fc.")
    name = name.replace(".downsample.conv.", ".downsample.0.").replace(".blocks.", ".")
    name = re.sub(r"\.norm(\d)\.", r".bn\1.", re.sub(r"^norm\.", "closing.0.", name))
    return re.sub(r"^stages\.(\d)", lambda match: f"layer{int(match[1]) + 1}", name)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    classifier = Classifier(build_backbone("resnet18"), 10)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    with pytest.raises(ValueError, match=r"(?s)missing: 0.*unused: .*backbone\.layer1\.2\.conv1\.weight"):
        classifier.load_torchvision(get_model("resnet34", weights=None).state_dict())
    with pytest.raises(ValueError, match=r"mismatched: 2: fc\.weight \(module \(10, 512\), weights \(1000, 512\)\)"):
        classifier.load_torchvision(get_model("resnet18", weights=None).state_dict())
    torch.testing.assert_close(dict(classifier.state_dict()), before, rtol=0, atol=0)
    network = Classifier(build_backbone("resnet18", out_features=("c2", "c4")), 10).to("meta")  # logits of the last one
    assert [network(torch.zeros(n, 3, 40, 56, device="meta")).shape for n in (3, 0)] == [(3, 10), (0, 10)]
