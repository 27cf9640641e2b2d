"""Mirrors detection/model/semantic.py and semantic_heads.py: whole networks, tiny and seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from detection.build import build_detector
from detection.build_tester import build_tester
from detection.config.detection import (
    ArchitectureName,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorSolverConfig,
    PostprocessConfig,
    SemanticConfig,
)
from detection.model.architecture import class_rows
from detection.model.losses import pixel_cross_entropy
from detection.model.semantic import SemanticNetwork
from detection.model.semantic_heads import DeepLabHead
from detection.padded import Regions
from detection.structures import VOID, ImageBatch, Proposals, Target

PLAIN = DetectorBackboneConfig(name="resnet18", norm="bn", output_stride=8)
CONFIG = DetectionConfig(
    architecture="fcn",
    backbone=PLAIN,
    semantic=SemanticConfig(channels=16, dropout=0.0),
    solver=DetectorSolverConfig(best_metric=None),
)
TRUNKS = {"fcn": PLAIN, "deeplabv3": PLAIN, "semantic_fpn": replace(PLAIN, output_stride=None, fpn=True)}
every_kind = pytest.mark.parametrize("architecture", list(TRUNKS))
SIZES = ((64, 96), (50, 71))
IMAGES = ImageBatch.from_images(
    [torch.arange(3 * h * w).view(3, h, w).remainder(251).to(torch.uint8) for h, w in SIZES]
)
MakeTarget = Callable[..., Target]


def build(architecture: ArchitectureName, num_classes: int = 3) -> SemanticNetwork:
    torch.manual_seed(0)
    config = replace(CONFIG, architecture=architecture, backbone=TRUNKS[architecture])
    network = build_detector(config, num_classes, pretrained=False)
    assert isinstance(network, SemanticNetwork)
    return network


def targets(make_target: MakeTarget, label: int) -> list[Target]:
    """A left half of the class ``label`` for each image, the rest void."""
    maps = [torch.full(size, VOID, dtype=torch.uint8) for size in SIZES]
    for label_map in maps:
        label_map[:, : label_map.shape[1] // 2] = label
    return [replace(make_target(), label_map=label_map) for label_map in maps]


def test_the_loss_is_a_mean_over_the_labelled_pixels_of_all_images() -> None:
    logits = torch.zeros(2, 4, 1, 2)
    logits[0, 1, 0, 0] = 3.0
    label_maps = torch.tensor([[[1, VOID]], [[0, 2]]], dtype=torch.uint8)
    sure = -torch.tensor([3.0, 0, 0, 0]).log_softmax(0)[0]
    expected = (sure + 2 * torch.tensor(4.0).log()) / 3
    torch.testing.assert_close(pixel_cross_entropy(logits, label_maps), expected)
    assert pixel_cross_entropy(logits.bfloat16(), label_maps).dtype == torch.float32


@every_kind
def test_a_step_trains_every_parameter(architecture: ArchitectureName, make_target: MakeTarget) -> None:
    network = build(architecture).train()
    losses = network(IMAGES, targets(make_target, 1))
    assert list(losses) == ["semantic"] + ["semantic_aux"] * (architecture != "semantic_fpn")
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


@every_kind
def test_a_batch_without_a_labelled_pixel_has_no_loss(architecture: ArchitectureName, make_target: MakeTarget) -> None:
    network = build(architecture).train()
    losses = network(IMAGES, targets(make_target, VOID))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.item() == 0
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)


@torch.no_grad()
@every_kind
def test_scores_are_of_the_pixels_of_each_image(architecture: ArchitectureName) -> None:
    network = build(architecture).eval()
    found = network(IMAGES)
    assert [image.label_scores.shape for image in found if image.label_scores is not None] == [(3, *s) for s in SIZES]
    assert [len(image) for image in found] == [0, 0]
    coarse = network.head(network.features(IMAGES), IMAGES.sizes)
    stride = 4 if architecture == "semantic_fpn" else 8
    assert coarse.shape[2:] == (64 // stride, 96 // stride)
    fine = functional.interpolate(coarse, size=(64, 96), mode="bilinear", align_corners=False)
    assert found[1].label_scores is not None
    torch.testing.assert_close(found[1].label_scores, fine[1, :, :50, :71])


def test_what_it_can_not_do_is_refused(make_target: MakeTarget) -> None:
    network = build("fcn")
    with pytest.raises(ValueError, match="a data set with label maps"):
        network(IMAGES, [make_target(), make_target()])
    proposals = Regions.pad([Proposals(torch.zeros(1, 4), torch.zeros(1))] * 2)
    with pytest.raises(ValueError, match="no use for proposals"):
        network(IMAGES, None, proposals)
    with pytest.raises(ValueError, match=r"test\.refine"):
        build_tester(PostprocessConfig(refine=True), [network])


@torch.no_grad()
def test_the_pooled_branch_leaves_the_padding_out() -> None:
    network = build("deeplabv3").eval()
    head, feature = network.head, torch.randn(1, 512, 8, 12)
    assert isinstance(head, DeepLabHead)
    padded = functional.pad(feature, (0, 3, 0, 5), value=9.0)
    sizes = torch.tensor([[8 * 8 - 7, 12 * 8]])  # the last row of cells has one row of pixels
    torch.testing.assert_close(head._whole(padded, sizes), head._whole(feature, None))


def test_a_single_image_has_no_variance_for_the_pooled_branch(make_target: MakeTarget) -> None:
    one = ImageBatch.from_images([IMAGES.pixels[0]])
    with pytest.raises(ValueError, match=r"semantic\.norm to gn"):
        build("deeplabv3").train()(one, targets(make_target, 0)[:1])


@every_kind
def test_rows_of_classes_are_known(architecture: ArchitectureName) -> None:
    network, rows = build(architecture, num_classes=5), class_rows(build(architecture, num_classes=5))
    heads = ["head.classes"] + ["auxiliary.classes"] * (architecture != "semantic_fpn")
    assert set(rows) == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    state: dict[str, Tensor] = network.state_dict()
    assert all(len(state[name]) == own.count(5) == 5 for name, own in rows.items())


def test_a_plain_network_of_vgg_has_no_idle_layers() -> None:
    config = replace(CONFIG, backbone=DetectorBackboneConfig(name="vgg11_bn", norm="bn"))
    with torch.device("meta"):
        network = build_detector(config, 3, pretrained=False)
    assert [name for name, _ in network.named_children()] == ["backbone", "normalize", "head", "auxiliary"]
    assert not any("fc6" in name for name in network.state_dict())
