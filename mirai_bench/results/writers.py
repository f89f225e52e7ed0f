"""Writes a table as Markdown, CSV or HTML; latex.py writes it as LaTeX."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mirai_bench.results.frame import is_distance, lower_is_better
from mirai_bench.results.looks import BETTER, WORSE
from mirai_bench.results.notes import MISSING, as_change
from mirai_bench.results.paper import papers_name
from mirai_bench.results.row import Row
from mirai_bench.results.stats import CONFIDENCE, Estimate
from mirai_bench.results.table import Table
from mirai_bench.results.teachers import TEACHER
from mirai_bench.utils.errors import unknown
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


class Mark(NamedTuple):
    """What a cell is, where a form can show it."""

    best: bool = False
    """The best mean of its column."""
    significant: bool = False
    """Of an arm that is shown to differ from the baseline, in the metric of its column."""


class Document(NamedTuple):
    """Grids of texts with a title above and notes below."""

    title: str
    grids: Sequence[Grid]
    notes: Sequence[str]
    marks: Mapping[tuple[int, int, int], Mark] = {}
    """By the numbers of grid, row and column, the header being row 0."""


# The columns besides the metrics: what --columns calls them.
CHANGE, FLOOR, P, VERDICT, PAPER, FLOPS, TIME = "change", "floor", "p", "verdict", "paper", "flops", "time"


def document(table: Table, columns: Sequence[str] = ()) -> Document:
    """Returns the texts of a table: the columns in this order, by default all of them.

    Raises UserError for a column that the table does not have.
    """
    # By default two grids, because one with differences, tests and costs besides would not fit a page.
    main, others = main_columns(table), table.metrics[1:]
    for name in columns:
        if name not in (*main, *others):
            raise unknown("column", name, [*main, *others])
    chosen = [list(columns)] if columns else [names for names in (main, others) if names]
    grids = [_grid(table, names) for names in chosen]
    marks = {}
    for number, names in enumerate(chosen):
        for column, name in enumerate(names, start=1):
            for row, mark in enumerate(_marks(table, name), start=1):
                if any(mark):
                    marks[number, row, column] = mark
    return Document(table.title, grids, table.notes, marks)


def main_columns(table: Table) -> list[str]:
    """Returns the names of the columns about the primary metric."""
    first = table.metrics[0]
    shown = {
        "n": True,
        first: True,
        CHANGE: True,
        FLOOR: table.floor is not None,
        P: True,
        VERDICT: any(row.verdict for row in table.rows),
        PAPER: any(first in row.paper for row in table.rows),  # all rows have the same columns
        FLOPS: True,
        TIME: table.timing,
    }
    return [name for name, is_shown in shown.items() if is_shown]


def _grid(table: Table, names: Sequence[str]) -> Grid:
    first = table.metrics[0]
    headers = {
        CHANGE: f"Δ to {table.baseline}",
        FLOOR: "noise floor",
        P: "p (Holm)",
        PAPER: f"paper: {papers_name(first)}",
        FLOPS: "FLOPs ×",
        TIME: "time ×",
    }
    headers |= {name: f"{name} {'↓' if lower_is_better(name) else '↑'}" for name in table.metrics}
    rows = [[row.arm, *(_cell(table, row, name) for name in names)] for row in table.rows]
    return [["arm", *(headers.get(name, name) for name in names)], *rows]


def _cell(table: Table, row: Row, name: str) -> str:
    if name in row.values:
        return _plus_minus(row, name)
    first = table.metrics[0]
    change = row.differences.get(first)
    paper = row.paper.get(first)
    texts = {
        "n": str(row.n) if row.n == row.planned else f"{row.n} of {row.planned}",
        CHANGE: difference(change, first),
        FLOOR: MISSING if change is None or table.floor is None else as_change(table.floor, first),
        P: p_value(change.p) if change else MISSING,
        VERDICT: row.verdict or MISSING,
        PAPER: f"{paper.value:.2f} @{paper.epochs} [{paper.mark}]" if paper else MISSING,
        FLOPS: _ratio(row.flops),
        TIME: _ratio(row.seconds),
    }
    return texts[name]


def _marks(table: Table, name: str) -> list[Mark]:
    """Returns the mark of each row in a column."""
    if name not in (*table.metrics, CHANGE):
        return [Mark()] * len(table.rows)
    metric = table.metrics[0] if name == CHANGE else name
    means = [_comparable(table, row, metric) for row in table.rows]
    best = min(means) if lower_is_better(metric) else max(means)
    return [
        Mark(mean == best and math.isfinite(best) and name != CHANGE, _is_shown(table, row, metric))
        for row, mean in zip(table.rows, means, strict=True)
    ]


def _comparable(table: Table, row: Row, metric: str) -> float:
    """Returns the mean of an arm, or the worst one there is if it has none or its teacher is the judge."""
    value = row.values[metric]
    if value is None or (metric == table.metrics[0] and row.verdict == TEACHER):
        return math.inf if lower_is_better(metric) else -math.inf
    return value.mean


def _is_shown(table: Table, row: Row, metric: str) -> bool:
    """Tells whether an arm differs from the baseline: by its verdict, or else by the corrected p."""
    change = row.differences.get(metric)
    if metric == table.metrics[0] and table.is_decided:
        return (row.verdict or "").startswith((BETTER, WORSE))
    return change is not None and change.p < 1 - CONFIDENCE


# ---- the forms


def markdown(table: Table) -> str:
    """Returns the table in Markdown."""
    return in_markdown(document(table))


def markdown_of_main(table: Table) -> str:
    """Returns the part of the table with the primary metric in Markdown, without notes."""
    return in_markdown(Document(table.title, [_grid(table, main_columns(table))], []))


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


STYLE = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.3em .8em;text-align:right}th:first-child{text-align:left}td,tbody th{white-space:nowrap}"
    "thead{border-bottom:1px solid}p{max-width:60em;color:#555}"
)


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
