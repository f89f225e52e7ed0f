"""Hand-written kernels: RMSNorm, attention, the projectors' products, cosines, a linear head's loss.

Each one replaces a plain torch expression because it was measured to be faster or smaller, the
cosine because its compiled gradient was wrong, and is tested to give the same numbers. The model and
the losses call the functions of this module where the plain expression would stand.

"Step time" is the CPU time of one training step (6 layers, width 256, one thread) divided by the
time with the plain expression. reports/benchmarks/README.md has the protocol, and what was tried
and not kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-5  # LlamaGen's

# ---- what the model and the losses call


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Returns F.rms_norm of x (…, D) with weight (D).

    On a GPU it is one kernel; on a CPU torch runs seven. Step time of ours on a CPU: 0.95 to 0.97
    in fp32, 0.93 to 0.95 in bf16.
    """
    # The residual stream is float32 under autocast, too.
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return FusedRMSNorm.apply(x, weight)
    return F.rms_norm(x, x.shape[-1:], weight, NORM_EPS)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool, dropout: float = 0.0
) -> Tensor:
    """Returns scaled dot-product attention (B, G, T, d).

    q is (B, G, T, d), k and v are (B, g, S, d), and g divides G (grouped-query attention). `mask`
    (T, S) says which keys each query sees, as a bool or as a number that is added to the scores.
    `dropout` is the probability that one of its weights is dropped.
    """
    # It is the backward pass of torch's kernel that is slow, so sampling keeps that kernel.
    on_cpu_in_bf16 = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if causal and q.requires_grad and on_cpu_in_bf16 and dropout == 0:
        return causal_attention(q, k, v)
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped)


def decoding_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Returns `attention` of one query (B, G, 1, d) to the keys and values (B, g, S, d) of a cache.

    Under torch.compile it is written as sums over the cache, which are kernels that read the keys
    and the values once. torch's kernels are made for many queries.
    """
    if not torch.compiler.is_compiling():
        return attention(q, k, v, mask=mask, causal=False)
    # Queries that share a head of keys and values are side by side: (B, g, G/g, S, d).
    queries = q.unflatten(1, (k.shape[1], -1)).float() * q.shape[-1] ** -0.5  # (B, g, G/g, 1, d)
    scores = (queries * k[:, :, None].float()).sum(-1)  # (B, g, G/g, S)
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1)[..., None]  # (B, g, G/g, S, 1)
    y = (weights * v[:, :, None].float()).sum(-2)  # (B, g, G/g, d)
    return y.type_as(v).flatten(1, 2)[:, :, None]


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns x @ weight + bias for each of K heads: (K, N, Z).

    x is (K, N, D), or (1, N, D) if all heads share it; weight is (K, D, Z) and bias (K, 1, Z).
    """
    # Under torch.compile the plain product, which a compiler fuses with its neighbours.
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return HeadByHead.apply(x, weight, bias)
    # Not baddbmm: on a GPU torch 2.11 compiles it in bfloat16 with a gradient that reads memory
    # which nothing has written. And not a float32 bias, which would make the sum float32.
    products = torch.matmul(x, weight)
    return products + bias.to(products.dtype)


def cosine(x: Tensor, unit: Tensor, index: Tensor) -> Tensor:
    """Returns F.cosine_similarity(x, unit[:, index], dim=-1), (B, T) in float32.

    x is (B, T, Z). `unit` (B, T', Z) are unit vectors in float32, into which no gradient flows, and
    index (T) says which of them a row of x is compared with. It cannot be differentiated twice.
    """
    return Cosine.apply(x, unit, index)


# ---- attention and norms


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes causal attention as plain products.

    It is used for training in bfloat16 on a CPU, where forward and backward of torch's own kernel
    take 9.3 ms per layer and these products 1.6 ms. Step time: 0.78. In fp32 the plain products are
    slower.
    """
    heads, length = q.shape[1:3]
    # Each head of keys and values is repeated for its group of queries: (B·G, T, d).
    q, k, v = (x.repeat_interleave(heads // x.shape[1], 1).flatten(0, 1) for x in (q, k, v))
    future = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)  # (T, T)
    scores = torch.baddbmm(future, q * q.shape[-1] ** -0.5, k.transpose(1, 2))  # (B·G, T, T)
    return torch.bmm(scores.softmax(-1).type_as(v), v).unflatten(0, (-1, heads))


class FusedRMSNorm(torch.autograd.Function):
    """F.rms_norm in half as many passes over memory, forward and backward.

    x is (…, D) float32, weight (D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Returns x / rms(x) · weight."""
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(NORM_EPS).rsqrt_()  # (…, 1)
        normal = x * scale
        ctx.save_for_backward(normal, weight, scale)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradients of x and of the weight."""
        normal, weight, scale = ctx.saved_tensors
        product = grad * normal
        # The component of the gradient along the normalised x does not change the norm: it is taken
        # out.
        along = (product @ weight)[..., None]  # (…, 1)
        grad_x = torch.addcmul(grad * weight, normal, along, value=-1 / len(weight)).mul_(scale)
        grad_weight = product.flatten(0, -2).sum(0)
        return grad_x, grad_weight


# ---- the projectors' products


class HeadByHead(torch.autograd.Function):
    """torch.baddbmm(bias, x, weight) on a CPU, as one product per head.

    The shapes are those of `batched_linear`. `torch.baddbmm` on a CPU assigns whole heads to
    threads: with three heads and two threads one idles. One `addmm` per head uses both. Wall-clock
    of the projectors with two threads, K = 3, fp32: 0.81; with one thread: 1.00.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Returns the products (K, N, Z)."""
        out = x.new_empty(len(weight), x.shape[1], weight.shape[2])
        for k in range(len(weight)):
            torch.addmm(bias[k], x[k % len(x)], weight[k], out=out[k])  # x[0] if it is shared
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Returns the gradients of x, of the weights and of the biases."""
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight = torch.empty_like(weight)
        for k in range(len(weight)):
            torch.mm(x[k % len(x)].T, grad[k], out=grad_weight[k])
            if k < len(x):
                torch.mm(grad[k], weight[k].T, out=grad_x[k])
            else:  # a shared x sums the gradients of all heads
                torch.addmm(grad_x[0], grad[k], weight[k].T, out=grad_x[0])
        return grad_x, grad_weight, grad.sum(1, keepdim=True)


# ---- cosines

SHORTEST = 1e-12  # F.normalize's; a vector that is shorter is divided by this length


class Cosine(torch.autograd.Function):
    """The cosine of rows and unit vectors. Its backward pass has no sum over the rows' width.

    The gradient of F.normalize has one. For a GPU, Inductor of torch before 2.14 writes it as a
    kernel that stores a gradient to memory, sums, and reads the gradient back, which other warps may
    not have written yet (pytorch issue 190517): gradients were silently wrong.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: Tensor, index: Tensor) -> Tensor:
        """Returns x · unit[:, index] / ‖x‖, (B, T)."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1).clamp_(min=SHORTEST)
        cosines = (wide * unit[:, index]).sum(-1) / length
        ctx.save_for_backward(x, unit, index, length, cosines)
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Returns the gradient of x: (unit - cosine · x / ‖x‖) / ‖x‖."""
        x, unit, index, length, cosines = ctx.saved_tensors
        along = x.float() * (cosines / length)[..., None]
        grad_x = (unit[:, index] - along) * (grad / length)[..., None]
        return grad_x.to(x.dtype), None, None


