"""Mirrors hed.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from backbones.extras.hed import HED, balanced_cross_entropy
from backbones.registry import build_backbone

STAGES = ("c1", "c2", "c3", "c4", "c5")


def make_hed() -> HED:
    torch.manual_seed(0)
    return HED(build_backbone("vgg11_bn", out_features=STAGES, norm="bn", roi_size=1))


def make_square(size: int = 40) -> tuple[Tensor, Tensor]:
    """A bright square, and its border."""
    image, edges = torch.zeros(1, 3, size, size), torch.zeros(1, 1, size, size)
    image[:, :, 12:28, 12:28] = 2.0
    edges[:, :, 12:28, 12:28] = 1.0
    edges[:, :, 13:27, 13:27] = 0.0
    return image, edges


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 48), (33, 50), (1, 17)])
def test_every_output_has_the_size_of_the_image(size: tuple[int, int]) -> None:
    outputs = make_hed().eval()(torch.rand(2, 3, *size))
    assert list(outputs) == [*STAGES, "fusion"]
    assert {tuple(logits.shape) for logits in outputs.values()} == {(2, 1, *size)}


@torch.no_grad()
def test_starts_at_even_odds_and_an_even_fusion() -> None:
    hed = make_hed().eval()
    assert all(not logits.any() for logits in hed(torch.rand(1, 3, 32, 32)).values())
    assert hed.fuse.weight.flatten().tolist() == pytest.approx([0.2] * 5)
    assert hed.fuse.bias is not None
    assert hed.fuse.bias.tolist() == [0]


def test_a_state_of_before_the_fusion_had_a_bias_means_a_bias_of_0() -> None:
    hed, state = make_hed(), make_hed().state_dict()
    assert hed.fuse.bias is not None
    torch.nn.init.ones_(hed.fuse.bias)
    del state["fuse.bias"]
    hed.load_state_dict(state)
    assert hed.fuse.bias.tolist() == [0]


@torch.no_grad()
def test_fusion_is_the_weighted_sum_of_the_sides_and_the_answer_the_mean_of_all() -> None:
    hed, images = make_hed().eval(), torch.rand(2, 3, 33, 50)
    for parameter in hed.sides.parameters():
        parameter.normal_()
    hed.fuse.weight.copy_(torch.arange(5.0).view(1, 5, 1, 1))
    assert hed.fuse.bias is not None
    hed.fuse.bias.fill_(0.5)
    *sides, fusion = hed(images).values()
    torch.testing.assert_close(fusion, sum(i * side for i, side in enumerate(sides)) + 0.5)
    torch.testing.assert_close(hed.edges(images), sum(x.sigmoid() for x in (*sides, fusion)) / 6)


@torch.no_grad()
def test_cells_stay_where_they_are_when_the_stride_does_not_divide_the_size() -> None:
    hed = make_hed().eval()
    for parameter in hed.sides.parameters():
        parameter.normal_()
    image = torch.rand(1, 3, 64, 64)
    padded = image.clone()
    padded[:, :, 50:] = 0
    small, large = hed(image[:, :, :50])["c3"], hed(padded)["c3"]
    torch.testing.assert_close(small[:, :, :24], large[:, :, :24], rtol=1e-4, atol=1e-4)


def test_balanced_loss_by_hand() -> None:
    edges = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.0]]).view(1, 1, 2, 2)

    def cost(x: float) -> float:
        return math.log(1 + math.exp(x))

    # three of four pixels are background: weight 3/4 for the edge, 1/4 for them
    expected = (0.75 * cost(0) + 0.25 * (cost(2) + cost(-1) + cost(0))) / 4
    assert balanced_cross_entropy(logits, edges).item() == pytest.approx(expected)
    # in an image without edges the background has no weight; the balance is each image's own
    both = balanced_cross_entropy(torch.cat([logits, logits]), torch.cat([edges, torch.zeros_like(edges)]))
    assert both.item() == pytest.approx(expected / 2)
    assert balanced_cross_entropy(logits, edges.bool()).item() == pytest.approx(expected)


def test_losses_are_of_every_output() -> None:
    hed, (image, edges) = make_hed().eval(), make_square()
    losses = hed.losses(image, edges)
    assert list(losses) == [f"edge_{name}" for name in (*STAGES, "fusion")]
    share = edges.mean().item()
    for loss in losses.values():
        assert loss.item() == pytest.approx(2 * share * (1 - share) * math.log(2), rel=1e-5)
    hed.losses(image.expand(3, -1, -1, -1), edges.expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match=r"edges must .* size, \(1, 1, 40, 40\), got \(1, 1, 20, 20\)"):
        hed.losses(image, edges[:, :, ::2, ::2])


def test_learns_the_edges_of_one_image() -> None:
    hed, (image, edges) = make_hed(), make_square()
    optimizer = torch.optim.Adam(hed.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        torch.stack(list(hed.losses(image, edges).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        found = hed(image)["fusion"].sigmoid()
    assert found[edges == 1].mean() > 0.8
    assert found[edges == 0].mean() < 0.2


def test_every_parameter_learns() -> None:
    hed, (image, edges) = make_hed(), make_square()
    with torch.no_grad():
        for parameter in hed.sides.parameters():
            parameter.normal_()
    torch.stack(list(hed.losses(image, edges).values())).sum().backward()
    assert not [name for name, p in hed.named_parameters() if p.grad is None or not p.grad.any()]


def test_detector_s_backbone_takes_the_weights() -> None:
    hed = make_hed()
    backbone = build_backbone("vgg11_bn", norm="bn", roi_size=1)
    backbone.tail()
    backbone.load_state_dict(hed.backbone.state_dict())
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(backbone.eval()(image)["c5"], hed.backbone.eval()(image)["c5"], rtol=0, atol=0)


def test_backbone_without_a_tail_and_one_feature() -> None:
    hed = HED(build_backbone("resnet18", out_features=("c5",)))
    assert list(hed(torch.rand(1, 3, 40, 33))) == ["c5", "fusion"]
