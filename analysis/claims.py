"""The paper's claims (reports/claims.yaml) against our records: supported, contradicted, undecided, or not run.

python analysis/claims.py
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import load, parser
from speedup import speedup

from mirai_bench.config.load import read_yaml
from mirai_bench.results.frame import Results, lower_is_better, primary_metric, refuse_mixed_protocols
from mirai_bench.results.stats import paired, t_interval
from mirai_bench.results.table import MISSING
from mirai_bench.results.writers import markdown_grid, number
from mirai_bench.utils.cli import run, say
from mirai_bench.utils.errors import UserError, unknown

CLAIMS = Path(__file__).resolve().parents[1] / "reports" / "claims.yaml"
RULES = """A comparison is made at the last evaluation, paired by seed, with the t-interval over seeds. A claim is **supported** if the 95 % interval
of each of its comparisons lies wholly on the claimed side; **contradicted** if the interval of one of them (at 1 − 5 %/m, for m
comparisons) lies wholly on the other side; else **undecided**: these seeds do not tell. One seed never decides. Verdicts hold for the
profile in their row, and are not corrected for the number of claims."""
SIDES = ("supported", "contradicted", "undecided")


@dataclass(frozen=True)
class Evidence:
    verdict: str
    text: str


def verdict(inside: bool, outside: bool) -> str:
    return "supported" if inside else "contradicted" if outside else "undecided"


def compare_better(results: Results, test: dict[str, Any], strict: float) -> Evidence:
    """`better` - `than`; `strict` is the confidence that a contradiction needs."""
    metric = test.get("metric") or primary_metric(results.metrics)
    ours, theirs = (
        at_last(results, arm, lambda r: r["metrics"].get(metric)) for arm in (test["better"], test["than"])
    )
    narrow, wide = paired(ours, theirs), paired(ours, theirs, strict)
    what = f"{metric}: {test['better']} minus {test['than']}"
    if narrow is None or math.isnan(narrow.half):
        return Evidence(
            "undecided",
            f"{what} {number(narrow and narrow.mean, metric, sign=True)}, n {narrow.n if narrow else 0}",
        )
    sign = 1 if lower_is_better(metric) else -1
    better, worse = max(sign * narrow.low, sign * narrow.high) < 0, min(sign * wide.low, sign * wide.high) > 0
    low, high = (number(x, metric, sign=True) for x in (narrow.low, narrow.high))
    return Evidence(
        verdict(better, worse),
        f"{what} {number(narrow.mean, metric, sign=True)} [{low}, {high}], n {narrow.n}",
    )


def compare_speedup(results: Results, test: dict[str, Any], strict: float) -> Evidence:
    metric, factor = primary_metric(results.metrics), float(test["speedup"])
    narrow, wide = (
        speedup(results, test["arm"], metric, "epochs", "final", level) for level in (0.95, strict)
    )
    text = f"{test['arm']} reaches the baseline's final {metric}: {narrow} in epochs, n {narrow.n}"
    return Evidence(verdict(narrow.sure_low >= factor, wide.sure_high < factor), text)


def compare_same(results: Results, test: dict[str, Any], strict: float) -> Evidence:
    def quantity(record: dict[str, Any]) -> float:
        return record[test["same"]] if test["same"] in record else record["run"][test["same"]]

    ours, theirs = at_last(results, test["arm"], quantity), at_last(results, results.baseline, quantity)
    ratios = [ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    narrow, wide = t_interval(ratios), t_interval(ratios, strict)
    what = f"{test['same']}: {test['arm']} over {results.baseline}"
    if narrow is None or math.isnan(narrow.half):
        return Evidence(
            "undecided", f"{what} {narrow.mean if narrow else math.nan:.3f}, n {narrow.n if narrow else 0}"
        )
    low, high = 1 - test["within"], 1 + test["within"]
    same, other = low <= narrow.low and narrow.high <= high, wide.high < low or wide.low > high
    return Evidence(
        verdict(same, other), f"{what} {narrow.mean:.3f} [{narrow.low:.3f}, {narrow.high:.3f}], n {narrow.n}"
    )


# key that tells the kind → (other keys that it needs, comparison)
KINDS: dict[str, tuple[set[str], Callable[[Results, dict[str, Any], float], Evidence]]] = {
    "better": ({"axis", "than"}, compare_better),
    "speedup": ({"axis", "arm"}, compare_speedup),
    "same": ({"axis", "arm", "within"}, compare_same),
}


def at_last(results: Results, arm: str, value: Callable[[dict[str, Any]], float | None]) -> dict[int, float]:
    """seed → value at the sweep's last evaluation."""
    step = max(record["step"] for record in results.records)
    there = {r["seed"]: value(r) for r in results.records if r["arm"] == arm and r["step"] == step}
    return {seed: number for seed, number in there.items() if number is not None and math.isfinite(number)}


