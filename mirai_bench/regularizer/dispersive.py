"""The dispersive loss (arXiv 2506.09027). Letters: B batch, T tokens, D width, g images of a group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.regularizer import DispersiveConfig
from mirai_bench.foresight.context import SourceContext
from mirai_bench.model.transformer import ARModel
from mirai_bench.regularizer.regularizer import Prepared, Reading, Regularizer


class Dispersive(Regularizer):
    """Pushes the hidden states of different images apart: a contrastive loss without positives."""

    def __init__(self, context: SourceContext, config: DispersiveConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = config.weight
        self.taps = (resolve_layer(config.layer, context.config.model.depth),)
        self.group = config.group_of(context.config.train.batch_size)

    def loss(self, model: ARModel, reading: Reading, prepared: Prepared, labels: Tensor) -> Tensor:
        """Returns log mean exp(-|z_i - z_j|² / τ) over the pairs of each group, averaged."""
        hidden = reading.streams[self.taps[0]]  # (B, T, D)
        z = hidden.flatten(1).unflatten(0, (-1, self.group))  # (B/g, g, T·D)
        return dispersion(z, self.config)


def dispersion(z: Tensor, config: DispersiveConfig) -> Tensor:
    """Returns the loss of the rows of each group z (n, g, d), averaged over the groups."""
    size, dimensions = z.shape[1:]
    with torch.autocast(z.device.type, enabled=False):
        z = z.float()
        squares = z.square().sum(-1)  # (n, g)
        products = torch.bmm(z, z.transpose(1, 2))  # (n, g, g)
        distances = (squares[:, :, None] + squares[:, None] - 2 * products).clamp(min=0)
        itself = torch.eye(size, dtype=torch.bool, device=z.device)
        distances = distances.masked_fill(itself, 0.0)  # rounding leaves no exact zero
        if config.distance == "mean":
            distances = distances / dimensions
        logs = -distances / config.temperature
        num_pairs = size**2
        if not config.self_pairs:
            logs = logs.masked_fill(itself, -torch.inf)
            num_pairs -= size
        return (logs.flatten(1).logsumexp(1) - math.log(num_pairs)).mean()
