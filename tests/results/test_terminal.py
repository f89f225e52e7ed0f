"""What is printed: aligned lines that fit a terminal, and Markdown where it is no terminal."""

import sys

import pytest

from mirai_bench.results.table import build_table
from mirai_bench.results.terminal import for_stdout, in_plain_text
from mirai_bench.results.writers import document, in_markdown


@pytest.fixture
def texts(frozen):
    return document(build_table(frozen))


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_a_table_fits_the_terminal_and_loses_nothing(texts, width):
    text = in_plain_text(texts, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    cells = [cell for grid in texts.grids for row in grid for cell in row]
    assert all(" ".join(cell.split()) in words for cell in cells)
    assert all(" ".join(note.split()) in words for note in texts.notes)
    assert "odd_name<&>#1%|" in text, "nothing is escaped"


def test_numbers_end_below_each_other(texts):
    lines = in_plain_text(texts, 300).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("arm "))
    header, *rows = lines[start : start + 1 + len(texts.grids[0][1:])]
    end = header.index("FD-digits ↓") + len("FD-digits ↓")
    assert [row[:end].split()[-1] for row in rows[:3]] == ["0.50", "2.54", "0.38"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_pipe_gets_markdown(texts, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setenv("COLUMNS", "90")
    assert for_stdout(texts) == (in_plain_text(texts, 90) if is_terminal else in_markdown(texts))
