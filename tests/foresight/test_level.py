"""Levels: where the gradient of foresight goes, in every variant of the three axes."""

import pytest
import torch
import torch.nn.functional as F

from mirai_bench.config import data_config, foresight, protocol
from mirai_bench.data.images.datasets import DATASETS
from mirai_bench.data.tokenizers import TOKENIZERS
from mirai_bench.evaluate.extractors import EXTRACTORS
from mirai_bench.foresight.encoders.build import ENCODERS
from mirai_bench.foresight.layout import LAYOUTS
from mirai_bench.foresight.level import LEVELS
from mirai_bench.foresight.loss import LOSSES, TARGET_NORMS
from mirai_bench.foresight.projector import PROJECTORS
from mirai_bench.foresight.source import SOURCES
from mirai_bench.model.kernels import linear_cross_entropy
from mirai_bench.model.transformer import build_model
from tests.support.objectives import assemble, eager_and_captured
from tests.support.small_run import resumed

VARIANTS = [
    {"level": "none"},
    *({"level": "output", "layout": layout, "k": 3} for layout in LAYOUTS),
    *({"level": "internal", "layout": layout, "k": 3} for layout in LAYOUTS),
    *({"level": "internal", "source": source, "k": 2} for source in SOURCES),
    {"level": "internal", "source": "shuffled", "shuffled_of": "ema"},
    {"level": "internal", "source": "encoder", "encoder": {"context": {"block_causal": 8}}},
    {"level": "internal", "pairing": "predicting"},
    {
        "level": "internal",
        "class_token": True,
        "share_label_drop": False,
        "reduce": "sum",
        "layout": "grid_2d_flat",
        "k": 9,
    },
    {"level": "internal", "projector": {"shared_trunk": True, "hidden": 16}},
    {"level": "internal", "projector": {"layers": 1}},
    *({"level": "internal", "projector": {"kind": kind}} for kind in PROJECTORS if kind != "mlp"),
    {"level": "internal", "projector": {"kind": "conv"}, "pairing": "predicting", "source": "encoder"},
    {"level": "internal", "projector": {"kind": "conv"}, "class_token": True},
    {"level": "internal", "own_cell": False, "k": 2},
    {"level": "internal", "own_cell": False, "k": 1, "source": "encoder"},
    *({"level": "internal", "target_norm": norm} for norm in TARGET_NORMS if norm != "none"),
    *({"level": "internal", "loss": loss} for loss in LOSSES if loss != "cosine"),
    {"level": "internal", "pooled": True, "k": 9},
    {"level": "internal", "pooled": True, "source": "encoder", "layout": "raster_1d"},
]


def names(variant):
    return "-".join(str(value) for value in variant.values())


def test_dictionaries_and_config_name_the_same_values():
    from typing import get_args

    from mirai_bench.config.foresight import ForesightConfig

    for field, entries in (("target_norm", TARGET_NORMS), ("loss", LOSSES)):
        assert set(get_args(ForesightConfig.model_fields[field].annotation)) == set(entries)
    for named, entries in (
        (foresight.LEVEL, LEVELS),
        (foresight.LAYOUT, LAYOUTS),
        (foresight.SOURCE, SOURCES),
        (foresight.ENCODER, ENCODERS),
        (data_config.DATASET, DATASETS),
        (data_config.TOKENIZER, TOKENIZERS),
        (protocol.EXTRACTOR, {"none", *EXTRACTORS}),
    ):
        assert set(named.builtin) == set(entries), named.kind


@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_foresight_never_reaches_above_its_layer_nor_into_the_teacher(make_config, variant):
    _, objective, teacher, batch = assemble(make_config, variant)
    loss, ntp, foresight, _ = objective(batch, batch.labels, torch.tensor(1.0))
    if variant["level"] == "none":
        assert (
            loss is ntp
            and foresight == 0
            and not list(objective.foresight.parameters() if objective.foresight else [])
        )
        return
    assert loss.item() == pytest.approx(ntp.item() + foresight.item(), rel=1e-6)
    foresight.backward()
    reached = {
        name
        for name, p in objective.model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert all(p.grad is None for p in teacher.parameters())
    if variant["level"] == "output":
        assert all(not p.grad.eq(0).all() for p in objective.foresight.parameters())
        return
    assert any(name.startswith("layers.1.") for name in reached) and any(
        name.startswith("layers.0.") for name in reached
    )
    assert not any(name.startswith(("layers.2.", "norm.", "output.")) for name in reached)
    assert all(not p.grad.eq(0).all() for p in objective.foresight.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_no_arm_lets_a_logit_see_a_token_it_has_not_consumed(make_config, variant):
    _, objective, _, batch = assemble(make_config, variant)
    other = batch.tokens.clone()
    other[:, 20] = (other[:, 20] + 1) % 17
    with torch.no_grad():
        before, after = (
            objective.model(tokens, batch.labels, tap=objective.foresight and objective.foresight.tap).logits
            for tokens in (batch.tokens, other)
        )
    assert torch.equal(before[:, :21], after[:, :21]) and not torch.equal(before[:, 21:], after[:, 21:])


def test_level_none_is_plain_next_token_prediction_bit_for_bit(make_config):
    config, objective, _, batch = assemble(make_config, {"level": "none"})
    plain = build_model(config)
    torch.nn.init.normal_(plain.output.weight, std=0.1, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(3)
    final, targets = (
        plain.trunk(batch.tokens, batch.labels, dropout=True).final.flatten(0, 1),
        batch.tokens.flatten(),
    )
    expected = linear_cross_entropy(
        final, plain.output.weight, targets, torch.full(targets.shape, 1 / len(targets))
    )
    torch.testing.assert_close(expected, F.cross_entropy(plain.output(final), targets), atol=0, rtol=1e-6)
    torch.manual_seed(3)
    loss = objective(batch, batch.labels, torch.tensor(2.0))[0]
    assert torch.equal(loss, expected)
    loss.backward(), expected.backward()
    assert all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(objective.model.parameters(), plain.parameters(), strict=True)
    )


def test_every_arm_starts_from_the_same_model(make_config):
    states = [assemble(make_config, variant)[1].model.state_dict() for variant in VARIANTS[:8]]
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


HEADS = [variant for variant in VARIANTS if "projector" in variant]


@pytest.mark.parametrize("variant", HEADS, ids=names)
def test_a_run_that_resumes_equals_one_that_does_not(make_config, variant):
    config = make_config(foresight=variant)
    whole, second, _ = resumed(config)
    weights = second.student_weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.student_weights().items())


@pytest.mark.parametrize("variant", HEADS, ids=names)
def test_a_step_is_one_graph(make_config, variant):
    """There is no graph break. The eager backend captures the graph and compiles nothing."""
    _, objective, _, batch = assemble(make_config, variant)
    eager, captured = eager_and_captured(objective, batch, batch.labels, torch.tensor(2.0))
    assert captured == pytest.approx(eager, rel=1e-5)
