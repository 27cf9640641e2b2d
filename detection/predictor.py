"""A trained detector for use in Python: images in, detections with class names out.

A ``Detect`` maps a batch of images that have the test scale to detections; ``Predictor`` is everything around it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detection.build import build_detector, label_names
from detection.build_panoptic import build_merge
from detection.build_tester import build_image_tester, slice_images
from detection.config.detection import DetectionConfig, KeypointConfig, PostprocessConfig
from detection.config.load import build_dataclass
from detection.data.sources import Picture, Source, pictures, read_picture
from detection.data.transforms import Change, Resize, full_size
from detection.engine.checkpoint import Checkpoint, load_detector_weights, read_checkpoint
from detection.engine.device import DeviceName, choose_device
from detection.engine.label_maps import Labelled, Merge, labelled, stored_labels
from detection.engine.loop import PRECISIONS
from detection.engine.threshold import Threshold, run_threshold
from detection.export.runtime import Exported, find_export, open_exported
from detection.hub import local_path
from detection.keypoints import KeypointSpec
from detection.mask_geometry import MaskGeometry
from detection.mask_pasting import paste
from detection.masks import RLE
from detection.model.postprocess import rescale
from detection.prediction import Prediction
from detection.structures import Detections, ImageBatch, Target

__all__ = ["Detect", "MinScore", "Predictor", "TorchDetect"]

# Images of any sizes on the CPU, padded to one; the detections of each on the CPU, best first, in pixels of the batch.
Detect = Callable[[ImageBatch], list[Detections]]
MinScore = float | Mapping[str, float]  # of all classes, or by class; a class that is not named has the default


class TorchDetect:
    """A PyTorch module as ``Detect``.

    Args:
        tester: an Architecture, or what ``build_tester`` or ``slice_images`` returns.
        device: device that it is moved to.
        precision: of autocast.
    """

    def __init__(self, tester: nn.Module, *, device: torch.device, precision: str = "fp32") -> None:
        self.tester, self.device, self.dtype = tester.eval().to(device), device, PRECISIONS[precision]

    @torch.inference_mode()
    def __call__(self, images: ImageBatch) -> list[Detections]:
        """Returns the detections of each image."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return [found.to("cpu") for found in self.tester(images.to(self.device))]


