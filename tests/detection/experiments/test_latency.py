import json

import pytest
import torch

from detection.experiments.experiment import load_experiment
from detection.experiments.latency import Place, measure_latencies

BASE = """
backbone: {name: cifar_resnet20, norm: gn, roi_size: 1}
rpn: {channels: 8, pre_nms_test: 16, post_nms_test: 4}
data: {train: [coco.yaml:train], test: [coco.yaml:test], shorter_side: 32, longer_side: 48}
device: cpu
"""


@pytest.mark.slow
@pytest.mark.usefixtures("card")
def test_each_place_has_a_file_of_all_variants(write_swap, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_swap(BASE, variants={"small": [], "plain": ["backbone.name=cifar_plain20"]})
    experiment, before = load_experiment(path, [f"data.root={tmp_path}"]), torch.get_num_threads()
    places = Place(threads=1), Place(batch=2, precision="bf16")
    paths = [measure_latencies(experiment, tmp_path / "out", place, say=lambda _: None) for place in places]
    assert torch.get_num_threads() == before
    assert {path.parent for path in paths} == {tmp_path / "out" / "latency"}
    first, second = (json.loads(path.read_text()) for path in paths)
    assert (first["threads"], first["batch"], first["precision"]) == (1, 1, "fp32")
    assert "1 thread" in first["described"]
    assert [first["variants"]["small"]["images"], second["variants"]["small"]["images"]] == [3, 2]
    assert first["variants"].keys() == {"small", "plain"}
    assert all(0 < row["p50"] <= row["p95"] and row["weights"] is None for row in second["variants"].values())


def test_places_that_are_not_there_are_refused(monkeypatch) -> None:
    for there, place, message in (
        (False, {"device": "cuda"}, "--latency-on cuda"),
        (True, {"device": "cuda", "threads": 3}, "--threads 3"),
        (True, {"exported": "onnx", "precision": "bf16"}, "--exported onnx"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with pytest.raises(ValueError, match=message):
            Place(**place)
