"""Sources: which tokens and labels the features of a teacher depend on."""

import pytest
import torch

from tests.support.objectives import assemble


@pytest.mark.parametrize(
    ("source", "sees_future"), [("ema", False), ("frozen", False), ("encoder", True), ("random", True)]
)
def test_a_bidirectional_feature_sees_the_future_and_a_causal_one_does_not(make_config, source, sees_future):
    _, objective, _, batch = assemble(make_config, {"level": "internal", "source": source})
    before = objective.foresight.source(batch, batch.labels)
    batch.tokens[:, 40] = (batch.tokens[:, 40] + 1) % 17
    change = (objective.foresight.source(batch, batch.labels) - before).abs().amax((0, 2))
    assert (change[:40] > 0).all() == sees_future
    assert (change[:40] == 0).all() != sees_future
    assert change[-1] > 0


def test_block_causal_features_see_their_own_block_and_no_further(make_config):
    _, objective, _, batch = assemble(
        make_config, {"level": "internal", "source": "encoder", "encoder": {"context": {"block_causal": 8}}}
    )
    before = objective.foresight.source(batch, batch.labels)
    batch.tokens[:, 44] = (batch.tokens[:, 44] + 1) % 17
    change = (objective.foresight.source(batch, batch.labels) - before).abs().amax((0, 2))
    assert (change[:40] == 0).all() and (change[40:] > 0).all()


def test_shuffled_gives_each_image_its_neighbours_features(make_config):
    _, right, _, batch = assemble(make_config, {"level": "internal", "source": "encoder"})
    _, wrong, _, _ = assemble(make_config, {"level": "internal", "source": "shuffled"})
    assert torch.equal(
        wrong.foresight.source(batch, batch.labels)[1:], right.foresight.source(batch, batch.labels)[:-1]
    )


def test_label_drop_is_shared_with_the_teacher_or_not(make_config):
    null = torch.full((8,), 10)
    for share in (True, False):
        _, objective, _, batch = assemble(make_config, {"level": "internal", "share_label_drop": share})
        same = torch.equal(
            objective.foresight.source(batch, null), objective.foresight.source(batch, batch.labels)
        )
        assert same != share
