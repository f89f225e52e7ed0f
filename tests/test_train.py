"""Golden losses, resume, guards. The golden file is written anew by `MIRAI_BENCH_WRITE_GOLDEN=1 pytest tests/test_train.py -k golden`."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mirai_bench.checkpoint.store import saved
from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.model.cost import step_flops
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFailed
from mirai_bench.train import trainer as training
from mirai_bench.train.run import train
from mirai_bench.train.trainer import Trainer, dropped_labels, run_dir_of, teacher_run
from mirai_bench.utils.errors import UserError

GOLDEN = Path(__file__).parent / "fixtures" / "golden_losses.txt"
GOLDEN_STEPS = 10
# Relative, of the loss: float32 sums in another order (another CPU, another BLAS) differ by about 1e-6 a step and grow with the steps.
GOLDEN_TOLERANCE = 2e-4
ARMS = {
    cell.arm: cell.config
    for axis in ("injection_level", "foresight_layout", "foresight_source")
    for cell in load_sweep(
        SWEEPS / f"{axis}.yaml", seeds=[0], settings=["foresight.encoder.epochs=1", "foresight.warmup=0.0"]
    ).cells
}


def golden_losses(config, shared_runs: Path) -> list[float]:
    config = config.model_copy(
        update={"machine": config.machine.model_copy(update={"runs": shared_runs, "device": "cpu"})}
    )
    teacher = teacher_run(config)
    if teacher is not None:  # a stand-in for the trained baseline: its initial weights
        folder = run_dir_of(teacher) / "checkpoints/step_00000000"
        if not folder.exists():
            from mirai_bench.checkpoint.store import save_checkpoint

            save_checkpoint(run_dir_of(teacher), 0, Trainer(teacher).checkpoint({}), keep=1)
    trainer = Trainer(config)
    return [float(trainer.step(step)["loss"]) for step in range(GOLDEN_STEPS)]


@pytest.mark.skipif(not os.environ.get("MIRAI_BENCH_WRITE_GOLDEN"), reason="writes the golden file")
def test_write_golden(tmp_path):
    lines = [
        f"{arm} {step} {loss:.7f}"
        for arm, c in ARMS.items()
        for step, loss in enumerate(golden_losses(c, tmp_path))
    ]
    GOLDEN.write_text(
        "# arm step loss: the digits profile, seed 0, no warm-up, a masked-token teacher of 1 epoch\n"
        + "\n".join(lines)
        + "\n"
    )
    assert len(lines) == GOLDEN_STEPS * len(ARMS)


@pytest.mark.parametrize("arm", ARMS)
def test_golden_losses(arm, tmp_path_factory, shared_runs):
    expected = [float(line.split()[2]) for line in GOLDEN.read_text().splitlines() if line.split()[0] == arm]
    assert golden_losses(ARMS[arm], shared_runs / "golden") == pytest.approx(expected, rel=GOLDEN_TOLERANCE)


def state_of(run_dir: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: load_file(saved(run_dir)[-1] / f"{name}.safetensors") for name in ("model", "ema", "optimizer")
    }


def losses_of(run_dir: Path) -> list[tuple]:
    keys = ("step", "loss", "ntp", "foresight", "grad_norm", "lr")
    return [
        tuple(line[key] for key in keys)
        for line in read_journal(run_dir / "journal.jsonl")
        if line["kind"] == "train"
    ]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "variant",
    [
        {"level": "none"},
        {"level": "output"},
        {"level": "internal", "warmup": 0.5},
        {"level": "internal", "source": "encoder"},
    ],
    ids=lambda v: v.get("source", v["level"]),
)
def test_resume_is_bitwise(variant, make_config, tmp_path, monkeypatch):
    """6 steps = 3 + restart + 3: weights, EMA, optimizer, logged losses and the evaluation."""
    config = make_config(
        foresight=variant, train={"batch_size": 250}, machine={"log_every": 1, "checkpoint_every": 0.5}
    )  # 6 steps an epoch
    train(config, tmp_path / "whole")
    original = Trainer.step

    def dies(self, step):
        if step == 4:
            raise Killed
        return original(self, step)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(Killed):
        train(config, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "step", original)
    assert [path.name for path in saved(tmp_path / "cut")] == ["step_00000003"]
    assert len(losses_of(tmp_path / "cut")) == 4
    train(config, tmp_path / "cut")
    whole, cut = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name in whole:
        assert whole[name].keys() == cut[name].keys()
        assert all(torch.equal(whole[name][key], cut[name][key]) for key in whole[name])
    assert (
        losses_of(tmp_path / "whole") == losses_of(tmp_path / "cut")
        and len(losses_of(tmp_path / "whole")) == 6
    )
    evaluations = [
        [
            line["metrics"]
            for line in read_journal(tmp_path / name / "journal.jsonl")
            if line["kind"] == "evaluation"
        ]
        for name in ("whole", "cut")
    ]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 1


def test_an_evaluation_that_was_killed_is_made_up_for(make_config, tmp_path, monkeypatch):
    import mirai_bench.evaluate

    config = make_config(train={"batch_size": 500})
    with monkeypatch.context() as patched:
        patched.setattr(mirai_bench.evaluate, "evaluate_model", lambda *a, **k: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(config, tmp_path)
    assert not (tmp_path / "done.json").exists()
    train(config, tmp_path)
    assert [
        line["step"] for line in read_journal(tmp_path / "journal.jsonl") if line["kind"] == "evaluation"
    ] == [3]


def test_a_finished_run_is_not_touched(trained_run, make_config):
    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*") if path.is_file()}
    train(make_config(), trained_run)
    assert {path: path.stat().st_mtime_ns for path in trained_run.rglob("*") if path.is_file()} == before


def test_a_record_carries_its_provenance(trained_run):
    (record,) = [line for line in read_journal(trained_run / "journal.jsonl") if line["kind"] == "evaluation"]
    wanted = {"metrics", "config", "fingerprint", "git", "versions", "device", "seed", "epoch", "step", "train_flops", "train_seconds",
              "protocol", "protocol_digest", "extractor", "reference", "precision", "parameters", "grid"}  # fmt: skip
    assert wanted <= record.keys()
    assert {"FD-digits", "KID-digits", "precision", "recall", "class_accuracy", "heldout_ntp"} <= record[
        "metrics"
    ].keys()
    assert (trained_run / record["grid"]).is_file()
    assert str(trained_run.parent) not in json.dumps(record)


def test_a_second_process_is_told(make_config, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / "run.lock"), pytest.raises(UserError, match="being trained by another process"):
        train(make_config(), tmp_path)


def test_non_finite_updates_are_skipped_counted_and_end_the_run(make_config, tmp_path, monkeypatch):
    config = make_config(train={"max_bad_steps": 3, "batch_size": 100}, machine={"log_every": 1})
    original = training.Objective.forward

    def poisoned(self, batch, labels, weight):
        loss, ntp, foresight = original(self, batch, labels, weight)
        bad = self.calls in (1, 4, 5, 6)
        self.calls += 1
        return (loss * float("nan") if bad else loss), ntp, foresight

    monkeypatch.setattr(training.Objective, "calls", 0, raising=False)
    monkeypatch.setattr(training.Objective, "forward", poisoned)
    trainer = Trainer(config)
    trainer.step(0)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.step(1)
    assert (
        all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
        and trainer.skipped == 1
    )
    trainer.step(2)
    assert (
        not all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
        and trainer.skipped_in_a_row == 0
    )
    with pytest.raises(RunFailed, match="3 updates in a row were not finite, up to step 7"):
        train(config, tmp_path)
    assert json.loads((tmp_path / "failed.json").read_text())["step"] == 7
    assert [
        line["skipped"] for line in read_journal(tmp_path / "journal.jsonl") if line["kind"] == "train"
    ] == [
        0,
        1,
        1,
        1,
        2,
        3,
        4,
    ]


def test_projectors_do_not_decay_during_warmup(make_config):
    trainer = Trainer(make_config(foresight={"level": "internal", "warmup": 0.5}))
    before = [p.clone() for p in trainer.objective.foresight.parameters()]
    for step in range(3):
        assert trainer.step(step)["foresight_weight"] == 0
    assert all(
        torch.equal(a, b) for a, b in zip(before, trainer.objective.foresight.parameters(), strict=True)
    )


def test_micro_batches_give_the_same_update(make_config):
    no_dropout = {"token_dropout": 0, "residual_dropout": 0, "ffn_dropout": 0}
    trainers = [Trainer(make_config(model=no_dropout, machine={"micro_batches": n})) for n in (1, 4)]
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
        Trainer(make_config(train={"batch_size": 5000}))


@pytest.mark.parametrize("arm", ["baseline", "output-2d", "internal-2d", "mirai-e-k9", "mirai-i-k1"])
def test_counted_flops_equal_torchs_counter(arm, shared_runs):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    machine = ARMS[arm].machine.model_copy(update={"runs": shared_runs / "golden", "device": "cpu"})
    config = ARMS[arm].model_copy(update={"machine": machine})
    trainer = Trainer(config)
    # attention as its two products: torch's own kernels count their recomputed scores, or nothing at all, depending on the version
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.step(0)
    assert counter.get_total_flops() / config.train.batch_size == pytest.approx(step_flops(config), rel=1e-3)


SHARED_OUT = """
import os, sys
from mirai_bench import measure
from mirai_bench.train import command, run

