"""Attention: how far does a state look, and how much at the class token?

Letters: N images, G heads, T states, L blocks. State s of T attends to states 0 … s. State 0 is the class
token, state s > 0 stands at cell s - 1, which it has just consumed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.spatial import cell_distances
from mirai_bench.diagnose.subject import BATCH, Subject
from mirai_bench.model.transformer import Block, Grid

HEADLINE = {
    "distance": "mean Manhattan distance of the cells that a state attends to, in the middle layer",
    "class_mass": "share of the attention that the class token gets, in the middle layer",
}


class Gaze(NamedTuple):
    """Where the states at cells look in one block: means over images and states, one number per head (G,)."""

    distance: Tensor
    """Manhattan distance in cells, weighted by the attention to cells."""
    class_mass: Tensor
    """Share of the attention that the class token gets."""
    own_mass: Tensor
    """Share that the state's own cell gets."""
    neighbours: Tensor
    """Share of the visible neighbours, which are those above and to the left. Cell 0 has none, and is
    left out."""
    entropy: Tensor
    """Entropy in bits minus that of equal attention to all that is visible: 0 or less."""


def measure(subject: Subject) -> Finding:
    """Measures the attention of the EMA weights on held-out images, block by block.

    `distance@b`, `class_mass@b`, `own_mass@b`, `neighbours@b` and `entropy@b` are means over the heads.

    detail: `distance`, `class_mass`, `own_mass`, `neighbours` and `entropy` [L, G], head by head, the first
    block first; `even` {distance, class_mass, own_mass, neighbours}, what equal attention to all that is
    visible would give.
    """
    model = subject.model
    values: dict[str, float] = {}
    detail: dict[str, list[list[float]]] = {name: [] for name in Gaze._fields}
    # The states that the last block leaves are read by none.
    read = zip(model.layers, subject.layers(subject.heldout), strict=False)
    for number, (block, states) in enumerate(read, 1):
        assert isinstance(block, Block), "the layers of a model are blocks"
        parts = states.split(BATCH)
        # (G, T, T): all that is measured but the entropy is linear in the attention
        weights = torch.zeros(())
        entropies = torch.zeros(())
        for part in parts:
            of_part = attention_weights(block, part, model.rope)
            weights = weights + of_part.double().sum(0).cpu()
            entropies = entropies + entropy(of_part).double().sum(0).cpu()
        count = len(states)
        gaze = gaze_of(weights / count, entropies / count, subject.grid)
        for name, of_heads in gaze._asdict().items():
            values[f"{name}@{number}"] = of_heads.mean().item()
            detail[name].append(of_heads.tolist())
    values |= {name: values[f"{name}@{subject.middle}"] for name in HEADLINE}
    even = even_gaze(subject.grid)._asdict()
    del even["entropy"]  # which is 0
    return Finding(values, detail | {"even": {name: value.item() for name, value in even.items()}})


@torch.inference_mode()
def attention_weights(block: Block, x: Tensor, rope: Tensor) -> Tensor:
    """Returns the attention (N, G, T, T) of a block to the residual stream x (N, T, D) before it."""
    q, k, _ = block.attention.project(block.attention_norm(x), rope[: x.shape[1]])
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # of its group of queries
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def entropy(weights: Tensor) -> Tensor:
    """Returns the entropy in bits of each state's attention, (N, G, T)."""
    return -torch.xlogy(weights, weights).sum(-1) / torch.log(torch.tensor(2.0))


def gaze_of(weights: Tensor, entropies: Tensor, grid: Grid) -> Gaze:
    """Returns where states look whose mean attention is (G, T, T), and whose mean entropies are (G, T)."""
    distances = cell_distances(*grid)[:-1, :-1]  # no state has consumed the last cell
    at_cells = weights[:, 1:]  # (G, T - 1, T), the states that stand at cells
    to_cells = at_cells[:, :, 1:]  # (G, T - 1, T - 1)
    near = (to_cells * (distances == 1)).sum(-1)[:, 1:]  # (G, T - 2), without that of cell 0
    visible = torch.arange(2, weights.shape[-1] + 1)  # (T - 1,), of each state at a cell
    of_cells = to_cells.sum((1, 2)).clamp(min=torch.finfo(weights.dtype).tiny)  # (G,)
    return Gaze(
        distance=(to_cells * distances).sum((1, 2)) / of_cells,
        class_mass=at_cells[:, :, 0].mean(1),
        own_mass=to_cells.diagonal(dim1=1, dim2=2).mean(1),
        neighbours=near.mean(1),
        entropy=(entropies[:, 1:] - visible.log2()).mean(1),
    )


def even_gaze(grid: Grid) -> Gaze:
    """Returns where states look that attend equally to all that is visible, as one head."""
    length = grid[0] * grid[1]
    visible = torch.ones(length, length).tril()
    weights = (visible / visible.sum(-1, keepdim=True))[None]
    return gaze_of(weights, entropy(weights), grid)
