"""Attention, planted and of real weights."""

import pytest
import torch

from mirai_bench.config.model_config import ModelConfig
from mirai_bench.diagnose.attention import attention_weights, entropy, even_gaze, gaze_of, measure
from mirai_bench.model.rope import rope_table
from mirai_bench.model.transformer import Block

GRID = (2, 3)  # 6 states: the class token, and those at cells 0 … 4


def looking(*targets):
    """The attention (1, 6, 6) of states each of which looks at one state."""
    return torch.eye(6)[list(targets)][None]


def gaze(weights):
    return gaze_of(weights.double(), entropy(weights.double()), GRID)


def test_distance_is_measured_from_the_cell_where_the_state_stands():
    # Each state looks at its own cell, and then at the first cell.
    own = gaze(looking(0, 1, 2, 3, 4, 5))
    assert own.distance.item() == 0
    assert own.own_mass.item() == 1
    first = gaze(looking(0, 1, 1, 1, 1, 1))
    # Cells 0, 1, 2 of the first row, and 0, 1 of the second, from cell 0.
    assert first.distance.item() == pytest.approx((0 + 1 + 2 + 1 + 2) / 5)
    assert first.own_mass.item() == pytest.approx(1 / 5)


def test_neighbours_are_those_above_and_to_the_left():
    # Cells 1 and 2 look to the left, 3 looks up at cell 0, and 4 at cell 0, which is no neighbour.
    found = gaze(looking(0, 1, 1, 2, 1, 1))
    assert found.neighbours.item() == pytest.approx(3 / 4)
    # Cell 2 and cell 3 follow each other in the sequence, but not on the grid.
    assert gaze(looking(0, 1, 1, 2, 3, 4)).neighbours.item() == pytest.approx(3 / 4)


def test_the_class_token_stands_nowhere():
    found = gaze(looking(0, 0, 0, 0, 0, 0))
    assert found.class_mass.item() == 1
    assert found.distance.item() == 0
    half = gaze((looking(0, 0, 0, 0, 0, 0) + looking(0, 1, 1, 1, 1, 1)) / 2)
    assert half.class_mass.item() == pytest.approx(1 / 2)
    assert half.distance.item() == pytest.approx(6 / 5)  # that of the attention to cells alone


def test_equal_attention_has_entropy_zero_and_a_single_target_minus_all_bits():
    even = even_gaze(GRID)
    assert even.entropy.item() == pytest.approx(0, abs=1e-6)
    assert even.class_mass.item() == pytest.approx(sum(1 / n for n in range(2, 7)) / 5)
    single = gaze(looking(0, 1, 1, 1, 1, 1))
    assert single.entropy.item() == pytest.approx(-torch.arange(2, 7).log2().mean().item())


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_weights_give_the_output_of_the_models_own_attention(kv_heads):
    config = ModelConfig(size="nano", width=32, heads=4, kv_heads=kv_heads)
    torch.manual_seed(0)
    block = Block(config).requires_grad_(False)
    rope = rope_table(2, 3, 8)[:6]
    x = torch.randn(5, 6, 32) * 3
    weights = attention_weights(block, x, rope)
    q, k, v = block.attention.project(block.attention_norm(x), rope)
    mixed = weights @ v.repeat_interleave(4 // kv_heads, 1)
    found = block.attention.wo(mixed.transpose(1, 2).flatten(2))
    assert torch.allclose(found, block.attention.attend(q, k, v, None, True, False), atol=1e-5)
    assert weights.triu(1).abs().max() == 0


def test_a_block_without_queries_attends_equally(subject):
    model = subject.model
    before = measure(subject)
    model.layers[1].attention.wqkv.weight.data.zero_()
    found = measure(subject)
    even = found.detail["even"]
    for name in ("distance", "class_mass", "own_mass", "neighbours"):
        assert found.values[f"{name}@2"] == pytest.approx(even[name], abs=1e-5)
        assert found.values[f"{name}@1"] == before.values[f"{name}@1"]
    assert found.values["entropy@2"] == pytest.approx(0, abs=1e-5)
    assert before.values["entropy@2"] < -1e-4
    assert [len(heads) for heads in found.detail["distance"]] == [2, 2, 2]


def test_a_block_attends_to_what_comes_before_it(subject):
    images = subject.heldout
    model = subject.model
    x = model.embed(images.tokens[:, :-1], images.labels)
    for number, block in enumerate(model.layers, 1):
        weights = attention_weights(block, x, model.rope)
        expected = weights[:, :, 1:, 0].mean().item()
        assert measure(subject).values[f"class_mass@{number}"] == pytest.approx(expected, abs=1e-6)
        x = block(x, model.rope[: x.shape[1]])
