"""What holds for every regularizer: nothing leaks, teachers stay as they are, runs resume bit for bit."""

from typing import get_args

import pytest
import torch

from mirai_bench.config.regularizer import RegularizerConfig
from mirai_bench.data.batch import Batch
from mirai_bench.data.codes import open_codes
from mirai_bench.model.regularizer_cost import COSTS
from mirai_bench.regularizer.registry import REGULARIZERS
from mirai_bench.regularizer.regularizer import Moment
from tests.support.objectives import assemble, eager_and_captured
from tests.support.small_run import new_trainer, resumed

VARIANTS = [
    {"name": "dispersive", "group": 4},
    {"name": "dispersive", "group": 8, "distance": "sum", "self_pairs": False, "layer": 3},
    {"name": "iar"},
    {"name": "iar", "clusters": 5, "weight": 0.5},
    {"name": "rear"},
    {"name": "rear", "weight": 0},
    {"name": "rear", "noise_until": 0, "shallow": 1, "deep": 3, "hidden": 8},
    {"name": "mtar"},
    {"name": "mtar", "blocks": 0, "weight": 1.0},
    {"name": "st-ar", "step": 0, "view": 0},
    {"name": "st-ar", "view": 0, "group": 4},
    {"name": "st-ar", "weight": 0},
    {"name": "npp"},
    {"name": "npp", "patch": 1},
]
MOMENT = Moment(seed=0, step=3, progress=0.25, rank=0, world=1)
HALF = torch.tensor(0.5)


def names(variant):
    return "-".join(str(value) for value in variant.values())


every = pytest.mark.parametrize("variant", VARIANTS, ids=names)


def built(make_config, variant, **foresight):
    return assemble(make_config, foresight or {"level": "none"}, regularizer=variant)


def test_dictionaries_and_config_name_the_same_regularizers():
    sections = get_args(get_args(RegularizerConfig)[0])
    named = {get_args(section.model_fields["name"].annotation)[0] for section in sections}
    assert named == set(REGULARIZERS) == set(COSTS)
    assert named - {"none"} == {variant["name"] for variant in VARIANTS}


@every
def test_no_regularizer_lets_a_logit_see_a_token_it_has_not_consumed(make_config, variant):
    """Neither in the model that samples, nor in the states that are trained."""
    _, objective, _, batch = built(make_config, variant)
    regularizer = objective.regularizer
    others = (batch.labels, batch.index, batch.view)
    changed = batch.tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 17
    finals = []
    for tokens in (batch.tokens, changed):
        # What is drawn is the same.
        prepared = regularizer.prepare(Batch(tokens, *others), MOMENT)
        torch.manual_seed(0)
        with torch.no_grad():
            reading = regularizer.read(objective.model, prepared, batch.labels, ())
            finals.append((reading.final, objective.model(tokens, batch.labels).logits))
    (trained, sampled), (other_trained, other_sampled) = finals
    assert torch.equal(sampled[:, :21], other_sampled[:, :21])
    # Cell 20 of 8x8, in row 2 and column 4, is in patch 6 of 4x4.
    first = 21 if trained.shape[1] == 64 else 7
    assert torch.equal(trained[:, :first], other_trained[:, :first])
    assert not torch.equal(trained[:, first], other_trained[:, first])


@every
def test_the_teacher_gets_no_gradient_and_all_heads_do(make_config, variant):
    _, objective, teacher, batch = built(make_config, variant)
    for parameter in objective.regularizer.parameters():
        if parameter.dim() == 2 and not parameter.any():  # an output head starts at zero
            torch.nn.init.normal_(parameter, std=0.1)
    prepared = objective.regularizer.prepare(batch, MOMENT)
    penalty = HALF if objective.regularizer.weight else None
    loss, ntp, foresight, extra = objective(
        prepared.batch, prepared.batch.labels, None, prepared.extra, penalty
    )
    assert foresight == 0 and loss.item() == pytest.approx(ntp.item() + 0.5 * extra.item(), rel=1e-6)
    assert (extra == 0) == (penalty is None)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad.abs().max() > 0 for p in objective.regularizer.parameters())
    assert objective.model.layers[0].attention.wqkv.weight.grad.abs().max() > 0
    assert torch.isfinite(loss)


