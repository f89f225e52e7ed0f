"""What commands share: the lines about their progress, and how they end."""

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
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to resume\n"),
    ],
)
def test_a_command_ends_with_one_message_and_an_exit_code(raised, code, message, capsys):
    def command(argv):
        raise raised

    assert cli.run(command, []) == code
    assert capsys.readouterr().err == message
