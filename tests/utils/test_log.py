"""What a command says: plain on a terminal, with time and rank in a file."""

import contextlib
import io
import logging
import re

from mirai_bench.utils.log import configure_logging


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said_to(stream):
    configure_logging()
    log = logging.getLogger("mirai_bench.tests")
    with contextlib.redirect_stderr(stream):
        log.info("3 cells to run")
        log.warning("a node is missing")
    return stream.getvalue().splitlines()


def test_a_terminal_shows_plain_lines():
    assert said_to(Terminal()) == ["3 cells to run", "warning: a node is missing"]


def test_a_file_has_the_time_and_with_several_processes_the_rank(monkeypatch):
    first, second = said_to(io.StringIO())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d 3 cells to run", first)
    assert second.endswith(" warning: a node is missing")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    first, _ = said_to(io.StringIO())
    assert first.endswith(" [rank 1] 3 cells to run")


def test_configuring_twice_says_nothing_twice():
    configure_logging()
    configure_logging()
    assert len(said_to(Terminal())) == 2
