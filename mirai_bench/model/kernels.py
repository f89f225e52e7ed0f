"""TODO: model.kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-5


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What SDPA computes with is_causal, as plain products: q (B, G, T, d), k and v (B, g, T, d) → (B, G, T, d).

    For training in bfloat16 on a CPU, where the backward of SDPA's own kernel takes several times as long.
    """
    heads, T = q.shape[1:3]
    q, k, v = (x.repeat_interleave(heads // x.shape[1], 1).flatten(0, 1) for x in (q, k, v))  # (B·G, T, d)
    future = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(future, q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    return torch.bmm(scores.softmax(-1).type_as(v), v).unflatten(0, (-1, heads))


class FusedRMSNorm(torch.autograd.Function):
    """F.rms_norm in half as many passes over memory, forward and backward; x (…, D) float32, weight (D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(NORM_EPS).rsqrt_()  # (…, 1)
        normal = x * scale
        ctx.save_for_backward(normal, weight, scale)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        normal, weight, scale = ctx.saved_tensors
        product = grad * normal
        along = (product @ weight)[..., None]  # (…, 1) ⟨g·w, n⟩
        return torch.addcmul(grad * weight, normal, along, value=-1 / len(weight)).mul_(
            scale
        ), product.flatten(0, -2).sum(0)


class HeadByHead(torch.autograd.Function):
    """torch.baddbmm(bias, x, weight) on a CPU, as one product a head: x (1 or K, N, D), weight (K, D, Z), bias (K, 1, Z) → (K, N, Z).

    A batched product of float32 gives each thread whole heads, so that of two threads one waits while the other computes the third.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = x.new_empty(len(weight), x.shape[1], weight.shape[2])
        for k in range(len(weight)):
            torch.addmm(bias[k], x[k % len(x)], weight[k], out=out[k])
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)
        for k in range(len(weight)):
            torch.mm(x[k % len(x)].T, grad[k], out=of_weight[k])
            if k < len(x):
                torch.mm(grad[k], weight[k].T, out=of_x[k])
            else:  # one x for all heads
                torch.addmm(of_x[0], grad[k], weight[k].T, out=of_x[0])
        return of_x, of_weight, grad.sum(1, keepdim=True)
