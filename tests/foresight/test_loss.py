"""The loss: pairs of states and targets, and reductions, each against a plain computation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mirai_bench.foresight.layout import grid_2d
from mirai_bench.foresight.loss import (
    TARGET_NORMS,
    cosine_loss,
    pair,
    pool,
    reduce_heads,
    smooth_l1_loss,
)


def test_pairs_on_a_2x2_grid_by_hand():
    table = grid_2d(2, 2, 3)  # heads: here, right, below

    def shown(t):
        return [[int(i) if v else None for i, v in zip(*row, strict=True)] for row in zip(*t, strict=True)]

    n = None
    # an encoder: feature j is cell j; state s has consumed cell s-1
    assert shown(pair(table, "consumed", False, False)) == [[n, n, n], [0, 1, 2], [1, n, 3], [2, 3, n]]
    assert shown(pair(table, "predicting", False, False)) == [[0, 1, 2], [1, n, 3], [2, 3, n], [3, n, n]]
    # a causal teacher: feature s is state s, cell j is feature j+1, and the last cell has none
    assert shown(pair(table, "consumed", True, False)) == [[n, n, n], [1, 2, 3], [2, n, n], [3, n, n]]
    assert shown(pair(table, "consumed", True, True)) == [[0, 0, 0], [1, 2, 3], [2, n, n], [3, n, n]]


def test_cosine_loss_equals_the_formula_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    projected, targets = (
        torch.randn(3, 2, 16, 5, generator=generator),
        torch.randn(2, 16, 5, generator=generator),
    )
    table = pair(grid_2d(4, 4, 3), "consumed", False, False)
    losses = cosine_loss(projected, targets, torch.from_numpy(table.targets), torch.from_numpy(table.valid))
    for k in range(3):
        pairs = [(s, table.targets[s, k]) for s in range(16) if table.valid[s, k]]
        cosines = [
            F.cosine_similarity(projected[k, b, s], targets[b, t], dim=0) for b in range(2) for s, t in pairs
        ]
        assert losses[k].item() == pytest.approx(1 - torch.stack(cosines).mean().item(), abs=1e-6)


def test_smooth_l1_by_hand():
    """Distances 0.01 (quadratic: 0.01² / 0.1) and 1 (linear: 1 - 0.025), and a pair that does not count."""
    projected = torch.tensor([[[[0.0, 0.0], [7.0, 7.0]]]])  # (1, 1, 2, 2)
    targets = torch.tensor([[[5.0, 5.0], [0.01, 1.0]]])
    index, valid = torch.tensor([[1], [0]]), torch.tensor([[True], [False]])
    (loss,) = smooth_l1_loss(projected, targets, index, valid)
    assert loss.item() == pytest.approx((0.001 + 0.975) / 2)


def test_pooled_targets_by_hand():
    """State 0 looks at cells 1 and 2, state 1 at cell 0 alone, state 2 at none."""
    features = torch.tensor([[[1.0], [2.0], [6.0]]])
    index = torch.tensor([[1, 2], [0, 0], [1, 1]])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    assert pool(features, index, valid).flatten().tolist() == [4.0, 1.0, 0.0]


def test_z_scores_are_over_the_cells_of_an_image():
    targets = torch.tensor([[[1.0, 5.0], [3.0, 5.0]], [[0.0, 2.0], [8.0, 4.0]]])
    scores = TARGET_NORMS["z_score"](targets)
    half = 2**-0.5
    expected = [[[-half, 0], [half, 0]], [[-half, -half], [half, half]]]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)


def test_mean_and_sum_over_heads_leave_out_heads_without_a_pair():
    losses, valid = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[True, True, False]])
    assert reduce_heads(losses, valid, "mean").item() == 1.5
    assert reduce_heads(losses, valid, "sum").item() == 3


def test_target_norms_by_hand():
    x = torch.tensor([[[1.0, 3.0]], [[5.0, 1.0]]])
    assert torch.equal(TARGET_NORMS["center"](x), torch.tensor([[[-2.0, 1.0]], [[2.0, -1.0]]]))
    np.testing.assert_allclose(TARGET_NORMS["layer_norm"](x).numpy(), [[[-1, 1]], [[1, -1]]], atol=1e-4)
