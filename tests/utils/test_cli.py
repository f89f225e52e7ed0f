"""The lines that commands print about their progress."""

from mirai_bench.utils import cli


def test_progress_counts_what_an_item_weighs(monkeypatch, capsys):
    clock = iter([0, 10, 40, 50])
    monkeypatch.setattr(cli, "monotonic", lambda: next(clock))
    assert list(cli.progress([100, 100, 50], "encoding", 1250, "images", 1000, weigh=int)) == [100, 100, 50]
    assert capsys.readouterr().err == "encoding: 1200/1250 images, 5.0 images/s, 10 s left\n"
