"""Axis `injection_level`: where the extra training signal enters. A level is a module with the heads that are dropped after training.

`tap` is the block whose residual stream it reads (None: the final states), `forward` gives the loss of one batch before λ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirai_bench.config.foresight import Foresight, resolve_layer
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Batch
from mirai_bench.foresight.layout import LAYOUTS
from mirai_bench.foresight.loss import TARGET_NORMS, Projector, cosine_loss, pair, reduce_heads
from mirai_bench.foresight.source import Source
from mirai_bench.model.cross_entropy import linear_cross_entropy
from mirai_bench.model.transformer import States


class Level(nn.Module):
    """Common ground: the pair table on the device. Subclasses: `forward(states, batch, labels)` → scalar."""

    tap: int | None = None
    index: Tensor  # (T, K) long
    valid: Tensor  # (T, K) bool

    def __init__(self, config: Foresight, index: Tensor, valid: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("valid", valid, persistent=False)


class OutputLevel(Level):
    """Multi-token prediction: for each foresight cell but the own one, a linear head on the final state predicts that cell's token.

    State s predicts cell s in next-token prediction, which is head 0 of every layout; heads 1 … K-1 are added here, zero-initialised
    like the main head.
    """

    def __init__(self, config: RunConfig, source: None) -> None:
        f = config.foresight
        targets, valid = LAYOUTS[f.layout](*config.grid, f.k)
        super().__init__(f, torch.from_numpy(targets[:, 1:]), torch.from_numpy(valid[:, 1:]))
        self.heads = nn.Parameter(torch.zeros(f.k - 1, config.tokenizer.vocabulary, config.model.width))

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.heads)

    def forward(self, states: States, batch: Batch, labels: Tensor) -> Tensor:
        targets = batch.tokens[:, self.index].permute(2, 0, 1).flatten(1)  # (K-1, B·T)
        weights = self.valid.T / (self.valid.T.sum(1, keepdim=True).clamp(min=1) * len(labels))  # (K-1, T)
        weights = weights[:, None].expand(-1, len(labels), -1).flatten(1)  # (K-1, B·T)
        final = states.final.flatten(0, 1)
        losses = [
            linear_cross_entropy(final, *of_head)
            for of_head in zip(self.heads, targets, weights, strict=True)
        ]
        return reduce_heads(torch.stack(losses), self.valid, self.config.reduce)


class InternalLevel(Level):
    """The paper's: the projected state after block `layer` is turned towards the source's feature of each foresight cell."""

    def __init__(self, config: RunConfig, source: Source) -> None:
        f = config.foresight
        pairs = pair(LAYOUTS[f.layout](*config.grid, f.k), f.pairing, f.explicit, f.class_token)
        super().__init__(f, torch.from_numpy(pairs.targets), torch.from_numpy(pairs.valid))
        self.tap = resolve_layer(f.layer, config.model.depth)
        self.source = source
        self.projector = Projector(f.projector, f.k, config.model.width, source.width)

    def init_weights(self, generator: torch.Generator) -> None:
        self.projector.init_weights(generator)

    def forward(self, states: States, batch: Batch, labels: Tensor) -> Tensor:
        with torch.no_grad():
            targets = TARGET_NORMS[self.config.target_norm](self.source(batch, labels).float())
        losses = cosine_loss(self.projector(states.hidden), targets, self.index, self.valid)
        return reduce_heads(losses, self.valid, self.config.reduce)


LEVELS: dict[str, type[OutputLevel] | type[InternalLevel] | None] = {
    "none": None,
    "output": OutputLevel,
    "internal": InternalLevel,
}
