"""The folder of a run: its state by one rule, its failures, and its log."""

import json
import pickle
import re
import subprocess
import sys
import time

import pytest
import torch

from mirai_bench.tracking.failure import Failure, RunFailed
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Returns the folder of a run that has not been started."""
    return RunFolder(tmp_path / "run")


# ---- which run it is


def test_a_folder_holds_a_run_once_its_configuration_is_written(folder):
    assert not folder.holds_run
    with pytest.raises(UserError, match=r"run' is not a run folder \(it has no config.json\)"):
        folder.check()
    with pytest.raises(UserError, match="is not a run folder"):
        folder.config_fields()
    fields = {"profile": "digits", "seed": 3, "machine": {}}
    folder.write_config(json.dumps(fields))
    folder.check()
    assert folder.holds_run
    assert folder.config_fields() == fields


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "\0",
        "[" * 9999,
        '{"seed": 3}',
        '{"profile": "../x", "seed": 3, "machine": {}}',
        '{"profile": "digits", "seed": "3", "machine": {}}',
        '{"profile": 7, "seed": 3, "machine": {}}',
    ],
)
def test_a_configuration_of_another_kind_is_a_message(folder, content):
    folder.write_config(content)
    with pytest.raises(UserError, match="is no configuration of a run"):
        folder.config_fields()


def test_only_grids_in_the_run_s_own_folder_are_read(folder, tmp_path):
    (tmp_path / "secret.png").touch()
    folder.grids.mkdir(parents=True)
    (folder.grids / "epoch_0001.00.png").touch()
    (folder.grids / "link.png").symlink_to(tmp_path / "secret.png")
    (folder.grids / "notes.txt").touch()
    assert folder.grid_of({"grid": "samples/epoch_0001.00.png"}) == folder.grids / "epoch_0001.00.png"
    names = [str(tmp_path / "secret.png"), "../../secret.png", "samples/link.png", "samples/notes.txt"]
    for name in [*names, "samples", "..", "", None, 7, ["a"], "samples/absent.png"]:
        assert folder.grid_of({"grid": name}) is None
    assert folder.grid_of({}) is None


def test_a_grid_is_named_by_its_epoch(folder):
    assert str(folder.grid_file(2.5)) == "samples/epoch_0002.50.png"
    assert folder.path / folder.grid_file(2.5) == folder.grids / "epoch_0002.50.png"


# ---- the state

HOLD = """
import sys
from pathlib import Path
from mirai_bench.tracking.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock(wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process(folder):
    """Starts another process, which holds the run's lock."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_is_pending_until_it_is_started(folder):
    assert folder.state == "pending"
    assert not folder.path.exists(), "asking for the state makes no folder"


def test_a_run_whose_lock_another_process_holds_is_running(folder, other_process):
    folder.write_failure(Failure("of the attempt before"))
    assert folder.state == "running"
    with pytest.raises(UserError, match="is being trained by another process"), folder.lock(wait=False):
        pass


def test_a_run_whose_process_was_killed_is_pending(folder, other_process):
    """The system releases the lock, but the lock's file and a journal are left behind."""
    folder.journal.append({"kind": "start", "time": 0.0, "step": 0, "epoch": 0.0})
    other_process.kill()
    other_process.wait()
    assert folder.lock_file.is_file()
    assert folder.state == "pending"
    with folder.lock(wait=True):
        assert folder.state == "running"
    assert folder.state == "pending"


def test_a_run_that_left_a_failure_has_failed(folder):
    folder.write_failure(Failure("not finite", step=7))
    assert folder.state == "failed"


def test_a_run_that_is_done_stays_done(folder):
    folder.path.mkdir()
    folder.mark_done(step=90, seconds=12.5)
    folder.write_failure(Failure("too late"))
    with folder.lock(wait=False):
        assert folder.state == "done"
    assert folder.is_done
    done = json.loads(folder.done_file.read_text())
    assert done == {"step": 90, "seconds": 12.5, "journal": [0, 0]}


def test_a_finished_run_whose_journal_lost_evaluations_says_so(folder, capsys):
    folder.path.mkdir()
    for step in (1, 2):
        folder.journal.append({"kind": "evaluation", "step": step})
    folder.mark_done(step=2, seconds=1.0)
    folder.warn_of_lost_lines()
    assert capsys.readouterr().err == ""
    text = folder.journal.path.read_text().splitlines(keepends=True)
    folder.journal.path.write_text(text[0])
    folder.warn_of_lost_lines()
    assert "journal.jsonl has lost 1 of 2 evaluations" in capsys.readouterr().err


def test_a_configuration_that_is_not_the_one_of_the_start_is_refused(folder):
    folder.write_config(json.dumps({"profile": "x", "seed": 3, "train": {"lr": 0.1}, "machine": {"a": 1}}))
    folder.check_config()  # an imported run has no journal
    config = {"profile": "x", "seed": 3, "train": {"lr": 0.1}, "machine": {}}
    start = {"kind": "start", "time": 0.0, "step": 0, "epoch": 0.0}
    folder.journal.append(start | {"config": config})
    folder.check_config()
    folder.journal.append(start | {"config": config | {"train": {"lr": 0.2}}})
    with pytest.raises(UserError, match=r"train is \{'lr': 0\.1\}, but the journal says"):
        folder.check_config()


# ---- failures


@pytest.mark.parametrize(
    "failure",
    [
        Failure("out of memory", micro_batches=4),
        Failure("not finite", step=7, final=True),
        Failure("a worker was lost"),
    ],
)
def test_a_failure_comes_back_as_it_was_written(folder, failure):
    folder.write_failure(failure)
    assert folder.failure() == failure


def test_the_first_failure_of_an_attempt_stands(folder):
    """If several ranks fail, the others fail because the first one is gone."""
    folder.write_failure(Failure("not finite", step=7))
    folder.write_failure(Failure("the other rank is gone"))
    assert folder.failure() == Failure("not finite", step=7)


def test_a_new_attempt_takes_the_failure_and_may_leave_its_own(folder):
    folder.write_failure(Failure("MemoryError: too little", micro_batches=4))
    assert folder.take_failure() == Failure("MemoryError: too little", micro_batches=4)
    assert folder.take_failure() is None
    assert folder.state == "pending"
    folder.write_failure(Failure("another one"))
    assert folder.failure() == Failure("another one")


@pytest.mark.parametrize("content", ["", "not JSON", "[1, 2]", '{"step": 3}'])
def test_a_failure_that_cannot_be_read_is_a_failure_all_the_same(folder, content):
    folder.path.mkdir()
    folder.failure_file.write_text(content)
    assert folder.state == "failed"
    assert folder.failure() == Failure("no reason was left")


def test_fields_of_a_failure_that_this_version_does_not_know_are_left_out(folder):
    folder.path.mkdir()
    folder.failure_file.write_text('{"reason": "x", "host": "a"}')
    assert folder.failure() == Failure("x")


def test_a_failure_without_micro_batches_is_written_without_them(folder):
    folder.write_failure(Failure.of(RunFailed("not finite", 7)))
    expected = {"reason": "not finite", "step": 7, "final": True}
    assert json.loads(folder.failure_file.read_text()) == expected


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RunFailed("not finite", 7), Failure("not finite", 7, final=True)),
        (UserError("wrong config"), Failure("wrong config", final=True)),
        (MemoryError("too little"), Failure("MemoryError: too little", micro_batches=2)),
        (ConnectionError("gone"), Failure("ConnectionError: gone")),
        (RuntimeError("CUDA error: unspecified"), Failure("RuntimeError: CUDA error: unspecified")),
        (IndexError("out of range"), Failure("IndexError: out of range", final=True)),
        (KeyError("x"), Failure("KeyError: 'x'", final=True)),
    ],
)
def test_an_error_is_final_if_another_attempt_would_end_in_the_same_way(error, failure):
    assert Failure.of(error, failure.micro_batches)._replace(traceback=None) == failure


