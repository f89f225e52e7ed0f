"""Gives a verdict on each of the paper's claims: supported, contradicted, undecided, or not run.

    python analysis/claims.py

The claims and the comparisons that test them are in reports/claims.yaml.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import load, parser, write
from comparisons import (
    CANNOT,
    DIAGNOSED,
    KINDS,
    Evidence,
    Test,
    at_last,
    compare_diagnosed,
    kind_of,
)

from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.results.diagnoses import HEAD, Diagnoses, read_diagnosed, read_frozen_diagnoses
from mirai_bench.results.frame import Results, refuse_mixed_protocols
from mirai_bench.results.frozen import first_kind
from mirai_bench.results.looks import LEVEL, SMALL, UNDECIDED
from mirai_bench.results.notes import MISSING
from mirai_bench.results.teachers import taught_by_judge
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.cli import run
from mirai_bench.utils.text_table import markdown_table

CLAIMS = shipped("reports", "claims.yaml")
RULES = (
    "A comparison is made at the last evaluation, paired by seed, with the t-interval over seeds. "
    "Its level is 95 %, or where the sweep plans looks\nthat of the last look which its seeds have "
    "reached, which then stands beside the interval. A claim is **supported** if the interval\nof "
    "each of its comparisons lies wholly on the claimed side; **contradicted** if the interval of one of "
    "them (for m comparisons\nwith an m-th of the level's error) lies wholly on the other side; else "
    "**undecided**: these seeds do not tell. "
    "One seed never decides, nor does a sweep before its first planned look. "
    "A claim whose whole corrected\ninterval lies within the smallest effect of interest that its sweep "
    "registered is **below the smallest effect of interest**. A claim that a profile\ncould not show "
    "whatever came out **cannot be decided by this profile**. Verdicts hold for the profile in their "
    "row, and are not corrected\nfor the number of claims. Claims about *why* are comparisons of "
    "[diagnostics](../docs/commands/diagnose.md); **not measured**: the sweep\nwas run, and its "
    "weights were not "
    "diagnosed."
)
NOT_RUN = "not run"
NOT_MEASURED = "not measured"
VERDICTS = ("supported", "contradicted", SMALL, UNDECIDED, CANNOT, NOT_MEASURED, NOT_RUN)

# ---- verdicts


def subject(test: Test) -> str:
    """Returns the arms of a comparison in words."""
    arms = " and ".join(test[key] for key in ("better", "more", "than", "arm") if key in test)
    where = f" ({test['profile']})" if "profile" in test else ""
    text = f"{test['axis']}{where}: {arms}"
    return f"{text} ({test[DIAGNOSED].replace('/', ' ')})" if DIAGNOSED in test else text


def arms_of(test: Test, results: Results) -> list[str]:
    """Returns the arms of a comparison."""
    named = [test[key] for key in ("better", "more", "than") if key in test]
    return named or [test["arm"], results.baseline]


def sweep_of(test: Test, profile: str, sweeps: Sequence[Results]) -> Results | None:
    """Returns the sweep that has records of both arms at its last evaluation, or None."""
    if test.get("profile", profile) != profile:
        return None
    for results in sweeps:
        if (results.axis, results.profile) == (test["axis"], profile):
            arms = arms_of(test, results)
            # Every record has a step, so that this asks which seeds have a record at all.
            if all(at_last(results, arm, "step") for arm in arms):
                return results
    return None


def compared(results: Results, test: Test, kind: str, strict: float) -> Evidence:
    """Returns what a comparison says. Where an arm's own teacher would judge it, nothing is decided."""
    metric = test.get("metric") or test.get("same") or results.primary
    barred = sorted(taught_by_judge(results, metric).intersection(arms_of(test, results)))
    if barred:
        return Evidence(UNDECIDED, f"{subject(test)}: {metric} is of the teacher of {' and '.join(barred)}")
    _, compare = KINDS[kind]
    return compare(results, test, strict)


def overall(verdicts: list[str], complete: bool) -> str:
    """Returns the verdict on a claim whose comparisons have these verdicts."""
    # The weakest comparison decides. One that was not run leaves the claim open.
    for side in ("contradicted", CANNOT, SMALL, UNDECIDED):
        if side in verdicts:
            return side
    return "supported" if complete else UNDECIDED


def diagnosed_sweep(test: Test, profile: str, found: Sequence[Diagnoses]) -> Diagnoses | None:
    """Returns the diagnoses that have the value of a comparison in both arms."""
    diagnostic, value = test[DIAGNOSED].split("/")
    for each in found:
        is_meant = (each.results.axis, each.results.profile) == (test["axis"], profile)
        if is_meant and all(each.by_seed(diagnostic, test[arm], value) for arm in ("more", "than")):
            return each
    return None


