"""EXPERIMENT/labels.json: objects of the test images, so that figures can be recomputed without the images."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from detection.data.index import AnnotationIndex
from detection.data.packed_strings import PackedStrings
from detection.files import write_text

__all__ = ["LABELS", "read_labels", "write_labels"]

LABELS = "labels.json"


def write_labels(index: AnnotationIndex, path: Path) -> None:
    """Writes boxes and labels of the images in ``index`` to ``path``; masks and keypoints are left out.

    Raises:
        ValueError: there are masks, keypoints or label maps, which results may depend on.
    """
    lost = [*index.fields, *([] if index.label_maps is None else ["label maps"])]
    if lost:
        raise ValueError(f"{path} can't hold {', '.join(lost)}; recompute such results where the data are")
    content = {
        "class_names": index.class_names,
        "category_ids": index.category_ids,
        "file_names": [Path(name).name for name in index.paths.all()],
        "image_ids": index.image_ids.tolist(),
        "sizes": index.sizes.tolist(),
        "ends": index.ends.tolist(),
        "boxes": index.boxes.tolist(),
        "labels": index.labels.tolist(),
        "ignore": index.ignore.int().tolist(),
        "areas": index.areas.tolist(),
        "unjudged": index.unjudged.tolist(),
    }
    lines = ",\n".join(f'"{name}": {json.dumps(value, separators=(",", ":"))}' for name, value in content.items())
    write_text(path, f"{{\n{lines}\n}}\n")


def read_labels(path: Path) -> AnnotationIndex:
    """Returns the images and objects in ``path``, without pixels.

    Raises:
        ValueError: the file can't be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return AnnotationIndex(
            class_names=tuple(content["class_names"]),
            category_ids=tuple(content["category_ids"]),
            paths=PackedStrings.pack(content["file_names"]),
            image_ids=torch.tensor(content["image_ids"], dtype=torch.int64),
            sizes=torch.tensor(content["sizes"], dtype=torch.int32).reshape(-1, 2),
            apply_exif=torch.zeros(len(content["image_ids"]), dtype=torch.bool),
            ends=torch.tensor(content["ends"], dtype=torch.int64),
            boxes=torch.tensor(content["boxes"], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(content["labels"], dtype=torch.int64),
            ignore=torch.tensor(content["ignore"], dtype=torch.bool),
            areas=torch.tensor(content["areas"], dtype=torch.float32),
            unjudged=torch.tensor(content["unjudged"], dtype=torch.int64).reshape(-1, 2),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} can't be read: {error!r}; write it again where the data are") from error
