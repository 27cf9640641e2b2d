"""Mirrors hed.py."""

import math

import pytest
import torch
from torch import Tensor

from backbones.extras.hed import HED, STAGES, balanced_cross_entropy
from backbones.registry import build_backbone

EDGES = torch.zeros(1, 1, 40, 40)  # the border of a bright square
EDGES[:, :, 12:28, 12:28] = 1.0
IMAGE = 2 * EDGES.expand(1, 3, 40, 40)
EDGES[:, :, 13:27, 13:27] = 0.0


def make_hed(*, random_sides: bool = False) -> HED:
    torch.manual_seed(0)
    hed = HED(build_backbone("vgg11_bn", out_features=STAGES, norm="bn", roi_size=1))
    for parameter in hed.sides.parameters() if random_sides else ():
        torch.nn.init.normal_(parameter)
    return hed


def total(hed: HED) -> Tensor:
    return torch.stack(list(hed.losses(IMAGE, EDGES).values())).sum()


@torch.no_grad()
def test_every_output_has_the_size_of_the_image_and_starts_at_even_odds() -> None:
    hed = make_hed().eval()
    for size in ((32, 48), (33, 50), (1, 17)):
        outputs = hed(torch.rand(2, 3, *size))
        assert list(outputs) == [*STAGES, "fusion"]
        assert {tuple(logits.shape) for logits in outputs.values()} == {(2, 1, *size)}
        assert not any(logits.any() for logits in outputs.values())
    assert hed.fuse.weight.flatten().tolist() == pytest.approx([0.2] * 5)
    share = EDGES.mean().item()
    even = 2 * share * (1 - share) * math.log(2)
    losses = {name: loss.item() for name, loss in hed.losses(IMAGE, EDGES).items()}
    assert losses == pytest.approx({f"edge_{name}": even for name in (*STAGES, "fusion")}, rel=1e-5)
    with pytest.raises(ValueError, match=r"edges must .* size, \(1, 1, 40, 40\), got \(1, 1, 20, 20\)"):
        hed.losses(IMAGE, EDGES[:, :, ::2, ::2])
    state, bias = hed.state_dict(), hed.fuse.get_parameter("bias")
    assert state.pop("fuse.bias").tolist() == [0]  # a state of before the fusion had a bias means a bias of 0
    bias.fill_(1.0)
    hed.load_state_dict(state)
    assert bias.tolist() == [0]


@torch.no_grad()
def test_fusion_is_the_weighted_sum_of_the_sides_and_the_answer_the_mean_of_all() -> None:
    hed, images = make_hed(random_sides=True).eval(), torch.rand(2, 3, 33, 50)
    hed.fuse.weight.copy_(torch.arange(5.0).view(1, 5, 1, 1))
    hed.fuse.get_parameter("bias").fill_(0.5)
    *sides, fusion = hed(images).values()
    torch.testing.assert_close(fusion, sum(i * side for i, side in enumerate(sides)) + 0.5)
    torch.testing.assert_close(hed.edges(images), sum(x.sigmoid() for x in (*sides, fusion)) / 6)
    # cells stay where they are when the stride does not divide the size
    image = torch.rand(1, 3, 64, 64)
    image[:, :, 50:] = 0
    small, large = hed(image[:, :, :50])["c3"], hed(image)["c3"]
    torch.testing.assert_close(small[:, :, :24], large[:, :, :24], rtol=1e-4, atol=1e-4)


def test_balanced_loss_by_hand() -> None:
    edges = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.0]]).view(1, 1, 2, 2)
    costs = [math.log(1 + math.exp(x)) for x in (0, 2, -1, 0)]
    # three of four pixels are background: weight 3/4 for the edge, 1/4 for them
    expected = (0.75 * costs[0] + 0.25 * sum(costs[1:])) / 4
    for own in (edges, edges.bool()):
        assert balanced_cross_entropy(logits, own).item() == pytest.approx(expected)
    # in an image without edges the background has no weight; the balance is each image's own
    both = balanced_cross_entropy(torch.cat([logits, logits]), torch.cat([edges, torch.zeros_like(edges)]))
    assert both.item() == pytest.approx(expected / 2)


def test_every_parameter_learns_the_edges_of_an_image() -> None:
    hed = make_hed(random_sides=True)
    total(hed).backward()
    assert not [name for name, p in hed.named_parameters() if p.grad is None or not p.grad.any()]
    hed = make_hed()
    optimizer = torch.optim.Adam(hed.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        total(hed).backward()
        optimizer.step()
    with torch.no_grad():
        found = hed(IMAGE)["fusion"].sigmoid()
    assert found[EDGES == 1].mean() > 0.8
    assert found[EDGES == 0].mean() < 0.2


def test_a_backbone_without_a_tail_or_with_one_feature_and_a_detector_s_that_takes_the_weights() -> None:
    hed, image = make_hed().eval(), torch.rand(1, 3, 32, 32)
    assert list(HED(build_backbone("resnet18", out_features=("c5",)))(image)) == ["c5", "fusion"]
    backbone = build_backbone("vgg11_bn", norm="bn", roi_size=1)
    backbone.tail()
    backbone.load_state_dict(hed.backbone.state_dict())
    torch.testing.assert_close(backbone.eval()(image)["c5"], hed.backbone(image)["c5"], rtol=0, atol=0)
