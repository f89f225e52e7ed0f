"""A run from start to end: exact resume, guards, records, and several processes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mirai_bench.checkpoint.store import load_latest, load_weights
from mirai_bench.tracking.failure import Failure, RunFailed
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train import loop
from mirai_bench.train import trainer as trainer_module
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import read_tensors
from tests.support.small_run import new_trainer, saved, train


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
    """Six steps equal three, a restart and three: weights, EMA, optimizer, losses, evaluation."""
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
    config = make_config(train={"batch_size": 500})
    with monkeypatch.context() as patched:
        patched.setattr(loop.Evaluator, "evaluate_model", lambda *a, **k: (_ for _ in ()).throw(Killed))
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


def test_a_record_carries_what_its_teacher_cost_once(trained_run, make_config, tmp_path, monkeypatch):
    def record_of(folder):
        lines = read_journal(folder / "journal.jsonl")
        return [line for line in lines if line["kind"] == "evaluation"][-1]

    # 1. Nothing without a teacher.
    assert (record_of(trained_run)["one_off_flops"], record_of(trained_run)["one_off_seconds"]) == (0, 0)
    # 2. The training of the encoder, whoever of its runs has trained it.
    encoder = make_config(foresight={"level": "internal", "source": "encoder"})
    again = make_config(foresight={"level": "internal", "source": "encoder"}, seed=3)
    train(encoder, tmp_path / "first")
    train(again, tmp_path / "second")
    first, second = record_of(tmp_path / "first"), record_of(tmp_path / "second")
    assert first["one_off_flops"] == second["one_off_flops"] > 0
    assert first["one_off_seconds"] == second["one_off_seconds"] > 0
    # 3. The training of the baseline run that is the teacher.
    frozen = make_config(foresight={"level": "internal", "source": "frozen"})
    train(frozen, tmp_path / "frozen")
    teacher = record_of(trained_run)
    found = record_of(tmp_path / "frozen")
    assert found["one_off_flops"] == teacher["train_flops"]
    assert found["one_off_seconds"] == pytest.approx(teacher["train_seconds"], rel=0.01)


def test_a_record_carries_its_provenance(trained_run):
    (record,) = [line for line in read_journal(trained_run / "journal.jsonl") if line["kind"] == "evaluation"]
    wanted = {
        "metrics",
        "config",
        "fingerprint",
        "git",
        "versions",
        "device",
        "seed",
        "epoch",
        "step",
        "train_flops",
        "train_seconds",
        "protocol",
        "protocol_digest",
        "extractor",
        "reference",
        "precision",
        "parameters",
        "grid",
    }
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
    original = trainer_module.Objective.forward

    def poisoned(self, *inputs):
        loss, *others = original(self, *inputs)
        bad = self.calls in (1, 4, 5, 6)
        self.calls += 1
        return (loss * float("nan") if bad else loss), *others

    monkeypatch.setattr(trainer_module.Objective, "calls", 0, raising=False)
    monkeypatch.setattr(trainer_module.Objective, "forward", poisoned)
    trainer = new_trainer(config)
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


SHARED_OUT = """
import os, sys
from mirai_bench.evaluate import evaluation, measure
from mirai_bench.train.__main__ import command
from mirai_bench.utils.cli import run

rank = os.environ.get("RANK", "alone")
whole = measure.SampledImages.read

def noted(source, rows):
    with open(f"{sys.argv[1]}.{rank}", "a") as file:
        file.write(f"{rows} ")
    return whole(source, rows)

def in_turns(count, make, ranks):
    def loss(number):
        with open(f"{sys.argv[1]}.{rank}", "a") as file:
            file.write(f"batch {number} ")
        return make(number)

    return measure.round_robin(count, loss, ranks)

