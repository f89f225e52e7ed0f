"""Pictures: what is written down gives the states back."""

import json
from dataclasses import replace

import pytest
import torch

from mirai_bench.diagnose.pictures import measure, number_kept, principal, shortened, tsne_colours
from tests.diagnose.conftest import SMALL_SCOPE


def planted():
    """States (4, 9, 12) of three directions of variance 9 : 4 : 1, and their mean."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 3, generator=generator))[0].T
    along = torch.linalg.qr(torch.randn(36, 4, generator=generator))[0]
    along = torch.linalg.qr(along - along.mean(0))[0][:, :3]  # orthogonal, of mean zero
    mean = torch.arange(12.0)
    return ((along * torch.tensor([3.0, 2, 1])) @ basis + mean).unflatten(0, (4, 9)), basis, mean


def test_planted_directions_are_found_by_their_variance():
    states, basis, mean = planted()
    found = principal(states, 5)
    assert torch.allclose(found.mean.float(), mean, atol=1e-5)
    assert found.shares[:3].tolist() == pytest.approx([9 / 14, 4 / 14, 1 / 14], abs=1e-4)
    assert (found.directions[:3].float() @ basis.T).abs().tolist() == [
        pytest.approx(row, abs=1e-3) for row in torch.eye(3).tolist()
    ]
    again = found.mean + found.coordinates @ found.directions
    assert torch.allclose(again.float(), states, atol=1e-4)
    # A direction and its opposite are the same picture.
    largest = found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_what_is_written_gives_the_states_back(subject):
    values, detail = measure(subject)
    assert len(detail["images"]) == len(detail["labels"]) == 8
    images = subject.heldout_codes.images(torch.tensor(detail["images"]))
    states = subject.states(subject.middle, images)[:, 1:]
    mean, directions, coordinates = (torch.tensor(detail[n]) for n in ("mean", "directions", "coordinates"))
    again = mean + coordinates @ directions
    rest = ((again - states).square().sum() / (states - states.mean((0, 1))).square().sum()).item()
    assert rest == pytest.approx(1 - values["kept"], abs=0.01)
    assert 0 < values["colours"] < values["kept"] <= 1
    assert "tsne" not in detail


@pytest.mark.parametrize(("cells", "width"), [(63, 64), (255, 768), (24, 64), (255, 1536)])
def test_a_picture_takes_less_than_100_kilobytes(cells, width):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(8, cells, width, generator=generator) * 100
    kept = number_kept(states)
    assert kept >= 3
    numbers = [states[0, 0], states.flatten(0, 1)[:kept] / 1e4, states[:, :, :kept]]
    assert len(json.dumps([shortened(part) for part in numbers])) < 100_000


def test_colours_are_those_of_clusters(subject):
    generator = torch.Generator().manual_seed(0)
    which = torch.arange(60).view(4, 15) % 2
    states = torch.randn(4, 15, 6, generator=generator) * 0.1 + which[..., None] * 10
    colours = tsne_colours(states, 0)
    assert colours.shape == (4, 15, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    assert torch.equal(colours, tsne_colours(states, 0))
    flat, kind = colours.flatten(0, 1), which.flatten()
    distances = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
    assert (kind[distances.argmin(1)] == kind).float().mean() > 0.9


def test_t_sne_is_asked_for_by_the_scope(subject):
    detail = measure(replace(subject, scope=SMALL_SCOPE.model_copy(update={"pictures": True}))).detail
    assert torch.tensor(detail["tsne"]).shape == (8, subject.config.num_tokens - 1, 3)
