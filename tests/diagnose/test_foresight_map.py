"""The foresight map, on states that hold what was put there."""

import math
from dataclasses import replace

import pytest
import torch

from mirai_bench.data.batch import Batch
from mirai_bench.diagnose import foresight_map as fm

GRID = (4, 4)
V = 4
OFFSETS = fm.offsets_within(1, GRID)


def images(n: int, seed: int) -> torch.Tensor:
    """Tokens (n, 16), each of which is independent of all others."""
    return torch.randint(V, (n, 16), generator=torch.Generator().manual_seed(seed))


def states_that_hold(tokens: torch.Tensor, offset: fm.Offset, seed: int) -> torch.Tensor:
    """States (n, 16, 12) at whose cells stands the token at an offset, in some code, beside noise."""
    code = torch.randn(V, 12, generator=torch.Generator().manual_seed(9))
    index, valid = fm.cells_at([offset], GRID)
    held = code[tokens[:, index[:, 0]]] * valid  # (n, 15, 12)
    noise = torch.randn(len(tokens), 16, 12, generator=torch.Generator().manual_seed(seed))
    states = 0.01 * noise
    states[:, 1:] += held
    return states


def batch(tokens: torch.Tensor) -> Batch:
    n = torch.arange(len(tokens))
    return Batch(tokens, n % 2, n, torch.zeros_like(n))


def mean_bits(found: torch.Tensor, n: int) -> dict[fm.Offset, float]:
    counts = fm.cells_at(OFFSETS, GRID)[1].sum(0) * n
    return dict(zip(OFFSETS, (found.sum(0) / counts).tolist(), strict=True))


def test_a_state_that_holds_the_token_below_shows_its_full_bits_there_and_none_elsewhere():
    fit, heldout = images(600, 1), images(200, 2)
    states = (states_that_hold(fit, (1, 0), 3), states_that_hold(heldout, (1, 0), 4))
    found = mean_bits(fm.state_bits(*states, (fit, heldout), V, OFFSETS, GRID), 200)
    for offset, bits in found.items():
        expected = 0 if offset == (1, 0) else math.log2(V)
        assert bits == pytest.approx(expected, abs=0.06), offset


def test_visible_tokens_tell_what_follows_from_them_and_no_more():
    """In each row the tokens come again after two cells, so the one to the right is the one on the left."""
    fit, heldout = images(600, 1), images(200, 2)
    for tokens in (fit, heldout):
        rows = tokens.view(-1, 4, 4)
        rows[:, :, 2:] = rows[:, :, :2]
    seen = (torch.arange(V), torch.zeros(V, 0), 1, GRID, 2)
    found = fm.token_bits(batch(fit), batch(heldout), *seen) / 200  # (15, 4)
    right, below = found[:, 0], found[:, 2]
    for cell in range(15):
        column = cell % 4
        assert right[cell] == pytest.approx([2, 0, 0, 0][column], abs=0.15)  # there is none at the edge
        assert below[cell] == pytest.approx(2 if cell < 12 else 0, abs=0.15)


def test_no_probe_sees_what_the_state_could_not():
    tokens = images(2, 1)
    everywhere = fm.all_images(tokens)
    seen = (torch.arange(V), torch.randn(V, 3), 2, GRID, 2)
    before = fm.visible(batch(tokens), everywhere, *seen)
    for cell in range(16):
        other = tokens.clone()
        other[:, cell] = (other[:, cell] + 1) % V
        after = fm.visible(batch(other), everywhere, *seen)
        changed = (after != before).any(-1).any(-1)  # (15,)
        assert not changed[:cell].any()
        assert changed[cell:].any() or cell == 15
        if cell < 15:
            assert changed[cell]
    other = replace(batch(tokens), labels=1 - batch(tokens).labels)
    assert (fm.visible(other, everywhere, *seen) != before).any(-1).all()  # the class is seen everywhere


def test_states_stand_at_the_cell_that_they_have_consumed(subject):
    """The embeddings hold the token of their own cell, and no other."""
    finding = fm.measure(subject)
    at = finding.detail["offsets"].index([0, 0])
    assert finding.detail["state"][0][at] < 0.1 * finding.detail["state"][0][at + 1]
    assert finding.values["future@0"] < 0.05
    assert len(finding.detail["bits"]) == subject.depth + 1
    gained = torch.tensor(finding.detail["base"]) - torch.tensor(finding.detail["state"])
    assert torch.allclose(gained, torch.tensor(finding.detail["bits"]), atol=1e-5)
    assert finding.detail["below_by_cell"][1][-1] is None


def test_offsets_are_those_that_some_cell_has():
    assert fm.offsets_within(9, (2, 2)) == [
        (-1, 0),
        (-1, 1),
        (0, -1),
        (0, 0),
        (0, 1),
        (1, -1),
        (1, 0),
        (1, 1),
    ]
    assert [o for o in fm.offsets_within(1, GRID) if fm.is_future(o)] == [(0, 1), (1, -1), (1, 0), (1, 1)]


def test_a_large_grid_gives_some_of_its_cells_of_each_image(monkeypatch):
    monkeypatch.setattr(fm, "MOST_EXAMPLES", 15 * 30)
    chosen = fm.chosen_images(90, 15, torch.device("cpu"))
    assert chosen.shape == (15, 30)
    assert chosen.unique(return_counts=True)[1].tolist() == [5] * 90  # each image as often as others


def test_many_codes_are_merged_by_what_they_stand_for(subject):
    tokenizer = subject.config.tokenizer.model_copy(update={"vocabulary": 200})
    many = replace(subject, config=subject.config.model_copy(update={"tokenizer": tokenizer}))
    groups, vectors = fm.code_groups(many)
    assert len(groups) == 200 and int(groups.max()) + 1 == fm.GROUPS
    assert vectors.shape == (200, 1)
    few, nothing = fm.code_groups(subject)
    assert few.tolist() == list(range(17)) and nothing.shape == (17, 0)
