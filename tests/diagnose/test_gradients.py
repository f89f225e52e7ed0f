"""Gradient interference, with foresight whose gradient is planted."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mirai_bench.diagnose.gradients import (
    drawn_batches,
    gram_matrices,
    half_gradients,
    halves_of,
    measure,
    mixture_of,
    norm,
    shared_parameters,
    summary,
)
from tests.diagnose.conftest import subject_of


class Planted:
    """A level whose heads have given gradients, whatever the batch."""

    tap = 1

    def __init__(self, groups, heads, reduce="mean"):
        self.parameters = [parameter for group in groups for parameter in group]
        self.heads = heads  # [K][parameters]
        self.valid = torch.ones(4, len(heads), dtype=torch.bool)
        self.config = SimpleNamespace(reduce=reduce)

    def losses(self, states, batch, labels):
        """A linear function has its coefficients as its gradient."""
        pairs = [zip(of_head, self.parameters, strict=True) for of_head in self.heads]
        return torch.stack([sum((g * p).sum() for g, p in of_head) for of_head in pairs])


@pytest.fixture
def planted(subject):
    """Measures foresight whose heads are multiples (parallel, orthogonal) of NTP's gradient."""
    model = subject.objective.model
    groups = shared_parameters(subject.objective, 1)
    (batch,) = drawn_batches(subject)[:1]
    size = len(batch.tokens)
    rows = [half_gradients(model, None, groups, half) for half in halves_of(batch, size // 2)]
    generator = torch.Generator().manual_seed(0)

    def heads(*multiples):
        found = []
        for along, across in multiples:
            of_head = []
            for group, first, second in zip(groups, *rows, strict=True):
                ntp = ((first + second) / 2)[0]
                noise = torch.randn(ntp.shape, generator=generator)
                noise = noise - (noise @ ntp) / (ntp @ ntp) * ntp
                gradient = along * ntp + across * noise / noise.norm() * ntp.norm()
                parts = gradient.split([parameter.numel() for parameter in group])
                of_head += [part.view_as(p) for part, p in zip(parts, group, strict=True)]
            found.append(of_head)
        return found

    def measured(*multiples, weight=1.0, reduce="mean"):
        level = Planted(groups, heads(*multiples), reduce)
        grams, pooled = gram_matrices(model, level, groups, [batch])
        return summary(grams, pooled, mixture_of(level, weight, size))

    return measured


@pytest.mark.parametrize(
    ("multiples", "cosine"), [((2, 0), 1), ((0, 1), 0), ((-1, 0), -1), ((1, 1), 0.5**0.5)]
)
def test_the_cosine_of_a_planted_gradient_is_found_in_each_block(planted, multiples, cosine):
    values, detail = planted(multiples, weight=0.5)
    size = math.hypot(*multiples) / 2
    for block in ("@0", "@1", ""):
        assert values[f"cos{block}"] == pytest.approx(cosine, abs=1e-4)
        if cosine != 0:  # of an orthogonal one rounding decides
            assert values[f"negative{block}"] == (cosine < 0)
        assert values[f"ratio{block}"] == pytest.approx(size, rel=1e-4)
        assert values[f"magnitude{block}"] == pytest.approx(2 * size / (1 + size**2), rel=1e-4)
    assert detail["cosines"] == [pytest.approx([cosine, cosine], abs=1e-4)]
    # What is the same on both halves can agree with a half as far as that agrees with both.
    assert values["cross"] == pytest.approx(cosine * ((1 + values["ceiling"]) / 2) ** 0.5, abs=0.05)


def test_noise_that_two_losses_share_is_no_agreement():
    # Each half's foresight follows what is special about the images of that half.
    first, second = torch.eye(2)
    rows = torch.stack([first, first, second, second])  # NTP and foresight of either half
    level = SimpleNamespace(valid=torch.ones(4, 1, dtype=torch.bool), config=SimpleNamespace(reduce="mean"))
    grams = (rows @ rows.T).double()[None, None]
    values, _ = summary(grams, grams[0], mixture_of(level, 1.0, 8))
    assert values["cos"] == pytest.approx(1)
    assert values["cross"] == values["pooled_cross"] == values["ceiling"] == 0


def test_heads_are_told_apart(planted):
    values, detail = planted((1, 0), (-1, 0), (0, 1))
    assert [head[1] for head in detail["heads"]] == pytest.approx([1, -1, 0], abs=1e-4)
    assert values["between_heads"] == pytest.approx(-1 / 3, abs=1e-4)
    assert values["ratio"] == pytest.approx(1 / 3, rel=1e-4)  # the first two cancel, and the mean is of three
    summed, _ = planted((1, 0), (-1, 0), (0, 1), reduce="sum")
    assert summed["ratio"] == pytest.approx(1, rel=1e-4)
    alone, detail = planted((1, 0))
    assert "between_heads" not in alone
    assert detail["between_heads"] == []


def test_the_ceiling_of_identical_halves_is_one(subject):
    groups = shared_parameters(subject.objective, None)
    batch = drawn_batches(subject)[0]
    twice = subject.heldout_codes.images(batch.index[:4].repeat(2))
    mixture = mixture_of(None, 0.0, 8)
    values, _ = summary(*gram_matrices(subject.objective.model, None, groups, [twice]), mixture)
    assert values["ceiling"] == pytest.approx(1, abs=1e-5)
    assert values["pooled_ceiling@2"] == pytest.approx(1, abs=1e-5)
    values, _ = summary(*gram_matrices(subject.objective.model, None, groups, [batch]), mixture)
    assert values["ceiling"] < 0.95


def test_the_parts_add_up_to_the_gradient_of_the_training_step(subject):
    objective = subject.objective
    for block in objective.model.layers:
        block.ffn_dropout = 0.0
    batch = drawn_batches(subject)[0]
    groups = shared_parameters(objective, 1)
    weight = torch.tensor(3.0)
    objective(batch, batch.labels, weight)[0].backward()
    grams, _ = gram_matrices(objective.model, objective.foresight, groups, [batch])
    mixture = mixture_of(objective.foresight, 3.0, len(batch.tokens))
    found = norm(grams[0], (mixture.ntp + mixture.foresight).sum(0))
    expected = [torch.cat([p.grad.flatten() for p in group]).norm() for group in groups]
    assert found.tolist() == pytest.approx([value.item() for value in expected], rel=1e-4)


def test_large_batches_are_computed_in_parts(subject, monkeypatch):
    objective = subject.objective
    groups = shared_parameters(objective, 1)
    half = subject.heldout_codes.images(torch.arange(11))
    whole = half_gradients(objective.model, objective.foresight, groups, half)
    monkeypatch.setattr("mirai_bench.diagnose.gradients.PART", 4)
    parts = half_gradients(objective.model, objective.foresight, groups, half)
    for of_parts, at_once in zip(parts, whole, strict=True):
        assert torch.allclose(of_parts, at_once, atol=1e-6)


def test_what_is_shared_follows_from_the_level(subject, make_config):
    values, detail = measure(subject)
    blocks = {key.partition("@")[2] for key in values if key.startswith("cos@")}
    assert blocks == {"0", "1"}  # the fixture aligns block 1 of 3
    assert len(detail["cosines"]) == 16
    assert len(detail["heads"]) == 3
    # λ is 0 at this time, as it always is in a baseline.
    foresight = subject.config.foresight.model_copy(update={"warmup": 0.9})
    off = replace(subject, config=subject.config.model_copy(update={"foresight": foresight}))
    off.snapshot = replace(subject.snapshot, step=3)
    values, detail = measure(off)
    assert {key.partition("@")[0] for key in values} == {"ceiling", "pooled_ceiling"}
    assert detail == {"cosines": [], "heads": [], "between_heads": []}


def test_output_heads_share_every_block(make_config, subject):
    foresight = subject.config.foresight.model_copy(update={"level": "output", "layout": "raster_1d"})
    other = replace(subject, config=subject.config.model_copy(update={"foresight": foresight}))
    heads = {f"foresight.{name}": value for name, value in new_heads(other).items()}
    model = {k: v for k, v in subject.snapshot.student.items() if not k.startswith("foresight.")}
    other.snapshot = replace(subject.snapshot, student=model | heads)
    values, detail = measure(other)
    assert {key for key in values if key.startswith("cos")} == {"cos", "cos@0", "cos@1", "cos@2", "cos@3"}
    assert len(detail["heads"]) == 2


def new_heads(subject):
    shape = (subject.config.foresight.k - 1, subject.config.tokenizer.vocabulary, subject.config.model.width)
    return {"heads": torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02}


def test_batches_are_drawn_once_each(subject, mirai_e):
    batches = drawn_batches(subject)
    index = torch.cat([batch.index for batch in batches])
    assert len(index.unique()) == len(index) == 16 * mirai_e.train.batch_size
    again = drawn_batches(subject_of(mirai_e))
    assert torch.equal(index, torch.cat([batch.index for batch in again]))
