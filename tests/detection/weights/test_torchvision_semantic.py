"""Mirrors detection/weights/torchvision_semantic.py: FCN and DeepLabV3 give torchvision's logits and losses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from detection.build import build_detector
from detection.structures import VOID, ImageBatch, Target
from detection.weights.origin import label_map_classes
from detection.weights.to_torchvision import to_torchvision
from detection.weights.torchvision import convert_torchvision

CLASSES = ("background", "cat", "dog", "cow", "bus")


def build(name: str, **options: bool) -> nn.Module:
    """A network of torchvision with random weights, whose residual branches are small: else 33 add up to 1,000."""
    torch.manual_seed(0)
    own = {"num_classes": len(CLASSES), "aux_loss": True} | options
    network = get_model(name, weights=None, weights_backbone=None, **own)
    for parameter, values in network.named_parameters():
        if parameter.endswith("bn3.weight"):
            nn.init.constant_(values, 0.2)
    return network


def normalized(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (pixels / 255 - mean) / std


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"])
def test_logits_and_losses_are_torchvisions_and_the_weights_go_back(builder: str) -> None:
    """The losses are those of the criterion in torchvision's references."""
    theirs = build(builder).eval()
    config, weights = convert_torchvision(theirs.state_dict(), class_names=CLASSES)
    ours = build_detector(config, len(CLASSES), pretrained=False).eval()
    ours.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    images = ImageBatch.from_images(list(torch.randint(256, (2, 3, 65, 97), generator=generator, dtype=torch.uint8)))
    labels = torch.randint(len(CLASSES), (2, 65, 97), generator=generator, dtype=torch.uint8)
    labels[0, :20] = VOID
    none = torch.zeros(0, dtype=torch.int64)
    targets = [Target(torch.zeros(0, 4), none, none.bool(), label_map=label_map) for label_map in labels]
    with torch.no_grad():
        expected = theirs(normalized(images.pixels))
        found, losses = ours(images), ours(images, targets)
    for image, logits in zip(found, expected["out"], strict=True):
        torch.testing.assert_close(image.label_scores, logits, rtol=1e-5, atol=1e-4)
    for name, output, weight in (("semantic", "out", 1.0), ("semantic_aux", "aux", 0.5)):
        loss = functional.cross_entropy(expected[output], labels.long(), ignore_index=255) * weight
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=0)
    back, code = to_torchvision(config, CLASSES, weights)
    assert code == f"model = {builder}(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)"
    assert back.keys() == theirs.state_dict().keys()
    assert all(value.equal(back[name]) for name, value in theirs.state_dict().items())


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = build("deeplabv3_resnet50", aux_loss=False).state_dict()
    return {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes.items()}


def test_a_network_without_the_second_head(state) -> None:
    config, weights = convert_torchvision(state, class_names=CLASSES)
    assert (config.architecture, config.semantic.aux_weight, config.backbone.output_stride) == ("deeplabv3", 0, 8)
    assert (config.data.shorter_side, config.backbone.norm) == (520, "bn")
    back, code = to_torchvision(config, CLASSES, weights)
    assert code.endswith("aux_loss=False)")
    assert back.keys() == state.keys()


def test_what_torchvision_lacks_does_not_go_back(state) -> None:
    config, weights = convert_torchvision(state, class_names=CLASSES)
    coarse = replace(config, backbone=replace(config.backbone, output_stride=16))
    with pytest.raises(ValueError, match=r"backbone\.output_stride 16"):
        to_torchvision(coarse, CLASSES, weights)
    other = replace(config, backbone=replace(config.backbone, norm_eps=0.1))
    with pytest.raises(ValueError, match=r"label maps: backbone\.norm_eps is 0\.1"):
        to_torchvision(other, CLASSES, weights)


def test_classes_are_counted_with_the_background(state) -> None:
    with pytest.raises(ValueError, match="the weights know 5 classes, the background included, class_names has 4"):
        convert_torchvision(state, class_names=CLASSES[1:])
    assert label_map_classes(state) == ("background", "class 1", "class 2", "class 3", "class 4")
    published = label_map_classes({"classifier.4.weight": torch.zeros(21, 1)})
    assert published[:2] + published[-1:] == ("background", "aeroplane", "tvmonitor")


def test_other_networks_are_refused_by_name() -> None:
    with torch.device("meta"):
        other = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None).state_dict()
    with pytest.raises(ValueError, match="MobileNet"):
        convert_torchvision(other, class_names=CLASSES)
