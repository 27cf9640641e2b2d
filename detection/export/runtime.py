"""An exported file as a detector: called like an architecture, and run by the runtime of its format.

Shapes: N images of a call of the file, H W height and width of its frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.config.detection import DetectionConfig
from detection.config.schema import different_meaning, flatten
from detection.engine.checkpoint import Checkpoint, read_checkpoint
from detection.export.extras import optional
from detection.export.facts import KEY, Facts, run_digest
from detection.export.files import NAMES, TORCH_ENTRY
from detection.export.graph import LABEL_MAP, OUTPUTS, count_labels, output_names
from detection.hub import local_path
from detection.model.postprocess import rescale
from detection.structures import Detections, ImageBatch

__all__ = ["Exported", "Framed", "find_export", "load", "open_exported"]

# Config keys that change no weights but are fixed in the graph.
FIXED = (
    *(f"test.{name}" for name in ("score_threshold", "nms_iou", "max_detections", "soft_nms_sigma", "vote_iou")),
    *(f"test.{name}" for name in ("refine", "scales", "flip")),
    *(f"rpn.{name}" for name in ("pre_nms_test", "post_nms_test", "nms_iou", "min_size")),
)

Arrays = Sequence[NDArray[np.generic]]
Call = Callable[[Tensor, Tensor], Arrays]  # pixels (N, 3, H, W) and sizes (N, 2) -> the outputs of the graph


class Framed(nn.Module):
    """Detections of images of any size by a graph of fixed shapes.

    Images larger than the frame are shrunk; an incomplete batch is filled up with blank images.

    Args:
        call: runs the graph.
        size: (height, width) of the frame.
        batch: N.
        outputs: names of the outputs of the graph.
        num_labels: number of classes of label maps, if the graph returns them.
    """

    def __init__(
        self,
        call: Call,
        *,
        size: tuple[int, int],
        batch: int,
        outputs: Sequence[str] = (*OUTPUTS, "masks"),
        num_labels: int = 0,
    ) -> None:
        super().__init__()
        self.call, self.size, self.batch = call, size, batch
        self.outputs, self.num_labels = tuple(outputs), num_labels

    def forward(self, images: ImageBatch) -> list[Detections]:
        """Returns each image's detections, on the CPU and in pixels of ``images``.

        In label maps the class of a pixel has the score 1, the other classes 0.
        """
        pixels, sizes = images.pixels.cpu(), images.size_list()
        fitted = [_fit(image[:, :h, :w], self.size) for image, (h, w) in zip(pixels, sizes, strict=True)]
        found: list[Detections] = []
        for first in range(0, len(fitted), self.batch):
            found += self._run(fitted[first : first + self.batch])
        return [
            own if (part.shape[1], part.shape[2]) == size else rescale(own, (part.shape[1], part.shape[2]), size)
            for own, part, size in zip(found, fitted, sizes, strict=True)
        ]

    def _run(self, images: Sequence[Tensor]) -> list[Detections]:
        pixels = torch.zeros(self.batch, 3, *self.size, dtype=torch.uint8)
        sizes = torch.tensor([self.size] * self.batch)
        for row, image in enumerate(images):
            pixels[row, :, : image.shape[1], : image.shape[2]] = image
            sizes[row] = torch.tensor(image.shape[1:])
        given = (torch.from_numpy(np.array(values)) for values in self.call(pixels, sizes))
        found = dict(zip(self.outputs, given, strict=False))
        maps = found.pop(LABEL_MAP, None)
        counts = found.pop("counts", torch.zeros(self.batch))
        found = found or _nothing(self.batch)
        detections = []
        for row, image in enumerate(images):
            own = {name: values[row, : int(counts[row])] for name, values in found.items()}
            own |= {name: values.float() for name, values in own.items() if name not in OUTPUTS}
            if maps is not None:
                own["label_scores"] = _scores(maps[row, : image.shape[1], : image.shape[2]], self.num_labels)
            detections.append(Detections(**own))
        return detections


class Exported(Framed):
    """A detector in an exported file.

    Attributes:
        path: path of the file.
        facts: its metadata.
        config: config of its run.
        class_names: names of the K classes.
    """

    def __init__(self, path: Path, facts: Facts, call: Call) -> None:
        config = facts.parsed_config()
        super().__init__(
            call,
            size=facts.size,
            batch=facts.batch,
            outputs=output_names(config),
            num_labels=count_labels(config, len(facts.class_names)),
        )
        self.path, self.facts = path, facts
        self.config: DetectionConfig = config
        self.class_names = facts.class_names

    @property
    def source(self) -> Checkpoint[DetectionConfig]:
        """The checkpoint that the file was exported from, without its weights."""
        return Checkpoint(Path(self.facts.weights), {}, self.config, self.class_names, self.facts.iteration)

    def check_run(self, checkpoint: Checkpoint[DetectionConfig]) -> None:
        """Raises ValueError unless the file was exported from ``checkpoint``."""
        own, other = self.facts.run, run_digest(checkpoint)
        if own != other:
            raise ValueError(
                f"{self.path} is an export of another run: weights {own[:12]} of iteration {self.facts.iteration}, "
                f"and {checkpoint.path} holds {other[:12]} at iteration {checkpoint.iteration}; export the run again"
            )

    def check_config(self, config: DetectionConfig, class_names: Sequence[str]) -> None:
        """Raises ValueError unless the file computes the same as a detector of ``config`` for ``class_names``."""
        if self.class_names != tuple(class_names):
            raise ValueError(
                f"{self.path} is an export of another run: it has the classes {self.class_names}, the data set has "
                f"{tuple(class_names)}; give an export of a run on this data set"
            )
        before, after = flatten(self.config), flatten(config)
        changed = different_meaning(self.config, config)
        changed += [
            f"{key} is {after[key]!r} here, and was {before[key]!r}" for key in FIXED if after[key] != before[key]
        ]
        if changed:
            raise ValueError(f"{self.path} was exported under another config: {'; '.join(changed)}; export it again")


def find_export(path: str | Path) -> Path | None:
    """Returns the exported file at ``path``, a file or the folder of an export; None if there is none."""
    path = Path(path)
    if path.is_dir():
        return next((path / name for name in NAMES.values() if (path / name).is_file()), None)
    return path if path.suffix in (".pt2", ".onnx", ".xml") and path.is_file() else None


def open_exported(path: str | Path, *, threads: int | None = None) -> Exported:
    """Opens the exported file or the folder of an export ``path`` as a detector on the CPU.

    Args:
        path: a .pt2, .onnx or .xml file that ``resdet export`` wrote, or their folder.
        threads: threads of ONNX Runtime and OpenVINO; None: the number that PyTorch uses.

    Raises:
        ValueError: no exported file, a damaged one, or one of another program.
        ImportError: its runtime is missing.
    """
    file = find_export(path)
    if file is None:
        raise ValueError(f"no exported model at {path}: give a .pt2, .onnx or .xml file that resdet export wrote")
    openers = {".pt2": _open_torch, ".onnx": _open_onnx, ".xml": _open_openvino}
    try:
        facts, call = openers[file.suffix](file, threads or torch.get_num_threads())
    except (ImportError, ValueError):
        raise
    except Exception as error:  # errors of the runtimes have no common base
        raise ValueError(f"{file} can't be read: {error}") from error
    return Exported(file, facts, call)


def load(path: str | Path) -> Checkpoint[DetectionConfig] | Exported:
    """Returns the checkpoint, or the exported detector, at ``path``.

    Args:
        path: a file, a run directory, the folder of an export, or an address ``hf://NAME/REPO[@REVISION][/PATH]``.

    Raises:
        ValueError: there is no checkpoint or export, or it can't be read.
        ConnectionError: the hub can't be reached, and its cache lacks the files.
        ImportError: the runtime of an exported file is missing.
    """
    path = local_path(path)
    return read_checkpoint(path) if find_export(path) is None else open_exported(path)


def _open_torch(path: Path, threads: int) -> tuple[Facts, Call]:
    entries = {TORCH_ENTRY: ""}
    program = torch.export.load(path, extra_files=entries).module()

    @torch.no_grad()
    def call(pixels: Tensor, sizes: Tensor) -> Arrays:
        return [output.numpy() for output in program(pixels, sizes)]

    return Facts.from_text(entries[TORCH_ENTRY], path), call


def _open_onnx(path: Path, threads: int) -> tuple[Facts, Call]:
    runtime = optional("onnxruntime", f"{path}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # log errors only
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    facts = Facts.from_text(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    names = [given.name for given in session.get_inputs()]
    return facts, lambda *inputs: session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})


def _open_openvino(path: Path, threads: int) -> tuple[Facts, Call]:
    openvino = optional("openvino", f"{path}")
    core = openvino.Core()
    model = core.read_model(path)
    text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", settings)

    def call(pixels: Tensor, sizes: Tensor) -> Arrays:
        results = compiled([pixels.numpy(), sizes.numpy()])
        return [results[place] for place in range(len(compiled.outputs))]

    return Facts.from_text(text, path), call


def _nothing(batch: int) -> dict[str, Tensor]:
    """Returns the outputs for ``batch`` images without objects."""
    none = torch.zeros(batch, 0)
    return {"boxes": torch.zeros(batch, 0, 4), "scores": none, "labels": none.long()}


def _scores(label_map: Tensor, num_labels: int) -> Tensor:
    """Returns scores (K, H, W) of 1 for the class of each pixel of ``label_map`` (H, W) and 0 for the others."""
    return (label_map == torch.arange(num_labels)[:, None, None]).float()


def _fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns ``image`` (3, H, W) uint8, shrunk if it exceeds ``size``."""
    height, width = image.shape[1:]
    factor = min(size[0] / height, size[1] / width)
    if factor >= 1:
        return image
    new_size = max(1, int(height * factor)), max(1, int(width * factor))
    smaller = F.interpolate(image[None].float(), size=new_size, mode="bilinear", antialias=True)
    return smaller[0].round().clamp(0, 255).to(torch.uint8)
