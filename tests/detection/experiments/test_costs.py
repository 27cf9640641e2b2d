import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detection.build import build_detector
from detection.config.detection import AnchorConfig, BoxConfig, DetectionConfig, DetectorBackboneConfig, MaskConfig
from detection.config.load import parse_config
from detection.engine.checkpoint import read_checkpoint, write_converted
from detection.engine.latency import measure_latency, percentile
from detection.experiments import costs
from detection.experiments.costs import count_gflops, measure_costs
from detection.experiments.experiment import load_experiment
from detection.experiments.latency import Place, measure_latencies
from detection.structures import Detections, ImageBatch

TEXT = """
backbone: {name: resnet18, norm: gn, roi_size: 2, freeze_at: 1}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, pre_nms_test: 64, post_nms_test: 10}
data: {shorter_side: 64, longer_side: 96, workers: 0}
device: cpu
"""
TINY = parse_config(DetectionConfig, TEXT)
BASE = """
backbone: {name: cifar_resnet20, norm: gn, roi_size: 1}
rpn: {channels: 8, pre_nms_test: 16, post_nms_test: 4}
data: {train: [coco.yaml:train], test: [coco.yaml:test], shorter_side: 32, longer_side: 48}
device: cpu
"""


def conv(in_channels: int, out_channels: int, side: int, height: int, width: int) -> int:
    """Multiply-adds of a convolution, by the size of its output."""
    return in_channels * out_channels * side * side * height * width


def plain18_c4(height: int, width: int) -> int:
    """Multiply-adds of plain-18's convolutions up to conv4_x, for sides that are multiples of 16."""
    total, channels = conv(3, 64, 7, height // 2, width // 2), 64
    for stage in range(3):
        own, h, w = 64 * 2**stage, height // 4 // 2**stage, width // 4 // 2**stage
        total += conv(channels, own, 3, h, w) + 3 * conv(own, own, 3, h, w)
        channels = own
    return total


def test_multiply_adds_are_those_of_a_count_by_hand() -> None:
    backbone = DetectorBackboneConfig(name="plain18", norm="frozen_bn", roi_size=2)
    h, w = 4, 6  # cells
    rpn = conv(256, 512, 3, h, w) + conv(512, 6, 1, h, w) + conv(512, 24, 1, h, w)
    # stride 2: 2 x 2 cells become one
    per_region = conv(256, 512, 3, 1, 1) + 3 * conv(512, 512, 3, 1, 1) + 512 * 4 + 512 * 12
    for seed, regions in enumerate((10, 30)):  # whatever the RPN finds
        torch.manual_seed(seed)
        detector = build_detector(replace(TINY, backbone=backbone, rpn=replace(TINY.rpn, channels=512)), 3)
        counted = 1e9 * count_gflops(detector, (64, 96), proposals=regions)
        expected = plain18_c4(64, 96) + rpn + regions * per_region
        # fvcore also counts the frozen norms' and the average's additions
        assert expected <= counted <= 1.02 * expected


def test_a_pyramid_is_counted_with_its_heads_and_a_detector_without_regions_whole() -> None:
    backbone = DetectorBackboneConfig(name="resnet18", norm="gn", fpn=True, fpn_channels=16)
    anchors, box = AnchorConfig(sizes=(8, 16, 32, 64, 128)), BoxConfig(head="fc", head_channels=32)
    detector = build_detector(replace(TINY, backbone=backbone, anchors=anchors, box=box), 3)
    few, many = (count_gflops(detector, (64, 96), proposals=count) for count in (10, 110))
    assert 1e9 * (many - few) == pytest.approx(100 * (16 * 49 * 32 + 32 * 32 + 32 * 16), rel=0.01)

    class OneStage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Conv2d(3, 2, 1)

        def forward(self, images: ImageBatch) -> list[Detections]:
            scores = self.scores(images.pixels.float()).mean((2, 3))[0]
            return [Detections(torch.zeros(2, 4), scores, torch.zeros(2, dtype=torch.int64))]

    assert 1e9 * count_gflops(OneStage(), (64, 96), proposals=7) >= conv(3, 2, 1, 64, 96)


def test_every_image_is_timed_once_after_the_warm_up() -> None:
    seen: list[int] = []

    class Recorder(nn.Module):
        def forward(self, images: ImageBatch) -> list[Detections]:
            seen.append(int(images.pixels.max()))
            return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]

    batches = [ImageBatch.from_images([torch.full((3, 8, 8), value, dtype=torch.uint8)]) for value in range(4)]
    times = measure_latency(Recorder(), batches, torch.device("cpu"), dtype=torch.float32, warmup=2)
    assert seen == [0, 1, 0, 1, 2, 3]
    assert len(times) == 4
    assert min(times) > 0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5  # interpolated
    assert percentile(list(map(float, range(21))), 0.95) == 19.0
    assert percentile([7.0], 0.95) == 7.0


