"""Schedules of λ and of the learning rate, the groups of the optimizer, and the EMA."""

import pytest
import torch

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.run_config import TrainConfig
from mirai_bench.train.optim import (
    SCHEDULES,
    build_optimizer,
    clone_as_ema,
    foresight_can_be_off,
    foresight_weight,
    learning_rate,
    update_ema,
)


def weights(**fields):
    config = ForesightConfig(level="internal", **fields)
    return [foresight_weight(config, i / 10) for i in range(10)]


def test_lambda_schedules_by_hand():
    assert weights() == [2.0] * 10
    assert weights(schedule="step") == [2.0] * 5 + [1.0] * 5
    assert weights(warmup=0.25) == [0, 0, 0] + [2.0] * 7
    assert weights(schedule="linear", final_weight=0) == pytest.approx([2 * (1 - i / 10) for i in range(10)])
    assert weights(schedule="cosine")[5] == pytest.approx(1.5)
    two = weights(schedule="two_steps", final_weight=0.5)
    assert two == [2.0] * 5 + [1.0] * 3 + [0.5] * 2
    late = {"schedule": "two_steps", "step_at": 0.2, "middle_weight": 3.0, "second_step_at": 0.2}
    assert weights(**late) == [2.0] * 2 + [1.0] * 8, "of two steps at once the second one counts"
    assert foresight_weight(ForesightConfig(level="none"), 0.5) == 0


def test_linear_runs_from_the_end_of_the_warmup():
    config = ForesightConfig(level="internal", schedule="linear", final_weight=0, warmup=0.5)
    assert foresight_weight(config, 0.5) == 2 and foresight_weight(config, 0.75) == pytest.approx(1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_from_start_to_end(name):
    assert SCHEDULES[name](3.0, 1.0, 0.0) == pytest.approx(3)
    assert SCHEDULES[name](3.0, 1.0, 1.0) == pytest.approx(3 if name == "constant" else 1)


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(epochs=1, batch_size=1, lr=1.0, lr_schedule="linear", lr_warmup=0.2)
    assert [learning_rate(config, p, 0.1) for p in (0, 0.1, 0.2, 0.6)] == pytest.approx([0.5, 1, 1, 0.5])


def test_weight_decay_is_on_matrices_alone():
    from mirai_bench.config.model_config import ModelConfig
    from mirai_bench.config.projector import ProjectorConfig
    from mirai_bench.foresight.projector import Projector
    from mirai_bench.model.transformer import ARModel

    modules = torch.nn.ModuleList(
        [ARModel(ModelConfig(size="nano"), 7, 3, (2, 2)), Projector(ProjectorConfig(hidden=8), 2, 64, 64)]
    )
    decayed, plain = build_optimizer(TrainConfig(epochs=1, batch_size=1), modules.parameters()).param_groups
    names = {id(p): name for name, p in modules.named_parameters()}
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0
    assert all("norm" in names[id(p)] or "biases" in names[id(p)] for p in plain["params"])
    assert not any("norm" in names[id(p)] or "biases" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_ema_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    ema = clone_as_ema(model)
    before = ema.weight.clone()
    with torch.no_grad():
        model.weight += 1
    update_ema(ema, model, 0.9)
    assert torch.allclose(ema.weight, before + 0.1) and not ema.weight.requires_grad


@pytest.mark.parametrize(
    ("foresight", "rests"),
    [
        ({"level": "none", "warmup": 0.5}, False),
        ({"level": "internal"}, False),
        ({"level": "internal", "warmup": 0.1}, True),
        ({"level": "internal", "schedule": "linear", "final_weight": 0}, False),
        ({"level": "output", "k": 2, "schedule": "step", "final_weight": 0}, True),
        ({"level": "internal", "schedule": "two_steps", "final_weight": 0}, True),
        ({"level": "internal", "schedule": "two_steps", "final_weight": 0.5}, False),
        ({"level": "internal", "schedule": "two_steps", "middle_weight": 0}, True),
        ({"level": "internal", "schedule": "step", "weight": 0}, True),
        ({"level": "internal", "schedule": "linear", "weight": 0}, True),
        ({"level": "internal", "weight": 0}, True),
    ],
)
def test_when_heads_have_no_gradient_is_known_beforehand(make_config, foresight, rests):
    """Data-parallel training has to know whether a step may leave parameters out.

    Looking for them costs time, so it is done only if it is needed.
    """
    config = make_config(foresight=foresight).foresight
    assert foresight_can_be_off(config) is rests
    weights = [foresight_weight(config, step / 100) for step in range(100)]
    assert (config.level != "none" and 0 in weights) is rests
