import pytest
import torch
from torch import nn

from backbones.base import InputStats
from detection.engine import layout
from detection.engine.layout import FORMATS, Timing, choose_layout, set_layout, time_layouts
from detection.model.normalize import Normalize
from detection.structures import ImageBatch

CPU = torch.device("cpu")


def test_contiguous_is_taken_where_it_is_clearly_faster_and_small_images_are_not_timed(monkeypatch) -> None:
    timings = Timing(1.0, 0.89), Timing(1.0, 0.91), Timing(0.9, 1.0)  # channels last, contiguous
    assert [timing.best for timing in timings] == ["contiguous", "channels_last", "channels_last"]
    monkeypatch.setattr(layout, "time_layouts", lambda *_: Timing(2.0, 1.0))
    assert choose_layout(CPU, torch.float32, (255, 256)) == ("channels_last", None)
    assert choose_layout(CPU, torch.float32, (256, 256)) == ("contiguous", Timing(2.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_are_timed_forward_and_backward(dtype) -> None:
    timing = time_layouts(CPU, dtype, (32, 32))
    assert min(timing.channels_last, timing.contiguous) > 0


@pytest.mark.parametrize("name", ["channels_last", "contiguous"])
def test_weights_and_images_take_the_layout_and_features_follow(name) -> None:
    stats = InputStats(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channel_order="rgb")
    model = nn.Sequential(Normalize(stats, divisor=1), nn.Conv2d(3, 4, 3))
    set_layout(model, name)
    features = model(ImageBatch.from_images([torch.zeros(3, 9, 8, dtype=torch.uint8)] * 2))
    assert features.is_contiguous(memory_format=FORMATS[name])
    assert features.is_contiguous(memory_format=torch.channels_last) == (name == "channels_last")
