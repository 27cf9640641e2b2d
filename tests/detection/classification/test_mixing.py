"""Mirrors detection/classification/mixing.py, and random erasing, which is a transform of data.augment."""

import numpy as np
import pytest
import torch
from torch import nn

from detection.classification.mixing import Mixing, blend, cut, cut_box, draw_layer, mixed_output
from detection.data.transforms import Augment


def test_blend_by_hand() -> None:
    assert blend(torch.tensor([[1.0], [0.0], [4.0]]), 0.75).flatten().tolist() == [1.75, 0.0, 3.25]


def test_shares_and_layers_are_drawn_from_their_distributions() -> None:
    random = np.random.default_rng(0)
    shares = [Mixing("mixup", 0.4).draw_share(random) for _ in range(4000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)  # of Beta(a, a)
    drawn = [draw_layer(("layer1", "layer2"), random) for _ in range(3000)]
    assert [drawn.count(name) / 3000 for name in (None, "layer1", "layer2")] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert draw_layer((), random) is None


def test_the_share_of_the_labels_is_that_of_the_area() -> None:
    random, pixels = np.random.default_rng(0), torch.zeros(2, 3, 20, 30)
    pixels[1] = 1
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        for _ in range(20):
            mixed, kept = cut(pixels, share, random)
            assert mixed[0].eq(0).float().mean().item() == pytest.approx(kept)
            assert mixed[1].eq(1).float().mean().item() == pytest.approx(kept)
    assert pixels[0].eq(0).all()  # its argument stays as it is


def test_a_box_that_lies_inside_has_the_share_that_was_drawn() -> None:
    random, areas = np.random.default_rng(0), list[int]()
    for _ in range(200):
        rows, columns = cut_box(0.75, (40, 60), random)
        areas.append((rows.stop - rows.start) * (columns.stop - columns.start))
        assert 0 <= rows.start <= rows.stop <= 40
        assert 0 <= columns.start <= columns.stop <= 60
    assert min(areas) < max(areas) == 20 * 30  # a quarter of the image; those over the border are smaller


def test_output_is_mixed_within_the_context_alone() -> None:
    layer, x = nn.Identity(), torch.tensor([[1.0], [3.0]])
    with mixed_output(layer, 0.25):
        assert layer(x).flatten().tolist() == [2.5, 1.5]
    assert torch.equal(layer(x), x)


def test_random_erasing_fills_one_rectangle_of_the_papers_sizes() -> None:
    # Zhong et al. 2017, "Random Erasing Data Augmentation", section 3.2
    erase = Augment([{"Erasing": {"scale": [0.02, 0.4], "ratio": [0.3, 3.33], "fill": "random", "p": 0.5}}])
    image, areas = np.zeros((64, 64, 3), np.uint8), list[float]()
    for seed in range(300):
        changed = erase.pixels(image, seed=(seed,)).max(axis=2) > 0
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        areas.append(len(rows) * len(columns) / 64**2)
        if len(rows):
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert 0.018 < areas[-1] < 0.41  # sides are whole pixels
            assert 0.25 < len(columns) / len(rows) < 4
    assert np.count_nonzero(areas) / len(areas) == pytest.approx(0.5, abs=0.08)
    assert min(area for area in areas if area) < 0.06
    assert max(areas) > 0.3
