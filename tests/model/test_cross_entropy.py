"""The loss of a linear head, chunk by chunk, against torch's own over all logits."""

import pytest
import torch
import torch.nn.functional as F

from mirai_bench.model import kernels
from mirai_bench.model.kernels import linear_cross_entropy

N, D, V = 50, 8, 70


@pytest.fixture(params=[8, 512], ids=["7 parts", "one part"])
def rows(request, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_LOGITS", {"cpu": 1})
    monkeypatch.setattr(kernels, "FEWEST_ROWS", request.param)


def inputs():
    torch.manual_seed(0)
    x, head = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    return x, head, torch.randint(V, (N,)), torch.rand(N)


def plain(x, head, targets, weights):
    return (F.cross_entropy(F.linear(x, head).float(), targets, reduction="none") * weights).sum()


def with_gradients(loss, x, head, *rest, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        value = loss(x, head, *rest)
    return value.detach(), *torch.autograd.grad(3 * value, (x, head))


def kept_bytes(loss, *given):
    """Returns the bytes of the tensors that are kept for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(*given)
    return sum(kept.values())


def test_loss_and_gradients_equal_torchs(rows):
    for ours, theirs in zip(
        *(with_gradients(loss, *inputs()) for loss in (linear_cross_entropy, plain)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_under_autocast_only_the_products_are_narrow(rows):
    found, expected = (with_gradients(loss, *inputs(), bf16=True) for loss in (linear_cross_entropy, plain))
    torch.testing.assert_close(found[0], expected[0], atol=0, rtol=1e-6)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_it_is_one_graph_of_the_same_numbers(rows, bf16):
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(
        *(with_gradients(f, *inputs(), bf16=bf16) for f in (compiled, linear_cross_entropy)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_no_logits_are_kept(rows):
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    small = 4 * D * (N + V)  # a gradient of x and one of the head
    assert kept_bytes(plain, *inputs()) >= 4 * N * V > 2 * small
    assert kept_bytes(linear_cross_entropy, *inputs()) == small
    assert kept_bytes(compiled, *inputs()) <= small + 64
