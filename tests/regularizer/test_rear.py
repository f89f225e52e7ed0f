"""reAR: how much noise there is and where, and which vector each state is mapped to."""

import pytest
import torch

from mirai_bench.regularizer.regularizer import Moment, Reading
from tests.support.objectives import assemble


class Copies(torch.nn.Module):
    """A head whose output is its input."""

    def forward(self, states):
        return states[None]


def noisy_share(regularizer, batch, progress, step=0):
    prepared = regularizer.prepare(batch, Moment(0, step, progress, 0, 1))
    read = prepared.extra[0] if prepared.extra else batch.tokens
    assert torch.equal(prepared.batch.tokens, batch.tokens), "targets stay as they are"
    return (read != batch.tokens).float().mean(1)


def test_the_noise_falls_to_zero_and_differs_between_images(make_config):
    _, objective, _, batch = assemble(make_config, {"level": "none"}, regularizer={"name": "rear"})
    rear = objective.regularizer
    shares = {
        progress: torch.cat([noisy_share(rear, batch, progress, step) for step in range(40)])
        for progress in (0.0, 0.375, 0.75, 1.0)
    }
    # Of 17 codes one is the token itself. The probability is uniform from 0 to the bound.
    assert shares[0.0].mean() == pytest.approx(0.5 * 16 / 17, abs=0.05)
    assert shares[0.375].mean() == pytest.approx(0.25 * 16 / 17, abs=0.03)
    assert shares[0.0].std() == pytest.approx(12**-0.5, abs=0.05), "drawn for each image"
    assert shares[0.75].max() == shares[1.0].max() == 0


def test_which_vector_a_state_is_mapped_to_by_hand(make_config):
    """With heads that copy, the loss is that of states that hold the vectors themselves."""
    variant = {"name": "rear", "noise_until": 0}
    _, objective, _, batch = assemble(make_config, {"level": "none"}, regularizer=variant)
    rear = objective.regularizer
    vectors = rear.vectors[batch.tokens]  # (B, T, 2)
    rear.current = rear.next = Copies()
    moment = Moment(0, 0, 0.5, 0, 1)
    consumed = torch.cat([torch.zeros_like(vectors[:, :1]), vectors[:, :-1]], 1)

    def loss(shallow, deep):
        streams = dict(zip(rear.taps, (shallow, deep), strict=True))
        return rear.loss(objective.model, Reading(deep, streams), rear.prepare(batch, moment), batch.labels)

    assert loss(consumed, vectors).item() == pytest.approx(0, abs=1e-6)
    assert loss(-consumed, vectors).item() == pytest.approx(2, abs=1e-6)
    assert loss(vectors, vectors).item() > 0.01, "the next token is not the current one"
    assert loss(consumed, consumed).item() > 0.01


def test_code_vectors_of_near_grey_levels_are_near():
    from mirai_bench.data.tokenizers.pixel import Pixel

    vectors = Pixel(17).vectors()
    cosines = vectors @ vectors[0]
    assert cosines[0] == 1 and cosines[-1] == pytest.approx(-1) and (cosines.diff() < 0).all()


def test_the_hidden_width_is_that_of_foresights_projectors(make_config):
    def print_of(of_foresight, **own):
        foresight = {"projector": {"hidden": of_foresight}}
        return make_config(foresight=foresight, regularizer={"name": "rear"} | own).fingerprint()

    assert print_of(32) == print_of(32, hidden=32) == print_of(8, hidden=32) != print_of(64)
