"""Axis `injection_level`: where the extra training signal enters. One entry of LEVELS each.

A level is a module with the heads that are dropped after training. Letters: B batch, T tokens,
D width of the student, V codes, K heads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mirai_bench.config.foresight import ForesightConfig, resolve_layer
from mirai_bench.data.batch import Batch
from mirai_bench.foresight.context import SourceContext, needs_pixels
from mirai_bench.foresight.layout import Layout, cells_of
from mirai_bench.foresight.loss import LOSSES, TARGET_NORMS, pair, pool, reduce_heads
from mirai_bench.foresight.projector import PROJECTORS
from mirai_bench.foresight.source import SOURCES
from mirai_bench.model.kernels import linear_cross_entropy
from mirai_bench.model.transformer import States


class Level(nn.Module):
    """Base class: holds the pair table (which target each head of a state looks at) as buffers."""

    tap: int | None = None
    """The block whose residual stream the level reads, or None if it reads the final states."""
    one_off_seconds: float | None = 0.0
    """How long it took to make the source, once for all runs that use it. None is not known."""
    index: Tensor  # (T, K) long, the target of each pair
    valid: Tensor  # (T, K) bool, whether the pair exists

    def __init__(self, config: ForesightConfig, pairs: Layout) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("index", torch.from_numpy(pairs.targets), persistent=False)
        self.register_buffer("valid", torch.from_numpy(pairs.valid), persistent=False)

    @property
    def needs_pixels(self) -> bool:
        """Tells whether the loss looks at the pixels of a batch."""
        return False

    def init_weights(self, generator: torch.Generator) -> None:
        """Initialises the heads. Those that start at zero are made so."""

    def forward(self, states: States, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the loss of one batch, a scalar, before it is multiplied by λ."""
        return reduce_heads(self.losses(states, batch, labels), self.valid, self.config.reduce)

    def losses(self, states: States, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the loss of each head, (K,). A head without a pair has loss 0."""
        raise NotImplementedError


class OutputLevel(Level):
    """Multi-token prediction: each head predicts the token of one foresight cell.

    State s predicts cell s in next-token prediction, which is head 0 of every layout. Heads 1 … K-1
    are added here. They are linear and start at zero, as the main head does.
    """

    def __init__(self, context: SourceContext) -> None:
        config = context.config
        foresight = config.foresight
        layout = cells_of(foresight, config.grid)
        super().__init__(foresight, Layout(layout.targets[:, 1:], layout.valid[:, 1:]))
        shape = (foresight.k - 1, config.tokenizer.vocabulary, config.model.width)
        self.heads = nn.Parameter(torch.zeros(shape))

    def losses(self, states: States, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the cross-entropy of each head's tokens, (K-1,)."""
        # 1. Each head's tokens, and the weights that average over the pairs that exist.
        targets = batch.tokens[:, self.index].permute(2, 0, 1).flatten(1)  # (K-1, B·T)
        num_valid = self.valid.T.sum(1, keepdim=True).clamp(min=1)  # (K-1, 1)
        weights = self.valid.T / (num_valid * len(labels))  # (K-1, T)
        weights = weights[:, None].expand(-1, len(labels), -1).flatten(1)  # (K-1, B·T)
        final = states.final.flatten(0, 1)  # (B·T, D)
        # 2. The losses of heads 1 … K-1. That of head 0 is next-token prediction itself.
        losses = []
        for head, head_targets, head_weights in zip(self.heads, targets, weights, strict=True):
            losses.append(linear_cross_entropy(final, head, head_targets, head_weights))
        return torch.stack(losses)


class Alignment(Level):
    """Projected hidden states are aligned with features: the level `internal` without its source.

    Head k of a state is aligned with the feature of the state's k-th foresight cell, or the only head with
    the mean of all of them.
    """

    pooled_index: Tensor  # (T, K) long, the cells whose mean is the target if `pooled`
    pooled_valid: Tensor  # (T, K) bool

    def __init__(
        self, foresight: ForesightConfig, grid: tuple[int, int], width: int, target_width: int
    ) -> None:
        layout = cells_of(foresight, grid)
        pairs = pair(layout, foresight.pairing, foresight.explicit, foresight.class_token)
        cells = pairs
        if foresight.pooled:  # feature s is then the mean of what state s looks at
            pairs = Layout(np.arange(len(cells.valid))[:, None], cells.valid.max(1, keepdims=True))
        super().__init__(foresight, pairs)
        if foresight.pooled:
            self.register_buffer("pooled_index", torch.from_numpy(cells.targets), persistent=False)
            self.register_buffer("pooled_valid", torch.from_numpy(cells.valid), persistent=False)
        build = PROJECTORS[foresight.projector.kind]
        self.projector = build(foresight, grid, width, target_width)

    def init_weights(self, generator: torch.Generator) -> None:
        """Initialises the projectors."""
        self.projector.init_weights(generator)

    def align(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Returns the distance of projected states (B, T, D) and features (B, T, Z) of each head, (K,)."""
        targets = self.targets(features.detach().float())  # under autocast they may be in bf16
        return LOSSES[self.config.loss](self.projector(hidden), targets, self.index, self.valid)

    def targets(self, features: Tensor, norm: str | None = None) -> Tensor:
        """Returns the targets (B, T, Z) that features (B, T, Z) of the source become.

        `norm` is another one of TARGET_NORMS than the run's.
        """
        targets = TARGET_NORMS[norm or self.config.target_norm](features)
        if self.config.pooled:
            targets = pool(targets, self.pooled_index, self.pooled_valid)
        return targets


class InternalLevel(Alignment):
    """The paper's level: hidden states are aligned with the features of a source.

    The hidden states are the residual stream after block `layer`.
    """

    def __init__(self, context: SourceContext) -> None:
        config = context.config
        foresight = config.foresight
        source = SOURCES[foresight.source](context)
        super().__init__(foresight, config.grid, config.model.width, source.width)
        self.tap = resolve_layer(foresight.layer, config.model.depth)
        self.source = source
        self.one_off_seconds = source.one_off_seconds

    @property
    def needs_pixels(self) -> bool:
        """Tells whether the source looks at the pixels of a batch."""
        return needs_pixels(self.source)

    def losses(self, states: States, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the distance of projected states and features, averaged over each head's pairs, (K,)."""
        assert states.hidden is not None, "the trunk was asked for the states after block `tap`"
        with torch.no_grad():
            features = self.source(batch, labels)
        return self.align(states.hidden, features)


LEVELS: dict[str, Callable[[SourceContext], Level] | None] = {
    "none": None,
    "output": OutputLevel,
    "internal": InternalLevel,
}
