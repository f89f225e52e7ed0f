"""Spatial structure, on states whose structure is planted."""

import math

import pytest
import torch

from mirai_bench.diagnose.spatial import (
    cell_distances,
    contrast,
    decay_slope,
    effective_rank,
    foreground_contrast,
    local_minus_distant,
    share_of_largest,
    similarity_by_distance,
    singular_values,
)

SIDE = 6
DISTANCES = cell_distances(SIDE, SIDE)


def planted(smoothness: float) -> torch.Tensor:
    """States (50, 36, 36) of unit norm, whose cosine at Manhattan distance d is smoothness^d."""
    # The covariance is a product of two of rows and columns, so it is positive definite.
    root = torch.linalg.cholesky(smoothness ** DISTANCES.double())
    noise = torch.randn(50, SIDE**2, SIDE**2, generator=torch.Generator().manual_seed(0))
    return (root @ torch.linalg.qr(noise.double())[0]).float()  # a rotation leaves root rootᵀ as it is


def test_planted_smoothness_is_read_off_exactly():
    states = planted(0.5)
    by_distance = similarity_by_distance(states, DISTANCES)
    assert by_distance.tolist() == pytest.approx([0.5**d for d in range(1, 2 * SIDE - 1)], abs=1e-5)
    far = DISTANCES >= 3
    expected = 0.5 - (0.5 ** DISTANCES[far].double()).mean().item()
    assert local_minus_distant(states, DISTANCES, 3) == pytest.approx(expected, abs=1e-5)
    # The line through (1, 1/2), (2, 1/4), (3, 1/8): its slope is (1/8 - 1/2) / 2.
    assert decay_slope(by_distance, 3) == pytest.approx(0.1875, abs=1e-5)


def test_states_without_structure_have_none():
    states = torch.randn(200, SIDE**2, 64, generator=torch.Generator().manual_seed(0))
    assert abs(local_minus_distant(states, DISTANCES, 3)) < 0.01
    assert abs(decay_slope(similarity_by_distance(states, DISTANCES), 4)) < 0.01
    # The mean of C independent unit vectors has a squared norm of 1 / C.
    assert contrast(states) == pytest.approx(math.sqrt(1 - 1 / SIDE**2), abs=0.01)
    assert contrast(torch.ones(2, 4, 3)) == pytest.approx(0, abs=1e-6)


def test_the_object_stands_out_from_the_background():
    ink = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    ink[0, :2] = True  # the object is the two upper rows
    ink = ink.flatten(1)
    states = torch.where(ink[..., None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert foreground_contrast(states, DISTANCES, ink, 3) == pytest.approx(1)
    assert foreground_contrast(torch.ones_like(states), DISTANCES, ink, 3) == pytest.approx(0, abs=1e-6)


def test_effective_rank_counts_equal_directions():
    basis = torch.eye(8)[:3]
    states = torch.cat([basis, -basis]).repeat(4, 1)[None]  # three directions of equal size, centred
    spectrum = singular_values(states)
    assert effective_rank(spectrum) == pytest.approx(3, rel=1e-5)
    assert share_of_largest(spectrum) == pytest.approx(1 / 3, rel=1e-5)  # one of eight directions
