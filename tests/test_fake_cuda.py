"""Operations that would mix devices on a GPU, found without one: torch's fake tensors know their device and no values.

No shape in the model depends on a value, so whole steps and tests run under them; backward passes can't, since they ask
the driver.
"""

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from backbones.registry import build_backbone
from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass
from detection.config.sections import SolverConfig
from detection.data.dataset import Batch
from detection.engine.ema import EMA
from detection.engine.optim import build_optimizer, clip_gradients
from detection.model.faster_rcnn import FasterRCNN
from detection.padded import Regions, Targets
from detection.structures import ImageBatch, Target, present

SIZE = (64, 96)
CONFIGS = yaml.safe_load("""
tail: {backbone: {name: resnet18, roi_size: 2}, anchors: {sizes: [16, 32]}, box: {context: true}}
pyramid: {architecture: mask_rcnn, mask: {channels: 8}}
keypoints: {architecture: keypoint_rcnn, keypoint: {names: [head, tail], convs: 1, channels: 8}}
""")
PYRAMID = yaml.safe_load("""
backbone: {name: resnet18, norm: gn, fpn: true, fpn_channels: 8}
anchors: {sizes: [8, 16, 32, 64, 128]}
rpn: {channels: 8, samples_per_image: 16}
box: {head: fc, pool: roi_align, head_channels: 8, class_agnostic: true}
""")


@pytest.fixture(autouse=True)
def fake():
    with FakeTensorMode() as mode:
        yield mode


def make_detector(name, fake):
    with unset_fake_temporarily():
        detector = build_detector(build_dataclass(DetectionConfig, PYRAMID | CONFIGS[name]), 3)
    assert isinstance(detector, FasterRCNN)
    move(detector, fake)
    return detector


def move(model, fake) -> None:
    """From the CPU, where it was built; a tensor that is neither parameter nor buffer stays behind."""
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            moved = fake.from_tensor(parameter).to("cuda").detach()
            setattr(module, key, nn.Parameter(moved, requires_grad=parameter.requires_grad))
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, fake.from_tensor(buffer).to("cuda"))


def make_batch():
    """As a loader gives it, on the CPU."""
    pixels, sizes = torch.zeros(2, 3, *SIZE, dtype=torch.uint8), torch.tensor([SIZE, (48, 96)])
    labels, masks = torch.zeros(2, dtype=torch.int64), torch.zeros(2, *SIZE, dtype=torch.bool)
    target = Target(torch.rand(2, 4), labels, labels.bool(), masks, torch.rand(2, 2, 3))
    images, boxes = ImageBatch(pixels, sizes, torch.zeros(2, dtype=torch.int64)), torch.rand(2, 5, 4)
    regions = Regions(boxes=boxes, valid=torch.ones(2, 5, dtype=torch.bool), scores=boxes[..., 0])
    return Batch(images, Targets.pad([target, target]), (0, 1), ("a.jpg", "b.jpg"), regions)


def assert_on_gpu(tensors) -> None:
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)} == {"cuda"}


def test_a_batch_arrives_whole_and_mixed_devices_are_found() -> None:
    moved = make_batch().to("cuda")
    parts = [present(part) for part in (moved.images, moved.targets, moved.proposals) if part is not None]
    tensors = [tensor for part in parts for tensor in part.values() if isinstance(tensor, Tensor)]
    assert len(tensors) == 13
    assert_on_gpu(tensors)
    on_cpu, on_gpu = torch.rand(2), torch.rand(2, device="cuda")
    with pytest.raises(RuntimeError, match="cuda"):
        on_gpu.add(on_cpu)


@pytest.mark.parametrize(
    "name", ["plain18", "seresnet18", "resnet18d", "preact_resnet18", "cifar_resnet20", "all_cnn_c", "vgg11_bn"]
)
def test_features_of_a_backbone_of_every_kind(fake, name) -> None:
    with unset_fake_temporarily():
        backbone = build_backbone(name)
    move(backbone, fake)
    assert_on_gpu(backbone(torch.rand(2, 3, *SIZE, device="cuda")).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_step_forward_and_a_whole_test(fake, name) -> None:
    detector, batch = make_detector(name, fake), make_batch().to("cuda")
    losses = detector(batch.images, batch.targets)
    assert len(losses) >= 4
    assert_on_gpu(losses.values())
    with torch.no_grad():
        found = detector.eval().detect(batch.images)
    assert found.boxes.shape[::2] == (2, 4)
    assert_on_gpu(present(found).values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_the_optimizer_and_of_the_average(fake, optimizer) -> None:
    detector, average = make_detector("tail", fake), EMA(nn.Identity(), 0.9)
    average.model = make_detector("tail", fake)  # deepcopy would copy the mode of fake tensors, too
    for parameter in detector.parameters():
        parameter.grad = torch.zeros_like(parameter)
    descent = build_optimizer(detector, SolverConfig(optimizer=optimizer))
    norm = clip_gradients(descent, 1.0)
    descent.step()
    average.update(detector)
    assert_on_gpu([norm, *average.model.state_dict().values()])
