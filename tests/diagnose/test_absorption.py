"""Head absorption, with heads whose advantage over a linear map is known."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mirai_bench.diagnose.absorption import Pairs, applied, compared, cosine, fit_ridge, measure, pairs_of
from mirai_bench.foresight.loss import cosine_loss, pool

STATES = 5
WIDTH = 6
MAP = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))


def signs(images, seed):
    """States (N, T, D) of independent signs, off the origin."""
    drawn = torch.randint(0, 2, (images, STATES, WIDTH), generator=torch.Generator().manual_seed(seed))
    return drawn * 2.0 - 1 + torch.arange(WIDTH)


def linear(states):
    return states @ MAP + 1


def exclusive_or(states):
    """A target that no linear map tells: ±(1, …, 1), by whether two signs differ."""
    centred = states - torch.arange(WIDTH)
    return (centred[..., :1] * centred[..., 1:2]).expand(states.shape)


def level_of(*functions):
    """Head k of state s looks at feature s + 1, which the last state has not."""
    index = (torch.arange(STATES) + 1)[:, None].repeat(1, len(functions)).clamp(max=STATES - 1)
    valid = (torch.arange(STATES) < STATES - 1)[:, None].repeat(1, len(functions))
    return SimpleNamespace(
        index=index, valid=valid, projector=lambda states: torch.stack([f(states) for f in functions])
    )


def pairs(function, images, seed):
    states = signs(images, seed)
    return Pairs(states, F.normalize(function(states).roll(1, 1), dim=-1))


def test_a_linear_head_has_no_advantage():
    # The target is a linear map's up to its length, which a map cannot give exactly.
    finding = compared(level_of(linear), pairs(linear, 200, 1), pairs(linear, 50, 2))
    assert finding.values["head"] == pytest.approx(1, abs=1e-5)
    assert finding.values["ridge"] == pytest.approx(1, abs=0.02)
    assert finding.values["identity"] < 0.9
    assert finding.values["absorbed"] == pytest.approx(finding.values["head"] - finding.values["ridge"])


def test_a_head_that_solves_what_no_linear_map_can_has_all_the_advantage():
    finding = compared(level_of(exclusive_or), pairs(exclusive_or, 400, 1), pairs(exclusive_or, 400, 2))
    assert finding.values["head"] == pytest.approx(1, abs=1e-5)
    assert finding.values["ridge"] == pytest.approx(0, abs=0.1)
    assert finding.values["absorbed"] == pytest.approx(1, abs=0.1)


def test_heads_are_averaged_and_told_apart():
    fit, heldout = pairs(linear, 200, 1), pairs(linear, 50, 2)
    both = compared(level_of(linear, lambda states: -linear(states)), fit, heldout)
    assert both.detail["head"] == pytest.approx([1, -1], abs=1e-5)
    assert both.values["head"] == pytest.approx(0, abs=1e-5)
    assert both.detail["ridge"][0] == both.detail["ridge"][1]
    assert len(both.detail["strengths"]) == 2


def test_a_head_without_pairs_is_left_out():
    level = level_of(linear, linear)
    level.valid[:, 1] = False
    finding = compared(level, pairs(linear, 200, 1), pairs(linear, 50, 2))
    assert len(finding.detail["head"]) == len(finding.detail["ridge"]) == 1
    assert finding.values["head"] == pytest.approx(1, abs=1e-5)


def test_the_ridge_map_is_exact_for_a_linear_one_and_strong_for_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 20, generator=generator) + 5
    y = x @ torch.randn(20, 4, generator=generator) - 2
    found = fit_ridge(x, y, 200)
    assert found.strength <= 1e-4
    assert torch.allclose(applied(found, x), y, atol=1e-3)
    # Four directions tell of the target, and 16 of nothing: with 25 rows a strong ridge is better.
    y = x[:, :4] - 5 + 3 * torch.randn(300, 4, generator=generator)
    assert fit_ridge(x, y, 25).strength >= 0.1


def test_the_alignment_is_that_of_the_training_loss(subject):
    finding = measure(subject)
    level = subject.objective.foresight
    images = subject.heldout
    states = subject.objective.model.states(images.tokens, images.labels, level.tap)
    with torch.no_grad():
        features = level.source(images, images.labels)
        losses = cosine_loss(level.projector(states), features, level.index, level.valid)
    assert finding.detail["head"] == pytest.approx((1 - losses).tolist(), abs=1e-5)
    assert finding.values["head"] == pytest.approx((1 - losses).mean().item(), abs=1e-5)
    # Head 0 of Mirai-E looks at the state's own cell, so that the teacher's state is nearly its own.
    index = level.index[:, 0].tolist()
    assert index[1:] == list(range(1, len(index)))
    own = cosine(states[:, 1:].flatten(0, 1), features[:, 1:].flatten(0, 1))
    assert finding.detail["identity"][0] == pytest.approx(own, abs=1e-5)


def test_pooled_targets_are_those_of_the_training_loss(subject):
    level = subject.objective.foresight
    before = pairs_of(subject.objective, subject.heldout).targets
    level.config = level.config.model_copy(update={"pooled": True})
    level.pooled_index, level.pooled_valid = level.index, level.valid
    images = subject.heldout
    expected = pool(level.source(images, images.labels), level.index, level.valid)
    found = pairs_of(subject.objective, images).targets
    assert torch.allclose(found, F.normalize(expected, dim=-1), atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-5)
