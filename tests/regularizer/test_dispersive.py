"""The dispersive loss, by hand."""

import math

import pytest
import torch

from mirai_bench.config.regularizer import DispersiveConfig
from mirai_bench.regularizer.dispersive import dispersion


def loss_of(rows, **fields):
    return dispersion(torch.tensor(rows), DispersiveConfig(name="dispersive", **fields))


def test_the_loss_of_three_points_by_hand():
    """Squared distances 4, 4 and 8 in two dimensions."""
    rows = [[[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]]
    pairs = [math.exp(-4), math.exp(-4), math.exp(-8)]  # 4 / 2 dimensions / 0.5, …
    assert loss_of(rows).item() == pytest.approx(math.log((2 * sum(pairs) + 3) / 9))
    assert loss_of(rows, self_pairs=False).item() == pytest.approx(math.log(2 * sum(pairs) / 6))
    summed = [math.exp(-2), math.exp(-2), math.exp(-4)]
    value = loss_of(rows, self_pairs=False, distance="sum", temperature=2.0).item()
    assert value == pytest.approx(math.log(2 * sum(summed) / 6))


def test_groups_are_averaged_and_not_compared():
    one, two = [[0.0], [1.0]], [[5.0], [5.5]]
    both = loss_of([one, two])
    assert both.item() == pytest.approx((loss_of([one]) + loss_of([two])).item() / 2)


def test_its_gradient_pushes_images_apart():
    z = torch.tensor([[[0.0], [1.0]]], requires_grad=True)
    dispersion(z, DispersiveConfig(name="dispersive")).backward()
    assert z.grad[0, 0] > 0 > z.grad[0, 1], "a step against the gradient moves the two apart"


def test_a_group_that_is_cut_is_refused(make_config):
    from mirai_bench.utils.errors import UserError
    from tests.support.small_run import new_trainer

    message = "compares 16 images with each other, but a process has 8 of the 16 images at a time"
    with pytest.raises(UserError, match=message):
        make_config(regularizer={"name": "dispersive"}, machine={"micro_batches": 2})
    whole = make_config(regularizer={"name": "dispersive"})
    with pytest.raises(UserError, match=message):
        new_trainer(whole, world=2)