class Predictor:
    """Detects objects in files, addresses, arrays, folders, videos and cameras.

        predictor = Predictor.load("output/bccd/resnet18_c4")
        found = predictor("cells.jpg")
        print(found.names, found.boxes, found.scores)
        for found in predictor.stream("photos/"):
            print(found.picture.name, found.error or found.names)

    Args:
        detect: the detector.
        class_names: K names.
        resize: resizes images to the scale of ``detect``.
        threshold: score threshold of detections, if a call gives none.
        mask_geometry: geometry by which masks are pasted onto an image.
        keypoint_spec: names and edges of keypoints, where ``detect`` finds them.
        label_names: the classes of label maps, where ``detect`` predicts them; without ``merge`` it finds no objects.
        merge: merges objects and label map of a panoptic network into segments.
        batch_size: images, or frames, that ``stream`` processes at once.
    """

    def __init__(
        self,
        detect: Detect,
        *,
        class_names: Sequence[str],
        resize: Change,
        threshold: Threshold,
        mask_geometry: MaskGeometry = "exact",
        keypoint_spec: KeypointSpec | None = None,
        label_names: Sequence[str] = (),
        merge: Merge | None = None,
        batch_size: int = 1,
    ) -> None:
        self.detect, self.class_names, self.threshold = detect, tuple(class_names), threshold
        self.mask_geometry: MaskGeometry = mask_geometry
        self.keypoint_spec, self.batch_size = keypoint_spec, batch_size
        self.label_names, self.merge = tuple(label_names), merge
        self._resize = resize

    @property
    def finds_objects(self) -> bool:
        """Tells whether there are detections, and not label maps alone."""
        return not self.label_names or self.merge is not None

    @classmethod
    def load(
        cls,
        weights: str | Path,
        *,
        device: DeviceName = "auto",
        batch_size: int = 1,
        **test: Any,
    ) -> Self:
        """Returns the detector at ``weights``, tested as its config says and in the precision of its training.

        Args:
            weights: a .safetensors checkpoint, or a run directory: its best weights, else its newest; or an exported
                file, or its folder, which runs in its own runtime on the CPU; or an address
                ``hf://NAME/REPO[@REVISION][/PATH]`` of one of these.
            device: "auto" is CUDA where there is one.
            batch_size: images that ``stream`` processes at once.
            test: keys of the config's section "test" with other values, such as ``slice=800``.

        Raises:
            ValueError: ``weights`` are missing or can't be read; an unknown key or a wrong value of ``test``; CUDA is
                asked for and missing.
            ConnectionError: the hub can't be reached, and its cache lacks the files.
        """
        weights = local_path(weights)
        if find_export(weights) is not None:
            return cls._of_export(open_exported(weights), test, batch_size=batch_size)
        checkpoint = read_checkpoint(weights)
        changed = build_dataclass(PostprocessConfig, asdict(checkpoint.config.test) | test)
        return cls.of(checkpoint, replace(checkpoint.config, device=device, test=changed), batch_size=batch_size)

    @classmethod
    def _of_export(cls, exported: Exported, test: Mapping[str, Any], *, batch_size: int) -> Self:
        config = exported.config
        config = replace(config, test=build_dataclass(PostprocessConfig, {**asdict(config.test), **test}))
        exported.check_config(config, exported.class_names)  # only slices are not in its graph
        return cls(
            exported if config.test.slice is None else slice_images(config, exported),
            class_names=exported.class_names,
            resize=Resize(*exported.facts.resize) if config.test.slice is None else full_size,
            threshold=Threshold(exported.facts.shown_score, exported.facts.shown_origin),
            mask_geometry=config.mask.geometry,
            keypoint_spec=_keypoint_spec(config.keypoint),
            label_names=label_names(config, exported.class_names),
            merge=build_merge(config, len(exported.class_names)),
            batch_size=batch_size,
        )

    @classmethod
    def of(cls, checkpoint: Checkpoint[DetectionConfig], config: DetectionConfig, *, batch_size: int = 1) -> Self:
        """Returns the detector of ``checkpoint``, tested as ``config`` says.

        Raises:
            ValueError: its weights do not fit; CUDA is asked for and missing.
        """
        detector = build_detector(config, len(checkpoint.class_names), pretrained=False)
        load_detector_weights(detector, checkpoint, checkpoint.class_names)
        tester = build_image_tester(config, [detector])
        resize = Resize(config.data.shorter_side, config.data.longer_side)
        return cls(
            TorchDetect(tester, device=choose_device(config.device), precision=config.solver.precision),
            class_names=checkpoint.class_names,
            resize=resize if config.test.slice is None else full_size,
            threshold=run_threshold(checkpoint),
            mask_geometry=config.mask.geometry,
            keypoint_spec=_keypoint_spec(config.keypoint),
            label_names=label_names(config, checkpoint.class_names),
            merge=build_merge(config, len(checkpoint.class_names)),
            batch_size=batch_size,
        )

    @overload
    def __call__(self, source: Source, *, min_score: MinScore | None = None) -> Prediction: ...
    @overload
    def __call__(self, source: Sequence[Source], *, min_score: MinScore | None = None) -> list[Prediction]: ...
    def __call__(
        self, source: Source | Sequence[Source], *, min_score: MinScore | None = None
    ) -> Prediction | list[Prediction]:
        """Returns the detections of one image, or of each of a list.

        Args:
            source: a file, an address, an array (H, W, 3) uint8 RGB or a PIL image, or a list of them.
            min_score: least score of detections; None: ``threshold``.  0: all above the config's
                ``test.score_threshold``.

        Raises:
            ImageError: the image can't be read, or is a folder, a video or a camera, which ``stream`` takes.
            ValueError: an array that is no image, or an unknown class in ``min_score``.
        """
        if isinstance(source, Sequence) and not isinstance(source, str):
            return list(self.stream(source, min_score=min_score))
        return self._predict([read_picture(source)], self._scores(min_score), self._note(min_score))[0]

    def stream(
        self,
        sources: Source | Iterable[Source],
        *,
        min_score: MinScore | None = None,
        max_frames: int | None = None,
    ) -> Iterator[Prediction]:
        """Returns an iterator over the detections of each image or frame as they are found, in bounded memory.

        An image that can't be read or predicted has an ``error`` and no detection.

        Args:
            sources: as ``__call__`` takes them, or folders, videos, and numbers of cameras.
            min_score: as in ``__call__``.
            max_frames: most frames of each video and camera; None: all.

        Raises:
            ValueError: an unknown class in ``min_score``; later, an array that is no image.
        """
        return self._stream(pictures(sources, max_frames=max_frames), self._scores(min_score), self._note(min_score))

    def _stream(self, waiting: Iterator[Picture], scores: Tensor, note: str) -> Iterator[Prediction]:
        while part := list(islice(waiting, self.batch_size)):
            yield from self._predict_all(part, scores, note)

    def _predict_all(self, part: Sequence[Picture], scores: Tensor, note: str) -> list[Prediction]:
        """Returns the predictions of pictures of which some can't be read, or not be predicted."""
        readable = [picture for picture in part if picture.pixels is not None]
        try:
            found = self._predict(readable, scores, note) if readable else []
        except (RuntimeError, ValueError, MemoryError) as error:  # too large for memory, or too thin for the network
            if len(readable) > 1:
                return [one for picture in part for one in self._predict_all([picture], scores, note)]
            found = [self._failed(readable[0], error)]
        predictions = iter(found)
        return [
            self._empty(picture, picture.error) if picture.pixels is None else next(predictions) for picture in part
        ]

    def _predict(self, part: Sequence[Picture], scores: Tensor, note: str) -> list[Prediction]:
        """Returns the predictions of pictures that were read.

        Only images of one size share a batch: padding would change the results of a network with group normalisation.
        """
        images = [picture.pixels for picture in part if picture.pixels is not None]
        resized = [self._resize(image, _nothing(), seed=())[0] for image in images]
        groups = dict[tuple[int, int], list[int]]()
        for row, view in enumerate(resized):
            groups.setdefault(_size(view), []).append(row)
        found = dict[int, Detections]()
        for rows in groups.values():
            views = [torch.from_numpy(resized[row]).permute(2, 0, 1) for row in rows]
            found |= zip(rows, self.detect(ImageBatch.from_images(views)), strict=True)
        return [
            self._on_image(picture, image, rescale(found[row], _size(resized[row]), _size(image)), scores, note)
            for row, (picture, image) in enumerate(zip(part, images, strict=True))
        ]

    def _on_image(
        self, picture: Picture, image: NDArray[np.uint8], found: Detections, scores: Tensor, note: str
    ) -> Prediction:
        """Returns the detections in ``found`` of at least ``scores`` (K,), in pixels of the ``image``."""
        own = replace(found, label_scores=None)[found.scores >= scores[found.labels]]
        labels = self._labelled(found, _size(image))
        return Prediction(
            picture=picture,
            detections=own,
            class_names=self.class_names,
            masks=None if own.masks is None else self._pasted(own, _size(image)),
            keypoint_spec=self.keypoint_spec,
            label_map=None if labels is None else labels.labels,
            label_names=self.label_names,
            segments=None if labels is None else labels.segments,
            note=note if self.finds_objects else "",
        )

    def _pasted(self, found: Detections, size: tuple[int, int]) -> tuple[RLE, ...]:
        """Returns the masks of ``found`` on the whole image, of ``size``."""
        assert found.masks is not None
        return tuple(paste(found.masks, found.boxes, size, geometry=self.mask_geometry))

    def _labelled(self, found: Detections, size: tuple[int, int]) -> Labelled | None:
        """Returns the label map of an image of ``size``; None of a network without."""
        if found.label_scores is None:
            return None
        own, objects = stored_labels(found.label_scores, size).numpy(), None
        if self.merge is not None and found.masks is not None:
            rows = {"scores": found.scores.numpy(), "labels": found.labels.numpy()}
            objects = rows | {"masks": self._pasted(found, size)}
        return labelled(own, objects, self.merge)

    def _failed(self, picture: Picture, error: Exception) -> Prediction:
        assert picture.pixels is not None
        height, width = _size(picture.pixels)
        return self._empty(picture, f"image {picture.name} of {width}x{height} pixels can't be predicted: {error}")

    def _empty(self, picture: Picture, error: str) -> Prediction:
        target = _nothing()
        nothing = Detections(boxes=target.boxes, scores=torch.zeros(0), labels=target.labels)
        return Prediction(
            picture=picture,
            detections=nothing,
            class_names=self.class_names,
            label_names=self.label_names,
            error=error,
        )

    def _scores(self, min_score: MinScore | None) -> Tensor:
        """Returns the least score (K,) of each class."""
        if not isinstance(min_score, Mapping):
            return torch.full((len(self.class_names),), self.threshold.score if min_score is None else min_score)
        for name in min_score:
            if name not in self.class_names:
                spelt = {own.lower(): own for own in self.class_names}
                near = [repr(spelt[text]) for text in difflib.get_close_matches(name.lower(), spelt, n=1)]
                raise ValueError(
                    f"min_score names the class {name!r}, and the detector has {', '.join(near or self.class_names)}"
                )
        return torch.tensor([min_score.get(name, self.threshold.score) for name in self.class_names])

    def _note(self, min_score: MinScore | None) -> str:
        """Returns the least score for the corner of a picture: that of most classes, and of others that differ."""
        if min_score is None:
            return f"score >= {self.threshold.score:.2f}, {self.threshold.origin}"
        scores = self._scores(min_score).tolist()
        usual = max(scores, key=scores.count)
        others = [f"{score:.2f} {name}" for name, score in zip(self.class_names, scores, strict=True) if score != usual]
        return ", ".join([f"score >= {usual:.2f}", *others])


def _keypoint_spec(config: KeypointConfig) -> KeypointSpec | None:
    return KeypointSpec(config.names, config.edges) if config.names else None


def _nothing() -> Target:
    return Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), ignore=torch.zeros(0).bool())


def _size(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
