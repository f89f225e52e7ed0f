"""Projection heads: from a hidden state to what is compared with a target. One entry of PROJECTORS each.

They are causal, as the states are: what a head makes of state s depends on the states up to s. Letters: B
batch, T states, K heads, D width of the student, Z width of the targets.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.projector import ATTENTION_HEADS, CAUSAL_CELLS, MLP_RATIO, ProjectorConfig
from mirai_bench.model.kernels import attention, batched_linear
from mirai_bench.model.transformer import INIT_STD, Grid


class Heads(nn.Module):
    """Base class: the projectors ρ_k of all K heads at once, (B, T, D) → (K, B, T, Z)."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Draws the matrices from N(0, 0.02). Biases start at zero, and scales of norms at one."""

    @abstractmethod
    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the projections (K, B, T, Z) of hidden states (B, T, D)."""


class Projector(Heads):
    """K MLPs with SiLU between their layers (official code: 3 layers, hidden width 2048).

    Each layer is one stack of matrices (K, in, out).
    """

    def __init__(self, config: ProjectorConfig, heads: int, width: int, target_width: int) -> None:
        super().__init__()
        shapes = config.shapes(heads, width, target_width)
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        biases = [(copies, 1, outputs) for copies, _, outputs in shapes]
        self.biases = nn.ParameterList(torch.zeros(shape) for shape in biases)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draws the matrices from N(0, 0.02). Biases stay zero."""
        for weight in self.weights:
            nn.init.normal_(weight, std=INIT_STD, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the projections (K, B, T, Z) of hidden states (B, T, D)."""
        x = hidden.flatten(0, 1)[None]  # (1, B·T, D)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer > 0:
                x = F.silu(x)
            # (K, B·T, out), or (1, B·T, out) in a shared trunk
            x = batched_linear(x, weight, bias)
        return x.unflatten(1, hidden.shape[:2])


# ---- the transformer


class TransformerHead(nn.Module):
    """A pre-norm transformer block and a linear layer, as in the paper's table 9: (B, T, D) → (B, T, Z).

    The paper says neither the activation of its MLP, which is SiLU here as in the other projectors, nor
    whether its attention is causal. Without the mask it would read later states.
    """

    def __init__(self, width: int, target_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, MLP_RATIO * width)
        self.down = nn.Linear(MLP_RATIO * width, width)
        self.last = nn.Linear(width, target_width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the projections (B, T, Z) of hidden states (B, T, D)."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, ATTENTION_HEADS, -1))
        q, k, v = heads.transpose(1, 3).unbind(2)  # (B, heads, T, d) each
        y = attention(q, k, v, mask=None, causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(F.silu(self.up(self.mlp_norm(x))))
        return self.last(x)


class TransformerProjector(Heads):
    """K separate transformer heads."""

    def __init__(self, heads: int, width: int, target_width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(TransformerHead(width, target_width) for _ in range(heads))

    def init_weights(self, generator: torch.Generator) -> None:
        """Draws the matrices from N(0, 0.02). Biases start at zero, and scales of norms at one."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the projections (K, B, T, Z) of hidden states (B, T, D)."""
        return torch.stack([head(hidden) for head in self.heads])


# ---- the convolution

# (down, right) of the cells of a 3x3 window that come no later in raster order than its middle.
CAUSAL_WINDOW = ((0, 0), (0, -1), (-1, 1), (-1, 0), (-1, -1))
assert len(CAUSAL_WINDOW) == CAUSAL_CELLS


def causal_window(height: int, width: int, pairing: Literal["consumed", "predicting"]) -> np.ndarray:
    """Returns (T, 5): the states that stand at the cells around the cell of each state.

    T, one more than the last state, stands for a cell beyond the edge of the grid. The class token,
    which stands at no cell when a state stands at what it has consumed, is in no window but its own.
    """
    cells = height * width
    offset = 1 if pairing == "consumed" else 0  # state s stands at cell s - offset
    states = np.arange(cells)
    row, column = np.divmod(states - offset, width)
    windows = []
    for down, right in CAUSAL_WINDOW:
        r, c = row + down, column + right
        inside = (r >= 0) & (c >= 0) & (c < width)
        windows.append(np.where(inside, r * width + c + offset, cells))
    table = np.stack(windows, 1)
    if offset:
        table[0] = [0, *[cells] * (CAUSAL_CELLS - 1)]
    return table


class ConvProjector(Heads):
    """iREPA's 3x3 convolution (arXiv 2512.10794) without the cells that come later.

    It is a linear layer of the five states of a window, with zeros beyond the edge of the grid.
    """

    window: Tensor  # (T, 5) long

    def __init__(
        self, config: ProjectorConfig, heads: int, width: int, target_width: int, window: np.ndarray
    ) -> None:
        super().__init__()
        self.linear = Projector(config, heads, width, target_width)
        self.register_buffer("window", torch.from_numpy(window), persistent=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draws the matrices from N(0, 0.02). Biases stay zero."""
        self.linear.init_weights(generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the projections (K, B, T, Z) of hidden states (B, T, D)."""
        padded = F.pad(hidden, (0, 0, 0, 1))  # (B, T + 1, D), the last of zeros
        return self.linear(padded[:, self.window].flatten(2))  # of (B, T, 5·D)


# ---- the heads of a run


def _mlp(config: ForesightConfig, grid: Grid, width: int, target_width: int) -> Heads:
    return Projector(config.projector, config.num_heads, width, target_width)


def _transformer(config: ForesightConfig, grid: Grid, width: int, target_width: int) -> Heads:
    return TransformerProjector(config.num_heads, width, target_width)


def _conv(config: ForesightConfig, grid: Grid, width: int, target_width: int) -> Heads:
    window = causal_window(*grid, config.pairing)
    return ConvProjector(config.projector, config.num_heads, width, target_width, window)


# Each is built from the foresight of a run, its grid, and the widths D and Z.
PROJECTORS: dict[str, Callable[[ForesightConfig, Grid, int, int], Heads]] = {
    "mlp": _mlp,
    "transformer": _transformer,
    "conv": _conv,
}
