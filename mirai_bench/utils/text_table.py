"""Tables as text: one for the console, and one in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

SPECIAL = "\\|`*_<["  # characters that mean something in Markdown


def console_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the table with aligned columns, for a terminal."""
    columns = zip(header, *rows, strict=True)
    widths = [max(len(text) for text in column) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_escape(text: str) -> str:
    """Returns the text with Markdown's special characters escaped."""
    for character in SPECIAL:
        text = text.replace(character, "\\" + character)
    return text


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:", escape: bool = True
) -> str:
    """Returns the table in Markdown. `align` is that of all columns but the first.

    The texts are escaped. Without `escape` they are Markdown already.
    """
    lines = [list(row) for row in (header, *rows)]
    if escape:
        lines = [[markdown_escape(text) for text in line] for line in lines]
    lines.insert(1, ["---"] + [align] * (len(header) - 1))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
