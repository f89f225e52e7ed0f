"""Cross-entropy of a linear head whose logits are never kept: rows in parts, and each part's gradient while its logits are at hand.

The products are those of the plain way (logits, two for the gradient); what is kept for the backward is (N, D) and (V, D), not (N, V).
Letters: N rows, D width, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS = {
    "cpu": 2**20,
    "cuda": 2**26,
}  # of a part: on a CPU they stay in its cache between two products, on a GPU they fill it


ROWS = 512  # of a part at least: with fewer the products themselves get slow


def part_rows(vocabulary: int, kind: str) -> int:
    """Rows whose logits are there at a time on a `kind` of device."""
    return max(ROWS, LOGITS[kind] // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> Tensor:
        rows = part_rows(len(head), x.device.type)
        narrow, loss, of_x, of_head = head.to(dtype), weights.new_zeros(()), [], torch.zeros_like(head)
        for part, target, weight in zip(
            x.split(rows), targets[:, None].split(rows), weights[:, None].split(rows), strict=True
        ):
            part = part.to(dtype)
            log_p = (part @ narrow.T).float().log_softmax(-1)
            loss -= (log_p.gather(1, target) * weight).sum()
            gradient = log_p.exp_().mul_(weight).scatter_add_(1, target, -weight).to(dtype)  # of the logits
            of_x.append(gradient @ narrow)
            if dtype == of_head.dtype:
                torch.addmm(of_head, gradient.T, part, out=of_head)
            else:  # added up in float32
                of_head += gradient.T @ part
        ctx.save_for_backward(torch.cat(of_x), of_head)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_head = ctx.saved_tensors
        return of_x * grad, of_head * grad, None, None, None


def linear_cross_entropy(x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ weight · cross-entropy(x @ headᵀ, target): x (N, D), head (V, D), targets (N) long, weights (N) float32 → scalar.

    Products in autocast's precision, the rest in float32. No gradient of the gradient.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(x, head, targets, weights, dtype)
