"""Which of the paper's figures stand beside which run."""

from __future__ import annotations

from detection.report.paper import paper_cells


def test_table_7_with_its_band() -> None:
    (vgg,) = paper_cells("vgg16", ("voc2012:trainval", "voc2007:trainval"), ("voc2007:test",))
    assert (vgg.metric, vgg.value, vgg.accept) == ("VOC mAP", 0.732, 0.732)
    (resnet,) = paper_cells("resnet101", ("voc2007:trainval", "voc2012:trainval"), ("voc2007:test",))
    assert (resnet.value, resnet.accept) == (0.764, 0.764)


def test_table_8_without_a_band() -> None:
    cells = paper_cells("resnet101", ("coco2014:train",), ("coco2014:val",))
    assert [(c.table, c.metric, c.value, c.accept) for c in cells] == [
        ("8", "AP50", 0.484, None),
        ("8", "AP", 0.272, None),
    ]


def test_other_training_data_and_backbones_have_none() -> None:
    assert paper_cells("vgg16", ("voc2007:trainval",), ("voc2007:test",)) == []
    assert paper_cells("resnet50", ("coco2014:train",), ("coco2014:val",)) == []
    assert paper_cells("vgg16", ("coco2014:train",), ()) == []
