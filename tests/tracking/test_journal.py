"""The journal of a run: complete lines are read, and what will be written again is taken out."""

import pytest

from mirai_bench.tracking.journal import Journal, read_journal
from mirai_bench.utils.errors import UserError


def steps_of(path):
    return [(line["kind"], line["step"]) for line in read_journal(path)]


@pytest.fixture
def journal(tmp_path):
    """Three training steps, of which the second is evaluated."""
    journal = Journal(tmp_path / "journal.jsonl")
    for kind, step in (("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("end", 3)):
        journal.append({"kind": kind, "step": step}, durable=kind == "evaluation")
    return journal


def test_lines_are_read_in_the_order_in_which_they_were_written(journal, tmp_path):
    assert steps_of(journal.path) == [("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("end", 3)]
    assert steps_of(tmp_path / "absent.jsonl") == []


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
    journal.append({"kind": "train", "step": 3})
    assert steps_of(journal.path)[-1] == ("train", 3)


def test_going_back_in_a_journal_that_is_not_there_does_nothing(tmp_path):
    Journal(tmp_path / "journal.jsonl").rewind(2)
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_line_that_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"could not be written: .* The last checkpoint is intact"):
        Journal(tmp_path / "absent" / "journal.jsonl").append({"kind": "train", "step": 1})
