from dataclasses import replace

import numpy as np
import pytest

from detection.report.paper import accept_from, paper_cells

VOC07 = ("voc2012:trainval", "voc2007:trainval")


def test_table_7_with_its_band() -> None:
    (vgg,) = paper_cells("vgg16", VOC07, ("voc2007:test",))
    (resnet,) = paper_cells("resnet101", VOC07, ("voc2007:test",))
    assert (vgg.metric, vgg.value, resnet.value) == ("VOC mAP", 0.732, 0.764)
    # t(0.95, 3) = 2.353 and the deviation 0.505 of mmdetection's four trainings.
    assert accept_from(vgg, 1) == pytest.approx(0.732 - 2.353 * 0.00505 * 2**0.5, abs=2e-5)
    assert accept_from(vgg, 3) == pytest.approx(0.732 - 2.353 * 0.00505 * (4 / 3) ** 0.5, abs=2e-5)


def test_an_exact_repetition_is_accepted_in_19_of_20_cases() -> None:
    (cell,) = paper_cells("vgg16", VOC07, ("voc2007:test",))
    rng = np.random.default_rng(0)
    reruns = rng.normal(0, 0.004, (20_000, 4)).std(axis=1, ddof=1)
    papers, means = rng.normal(0.732, 0.004, 20_000), rng.normal(0.732, 0.004 / 3**0.5, 20_000)
    limits = [accept_from(replace(cell, value=v, deviation=d), 3) for v, d in zip(papers, reruns, strict=True)]
    assert np.mean(means >= np.array(limits, np.float64)) == pytest.approx(0.95, abs=0.006)


def test_table_8_has_no_band_and_other_training_data_and_backbones_have_no_figures() -> None:
    cells = paper_cells("resnet101", ("coco2014:train",), ("coco2014:val",))
    found = [(c.table, c.metric, c.value, accept_from(c, 3)) for c in cells]
    assert found == [("8", "AP50", 0.484, None), ("8", "AP", 0.272, None)]
    assert paper_cells("vgg16", ("voc2007:trainval",), ("voc2007:test",)) == []
    assert paper_cells("resnet50", ("coco2014:train",), ("coco2014:val",)) == []
    assert paper_cells("vgg16", ("coco2014:train",), ()) == []