def kind_of(test: dict[str, Any]) -> str:
    for kind, (needs, _) in KINDS.items():
        if kind in test:
            missing, extra = needs - test.keys(), test.keys() - needs - {kind, "metric"}
            if missing or extra:
                raise UserError(
                    f"claims.yaml: {test} {'lacks ' + ', '.join(sorted(missing)) if missing else 'has ' + ', '.join(sorted(extra))}"
                )
            return kind
    raise unknown("kind of comparison", next(iter(test), ""), KINDS)


def subject(test: dict[str, Any]) -> str:
    return (
        f"{test['axis']}: {test['better']} and {test['than']}"
        if "better" in test
        else f"{test['axis']}: {test['arm']}"
    )


def sweep_of(test: dict[str, Any], profile: str, sweeps: list[Results]) -> Results | None:
    """The sweep that has records of both arms at its last evaluation."""
    for results in sweeps:
        if (results.axis, results.profile) == (test["axis"], profile):
            arms = {test["better"], test["than"]} if "better" in test else {test["arm"], results.baseline}
            if all(at_last(results, arm, lambda record: record["step"]) for arm in arms):
                return results
    return None


def overall(verdicts: list[str], complete: bool) -> str:
    for side in ("contradicted", "undecided"):
        if side in verdicts:
            return side
    return "supported" if complete else "undecided"


def judge(claim: dict[str, Any], sweeps: list[Results]) -> list[list[str]]:
    """→ rows (claim, paper, profile, verdict, evidence), one for each profile that ran a comparison; one row `not run` if none did."""
    rows, tests, label = [], claim["tests"], [claim["claim"], claim["paper"]]
    compare = [KINDS[kind_of(test)][1] for test in tests]
    for profile in dict.fromkeys(results.profile for results in sweeps):
        where = [sweep_of(test, profile, sweeps) for test in tests]
        found = [
            f(r, test, 1 - 0.05 / len(tests)) for f, r, test in zip(compare, where, tests, strict=True) if r
        ]
        absent = [subject(test) for r, test in zip(where, tests, strict=True) if r is None]
        if found:
            texts = [evidence.text for evidence in found] + [f"not run: {text}" for text in absent]
            rows.append(
                [
                    *label,
                    profile,
                    overall([evidence.verdict for evidence in found], not absent),
                    "; ".join(texts),
                ]
            )
    return rows or [[*label, MISSING, "not run", "needs " + "; ".join(map(subject, tests))]]


def report(claims: list[dict[str, Any]], sweeps: list[Results]) -> str:
    for results in sweeps:
        refuse_mixed_protocols(results)
    rows = [row for claim in claims for row in judge(claim, sweeps)]
    count = {side: sum(row[3] == side for row in rows) for side in (*SIDES, "not run")}
    summary = ", ".join(f"{n} {side}" for side, n in count.items())
    return f"# The paper's claims against these records\n\n{RULES}\n\n{summary}.\n\n" + markdown_grid(
        ["claim", "in the paper", "profile", "verdict", "evidence"], rows, "---"
    )


def command(argv: list[str]) -> int:
    options = parser(
        "claims", __doc__.splitlines()[0], "python analysis/claims.py --records reports/data/*_digits.jsonl"
    )
    options.add_argument(
        "--claims", type=Path, default=CLAIMS, metavar="FILE", help="claims (reports/claims.yaml)"
    )
    args = options.parse_args(argv)
    text = report(read_yaml(args.claims)["claims"], load(args))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "claims.md").write_text(text, encoding="utf-8")
    say(f"wrote {args.out / 'claims.md'}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
