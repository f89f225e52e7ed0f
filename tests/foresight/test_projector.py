"""Projection heads: each against a plain computation, and what they may see."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.projector import ProjectorConfig
from mirai_bench.foresight.projector import (
    CAUSAL_WINDOW,
    PROJECTORS,
    ConvProjector,
    Projector,
    TransformerProjector,
    causal_window,
)

GRID = (4, 4)


def built(kind, k=2, **fields):
    """A projector of width 8 and target width 6 on 4x4 cells, with random biases and norms."""
    config = ForesightConfig(level="internal", k=k, projector={"kind": kind, "hidden": 16}, **fields)
    projector = PROJECTORS[kind](config, GRID, 8, 6)
    generator = torch.Generator().manual_seed(0)
    projector.init_weights(generator)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return projector


def test_the_dictionary_and_the_config_name_the_same_heads():
    assert set(get_args(ProjectorConfig.model_fields["kind"].annotation)) == set(PROJECTORS)


@pytest.mark.parametrize("pairing", ["consumed", "predicting"])
@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_projection_depends_on_no_later_state(kind, pairing):
    projector = built(kind, pairing=pairing)
    hidden = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    assert projector(hidden).shape == (2, 2, 16, 6)
    for state in range(1, 16):
        other = hidden.clone()
        other[:, state] += 1
        change = (projector(other) - projector(hidden)).detach().abs().amax((0, 1, 3))
        assert (change[:state] == 0).all() and change[state] > 0, state


@pytest.mark.parametrize("kind", PROJECTORS)
def test_heads_share_nothing_and_matrices_start_small(kind):
    projector = built(kind)
    one, other = projector(torch.randn(1, 16, 8))
    assert not torch.allclose(one, other)
    projector.init_weights(torch.Generator().manual_seed(0))
    matrices = [parameter for parameter in projector.parameters() if parameter.shape[-2:].numel() > 64]
    assert all(0.01 < matrix.std() < 0.03 for matrix in matrices)


def test_the_window_of_each_state_by_hand():
    """On a 2x3 grid, in the order: itself, left, above right, above, above left. 6 is beyond the edge."""
    predicting = causal_window(2, 3, "predicting")
    assert predicting.tolist() == [
        [0, 6, 6, 6, 6],
        [1, 0, 6, 6, 6],
        [2, 1, 6, 6, 6],
        [3, 6, 1, 0, 6],
        [4, 3, 2, 1, 0],
        [5, 4, 6, 2, 1],
    ]
    # State s stands at the cell s - 1 that it has consumed. The class token is alone.
    consumed = causal_window(2, 3, "consumed")
    assert consumed[0].tolist() == [0, 6, 6, 6, 6]
    assert np.array_equal(consumed[1:], np.where(predicting[:5] == 6, 6, predicting[:5] + 1))


def test_the_convolution_is_a_masked_conv2d():
    projector = built("conv", k=1, pairing="predicting")
    assert isinstance(projector, ConvProjector)
    kernel = torch.zeros(6, 8, 3, 3)
    for cell, (down, right) in enumerate(CAUSAL_WINDOW):
        kernel[:, :, 1 + down, 1 + right] = projector.linear.weights[0][0, 8 * cell : 8 * (cell + 1)].T
    assert not kernel[:, :, 1, 2].any() and not kernel[:, :, 2].any(), "right and below"
    hidden = torch.randn(2, 16, 8)
    on_grid = hidden.transpose(1, 2).unflatten(2, GRID)
    expected = (
        F.conv2d(on_grid, kernel, projector.linear.biases[0][0, 0], padding=1).flatten(2).transpose(1, 2)
    )
    torch.testing.assert_close(projector(hidden)[0], expected)


def test_the_transformer_is_torchs_encoder_layer_with_a_causal_mask():
    projector = built("transformer", k=1)
    assert isinstance(projector, TransformerProjector)
    head = projector.heads[0]
    layer = nn.TransformerEncoderLayer(8, 4, 32, 0.0, F.silu, batch_first=True, norm_first=True).eval()
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": head.qkv.weight,
            "self_attn.in_proj_bias": head.qkv.bias,
            "self_attn.out_proj.weight": head.out.weight,
            "self_attn.out_proj.bias": head.out.bias,
            "linear1.weight": head.up.weight,
            "linear1.bias": head.up.bias,
            "linear2.weight": head.down.weight,
            "linear2.bias": head.down.bias,
            "norm1.weight": head.attention_norm.weight,
            "norm1.bias": head.attention_norm.bias,
            "norm2.weight": head.mlp_norm.weight,
            "norm2.bias": head.mlp_norm.bias,
        }
    )
    hidden = torch.randn(2, 16, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(16)
    expected = head.last(layer(hidden, src_mask=mask, is_causal=True))
    torch.testing.assert_close(projector(hidden)[0], expected, atol=1e-5, rtol=1e-5)


def test_the_papers_heads_have_its_numbers_of_parameters():
    """Table 9: 7.34M for the MLP and 7.68M for the transformer, of width 768."""
    for kind, millions in (("mlp", 7.34), ("transformer", 7.68)):
        config = ForesightConfig(level="internal", k=1, projector={"kind": kind})
        with torch.device("meta"):
            projector = PROJECTORS[kind](config, (16, 16), 768, 768)
        count = sum(parameter.numel() for parameter in projector.parameters())
        assert round(count / 1e6, 2) == millions


# ---- the MLP


def test_stacked_projectors_equal_separate_mlps():
    projector = Projector(ProjectorConfig(hidden=7), 3, 5, 4)
    projector.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for bias in projector.biases:
            bias.normal_()
    hidden = torch.randn(2, 6, 5)
    for k, ours in enumerate(projector(hidden)):
        x = hidden
        for index, (weight, bias) in enumerate(zip(projector.weights, projector.biases, strict=True)):
            x = F.linear(F.silu(x) if index else x, weight[k].T, bias[k, 0])
        torch.testing.assert_close(ours, x)


def test_shared_trunk_has_one_trunk_and_k_last_layers():
    projector = Projector(ProjectorConfig(hidden=7, shared_trunk=True), 3, 5, 4)
    assert [tuple(w.shape) for w in projector.weights] == [(1, 5, 7), (1, 7, 7), (3, 7, 4)]
    assert projector(torch.randn(2, 6, 5)).shape == (3, 2, 6, 4)


@pytest.mark.parametrize("shared", [False, True])
def test_the_stack_of_projectors_equals_separate_ones(shared, make_config):
    config = make_config(foresight={"projector": {"hidden": 16, "shared_trunk": shared}}).foresight.projector
    stack = Projector(config, 3, 8, 12)
    stack.init_weights(torch.Generator().manual_seed(0))
    nn.init.normal_(stack.biases[1])
    hidden = torch.randn(2, 5, 8)
    for head, out in enumerate(stack(hidden)):
        x = hidden
        for index, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
            which = head if len(weight) > 1 else 0
            x = (F.silu(x) if index else x) @ weight[which] + bias[which]
        torch.testing.assert_close(out, x)
