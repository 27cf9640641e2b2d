"""Numbers of Detectron2's networks, by forward passes written down with Detectron2's names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.structures import ImageBatch
from detection.weights.detectron2 import convert_detectron2

State = Mapping[str, Tensor]


@pytest.fixture
def drawn(zoo_shapes):
    """Random values under which activations keep their size; the layers after the RPN are one number."""

    def draw(name: str) -> dict[str, Tensor]:
        generator, state = torch.Generator().manual_seed(0), dict[str, Tensor]()
        for key, shape in zoo_shapes(name).items():
            if key.startswith("roi_heads."):
                state[key] = torch.tensor(0.01).expand(shape)
            elif len(shape) == 4:
                fan_in = shape[1] * shape[2] * shape[3]
                state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
            elif key.endswith("running_var"):
                state[key] = 0.5 + torch.rand(shape, generator=generator)
            else:
                state[key] = 0.5 * key.endswith("norm.weight") + 0.1 * torch.randn(shape, generator=generator)
        return state

    return draw


def convolve(state: State, name: str, x: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    padding = dilation * (weight.shape[-1] // 2)
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return normalise(state, name, x)


def deform(state: State, name: str, x: Tensor, *, stride: int, dilation: int) -> Tensor:
    """The convolution ``name`` at the places that ``name``_offset gives: (dy, dx) of each sample, then its logit."""
    chosen = convolve(state, f"{name}_offset", x, stride=stride, dilation=dilation)
    height, width = x.shape[-2:]
    down, across = (torch.arange(count) * stride for count in chosen.shape[-2:])
    samples = []
    for sample in range(9):
        rows = down[:, None] + (sample // 3 - 1) * dilation + chosen[:, 2 * sample]
        columns = across + (sample % 3 - 1) * dilation + chosen[:, 2 * sample + 1]
        places = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
        found = F.grid_sample(x, places, align_corners=True)
        samples.append(found * chosen[:, None, 18 + sample].sigmoid() if chosen.shape[1] == 27 else found)
    weight = state[f"{name}.weight"].flatten(2)  # (O, C, 9)
    return normalise(state, name, torch.einsum("ncshw,ocs->nohw", torch.stack(samples, dim=2), weight))


def normalise(state: State, name: str, x: Tensor) -> Tensor:
    """The norm after the convolution ``name``, if there is any."""
    if f"{name}.norm.weight" not in state:
        return x
    if f"{name}.norm.running_mean" not in state:
        return F.group_norm(x, 32, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"], eps=1e-5)
    parts = ("weight", "bias", "running_mean", "running_var")
    scale, shift, mean, var = (state[f"{name}.norm.{part}"].view(-1, 1, 1) for part in parts)
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def zoo_body(state: State, body: str, x: Tensor, *, dilated: bool, stride_in: str) -> list[Tensor]:
    """res2, res3, .. of the stages under ``body``; the stride is in the 1x1 or the 3x3 convolution."""
    x = F.max_pool2d(F.relu(convolve(state, f"{body}.stem.conv1", x, stride=2)), 3, stride=2, padding=1)
    outputs = []
    for stage in range(2, 6):
        dilation = 2 if dilated and stage == 5 else 1
        block = 0
        while f"{body}.res{stage}.{block}.conv1.weight" in state:
            place = f"{body}.res{stage}.{block}"
            stride = 2 if block == 0 and stage > 2 and dilation == 1 else 1
            first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
            out = F.relu(convolve(state, f"{place}.conv1", x, stride=first))
            middle = deform if f"{place}.conv2_offset.weight" in state else convolve
            out = F.relu(middle(state, f"{place}.conv2", out, stride=second, dilation=dilation))
            shortcut = convolve(state, f"{place}.shortcut", x, stride=stride) if block == 0 else x
            x = F.relu(convolve(state, f"{place}.conv3", out) + shortcut)
            block += 1
        outputs += [x] if block else []
    return outputs


def zoo_pyramid(state: State, stages: list[Tensor]) -> list[Tensor]:
    levels, above = list[Tensor](), torch.zeros(())
    for stage, x in reversed(list(enumerate(stages, start=2))):
        above = convolve(state, f"backbone.fpn_lateral{stage}", x) + above
        levels.insert(0, convolve(state, f"backbone.fpn_output{stage}", above))
        above = F.interpolate(above, scale_factor=2, mode="nearest")
    return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


def loaded(config: DetectionConfig, state: State) -> Any:
    """The detector of ``config`` up to its RPN; its box head is small, which saves time."""
    box = replace(config.box, pool_size=1, head_channels=8)
    small = replace(config, architecture="faster_rcnn", box=box)
    detector: Any = build_detector(small, 80, pretrained=False).eval()
    own = {name: value for name, value in state.items() if name.startswith(("backbone.", "rpn."))}
    missing, unused = detector.load_state_dict(own, strict=False)
    assert not unused
    assert all(name.startswith("box_stage.") or name.endswith("num_batches_tracked") for name in missing)
    return detector


def zoo_semantic(state: State, levels: Sequence[Tensor]) -> Tensor:
    """Logits of stride 4 of a semantic head on the first four ``levels``."""
    total = torch.zeros(())
    for number, level in enumerate(levels[:4]):
        x = level
        for place in range(max(number, 1)):
            x = F.relu(convolve(state, f"sem_seg_head.p{number + 2}.{2 * place}", x))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if number else x
        total = total + x
    return convolve(state, "sem_seg_head.predictor", total)


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_features_and_rpn_give_detectron2_s_numbers(drawn, zoo_classes, distinct: str) -> None:
    name, state, kind = distinct, drawn(distinct), ("dc5" if "DC5" in distinct else "fpn")
    detector = loaded(*convert_detectron2(state, class_names=zoo_classes(name)))
    pixels = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    std = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1) if "X_101" in name else 1.0
    body = "backbone.bottom_up" if kind == "fpn" else "backbone"
    normal, stride_in = (pixels.flip(1).float() - mean) / std, "3x3" if "X_101" in name or "gn" in name else "1x1"
    stages = zoo_body(state, body, normal, dilated=kind == "dc5", stride_in=stride_in)
    expected = zoo_pyramid(state, stages) if kind == "fpn" else stages[-1:]
    features = detector.features(ImageBatch(pixels, torch.tensor([[64, 96]])))
    assert [feature.shape[-2:] for feature in features] == [level.shape[-2:] for level in expected]
    rpn = "proposal_generator.rpn_head"
    for ours, theirs in zip(features, expected, strict=True):
        assert_near(ours, theirs)
        hidden = theirs
        for convolution in ("conv", "conv.conv0", "conv.conv1"):
            present = f"{rpn}.{convolution}.weight" in state
            hidden = F.relu(convolve(state, f"{rpn}.{convolution}", hidden)) if present else hidden
        logits, deltas = detector.rpn.head(ours)
        # (N, A, H, W) and (N, A * 4, H, W): anchors of a cell together
        assert_near(logits[0], convolve(state, f"{rpn}.objectness_logits", hidden)[0].permute(1, 2, 0).flatten())
        boxes = convolve(state, f"{rpn}.anchor_deltas", hidden)[0].unflatten(0, (-1, 4))
        assert_near(deltas[0], boxes.permute(2, 3, 0, 1).reshape(-1, 4))
    if detector.label_stage is not None:
        assert_near(detector.label_stage.head(features), zoo_semantic(state, expected))


@torch.no_grad()
def test_a_semantic_head_gives_detectron2_s_logits(drawn, zoo_classes) -> None:
    state, names = drawn("semantic_R_50_FPN"), zoo_classes("semantic_R_50_FPN")
    config, weights = convert_detectron2(state, class_names=names)
    network: Any = build_detector(config, len(names), pretrained=False).eval()
    network.load_state_dict(weights, strict=False)
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(1, 256, 128 >> k, 192 >> k, generator=generator) for k in range(2, 7)]
    torch.testing.assert_close(network.head(levels), zoo_semantic(state, levels), rtol=1e-4, atol=1e-4)


def test_anchors_start_at_the_corner_of_the_first_cell(zoo_shapes, zoo_anchors, zoo_classes) -> None:
    state = {name: torch.zeros(1).expand(shape) for name, shape in zoo_shapes(kind="fpn").items()}
    config, _ = convert_detectron2(state, class_names=zoo_classes("faster_rcnn_R_50_FPN"))
    detector: Any = build_detector(config, 80, pretrained=False)
    anchors = detector.rpn.anchors
    for number, (level, stride) in enumerate(zip(anchors, (4, 8, 16, 32, 64), strict=True)):
        first = zoo_anchors([32 * 2**number])
        laid = level(2, 3)
        torch.testing.assert_close(laid[:3], first, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(laid[-3:], first + stride * torch.tensor([2, 1, 2, 1]), rtol=1e-6, atol=1e-4)


# detections, by Detectron2's definitions: proposal_utils.py, poolers.py, roi_heads/fast_rcnn.py and mask_head.py


def spread(state: dict[str, Tensor], name: str, x: Tensor, deviation: float) -> Tensor:
    """Draws the layer ``name`` so that each of its outputs for ``x`` has this deviation and no mean; returns them."""
    weight = torch.randn(state[f"{name}.weight"].shape, generator=torch.Generator().manual_seed(0))
    outputs = F.conv2d(x, weight) if weight.ndim == 4 else F.linear(x, weight)
    channels = outputs.transpose(0, 1).flatten(1)
    factor, mean = deviation / channels.std(dim=1), channels.mean(dim=1)
    state[f"{name}.weight"] = weight * factor.view(-1, *[1] * (weight.ndim - 1))
    state[f"{name}.bias"] = -mean * factor
    shape = (-1, *[1] * (outputs.ndim - 2))
    return (outputs - mean.view(shape)) * factor.view(shape)


def zoo_decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Boxes (..., 4) of ``deltas`` (..., 4) from ``boxes`` (..., 4)."""
    sides, (shift, scale) = boxes[..., 2:] - boxes[..., :2], (deltas / torch.tensor(weights)).split(2, dim=-1)
    centers = boxes[..., :2] + sides / 2 + shift * sides
    sides = sides * scale.clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)


