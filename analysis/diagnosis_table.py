"""The table of all headline values of the diagnostics, in four forms."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, NamedTuple

from mirai_bench.results.diagnoses import DIGITS, Diagnoses
from mirai_bench.results.latex import in_latex
from mirai_bench.results.notes import MISSING
from mirai_bench.results.stats import CONFIDENCE, Estimate, t_interval
from mirai_bench.results.writers import Document, in_html, in_markdown

if TYPE_CHECKING:
    from mirai_bench.diagnose.diagnostic import Diagnostic

CSV_COLUMNS = (
    "diagnostic,value,arm,n,mean,ci95_low,ci95_high,n_paired,difference,difference_low,difference_high,p"
)


class Row(NamedTuple):
    """A headline value of an arm."""

    diagnostic: str
    value: str
    arm: str
    mean: Estimate
    change: Estimate | None
    """The difference to the baseline of the same seed. None for the baseline, or where it has no value."""


def headlines(diagnoses: Diagnoses, known: dict[str, Diagnostic]) -> dict[str, list[str]]:
    """Returns the headline values of each diagnostic that was made and has any.

    Of a diagnostic that is not known here, all values are headlines that no layer has.
    """
    found = {}
    for name in diagnoses.diagnostics:
        there = diagnoses.values(name)
        wanted = known[name].headline if name in known else [value for value in there if "@" not in value]
        found[name] = [value for value in wanted if value in there]
    return {name: values for name, values in found.items() if values}


def rows_of(diagnoses: Diagnoses, wanted: dict[str, list[str]]) -> list[Row]:
    """Returns the rows of a table: value by value, with the arms in the order of the sweep."""
    rows = []
    baseline = diagnoses.results.baseline
    for diagnostic, values in wanted.items():
        for value in values:
            for arm in diagnoses.results.arms:
                mean = t_interval(diagnoses.by_seed(diagnostic, arm, value).values())
                if mean is not None:
                    change = None if arm == baseline else diagnoses.change(diagnostic, arm, value)
                    rows.append(Row(diagnostic, value, arm, mean, change))
    return rows


def document(diagnoses: Diagnoses, rows: list[Row], known: dict[str, Diagnostic]) -> Document:
    """Returns the texts of the table: a grid for each diagnostic, and what has to be known to read it."""
    results = diagnoses.results
    grids = []
    for name in dict.fromkeys(row.diagnostic for row in rows):
        header = [name, "arm", "n", "mean", f"Δ to {results.baseline}"]
        own = [row for row in rows if row.diagnostic == name]
        grids.append([header, *(_texts(row) for row in own)])
    title = f"{results.axis}: diagnostics of the arms (profile {results.profile})"
    return Document(title, grids, _notes(diagnoses, rows, known))


def _texts(row: Row) -> list[str]:
    return [row.value, row.arm, str(row.mean.n), plus_minus(row.mean), with_interval(row.change)]


def _notes(diagnoses: Diagnoses, rows: list[Row], known: dict[str, Diagnostic]) -> list[str]:
    baseline = diagnoses.results.baseline
    notes = [
        f"Mean ± half width of the {100 * CONFIDENCE:g} % t-interval over n seeds. Δ: arm minus {baseline} "
        "of the same seed, with its t-interval. Intervals are not corrected for the number of "
        "values and arms. "
        f"{MISSING}: not defined for {baseline}. Numbers are read with {DIGITS} digits."
    ]
    for name in dict.fromkeys(row.diagnostic for row in rows):
        epoch = diagnoses.epochs(name)[diagnoses.last_step(name)]
        scope = diagnoses.of(name)[0].subject["scope"]
        looked = ", ".join(f"{key} {value}" for key, value in scope.items())
        text = f"{name}: weights of epoch {epoch:g}; {looked}."
        if name in known:
            meanings = "; ".join(f"{value}: {meaning}" for value, meaning in known[name].headline.items())
            text += f" {known[name].question} {meanings}."
        notes.append(text)
    return notes


def comma_separated(rows: list[Row]) -> str:
    """Returns the table as CSV. The p-values are those of paired t-tests, not corrected."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS.split(","))
    for row in rows:
        line = [row.diagnostic, row.value, row.arm, row.mean.n]
        line += [_exact(value) for value in (row.mean.mean, row.mean.low, row.mean.high)]
        change = row.change
        fields = (change.mean, change.low, change.high, change.p) if change else (math.nan,) * 4
        writer.writerow([*line, change.n if change else 0, *map(_exact, fields)])
    return out.getvalue()


def texts(diagnoses: Diagnoses, rows: list[Row], known: dict[str, Diagnostic]) -> dict[str, str]:
    """Returns the table in each form, by the ending of its file."""
    page = document(diagnoses, rows, known)
    return {
        "md": in_markdown(page),
        "csv": comma_separated(rows),
        "tex": in_latex(page, diagnoses.name),
        "html": in_html(page),
    }


# ---- numbers as texts


def _exact(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.{DIGITS}g}"


def decimals(estimate: Estimate) -> int:
    """Returns how many decimals show two digits of the half width, or three of the mean without one."""
    has_half = estimate.half > 0  # False for nan
    size, digits = (estimate.half, 2) if has_half else (abs(estimate.mean), 3)
    places = 3 if size == 0 else digits - 1 - math.floor(math.log10(size))
    # More digits than are read would be digits of rounding.
    known = DIGITS - 1 - math.floor(math.log10(abs(estimate.mean) or 1))
    return max(0, min(places, known))


def plus_minus(estimate: Estimate) -> str:
    """Writes a mean and its half width with as many decimals as the latter is worth."""
    places = decimals(estimate)
    half = "" if math.isnan(estimate.half) else f" ± {estimate.half:.{places}f}"
    return f"{estimate.mean:.{places}f}{half}".replace("-", "−")


def with_interval(estimate: Estimate | None) -> str:
    """Writes a difference with its sign and, if there is one, its interval."""
    if estimate is None:
        return MISSING
    places = decimals(estimate)
    text = f"{estimate.mean:+.{places}f}"
    if not math.isnan(estimate.half):
        text += f" [{estimate.low:+.{places}f}, {estimate.high:+.{places}f}]"
    return text.replace("-", "−")


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
