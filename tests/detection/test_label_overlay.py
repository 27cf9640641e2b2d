"""Mirrors detection/label_overlay.py."""

import numpy as np

from detection.label_colors import VOID_COLOR, color_map
from detection.label_overlay import OPACITY, draw_label_map, label_palette
from detection.structures import VOID

NAMES = ("background", "road", "sky")
BLACK = np.zeros((300, 400, 3), np.uint8)


def test_the_colour_map_is_that_of_voc() -> None:
    colors = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 128], [64, 0, 0], [0, 64, 128], [*VOID_COLOR]]
    assert color_map()[[0, 1, 2, 7, 8, 20, 255]].tolist() == colors
    assert label_palette(NAMES)[0].tolist() == [0, 0, 0]
    assert label_palette(NAMES[1:])[0].tolist() == [128, 0, 0]  # black is for the background alone


def test_classes_are_painted_and_the_background_is_left() -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[:, 200:300], labels[:, 300:] = 1, VOID
    drawn = draw_label_map(BLACK, labels, NAMES)
    void = [round(OPACITY * part) for part in VOID_COLOR]
    assert drawn[200, [50, 250, 350]].tolist() == [[0, 0, 0], [round(OPACITY * 128), 0, 0], void]
    assert drawn[200, 199].tolist() == [255, 255, 255]  # the border
    assert drawn[:40, :90].any()  # the legend
    corner = draw_label_map(BLACK, np.full_like(labels, VOID), NAMES)[0, 0]
    assert corner.tolist() == [*VOID_COLOR]  # the ground of the letters; the picture's is mixed
    assert draw_label_map(BLACK, labels, NAMES, scale=0.5).shape == (150, 200, 3)
    assert draw_label_map(BLACK[:1, :1], np.ones((1, 1), np.uint8), NAMES).shape == (1, 1, 3)


def test_borders_of_segments_are_drawn_within_a_class() -> None:
    labels, segments = np.full((300, 400), 1, np.uint8), np.ones((300, 400), np.int32)
    segments[:, 200:] = 70000
    drawn = draw_label_map(BLACK, labels, NAMES, outlines=segments)
    assert drawn[200, 199].tolist() == [255, 255, 255]
    assert drawn[200, 200].tolist() == drawn[200, 100].tolist()
