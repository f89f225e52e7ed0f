"""Draws what diagnostics found out about the arms of a sweep: why does an arm help?

    python analysis/diagnose.py --runs runs

Writes a figure for each diagnostic (SVG, PDF, PNG), one table of all headline values (Markdown, CSV,
LaTeX, HTML), and how the diagnostics go with the gain, as a figure and a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import add_out, logger, save, write
from correlation import correlations
from correlation_report import caption, comma_separated, document, draw
from diagnosed import draw_diagnostic
from diagnosis_table import headlines, rows_of, texts
from matplotlib.figure import Figure
from pictures import without_others
from profiles import known_diagnostics

from mirai_bench.results.diagnoses import (
    Diagnoses,
    freeze_diagnoses,
    frozen_file_name,
    read_diagnosed,
    read_frozen_diagnoses,
)
from mirai_bench.results.frame import file_stem
from mirai_bench.results.latex import in_latex
from mirai_bench.results.writers import in_html, in_markdown
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown

log = logger(__name__)

HELDOUT = "heldout_ntp"  # the other witness of a gain, which needs no samples
COMMAND = "python -m mirai_bench.diagnose sweeps/injection_level.yaml"


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python analysis/diagnose.py",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python analysis/diagnose.py --axis injection_level --freeze",
    )
    add = result.add_argument
    frozen = "frozen diagnoses (reports/data/diagnose_*.jsonl); files of one sweep are joined"
    add("--axis", help="only this axis, for instance injection_level")
    add("--profile", help="only this profile, for instance digits")
    add("--records", nargs="+", type=Path, metavar="FILE", help=frozen)
    add("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of runs; default runs")
    add("--only", nargs="+", default=[], metavar="NAME", help="only these diagnostics")
    add(
        "--freeze",
        action="store_true",
        help="also write the diagnoses to OUT/data/diagnose_AXIS_PROFILE.jsonl",
    )
    add_out(result)
    return result


def load(args: argparse.Namespace) -> list[Diagnoses]:
    """Returns the sweeps that the arguments name. Raises UserError if there are none."""
    found = read_frozen_diagnoses(args.records) if args.records else read_diagnosed(args.runs)
    if not found:
        raise UserError(f"there are no diagnoses in {args.runs}. Make them first: {COMMAND}")
    for name in ("axis", "profile"):
        wanted = getattr(args, name)
        known = [getattr(each.results, name) for each in found]
        if wanted is not None and wanted not in known:
            raise unknown(name, wanted, dict.fromkeys(known))
        found = [each for each in found if wanted in (None, getattr(each.results, name))]
    made = list(dict.fromkeys(name for each in found for name in each.diagnostics))
    for name in args.only:
        if name not in made:
            raise unknown("diagnostic", name, made)
    # In the order in which they are declared; those that are not known here come last.
    order = [*known_diagnostics(), *made]
    chosen = []
    for each in found:
        own = [one for one in each.found if one.fields["diagnostic"] in (args.only or made)]
        own.sort(key=lambda one: order.index(one.fields["diagnostic"]))
        if own:
            chosen.append(Diagnoses(each.results, own))
    return chosen


def figures_of(diagnoses: Diagnoses, diagnostic: str) -> dict[str, Figure]:
    """Returns the figures of a diagnostic. Raises UserError for a detail of another form."""
    try:
        return draw_diagnostic(diagnoses, diagnostic)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{diagnoses.results.axis}: these diagnoses of {diagnostic} cannot be drawn "
            f"({type(error).__name__}: {error}): make them again, or leave them out with --only"
        ) from error


def relate(sweeps: list[Diagnoses], out: Path) -> None:
    """Writes how the diagnostics of sweeps with one profile go with the gain, and prints the table."""
    with_records = [sweep for sweep in sweeps if sweep.results.records]
    if not with_records:
        return
    # 1. The values and metrics that all sweeps know.
    wanted: dict[str, list[str]] = {}
    for sweep in with_records:
        for name, values in headlines(sweep, known_diagnostics()).items():
            wanted[name] = list(dict.fromkeys([*wanted.get(name, []), *values]))
    results = with_records[0].results
    metrics = list(dict.fromkeys([results.primary, HELDOUT]))
    groups = [group for group in correlations(with_records, wanted, metrics) if group]
    if not groups:
        log.info(f"{results.profile}: too few arms with diagnostics and evaluations for a correlation")
        return
    # 2. A figure for each metric, and one table.
    stem = sweeps[0].name if len(sweeps) == 1 else f"diagnose_{file_stem(results.profile)}"
    for group in groups:
        save(draw(group, caption(group, results.profile)), out, f"{stem}_{file_stem(group[0].metric)}")
    made = {(each.diagnostic, each.value) for group in groups for each in group}
    pairs = [(name, value) for name, values in wanted.items() for value in values]
    left_out = [f"{name} {value}" for name, value in pairs if (name, value) not in made]
    stem = f"{stem}_correlation"
    page = document(groups, results.profile, left_out)
    forms = {"md": in_markdown(page), "tex": in_latex(page, stem), "html": in_html(page)}
    write_forms(forms | {"csv": comma_separated(groups)}, out, stem)


def write_forms(forms: dict[str, str], out: Path, stem: str) -> None:
    """Writes a table in its forms, and prints it in Markdown."""
    for kind, text in forms.items():
        write(out, f"{stem}.{kind}", text)
    print(forms["md"])


def command(argv: list[str]) -> int:
    """Runs the script. Writes figures and tables, and prints the tables in Markdown."""
    args = parser().parse_args(argv)
    found = load(args)
    for diagnoses in found:
        # 1. A figure for each diagnostic.
        for diagnostic in diagnoses.diagnostics:
            for more, figure in figures_of(diagnoses, diagnostic).items():
                save(figure, args.out, f"{diagnoses.name}_{diagnostic}{more}")
        # 2. The table.
        wanted = headlines(diagnoses, known_diagnostics())
        forms = texts(diagnoses, rows_of(diagnoses, wanted), known_diagnostics())
        write_forms(forms, args.out, diagnoses.name)
        # 3. The records behind them.
        if args.freeze:
            name = frozen_file_name(diagnoses.results)
            freeze_diagnoses(without_others(diagnoses), args.out / "data" / name)
    # 4. How they go with the gain, over the sweeps that share a profile.
    for profile in dict.fromkeys(each.results.profile for each in found):
        relate([each for each in found if each.results.profile == profile], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
