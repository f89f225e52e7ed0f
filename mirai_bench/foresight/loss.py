"""Pairs of states and targets, the projector, and the cosine loss. Letters: B batch, T states, K heads, D student width, Z target width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.config.foresight import Projector as ProjectorConfig
from mirai_bench.foresight.layout import Table
from mirai_bench.model.kernels import HeadByHead
from mirai_bench.model.transformer import INIT_STD


def pair(
    table: Table, pairing: Literal["consumed", "predicting"], explicit: bool, class_token: bool
) -> Table:
    """Layout over cells → pairs over states: row s of the result says which of the source's T features state s is matched to.

    A bidirectional source's feature j belongs to cell j. An explicit source is a causal model over the same T inputs: its feature s is
    state s, so cell j is feature j+1, and the last cell has none. State s stands at cell s-1 (`consumed`; state 0, the class token, at
    no cell, but at the source's own class state with `class_token`) or at cell s (`predicting`).
    """
    cells, valid = table
    if explicit:
        valid = valid & (cells + 1 < len(cells))
        cells = np.where(valid, cells + 1, 0)
    if pairing == "consumed":
        cells = np.concatenate([np.zeros_like(cells[:1]), cells[:-1]])
        valid = np.concatenate([np.full_like(valid[:1], class_token), valid[:-1]])
    return Table(cells, valid)


class Projector(nn.Module):
    """ρ_k for all K heads at once: (B, T, D) → (K, B, T, Z), each an MLP with SiLU between its layers (official: 3 layers, hidden 2048).

    The K separate MLPs are one stack of matrices (K, in, out), applied as one batched product on a GPU.
    """

    def __init__(self, config: ProjectorConfig, heads: int, width: int, target_width: int) -> None:
        super().__init__()
        sizes = [width, *[config.hidden] * (config.layers - 1), target_width]
        stacks = [
            1 if config.shared_trunk and layer < config.layers - 1 else heads
            for layer in range(config.layers)
        ]
        shapes = list(zip(stacks, sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(stack, 1, out) for stack, _, out in shapes)
        self.heads = heads

    def init_weights(self, generator: torch.Generator) -> None:
        for weight in self.weights:
            nn.init.normal_(weight, std=INIT_STD, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.flatten(0, 1)[None]  # (1, B·T, D)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.silu(x) if index else x
            if x.device.type == "cpu" and not torch.compiler.is_compiling():
                x = HeadByHead.apply(x, weight, bias)
            else:
                x = torch.baddbmm(bias, x.expand(len(weight), -1, -1), weight)
        return x.unflatten(1, hidden.shape[:2])


TARGET_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda target: target,
    "layer_norm": lambda target: F.layer_norm(target, target.shape[-1:]),
    "center": lambda target: target - target.mean((0, 1), keepdim=True),
}


def cosine_loss(projected: Tensor, targets: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """1 - cos, averaged over each head's valid pairs: projected (K, B, T, Z), targets (B, T, Z), index and valid (T, K) → (K).

    In float32 whatever autocast says: half precision loses the small angles. A head without a valid pair gives 0.
    """
    with torch.autocast(projected.device.type, enabled=False):
        student = F.normalize(projected.float(), dim=-1)
        teacher = F.normalize(targets.float(), dim=-1)
        cosines = [
            (student[k] * teacher[:, index[:, k]]).sum(-1).mean(0) for k in range(len(projected))
        ]  # K x (T)
        weights = valid.T / valid.T.sum(1, keepdim=True).clamp(min=1)  # (K, T)
        return ((1 - torch.stack(cosines)) * weights).sum(1)


def reduce_heads(losses: Tensor, valid: Tensor, how: Literal["mean", "sum"]) -> Tensor:
    """(K) → scalar over the heads that have a pair: the paper's mean, or the official code's sum."""
    return losses.sum() / (valid.any(0).sum() if how == "mean" else 1)
