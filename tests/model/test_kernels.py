"""The hand-written kernels equal the plain operations that they replace."""

import pytest
import torch
import torch.nn.functional as F

from mirai_bench.model.kernels import FusedRMSNorm, HeadByHead, causal_attention, cosine


def test_rms_norm_equals_torchs():
    torch.manual_seed(0)
    x, weight, grad = (
        torch.randn(4, 5, 64, requires_grad=True),
        torch.randn(64, requires_grad=True),
        torch.randn(4, 5, 64),
    )
    ours, theirs = FusedRMSNorm.apply(x, weight), F.rms_norm(x, (64,), weight, 1e-5)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_causal_attention_equals_sdpa(kv_heads, dtype, tolerance):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 9, 8, dtype=dtype, requires_grad=True) for heads in (4, kv_heads, kv_heads)
    )
    ours, theirs = (
        causal_attention(q, k, v),
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads < 4),
    )
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    for a, b in zip(*(torch.autograd.grad(y.sum(), (q, k, v)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=4 * tolerance, rtol=4 * tolerance)


@pytest.mark.parametrize("rows", [1, 3], ids=["one input for all heads", "one each"])
@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-5), (True, 2e-2)], ids=["fp32", "bf16"])
def test_products_head_by_head_equal_the_batched_one(rows, half, tolerance):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, requires_grad=True) for shape in ((rows, 7, 8), (3, 8, 12), (3, 1, 12))
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        ours, theirs = HeadByHead.apply(x, weight, bias), torch.baddbmm(bias, x.expand(3, -1, -1), weight)
    assert ours.dtype == theirs.dtype == (torch.bfloat16 if half else torch.float32)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    grads = zip(
        *(torch.autograd.grad(y.float().square().sum(), (x, weight, bias)) for y in (ours, theirs)),
        strict=True,
    )
    for a, b in grads:
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=30 * tolerance, rtol=30 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_cosines_equal_torchs(dtype, tolerance):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 16).to(dtype).requires_grad_()
    unit = F.normalize(torch.randn(4, 9, 16), dim=-1)
    index = torch.tensor([8, 0, 3, 3, 1, 7])
    grad = torch.randn(4, 6)
    ours, theirs = cosine(x, unit, index), F.cosine_similarity(x.float(), unit[:, index], dim=-1)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    a, b = (torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs))
    assert a.dtype == dtype
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_the_cosine_of_a_vector_of_zeros_is_zero_and_finite():
    x = torch.zeros(1, 1, 4, requires_grad=True)
    value = cosine(x, torch.eye(4)[None, :1], torch.tensor([0]))
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert value.item() == 0 and torch.isfinite(grad).all()