def test_costs_of_a_trained_detector(card, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(costs, "count_gflops", lambda *_, **__: 1.5)  # tracing takes seconds
    backbone = DetectorBackboneConfig(name="cifar_resnet20", norm="gn", roi_size=2, freeze_at=1)
    config = replace(TINY, backbone=backbone, data=replace(TINY.data, test=(f"{card}:test",), root=str(tmp_path)))
    detector = build_detector(config, 2)
    weights = write_converted(tmp_path / "run", config, ("cat", "dog"), detector.state_dict())
    found = measure_costs(config, read_checkpoint(weights), images=2, warmup=1)
    assert found["parameters"] == sum(p.numel() for p in detector.parameters())
    assert found["trainable_parameters"] == sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert found["trainable_parameters"] < found["parameters"]
    assert found["head_parameters"] == sum(p.numel() for part in detector.head_modules() for p in part.parameters())
    assert (found["gflops"], found["weights"]) == (1.5, str(weights))
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"]
    assert (latency["images"], latency["device"][:5]) == (2, "CPU, ")
    assert found["peak_memory_gib"] > 0
    assert "10 proposals" in found["flops_note"]
    assert measure_costs(config, None, images=1)["weights"] is None


def test_the_head_is_all_that_runs_on_regions() -> None:
    masked = replace(TINY, architecture="mask_rcnn", mask=MaskConfig(channels=8))
    with torch.device("meta"):
        plain, with_masks = build_detector(TINY, 3), build_detector(masked, 3)
    assert plain.head_modules() == [plain.box_stage]
    assert with_masks.head_modules() == [with_masks.box_stage, with_masks.mask_stage]


@pytest.mark.slow
@pytest.mark.usefixtures("card")
def test_each_place_has_a_file_of_all_variants(write_swap, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_swap(BASE, variants={"small": [], "plain": ["backbone.name=cifar_plain20"]})
    experiment, before = load_experiment(path, [f"data.root={tmp_path}"]), torch.get_num_threads()
    places = Place(threads=1), Place(batch=2, precision="bf16")
    paths = [measure_latencies(experiment, tmp_path / "out", place, say=lambda _: None) for place in places]
    assert torch.get_num_threads() == before
    assert {path.parent for path in paths} == {tmp_path / "out" / "latency"}
    first, second = (json.loads(path.read_text()) for path in paths)
    assert (first["threads"], first["batch"], first["precision"]) == (1, 1, "fp32")
    assert "1 thread" in first["described"]
    assert [first["variants"]["small"]["images"], second["variants"]["small"]["images"]] == [3, 2]
    assert first["variants"].keys() == {"small", "plain"}
    assert all(0 < row["p50"] <= row["p95"] and row["weights"] is None for row in second["variants"].values())


def test_places_that_are_not_there_are_refused(monkeypatch) -> None:
    cases: list[tuple[bool, dict[str, Any], str]] = [
        (False, {"device": "cuda"}, "--latency-on cuda"),
        (True, {"device": "cuda", "threads": 3}, "--threads 3"),
        (True, {"exported": "onnx", "precision": "bf16"}, "--exported onnx"),
    ]
    for there, place, message in cases:
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with pytest.raises(ValueError, match=message):
            Place(**place)
