"""TODO: results.writers."""

from __future__ import annotations

import csv
import html
import io
import math

from mirai_bench.results.frame import lower_is_better
from mirai_bench.results.paper import papers_name
from mirai_bench.results.stats import Estimate
from mirai_bench.results.table import MISSING, Row, Table

DECIMALS = {"FID": 2, "sFID": 2, "FD-": 2, "IS": 1, "KID": 4}  # others: 3


# ---- writers


def number(value: float | None, metric: str = "", sign: bool = False) -> str:
    if value is None or math.isnan(value):
        return MISSING
    decimals = next((d for prefix, d in DECIMALS.items() if metric.startswith(prefix)), 3)
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def p_value(p: float) -> str:
    return MISSING if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _plus_minus(row: Row, metric: str) -> str:
    estimate = row.values[metric]
    if estimate is None:
        return MISSING
    half = "" if math.isnan(estimate.half) else f" ± {number(estimate.half, metric)}"
    return number(estimate.mean, metric) + half + (f" (n {estimate.n})" if estimate.n != row.n else "")


def _difference(estimate: Estimate | None, metric: str) -> str:
    if estimate is None:
        return MISSING
    low, high = number(estimate.low, metric, sign=True), number(estimate.high, metric, sign=True)
    return number(estimate.mean, metric, sign=True) + (
        "" if math.isnan(estimate.half) else f" [{low}, {high}]"
    )


def _grids(table: Table) -> list[list[list[str]]]:
    """Header and rows as they are read: the primary metric against the baseline, then the other metrics."""
    first, *others = table.metrics
    arrow = {name: f"{name} {'↓' if lower_is_better(name) else '↑'}" for name in table.metrics}
    with_paper = any(first in row.paper for row in table.rows)
    header = ["arm", "n", arrow[first], f"Δ to {table.baseline}", "p (Holm)"]
    main = [header + [f"paper: {papers_name(first)}"] * with_paper + ["FLOPs ×"] + ["time ×"] * table.timing]
    for row in table.rows:
        change, paper = row.differences.get(first), row.paper.get(first)
        line = [
            row.arm,
            str(row.n) if row.n == row.planned else f"{row.n} of {row.planned}",
            _plus_minus(row, first),
        ]
        line += [_difference(change, first), p_value(change.p) if change else MISSING]
        line += [f"{paper.value:.2f} @{paper.epochs} [{paper.mark}]" if paper else MISSING] * with_paper
        line += [f"{row.flops:.2f}" if row.flops else MISSING]
        main.append(line + [f"{row.seconds.mean:.2f}" if row.seconds else MISSING] * table.timing)
    rest = [
        ["arm", *(arrow[name] for name in others)],
        *([row.arm, *(_plus_minus(row, name) for name in others)] for row in table.rows),
    ]
    return [main, rest] if others else [main]


def markdown_escape(text: str) -> str:
    for character in "\\|`*_<[":
        text = text.replace(character, "\\" + character)
    return text


def markdown_grid(header: list[str], rows: list[list[str]], rest: str = "---:") -> str:
    """`rest` aligns all columns but the first."""
    lines = [[markdown_escape(text) for text in line] for line in (header, *rows)]
    lines.insert(1, ["---"] + [rest] * (len(header) - 1))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def markdown(table: Table) -> str:
    grids = "\n".join(markdown_grid(header, rows) for header, *rows in _grids(table))
    notes = "".join(f"- {markdown_escape(note)}\n" for note in table.notes)
    return f"**{markdown_escape(table.title)}**\n\n{grids}\n{notes}"


def comma_separated(table: Table) -> str:
    """One line for each arm and metric, all differences included."""
    header = "arm metric n planned mean ci95_low ci95_high difference difference_ci95_low difference_ci95_high p_holm paper paper_mark flops_ratio"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header.split() + ["seconds_ratio"] * table.timing)

    def of(estimate: Estimate | None, names: str) -> list[float]:
        return [getattr(estimate, name) if estimate else math.nan for name in names.split()]

    for row in table.rows:
        for name in table.metrics:
            value, paper = row.values[name], row.paper.get(name)
            numbers = (
                of(value, "mean low high")
                + of(row.differences.get(name), "mean low high p")
                + [paper.value if paper else math.nan]
            )
            texts = [MISSING if math.isnan(x) else f"{x:.6g}" for x in numbers]
            ratios = [row.flops] + [row.seconds.mean if row.seconds else None] * table.timing
            costs = [MISSING if x is None else f"{x:.6g}" for x in ratios]
            counts = [value.n if value else 0, row.planned]
            writer.writerow([row.arm, name, *counts, *texts, paper.mark if paper else MISSING, *costs])
    return out.getvalue()


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "Δ": r"$\Delta$", "λ": r"$\lambda$", "∞": r"$\infty$",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "—": "---", "–": "--", "…": r"\ldots{}",
}  # fmt: skip


def latex_escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A `table` with booktabs rules; the other metrics in a second tabular below."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escape(' '.join([table.title, *table.notes]))}}}",
    ]
    for grid in _grids(table):
        header, *rows = [" & ".join(map(latex_escape, line)) + r" \\" for line in grid]
        lines += [
            rf"\begin{{tabular}}{{l{'r' * (len(grid[0]) - 1)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    return "\n".join([*lines[:-1], r"\end{table}"]) + "\n"


def html_page(table: Table) -> str:
    title, parts = html.escape(table.title), []
    for grid in _grids(table):
        header, *rows = [[html.escape(text) for text in line] for line in grid]
        head = "".join(f"<th>{text}</th>" for text in header)
        body = "\n".join(
            f"<tr><th>{line[0]}</th>" + "".join(f"<td>{text}</td>" for text in line[1:]) + "</tr>"
            for line in rows
        )
        parts.append(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n")
    parts += [f"<p>{html.escape(note)}</p>\n" for note in table.notes]
    style = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}th,td{padding:.3em .8em;text-align:right}"
    style += "th:first-child{text-align:left}thead{border-bottom:1px solid}p{max-width:60em;color:#555}"
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{style}</style>\n<h1>{title}</h1>\n'
    return head + "".join(parts) + "</html>\n"


WRITERS = {"md": markdown, "csv": comma_separated, "tex": latex, "html": html_page}
