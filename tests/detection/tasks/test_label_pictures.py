from dataclasses import replace

import numpy as np
import torch

from detection.tasks.label_pictures import draw_labels, hatch


def test_ignored_objects_are_hatched_and_others_keep_their_inside(make_target) -> None:
    image = np.full((480, 480, 3), 128, np.uint8)
    target = make_target([(20, 40, 120, 140), (220, 40, 320, 140)], [0, 0], [False, True])
    canvas = draw_labels(image, target, ("cat",))
    assert (canvas[60:120, 40:100] == 128).all()
    inside = canvas[60:120, 240:300]
    assert 0.2 < (inside != 128).any(axis=2).mean() < 0.6
    assert (image == 128).all()


def test_boxes_outside_leave_the_canvas_as_it_is() -> None:
    canvas = np.zeros((20, 20, 3), np.uint8)
    hatch(canvas, np.array([30.0, 5, 40, 10]))
    assert not canvas.any()


def test_keypoints_of_what_is_not_ignored_are_drawn(make_target) -> None:
    image = np.full((480, 480, 3), 128, np.uint8)
    target = make_target([(20, 40, 220, 240), (240, 40, 460, 240)], [0, 0], [False, True])
    points = torch.tensor([[[120.0, 140, 2], [0, 0, 0]], [[360.0, 141, 2], [0, 0, 0]]])
    canvas = draw_labels(image, replace(target, keypoints=points), ("cat",))
    plain = draw_labels(image, target, ("cat",))
    changed = (canvas != plain).any(axis=2)
    assert changed[140, 120]
    assert not changed[:, 240:].any()
