"""One update: golden losses, micro-batches, dropped labels, and FLOPs.

`MIRAI_BENCH_WRITE_GOLDEN=1 pytest tests/train/test_trainer.py -k write_golden` appends the golden losses of
arms that have none. With `MIRAI_BENCH_WRITE_GOLDEN=all` all of them are written again.
"""

import os
from pathlib import Path

import pytest
import torch

from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.model.cost import training_flops
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train.trainer import dropped_labels, teacher_run
from mirai_bench.utils.errors import UserError
from tests.support.paths import FIXTURES
from tests.support.small_run import new_trainer

GOLDEN = FIXTURES / "golden_losses.txt"
GOLDEN_STEPS = 10
# Relative tolerance of the loss. Sums of float32 in another order (another CPU, another BLAS) differ
# by about 1e-6 per step, and the difference grows with the steps.
GOLDEN_TOLERANCE = 2e-4
# The recipe is written out, so that tuning the profile leaves the golden losses as they are.
RECIPE = ["train.epochs=10", "train.lr=0.004", "train.lr_warmup=0.0", "train.ema_decay=0.99"]
SETTINGS = [*RECIPE, "model.ffn_dropout=0.0", "foresight.encoder.epochs=1", "foresight.warmup=0.0"]
AXES = (
    "injection_level",
    "foresight_layout",
    "foresight_source",
    "regularizer",
    "own_cell",
    "projection_head",
)
ARMS = {
    cell.arm: cell.config
    for axis in AXES
    for cell in load_sweep(SWEEPS / f"{axis}.yaml", seeds=[0], settings=SETTINGS).cells
}


def golden_losses(config, shared_runs: Path) -> list[float]:
    config = config.model_copy(
        update={"machine": config.machine.model_copy(update={"runs": shared_runs, "device": "cpu"})}
    )
    teacher = teacher_run(config)
    if teacher is not None:  # a stand-in for the trained baseline: its initial weights
        folder = teacher.run_path / "checkpoints/step_00000000"
        if not folder.exists():
            from mirai_bench.checkpoint.store import save_checkpoint

            save_checkpoint(RunFolder(teacher.run_path), 0, new_trainer(teacher).checkpoint({}), keep=1)
    trainer = new_trainer(config)
    return [float(trainer.step(step)["loss"]) for step in range(GOLDEN_STEPS)]


@pytest.mark.skipif(not os.environ.get("MIRAI_BENCH_WRITE_GOLDEN"), reason="writes the golden file")
def test_write_golden(tmp_path):
    """Another processor rounds in another way: what is there stays as it is, unless all is asked for."""
    lines = [] if os.environ["MIRAI_BENCH_WRITE_GOLDEN"] == "all" else GOLDEN.read_text().splitlines()[1:]
    known = {line.split()[0] for line in lines}
    for arm in (arm for arm in ARMS if arm not in known):
        losses = golden_losses(ARMS[arm], tmp_path)
        lines += [f"{arm} {step} {loss:.7f}" for step, loss in enumerate(losses)]
    head = GOLDEN.read_text().splitlines()[0]
    order = list(ARMS)
    lines.sort(key=lambda line: order.index(line.split()[0]) if line.split()[0] in order else len(order))
    GOLDEN.write_text("\n".join([head, *lines]) + "\n")
    assert {line.split()[0] for line in lines} >= set(ARMS)


@pytest.mark.parametrize("arm", ARMS)
def test_golden_losses(arm, tmp_path_factory, shared_runs):
    expected = [float(line.split()[2]) for line in GOLDEN.read_text().splitlines() if line.split()[0] == arm]
    assert golden_losses(ARMS[arm], shared_runs / "golden") == pytest.approx(expected, rel=GOLDEN_TOLERANCE)


def test_projectors_do_not_decay_during_warmup(make_config):
    trainer = new_trainer(make_config(foresight={"level": "internal", "warmup": 0.5}))
    before = [p.clone() for p in trainer.objective.foresight.parameters()]
    for step in range(3):
        assert trainer.step(step)["foresight_weight"] == 0
    assert all(
        torch.equal(a, b) for a, b in zip(before, trainer.objective.foresight.parameters(), strict=True)
    )


def test_micro_batches_give_the_same_update(make_config):
    no_dropout = {"token_dropout": 0, "residual_dropout": 0, "ffn_dropout": 0}
    trainers = [new_trainer(make_config(model=no_dropout, machine={"micro_batches": n})) for n in (1, 4)]
    for step in range(3):
        for trainer in trainers:
            trainer.step(step)
    for one, four in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, four, atol=2e-4, rtol=1e-3)


def test_dropped_labels_are_of_the_global_batch(make_config):
    config = make_config(train={"batch_size": 64}, model={"class_dropout": 0.5})
    whole = dropped_labels(config, 3, 0, 1)
    assert [*dropped_labels(config, 3, 0, 2), *dropped_labels(config, 3, 1, 2)] == list(whole)
    assert 10 < whole.sum() < 54 and list(whole) != list(dropped_labels(config, 4, 0, 1))


def test_a_batch_larger_than_the_data_is_refused(make_config):
    with pytest.raises(UserError, match="batch_size is 5000"):
        new_trainer(make_config(train={"batch_size": 5000}))


def test_a_batch_that_the_processes_do_not_divide_is_refused(make_config):
    """torchrun may start another number of processes than the config names."""
    with pytest.raises(UserError, match=r"batch_size is 16, which 3 processes x .* = 3 x 2 does not divide"):
        new_trainer(make_config(machine={"micro_batches": 2}), world=3)


HEADS = ["e-linear", "e-transformer", "e-conv", "i-transformer"]
REGULARIZED = [arm for arm, config in ARMS.items() if config.regularizer.name != "none"]


@pytest.mark.parametrize(
    "arm",
    ["baseline", "output-2d", "internal-2d", "mirai-e-k9", "mirai-i-k1", *HEADS, *REGULARIZED],
)
def test_counted_flops_equal_torchs_counter(arm, shared_runs):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    machine = ARMS[arm].machine.model_copy(update={"runs": shared_runs / "golden", "device": "cpu"})
    config = ARMS[arm].model_copy(update={"machine": machine})
    trainer = new_trainer(config)
    # With attention as its two products: depending on the version of torch, its own kernels count
    # recomputed scores, or nothing at all.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.step(0)
    assert counter.get_total_flops() == pytest.approx(
        training_flops(config, 1, trainer.total_steps), rel=1e-3
    )


def test_each_source_of_randomness_has_its_seed(make_config):
    """Another seed of one source changes what it draws, and nothing that another source does."""
    dropout = {"token_dropout": 0.2, "class_dropout": 0.5}
    base = new_trainer(make_config(model=dropout))
    draws = {"init": "init", "order": "order", "dropout": "labels"}  # what each source decides
    for source, changed in draws.items():
        other = new_trainer(make_config(model=dropout, seeds={source: 7}))
        drawn = {"init": [], "order": [], "labels": []}
        for trainer in (base, other):
            config = trainer.config
            drawn["init"].append(trainer.model.tok_embeddings.weight)
            order, _ = trainer.codes.order(config.seed_of("order"), 0)
            drawn["order"].append(torch.from_numpy(order))
            drawn["labels"].append(torch.from_numpy(dropped_labels(config, 0, 0, 1)))
        equal = {name for name, (one, two) in drawn.items() if torch.equal(one, two)}
        assert equal == set(drawn) - {changed}