measure.SampledImages.read = noted
evaluation.round_robin = in_turns
sys.exit(run(command))
"""


def test_two_processes_equal_one(make_config, tmp_path):
    """Two ranks with half the batch each give what one rank with the whole batch gives.

    Without dropout, because each rank has its own masks. Both ranks sample and compute held-out
    losses, and the metrics are those of one process with the same weights.
    """
    import subprocess
    import sys

    from mirai_bench.evaluate.evaluation import Evaluator
    from mirai_bench.sample.sampler import load_for_sampling

    (tmp_path / "script.py").write_text(SHARED_OUT)
    protocol = {"base": "digits", "num_samples": 600}
    no_dropout = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}
    results = {}
    for workers in (1, 2):
        config = make_config(
            model=no_dropout,
            foresight={"level": "internal", "warmup": 0.3},
            train={"batch_size": 250},
            evaluation={"protocol": protocol},
            machine={"runs": str(tmp_path / str(workers)), "log_every": 1},
        )
        (tmp_path / "config.json").write_text(config.model_dump_json())
        launcher = [
            sys.executable,
            *(["-m", "torch.distributed.run", "--nproc-per-node", "2"] if workers == 2 else []),
        ]
        words = [str(tmp_path / "script.py"), str(tmp_path / "config.json")]
        done = subprocess.run([*launcher, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(config.run_path)
        results[workers] = state_of(config.run_path)
    for name in ("model", "ema"):
        for key, tensor in results[1][name].items():
            torch.testing.assert_close(results[2][name][key], tensor, atol=1e-4, rtol=1e-3)
    rows = {path.suffix: path.read_text() for path in tmp_path.glob("config.json.*")}
    assert rows == {
        ".alone": "range(0, 500) range(500, 600) batch 0 batch 1 ",
        ".0": "range(0, 500) batch 0 ",
        ".1": "range(500, 600) batch 1 ",
    }
    (record,) = [
        line for line in read_journal(config.run_path / "journal.jsonl") if line["kind"] == "evaluation"
    ]
    _, model, *_ = load_for_sampling(RunFolder(config.run_path), "ema", torch.device("cpu"))
    assert Evaluator(config, torch.device("cpu")).evaluate_model(model).metrics == record["metrics"]


def test_a_fixed_order_is_that_of_the_cpu_and_ends_with_the_run(make_config, tmp_path, monkeypatch):
    modes = []
    original = Trainer.step

    def step(self, step):
        modes.append(torch.are_deterministic_algorithms_enabled())
        return original(self, step)

    monkeypatch.setattr(Trainer, "step", step)
    foresight = {"level": "internal", "k": 3}
    any_order = make_config(foresight=foresight, train={"batch_size": 300}, machine={"log_every": 1})
    fixed = any_order.with_machine(deterministic=True)
    assert fixed.fingerprint() == any_order.fingerprint()
    for name, config in (("any", any_order), ("fixed", fixed)):
        train(config, tmp_path / name)
        assert set(modes) == {config.machine.deterministic}
        assert not torch.are_deterministic_algorithms_enabled()
        modes.clear()
    assert losses_of(tmp_path / "fixed") == losses_of(tmp_path / "any")


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


def test_out_of_memory_with_one_image_at_a_time_ends_the_run(make_config, tmp_path, monkeypatch):
    def step(self, step):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Trainer, "step", step)
    calls = []
    config = make_config(machine={"micro_batches": 16})
    with pytest.raises(RunFailed, match=r"out of memory with machine.micro_batches: 16, the most"):
        train(config, tmp_path, on_evaluation=lambda: calls.append(1))
    failure = RunFolder(tmp_path).failure()
    assert failure.final and failure.micro_batches is None and calls == [1]


def test_the_next_attempt_reads_how_many_micro_batches_to_use(make_config, tmp_path):
    failure = Failure("OutOfMemoryError: no memory left", micro_batches=3)
    RunFolder(tmp_path).write_failure(failure)
    train(make_config(train={"batch_size": 500}), tmp_path)
    start = next(read_journal(tmp_path / "journal.jsonl"))
    assert start["config"]["machine"]["micro_batches"] == 4, "the next number that divides the batch"
    assert not (tmp_path / "failed.json").exists()


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


def test_a_run_that_asks_for_gpus_is_not_computed_on_the_cpu_unasked(make_config, tmp_path):
    config = make_config(machine={"gpus": 8, "device": "auto"})
    with pytest.raises(UserError, match=r"machine.gpus is 8, but no CUDA device .*machine.device: cpu"):
        train(config, tmp_path)


def test_an_evaluation_that_runs_out_of_memory_is_not_taken_for_a_step(make_config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop.Evaluator, "evaluate_model", full)
    with pytest.raises(RunFailed, match="the evaluation after step 3 ran out of memory"):
        train(make_config(train={"batch_size": 500}), tmp_path)
    assert json.loads((tmp_path / "failed.json").read_text()).get("micro_batches") is None


def test_a_teacher_that_runs_out_of_memory_is_not_taken_for_a_step(make_config, tmp_path, monkeypatch):
    attempts = []

    def full(*_, **__):
        attempts.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "Trainer", full)
    with pytest.raises(RunFailed, match=r"ran out of memory before the first step: .*machine\.gpus"):
        train(make_config(train={"batch_size": 500}), tmp_path)
    assert attempts == [1] and RunFolder(tmp_path).failure().micro_batches is None


def test_weights_of_chosen_epochs_are_kept(make_config, tmp_path):
    config = make_config(train={"epochs": 3}, machine={"keep_at": [1, 2], "keep_checkpoints": 1})
    train(config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "epoch_0001.safetensors",
        "epoch_0001_student.safetensors",
        "epoch_0002.safetensors",
        "epoch_0002_student.safetensors",
    ]
    shorter = tmp_path / "two_epochs_of_three"
    stopped = RunFolder(shorter)
    steps = new_trainer(config).steps_per_epoch * 2
    calls = iter(range(steps))
    with pytest.raises(KeyboardInterrupt):
        train(config, shorter, stop=lambda: next(calls) == steps - 1)
    # The same weights as those of a run that was stopped there.
    kept = load_weights(RunFolder(tmp_path).kept_file(2))
    found = load_weights(stopped.path)
    assert kept.keys() == found.keys() and all(torch.equal(kept[name], found[name]) for name in kept)
    student = read_tensors(RunFolder(tmp_path).kept_student_file(2))
    trained = load_latest(stopped).tensors["model"]
    assert student.keys() == trained.keys() and all(torch.equal(student[n], trained[n]) for n in student)
    with pytest.raises(UserError, match=r"machine.keep_at holds epoch 4, after train.epochs = 3"):
        make_config(train={"epochs": 3}, machine={"keep_at": [4]})


def test_the_speed_in_the_log_counts_the_time_before_a_checkpoint(make_config, tmp_path):
    """Checkpoints lie between two lines of the log, and a batch has 16 images."""
    train(make_config(machine={"log_every": 20, "checkpoint_every": 0.3}), tmp_path)
    steps = seconds = 0
    for line in read_journal(tmp_path / "journal.jsonl"):
        if line["kind"] == "train":
            seconds += 16 * (line["step"] - steps) / line["images_per_second"]
            steps = line["step"]
            assert seconds == pytest.approx(line["train_seconds"])


def test_a_journal_that_was_emptied_beside_a_checkpoint_is_refused(make_config, tmp_path):
    config = make_config(train={"epochs": 3}, evaluation={"at": [1, 2, 3]}, machine={"keep_checkpoints": 9})
    train(config, tmp_path)
    (tmp_path / "done.json").unlink()
    shutil.rmtree(saved(tmp_path)[-1])
    (tmp_path / "journal.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="holds 0 evaluations"):
        train(config, tmp_path)


def test_a_run_whose_weights_are_not_finite_has_no_metrics(make_config, tmp_path):
    config = make_config(train={"lr": 1e38, "weight_decay": 0.0})
    with pytest.raises(RunFailed, match="not finite"):
        train(config, tmp_path)
    assert not list(RunFolder(tmp_path).journal.lines("evaluation"))
