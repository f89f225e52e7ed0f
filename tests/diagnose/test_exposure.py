"""The exposure gap, of models whose distribution is written down."""

import math
from dataclasses import replace

import pytest
import torch

from mirai_bench.config.model_config import ModelConfig
from mirai_bench.data.batch import Batch
from mirai_bench.diagnose.exposure import entropy_and_loss, gaps_by_length, measure, sampled
from mirai_bench.model.transformer import ARModel

CODES = 4
GRID = (4, 4)
TOKENS = 16
IMAGES = 400


def markov(first, chain):
    """A model that draws the first token from `first` (V,), and each next one from the row of the last."""
    config = ModelConfig(size="nano", depth=1, width=8, heads=2)
    model = ARModel(config, CODES, 1, GRID).requires_grad_(False)
    for parameter in model.layers.parameters():
        parameter.zero_()  # the block passes its input on
    inputs = torch.eye(8)
    model.cls_embedding.embedding_table.weight[:] = inputs[CODES]
    model.tok_embeddings.weight[:] = inputs[:CODES]
    # The norm makes each input √8 long.
    rows = torch.cat([chain, first[None]]).log().T / math.sqrt(8)  # (V, V + 1)
    model.output.weight.zero_()
    model.output.weight[:, : CODES + 1] = rows
    return model


def batch(tokens):
    count = len(tokens)
    return Batch(tokens, torch.zeros(count, dtype=torch.long), torch.arange(count), torch.zeros(count).long())


def gaps(model, real):
    own, _ = entropy_and_loss(model, batch(sampled(model, real.labels, 0)))
    of_real, _ = entropy_and_loss(model, real)
    return [gap.mean().item() for gap in gaps_by_length(own, of_real)]


EVEN = torch.full((CODES,), 1 / CODES)
SHARP = torch.tensor([0.7, 0.1, 0.1, 0.1])


def test_the_entropy_is_that_of_the_chain():
    chain = torch.stack([EVEN, SHARP, SHARP, EVEN])
    tokens = torch.tensor([[0, 1, 2, 3] * 4])
    entropy, loss = entropy_and_loss(markov(SHARP, chain), batch(tokens))
    sharp = -(SHARP * SHARP.log2()).sum().item()
    # After nothing, 0, 1, 2, 3, 0 …
    assert entropy[0, :6].tolist() == pytest.approx([sharp, 2, sharp, sharp, 2, 2], abs=1e-3)
    expected = [-math.log2(0.7), 2, -math.log2(0.1), -math.log2(0.1)]
    assert loss[0, :4].tolist() == pytest.approx(expected, abs=1e-3)


def test_a_model_that_ignores_its_prefix_has_no_gap():
    model = markov(SHARP, SHARP.expand(CODES, -1))
    # The data are other than what it samples.
    real = torch.randint(0, CODES, (IMAGES, TOKENS), generator=torch.Generator().manual_seed(0))
    assert gaps(model, batch(real)) == pytest.approx([0] * 8, abs=1e-6)


def test_a_model_of_the_data_has_no_gap():
    chain = torch.stack([SHARP, SHARP.roll(1), EVEN, EVEN])
    model = markov(EVEN, chain)
    real = sampled(model, torch.zeros(IMAGES, dtype=torch.long), 1)
    assert gaps(model, batch(real)) == pytest.approx([0] * 8, abs=0.08)


def test_an_error_that_is_never_seen_in_the_data_adds_up():
    # The data has the codes 0 … 2. The model draws code 3 with 5 %, and is lost from there on.
    good = torch.tensor([0.9, 0.03, 0.02, 0.05])
    chain = torch.stack([good, good, good, EVEN])
    model = markov(good, chain)
    real = batch(torch.zeros(IMAGES, TOKENS, dtype=torch.long))
    found = gaps(model, real)
    surprise = 2 - -(good * good.log2()).sum().item()
    lost = [0.0]  # the probability that the last token is code 3, after s tokens
    for _ in range(TOKENS - 1):
        lost.append(lost[-1] / 4 + (1 - lost[-1]) * 0.05)
    expected = [surprise * (lost[2 * n] + lost[2 * n + 1]) / 2 for n in range(8)]
    assert found == pytest.approx(expected, abs=0.03)
    assert found[7] > found[0] > 0


def test_samples_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch):
    model = markov(EVEN, torch.stack([SHARP, SHARP.roll(1), EVEN, EVEN]))
    labels = torch.zeros(30, dtype=torch.long)
    together = sampled(model, labels, 5)
    assert not torch.equal(together, sampled(model, labels, 6))
    monkeypatch.setattr("mirai_bench.diagnose.exposure.BATCH", 7)
    assert torch.equal(together, sampled(model, labels, 5))


def test_the_finding_has_a_gap_for_each_eighth_and_its_error(subject):
    values, detail = measure(subject)
    numbers = [values[f"gap_{n}"] for n in range(1, 9)]
    assert values["gap"] == pytest.approx(sum(numbers) / 8)
    tokens = subject.config.num_tokens
    assert len(detail["own"]) == len(detail["real"]) == len(detail["loss"]) == tokens
    own, real = torch.tensor(detail["own"]), torch.tensor(detail["real"])
    assert values["gap_8"] == pytest.approx((own - real)[-tokens // 8 :].mean().item(), abs=1e-5)
    assert len(detail["error"]) == 8
    samples = sampled(subject.model, subject.heldout.labels, subject.scope.seed)
    entropy, _ = entropy_and_loss(subject.model, replace(subject.heldout, tokens=samples))
    assert detail["own"] == pytest.approx(entropy.mean(0).tolist(), abs=1e-6)
    assert detail["own"] != detail["real"]
    # State 0 has seen no prefix.
    assert own[0].item() == pytest.approx(real[0].item(), abs=1e-6)
