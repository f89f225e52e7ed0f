"""Writes a document as LaTeX: floats that fit a column or a page, with their notes below in small print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mirai_bench.results.writers import Document, Grid, Mark
from mirai_bench.utils.text_table import fitting


@dataclass(frozen=True)
class Width:
    """What a float may be as wide as."""

    environment: str
    size: str
    """Of the letters in the table."""
    letters: int
    """So many fit beside each other, as a rule. A row that is longer is continued in another float."""


WIDTHS = {
    "column": Width("table", r"\scriptsize", 72),
    "page": Width("table*", r"\footnotesize", 125),  # of two columns, or the only one there is
}
NEEDS = r"% needs \usepackage{booktabs,graphicx}"
MARKED = (
    "Bold: the best mean. $^{*}$: shown to differ from the baseline, by the verdict or else by the "
    "corrected p below 0.05."
)

# LaTeX for characters that mean something in it, or that it does not know.
TEXT = ["backslash", "asciitilde", "asciicircum", "less", "greater", "bar"]
MATH = ["pm", "times", "Delta", "lambda", "rho", "infty", "downarrow", "uparrow", "geq", "leq"]
LATEX = {"…": r"\ldots{}", "−": "$-$", "[": "{[}", "]": "{]}", "—": "---", "–": "--", "é": r"\'e"}
LATEX |= {character: "\\" + character for character in "&%$#_{}"}
LATEX |= {character: rf"\text{name}{{}}" for character, name in zip("\\~^<>|", TEXT, strict=True)}
LATEX |= {character: rf"$\{name}$" for character, name in zip("±×Δλρ∞↓↑≥≤", MATH, strict=True)}


def latex_escape(text: str) -> str:
    """Returns the text in plain ASCII, as LaTeX typesets it."""
    return "".join(LATEX.get(character, character) for character in text)


def in_latex(texts: Document, label: str, width: str = "page") -> str:
    """Returns a float with a tabular for each grid, labelled tab:LABEL, tab:LABEL-2 and so on.

    Those that are wider than `width`, which is one of WIDTHS, are continued in a float of their own. The
    notes stand below the first one.
    """
    # 1. The tabulars: the names of the columns of a grid, and the cells of those that fit.
    form = WIDTHS[width]
    tabulars = []
    for number, grid in enumerate(texts.grids):
        cells = _marked(grid, {place[1:]: mark for place, mark in texts.marks.items() if place[0] == number})
        tabulars += [_tabular(cells, columns) for columns in fitting(grid, form.letters)]
    # 2. The floats.
    notes = [*map(latex_escape, texts.notes), *([MARKED] if texts.marks else [])]
    floats = []
    for number, tabular in enumerate(tabulars, start=1):
        part = f" (part {number} of {len(tabulars)})" if len(tabulars) > 1 else ""
        place = f"tab:{label}" if number == 1 else f"tab:{label}-{number}"
        head = [rf"\begin{{{form.environment}}}", r"\centering", form.size, r"\setlength{\tabcolsep}{3pt}"]
        head += [rf"\caption{{{latex_escape(texts.title + part)}}}", rf"\label{{{place}}}"]
        below = _small_print(notes) if number == 1 else []
        # Shrunk if it is still too wide: an estimate by letters does not know the font of the document.
        fitted = [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", tabular, "}"]
        floats.append("\n".join([*head, *fitted, *below, rf"\end{{{form.environment}}}"]))
    return f"{NEEDS}\n" + "\n\n".join(floats) + "\n"


def _small_print(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    begin = r"\par\smallskip\begin{minipage}{\linewidth}\scriptsize\raggedright"
    return [begin, " \\\\\n".join(notes), r"\end{minipage}"]


def _marked(grid: Grid, marks: dict[tuple[int, ...], Mark]) -> Grid:
    """Returns the cells in LaTeX: the best of a column in bold, what is significant with a star."""
    cells = [list(map(latex_escape, line)) for line in grid]
    for (row, column), mark in marks.items():
        text = cells[row][column]
        text = rf"\textbf{{{text}}}" if mark.best else text
        cells[row][column] = rf"{text}$^{{*}}$" if mark.significant else text
    return cells


def _tabular(cells: Grid, columns: Sequence[int]) -> str:
    header, *rows = [" & ".join(line[column] for column in columns) + r" \\" for line in cells]
    form = "l" + "r" * (len(columns) - 1)
    lines = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", header, r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
