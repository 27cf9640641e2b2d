"""Steps and tests of networks that label pixels are one graph, as tests/test_one_graph.py says of detectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detection.build import build_detector
from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorSolverConfig, SemanticConfig
from detection.engine.checkpoint import Checkpoint
from detection.engine.operators import count_operators
from detection.export.facts import ExportFormat, describe_export
from detection.export.graph import DetectorGraph, capture, output_names
from detection.export.proof import agreement
from detection.export.runtime import Framed, open_exported
from detection.export.write import write_export
from detection.model.semantic import SemanticNetwork
from detection.padded import Targets
from detection.structures import VOID, ImageBatch, Target

SIZE = (96, 128)
NAMES = tuple("abcde")
FCN = DetectionConfig(
    architecture="fcn",
    backbone=DetectorBackboneConfig(name="resnet18", norm="bn", output_stride=8),
    semantic=SemanticConfig(channels=16, dropout=0.0),
    solver=DetectorSolverConfig(best_metric=None),
)
FAMILIES = {
    "FCN": FCN,
    "DeepLabV3": replace(FCN, architecture="deeplabv3"),
    "SemanticFPN": replace(
        FCN, architecture="semantic_fpn", backbone=replace(FCN.backbone, output_stride=None, fpn=True, fpn_channels=32)
    ),
}
every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "FCN" else pytest.mark.slow) for name in FAMILIES]
)


def make_model(family: str) -> SemanticNetwork:
    torch.manual_seed(0)
    model = build_detector(FAMILIES[family], len(NAMES), pretrained=False)
    assert isinstance(model, SemanticNetwork)
    return model


def make_batch(images: int = 2) -> tuple[ImageBatch, Targets]:
    """Images of noise, the last of which is smaller, with label maps of noise and void."""
    generator = torch.Generator().manual_seed(0)
    sizes = [SIZE] * (images - 1) + [(61, 97)]
    pixels = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    none = torch.zeros(0, dtype=torch.int64)
    targets = [
        Target(
            torch.zeros(0, 4),
            none,
            none.bool(),
            label_map=torch.tensor([*range(5), VOID], dtype=torch.uint8)[torch.randint(6, size, generator=generator)],
        )
        for size in sizes
    ]
    return ImageBatch.from_images(pixels), Targets.pad(targets)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Graphs of one test do not fill the memory of the next."""
    yield
    torch.compiler.reset()


def assert_same_step(model: SemanticNetwork, backend: str, *, rounding: float = 1e-4) -> None:
    """Compares a step with the compiled one; ``rounding`` is the share by which a gradient may differ."""
    images, targets = make_batch()
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def step(call: Callable[..., dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.load_state_dict(start)  # statistics of batch normalisation move
        model.zero_grad(set_to_none=True)
        losses = call(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected, gradients = step(model.train())
    found, own = step(torch.compile(model, fullgraph=True, backend=backend))
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-7)
    assert own.keys() == gradients.keys() != set()
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (own[name] - gradient).norm() <= rounding * gradient.norm() + 1e-6 * largest, name


@pytest.mark.slow
@every_family
def test_a_step_is_one_graph(family: str) -> None:
    assert_same_step(make_model(family), "aot_eager")


@pytest.mark.compiler
@pytest.mark.timeout(900)
def test_a_step_by_inductor() -> None:
    # It adds in another order; batch normalisation over 24 cells makes of that 2e-3 of the first layer's gradient.
    assert_same_step(make_model("SemanticFPN"), "inductor", rounding=1e-2)


@every_family
def test_operators_do_not_grow_with_the_images(family: str) -> None:
    """Nor does a step wait for the device."""
    model = make_model(family).train()

    def step(images: ImageBatch, targets: Targets) -> None:
        model.zero_grad(set_to_none=True)
        torch.stack(list(model(images, targets).values())).sum().backward()

    few, many = (count_operators(partial(step, *make_batch(images))) for images in (2, 4))
    assert few.operators == many.operators
    assert many.waits == 0, many.names


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_a_test_is_one_graph_that_exports(family: str) -> None:
    model = make_model(family).eval()
    images, _ = make_batch()
    scores = model.detect(images).label_scores
    assert scores is not None
    (found,) = capture(model, size=SIZE, batch=2, half=False).module()(images.pixels, images.sizes)
    assert (found.dtype, found.shape) == (torch.uint8, (2, *SIZE))
    assert output_names(FAMILIES[family]) == ("label_map",)
    assert found[1, 61:].eq(VOID).all()
    assert found[1, :, 97:].eq(VOID).all()
    own = scores.argmax(dim=1)
    assert (found[0] != own[0]).double().mean() < 1e-3
    assert (found[1, :61, :97] != own[1, :61, :97]).double().mean() < 1e-3


@torch.no_grad()
def assert_same_file(family: str, folder: Path, format: ExportFormat) -> None:
    model = make_model(family).eval()
    checkpoint = Checkpoint(Path("0000000.safetensors"), model.state_dict(), FAMILIES[family], NAMES, iteration=0)
    facts = describe_export(checkpoint, model, format=format, precision="fp32", size=SIZE, batch=2, licence="none")
    write_export(model, folder, facts)
    exported, graph = open_exported(folder), DetectorGraph(model)
    eager = Framed(
        lambda *call: [part.numpy() for part in graph(*call)],
        size=SIZE,
        batch=2,
        outputs=exported.outputs,
        num_labels=exported.num_labels,
    )
    images, _ = make_batch(3)
    found = exported(images)
    assert [image.label_scores.shape for image in found if image.label_scores is not None][2] == (5, 61, 97)
    same = agreement(eager(images), found)
    assert same.pixels is not None
    assert same.unmatched == same.pixels < 1e-3


@pytest.mark.slow
def test_an_onnx_file_labels_as_eager_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert_same_file("FCN", tmp_path, "onnx")


@pytest.mark.compiler
@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_every_family_label_as_eager_does(family: str, format: ExportFormat, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert_same_file(family, tmp_path, format)
