"""What commands share: the lines about their progress, and how they end."""

import argparse
import errno
import io

import pytest

from mirai_bench.utils import cli
from mirai_bench.utils.errors import UserError
from tests.support.small_sweeps import said


def test_progress_counts_what_an_item_weighs(monkeypatch, capsys):
    clock = iter([0, 10, 40, 50])
    monkeypatch.setattr(cli, "monotonic", lambda: next(clock))
    assert list(cli.progress([100, 100, 50], "encoding", 1250, "images", 1000, weigh=int)) == [100, 100, 50]
    assert said(capsys.readouterr().err) == ["encoding: 1200/1250 images, 5.0 images/s, 10 s left"]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("width is 3: write 4"), 2, "error: width is 3: write 4\n"),
        (UserError("name \x1b[31m\udce9"), 2, "error: name \\x1b[31m\\udce9\n"),
        (UserError("x" * 9999), 2, f"error: {'x' * 4000}…\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "error: runs/x: No space left on device. What was written before is whole\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system"),
            2,
            "error: a file: Read-only file system. What was written before is whole\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs"),
            2,
            "error: runs: Permission denied. What was written before is whole\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to resume\n"),
    ],
)
def test_a_command_ends_with_one_message_and_an_exit_code(raised, code, message, capsys):
    def command(argv):
        raise raised

    assert cli.run(command, []) == code
    assert capsys.readouterr().err == message


def test_an_error_of_another_kind_keeps_its_traceback():
    def command(argv):
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        cli.run(command, [])


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_no_result_is_lost_for_a_character_that_the_terminal_lacks(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)

    def command(argv):
        print("FD-digits ↓ 5.1 ± 0.2 \udce9")

    assert cli.run(command, []) == 0
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding).startswith("FD-digits ")


@pytest.mark.parametrize("words", [["0", "1", "2"], ["0,1,2"], ["0,1", "2"], ["0", "--seeds", "1,2,"]])
def test_numbers_are_separated_by_spaces_or_commas(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs="+", action=cli.Numbers, default=[])
    assert parser.parse_args(["--seeds", *words]).seeds == [0, 1, 2]
    assert parser.parse_args([]).seeds == [], "the default of the next command is empty again"


@pytest.mark.parametrize("word", ["0,x", ",", ""])
def test_what_is_no_number_is_said(word, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs="+", action=cli.Numbers, default=[])
    with pytest.raises(SystemExit):
        parser.parse_args(["--seeds", word])
    assert f"--seeds: write whole numbers, found {word!r}" in capsys.readouterr().err
