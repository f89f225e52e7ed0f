"""Writes a table as Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from mirai_bench.results.frame import is_distance, lower_is_better
from mirai_bench.results.paper import papers_name
from mirai_bench.results.stats import Estimate
from mirai_bench.results.table import MISSING, Row, Table, as_change
from mirai_bench.utils.text_table import markdown_escape, markdown_table

DECIMALS = {"FID": 2, "sFID": 2, "FD-": 2, "IS": 1, "KID": 4}  # by the beginning of a metric's name
MOST_DECIMALS = 3  # of other metrics
CSV_COLUMNS = (
    "arm,metric,n,planned,mean,ci95_low,ci95_high,scale,difference,difference_low,"
    "difference_high,p_holm,verdict,paper,paper_mark,flops_ratio"
)

Grid = list[list[str]]  # a header, and rows of as many texts


# ---- numbers as texts


def number(value: float | None, metric: str = "", sign: bool = False) -> str:
    """Writes a value of a metric, with as many decimals as is usual for it."""
    if value is None or math.isnan(value):
        return MISSING
    decimals = [each for prefix, each in DECIMALS.items() if metric.startswith(prefix)]
    digits = f".{decimals[0] if decimals else MOST_DECIMALS}f"
    return _with_minus(format(value, f"+{digits}" if sign else digits))


def _with_minus(text: str) -> str:
    return text.replace("-", "−")  # the minus sign, which is as wide as a plus


def p_value(p: float) -> str:
    """Writes a p-value with three decimals."""
    if math.isnan(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference(estimate: Estimate | None, metric: str) -> str:
    """Writes a difference with its sign and, if there is one, its interval.

    That of the logarithms of a Fréchet distance is written as a change in per cent.
    """
    if estimate is None:
        return MISSING
    values = [estimate.mean, estimate.low, estimate.high]
    unit = ""
    if is_distance(metric):
        mean, low, high = (_with_minus(f"{100 * math.expm1(value):+.1f}") for value in values)
        unit = " %"
    else:
        mean, low, high = (number(value, metric, sign=True) for value in values)
    return mean + unit if math.isnan(estimate.half) else f"{mean}{unit} [{low}, {high}]"


def _plus_minus(row: Row, metric: str) -> str:
    estimate = row.values[metric]
    if estimate is None:
        return MISSING
    half = "" if math.isnan(estimate.half) else f" ± {number(estimate.half, metric)}"
    # The row says its n once. A metric that some of these seeds lack says its own.
    n = "" if estimate.n == row.n else f" (n {estimate.n})"
    return number(estimate.mean, metric) + half + n


def _ratio(estimate: Estimate | None) -> str:
    return MISSING if estimate is None else f"{estimate.mean:.2f}"


# ---- the table as grids of texts


class Document(NamedTuple):
    """Grids of texts with a title above and notes below."""

    title: str
    grids: Sequence[Grid]
    notes: Sequence[str]


def document(table: Table) -> Document:
    """Returns the texts of a table."""
    return Document(table.title, _grids(table), table.notes)


def _grids(table: Table) -> list[Grid]:
    """Returns the primary metric against the baseline and then the other metrics, if any."""
    # Two grids, because one with differences, tests and costs besides would not fit a page.
    parts = (_main_cells, _other_cells) if len(table.metrics) > 1 else (_main_cells,)
    grids = []
    for cells_of in parts:
        rows = [cells_of(table, row) for row in table.rows]
        grids.append([list(rows[0]), *(list(row.values()) for row in rows)])
    return grids


def _main_cells(table: Table, row: Row) -> dict[str, str]:
    first = table.metrics[0]
    change = row.differences.get(first)
    paper = row.paper.get(first)
    cells = {
        "arm": row.arm,
        "n": str(row.n) if row.n == row.planned else f"{row.n} of {row.planned}",
        _with_arrow(first): _plus_minus(row, first),
        f"Δ to {table.baseline}": difference(change, first),
    }
    if table.floor is not None:
        cells["noise floor"] = MISSING if change is None else as_change(table.floor, first)
    cells["p (Holm)"] = p_value(change.p) if change else MISSING
    if any(each.verdict for each in table.rows):
        cells["verdict"] = row.verdict or MISSING
    if any(first in each.paper for each in table.rows):  # all rows have the same columns
        text = f"{paper.value:.2f} @{paper.epochs} [{paper.mark}]" if paper else MISSING
        cells[f"paper: {papers_name(first)}"] = text
    cells["FLOPs ×"] = _ratio(row.flops)
    if table.timing:
        cells["time ×"] = _ratio(row.seconds)
    return cells


def _other_cells(table: Table, row: Row) -> dict[str, str]:
    values = {_with_arrow(name): _plus_minus(row, name) for name in table.metrics[1:]}
    return {"arm": row.arm} | values


def _with_arrow(metric: str) -> str:
    return f"{metric} {'↓' if lower_is_better(metric) else '↑'}"


# ---- the four forms


def markdown(table: Table) -> str:
    """Returns the table in Markdown."""
    return in_markdown(document(table))


def markdown_of_main(table: Table) -> str:
    """Returns the part of the table with the primary metric in Markdown, without notes."""
    return in_markdown(Document(table.title, _grids(table)[:1], []))


def in_markdown(texts: Document) -> str:
    """Returns a document in Markdown."""
    grids = "\n".join(markdown_table(header, rows) for header, *rows in texts.grids)
    notes = "".join(f"- {markdown_escape(note)}\n" for note in texts.notes)
    return f"**{markdown_escape(texts.title)}**\n\n{grids}\n{notes}"


def comma_separated(table: Table) -> str:
    """Returns the table as CSV: one line per arm and metric, all differences included."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    # A line per arm and metric, and not a column per metric: the columns are those of any sweep.
    writer.writerow(CSV_COLUMNS.split(",") + (["seconds_ratio"] if table.timing else []))
    for row in table.rows:
        costs = [row.flops, row.seconds] if table.timing else [row.flops]
        ratios = [_exact(cost, "mean") for cost in costs]
        for name in table.metrics:
            value = row.values[name]
            change = row.differences.get(name)  # None for the baseline
            paper = row.paper.get(name)
            line = [row.arm, name, value.n if value else 0, row.planned]
            line += [_exact(value, field) for field in ("mean", "low", "high")]
            # Differences of logarithms are written as relative changes.
            line.append("relative" if is_distance(name) else "absolute")
            line += [_difference_cell(change, field, name) for field in ("mean", "low", "high")]
            line.append(_exact(change, "p"))
            line.append((row.verdict or MISSING) if name == table.metrics[0] else MISSING)
            line += [_exact(paper, "value"), paper.mark if paper else MISSING]
            writer.writerow(line + ratios)
    return out.getvalue()


