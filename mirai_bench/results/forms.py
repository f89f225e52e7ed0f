"""A table in all its forms, by the endings of their files."""

from __future__ import annotations

from collections.abc import Sequence

from mirai_bench.results.latex import in_latex
from mirai_bench.results.table import Table
from mirai_bench.results.writers import comma_separated, document, in_html, in_markdown


def forms(table: Table, stem: str, columns: Sequence[str] = (), width: str = "page") -> dict[str, str]:
    """Returns the table as Markdown, CSV, LaTeX and HTML.

    `columns` are those to be shown, by default all; CSV always has all. `stem` is that of the files, and
    labels the table in LaTeX, where it fits a column or a page.
    """
    texts = document(table, columns)
    return {
        "md": in_markdown(texts),
        "csv": comma_separated(table),
        "tex": in_latex(texts, stem, width),
        "html": in_html(texts),
    }
