"""The Markdown card of an export: inputs and outputs of the file, agreement with PyTorch, and costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detection.export.facts import Facts
from detection.export.graph import LABEL_MAP, OUTPUTS, output_names
from detection.structures import VOID

__all__ = ["card", "summary"]


def summary(proof: Mapping[str, Any]) -> list[str]:
    """Returns the lines to print about the content of export.json."""
    found, lines = proof["agreement"], list[str]()
    if found is not None:
        masks = "" if found["mask"] is None else f", mask {found['mask']:.2g}"
        moved = found.get("keypoint")  # missing in earlier exports
        keypoints = "" if moved is None else f"; {100 * moved:.1f} % of the keypoints more than a pixel apart"
        pixels = found.get("pixels")  # also missing in earlier exports
        if pixels is not None:
            lines.append(f"{found['images']} images: {100 * pixels:.3f} % of the pixels have another class")
        if pixels is None or found["detections"] or found["exported"]:
            lines.append(
                f"{found['images']} images: {found['matched']} of PyTorch's {found['detections']} detections matched, "
                f"{found['exported']} exported; greatest differences: box {found['box']:.2g} pixels, "
                f"score {found['score']:.2g}{masks}{keypoints}"
            )
    lines += [_ap_line(kind, loss) for kind, loss in proof["ap"].items()]
    for name, cost in proof["cost"].items():
        lines.append(f"{name}: {cost['p50']:.1f} ms (p95 {cost['p95']:.1f}), peak {cost['peak_memory_gib']:.2f} GiB")
    if proof["float_parts"]:
        kept = ", ".join(f"{part} ({100 * lost:.1f} %)" for part, lost in proof["float_parts"].items())
        lines.append(f"parts that stay float, and detections that each would lose: {kept}")
    return lines


def card(facts: Facts, proof: Mapping[str, Any]) -> str:
    """Returns the text of export.md."""
    height, width = facts.size
    shorter, longer = facts.resize
    files = ", ".join(f"`{name}` ({size / 2**20:.1f} MiB)" for name, size in proof["files"].items())
    lines = [
        f"# Exported detector: {facts.format}, {facts.precision}",
        "",
        f"- Files: {files}",
        f"- Classes: {', '.join(facts.class_names)}",
        f"- Licence of the weights: {facts.licence}",
        f"- Weights: {facts.weights} at iteration {facts.iteration}, SHA-256 {facts.run}",
        "",
        "## Input",
        "",
        f"- `pixels` ({facts.batch}, 3, {height}, {width}) uint8 RGB: each image at the top left, zeros elsewhere",
        f"- `sizes` ({facts.batch}, 2) int64: height and width of each image",
        f"- Images are resized before, to a shorter side of {shorter} pixels unless the longer exceeds {longer}, and "
        "further where they do not fit. Normalisation is part of the graph.",
        "",
        "## Output",
        "",
        *_outputs(facts),
        "",
        "## Against PyTorch",
        "",
        *(f"- {line}" for line in summary(proof)),
        "",
    ]
    return "\n".join(lines)


def _outputs(facts: Facts) -> list[str]:
    names, (height, width) = output_names(facts.parsed_config()), facts.size
    lines = [
        f"- `boxes` ({facts.batch}, D, 4) float32: x1, y1, x2, y2 in pixels of the resized image",
        f"- `labels` ({facts.batch}, D) int64, `scores` ({facts.batch}, D) float32, best first",
        f"- `counts` ({facts.batch},) int64: so many rows are detections; D is at most {facts.max_detections}",
        "- `masks` (D, S, S) per image, of detectors with masks: probabilities in the box",
        "- `keypoints` (D, J, 3) per image, of detectors with keypoints: x and y in pixels of the resized image, score",
        f"- Scores above {facts.score_threshold:g}, NMS at an IoU of {facts.nms_iou:g}",
    ]
    maps = (
        f"- `label_map` ({facts.batch}, {height}, {width}) uint8: the best class of each pixel of the resized image, "
        f"{VOID} outside of it"
    )
    return (lines if OUTPUTS[0] in names else []) + ([maps] if LABEL_MAP in names else [])


def _ap_line(kind: str, loss: Mapping[str, Any]) -> str:
    before, after, change = 100 * loss["before"], 100 * loss["after"], loss["change"]
    low, high = (None if value is None else 100 * value for value in (change["low"], change["high"]))
    interval = "no interval" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"
    what = {
        "frame": "box AP, PyTorch in the frame",
        "bbox": "box AP, exported",
        "segm": "mask AP, exported",
        "keypoints": "keypoint AP, exported",
        "frame_semseg": "mean IoU, PyTorch in the frame",
        "semseg": "mean IoU, exported",
    }[kind]
    return f"{what}, {loss['images']} images: from {before:.1f} to {after:.1f}, {after - before:+.1f} {interval}"
