"""Checkpoints from a thread: the same ones, an error that is seen, and nobody who writes afterwards."""

import threading
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from mirai_bench.checkpoint.store import Checkpoint
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train import loop, saving
from mirai_bench.train.saving import CheckpointWriter
from mirai_bench.utils.errors import UserError
from tests.support.small_run import saved, train


def content(value: float) -> Checkpoint:
    files = ("model", "ema", "optimizer")
    return Checkpoint({file: {"w": torch.full((3,), value)} for file in files}, {"train_seconds": 0.0})


@pytest.fixture
def gate(monkeypatch):
    """Holds up the writing until it is opened."""
    opened = threading.Event()
    original = saving.save_checkpoint

    def slow(*args):
        assert opened.wait(20)
        return original(*args)

    monkeypatch.setattr(saving, "save_checkpoint", slow)
    return opened


def test_the_state_is_that_of_its_step(tmp_path, gate):
    with CheckpointWriter(RunFolder(tmp_path), keep=2, in_thread=True) as writer:
        state = content(1.0)
        writer.save(1, state)
        state.tensors["model"]["w"].fill_(2.0)  # the next step
        assert saved(tmp_path) == []
        gate.set()
    (path,) = saved(tmp_path)
    assert torch.equal(load_file(path / "model.safetensors")["w"], torch.ones(3))


def test_one_waits_for_the_other_and_the_end_for_both(tmp_path, gate):
    writer = CheckpointWriter(RunFolder(tmp_path), keep=1, in_thread=True)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.save(1, content(1.0))
        threading.Timer(0.1, gate.set).start()
        writer.save(2, content(2.0))  # after the first one
        assert gate.is_set()
        raise KeyboardInterrupt
    assert [path.name for path in saved(tmp_path)] == ["step_00000002"]


def full_disk(*args):
    raise UserError("The checkpoint could not be written: No space left on device")


def test_a_full_disk_is_an_error_of_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(saving, "save_checkpoint", full_disk)
    new_writer = partial(CheckpointWriter, RunFolder(tmp_path), keep=1, in_thread=True)
    with pytest.raises(UserError, match="No space left"), new_writer() as writer:
        writer.save(1, content(1.0))
    with pytest.raises(KeyError), new_writer() as writer:
        writer.save(1, content(1.0))
        raise KeyError  # what ended the run
    assert "No space left" in caplog.text


@pytest.fixture
def config(make_config, monkeypatch):
    """A run of six steps with two checkpoints, which a thread writes although it is on a CPU."""
    in_thread = partial(CheckpointWriter, in_thread=True)
    monkeypatch.setattr(loop, "CheckpointWriter", lambda folder, keep, _: in_thread(folder, keep))
    return make_config(train={"batch_size": 250}, machine={"checkpoint_every": 0.5, "keep_checkpoints": 9})


def test_a_run_writes_the_same_from_a_thread(config, tmp_path, monkeypatch):
    train(config, tmp_path / "thread")
    monkeypatch.undo()
    train(config, tmp_path / "plain")
    names = [path.name for path in saved(tmp_path / "plain")]
    assert len(names) == 2 and names == [path.name for path in saved(tmp_path / "thread")]
    for name in names:
        for file in ("model", "ema", "optimizer"):
            one, other = (
                (tmp_path / run / "checkpoints" / name / f"{file}.safetensors").read_bytes()
                for run in ("plain", "thread")
            )
            assert one == other


def test_a_run_whose_last_checkpoint_fails_is_not_done(config, tmp_path, monkeypatch):
    original = saving.save_checkpoint

    def save(folder, step, *rest):
        return full_disk() if step == 6 else original(folder, step, *rest)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    with pytest.raises(UserError, match="No space left"):
        train(config, tmp_path)
    folder = RunFolder(tmp_path)
    assert not folder.is_done and saved(tmp_path)[-1].name == "step_00000003"
    monkeypatch.setattr(saving, "save_checkpoint", original)
    train(config, tmp_path)
    assert folder.is_done


def test_a_run_that_is_asked_to_stop_has_its_checkpoint(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, stop=lambda: True)
    assert saved(tmp_path)[-1].name == "step_00000001"
