"""MTAR's head: which token it predicts, and what a linear head costs."""

import math

import pytest
import torch
import torch.nn.functional as F

from mirai_bench.regularizer.regularizer import Moment, Prepared, Reading
from tests.support.objectives import assemble


def built(make_config, **fields):
    return assemble(make_config, {"level": "none"}, regularizer={"name": "mtar"} | fields)


def test_a_linear_head_predicts_the_token_below_by_hand(make_config):
    _, objective, _, batch = built(make_config, blocks=0)
    head = objective.regularizer
    torch.nn.init.normal_(head.output.weight, generator=torch.Generator().manual_seed(0))
    reading = objective.regularizer.read(objective.model, Prepared(batch), batch.labels, ())
    loss = head.loss(objective.model, reading, Prepared(batch), batch.labels)
    logits = head.output(reading.final)[:, :56].flatten(0, 1)  # 8x8 cells, the last row has none below
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.tokens[:, 8:].flatten()))


def test_it_starts_at_log_v_and_its_blocks_are_causal(make_config):
    _, objective, _, batch = built(make_config)
    head = objective.regularizer
    reading = head.read(objective.model, Prepared(batch), batch.labels, ())
    loss = head.loss(objective.model, reading, Prepared(batch), batch.labels)
    assert loss.item() == pytest.approx(math.log(17), rel=1e-5)
    # The head's output at state 20 alone, made by targets that matter there only.
    torch.nn.init.normal_(head.output.weight, generator=torch.Generator().manual_seed(0))
    final = reading.final.detach().requires_grad_()
    x = final[:, :56]
    for block in head.layers:
        x = block(x, objective.model.rope[:56])
    x[:, 20].sum().backward()
    assert final.grad[:, :21].abs().max() > 0 and not final.grad[:, 21:].any()


def test_the_loss_of_the_head_reaches_the_whole_generator(make_config):
    _, objective, _, batch = built(make_config)
    torch.nn.init.normal_(objective.regularizer.output.weight)
    extra = objective(batch, batch.labels, None, (), torch.tensor(1.0))[3]
    extra.backward()
    assert objective.model.tok_embeddings.weight.grad.abs().max() > 0
    assert objective.model.output.weight.grad is None


def test_reading_is_that_of_the_base_class(make_config):
    _, objective, _, batch = built(make_config)
    prepared = objective.regularizer.prepare(batch, Moment(0, 0, 0.0, 0, 1))
    assert prepared == Prepared(batch)
    assert isinstance(objective.regularizer.read(objective.model, prepared, batch.labels, ()), Reading)