def laid(cell: Tensor, x: Tensor, stride: int) -> Tensor:
    """Anchors (H * W * A, 4) of a map (1, C, H, W), those of ``cell`` (A, 4) around the corner of each of its cells."""
    y, across = torch.meshgrid(*(torch.arange(0, n * stride, stride) for n in x.shape[-2:]), indexing="ij")
    return (torch.stack([across, y, across, y], dim=-1)[:, :, None] + cell).reshape(-1, 4)


def zoo_proposals(state: dict[str, Tensor], levels: list[Tensor], cells, size: tuple[int, int], most: int) -> Tensor:
    rpn, boxes, scores, numbers = "proposal_generator.rpn_head", [], [], []
    for number, (x, stride) in enumerate(zip(levels, (4, 8, 16, 32, 64), strict=True)):
        hidden = F.relu(convolve(state, f"{rpn}.conv", x))
        if number == 0:
            spread(state, f"{rpn}.objectness_logits", hidden, 1.5)
            spread(state, f"{rpn}.anchor_deltas", hidden, 0.2)
        logits = convolve(state, f"{rpn}.objectness_logits", hidden)[0].permute(1, 2, 0).flatten()
        deltas = convolve(state, f"{rpn}.anchor_deltas", hidden)[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1)
        best, rows = logits.topk(min(1000, len(logits)))
        anchors = laid(cells[number], x, stride)
        boxes.append(zoo_decode(deltas.reshape(-1, 4)[rows], anchors[rows], (1.0, 1.0, 1.0, 1.0)))
        scores.append(best)
        numbers.append(torch.full_like(rows, number))
    clipped = clip_boxes_to_image(torch.cat(boxes), size)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    clipped = clipped[kept]
    return clipped[batched_nms(clipped, torch.cat(scores)[kept], torch.cat(numbers)[kept], 0.7)[:most]]


