"""Prints a document: aligned and without escapes on a terminal, in Markdown into a pipe or a file."""

from __future__ import annotations

import shutil
import sys
import textwrap

from mirai_bench.results.writers import Document, in_markdown
from mirai_bench.utils.text_table import console_table, fitting


def for_stdout(texts: Document) -> str:
    """Returns a document in the form that suits where stdout leads."""
    if not sys.stdout.isatty():
        return in_markdown(texts)
    return in_plain_text(texts, shutil.get_terminal_size().columns)


def in_plain_text(texts: Document, width: int) -> str:
    """Returns a document for a terminal of this width.

    A grid that is wider goes on below, with the names of its rows.
    """
    blocks = [textwrap.fill(texts.title, width)]
    for grid in texts.grids:
        for columns in fitting(grid, width):
            header, *rows = [[line[column] for column in columns] for line in grid]
            blocks.append(console_table(header, rows, right=True))
    notes = [textwrap.fill(f"- {note}", width, subsequent_indent="  ") for note in texts.notes]
    return "\n\n".join([*blocks, "\n".join(notes)]).rstrip() + "\n"
