"""Mirrors data/anchor_fit.py."""

import numpy as np
import pytest

from detection.data.anchor_fit import best_iou, fit_ratios, fit_sizes, grid_iou, kmeans_iou, reached, resized_boxes

CENTRES = ((10.0, 10.0), (40.0, 20.0), (300.0, 200.0))


def spread(*centres, count=50):
    generator = np.random.default_rng(0)
    return np.concatenate([np.array(centre) * generator.uniform(0.95, 1.05, (count, 2)) for centre in centres])


def test_clusters_are_found_whatever_their_scale_and_ratios_are_height_over_width() -> None:
    assert kmeans_iou(spread(*CENTRES), 3) == pytest.approx(np.array(CENTRES), rel=0.05)
    assert fit_sizes(spread(*CENTRES), 3) == pytest.approx((10, np.sqrt(800), np.sqrt(60000)), rel=0.06)
    alike = [*fit_sizes(spread((30, 30)), 5)]
    assert (alike, len(fit_sizes(spread((30, 30), count=1), 5))) == (sorted({*alike}), 5)
    few = np.concatenate([spread((100, 100), (120, 120), count=450), spread((40, 40), count=60)])
    assert fit_sizes(few, 3)[0] == pytest.approx(40, rel=0.06)  # small objects get a centre of their own
    assert fit_ratios(spread((10, 20), (30, 15), (40, 160))) == pytest.approx((0.5, 2.0, 4.0), rel=0.06)
    assert fit_ratios(spread((10, 10))) == pytest.approx((0.5, 1.0, 2.0), rel=0.06)


def test_the_fit_is_that_of_boxes_with_one_centre_or_falls_with_the_distance_on_a_grid() -> None:
    ious = best_iou(np.array([[10.0, 10.0], [20.0, 10.0], [10.0, 40.0]]), (10.0,), (1.0,))
    assert ious == pytest.approx([1.0, 0.5, 0.25])
    assert (reached(ious, 0.5), reached(ious, 0.7)) == pytest.approx((2 / 3, 1 / 3))
    assert reached(best_iou(np.zeros((0, 2)), (10.0,), (1.0,)), 0.5) == 1.0
    objects = spread((12, 30), (25, 60), (14, 34))
    own = best_iou(objects, fit_sizes(objects, 3), fit_ratios(objects))
    assert reached(own, 0.7) > 0.9 > reached(best_iou(objects, (128.0, 256.0, 512.0), (0.5, 1.0, 2.0)), 0.7)
    boxes = np.array([[3.0, 3, 13, 13], [5, 3, 15, 13], [11, 3, 21, 13]])  # centres at 8, 10 and 16 of a stride of 16
    assert grid_iou(boxes, np.array([[10.0, 10.0]]), 16) == pytest.approx([1.0, 80 / 120, 20 / 180])
    assert grid_iou(boxes, np.array([[10.0, 10.0]]), 16, offset=0.0)[2] == pytest.approx(20 / 180)
    assert grid_iou(np.zeros((0, 4)), np.array([[10.0, 10.0]]), 16).shape == (0,)


def test_boxes_are_those_of_resized_images_without_ignored_and_thin_ones(make_index) -> None:
    objects = [((0, 0, 10, 20), 1, False), ((0, 0, 30, 30), 0, True), ((0, 0, 0.5, 30), 0, False)]
    boxes, labels = resized_boxes(make_index([[], objects]), 120, 1000)  # of 60x80 images
    assert (boxes.tolist(), labels.tolist()) == ([[0, 0, 20, 40]], [1])
    assert resized_boxes(make_index([objects]), 120, 80)[0].tolist() == [[0, 0, 10, 20]]
