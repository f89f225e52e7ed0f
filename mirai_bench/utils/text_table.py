"""Tables as text: one for the console, and one in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "  # between two columns
# Puts a backslash before every character that means something in Markdown.
ESCAPES = str.maketrans({character: f"\\{character}" for character in "\\|`*_<["})


def console_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """Returns the table with aligned columns, for a terminal. With `right` all but the first end alike."""
    columns = zip(header, *rows, strict=True)
    widths = [max(len(text) for text in column) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        if right:
            cells[1:] = [cell.rstrip().rjust(width) for cell, width in zip(cells, widths, strict=True)][1:]
        lines.append(GAP.join(cells).rstrip())  # the last column is padded, too
    return "\n".join(lines)


def fitting(grid: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Returns the columns of each part of a table whose parts fit so many letters, if they can.

    All parts have the first column, which names the rows.
    """
    lengths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    parts = [[0]]
    for column, length in enumerate(lengths[1:], start=1):
        used = sum(lengths[each] + len(GAP) for each in parts[-1])
        if len(parts[-1]) > 1 and used + length > width:
            parts.append([0])
        parts[-1].append(column)
    return parts


def markdown_escape(text: str) -> str:
    """Returns the text with Markdown's special characters escaped."""
    return text.translate(ESCAPES)


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:", escape: bool = True
) -> str:
    """Returns the table in Markdown. `align` is that of all columns but the first.

    The texts are escaped. Without `escape` they are Markdown already.
    """
    write = markdown_escape if escape else str
    lines = [list(map(write, row)) for row in (header, *rows)]
    lines.insert(1, ["---"] + [align] * (len(header) - 1))  # Markdown's line below the header
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
