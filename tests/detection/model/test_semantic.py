"""Mirrors detection/model/semantic.py and semantic_heads.py: whole networks, tiny and seeded."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from detection.build import build_detector
from detection.build_tester import build_tester
from detection.config import detection as settings
from detection.model.architecture import class_rows
from detection.model.losses import pixel_cross_entropy
from detection.model.semantic import SemanticNetwork
from detection.model.semantic_heads import DeepLabHead
from detection.padded import Regions
from detection.structures import VOID, ImageBatch, Proposals

PLAIN = settings.DetectorBackboneConfig(name="resnet18", norm="bn", output_stride=8)
CONFIG = settings.DetectionConfig(
    architecture="fcn",
    backbone=PLAIN,
    semantic=settings.SemanticConfig(channels=16, dropout=0.0),
    solver=settings.DetectorSolverConfig(best_metric=None),
)
TRUNKS: Any = {"fcn": PLAIN, "deeplabv3": PLAIN, "semantic_fpn": replace(PLAIN, output_stride=None, fpn=True)}
SIZES = ((64, 96), (50, 71))
PIXELS = [torch.arange(3 * h * w).view(3, h, w).remainder(251).to(torch.uint8) for h, w in SIZES]
IMAGES = ImageBatch.from_images(PIXELS)


def build(architecture: str, num_classes: int = 3) -> SemanticNetwork:
    torch.manual_seed(0)
    config = replace(CONFIG, architecture=architecture, backbone=TRUNKS[architecture])
    network = build_detector(config, num_classes, pretrained=False)
    assert isinstance(network, SemanticNetwork)
    return network


@pytest.fixture
def targets(make_target):
    """A left half of the class for each image, the rest void."""

    def make(label: int) -> list[Any]:
        maps = [torch.full(size, VOID, dtype=torch.uint8) for size in SIZES]
        for label_map in maps:
            label_map[:, : label_map.shape[1] // 2] = label
        return [replace(make_target(), label_map=label_map) for label_map in maps]

    return make


def test_the_loss_is_a_mean_over_the_labelled_pixels_of_all_images() -> None:
    logits = torch.zeros(2, 4, 1, 2)
    logits[0, 1, 0, 0] = 3.0
    label_maps = torch.tensor([[[1, VOID]], [[0, 2]]], dtype=torch.uint8)
    sure = -torch.tensor([3.0, 0, 0, 0]).log_softmax(0)[0]
    expected = (sure + 2 * torch.tensor(4.0).log()) / 3
    torch.testing.assert_close(pixel_cross_entropy(logits, label_maps), expected)
    assert pixel_cross_entropy(logits.bfloat16(), label_maps).dtype == torch.float32


@pytest.mark.parametrize("architecture", TRUNKS)
def test_every_kind(architecture, targets) -> None:
    """A step trains every parameter, nothing is learnt from void, and scores are of the pixels of each image."""
    network = build(architecture).train()
    for label in (1, VOID):
        losses = network(IMAGES, targets(label))
        assert list(losses) == ["semantic"] + ["semantic_aux"] * (architecture != "semantic_fpn")
        total = torch.stack(list(losses.values())).sum()
        gradients = torch.autograd.grad(total, [p for p in network.parameters() if p.requires_grad])
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (total.item() != 0, any(gradient.any() for gradient in gradients)) == (label != VOID,) * 2
    with torch.no_grad():
        found: list[Any] = network.eval()(IMAGES)
        coarse = network.head(network.features(IMAGES), IMAGES.sizes)
    assert [(len(image), image.label_scores.shape) for image in found] == [(0, (3, *size)) for size in SIZES]
    stride = 4 if architecture == "semantic_fpn" else 8
    assert coarse.shape[2:] == (64 // stride, 96 // stride)
    fine = functional.interpolate(coarse, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[1].label_scores, fine[1, :, :50, :71])
    rows, state = class_rows(network), network.state_dict()
    heads = ["head.classes"] + ["auxiliary.classes"] * (architecture != "semantic_fpn")
    assert set(rows) == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    assert all(len(state[name]) == own.count(3) == 3 for name, own in rows.items())


def test_what_it_can_not_do_is_refused(make_target, targets) -> None:
    network, proposals = build("fcn"), Regions.pad([Proposals(torch.zeros(1, 4), torch.zeros(1))] * 2)
    with pytest.raises(ValueError, match="a data set with label maps"):
        network(IMAGES, [make_target(), make_target()])
    with pytest.raises(ValueError, match="proposals; choose architecture faster_rcnn"):
        network(IMAGES, None, proposals)
    with pytest.raises(ValueError, match=r"test\.refine"):
        build_tester(settings.PostprocessConfig(refine=True), [network])
    with pytest.raises(ValueError, match=r"semantic\.norm to gn"):  # a single image has no variance
        build("deeplabv3").train()(ImageBatch.from_images(PIXELS[:1]), targets(0)[:1])


@torch.no_grad()
def test_the_pooled_branch_leaves_the_padding_out() -> None:
    head, feature = build("deeplabv3").eval().head, torch.randn(1, 512, 8, 12)
    assert isinstance(head, DeepLabHead)
    padded = functional.pad(feature, (0, 3, 0, 5), value=9.0)
    sizes = torch.tensor([[8 * 8 - 7, 12 * 8]])  # the last row of cells has one row of pixels
    torch.testing.assert_close(head._whole(padded, sizes), head._whole(feature, None))


def test_a_plain_network_of_vgg_has_no_idle_layers() -> None:
    config = replace(CONFIG, backbone=settings.DetectorBackboneConfig(name="vgg11_bn", norm="bn"))
    with torch.device("meta"):
        network = build_detector(config, 3, pretrained=False)
    assert [name for name, _ in network.named_children()] == ["backbone", "normalize", "head", "auxiliary"]
    assert not any("fc6" in name for name in network.state_dict())
