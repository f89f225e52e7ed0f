"""Gives a verdict on each of the paper's claims: supported, contradicted, undecided, or not run.

    python analysis/claims.py

The claims and the comparisons that test them are in reports/claims.yaml.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import load, parser
from speedup import speedup

from mirai_bench.config.load import read_yaml
from mirai_bench.results.frame import Results, is_distance, lower_is_better, refuse_mixed_protocols
from mirai_bench.results.looks import LEVEL, SMALL, UNDECIDED, is_small, level_of
from mirai_bench.results.stats import CONFIDENCE, paired, ratio
from mirai_bench.results.table import MISSING
from mirai_bench.results.teachers import taught_by_judge
from mirai_bench.results.writers import difference
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.files import write_text
from mirai_bench.utils.text_table import markdown_table

log = logging.getLogger(__name__)

CLAIMS = Path(__file__).resolve().parents[1] / "reports" / "claims.yaml"
RULES = (
    "A comparison is made at the last evaluation, paired by seed, with the t-interval over seeds. "
    "A claim is **supported** if the 95 % interval\nof each of its comparisons lies wholly on the "
    "claimed side; **contradicted** if the interval of one of them (at 1 − 5 %/m, for "
    "m\ncomparisons) lies wholly on the other side; else **undecided**: these seeds do not tell. "
    "One seed never decides, nor does a sweep before its first planned look. "
    "A claim whose whole corrected\ninterval lies within the smallest effect of interest that its sweep "
    "registered is **below the smallest effect of interest**. A claim that a profile\ncould not show "
    "whatever came out **cannot be decided by this profile**. Verdicts hold for the profile in their "
    "row, and are not corrected\nfor the number of claims."
)
CANNOT = "cannot be decided by this profile"
VERDICTS = ("supported", "contradicted", SMALL, UNDECIDED, CANNOT, "not run")

Test = dict[str, Any]  # a comparison, as claims.yaml describes it


@dataclass(frozen=True)
class Evidence:
    """What one comparison says about a claim."""

    verdict: str
    text: str


def verdict(inside: bool, outside: bool) -> str:
    """Returns the verdict of an interval that lies wholly inside, wholly outside, or neither."""
    if inside:
        return "supported"
    return "contradicted" if outside else UNDECIDED


def is_pilot(results: Results, n: int) -> bool:
    """Tells whether n seeds are fewer than those of the first planned look."""
    looks = results.registered.get("now", {}).get("looks", ())
    return len(looks) > 0 and n < looks[0]


# ---- the kinds of comparison. `strict` is the confidence that a contradiction needs.


def compare_better(results: Results, test: Test, strict: float) -> Evidence:
    """Compares the arm `better` with the arm `than`."""
    # 1. The difference ours - theirs, or that of the logarithms.
    metric = test.get("metric") or results.primary
    in_log = is_distance(metric)
    ours = at_last(results, test["better"], metric)
    theirs = at_last(results, test["than"], metric)
    plan = results.registered.get("now", {})
    level = level_of(plan.get("looks", ()), len(ours.keys() & theirs.keys()))
    found = paired(ours, theirs, 1 - level, in_log=in_log)
    # Stricter by the same factor as `strict` is than 95 %.
    wide = paired(ours, theirs, 1 - level * (1 - strict) / LEVEL, in_log=in_log)
    what = f"{metric}: {test['better']} {'relative to' if in_log else 'minus'} {test['than']}"
    text = f"{what} {difference(found, metric)}, n {found.n if found else 0}"
    if found is None or wide is None or math.isnan(found.half):
        return Evidence(UNDECIDED, text)
    # 2. A sweep that has not come to its first look decides nothing.
    if is_pilot(results, found.n):
        return Evidence(UNDECIDED, f"{text}, a pilot")
    # 3. The claim is a side of 0. Within the smallest effect of interest it is neither.
    if is_small(wide, plan.get("smallest_effect"), metric):
        return Evidence(SMALL, text)
    if lower_is_better(metric):
        return Evidence(verdict(found.high < 0, wide.low > 0), text)
    return Evidence(verdict(found.low > 0, wide.high < 0), text)


def compare_speedup(results: Results, test: Test, strict: float) -> Evidence:
    """Compares the speed-up of an arm in epochs, to the baseline's final value, with a factor."""
    metric = results.primary
    factor = float(test["speedup"])
    found = speedup(results, test["arm"], metric, "epochs", "final", CONFIDENCE)
    wide = speedup(results, test["arm"], metric, "epochs", "final", strict)
    text = f"{test['arm']} reaches the baseline's final {metric}: {found} in epochs, n {found.n}"
    if factor > found.greatest:
        more = f"the evaluations of this profile could show {found.greatest:.3g}× at most"
        return Evidence(CANNOT, f"{text}; {more}")
    if is_pilot(results, found.n):
        return Evidence(UNDECIDED, f"{text}, a pilot")
    return Evidence(verdict(found.sure_low >= factor, wide.sure_high < factor), text)


