"""MTAR's head: the token below is predicted, too. Letters: B batch, T = H·W tokens, D width, V codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirai_bench.config.regularizer import MtarConfig
from mirai_bench.foresight.context import SourceContext
from mirai_bench.model.kernels import linear_cross_entropy
from mirai_bench.model.transformer import INIT_STD, ARModel, Block, RMSNorm
from mirai_bench.regularizer.regularizer import Prepared, Reading, Regularizer


class Mtar(Regularizer):
    """A head of transformer blocks on the final states. State s predicts cell s, and the head s + W."""

    def __init__(self, context: SourceContext, config: MtarConfig) -> None:
        super().__init__()
        run = context.config
        self.weight = config.weight
        _, self.offset = run.grid  # a row has W cells
        if self.weight == 0:
            return
        self.layers = nn.ModuleList(Block(run.model) for _ in range(config.blocks))
        # As before the generator's own head. A linear head reads states that are normalised already.
        self.norm = RMSNorm(run.model.width) if config.blocks else nn.Identity()
        self.output = nn.Linear(run.model.width, run.tokenizer.vocabulary, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draws every matrix from N(0, 0.02). The output starts at zero, as the generator's does."""
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)
        if self.weight > 0:
            nn.init.zeros_(self.output.weight)

    def loss(self, model: ARModel, reading: Reading, prepared: Prepared, labels: Tensor) -> Tensor:
        """Returns the cross-entropy of the tokens below, of the states that have a cell below."""
        targets = prepared.batch.tokens[:, self.offset :].flatten()  # (B·(T-W),)
        # The head is causal, so it does not miss the states of the last row.
        x = reading.final[:, : -self.offset]  # (B, T-W, D)
        for block in self.layers:
            x = block(x, model.rope[: x.shape[1]], dropout=True)
        x = self.norm(x).flatten(0, 1)
        mean = x.new_full(targets.shape, 1 / len(targets), dtype=torch.float32)
        return linear_cross_entropy(x, self.output.weight, targets, mean)