whole = measure.sample_images

def noted(model, tokenizer, protocol, rows, **options):
    with open(f"{sys.argv[1]}.{os.environ.get('RANK', 'alone')}", "a") as file:
        file.write(f"{rows} ")
    return whole(model, tokenizer, protocol, rows, **options)

measure.sample_images = noted
sys.exit(run(command))
"""


def test_two_processes_equal_one(make_config, tmp_path):
    """gloo, 2 ranks of half the batch, against 1 rank of the whole; without dropout, whose masks are each rank's own. Both ranks sample, and
    the numbers are those of one process with the same weights."""
    import subprocess
    import sys

    from mirai_bench.evaluate.evaluation import evaluate_model
    from mirai_bench.sample.sampler import load_for_sampling

    (tmp_path / "script.py").write_text(SHARED_OUT)
    protocol = {"base": "digits", "num_samples": 600}
    no_dropout = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}
    results = {}
    for workers in (1, 2):
        config = make_config(model=no_dropout, foresight={"level": "internal", "warmup": 0.3}, train={"batch_size": 250},
                             evaluation={"protocol": protocol}, machine={"runs": str(tmp_path / str(workers)), "log_every": 1})  # fmt: skip
        (tmp_path / "config.json").write_text(config.model_dump_json())
        launcher = [
            sys.executable,
            *(["-m", "torch.distributed.run", "--nproc-per-node", "2"] if workers == 2 else []),
        ]
        words = [str(tmp_path / "script.py"), str(tmp_path / "config.json")]
        done = subprocess.run([*launcher, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(run_dir_of(config))
        results[workers] = state_of(run_dir_of(config))
    for name in ("model", "ema"):
        for key, tensor in results[1][name].items():
            torch.testing.assert_close(results[2][name][key], tensor, atol=1e-4, rtol=1e-3)
    rows = {path.suffix: path.read_text() for path in tmp_path.glob("config.json.*")}
    assert rows == {
        ".alone": "range(0, 500) range(500, 600) ",
        ".0": "range(0, 500) ",
        ".1": "range(500, 600) ",
    }
    (record,) = [
        line for line in read_journal(run_dir_of(config) / "journal.jsonl") if line["kind"] == "evaluation"
    ]
    _, model, *_ = load_for_sampling(run_dir_of(config), "ema", torch.device("cpu"))
    assert evaluate_model(model, config, torch.device("cpu")).metrics == record["metrics"]


def test_out_of_memory_goes_on_with_smaller_parts(make_config, tmp_path, monkeypatch):
    original = Trainer.step

    def step(self, step):
        if step == 4 and self.config.machine.micro_batches < 4:
            raise torch.OutOfMemoryError("no memory left")
        return original(self, step)

    monkeypatch.setattr(Trainer, "step", step)
    train(make_config(train={"batch_size": 300}, machine={"checkpoint_every": 0.4}), tmp_path)
    record = [line for line in read_journal(tmp_path / "journal.jsonl") if line["kind"] == "evaluation"][-1]
    assert record["config"]["machine"]["micro_batches"] == 4 and record["step"] == 5


def test_sigterm_saves_and_leaves(make_config, tmp_path, monkeypatch):
    import signal

    original = Trainer.step

    def step(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step)

    config = make_config(train={"batch_size": 250})
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    assert [path.name for path in saved(tmp_path)] == ["step_00000003"]
    train(config, tmp_path)
    assert (tmp_path / "done.json").exists()