def zoo_pool(levels: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    own = (4 + torch.log2(sides / 224 + 1e-8)).floor().clamp(2, 5)
    pooled = torch.zeros(len(boxes), levels[0].shape[1], size, size)
    for number, level in enumerate(levels[:4], start=2):
        mine = own == number
        pooled[mine] = roi_align(level, [boxes[mine]], size, spatial_scale=1 / 2**number, aligned=True)
    return pooled


def zoo_detections(state: dict[str, Tensor], levels: list[Tensor], proposals: Tensor, size) -> list[Tensor]:
    """Boxes, scores, labels and mask probabilities, the best first."""
    head = "roi_heads.box_head"
    x = zoo_pool(levels, proposals, 7).flatten(1)
    for name in ("fc1", "fc2"):
        x = F.relu(spread(state, f"{head}.{name}", x, 1.0))
    logits = spread(state, "roi_heads.box_predictor.cls_score", x, 2.5)
    deltas = spread(state, "roi_heads.box_predictor.bbox_pred", x, 0.5).unflatten(1, (-1, 4))
    boxes = clip_boxes_to_image(zoo_decode(deltas, proposals[:, None], (10.0, 10.0, 5.0, 5.0)), size)
    scores = logits.softmax(dim=1)[:, :-1]
    rows, labels = (scores > 0.05).nonzero(as_tuple=True)
    boxes, scores = boxes[rows, labels], scores[rows, labels]
    kept = batched_nms(boxes, scores, labels, 0.5)[:100]
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    x, head = zoo_pool(levels, boxes, 14), "roi_heads.mask_head"
    for number in range(1, 5):
        name = f"{head}.mask_fcn{number}"
        weight = torch.randn(state[f"{name}.weight"].shape, generator=torch.Generator().manual_seed(number))
        state |= {f"{name}.weight": weight * (2 / 2304) ** 0.5, f"{name}.bias": torch.zeros(256)}
        x = F.relu(convolve(state, name, x))
    state[f"{head}.deconv.weight"] = torch.randn(256, 256, 2, 2, generator=torch.Generator().manual_seed(9)) / 16
    x = F.relu(F.conv_transpose2d(x, state[f"{head}.deconv.weight"], state[f"{head}.deconv.bias"], stride=2))
    masks = spread(state, f"{head}.predictor", x, 2.0).sigmoid()
    return [boxes, scores, labels, masks[torch.arange(len(masks)), labels]]


@pytest.mark.slow
@torch.inference_mode()
def test_boxes_scores_and_masks_are_detectron2_s(double_precision, drawn, zoo_anchors, zoo_classes) -> None:
    name, size, most = "mask_rcnn_R_50_FPN", (96, 128), 200
    pixels = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    state = {key: value.double() for key, value in drawn(name).items()}
    normal = pixels.flip(1).double() - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    stages = zoo_body(state, "backbone.bottom_up", normal, dilated=False, stride_in="1x1")
    levels, cells = zoo_pyramid(state, stages), [zoo_anchors([32 * 2**number]) for number in range(5)]
    proposals = zoo_proposals(state, levels, cells, size, most)
    boxes, scores, labels, masks = zoo_detections(state, levels, proposals, size)
    assert len(boxes) >= 50
    assert len(labels.unique()) > 10
    assert masks.std() > 0.1

    config, weights = convert_detectron2(state, class_names=zoo_classes(name))
    detector = build_detector(replace(config, rpn=replace(config.rpn, post_nms_test=most)), 80, pretrained=False)
    detector.load_state_dict(weights, strict=False)
    (found,) = detector.eval()(ImageBatch(pixels, torch.tensor([size])))
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-6)
    assert found.labels.equal(labels)
    torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.masks, masks, rtol=0, atol=1e-5)


