"""Narrow models of torchvision, names and shapes of Detectron2's networks, and a server of weights on 127.0.0.1.

Names and shapes are written down by Detectron2's source, independently of the code under test.
"""

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, load_config


def in_float64():
    """In float32 a rounding that moves an IoU over a threshold changes a detection."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


double_precision = pytest.fixture(in_float64)
module_in_double_precision = pytest.fixture(in_float64, scope="module")


@pytest.fixture
def changed(tmp_path):
    """A config with overrides such as "box.pool=roi_pool"."""

    def change(config: DetectionConfig, *overrides: str) -> DetectionConfig:
        (tmp_path / "before.yaml").write_text(dump_config(config))
        return load_config(DetectionConfig, tmp_path / "before.yaml", overrides)

    return change


# Fewer regions than torchvision's defaults, for time; few enough that the sampler and the limits decide something.
FEW = {"rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 150}
FEW |= {"box_batch_size_per_image": 32, "box_detections_per_img": 60}


@pytest.fixture(scope="session")
def few() -> dict[str, int]:
    return FEW


@pytest.fixture(scope="session")
def narrow():
    """torchvision's models of regions (with FEW of them) and of dense heads, in all but the widths and the body."""
    return narrow_model


def narrow_model(kind: str, *, norm=nn.BatchNorm2d, body="resnet18", num_classes=5, num_keypoints=17) -> Any:
    torch.manual_seed(0)
    network, rows = getattr(torchvision.models, body)(norm_layer=norm), num_classes + 1
    first = 1 if "rcnn" in kind else 2  # the stage that the pyramid starts at
    stages = {f"layer{number}": str(number - first) for number in range(first, 5)}
    widths = [network.fc.in_features // 2 ** (4 - number) for number in range(first, 5)]
    coarse = LastLevelP6P7(512 if kind == "retinanet_v2" else 64, 64) if first > 1 else None
    trunk = BackboneWithFPN(network, stages, widths, out_channels=64, extra_blocks=coarse)
    if kind == "fcos":
        return FCOS(trunk, rows)
    if kind == "retinanet":
        return RetinaNet(trunk, rows)
    if kind == "retinanet_v2":
        head = RetinaNetHead(64, 9, rows, norm_layer=partial(nn.GroupNorm, 32))
        head.regression_head._loss_type = "giou"
        return RetinaNet(trunk, rows, head=head)
    boxes = {"box_head": TwoMLPHead(64 * 7 * 7, 128), "box_predictor": FastRCNNPredictor(128, rows)}
    if kind == "keypoint_rcnn":
        keypoints = {"keypoint_head": KeypointRCNNHeads(64, (32, 32))}
        keypoints |= {"keypoint_predictor": KeypointRCNNPredictor(32, num_keypoints)}
        return KeypointRCNN(trunk, **boxes, **keypoints, **FEW)
    masks = {"mask_head": MaskRCNNHeads(64, (32, 32), 1), "mask_predictor": MaskRCNNPredictor(32, 32, rows)}
    return MaskRCNN(trunk, **boxes, **masks, **FEW)


Shapes = dict[str, tuple[int, ...]]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
PYRAMIDS = {"fpn": (2, 3, 4, 5), "semantic": (2, 3, 4, 5), "retinanet": (3, 4, 5)}
FPN, MASKED = {"kind": "fpn"}, {"kind": "fpn", "masks": True}
SPECS: dict[str, dict[str, Any]] = {
    "faster_rcnn_R_50_C4": {"kind": "c4"},
    "faster_rcnn_R_101_C4": {"kind": "c4", "depth": 101},
    "faster_rcnn_R_50_DC5": {"kind": "dc5"},
    "faster_rcnn_R_50_FPN": FPN,
    "faster_rcnn_R_101_FPN": FPN | {"depth": 101},
    "mask_rcnn_R_50_C4": {"kind": "c4", "masks": True},
    "mask_rcnn_R_50_FPN": MASKED,
    "cascade_mask_rcnn_R_50_FPN": MASKED | {"cascade": True},
    "faster_rcnn_R_50_C4_voc": {"kind": "c4", "classes": 20},
}
# Of the zoo too, without a reference of their names at hand.
PANOPTIC = MASKED | {"stuff": 53}
UNLISTED: dict[str, dict[str, Any]] = {
    "mask_rcnn_R_50_FPN_gn": MASKED | {"norm": "GN"},
    "mask_rcnn_R_50_FPN_syncbn": MASKED | {"norm": "SyncBN"},
    "faster_rcnn_X_101_32x8d_FPN": FPN | {"depth": 101, "groups": 32, "width": 8},
    "mask_rcnn_R_50_FPN_dconv_c3-c5": MASKED | {"offsets": 18},
    "mask_rcnn_R_50_FPN_LSJ": MASKED | {"norm": "SyncBN", "rpn_convs": 2},
    "faster_rcnn_R_50_FPN_modulated": FPN | {"offsets": 27},
    "keypoint_rcnn_R_50_FPN": FPN | {"classes": 1, "keypoints": True},
    "pointrend_rcnn_R_50_FPN": FPN | {"points": True},
    "panoptic_fpn_R_50": PANOPTIC,
    "panoptic_fpn_R_101_dconv_cascade_gn": PANOPTIC
    | {"depth": 101, "offsets": 18, "cascade": True, "norm": "GN", "box_convs": 0},
}
DENSE = {"retinanet_R_50_FPN": {"kind": "retinanet"}, "retinanet_R_101_FPN": {"kind": "retinanet", "depth": 101}}
DENSE |= {"semantic_R_50_FPN": {"kind": "semantic", "classes": 54}}
ALL_SPECS = SPECS | UNLISTED | DENSE
LISTED = [pytest.param(name, marks=[pytest.mark.slow] if "101" in name else []) for name in SPECS]


@pytest.fixture(params=LISTED)
def listed(request) -> str:
    """A network of the zoo whose names, shapes and settings are at hand."""
    return request.param


@pytest.fixture(params=["faster_rcnn_R_50_DC5", "faster_rcnn_R_50_FPN", *UNLISTED])
def distinct(request) -> str:
    """Networks that differ in their kinds of layers."""
    return request.param


@pytest.fixture(params=[*LISTED, *UNLISTED, *DENSE])
def zoo_name(request) -> str:
    """Any network of the zoo."""
    return request.param


@pytest.fixture(scope="session")
def zoo_shapes():
    """Names and shapes of a network of the zoo, or of one with these layers."""
    return lambda name=None, **spec: detector_shapes(**ALL_SPECS[name] if name else spec)


@pytest.fixture(scope="session")
def zoo_classes():
    """Names of things, and of stuff if there is any."""

    def names(name: str) -> list[str]:
        spec = ALL_SPECS[name]
        return [f"class {label}" for label in range(spec.get("classes", 80) + spec.get("stuff", 0))]

    return names


@pytest.fixture(scope="session")
def zoo_anchors():
    """Detectron2's anchors around the corner of a cell: for each size one of each ratio."""

    def cell(sizes) -> Tensor:
        sides = [(size, (size**2 / ratio) ** 0.5, ratio) for size in sizes for ratio in (0.5, 1.0, 2.0)]
        return torch.tensor([[-w / 2, -w * ratio / 2, w / 2, w * ratio / 2] for _, w, ratio in sides])

    return cell


def layer(name: str, *shape: int, norm: str | None = None) -> Shapes:
    """With a bias, or a norm after it."""
    statistics = () if norm == "GN" else ("running_mean", "running_var")
    parts = [f"norm.{part}" for part in ("weight", "bias", *statistics)] if norm else ["bias"]
    return {f"{name}.weight": shape, **{f"{name}.{part}": shape[:1] for part in parts}}


def stage_shapes(prefix: str, number: int, blocks: int, norm: str, groups: int, width: int, offsets: int) -> Shapes:
    """Stage ``number`` (2 to 5) of a ResNet of bottleneck blocks; ``offsets`` are those of deformable ones."""
    stage, shapes = 2 ** (number - 2), Shapes()
    inner, outer = groups * width * stage, 256 * stage
    for block in range(blocks):
        entering = outer if block else 64 if number == 2 else outer // 2
        place = f"{prefix}.res{number}.{block}"
        if block == 0:
            shapes |= layer(f"{place}.shortcut", outer, entering, 1, 1, norm=norm)
        shapes |= layer(f"{place}.conv1", inner, entering, 1, 1, norm=norm)
        shapes |= layer(f"{place}.conv2_offset", offsets, inner, 3, 3) if offsets else {}
        shapes |= layer(f"{place}.conv2", inner, inner // groups, 3, 3, norm=norm)
        shapes |= layer(f"{place}.conv3", outer, inner, 1, 1, norm=norm)
    return shapes


def retinanet_shapes(classes: int) -> Shapes:
    shapes = layer("backbone.top_block.p6", 256, 2048, 3, 3)
    for name in ("backbone.top_block.p7", *(f"head.{net}_subnet.{i}" for net in ("cls", "bbox") for i in (0, 2, 4, 6))):
        shapes |= layer(name, 256, 256, 3, 3)
    return shapes | layer("head.cls_score", 9 * classes, 256, 3, 3) | layer("head.bbox_pred", 9 * 4, 256, 3, 3)


def semantic_shapes(classes: int) -> Shapes:
    """A semantic head on p2 to p5."""
    shapes = layer("sem_seg_head.predictor", classes, 128, 1, 1)
    for level, places in {"p2": 1, "p3": 1, "p4": 2, "p5": 3}.items():
        for place in range(places):  # an upsampling stands between two
            shapes |= layer(f"sem_seg_head.{level}.{2 * place}", 128, 128 if place else 256, 3, 3, norm="GN")
    return shapes


def pointrend_shapes(classes: int) -> Shapes:
    coarse, point = "roi_heads.mask_head.coarse_head", "roi_heads.mask_head.point_head"
    shapes = layer(f"{coarse}.reduce_spatial_dim_conv", 256, 256, 2, 2)
    shapes |= layer(f"{coarse}.fc1", 1024, 256 * 49) | layer(f"{coarse}.fc2", 1024, 1024)
    shapes |= layer(f"{coarse}.prediction", classes * 49, 1024)
    for number in range(1, 4):
        shapes |= layer(f"{point}.fc{number}", 256, 256 + classes, 1)
    return shapes | layer(f"{point}.predictor", classes, 256 + classes, 1)


def detector_shapes(  # noqa: PLR0913  # one argument for every kind of layer
    *,
    kind: str,
    depth: int = 50,
    classes: int = 80,
    masks: bool = False,
    cascade: bool = False,
    keypoints: bool = False,
    points: bool = False,
    norm: str = "FrozenBN",
    groups: int = 1,
    width: int = 64,
    offsets: int = 0,
    rpn_convs: int = 1,
    heads_norm: str | None = None,
    mask_convs: int = 4,
    box_convs: int = 4,
    stuff: int = 0,
) -> Shapes:
    """Names and shapes of a network of Detectron2's."""
    # A norm with fixed statistics is one of the body alone.
    own, heads = (None if name == "FrozenBN" else name for name in (norm, heads_norm or norm))
    body = "backbone.bottom_up" if kind in PYRAMIDS else "backbone"
    shapes = layer(f"{body}.stem.conv1", 64, 3, 7, 7, norm=norm)
    for number, blocks in enumerate(BLOCKS[depth], start=2):
        prefix = "roi_heads" if kind == "c4" and number == 5 else body
        shapes |= stage_shapes(prefix, number, blocks, norm, groups, width, offsets if number > 2 else 0)
    for number in PYRAMIDS.get(kind, ()):
        shapes |= layer(f"backbone.fpn_lateral{number}", 256, 64 * 2**number, 1, 1, norm=own)
        shapes |= layer(f"backbone.fpn_output{number}", 256, 256, 3, 3, norm=own)
    if kind in ("retinanet", "semantic"):
        return shapes | (retinanet_shapes if kind == "retinanet" else semantic_shapes)(classes)
    channels, anchors = {"c4": (1024, 15), "dc5": (2048, 15), "fpn": (256, 3)}[kind]
    rpn = "proposal_generator.rpn_head"
    for number in range(rpn_convs):
        shapes |= layer(f"{rpn}.conv.conv{number}" if rpn_convs > 1 else f"{rpn}.conv", channels, channels, 3, 3)
    shapes |= layer(f"{rpn}.objectness_logits", anchors, channels, 1, 1)
    shapes |= layer(f"{rpn}.anchor_deltas", anchors * 4, channels, 1, 1)
    vector, convs = 2048 if kind == "c4" else 1024, box_convs if heads else 0
    for stage in (".0", ".1", ".2") if cascade else ("",):
        if kind != "c4":
            for number in range(1, convs + 1):
                shapes |= layer(f"roi_heads.box_head{stage}.conv{number}", 256, 256, 3, 3, norm=heads)
            shapes |= layer(f"roi_heads.box_head{stage}.fc1", 1024, channels * 49)
            shapes |= {} if convs else layer(f"roi_heads.box_head{stage}.fc2", 1024, 1024)
        shapes |= layer(f"roi_heads.box_predictor{stage}.cls_score", classes + 1, vector)
        shapes |= layer(f"roi_heads.box_predictor{stage}.bbox_pred", 4 if cascade else 4 * classes, vector)
    if masks:
        for number in range(1, mask_convs + 1) if kind != "c4" else ():
            entering = channels if number == 1 else 256
            shapes |= layer(f"roi_heads.mask_head.mask_fcn{number}", 256, entering, 3, 3, norm=heads)
        deconv = "roi_heads.mask_head.deconv"
        shapes |= {f"{deconv}.weight": (2048 if kind == "c4" else 256, 256, 2, 2), f"{deconv}.bias": (256,)}
        shapes |= layer("roi_heads.mask_head.predictor", classes, 256, 1, 1)
    shapes |= pointrend_shapes(classes) if points else {}
    shapes |= semantic_shapes(1 + stuff) if stuff else {}
    if keypoints:
        for number in range(1, 9):
            shapes |= layer(f"roi_heads.keypoint_head.conv_fcn{number}", 512, 512 if number > 1 else 256, 3, 3)
        lowres = "roi_heads.keypoint_head.score_lowres"
        shapes |= {f"{lowres}.weight": (512, 17, 4, 4), f"{lowres}.bias": (17,)}
    return shapes


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path, from the byte that is asked for."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cuts: list[int] = []  # bytes after which the next connections break
        self.ranges: list[str | None] = []  # of the requests

    def url(self, file: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/some/folder/{file}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test output clean."""


@pytest.fixture
def server(monkeypatch):
    """A server without content as yet."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(b"") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
