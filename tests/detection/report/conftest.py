"""Builds the folder of a backbone experiment without training: detections are objects, moved, renamed or dropped."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorDataConfig
from detection.config.load import dump_config
from detection.data.cards import load_dataset
from detection.data.index import AnnotationIndex
from detection.engine.evaluate import evaluate
from detection.evaluation.coco import coco_results
from detection.evaluation.record import Record
from detection.report.build import write_report


def write_data(root: Path) -> tuple[str, Path]:
    """Writes a data set of twelve pictures and three classes into ``root``; gives its spec and the data root."""
    rng = np.random.default_rng(0)
    annotations, categories = [], {3: "cat", 18: "dog", 20: "sheep <&> goat"}
    (root / "coco" / "train").mkdir(parents=True)
    for image in range(1, 13):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((80, 60), Image.Resampling.BILINEAR).save(root / "coco" / "train" / f"{image:03d}.jpg")
        for number in range(4):
            x, y = 20 * number + rng.integers(0, 4), 10 * number + rng.integers(0, 8)
            w, h = (int(side) for side in rng.integers(12, 17, size=2))
            category = int(rng.choice([*categories]))
            box = {"bbox": [int(x), int(y), w, h], "area": w * h, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, **box})
    content = {
        "images": [{"id": i, "file_name": f"{i:03d}.jpg", "height": 60, "width": 80} for i in range(1, 13)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    (root / "coco" / "train.json").write_text(json.dumps(content))
    card = {"format": "coco", "root": "coco", "classes": [*categories.values()]}
    splits = {"train": {"annotations": "train.json", "images": "train"}}
    (root / "coco.yaml").write_text(json.dumps(card | {"splits": splits}))
    return f"{root / 'coco.yaml'}:train", root


def write_run(
    data: tuple[str, Path], folder: Path, *, skill: float = 0.8, seed: int = 0, backbone: str = "resnet18"
) -> Path:
    """Writes a run directory whose detector finds each object with probability ``skill``."""
    spec, root = data
    index, _ = load_dataset([spec], root)
    rng = np.random.default_rng((seed, int(100 * skill)))
    records = [_record(index, row, skill, rng) for row in range(len(index))]
    folder.mkdir(parents=True)
    sets = DetectorDataConfig(train=(spec,), test=(spec,), root=str(root))
    config = DetectionConfig(backbone=DetectorBackboneConfig(name=backbone), data=sets)
    (folder / "config.yaml").write_text(dump_config(config))
    result = evaluate(records, index.class_names, "area") | {"images": len(records), "seconds_per_image": 0.1}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "detections.json").write_text(json.dumps(coco_results(records, index.category_ids)))
    lines = [{"iteration": step, "loss/total": 3 / step**0.5, "time": 0.0} for step in range(10, 210, 10)]
    lines += [{"iteration": step, "bbox.AP": result["bbox"]["AP"] * step / 200} for step in (100, 200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_experiment(
    data: tuple[str, Path],
    skills: Mapping[str, float],
    *,
    seeds: Sequence[int] = (0, 1),
    broken: Sequence[tuple[str, int]] = (),
) -> Path:
    """Writes an experiment folder: a run per variant and seed, but for those in ``broken`` (variant, seed)."""
    output = data[1] / "experiment"
    (output / "costs").mkdir(parents=True)
    (output / "experiment.json").write_text(json.dumps(_plan(*data, list(skills), seeds)))
    for place, (variant, skill) in enumerate(skills.items()):
        for seed in seeds:
            folder = output / "runs" / variant / str(seed)
            status: dict[str, Any] = {"state": "failed", "error": "the loss is nan at iteration 7", "hours": 0.1}
            if (variant, seed) in broken:
                folder.mkdir(parents=True)
            else:
                write_run(data, folder, skill=skill, seed=seed, backbone=variant)
                status = {"state": "done", "error": None, "hours": 0.5 + place, "peak_memory_gib": 1.5}
            (folder / "status.json").write_text(json.dumps(status))
        (output / "costs" / f"{variant}.json").write_text(json.dumps(_costs(place)))
    return output


@pytest.fixture
def data(tmp_path) -> tuple[str, Path]:
    return write_data(tmp_path)


@pytest.fixture
def make_run(data):
    return partial(write_run, data)


@pytest.fixture
def make_experiment(data):
    return partial(write_experiment, data)


@pytest.fixture(scope="session")
def whole_experiment(tmp_path_factory) -> Path:
    """Two variants, the second far better, with three seeds each; a test that writes copies it."""
    data = write_data(tmp_path_factory.mktemp("whole"))
    return write_experiment(data, {"resnet18": 0.5, "resnet34": 0.95}, seeds=(0, 1, 2))


@pytest.fixture(scope="session")
def whole_report(whole_experiment) -> Path:
    """Its page, beside report.json and report.md."""
    return write_report(whole_experiment)


def _record(index: AnnotationIndex, row: int, skill: float, rng: np.random.Generator) -> Record:
    objects = index.objects(row)
    boxes, labels = index.boxes[objects].numpy(), index.labels[objects].numpy()
    kept = rng.random(len(boxes)) < skill
    shift = rng.normal(0, 4 * (1 - skill), (len(boxes), 4))
    wrong = rng.random(len(boxes)) > skill**0.5
    renamed = np.where(wrong, (labels + 1) % len(index.class_names), labels)
    false = np.array([[60, 40, 75, 55]], np.float32)
    return Record(
        image_id=int(index.image_ids[row]),
        file_name=index.paths[row],
        size=(60, 80),
        gt_boxes=boxes,
        gt_labels=labels,
        gt_ignore=index.ignore[objects].numpy(),
        gt_areas=index.areas[objects].numpy(),
        boxes=np.concatenate([(boxes + shift)[kept], false]).astype(np.float32),
        scores=np.append(rng.uniform(0.4, 1, kept.sum()), rng.uniform(0, 0.8)).astype(np.float32),
        labels=np.append(renamed[kept], rng.integers(len(index.class_names))),
    )


def _plan(spec: str, root: Path, variants: list[str], seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "name": "toy",
        "protocol": {"name": "equal_steps", "minutes": None, "factors": [], "train": [], "validation": []},
        "seeds": list(seeds),
        "allowed": ["backbone.name", "backbone.norm"],
        "base": {"backbone.name": variants[0], "data.train": [spec], "data.test": [spec], "solver.base_lr": 0.01},
        "differences": [{"key": "backbone.name", "values": {name: name for name in variants}}],
        "also_changes": [{"what": "head parameters", "values": {n: 1_000_000 * i for i, n in enumerate(variants, 1)}}],
        "hashes": {
            "code": "c" * 64,
            "data": {spec.rpartition("/")[2]: "d" * 64},
            "initial_weights": dict.fromkeys(variants) | {variants[0]: "e" * 64},
        },
        "environment": {"python": "3.11.4", "torch": "2.10.0", "device": "cpu", "threads": 1},
    }


def _costs(place: int) -> dict[str, Any]:
    counts: dict[str, Any] = {"parameters": 11_000_000 * (place + 1), "trainable_parameters": 10_000_000 * (place + 1)}
    counts |= {"head_parameters": 3_000_000, "gflops": 12.5 * (place + 1), "peak_memory_gib": 0.8}
    latency = {"p50": 40.0 + 30 * place, "p95": 55.0 + 30 * place, "images": 12, "device": "cpu"}
    return counts | {"latency_ms": latency, "flops_note": "billions of multiply-adds for one image of 60 x 80"}