def _difference_cell(change: Estimate | None, field: str, metric: str) -> str:
    value = getattr(change, field, math.nan)
    if is_distance(metric):
        value = math.expm1(value)
    return MISSING if math.isnan(value) else f"{value:.6g}"


def _exact(found: object, field: str) -> str:
    """Writes a field with six digits, if it was found and is a number."""
    value = getattr(found, field, math.nan)  # nan if `found` is None
    return MISSING if math.isnan(value) else f"{value:.6g}"


# LaTeX for characters that mean something in it, or that it does not know.
TEXT = ["backslash", "asciitilde", "asciicircum", "less", "greater", "bar"]
MATH = ["pm", "times", "Delta", "lambda", "infty", "downarrow", "uparrow"]
LATEX = {"…": r"\ldots{}", "−": "$-$", "[": "{[}", "]": "{]}", "—": "---", "–": "--"}
LATEX |= {character: "\\" + character for character in "&%$#_{}"}
LATEX |= {character: rf"\text{name}{{}}" for character, name in zip("\\~^<>|", TEXT, strict=True)}
LATEX |= {character: rf"$\{name}$" for character, name in zip("±×Δλ∞↓↑", MATH, strict=True)}


def latex_escape(text: str) -> str:
    """Returns the text in plain ASCII, as LaTeX typesets it."""
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """Returns the table in LaTeX. The other metrics are in a second tabular below the first."""
    return in_latex(document(table))


def in_latex(texts: Document) -> str:
    """Returns a `table` with booktabs rules: a tabular for each grid."""
    caption = latex_escape(" ".join([texts.title, *texts.notes]))
    tabulars = []
    for grid in texts.grids:
        header, *rows = [" & ".join(map(latex_escape, line)) + r" \\" for line in grid]
        columns = "l" + "r" * (len(grid[0]) - 1)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows]
        tabulars.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    # A float may not be broken across pages, so that both tabulars stand below one caption.
    head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    return "\n".join([*head, "\n\n".join(tabulars), r"\end{table}"]) + "\n"


STYLE = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.3em .8em;text-align:right}th:first-child{text-align:left}"
    "thead{border-bottom:1px solid}p{max-width:60em;color:#555}"
)


def html_page(table: Table) -> str:
    """Returns the table as a page."""
    return in_html(document(table))


def in_html(texts: Document) -> str:
    """Returns a page that needs no other file."""
    # Everything that comes from a record or a sweep file is escaped: an arm may be named <script>.
    title = html.escape(texts.title)
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
    ]
    for grid in texts.grids:
        header, *rows = grid
        head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
        parts.append(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n")
        for first, *others in rows:
            cells = "".join(f"<td>{html.escape(text)}</td>" for text in others)
            parts.append(f"<tr><th>{html.escape(first)}</th>{cells}</tr>\n")
        parts.append("</tbody>\n</table>\n")
    parts += [f"<p>{html.escape(note)}</p>\n" for note in texts.notes]
    return "".join(parts) + "</html>\n"


WRITERS = {"md": markdown, "csv": comma_separated, "tex": latex, "html": html_page}
