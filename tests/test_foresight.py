"""The foresight signal: pairs of states and targets, the loss, where its gradient goes. Run over the dictionaries of the three axes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mirai_bench.config.foresight import Projector as ProjectorConfig
from mirai_bench.data.codes import open_codes
from mirai_bench.foresight import build_foresight
from mirai_bench.foresight.encoders.build import block_causal_mask
from mirai_bench.foresight.layout import LAYOUTS, grid_2d
from mirai_bench.foresight.level import LEVELS
from mirai_bench.foresight.loss import TARGET_NORMS, Projector, cosine_loss, pair, reduce_heads
from mirai_bench.foresight.source import SOURCES, Parts
from mirai_bench.model.cross_entropy import linear_cross_entropy
from mirai_bench.model.transformer import build_model
from mirai_bench.train.optim import clone_as_ema
from mirai_bench.train.trainer import Objective

CPU = torch.device("cpu")
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
    *({"level": "internal", "target_norm": norm} for norm in TARGET_NORMS if norm != "none"),
]


def names(variant):
    return "-".join(str(value) for value in variant.values())


def assemble(make_config, variant):
    config = make_config(foresight=variant)
    codes = open_codes(config, "train", CPU)
    model = build_model(config)
    torch.nn.init.normal_(model.output.weight, std=0.1, generator=torch.Generator().manual_seed(5))
    teacher = clone_as_ema(model)  # also stands for the frozen one
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6))
    objective = Objective(model, build_foresight(config, Parts(config, teacher, codes, lambda: teacher, CPU)))
    return config, objective, teacher, codes.batch(seed=0, step=0, rank=0, world=1, batch_size=8)


def test_pairs_on_a_2x2_grid_by_hand():
    table = grid_2d(2, 2, 3)  # heads: here, right, below

    def shown(t):
        return [[int(i) if v else None for i, v in zip(*row, strict=True)] for row in zip(*t, strict=True)]

    n = None
    # an encoder: feature j is cell j; state s has consumed cell s-1
    assert shown(pair(table, "consumed", False, False)) == [[n, n, n], [0, 1, 2], [1, n, 3], [2, 3, n]]
    assert shown(pair(table, "predicting", False, False)) == [[0, 1, 2], [1, n, 3], [2, 3, n], [3, n, n]]
    # a causal teacher: feature s is state s, cell j is feature j+1, and the last cell has none
    assert shown(pair(table, "consumed", True, False)) == [[n, n, n], [1, 2, 3], [2, n, n], [3, n, n]]
    assert shown(pair(table, "consumed", True, True)) == [[0, 0, 0], [1, 2, 3], [2, n, n], [3, n, n]]


def test_cosine_loss_equals_the_formula_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    projected, targets = (
        torch.randn(3, 2, 16, 5, generator=generator),
        torch.randn(2, 16, 5, generator=generator),
    )
    table = pair(grid_2d(4, 4, 3), "consumed", False, False)
    losses = cosine_loss(projected, targets, torch.from_numpy(table.targets), torch.from_numpy(table.valid))
    for k in range(3):
        pairs = [(s, table.targets[s, k]) for s in range(16) if table.valid[s, k]]
        cosines = [
            F.cosine_similarity(projected[k, b, s], targets[b, t], dim=0) for b in range(2) for s, t in pairs
        ]
        assert losses[k].item() == pytest.approx(1 - torch.stack(cosines).mean().item(), abs=1e-6)


def test_mean_and_sum_over_heads_leave_out_heads_without_a_pair():
    losses, valid = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[True, True, False]])
    assert reduce_heads(losses, valid, "mean").item() == 1.5
    assert reduce_heads(losses, valid, "sum").item() == 3


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


def test_block_causal_mask_by_hand():
    assert block_causal_mask(4, 2, CPU).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
    ]
    assert block_causal_mask(4, 1, CPU).equal(torch.ones(4, 4).tril().bool())


def test_dictionaries_and_config_name_the_same_values():
    from typing import get_args

    from mirai_bench.config.foresight import Foresight

    for field, entries in (
        ("level", LEVELS),
        ("layout", LAYOUTS),
        ("source", SOURCES),
        ("target_norm", TARGET_NORMS),
    ):
        assert set(get_args(Foresight.model_fields[field].annotation)) == set(entries)


@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_foresight_never_reaches_above_its_layer_nor_into_the_teacher(make_config, variant):
    _, objective, teacher, batch = assemble(make_config, variant)
    loss, ntp, foresight = objective(batch, batch.labels, torch.tensor(1.0))
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
        before, after = (objective.model(tokens, batch.labels, tap=objective.foresight and objective.foresight.tap).logits
                         for tokens in (batch.tokens, other))  # fmt: skip
    assert torch.equal(before[:, :21], after[:, :21]) and not torch.equal(before[:, 21:], after[:, 21:])


@pytest.mark.parametrize(
    ("source", "sees_future"), [("ema", False), ("frozen", False), ("encoder", True), ("random", True)]
)
def test_a_bidirectional_feature_sees_the_future_and_a_causal_one_does_not(make_config, source, sees_future):
    _, objective, _, batch = assemble(make_config, {"level": "internal", "source": source})
    before = objective.foresight.source(batch, batch.labels)
    batch.tokens[:, 40] = (batch.tokens[:, 40] + 1) % 17
    change = (objective.foresight.source(batch, batch.labels) - before).abs().amax((0, 2))
    assert (change[:40] > 0).all() == sees_future
    assert (change[:40] == 0).all() != sees_future
    assert change[-1] > 0


def test_block_causal_features_see_their_own_block_and_no_further(make_config):
    _, objective, _, batch = assemble(
        make_config, {"level": "internal", "source": "encoder", "encoder": {"context": {"block_causal": 8}}}
    )
    before = objective.foresight.source(batch, batch.labels)
    batch.tokens[:, 44] = (batch.tokens[:, 44] + 1) % 17
    change = (objective.foresight.source(batch, batch.labels) - before).abs().amax((0, 2))
    assert (change[:40] == 0).all() and (change[40:] > 0).all()


def test_shuffled_gives_each_image_its_neighbours_features(make_config):
    _, right, _, batch = assemble(make_config, {"level": "internal", "source": "encoder"})
    _, wrong, _, _ = assemble(make_config, {"level": "internal", "source": "shuffled"})
    assert torch.equal(
        wrong.foresight.source(batch, batch.labels)[1:], right.foresight.source(batch, batch.labels)[:-1]
    )


def test_label_drop_is_shared_with_the_teacher_or_not(make_config):
    null = torch.full((8,), 10)
    for share in (True, False):
        _, objective, _, batch = assemble(make_config, {"level": "internal", "share_label_drop": share})
        same = torch.equal(
            objective.foresight.source(batch, null), objective.foresight.source(batch, batch.labels)
        )
        assert same != share


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


def test_target_norms_by_hand():
    x = torch.tensor([[[1.0, 3.0]], [[5.0, 1.0]]])
    assert torch.equal(TARGET_NORMS["center"](x), torch.tensor([[[-2.0, 1.0]], [[2.0, -1.0]]]))
    np.testing.assert_allclose(TARGET_NORMS["layer_norm"](x).numpy(), [[[-1, 1]], [[1, -1]]], atol=1e-4)
