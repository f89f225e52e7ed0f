"""ST-AR: what the student does not see, which states belong together, and the losses by hand."""

import math

import pytest
import torch

from mirai_bench.config.load import Unfit
from mirai_bench.regularizer.regularizer import Moment, Reading
from mirai_bench.regularizer.st_ar import at, cosine_distance, info_nce
from mirai_bench.utils.errors import UserError
from tests.support.objectives import assemble
from tests.support.small_run import new_trainer

MOMENT = Moment(seed=0, step=3, progress=0.25, rank=0, world=1)


def st_ar(make_config, **fields):
    variant = {"name": "st-ar", "group": 4} | fields
    data = {"views": "flip"} if fields.get("view", 1) else {}
    return assemble(make_config, {"level": "none"}, regularizer=variant, data=data)


def test_the_contrast_by_hand():
    """Two images with orthogonal states, τ = 1: the right one has the cosine 1 and the other one 0."""
    states = torch.eye(2)[None, :, None]  # (1, 2, 1, 2)
    assert info_nce(states, 3 * states, 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert info_nce(states, states.flip(1), 1.0).item() == pytest.approx(math.log(1 + math.exp(1)))
    assert info_nce(states, states, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_the_distance_by_hand():
    one = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    other = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    assert cosine_distance(one, other).item() == pytest.approx(0.5)  # 0 and 1


def test_states_at_positions():
    states = torch.arange(12.0).view(2, 3, 2)
    assert at(states, torch.tensor([[2], [0]])).tolist() == [[[4.0, 5.0]], [[6.0, 7.0]]]


def test_a_masked_token_is_not_seen_by_other_states(make_config):
    """It can only be seen in its own residual stream."""
    _, objective, _, batch = st_ar(make_config, step=0, view=0)
    regularizer = objective.regularizer
    prepared = regularizer.prepare(batch, MOMENT)
    seen = prepared.extra[0]
    assert seen[:, 0].all() and seen.float().mean().item() == pytest.approx(0.75, abs=0.06)
    image = 0
    hidden = int((~seen[image, :40]).nonzero()[-1])  # a position of the sequence, which is token hidden - 1
    shown = int(seen[image, 1:40].nonzero()[-1]) + 1
    torch.manual_seed(0)
    with torch.no_grad():
        before = regularizer.read(objective.model, prepared, batch.labels, ()).final[image]
        for position, expected in ((hidden, [hidden]), (shown, list(range(shown, 64)))):
            tokens = batch.tokens.clone()
            tokens[image, position - 1] = (tokens[image, position - 1] + 1) % 17
            changed = prepared._replace(batch=type(batch)(tokens, batch.labels, batch.index, batch.view))
            torch.manual_seed(0)
            after = regularizer.read(objective.model, changed, batch.labels, ()).final[image]
            differ = (before != after).any(1).nonzero().flatten().tolist()
            assert differ == expected


def test_anchors_and_other_positions_differ(make_config):
    _, objective, _, batch = st_ar(make_config, view=0)
    _, anchor, other = objective.regularizer.prepare(batch, MOMENT).extra
    assert anchor.shape == other.shape == (8, 4) and (anchor != other).all()
    assert anchor.min() >= 0 and other.max() < 64


def test_second_views_are_of_the_same_images(make_config):
    """Groups of four: two images, and their mirror images, in a batch of the same size."""
    config, objective, _, batch = st_ar(make_config)
    prepared = objective.regularizer.prepare(batch, MOMENT).batch
    index = prepared.index.view(-1, 2, 2)
    view = prepared.view.view(-1, 2, 2)
    assert torch.equal(index[:, 0], index[:, 1]) and torch.equal(
        index[:, 0], batch.index.view(-1, 2, 2)[:, 0]
    )
    assert torch.equal(view[:, 0], batch.view.view(-1, 2, 2)[:, 0]) and torch.equal(
        view[:, 1], 1 - view[:, 0]
    )
    images = prepared.tokens.view(-1, 2, 2, *config.grid)
    assert torch.equal(images[:, 0], images[:, 1].flip(-1))
    assert torch.equal(prepared.labels.view(-1, 2, 2)[:, 0], prepared.labels.view(-1, 2, 2)[:, 1])


def test_the_loss_is_the_sum_of_what_its_fields_say(make_config):
    """Of a teacher that has the student's states, with a projector that copies."""

    def loss(**fields):
        _, objective, _, batch = st_ar(make_config, mask_ratio=0, **fields)
        regularizer = objective.regularizer
        prepared = regularizer.prepare(batch, MOMENT)
        torch.manual_seed(0)
        reading = regularizer.read(objective.model, prepared, prepared.batch.labels, regularizer.taps)
        return regularizer.loss(objective.model, reading, prepared, prepared.batch.labels).item()

    everything = loss(mim=1.0, step=0.5, view=0.25)
    assert everything == pytest.approx(
        loss(mim=1.0, step=0, view=1e-9)
        + 0.5 * loss(mim=0, step=1, view=1e-9)
        + 0.25 * loss(mim=0, step=0, view=1),
        rel=1e-5,
    )


def test_which_states_belong_together(make_config):
    """The teacher's states say of which row and position they are."""
    _, objective, _, batch = st_ar(make_config)
    regularizer = objective.regularizer
    prepared = regularizer.prepare(batch, MOMENT)
    _, anchor, other = prepared.extra
    rows = torch.arange(8.0)[:, None, None].expand(8, 64, 1)
    cells = torch.arange(64.0)[None, :, None].expand(8, 64, 1)
    where = torch.cat([rows, cells], 2)  # (B, T, 2)
    regularizer.teacher = lambda batch, labels, taps: Reading(torch.zeros(8, 64, 32), {taps[0]: where})
    seen = []
    regularizer._contrast = lambda student, teacher: seen.append(teacher) or student.sum()
    reading = regularizer.read(objective.model, prepared, prepared.batch.labels, regularizer.taps)
    regularizer.loss(objective.model, reading, prepared, prepared.batch.labels)
    step, view = seen
    # In groups of four, row 0 is the other view of row 2, and row 1 that of row 3.
    partners = torch.tensor([2, 3, 0, 1, 6, 7, 4, 5])
    own = torch.arange(8)[:, None].expand(8, 4)
    assert torch.equal(step.long(), torch.stack([own, other], 2))
    assert torch.equal(view.long(), torch.stack([partners[:, None].expand(8, 4), anchor], 2))


def test_the_view_contrast_runs_where_there_are_two_views(make_config):
    config = make_config(regularizer={"name": "st-ar"}, data={"views": "flip"})
    trainer = new_trainer(config)
    values = [trainer.step(step) for step in range(2)]
    assert all(torch.isfinite(value["loss"]) for value in values) and values[0]["regularizer"] > 0


def test_data_of_one_view_are_refused(make_config):
    with pytest.raises(Unfit, match=r"regularizer.name is st-ar, whose view contrast needs a second view"):
        make_config(regularizer={"name": "st-ar"})
    assert issubclass(Unfit, UserError)
