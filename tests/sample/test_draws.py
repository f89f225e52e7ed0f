"""Random draws: distributions, cuts, guidance, and the class of each sample."""

import pytest
import torch
from scipy.stats import chisquare

from mirai_bench.config.protocol import Protocol
from mirai_bench.sample.draws import draw, draw_classes, guide, restrict, uniforms


def protocol(**fields) -> Protocol:
    return Protocol(name="test", num_samples=10, **fields)


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0])
    uniform = torch.from_numpy(uniforms(0, 0, 0, 20_000))
    counts = torch.bincount(draw(logits.expand(20_000, 4), uniform), minlength=4).numpy()
    assert (
        chisquare(
            counts, 20_000 * logits.softmax(-1).double().numpy() / logits.softmax(-1).double().sum().item()
        ).pvalue
        > 0.01
    )


def test_a_draw_never_takes_a_code_that_was_cut_off():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).expand(3, 4)
    assert draw(logits, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist() == [0, 2, 2]


@pytest.mark.parametrize("vocabulary", [1, 7, 96, 384])
def test_draws_invert_the_cumulative_distribution(vocabulary):
    logits = torch.randn(500, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    uniform = torch.from_numpy(uniforms(0, 0, 0, 500))
    ends = logits.double().softmax(-1).cumsum(-1)
    assert torch.equal(draw(logits, uniform), (ends[:, :-1] <= uniform[:, None]).sum(-1))


def test_the_ends_of_the_distribution_are_codes_that_can_be_drawn():
    logits = torch.full((2, 384), -torch.inf)
    logits[:, [130, 200]] = 0.0  # the blocks before and after this one are cut off
    assert draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [130, 200]


def test_logits_that_are_nan_draw_some_code():
    codes = draw(torch.full((2, 384), torch.nan), torch.tensor([0.0, 0.9], dtype=torch.float64))
    assert codes.min() >= 0 and codes.max() < 384, (
        "the next step would look up an embedding that is not there"
    )


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    kept = lambda *cut: (restrict(logits, *cut) > -torch.inf)[0].tolist()  # noqa: E731
    assert kept(0, 1.0) == [True] * 4
    assert kept(2, 1.0) == [False, False, True, True]
    assert kept(0, 0.65) == [False, False, True, True]  # 0.4 < 0.65 <= 0.4 + 0.3
    assert kept(0, 0.75) == [False, True, True, True]
    assert kept(0, 0.01) == [False, False, False, True]
    assert kept(1, 1.0) == [False, False, False, True]


def test_guidance_by_hand_and_scale_one_is_none():
    both = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    assert torch.equal(guide(both, 2.0), torch.tensor([[2.0, 0.0]]))
    assert torch.equal(guide(both, 1.0), both[:1])


def test_class_rules_depend_on_the_index_alone():
    assert draw_classes(protocol(), 0, range(5), 3).tolist() == [0, 1, 2, 0, 1]
    uniform = protocol(class_rule="uniform")
    classes = draw_classes(uniform, 0, range(3000), 3)
    assert torch.equal(draw_classes(uniform, 0, [7, 2900], 3), classes[[7, 2900]])
    assert chisquare(torch.bincount(classes).numpy()).pvalue > 0.01
