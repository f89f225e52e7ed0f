"""The decoder: sizes, positions, causality, and decoding with a cache."""

import pytest
import torch

from mirai_bench.config.model_config import ModelConfig
from mirai_bench.model.cache import DevicePosition, HostPosition
from mirai_bench.model.rope import rope_table
from mirai_bench.model.transformer import ARModel

GRID, VOCABULARY, CLASSES = (4, 6), 11, 5


def tiny(**fields) -> ARModel:
    model = ARModel(ModelConfig(size="nano", depth=3, width=32, heads=4, **fields), VOCABULARY, CLASSES, GRID)
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.output.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def inputs(batch: int = 3):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(VOCABULARY, (batch, 24), generator=generator), torch.randint(
        CLASSES, (batch,), generator=generator
    )


@pytest.mark.parametrize(("size", "count"), [("B", 110_888_448), ("L", 342_910_976), ("XL", 774_699_520)])
def test_parameter_counts_are_llamagens(size, count):
    with torch.device("meta"):
        model = ARModel(ModelConfig(size=size), 16_384, 1000, (16, 16))
    assert sum(p.numel() for p in model.parameters()) == count


def test_class_slot_is_not_rotated_but_zeroed():
    table = rope_table(4, 6, 8)
    assert table.shape == (25, 4, 2)
    assert (table[0] == 0).all()
    assert torch.allclose((table[1:] ** 2).sum(-1), torch.ones(24, 4))


def test_rope_scores_depend_on_the_offset_on_the_grid_alone():
    from mirai_bench.model.rope import rotate

    table = rope_table(4, 6, 8)[1:]
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    turned = [rotate(x.expand(1, 24, 1, 8), table)[0, :, 0] for x in (q, k)]
    score = lambda a, b: (turned[0][a] @ turned[1][b]).item()  # noqa: E731
    assert score(0, 7) == pytest.approx(score(8, 15), abs=1e-5)  # both: one down, one right
    assert score(0, 7) != pytest.approx(score(0, 6), abs=1e-3)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("train_mode", [True, False])
@pytest.mark.parametrize("on_device", [False, True], ids=["an int", "a tensor"])
def test_cached_decoding_equals_teacher_forcing(kv_heads, train_mode, on_device):
    model, (tokens, labels) = tiny(kv_heads=kv_heads).train(train_mode), inputs()
    with torch.no_grad():
        expected = model(tokens, labels).logits
        cache, x, steps = model.new_cache(3), model.cls_embedding.embedding_table(labels), []
        for position in range(24):
            place = DevicePosition(torch.tensor([position]), 24) if on_device else HostPosition(position)
            steps.append(model.decode(x, place, cache))
            x = model.tok_embeddings(tokens[:, position])
    torch.testing.assert_close(torch.stack(steps, 1), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("changed", [0, 7, 23])
def test_a_token_changes_no_logit_before_it_is_consumed(changed):
    model, (tokens, labels) = tiny(), inputs()
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % VOCABULARY
    with torch.no_grad():
        difference = (model(tokens, labels).logits - model(other, labels).logits).abs().amax((0, 2))
    assert (difference[: changed + 1] == 0).all()
    assert (difference[changed + 1 :] > 0).all()


def test_tap_is_the_residual_stream_after_the_named_block_and_states_agrees():
    model, (tokens, labels) = tiny(), inputs()
    with torch.no_grad():
        for layer in (1, 2, 3):
            assert torch.equal(model(tokens, labels, tap=layer).hidden, model.states(tokens, labels, layer))
        assert torch.equal(model.norm(model.states(tokens, labels, 3)), model(tokens, labels).final)


def test_head_starts_at_zero_and_dropout_is_an_argument():
    model, (tokens, labels) = tiny(), inputs()
    fresh = ARModel(model.config, VOCABULARY, CLASSES, GRID).init_weights(torch.Generator().manual_seed(0))
    assert (fresh(tokens, labels).logits == 0).all()
    assert torch.equal(model(tokens, labels).logits, model.eval()(tokens, labels).logits)
    assert not torch.equal(model(tokens, labels, dropout=True).logits, model(tokens, labels).logits)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dropout_of_attention_alone(precision):
    """It is off unless dropout is asked for, and then what it drops is drawn anew each time."""
    own = {"token_dropout": 0, "residual_dropout": 0, "ffn_dropout": 0, "attention_dropout": 0.5}
    model = tiny()
    dropping = ARModel(model.config.model_copy(update=own), VOCABULARY, CLASSES, GRID)
    dropping.load_state_dict(model.state_dict())
    tokens, labels = inputs()
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        plain = model(tokens, labels).logits
        assert torch.equal(dropping(tokens, labels).logits, plain)
        torch.manual_seed(0)
        one, other = (dropping(tokens, labels, dropout=True).logits for _ in range(2))
        torch.manual_seed(0)
        again = dropping(tokens, labels, dropout=True).logits
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # The class token attends to itself alone: it keeps all or nothing of each head.
    assert not torch.equal(one[:, 0], plain[:, 0])