def test_an_error_of_shapes_is_final():
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert Failure.of(caught.value).final
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) + torch.zeros(3)
    assert Failure.of(caught.value).final


def test_an_error_that_was_not_foreseen_says_where_it_arose(folder):
    with pytest.raises(IndexError) as caught:
        [][0]
    folder.write_failure(Failure.of(caught.value))
    found = folder.failure()
    place = r"IndexError: list index out of range \(test_run_folder.py, line \d+, in test_an_error_that\w+\)"
    assert re.fullmatch(place, found.reason)
    assert found.traceback.startswith("Traceback") and "[][0]" in found.traceback
    assert Failure.of(UserError("what the user reads")).traceback is None


def test_a_failure_says_the_step_at_which_it_happened():
    assert str(Failure("not finite", 7)) == "not finite (step 7)"
    assert str(Failure("a worker was lost")) == "a worker was lost"


def test_the_step_survives_the_way_from_a_worker_to_its_trial():
    error = pickle.loads(pickle.dumps(RunFailed("not finite", 7)))
    assert (str(error), error.step) == ("not finite", 7)


def test_the_reason_of_a_failure_is_in_words_even_if_a_new_attempt_has_taken_it(folder):
    folder.write_failure(Failure("not finite", 7))
    assert folder.reason() == "not finite (step 7)"
    folder.take_failure()
    assert folder.reason() == "no reason was left"


def test_a_failure_has_the_time_at_which_it_was_written(folder):
    assert folder.failure_written_at() == 0.0
    folder.write_failure(Failure("x"))
    assert folder.failure_written_at() == pytest.approx(time.time(), abs=30)


def test_a_full_disk_is_not_reported_twice(folder, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mirai_bench.tracking.run_folder.write_text", full)
    folder.write_failure(Failure("no space left on device"))
    assert folder.failure() is None


# ---- what the run says


def test_what_a_run_says_goes_to_its_log(folder, capsys):
    with folder.log():
        print("a result")
        print("a message", file=sys.stderr)
    with folder.log():
        print("a second attempt")
    assert folder.log_file.read_text() == "a result\na message\na second attempt\n"
    assert capsys.readouterr() == ("", "")
