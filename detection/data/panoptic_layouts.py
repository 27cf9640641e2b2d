"""Recognises COCO's panoptic format: a JSON file of segments, a folder of their PNGs, and optionally instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detection.data.layouts import ALL, Layout, find_coco, is_panoptic, known_splits
from detection.data.tree import Tree, split_of

__all__ = ["find_coco_panoptic"]


def find_coco_panoptic(tree: Tree) -> Layout | None:
    """Finds COCO panoptic's JSON files, which have segments_info, and for each its folder of PNGs and its images.

    If a file has the instances of the same images, these become the objects.
    """
    files = {path: content for path, content in tree.json.items() if is_panoptic(content)}
    coco = find_coco(tree) if files else None
    splits, notes = dict[str, list[dict[str, Any]]](), list[str]()
    for path, content in files.items():
        images = tree.folder_of(_names(content["images"]), near=path.parent)
        segments = tree.folder_of(_names(content["annotations"]), near=path.parent / path.stem)
        if images is None or segments is None:
            notes.append(f"{path} left out: {'none of its images' if images is None else 'no PNG of it'} is there")
            continue
        split = split_of(path) or ALL
        entry = {"panoptic": str(path), "segments": segments, "images": images}
        own = [] if coco is None else coco.splits.get(split, [])
        instances = [other["annotations"] for other in own if other["images"] == images]
        splits.setdefault(split, []).append(entry | ({"annotations": instances[0]} if instances else {}))
    if not splits:
        return None
    read = [entry["panoptic"] for entries in splits.values() for entry in entries]
    said = f"{', '.join(read)} {'has' if len(read) == 1 else 'have'} segments_info and PNGs of them"
    return Layout(known_splits(splits, notes), said, tuple(notes))


def _names(records: list[Any]) -> list[str]:
    return [str(record.get("file_name")) for record in records if isinstance(record, Mapping)]