# RetinaNet


def zoo_head(state: State, subnet: str, output: str, level: Tensor, width: int) -> Tensor:
    """Outputs (H * W * A, ``width``) of a level (1, C, H, W)."""
    for number in (0, 2, 4, 6):
        level = F.relu(convolve(state, f"head.{subnet}.{number}", level))
    level = convolve(state, f"head.{output}", level)
    return level.view(-1, width, *level.shape[2:]).permute(2, 3, 0, 1).reshape(-1, width)


def dense_detections(state: State, levels: list[Tensor], cells, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Boxes, scores and labels of one image."""
    found, classes = [], len(state["head.cls_score.bias"]) // 9
    for number, (level, cell) in enumerate(zip(levels, cells, strict=True), start=3):
        scores = zoo_head(state, "cls_subnet", "cls_score", level, classes).flatten().sigmoid()
        best = scores.argsort(descending=True)[:1000]
        best = best[scores[best] > 0.05]
        rows = best // classes
        deltas, anchors = zoo_head(state, "bbox_subnet", "bbox_pred", level, 4), laid(cell, level, 2**number)
        boxes = zoo_decode(deltas[rows], anchors[rows], (1.0, 1.0, 1.0, 1.0))
        found.append((boxes, scores[best], best % classes))
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = batched_nms(boxes, scores, labels, 0.5)[:100]
    return clip_boxes_to_image(boxes[kept], size), scores[kept], labels[kept]


@torch.no_grad()
def test_boxes_and_scores_of_a_retinanet_are_detectron2s(
    double_precision, zoo_shapes, zoo_anchors, monkeypatch
) -> None:
    """From the feature maps on: clipped after NMS, anchors that are not rounded."""
    names, generator, state = ("cat", "dog", "cow"), torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, shape in zoo_shapes(kind="retinanet", classes=3).items():  # outputs spread; the trunk is not run
        fan_in = math.prod(shape[1:]) if len(shape) == 4 else 100
        drawn = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5 if name.startswith("head.") else None
        state[name] = torch.tensor(0.1).expand(shape) if drawn is None else drawn
    state["head.bbox_pred.weight"] *= 0.3
    config, weights = convert_detectron2(state, class_names=names)
    detector = build_detector(config, len(names), pretrained=False).eval()
    detector.load_state_dict(weights)
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(1, 256, *size, generator=generator) for size in ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))]
    cells = [zoo_anchors([4 * 2**number * 2 ** (third / 3) for third in range(3)]) for number in range(3, 8)]
    monkeypatch.setattr(detector, "features", lambda images: levels)
    (found,) = detector(ImageBatch.from_images([torch.zeros(3, 96, 128, dtype=torch.uint8)]))
    boxes, scores, labels = dense_detections(state, levels, cells, (96, 128))
    filled = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # ours drops the others before the best 100 are taken
    count = int(filled.sum())
    assert count >= 50
    assert found.labels[:count].equal(labels[filled])
    torch.testing.assert_close(found.scores[:count], scores[filled], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.boxes[:count], boxes[filled], rtol=0, atol=1e-4)  # cells are float32 in anchors
