"""A training so small that faults can be tried many times."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass
from detection.data.digits import write_digits

TINY = yaml.safe_load("""
backbone: {name: resnet18, norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, samples_per_image: 16, pre_nms_train: 64, pre_nms_test: 64,
  post_nms_train: 16, post_nms_test: 16, min_size: 2}
box: {samples_per_image: 8}
data: {train: ["digits:train"], shorter_side: 64, longer_side: 96, workers: 1}
device: cpu
""")


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """Gives a config with the named keys of its solver section; the data set has 8 images."""
    root = write_digits(tmp_path_factory.mktemp("root"), num_train=8, num_test=1).parent

    def make(**solver):
        options = {"log_every": 1, "steps": [], "clip_norm": 5.0, **solver}
        return build_dataclass(DetectionConfig, TINY | {"data": TINY["data"] | {"root": str(root)}, "solver": options})

    return make


@pytest.fixture(scope="session")
def assert_same():
    """Compares the weights of two runs at an iteration, bit for bit."""

    def compare(one, other, iteration) -> None:
        found, expected = (load_file(run / "checkpoints" / f"{iteration:07d}.safetensors") for run in (one, other))
        assert set(found) == set(expected)
        assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []

    return compare
