"""Mirrors detection/evaluation/jackknife.py, on figures whose variance is known: means over images."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.jackknife import Statistic, image_sets, jackknife

VALUES = np.random.default_rng(0).normal(0, [1.0, 3.0], (50, 2))  # of two figures on each image


def means(values: np.ndarray, *, step: float = 0.0) -> Statistic:
    """The weighted means of ``values`` (N, M), rounded to ``step``."""

    def compute(weights: np.ndarray) -> np.ndarray:
        found = weights @ values / weights.sum(axis=1, keepdims=True)
        return np.round(found / step) * step if step else found

    count, width = values.shape
    return Statistic(names=tuple(f"mean {i}" for i in range(width)), compute=compute, images=np.full(width, count))


def test_the_variance_of_a_mean_is_the_textbooks() -> None:
    sample = jackknife(means(VALUES), 50)
    np.testing.assert_allclose(sample.values, VALUES.mean(axis=0))
    np.testing.assert_allclose(sample.influence.T @ sample.influence, np.cov(VALUES.T) / 50)
    assert sample.influence.shape == (50, 2)


@pytest.mark.parametrize(("count", "step", "rel"), [(507, 0.0, 0.03), (400, 0.005, 0.1)])
def test_random_halves_estimate_the_same_variance(count: int, step: float, rel: float) -> None:
    # Steps are coarse for one image and fine for half of them, as AP is by its 101 recalls.
    values = np.random.default_rng(1).normal(0, 1, (count, 300))
    influence = jackknife(means(values, step=step), count).influence
    assert influence.shape == (100, 300)
    assert (influence**2).sum(axis=0).mean() == pytest.approx(1 / count, rel=rel)


def test_sets_lack_one_image_or_half_of_them() -> None:
    sets = image_sets(507)
    assert sets.shape == (100, 507)
    assert set(sets.sum(axis=1).tolist()) == {253}
    assert abs(np.corrcoef(sets[0], sets[1])[0, 1]) < 0.2
    np.testing.assert_array_equal(image_sets(3), [[0, 1, 1], [1, 0, 1], [1, 1, 0]])


def test_a_figure_without_a_value_on_some_halves_has_a_variance() -> None:
    def some(weights: np.ndarray) -> np.ndarray:
        found = means(VALUES[:, :1].repeat(4, axis=0)).compute(weights)
        return np.where(weights[:, :1] + weights[:, 1:2] > 0, found, np.nan)  # none without two images

    influence = jackknife(Statistic(names=("some",), compute=some, images=np.array([2])), 200).influence
    assert np.isfinite(influence).all()
    assert (influence**2).sum() > 0


def test_one_image_has_no_interval() -> None:
    with pytest.raises(ValueError, match="takes at least 2 images, got 1"):
        jackknife(means(VALUES[:1]), 1)
