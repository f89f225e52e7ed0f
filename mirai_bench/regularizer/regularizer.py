"""What a regularizer is: how the model reads a batch, what it should predict, and an extra loss.

A regularizer overrides what it changes, and nothing else. Letters: B batch, T tokens, D width, K
targets of a state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mirai_bench.data.batch import Batch
from mirai_bench.model.kernels import linear_cross_entropy
from mirai_bench.model.transformer import ARModel

# Draws of a regularizer are apart from those of dropped labels, which have the same seed and step.
DRAWS = 1


class Moment(NamedTuple):
    """Which step of which process it is."""

    seed: int
    """Seed of what is drawn."""
    step: int
    progress: float
    """Fraction of training that is done, 0 to 1."""
    rank: int
    world: int

    def uniform(self, images: int, *shape: int) -> np.ndarray:
        """Returns numbers in [0, 1), float32 (B, *shape), for the `images` of this process.

        They are a function of (seed, step) over the global batch, so they are the same for every
        number of processes.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.step, DRAWS])))
        draws = rng.random((images * self.world, *shape), np.float32)
        return draws[self.rank * images : (self.rank + 1) * images]


class Prepared(NamedTuple):
    """A batch as a step trains on it."""

    batch: Batch
    extra: tuple[Tensor, ...] = ()
    """What the regularizer has drawn or looked up for this batch, each (B, …). It is empty where the
    regularizer changes nothing."""

    def split(self, parts: int) -> list[Prepared]:
        """Returns the batch as micro-batches, in order."""
        extras = [tuple(tensor.chunk(parts)[part] for tensor in self.extra) for part in range(parts)]
        return [Prepared(*both) for both in zip(self.batch.split(parts), extras, strict=True)]


class Reading(NamedTuple):
    """The states of a batch."""

    final: Tensor
    """(B, t, D) after the final norm; t is T, unless the regularizer makes the sequence shorter."""
    streams: dict[int, Tensor]
    """(B, t, D) residual streams after the blocks that were asked for. 0 is the embedded input."""


class Losses(NamedTuple):
    """The losses of a batch, scalars."""

    total: Tensor
    """NTP + λ · regularizer."""
    ntp: Tensor
    """In nats per token."""
    regularizer: Tensor
    """Before λ. Zero if λ is."""


class Regularizer(nn.Module):
    """The regularizer `none`, and the base class of all others.

    Its parameters are heads, which are dropped after training.
    """

    taps: tuple[int, ...] = ()
    """The blocks whose residual streams its loss reads. 0 is the embedded input."""
    weight: float = 0.0
    """λ. With 0 there is no extra loss, and there are no heads."""

    def init_weights(self, generator: torch.Generator) -> None:
        """Initialises the heads."""

    def learning_rate(self, progress: float, step_size: float) -> float | None:
        """Returns the learning rate of a step, or None if it is that of the recipe."""
        return None

    def prepare(self, batch: Batch, moment: Moment) -> Prepared:
        """Returns what this step trains on. It runs outside of the compiled step."""
        return Prepared(batch)

    def read(self, model: ARModel, prepared: Prepared, labels: Tensor, taps: tuple[int, ...]) -> Reading:
        """Returns the states of the student, with dropout, and the streams after blocks `taps`."""
        tokens = prepared.batch.tokens
        return Reading(*model.run(model.embed(tokens[:, :-1], labels), taps=taps, dropout=True))

    def targets(self, prepared: Prepared) -> Tensor:
        """Returns the codes that each state should predict, (B, t), or (B, t, K) if all K are equal."""
        return prepared.batch.tokens

    def forward(
        self, model: ARModel, reading: Reading, prepared: Prepared, labels: Tensor, weight: Tensor | None
    ) -> Losses:
        """Returns the losses of a batch. `weight` is λ; with None there is no extra loss."""
        ntp = next_token_loss(model, reading.final, self.targets(prepared))
        if weight is None:
            return Losses(ntp, ntp, ntp.new_zeros(()))
        extra = self.loss(model, reading, prepared, labels)
        return Losses(ntp + weight * extra, ntp, extra)

    def loss(self, model: ARModel, reading: Reading, prepared: Prepared, labels: Tensor) -> Tensor:
        """Returns the extra loss of a batch before λ, a scalar."""
        raise NotImplementedError


def next_token_loss(model: ARModel, final: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of states (B, t, D) with their targets (B, t) or (B, t, K), a mean."""
    final = final.flatten(0, 1)  # (B·t, D)
    targets = targets.flatten(0, 1)  # (B·t,) or (B·t, K)
    mean = final.new_full(targets.shape[:1], 1 / targets.numel(), dtype=torch.float32)  # (B·t,)
    return linear_cross_entropy(final, model.output.weight, targets, mean)
