"""Holds the detections of one image or frame, for use in Python and for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detection.data.sources import Picture
from detection.fields.keypoints import to_coco
from detection.keypoints import KeypointSpec
from detection.label_overlay import draw_label_map
from detection.masks import RLE, decode
from detection.segments import Segments
from detection.structures import Detections
from detection.visualize import draw_boxes

if TYPE_CHECKING:
    from supervision import Detections as SupervisionDetections

__all__ = ["Prediction"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Detections of one image, best first, in its own pixels.

    Attributes:
        picture: the image; without pixels if it can't be read.
        detections: boxes, scores, labels; no row where there is an ``error``.
        class_names: K names.
        masks: (D,) of the whole image, where the detector finds masks.
        keypoint_spec: names and edges of ``keypoints``, where the detector finds them.
        label_map: (H, W) uint8 the class of each pixel, a number into ``label_names``; 255 where nothing is predicted.
            Only of networks that predict label maps, which need not find objects.
        label_names: of ``label_map``; of panoptic networks the ``class_names``, then stuff.
        segments: of which a panoptic ``label_map`` is made.
        error: why there is no detection, or "".
        note: text about the detections for a corner of a picture, such as their least score.
    """

    picture: Picture
    detections: Detections
    class_names: tuple[str, ...]
    masks: tuple[RLE, ...] | None = None
    keypoint_spec: KeypointSpec | None = None
    label_map: NDArray[np.uint8] | None = None
    label_names: tuple[str, ...] = ()
    segments: Segments | None = None
    error: str = ""
    note: str = ""

    def __len__(self) -> int:
        return len(self.detections)

    @property
    def boxes(self) -> Tensor:
        """(D, 4) x1, y1, x2, y2."""
        return self.detections.boxes

    @property
    def scores(self) -> Tensor:
        """(D,) probabilities."""
        return self.detections.scores

    @property
    def labels(self) -> Tensor:
        """(D,) int64, 0..K-1."""
        return self.detections.labels

    @property
    def keypoints(self) -> Tensor | None:
        """(D, J, 3) x, y, score, where the detector finds keypoints."""
        return self.detections.keypoints

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    @property
    def shares(self) -> dict[str, float]:
        """The share of pixels of each class of ``label_map``, the largest first; empty without a label map."""
        if self.label_map is None:
            return {}
        counts = np.bincount(self.label_map.ravel(), minlength=256)[: len(self.label_names)]
        order = np.argsort(-counts, kind="stable").tolist()
        return {self.label_names[label]: float(counts[label] / self.label_map.size) for label in order if counts[label]}

    @property
    def image(self) -> NDArray[np.uint8]:
        """Pixels (H, W, 3), RGB.

        Raises:
            ValueError: the image can't be read.
        """
        if self.picture.pixels is None:
            raise ValueError(self.error)
        return self.picture.pixels

    def records(self) -> list[dict[str, Any]]:
        """Returns the entry of each detection in predictions.json: class, score, box and, where found, mask, keypoints.

        The latter are {name: [x, y, score]}, in the pixels of boxes.  Classes of ``label_map`` that are no objects
        follow, with the share of the pixels that they have.
        """
        stuff = self.label_names if self.segments is None else self.label_names[len(self.class_names) :]
        shares = [{"class": name, "share": share} for name, share in self.shares.items() if name in stuff]
        rows = zip(
            self.names,
            self.scores.tolist(),
            self.boxes.tolist(),
            self._coded_masks("mask"),
            self._named_keypoints(),
            strict=True,
        )
        return [
            *({"class": name, "score": score, "box": box, **mask, **points} for name, score, box, mask, points in rows),
            *shares,
        ]

    def to_coco(self, image_id: int, *, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Returns the detections in COCO's results format: boxes x, y, width, height; masks as "segmentation".

        Keypoints are a flat list of x, y and score, in numbers of pixels.

        Args:
            image_id: of the image in the data set.
            category_ids: (K,) of the classes there; None: 1..K.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        rows = zip(
            self.labels.tolist(),
            self.boxes.tolist(),
            self.scores.tolist(),
            self._coded_masks("segmentation"),
            [{}] * len(self) if self.keypoints is None else [{"keypoints": p} for p in to_coco(self.keypoints.numpy())],
            strict=True,
        )
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[label]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                **mask,
                **points,
            }
            for label, (x1, y1, x2, y2), score, mask, points in rows
        ]

    def to_supervision(self) -> SupervisionDetections:
        """Returns the detections as ``supervision.Detections``, with their names as ``data["class_name"]``.

        Raises:
            ValueError: the package is missing.
        """
        try:
            import supervision
        except ImportError as error:
            raise ValueError(f"to_supervision needs a package: pip install supervision ({error})") from error
        masks = None
        if self.masks is not None:
            height, width = self.image.shape[:2]
            masks = decode(self.masks, (height, width)).numpy()
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=masks,
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )

    def plot(self) -> NDArray[np.uint8]:
        """Returns the image (H, W, 3), RGB, with boxes, masks, keypoints and captions, or under its label map.

        Raises:
            ValueError: the image can't be read.
        """
        if self.label_map is not None:
            outlines = None if self.segments is None else self.segments.ids
            return draw_label_map(self.image, self.label_map, self.label_names, outlines=outlines, note=self.note)
        return draw_boxes(
            self.image,
            self.boxes.numpy(),
            self.scores.numpy(),
            self.labels.numpy(),
            self.class_names,
            masks=self.masks,
            keypoints=None if self.keypoints is None else self.keypoints.numpy(),
            keypoint_spec=self.keypoint_spec,
            note=self.note,
        )

    def crops(self) -> list[NDArray[np.uint8]]:
        """Returns the pixels (h, w, 3) in the box of each detection, at least one of them.

        Raises:
            ValueError: the image can't be read.
        """
        height, width = self.image.shape[:2]
        limits = np.array([width, height, width, height])
        boxes = np.concatenate([np.floor(self.boxes.numpy()[:, :2]), np.ceil(self.boxes.numpy()[:, 2:])], axis=1)
        found = []
        for x1, y1, x2, y2 in np.clip(boxes, 0, limits).astype(int).tolist():
            left, top = min(x1, width - 1), min(y1, height - 1)
            found.append(self.image[top : max(y2, top + 1), left : max(x2, left + 1)].copy())
        return found

    def _coded_masks(self, key: str) -> list[dict[str, Any]]:
        """Returns the mask of each detection, in COCO's compressed run-length code with text counts, under ``key``."""
        if self.masks is None:
            return [{} for _ in range(len(self))]
        return [{key: {"size": mask["size"], "counts": mask["counts"].decode("ascii")}} for mask in self.masks]

    def _named_keypoints(self) -> list[dict[str, Any]]:
        """Returns the keypoints of each detection under "keypoints", by their names, else by their numbers from 1."""
        if self.keypoints is None:
            return [{} for _ in range(len(self))]
        spec = self.keypoint_spec or KeypointSpec.numbered(self.keypoints.shape[1])
        return [{"keypoints": dict(zip(spec.names, points, strict=True))} for points in self.keypoints.tolist()]
