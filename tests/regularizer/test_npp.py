"""Next patch prediction: which cells are a patch, what its state predicts, and the learning rate."""

import pytest
import torch
import torch.nn.functional as F

from mirai_bench.config.load import SWEEPS, Unfit, load_run
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.regularizer.npp import patch_cells
from mirai_bench.regularizer.regularizer import Moment
from mirai_bench.utils.errors import UserError
from tests.support.objectives import assemble
from tests.support.small_run import new_trainer

EARLY = Moment(seed=0, step=0, progress=0.0, rank=0, world=1)


def built(make_config, **fields):
    return assemble(make_config, {"level": "none"}, regularizer={"name": "npp"} | fields)


def test_the_cells_of_patches_by_hand():
    assert patch_cells((2, 4), 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert patch_cells((2, 2), 1).tolist() == [[0], [1], [2], [3]]


def test_a_state_predicts_all_tokens_of_its_patch(make_config):
    _, objective, _, batch = built(make_config)
    regularizer = objective.regularizer
    prepared = regularizer.prepare(batch, EARLY)
    reading = regularizer.read(objective.model, prepared, batch.labels, ())
    assert reading.final.shape == (8, 16, 32)
    loss, ntp, _ = regularizer(objective.model, reading, prepared, batch.labels, None)
    logits = objective.model.output(reading.final)  # (B, t, V)
    patches = batch.tokens.view(8, 4, 2, 4, 2).transpose(2, 3).reshape(8, 16, 4)
    expected = F.cross_entropy(logits[:, :, None].expand(-1, -1, 4, -1).flatten(0, 2), patches.flatten())
    torch.testing.assert_close(loss, expected)
    assert loss is ntp
    ours = torch.autograd.grad(loss, objective.model.output.weight, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, objective.model.output.weight))


def test_the_input_of_a_patch_is_the_mean_of_its_tokens(make_config):
    """A batch whose patches have one token each is read as a smaller image is."""
    _, objective, _, batch = built(make_config)
    model = objective.model
    small = batch.tokens[:, :16]  # 4x4
    large = small.view(8, 4, 1, 4, 1).expand(-1, -1, 2, -1, 2).reshape(8, 64)
    prepared = objective.regularizer.prepare(type(batch)(large, batch.labels, batch.index, batch.view), EARLY)
    torch.manual_seed(0)
    reading = objective.regularizer.read(model, prepared, batch.labels, ())
    torch.manual_seed(0)
    rope = objective.regularizer.rope
    final, _ = model.run(model.embed(small[:, :-1], batch.labels), rope=rope, dropout=True)
    torch.testing.assert_close(reading.final, final)
    # Patch 5 is in row 1 and column 1: rotated as cell 9 of 8x8, which stands at slot 10.
    torch.testing.assert_close(rope[6], model.rope[10])


def test_tokens_take_over(make_config):
    _, objective, _, batch = built(make_config)
    late = EARLY._replace(progress=0.5)
    assert objective.regularizer.prepare(batch, late).extra == ()
    assert objective.regularizer.prepare(batch, late._replace(progress=0.499)).extra != ()


def test_the_learning_rate_starts_anew_in_each_part(make_config):
    """Ten epochs: an epoch up, three constant, and the last of five down to a tenth."""
    train = {"epochs": 10, "lr": 1.0}
    _, objective, _, _ = assemble(
        make_config, {"level": "none"}, regularizer={"name": "npp"}, train=train, evaluation={"at": [10]}
    )
    rate = objective.regularizer.learning_rate
    step = 0.01
    for start in (0.0, 0.5):
        found = [rate(start + at, step) for at in (0, 0.05, 0.1, 0.39, 0.45)]
        assert found == pytest.approx([0.1, 0.6, 1.0, 1.0, 0.55])
        assert rate(start + 0.4999, step) == pytest.approx(0.1, abs=0.001)
    _, plain, _, _ = built(make_config, restart_lr=False)
    assert plain.regularizer.learning_rate(0.3, step) is None


def test_the_trainer_takes_the_learning_rate(make_config):
    config = make_config(regularizer={"name": "npp", "patch": 1}, train={"lr": 1.0})
    trainer = new_trainer(config)
    step = 1 / trainer.total_steps
    assert trainer.step(0)["lr"] == trainer.regularizer.learning_rate(0.0, step) == pytest.approx(step / 0.25)


def test_a_grid_that_patches_do_not_tile_is_refused_or_left_out():
    with pytest.raises(Unfit, match=r"patches of 2x2 cells do not tile the grid of 5x5"):
        load_run("staircase", ["regularizer.name=npp"])
    sweep = load_sweep(SWEEPS / "regularizer.yaml", profile="staircase")
    assert {"npp", "st-ar-view", "st-ar"} == set(sweep.left_out) and "npp" not in sweep.arms
    assert "npp-schedule" in sweep.arms and "5x5" in sweep.left_out["npp"]
    with pytest.raises(UserError, match="5x5"):
        load_sweep(SWEEPS / "regularizer.yaml", profile="staircase", only=["baseline", "npp"])


def test_foresight_beside_patches_is_refused(make_config):
    with pytest.raises(UserError, match=r"states of patches have no cells to look ahead from"):
        make_config(regularizer={"name": "npp"}, foresight={"level": "internal"})