def compare_same(results: Results, test: Test, strict: float) -> Evidence:
    """Compares a quantity of an arm, over the baseline's, with 1."""
    ours = at_last(results, test["arm"], test["same"])
    theirs = at_last(results, results.baseline, test["same"])
    found = ratio(ours, theirs)
    wide = ratio(ours, theirs, strict)
    what = f"{test['same']}: {test['arm']} over {results.baseline}"
    if found is None or wide is None or math.isnan(found.half):
        mean = found.mean if found else math.nan
        return Evidence(UNDECIDED, f"{what} {mean:.3f}, n {found.n if found else 0}")
    # A test of equivalence. That a difference is not significant would not show that there is none.
    low = 1 - test["within"]
    high = 1 + test["within"]
    text = f"{what} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}], n {found.n}"
    same = low <= found.low and found.high <= high
    return Evidence(verdict(same, wide.high < low or wide.low > high), text)


# For the key that tells the kind: the other keys that it needs, and the comparison.
KINDS: dict[str, tuple[set[str], Callable[[Results, Test, float], Evidence]]] = {
    "better": ({"axis", "than"}, compare_better),
    "speedup": ({"axis", "arm"}, compare_speedup),
    "same": ({"axis", "arm", "within"}, compare_same),
}


def kind_of(test: Test) -> str:
    """Returns the kind of a comparison.

    Raises UserError if it is unknown, or has other keys than it needs.
    """
    for kind, (needs, _) in KINDS.items():
        if kind in test:
            # A misspelt key would otherwise be a comparison that nobody meant.
            missing = ", ".join(sorted(needs - test.keys()))
            extra = ", ".join(sorted(test.keys() - needs - {kind, "metric"}))
            if missing or extra:
                problem = f"lacks {missing}" if missing else f"has {extra}"
                raise UserError(f"claims.yaml: {test} {problem}")
            return kind
    raise unknown("kind of comparison", next(iter(test), ""), KINDS)


def at_last(results: Results, arm: str, name: str) -> dict[int, float]:
    """Returns a quantity of an arm at the sweep's last evaluation, by seed."""
    return results.by_seed(arm, results.last_step, name)


# ---- verdicts


def subject(test: Test) -> str:
    """Returns the arms of a comparison in words."""
    arms = f"{test['better']} and {test['than']}" if "better" in test else test["arm"]
    return f"{test['axis']}: {arms}"


def arms_of(test: Test, results: Results) -> list[str]:
    """Returns the arms of a comparison."""
    return [test["better"], test["than"]] if "better" in test else [test["arm"], results.baseline]


def sweep_of(test: Test, profile: str, sweeps: list[Results]) -> Results | None:
    """Returns the sweep that has records of both arms at its last evaluation."""
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


def judge(claim: dict[str, Any], sweeps: list[Results]) -> list[list[str]]:
    """Returns rows of claim, paper, profile, verdict and evidence.

    There is a row for each profile that ran one of the comparisons, or one row `not run`.
    """
    # 1. What is compared. One comparison of m is enough to contradict, so each of them has to do so
    #    at 1 - 5 %/m (Bonferroni). To support the claim all must agree, which needs no correction.
    tests = claim["tests"]
    label = [claim["claim"], claim["paper"]]
    strict = 1 - 0.05 / len(tests)
    kinds = [kind_of(test) for test in tests]
    # 2. The comparisons that each profile has run. Profiles are other data: they are never pooled.
    rows = []
    for profile in dict.fromkeys(results.profile for results in sweeps):
        found = []
        absent = []
        for test, kind in zip(tests, kinds, strict=True):
            results = sweep_of(test, profile, sweeps)
            if results is None:
                absent.append(f"not run: {subject(test)}")
            else:
                found.append(compared(results, test, kind, strict))
        if found:
            side = overall([evidence.verdict for evidence in found], not absent)
            texts = [evidence.text for evidence in found]
            rows.append([*label, profile, side, "; ".join(texts + absent)])
    # 3. A claim that no profile has tested says what it needs.
    needs = "; ".join(subject(test) for test in tests)
    return rows or [[*label, MISSING, "not run", f"needs {needs}"]]


def report(claims: list[dict[str, Any]], sweeps: list[Results]) -> str:
    """Returns the report in Markdown."""
    for results in sweeps:
        refuse_mixed_protocols(results)
    rows = [row for claim in claims for row in judge(claim, sweeps)]
    given = [row[3] for row in rows]
    summary = ", ".join(f"{given.count(side)} {side}" for side in VERDICTS)
    header = ["claim", "in the paper", "profile", "verdict", "evidence"]
    table = markdown_table(header, rows, "---")
    return f"# The paper's claims against these records\n\n{RULES}\n\n{summary}.\n\n{table}"


def command(argv: list[str]) -> int:
    """Runs the script. Writes and prints the report."""
    example = "python analysis/claims.py --records reports/data/*_digits.jsonl"
    options = parser("claims", __doc__.splitlines()[0], example)
    options.add_argument(
        "--claims", type=Path, default=CLAIMS, metavar="FILE", help="default reports/claims.yaml"
    )
    args = options.parse_args(argv)
    text = report(read_yaml(args.claims)["claims"], load(args))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "claims.md"
    write_text(path, text)
    log.info(f"wrote {path}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
