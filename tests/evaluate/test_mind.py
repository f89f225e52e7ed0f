"""MIND against cases whose value is known."""

import numpy as np
import pytest
import torch

from mirai_bench.evaluate.pairs import mind


def features(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)))


def test_a_shift_by_delta_is_three_times_its_square():
    """A direction u sees (u·δ)², whose mean over directions is |δ|² / d."""
    x = features(500, 16)
    shift = torch.zeros(16)
    shift[3] = 2.0
    assert mind(x, x) == 0.0
    assert mind(x, x + shift, directions=20_000) == pytest.approx(3 * 4.0, rel=0.03)


def test_one_dimension_is_the_wasserstein_distance_of_sorted_values():
    x, y = torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0], [5.0]])
    assert mind(x, y) == pytest.approx(3 * (1.0 + 4.0) / 2)


def test_another_scale_and_another_size():
    """Normal values of s.d. 1 and 2 are (2 - 1)² apart in each direction: 3d. Noise adds a little."""
    d = 8
    assert mind(features(4000, d), 2 * features(4000, d, 1)) == pytest.approx(3 * d, rel=0.1)
    small = mind(features(1000, d), features(4000, d, 1))
    assert 0 < small < 0.02 * 3 * d and small == mind(features(1000, d), features(4000, d, 1))
