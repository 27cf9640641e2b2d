"""Mirrors detection/evaluation/jackknife.py, on figures whose variance is known: means over images."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.jackknife import Sample, Statistic, image_blocks, jackknife

VALUES = np.random.default_rng(0).normal(0, [1.0, 3.0], (50, 2))  # of two figures on each image


def means(values: np.ndarray) -> Statistic:
    """The weighted means of ``values`` (N, M)."""
    return Statistic(
        names=tuple(f"mean {column}" for column in range(values.shape[1])),
        compute=lambda weights: weights @ values / weights.sum(axis=1, keepdims=True),
        images=np.full(values.shape[1], len(values)),
    )


def covariance(sample: Sample) -> np.ndarray:
    return sample.influence.T @ sample.influence


def test_the_variance_of_a_mean_is_the_textbooks() -> None:
    sample = jackknife(means(VALUES), 50)
    np.testing.assert_allclose(sample.values, VALUES.mean(axis=0))
    np.testing.assert_allclose(covariance(sample), np.cov(VALUES.T) / 50)
    assert sample.influence.shape == (50, 2)


def test_blocks_of_equal_size_give_the_variance_of_their_means() -> None:
    sample = jackknife(means(VALUES), 50, blocks=10)
    of_blocks = np.array([VALUES[rows].mean(axis=0) for rows in image_blocks(50, 10)])
    np.testing.assert_allclose(covariance(sample), np.cov(of_blocks.T) / 10)


def test_blocks_of_unequal_size_estimate_the_same_variance() -> None:
    values = np.random.default_rng(1).normal(0, 1, (507, 300))
    sample = jackknife(means(values), 507, blocks=100)
    found = (sample.influence**2).sum(axis=0)
    assert found.mean() == pytest.approx(1 / 507, rel=0.03)


def test_every_image_is_in_one_block_and_neighbours_are_apart() -> None:
    blocks = image_blocks(507, 100)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(507))
    assert {len(rows) for rows in blocks} == {5, 6}
    assert np.mean([np.ptp(rows) for rows in blocks]) > 200
    assert [rows.tolist() for rows in image_blocks(3, 100)] == [[0], [1], [2]]


def test_one_image_has_no_interval() -> None:
    with pytest.raises(ValueError, match="takes at least 2 images, got 1"):
        jackknife(means(VALUES[:1]), 1)
