"""Writes a sweep as one page: verdicts, table, figures, samples, diagnostics, costs, how to repeat it.

    python analysis/report.py

The page is one file of HTML that needs no other and no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claims import load_diagnoses
from common import load, parser, write
from report_page import Part, Sweep, page
from report_parts import (
    costs,
    of_claims,
    protocol,
    provenance,
    repetition,
    speedups,
    table_part,
    verdicts,
)
from report_pictures import curves, diagnostics, differences, samples

from mirai_bench.results.cost import with_one_off
from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.frame import Results
from mirai_bench.results.frozen import first_line
from mirai_bench.results.table import build_table
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import unknown

TOGETHER = "report"  # stem of the page of all sweeps


BESIDE = "diagnose_"  # and the name of a file of records: that of the diagnoses beside it


def sweep_page(
    results: Results, diagnoses: Sequence[Diagnoses], files: Sequence[Path], args: argparse.Namespace
) -> Sweep:
    """Returns the page of a sweep, with its diagnoses. `files` are what it was read from, if any."""
    timing = not args.no_timing
    # 1. What came out.
    table = build_table(results, metric=args.metric, timing=timing)
    metric = table.metrics[0]
    whole = with_one_off(results)
    parts: list[Part | None] = [verdicts(results, table), table_part(table), curves(whole, metric)]
    if len(table.rows) > 1:  # else there is nothing to compare
        parts += [differences(results, table), speedups(whole, metric, timing)]
    # 2. What there may be besides.
    folders = [args.out, *(folder for path in files for folder in (path.parent, path.parent.parent))]
    parts += [samples(results, folders), *map(diagnostics, diagnoses), of_claims(results, diagnoses)]
    # 3. How it was made.
    parts += [costs(results, table, timing), protocol(results, table)]
    given = [path for path in files if path in (args.records or [])]
    parts += [provenance(results, files), repetition(results, given)]
    title = f"{results.axis} ({results.profile})"
    return Sweep(results.name, title, results.question, [part for part in parts if part is not None])


def with_diagnoses(args: argparse.Namespace) -> argparse.Namespace:
    """Returns the arguments with the files of diagnoses beside the records, or with a folder of runs."""
    found = dict(vars(args))
    if args.records:
        beside = [path.with_name(f"{BESIDE}{path.name}") for path in args.records]
        found["records"] = list(dict.fromkeys([*args.records, *filter(Path.is_file, beside)]))
    elif args.runs is None and Path("runs").is_dir():  # MLflow has no diagnoses that are read
        found["runs"] = Path("runs")
    return argparse.Namespace(**found)


def belongs_to(results: Results, head: dict[str, Any]) -> bool:
    """Tells whether this head of a file or plan is that of the sweep."""
    return (head.get("axis"), head.get("profile")) == (results.axis, results.profile)


def command(argv: list[str]) -> int:
    """Runs the script. Writes the pages and prints their paths."""
    example = "python analysis/report.py --records reports/data/injection_level_digits.jsonl"
    options = parser("report", __doc__.splitlines()[0], example)
    add = options.add_argument
    add("--metric", help="what decides and is drawn; default the Fréchet distance that the records carry")
    add("--no-timing", action="store_true", help="leave out wall-clock time: the machine was shared")
    add("--together", action="store_true", help=f"one page of all sweeps, {TOGETHER}.html")
    args = options.parse_args(argv)
    # 1. What is there.
    sweeps = load(args)
    beside = with_diagnoses(args)
    diagnoses = load_diagnoses(beside)
    # 2. The pages.
    pages = []
    for results in sweeps:
        if args.metric is not None and args.metric not in results.choices:
            raise unknown("metric", args.metric, results.choices)
        own = [each for each in diagnoses if belongs_to(results, vars(each.results))]
        files = [path for path in beside.records or [] if belongs_to(results, first_line(path))]
        pages.append(sweep_page(results, own, files, args))
    # 3. Their files.
    texts = {f"{each.name}_report": page(each.title, [each]) for each in pages}
    if args.together:
        texts = {TOGETHER: page(f"mirai_bench: {', '.join(each.title for each in pages)}", pages)}
    for stem, text in texts.items():
        print(write(args.out, f"{stem}.html", text))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
