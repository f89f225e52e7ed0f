"""IAR's cluster cross-entropy: a mistake within a cluster of alike codes costs less than another one.

Letters: B batch, T tokens, D width, V codes, N = B·T rows, n rows of a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mirai_bench.config.regularizer import IarConfig
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.foresight.context import SourceContext
from mirai_bench.model.kernels import chunk_rows
from mirai_bench.model.transformer import ARModel
from mirai_bench.regularizer.clusters import balanced_clusters
from mirai_bench.regularizer.regularizer import Losses, Prepared, Reading, Regularizer


class Iar(Regularizer):
    """The cross-entropy of the next token's cluster, from the same logits as that of the token."""

    clusters: Tensor
    """(V,) long, the cluster of each code."""

    def __init__(self, context: SourceContext, config: IarConfig) -> None:
        super().__init__()
        self.weight = config.weight
        run = context.config
        number = config.clusters or round(math.sqrt(run.tokenizer.vocabulary))
        vectors = load_tokenizer(run, torch.device("cpu")).vectors().float().numpy()
        clusters = torch.from_numpy(balanced_clusters(vectors, number))
        self.register_buffer("clusters", clusters, persistent=False)

    def forward(
        self, model: ARModel, reading: Reading, prepared: Prepared, labels: Tensor, weight: Tensor | None
    ) -> Losses:
        """Returns the losses of a batch. One pass over the logits computes both."""
        if weight is None:
            return super().forward(model, reading, prepared, labels, weight)
        final = reading.final.flatten(0, 1)  # (N, D)
        targets = self.targets(prepared).flatten()  # (N,)
        kind = final.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else final.dtype
        with torch.autocast(kind, enabled=False):
            head = model.output.weight
            return Losses(*ClusteredCrossEntropy.apply(final, head, targets, self.clusters, weight, dtype))


class ClusteredCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head with the token and, times λ, with the token's cluster.

    As `linear_cross_entropy` it is computed chunk by chunk, and keeps the gradients of x (N, D) and of
    the head (V, D) instead of logits. -log P(cluster) has the gradient softmax - posterior, where the
    posterior is the softmax over the codes of the cluster.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        clusters: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (token + λ · cluster, token, cluster), means over the rows; the first has a gradient."""
        rows = chunk_rows(len(head), x.device.type)
        narrow_head = head.to(dtype)
        codes = torch.arange(len(head), device=x.device)
        token_loss = torch.zeros((), device=x.device)
        cluster_loss = torch.zeros((), device=x.device)
        grad_x = []
        grad_head = torch.zeros_like(head)
        for chunk, target in zip(x.split(rows), targets[:, None].split(rows), strict=True):
            narrow = chunk.to(dtype)
            log_p = (narrow @ narrow_head.T).float().log_softmax(-1)  # (n, V)
            inside = log_p.masked_fill(clusters != clusters[target], -torch.inf)  # (n, V)
            of_cluster = inside.logsumexp(1, keepdim=True)  # (n, 1), log P(cluster)
            token_loss = token_loss - log_p.gather(1, target).sum() / len(x)
            cluster_loss = cluster_loss - of_cluster.sum() / len(x)
            posterior = (inside - of_cluster).exp()
            gradient = (1 + weight) * log_p.exp() - (codes == target).float() - weight * posterior
            narrow_gradient = (gradient / len(x)).to(dtype)
            grad_x.append(narrow_gradient @ narrow_head)
            grad_head = grad_head + narrow_gradient.T @ narrow  # summed in float32
        ctx.save_for_backward(torch.cat(grad_x), grad_head)
        ctx.mark_non_differentiable(token_loss, cluster_loss)
        return token_loss + weight * cluster_loss, token_loss, cluster_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the kept gradients."""
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad, grad_head * grad, None, None, None, None
