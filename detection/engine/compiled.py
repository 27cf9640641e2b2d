"""Compiles steps and tests by torch.compile: whole graphs, and few of them, since every batch shape needs its own.

Batches are padded to one of a few frame sizes and row counts.  A graph takes a minute or more to compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detection.model.architecture import Architecture
from detection.padded import Found, Regions, Targets
from detection.structures import Detections, ImageBatch

__all__ = ["MOST_GRAPHS", "CompiledStep", "CompiledTest", "Frames", "Graphs"]

MOST_GRAPHS = 24  # of one run; compiling a ResNet-50 with a pyramid takes two minutes on two cores of a CPU
MULTIPLE = 32  # pixels: the largest stride of a backbone
PHOTO = 4 / 3  # aspect of the frame between the square and the longest one: of most cameras, and of COCO's median
ROWS, GROWTH = 32, 4  # objects: 32, 128, 512, ...
BACKEND = "inductor"  # of torch.compile
NO_LIMIT = 1 << 20  # Dynamo's own limits count the graphs of all models of a process together


@dataclass(frozen=True, slots=True)
class Frames:
    """The few sizes that batches are padded to.

    Attributes:
        sizes: (height, width) in pixels, the smallest first.
    """

    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of_scale(cls, shorter: int, longer: int) -> Frames:
        """Returns frames of images whose shorter side is ``shorter`` unless the longer one would exceed ``longer``.

        They are square, 4:3 and the longest possible, in portrait and landscape, and one for batches of both.
        """
        short, longest = _up(shorter, MULTIPLE), _up(longer, MULTIPLE)
        long = {min(_up(side, MULTIPLE), longest) for side in (shorter, round(shorter * PHOTO), longer)}
        found = {(longest, longest)} | {size for side in long for size in ((short, side), (side, short))}
        return cls(tuple(sorted(found, key=lambda size: (size[0] * size[1], size))))

    def around(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the smallest frame that holds ``size`` (height, width), else ``size`` in multiples of 32."""
        height, width = size
        holding = (frame for frame in self.sizes if frame[0] >= height and frame[1] >= width)
        return next(holding, (_up(height, MULTIPLE), _up(width, MULTIPLE)))