def evidence(
    test: Test, profile: str, sweeps: Sequence[Results], found: Sequence[Diagnoses], strict: float
) -> Evidence:
    """Returns what a comparison says in a profile, or that it was not run or not measured there."""
    kind = kind_of(test)
    results = sweep_of(test, profile, sweeps)
    if kind != DIAGNOSED:
        if results is None:
            return Evidence(NOT_RUN, f"not run: {subject(test)}")
        return compared(results, test, kind, strict)
    diagnoses = diagnosed_sweep(test, profile, found)
    if diagnoses is not None:
        return compare_diagnosed(diagnoses, test, strict)
    side = NOT_RUN if results is None else NOT_MEASURED
    return Evidence(side, f"{side}: {subject(test)}")


def judge(
    claim: dict[str, Any], sweeps: Sequence[Results], diagnoses: Sequence[Diagnoses] = ()
) -> list[list[str]]:
    """Returns rows of claim, paper, profile, verdict and evidence.

    There is a row for each profile that ran one of the comparisons, or one row `not run`.
    """
    label = [claim["claim"], claim["paper"]]
    # What is compared: in the sweep of the paper's axis, and in those that try the same elsewhere.
    comparisons = [claim[key] for key in ("tests", "also") if key in claim]
    rows = [label + row for tests in comparisons for row in judged(tests, sweeps, diagnoses)]
    # A claim that no profile has tested says what it needs.
    needs = "; ".join(subject(test) for test in claim["tests"])
    return rows or [[*label, MISSING, NOT_RUN, f"needs {needs}"]]


def judged(tests: list[Test], sweeps: Sequence[Results], diagnoses: Sequence[Diagnoses]) -> list[list[str]]:
    """Returns rows of profile, verdict and evidence, one for each profile that ran one of the comparisons."""
    # 1. One comparison of m is enough to contradict, so each of them has to do so with an m-th of the error
    #    (Bonferroni). To support the claim all must agree, which needs no correction.
    strict = 1 - LEVEL / len(tests)
    # 2. The comparisons that each profile has run. Profiles are other data: they are never pooled.
    rows = []
    profiles = [results.profile for results in (*sweeps, *(each.results for each in diagnoses))]
    for profile in dict.fromkeys(profiles):
        found = [evidence(test, profile, sweeps, diagnoses, strict) for test in tests]
        sides = [each.verdict for each in found]
        made = [side for side in sides if side not in (NOT_RUN, NOT_MEASURED)]
        if made or NOT_MEASURED in sides:
            side = overall(made, len(made) == len(tests)) if made else NOT_MEASURED
            # What was compared comes first.
            texts = [each.text for each in sorted(found, key=lambda each: each.verdict not in made)]
            rows.append([profile, side, "; ".join(texts)])
    return rows


def counted(rows: list[list[str]], profile: str) -> str:
    """Returns how often each verdict was given in a profile, in words."""
    given = [row[3] for row in rows if row[2] == profile]
    return ", ".join(f"{given.count(side)} {side}" for side in VERDICTS if side in given)


def report(
    claims: list[dict[str, Any]], sweeps: Sequence[Results], diagnoses: Sequence[Diagnoses] = ()
) -> str:
    """Returns the report in Markdown."""
    for results in sweeps:
        refuse_mixed_protocols(results)
    rows = [row for claim in claims for row in judge(claim, sweeps, diagnoses)]
    profiles = dict.fromkeys(profile for _, _, profile, *_ in rows)
    names = {profile: "in no profile" if profile == MISSING else profile for profile in profiles}
    summary = "\n".join(f"- {names[profile]}: {counted(rows, profile)}." for profile in profiles)
    header = ["claim", "in the paper", "profile", "verdict", "evidence"]
    table = markdown_table(header, rows, "---")
    return f"# The paper's claims against these records\n\n{RULES}\n\n{summary}\n\n{table}"


def load_diagnoses(args: argparse.Namespace) -> list[Diagnoses]:
    """Returns the diagnoses beside the records that the arguments name. MLflow has none that are read."""
    if args.records:
        found = read_frozen_diagnoses(path for path in args.records if first_kind(path) == HEAD)
    else:
        found = read_diagnosed(args.runs) if args.runs else []
    return [each for each in found if args.axis in (None, each.results.axis)]


def command(argv: list[str]) -> int:
    """Runs the script. Writes and prints the report."""
    example = "python analysis/claims.py --records reports/data/*_digits.jsonl"
    options = parser("claims", __doc__.splitlines()[0], example)
    options.add_argument(
        "--claims", type=Path, default=CLAIMS, metavar="FILE", help="default reports/claims.yaml"
    )
    args = options.parse_args(argv)
    text = report(read_yaml(args.claims)["claims"], load(args), load_diagnoses(args))
    write(args.out, "claims.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
