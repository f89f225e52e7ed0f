"""Pairs of states and targets, and the losses.

Letters: B batch, T states, K heads, Z width of the targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.foresight.layout import Layout
from mirai_bench.model.kernels import cosine

Pairing = Literal["consumed", "predicting"]


def pair(layout: Layout, pairing: Pairing, explicit: bool, class_token: bool) -> Layout:
    """Turns a layout over cells into pairs over states.

    Row s of the result says which of the source's T features state s is matched to. Feature j of a
    bidirectional source belongs to cell j. An explicit source is a causal model over the same T
    inputs: its feature s is state s, so cell j is feature j+1, and the last cell has none. State s
    stands at cell s-1 (`consumed`; state 0, the class token, stands at no cell, but at the source's
    own class state if `class_token` is true), or at cell s (`predicting`).
    """
    # `consumed` is the official code's, `predicting` what the paper's formulas say (Eq. 4 to 6).
    cells, valid = layout
    if explicit:  # the feature of a cell is the state that has just consumed it
        valid = valid & (cells + 1 < len(cells))
        cells = np.where(valid, cells + 1, 0)
    if pairing == "consumed":  # the rows move down by one state
        cells = np.concatenate([np.zeros_like(cells[:1]), cells[:-1]])
        valid = np.concatenate([np.full_like(valid[:1], class_token), valid[:-1]])
    return Layout(cells, valid)


Z_SCORE_EPS = 1e-6  # iREPA's
SMOOTH_L1_BETA = 0.05  # SRA's: below it the distance is quadratic

# What is done to the targets (B, T, Z). The official code takes them as they are, although the
# channels of large magnitude of a residual stream then decide the cosine.
TARGET_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda target: target,
    "layer_norm": lambda target: F.layer_norm(target, target.shape[-1:]),
    "center": lambda target: target - target.mean((0, 1), keepdim=True),
    "z_score": lambda target: (
        (target - target.mean(1, keepdim=True)) / (target.std(1, keepdim=True) + Z_SCORE_EPS)
    ),
}


def cosine_loss(projected: Tensor, targets: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Returns the loss of each head (K,): 1 - cos(ρ_k(h_s), target), averaged over the valid pairs.

    projected is (K, B, T, Z), targets (B, T, Z), into which no gradient flows, index and valid
    (T, K). This is the paper's foresight loss, with the cosine as its similarity, plus 1. It is
    computed in float32, whatever autocast says, because half precision loses small angles. A head
    without a valid pair has loss 0.
    """
    with torch.autocast(projected.device.type, enabled=False):
        teacher = F.normalize(targets.detach().float(), dim=-1)
        # Head by head, because the targets of all heads at once would be K times as large.
        cosines = [cosine(x, teacher, index[:, k]).mean(0) for k, x in enumerate(projected)]  # (T,) each
        # An average over the valid pairs, and 0 instead of 0 / 0.
        weights = valid.T / valid.T.sum(1, keepdim=True).clamp(min=1)  # (K, T)
        return ((1 - torch.stack(cosines)) * weights).sum(1)


def smooth_l1_loss(projected: Tensor, targets: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Returns the smooth L1 distance of each head (K,), a mean over channels and valid pairs.

    The arguments are those of `cosine_loss`.
    """
    with torch.autocast(projected.device.type, enabled=False):
        distances = []
        for k in range(len(projected)):
            aims = targets[:, index[:, k]].float()
            of_head = F.smooth_l1_loss(projected[k].float(), aims, reduction="none", beta=SMOOTH_L1_BETA)
            distances.append(of_head.mean((0, 2)))  # (T,)
        weights = valid.T / valid.T.sum(1, keepdim=True).clamp(min=1)  # (K, T)
        return (torch.stack(distances) * weights).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "cosine": cosine_loss,
    "smooth_l1": smooth_l1_loss,
}


def pool(features: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Returns for each state the mean (B, T, Z) of the features (B, T, Z) of its valid cells.

    index and valid are (T, K). A state without a valid cell gets zeros.
    """
    total = torch.zeros_like(features)
    # Cell by cell, because the features of all cells at once would be K times as large.
    for k in range(index.shape[1]):
        total = total + features[:, index[:, k]] * valid[:, k, None]
    return total / valid.sum(1, keepdim=True).clamp(min=1)


def reduce_heads(losses: Tensor, valid: Tensor, how: Literal["mean", "sum"]) -> Tensor:
    """Reduces the losses (K,) of the heads to a scalar.

    It is the paper's mean over the heads that have a pair, or the official code's sum.
    """
    if how == "sum":
        return losses.sum()
    return losses.sum() / valid.any(0).sum()
