import json
import resource

import pytest
import torch

from mirai_bench.checkpoint.store import (
    Checkpoint,
    load_latest,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError
from tests.support.small_run import saved


def checkpoint(value: float) -> Checkpoint:
    tensors = {name: {"w": torch.full((3, 2), value)} for name in ("model", "ema", "optimizer")}
    return Checkpoint(tensors, {"counter": value})


@pytest.fixture
def run_dir(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(RunFolder(tmp_path), step, checkpoint(float(step)), keep=2)
    return tmp_path


def test_the_newest_are_kept_and_read_back(run_dir):
    assert [path.name for path in saved(run_dir)] == ["step_00000002", "step_00000003"]
    latest = load_latest(RunFolder(run_dir))
    assert latest.state["step"] == 3 and latest.state["counter"] == 3
    assert torch.equal(latest.tensors["ema"]["w"], torch.full((3, 2), 3.0))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, empty, remove])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"]
)
def test_a_broken_checkpoint_is_passed_over_with_a_warning_that_names_the_file(run_dir, damage, file, capsys):
    damage(run_dir / "checkpoints/step_00000003" / file)
    assert load_latest(RunFolder(run_dir)).state["step"] == 2
    assert f"step_00000003/{file}" in capsys.readouterr().err


def test_all_broken_is_an_error_and_deletes_nothing(run_dir):
    before = [path for path in saved(run_dir)]
    for folder in before:
        empty(folder / "model.safetensors")
    with pytest.raises(UserError, match="Nothing was deleted"):
        load_latest(RunFolder(run_dir))
    assert saved(run_dir) == before


def test_a_write_that_died_is_never_read(run_dir):
    half = run_dir / "checkpoints/step_00000009.tmp"
    half.mkdir()
    (half / "state.json").write_text(json.dumps({"step": 9}))
    assert load_latest(RunFolder(run_dir)).state["step"] == 3


def test_a_full_disk_is_a_clear_error_and_the_previous_checkpoint_is_intact(run_dir):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UserError, match="step 4 could not be written"):
            save_checkpoint(RunFolder(run_dir), 4, checkpoint(4.0), keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert load_latest(RunFolder(run_dir)).state["step"] == 3
    assert not list(run_dir.glob("checkpoints/*.tmp"))


def test_weights_are_read_from_a_run_a_folder_a_file_and_an_official_file(run_dir, tmp_path):
    official = tmp_path / "c2i_B_256.pt"
    torch.save({"model": {"w": torch.ones(2), "projectors.0.0.weight": torch.ones(2)}, "steps": 5}, official)
    folder = run_dir / "checkpoints/step_00000003"
    for path in (run_dir, folder, folder / "ema.safetensors"):
        assert torch.equal(load_weights(path)["w"], torch.full((3, 2), 3.0))
    assert list(load_weights(official)) == ["w"]


@pytest.mark.parametrize(
    "change",
    [
        {"step": 2},
        {"step": 10**9},
        {"step": "3"},
        {"step": True},
        {"train_seconds": "1"},
        {"train_seconds": None},
        {"counter": 4.0},
        {"sha256": []},
    ],
)
def test_a_state_that_was_changed_is_passed_over(run_dir, change):
    file = run_dir / "checkpoints/step_00000003/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert load_latest(RunFolder(run_dir)).state["step"] == 2


def test_an_older_state_has_no_hash_of_itself_but_is_of_its_folder(run_dir):
    file = run_dir / "checkpoints/step_00000003/state.json"
    state = json.loads(file.read_text())
    del state["sha256"]["state"]
    file.write_text(json.dumps(state))
    assert load_latest(RunFolder(run_dir)).state["step"] == 3
    file.write_text(json.dumps(state | {"step": 1}))
    assert load_latest(RunFolder(run_dir)).state["step"] == 2


class Trap:
    def __reduce__(self):
        import os

        return os.mkdir, ("trapped",)


def test_a_file_that_needs_pickle_is_refused(tmp_path, monkeypatch):
    import argparse

    monkeypatch.chdir(tmp_path)
    weights = {"w": torch.ones(2)}
    # LlamaGen's training saves its options, which are plain values.
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "plain.pt")
    assert torch.equal(load_weights(tmp_path / "plain.pt")["w"], weights["w"])
    for args in (Trap(), argparse.Namespace(trap=Trap())):
        torch.save({"model": weights, "args": args}, tmp_path / "trap.pt")
        with pytest.raises(UserError, match=r"it holds \w+\.mkdir, which only pickle reads") as refused:
            load_weights(tmp_path / "trap.pt")
        assert "\x1b" not in str(refused.value) and not (tmp_path / "trapped").exists()
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "damaged.pt").write_bytes(b"hello")
    for name in ("list", "damaged"):
        with pytest.raises(UserError, match=f"{name}.pt"):
            load_weights(tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match="no checkpoint"):
        load_weights(tmp_path / "absent.pt")


def test_the_state_is_plain_json(run_dir):
    assert read_checkpoint(RunFolder(run_dir), 3).state["sha256"].keys() == {
        "model",
        "ema",
        "optimizer",
        "state",
    }