# ---- the loss of a linear head

# Logits of a chunk. On a CPU they stay in its cache between two products; on a GPU they are enough
# to fill it.
CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**27}
FEWEST_ROWS = 512  # of a chunk: with fewer, the products themselves become slow


def chunk_rows(vocabulary: int, kind: str) -> int:
    """Returns the number of rows whose logits are in memory at a time.

    `kind` is that of the device, "cpu" or "cuda".
    """
    return max(FEWEST_ROWS, CHUNK_LOGITS[kind] // vocabulary)


def linear_cross_entropy(x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Returns Σ weight · cross-entropy(x @ headᵀ, target), a scalar, without storing the logits.

    x is (N, D), head (V, D), targets (N) long and weights (N) float32. Targets (N, K) are K of each
    row, of equal weight. The products have autocast's precision, the rest is float32. It cannot be
    differentiated twice.

    2,048 tokens of width 768 with 16,384 codes in fp32 keep 54 MiB for the backward pass instead of
    182, and peak at 149 MiB instead of 384. Time of the loss alone: 0.75 with 4,096 codes, 0.98
    with 16,384.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    # Inside, the precision of each product is written out, so autocast must not change it again.
    targets = targets if targets.dim() == 2 else targets[:, None]
    with torch.autocast(kind, enabled=False):
        return LinearCrossEntropy.apply(x, head, targets, weights[:, None], dtype)


def _gradient_of_logits(log_p: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Returns weight · Σ_k (softmax - one-hot_k), (n, V). Overwrites `log_p` (n, V).

    targets is (n, K) and weight (n, 1).
    """
    num_targets = targets.shape[1]
    total = weight if num_targets == 1 else num_targets * weight
    if torch.compiler.is_compiling():
        # A scatter would first write all of it to memory in float32: 8.6 GB per step at size B.
        gradient = log_p.exp() * total
        codes = torch.arange(log_p.shape[1], device=log_p.device)
        for target in targets.split(1, 1):
            gradient = gradient - (codes == target) * weight
        return gradient
    return log_p.exp_().mul_(total).scatter_add_(1, targets, -weight.expand_as(targets))


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head, computed chunk by chunk.

    The forward pass computes each chunk's gradient while its logits are in memory. What is kept for
    the backward pass is (N, D) and (V, D). Letters: N rows, D width, V codes, K targets, n rows of a
    chunk. targets is (N, K) and weights (N, 1).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Returns the weighted sum of the losses, and keeps the gradients of x and head."""
        rows = chunk_rows(len(head), x.device.type)
        narrow_head = head.to(dtype)
        loss = weights.new_zeros(())
        grad_x = []
        grad_head = torch.zeros_like(head)
        chunks = zip(*(tensor.split(rows) for tensor in (x, targets, weights)), strict=True)
        for chunk, target, weight in chunks:
            narrow = chunk.to(dtype)
            log_p = (narrow @ narrow_head.T).float().log_softmax(-1)  # (n, V)
            # Not in place: torch 2.11 compiles a loss that is changed in place without a gradient.
            loss = loss - (log_p.gather(1, target) * weight).sum()
            grad_logits = _gradient_of_logits(log_p, target, weight).to(dtype)
            grad_x.append(grad_logits @ narrow_head)
            if dtype == grad_head.dtype:
                torch.addmm(grad_head, grad_logits.T, narrow, out=grad_head)
            else:
                grad_head += grad_logits.T @ narrow  # summed in float32
        ctx.save_for_backward(torch.cat(grad_x), grad_head)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the kept gradients."""
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad, grad_head * grad, None, None, None