@every
def test_a_run_that_resumes_equals_one_that_does_not(make_config, variant):
    config = make_config(regularizer=variant)
    whole, second, values = resumed(config)
    weights = second.student_weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.student_weights().items())
    assert all(
        torch.equal(a, b) for a, b in zip(whole.ema.parameters(), second.ema.parameters(), strict=True)
    )
    assert float(values["regularizer_weight"]) == second.regularizer.weight


@every
def test_micro_batches_give_the_same_update(make_config, variant):
    no_dropout = {"token_dropout": 0, "residual_dropout": 0, "ffn_dropout": 0}
    trainers = [
        new_trainer(make_config(model=no_dropout, regularizer=variant, machine={"micro_batches": parts}))
        for parts in (1, 2)
    ]
    for step in range(3):
        for trainer in trainers:
            trainer.step(step)
    one, two = (trainer.objective.parameters() for trainer in trainers)
    for whole, parts in zip(one, two, strict=True):
        torch.testing.assert_close(whole, parts, atol=3e-4, rtol=1e-3)


@every
def test_two_processes_draw_what_one_draws(make_config, variant):
    config, objective, _, _ = built(make_config, variant)
    codes = open_codes(config, "train", torch.device("cpu"))
    prepared = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        batch = codes.batch(seed=0, step=3, rank=rank, world=world, batch_size=16)
        prepared.append(objective.regularizer.prepare(batch, Moment(0, 3, 0.25, rank, world)))
    whole, *halves = prepared
    assert torch.equal(whole.batch.tokens, torch.cat([half.batch.tokens for half in halves]))
    for one, *two in zip(whole.extra, *(half.extra for half in halves), strict=True):
        assert torch.equal(one, torch.cat(two))


@every
def test_a_step_is_one_graph(make_config, variant):
    """There is no graph break. The eager backend captures the graph and compiles nothing."""
    _, objective, _, batch = built(make_config, variant)
    prepared = objective.regularizer.prepare(batch, MOMENT)
    penalty = HALF if objective.regularizer.weight else None
    inputs = (prepared.batch, prepared.batch.labels, None, prepared.extra, penalty)
    eager, captured = eager_and_captured(objective, *inputs)
    assert captured == pytest.approx(eager, rel=1e-5)


# What a regularizer changes besides its loss, switched off.
UNCHANGED = [
    {"name": "dispersive"},
    {"name": "iar"},
    {"name": "rear", "noise_until": 0},
    {"name": "mtar"},
    {"name": "st-ar", "mask_ratio": 0},
]


@pytest.mark.parametrize("variant", UNCHANGED, ids=names)
def test_weight_0_is_the_baseline_bit_for_bit(make_config, variant):
    dropout = {"token_dropout": 0.1, "ffn_dropout": 0.1}  # whose draws nothing may shift
    baseline = new_trainer(make_config(model=dropout))
    other = new_trainer(make_config(model=dropout, regularizer=variant | {"weight": 0}))
    for step in range(3):
        losses = [trainer.step(step)["loss"] for trainer in (baseline, other)]
        assert torch.equal(*losses)
    weights = other.student_weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in baseline.student_weights().items())
    assert weights.keys() == baseline.student_weights().keys()  # no heads without a loss


@every
def test_every_regularizer_starts_from_the_same_model(make_config, variant):
    ours = new_trainer(make_config(regularizer=variant)).model.state_dict()
    plain = new_trainer(make_config()).model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in plain.items())


def test_none_is_not_in_the_fingerprint(make_config):
    plain = make_config()
    assert "regularizer" not in plain.identity()
    assert plain.fingerprint() == make_config(regularizer={"name": "none"}).fingerprint()
    prints = {make_config(regularizer=variant).fingerprint() for variant in VARIANTS}
    assert len(prints | {plain.fingerprint()}) == len(VARIANTS) + 1
