"""The journal of a run: its complete lines, what is taken out of it, and what is read from it."""

import json
import time

import pytest

from mirai_bench.tracking.journal import Journal, read_journal
from mirai_bench.utils.errors import UserError

# What every line of a run has, besides its kind.
LINE = {"time": 0.0, "step": 0, "epoch": 0.0, "train_seconds": 0.0}
EVALUATION = {"kind": "evaluation", "metrics": {}, "protocol_digest": "0"}


def steps_of(path):
    return [(line["kind"], line["step"]) for line in read_journal(path)]


@pytest.fixture
def journal(tmp_path):
    """Returns a journal of three training steps, of which the second is evaluated."""
    journal = Journal(tmp_path / "journal.jsonl")
    for kind, step in (("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("end", 3)):
        line = LINE | (EVALUATION if kind == "evaluation" else {})
        journal.append(line | {"kind": kind, "step": step}, durable=kind == "evaluation")
    return journal


def test_lines_are_read_in_the_order_in_which_they_were_written(journal, tmp_path):
    assert steps_of(journal.path) == [("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("end", 3)]
    assert steps_of(tmp_path / "absent.jsonl") == []


def test_lines_of_one_kind_are_read_alone(journal):
    assert [line["step"] for line in journal.lines("train")] == [1, 2, 3]
    assert journal.has("evaluation", 2) and not journal.has("evaluation", 3)


def test_a_line_that_was_being_written_is_left_out(journal):
    whole = steps_of(journal.path)
    with journal.path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert steps_of(journal.path) == whole


def test_going_back_to_a_checkpoint_takes_out_later_lines_the_end_and_half_a_line(journal):
    with journal.path.open("a") as file:
        file.write('{"kind": "train", "st')
    journal.rewind(2)
    assert steps_of(journal.path) == [("train", 1), ("train", 2), ("evaluation", 2)]
    journal.append(LINE | {"kind": "train", "step": 3})
    assert steps_of(journal.path)[-1] == ("train", 3)


def test_going_back_in_a_journal_that_is_not_there_does_nothing(tmp_path):
    Journal(tmp_path / "journal.jsonl").rewind(2)
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_line_that_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"could not be written: .* The last checkpoint is intact"):
        Journal(tmp_path / "absent" / "journal.jsonl").append({"kind": "train", "step": 1})


GOOD = json.dumps(LINE | {"kind": "train", "step": 9}).encode()


@pytest.mark.parametrize(
    "damaged",
    [
        b"\0" * 200,
        GOOD + GOOD,  # two lines run together
        GOOD[:40],
        b"[]",
        b"{}",
        b"7",
        b'{"kind": 7}',
        b"[" * 10_000,
        b"\xff\xfe",
        b'{"kind": "evaluation", "step": 1, "epoch": 1.0, "time": 0.0}',
        b'{"kind": "train", "step": "1", "epoch": 1.0, "time": 0.0}',
        b'{"kind": "train", "step": NaN, "epoch": 1.0, "time": 0.0, "train_seconds": 1.0}',
    ],
)
def test_a_damaged_line_is_left_out_and_nothing_else(journal, damaged):
    whole = steps_of(journal.path)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join([lines[0], damaged + b"\n", *lines[1:]]))
    assert [(line["kind"], line["step"]) for line in journal.lines()] == whole
    assert journal.progress(epochs=3).epoch == 0.0


def test_damaged_lines_are_counted_once(journal, capsys):
    with journal.path.open("ab") as file:
        file.write(b"\0\0\n\0\n")
    for _ in range(2):
        steps_of(journal.path)
    assert capsys.readouterr().err.count("2 damaged lines are left out, the first is line 6") == 1


def test_a_journal_that_lost_evaluations_is_refused_and_one_that_lost_other_lines_is_mentioned(
    journal, capsys
):
    then = journal.counts()
    assert then == (5, 1)
    journal.check(then)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[1:]))
    journal.check(then)
    assert "has lost 1 of 5 lines" in capsys.readouterr().err
    for content in (b"", b"".join(lines[:2])):
        journal.path.write_bytes(content)
        with pytest.raises(UserError, match="holds 0 evaluations, but held 1"):
            journal.check(then)
    journal.path.unlink()
    with pytest.raises(UserError, match="holds 0 evaluations"):
        journal.check(then)


# ---- what is read from it


@pytest.fixture
def empty(tmp_path):
    """Returns a journal that has no file yet."""
    return Journal(tmp_path / "empty.jsonl")


def write(journal, *lines):
    journal.path.write_text("".join(json.dumps(LINE | line) + "\n" for line in lines))


def test_progress_of_a_resumed_run(empty):
    """It takes 20 s per epoch since it was resumed, and there are six epochs to go."""
    now = time.time()
    lines = [("start", 0, now - 900), ("train", 2, now - 800), ("start", 2, now - 40), ("train", 4, now)]
    write(empty, *({"kind": kind, "epoch": epoch, "time": at} for kind, epoch, at in lines))
    with empty.path.open("a") as file:
        file.write('{"kind": "tr')
    progress = empty.progress(epochs=10)
    assert progress.epoch == 4
    assert progress.seconds_left == pytest.approx(120, abs=5)


def test_there_is_no_pace_before_the_first_step(empty):
    assert empty.progress(epochs=10) == (0.0, None)
    write(empty, {"kind": "start", "epoch": 2.0, "time": time.time()})
    assert empty.progress(epochs=10) == (2.0, None)


def test_the_first_start_after_a_moment(empty):
    starts = [{"kind": "start", "epoch": 0.0, "time": at} for at in (10.0, 20.0, 30.0)]
    write(empty, *starts, {"kind": "train", "epoch": 1.0, "time": 40.0})
    assert empty.started_after(15.0) == 20.0
    assert empty.started_after(30.0) is None


def test_measured_seconds_are_those_of_training_steps_sampling_and_evaluation(empty):
    assert empty.measured_seconds() == {"training steps": 0.0, "sampling": 0.0, "evaluation": 0.0}
    assert empty.counts().evaluations == 0
    evaluation = EVALUATION | {"sample_seconds": 2.0, "evaluate_seconds": 0.5}
    train = {"kind": "train", "train_seconds": 30.0}
    write(empty, {"kind": "start"}, train, evaluation, evaluation, {"kind": "end", "train_seconds": 60.0})
    assert empty.measured_seconds() == {"training steps": 60.0, "sampling": 4.0, "evaluation": 1.0}
    assert empty.counts().evaluations == 2


@pytest.mark.parametrize("place", range(0, 60, 3))
def test_a_flipped_bit_of_a_line_is_seen(tmp_path, place):
    """A damaged number is still a number, which only a checksum tells."""
    path = tmp_path / "journal.jsonl"
    line = {"kind": "evaluation", "step": 6, "metrics": {"FD-digits": 3.25, "recall": 0.5}}
    for _ in range(2):
        Journal(path).append(line)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert list(read_journal(path)) == [line]


def test_a_line_of_an_earlier_version_has_no_checksum(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n')
    assert list(read_journal(path)) == [{"kind": "train", "step": 1}]
