from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detection.engine import compiled
from detection.engine.compiled import Frames, Graphs
from detection.padded import Targets
from detection.structures import ImageBatch

FRAMES = Frames.of_scale(60, 100)
pytestmark = pytest.mark.usefixtures("no_compiler")


def test_a_size_takes_the_smallest_frame_that_holds_it() -> None:
    for size, frame in (
        *(((60, 60), (64, 64)), ((60, 80), (64, 96)), ((80, 60), (96, 64)), ((60, 100), (64, 128))),
        *(((30, 100), (64, 128)), ((60, 97), (64, 128))),
        ((100, 100), (128, 128)),  # upright and lying images
        ((100, 130), (128, 160)),  # beyond all frames
    ):
        assert FRAMES.around(size) == frame
    lying = {(800, 800), (800, 1088), (800, 1344)}
    assert set(Frames.of_scale(800, 1333).sizes) == lying | {(w, h) for h, w in lying} | {(1344, 1344)}
    assert Frames.of_scale(1024, 1024).sizes == ((1024, 1024),)


def brightness(images: ImageBatch, targets: Targets) -> Tensor:
    """Depends on pixels and objects, and not on padding."""
    return images.pixels.float().sum() + (targets.boxes.sum(dim=2) * targets.valid).sum()


@pytest.fixture
def make_batch(make_target):
    def make(height: int, width: int, objects: int = 1, *, masks: bool = False) -> tuple[ImageBatch, Targets]:
        shapes = torch.ones(objects, height, width, dtype=torch.bool) if masks else None
        target = make_target([(1, 2, 3, 4)] * objects, masks=shapes)
        image = torch.full((3, height, width), 7, dtype=torch.uint8)
        return ImageBatch.from_images([image, image]), Targets.pad([target, target])

    return make


def run_on(lines: list[str], function: Callable[..., Any] = brightness) -> Graphs:
    return Graphs(function, "solver.compile", FRAMES, say=lines.append, records=True)


def test_batches_of_many_sizes_share_a_few_graphs(make_batch, said) -> None:
    graphs = run_on(said)
    for width in range(66, 96, 4):
        for objects in (1, 9, 30):
            batch = make_batch(60, width, objects)
            assert graphs(*batch) == brightness(*batch)
    assert graphs.figures == {"compiled_graphs": 1, "uncompiled_batches": 0}
    graphs(*make_batch(60, 66, 33))
    graphs(*make_batch(66, 60))
    assert graphs.count == len(said) == 3
    assert "2 images of 64 x 96 pixels, 128 targets each" in said[1]


def test_masks_are_padded_to_the_frame(make_batch) -> None:
    shapes: set[torch.Size] = set()

    def area(images: ImageBatch, targets: Targets) -> Tensor:
        assert targets.masks is not None
        shapes.add(targets.masks.shape)
        return targets.masks.sum()

    graphs = run_on([], area)
    assert graphs(*make_batch(60, 70, 3, masks=True)) == 2 * 3 * 60 * 70
    assert graphs(*make_batch(50, 80, 2, masks=True)) == 2 * 2 * 50 * 80
    assert shapes == {(32, 64, 96)}


def test_shapes_beyond_the_limit_are_computed_uncompiled(make_batch, monkeypatch, said) -> None:
    monkeypatch.setattr(compiled, "MOST_GRAPHS", 1)
    graphs = run_on(said)
    known, new = make_batch(60, 60), make_batch(60, 90)
    for batch in (known, new, new, known):
        assert graphs(*batch) == brightness(*batch)
    assert graphs.figures == {"compiled_graphs": 1, "uncompiled_batches": 2}
    assert [line.startswith("warning: solver.compile: ") for line in said] == [False, True]


def test_a_model_that_is_no_single_graph_is_refused_with_the_key(make_batch) -> None:
    def branching(images: ImageBatch, targets: Targets) -> Tensor:
        return brightness(images, targets) if targets.valid.any() else torch.zeros(())

    with pytest.raises(ValueError, match=r"^solver\.compile: .*set solver\.compile=false"):
        run_on([], branching)(*make_batch(60, 60))


def test_partitions_and_skips_of_cuda_graphs_are_reported(make_batch, monkeypatch, said) -> None:
    def partitioned(module: Any, _inputs: Any) -> Any:
        counters = torch._dynamo.utils.counters["inductor"]  # as Inductor on a GPU
        counters["cudagraph_partitions"] += 3
        counters["cudagraph_skips"] += 1
        return module.forward

    monkeypatch.setattr(compiled, "BACKEND", partitioned)
    graphs = run_on(said)
    graphs(*make_batch(60, 60))
    assert "3 partitions, 1 skipped" in said[0]
    assert (graphs.figures["cuda_graph_partitions"], graphs.figures["cuda_graph_skips"]) == (3, 1)