class Graphs:
    """A function of a batch, compiled by torch.compile to one graph per shape.

    After ``MOST_GRAPHS`` shapes, batches of new shapes run uncompiled, with a warning.  If ``records`` is set, graphs
    on a GPU are also recorded as CUDA graphs.

    Args:
        function: the function to compile; takes an ImageBatch and its targets or proposals.
        key: config key that requested it, for messages.
        frames: sizes to which batches are padded.
        say: called with a line for every graph.
        records: record CUDA graphs: no output may be needed after the next call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        key: str,
        frames: Frames,
        *,
        say: Callable[[str], None],
        records: bool,
    ) -> None:
        self.function, self.key, self.frames, self.say, self.records = function, key, frames, say, records
        self.shapes: set[tuple[object, ...]] = set()
        self.count, self.uncompiled, self.began = 0, 0, _counted()
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, images: ImageBatch, *others: Targets | Regions) -> Any:
        """Returns the function's result for the padded batch.

        Raises:
            ValueError: torch.compile can't compile the function.
        """
        framed, *padded = _framed(self.frames, images, others)
        shape = (framed.pixels.shape, *map(_shape, padded))
        if shape not in self.shapes and len(self.shapes) >= MOST_GRAPHS:
            self._say_uncompiled(framed)
            return self.function(images, *others)
        self.shapes.add(shape)
        before, started = _counted(), time.perf_counter()
        found = self._run(framed, *padded)
        new = {name: count - before[name] for name, count in _counted().items()}
        if new["graphs"]:
            self.count += new["graphs"]
            self._say_compiled(framed, padded, new, time.perf_counter() - started)
        return found

    @property
    def figures(self) -> dict[str, float]:
        """Returns figures for metrics.jsonl; counts of CUDA graphs include backward passes."""
        now = _counted()
        recorded = {f"cuda_graph_{name}": now[name] - self.began[name] for name in ("partitions", "skips")}
        found: dict[str, float] = {"compiled_graphs": self.count, "uncompiled_batches": self.uncompiled}
        return found | recorded if any(recorded.values()) else found

    def _run(self, images: ImageBatch, *others: Targets | Regions) -> Any:
        if self.compiled is None:
            mode = "reduce-overhead" if self.records and images.pixels.is_cuda else None
            self.compiled = torch.compile(self.function, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)
        if images.pixels.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            with torch._dynamo.config.patch(recompile_limit=NO_LIMIT, accumulated_recompile_limit=NO_LIMIT):
                return self.compiled(images, *others)
        except torch._dynamo.exc.TorchDynamoException as error:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                f"{self.key}: torch.compile can't compile this model ({type(error).__name__}: "
                f"{_first_line(error)}); set {self.key}=false"
            ) from error

    def _say_compiled(
        self, images: ImageBatch, others: Sequence[Targets | Regions], new: Mapping[str, int], seconds: float
    ) -> None:
        _, _, height, width = images.pixels.shape
        rows = "".join(f", {other.valid.shape[1]} {type(other).__name__.lower()} each" for other in others)
        shape = f"{len(images)} images of {height} x {width} pixels{rows}"
        recorded = f"; CUDA graphs: {new['partitions']} partitions, {new['skips']} skipped"
        recorded = recorded if new["partitions"] or new["skips"] else ""
        backward = " (its backward pass is compiled after it)" if torch.is_grad_enabled() else ""
        self.say(f"{self.key}: graph {self.count} compiled in {seconds:.0f} s{backward}, of {shape}{recorded}")

    def _say_uncompiled(self, images: ImageBatch) -> None:
        self.uncompiled += 1
        if self.uncompiled == 1:
            _, _, height, width = images.pixels.shape
            self.say(
                f"warning: {self.key}: {self.count} graphs are compiled, and batches still have new shapes, now "
                f"{len(images)} images of {height} x {width} pixels: batches of new shapes are computed uncompiled, at "
                f"the speed of {self.key}=false; let data.augment end in few sizes, or set {self.key}=false"
            )


class CompiledStep(nn.Module):
    """A model whose losses are compiled; its weights are those of ``model``.

    Args:
        model: turns (images, targets) into a dict of losses.
        key, frames, say, records: as in ``Graphs``.
    """

    def __init__(self, model: nn.Module, key: str, frames: Frames, **options: Any) -> None:
        super().__init__()
        self.model, self.graphs = model, Graphs(model.forward, key, frames, **options)

    def forward(self, images: ImageBatch, targets: Targets, *proposals: Regions) -> dict[str, Tensor]:
        return self.graphs(images, targets, *proposals)


class CompiledTest(nn.Module):
    """A detector or tester whose tests are compiled.

    Args:
        tester: has ``detect``, from images to detections padded to equally many.
        key, frames, say, records: as in ``Graphs``.
    """

    def __init__(self, tester: nn.Module, key: str, frames: Frames, **options: Any) -> None:
        super().__init__()
        detect: Any = tester.detect
        self.tester, self.graphs = tester, Graphs(detect, key, frames, **options)

    def forward(self, images: ImageBatch) -> list[Detections]:
        found: Found = self.graphs(images)
        # The next replay writes over it.
        return Architecture.ragged(found.copied() if found.boxes.is_cuda else found, images)


def _framed(frames: Frames, images: ImageBatch, others: Sequence[Targets | Regions]) -> list[Any]:
    """Returns ``images`` in their frame and ``others`` with a few numbers of rows, always of the same memory format."""
    size = frames.around((images.pixels.shape[2], images.pixels.shape[3]))
    found: list[Any] = [images.framed(size)]
    for other in others:
        rows = _rows(other.valid.shape[1])
        if isinstance(other, Targets):
            masks = 0 if other.masks is None else _rows(len(other.masks))
            found.append(other.framed(rows, masks, size))
        else:
            found.append(other.widened(rows))
    return found


def _rows(count: int) -> int:
    rows = ROWS
    while rows < count:
        rows *= GROWTH
    return rows


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _shape(rows: Targets | Regions) -> tuple[object, ...]:
    masks = rows.masks if isinstance(rows, Targets) else None
    return rows.valid.shape, None if masks is None else masks.shape


def _counted() -> dict[str, int]:
    """Returns what PyTorch has counted in this process so far."""
    counters = torch._dynamo.utils.counters
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "partitions": counters["inductor"]["cudagraph_partitions"],
        "skips": counters["inductor"]["cudagraph_skips"],
    }


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no reason given")
