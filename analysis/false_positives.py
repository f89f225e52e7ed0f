"""How often tables, planned looks and claims find something where there is nothing.

    python analysis/false_positives.py --records reports/data/controls_staircase_cut.jsonl

Reads a pool of runs of a null (docs/controls.md), whose arms differ in nothing that the primary
metric can show, and cuts it into sweeps: into disjoint ones, for an exact interval of the rate, and
at random many times, for the rate itself. With the records of the positive control besides
(controls_staircase.jsonl) it also writes what stands at the foot of other tables, data/controls.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import load, logger, parser, write
from scipy.special import betaincinv, stdtr

from mirai_bench.results.controls import PLANTED, SUMMARY, dataset_of, solved_counts
from mirai_bench.results.frame import Results, file_stem, is_distance
from mirai_bench.results.looks import LEVEL, levels
from mirai_bench.results.stats import CONFIDENCE, fisher_exact
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json
from mirai_bench.utils.text_table import markdown_table

log = logger(__name__)

DRAWS = 10_000  # random sweeps
LOOKS = (6, 12, 24)


@dataclass(frozen=True)
class Rule:
    """A way to find something in a sweep of n seeds."""

    name: str
    n: int
    finds: Callable[[np.ndarray], np.ndarray]
    """From differences to the baseline (sweeps, arms, n), whether each sweep finds something."""


def p_values(differences: np.ndarray) -> np.ndarray:
    """Returns the two-sided p of the paired t-tests of (…, n) differences. It is 1 without spread."""
    n = differences.shape[-1]
    error = differences.std(-1, ddof=1) / np.sqrt(n)
    statistic = np.divide(np.abs(differences.mean(-1)), error, out=np.zeros_like(error), where=error > 0)
    return 2 * stdtr(n - 1, -statistic)


def in_a_table(differences: np.ndarray) -> np.ndarray:
    """Tells whether any arm has a Holm-corrected p below 5 %."""
    # Holm's first step decides whether anything is found at all.
    return p_values(differences).min(1) * differences.shape[1] < LEVEL


def at_the_looks(differences: np.ndarray) -> np.ndarray:
    """Tells whether any arm is better or worse at any of the planned looks."""
    found = np.zeros(len(differences), dtype=bool)
    for n, level in zip(LOOKS, levels(LOOKS), strict=True):
        found |= p_values(differences[..., :n]).min(1) * differences.shape[1] < level
    return found


def by_a_claim(differences: np.ndarray) -> np.ndarray:
    """Tells whether a claim is supported that the first arm is above the baseline.

    On a null the rate does not depend on which side is claimed.
    """
    first = differences[:, 0]
    return (p_values(first) < LEVEL) & (first.mean(-1) > 0)


AT_THE_FOOT = Rule("table, 6 seeds", 6, in_a_table)  # what other tables say of the null
RULES = (
    Rule("table, 3 seeds", 3, in_a_table),
    AT_THE_FOOT,
    Rule("table, 12 seeds", 12, in_a_table),
    Rule(f"looks at {', '.join(map(str, LOOKS))} seeds", LOOKS[-1], at_the_looks),
    Rule("claim, 6 seeds", 6, by_a_claim),
)


def clopper_pearson(found: int, n: int) -> tuple[float, float]:
    """Returns the exact 95 % interval of a probability (Clopper and Pearson, Biometrika 1934)."""
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(found, n - found + 1, tail)) if found else 0.0
    high = float(betaincinv(found + 1, n - found, 1 - tail)) if found < n else 1.0
    return low, high


def differences_of(results: Results) -> np.ndarray:
    """Returns the differences to the baseline in the primary metric, (arms, seeds)."""
    metric = results.primary
    values = {arm: results.by_seed(arm, results.last_step, metric) for arm in results.arms}
    seeds = sorted(set.intersection(*(set(of_seeds) for of_seeds in values.values())))
    table = {arm: np.array([of_seeds[seed] for seed in seeds]) for arm, of_seeds in values.items()}
    if is_distance(metric):
        table = {arm: np.log(row) for arm, row in table.items()}
    base = table[results.baseline]
    return np.array([row - base for arm, row in table.items() if arm != results.baseline])


def disjoint_sweeps(pool: np.ndarray, rule: Rule) -> tuple[int, int]:
    """Returns in how many sweeps something is found, of how many that share no seed."""
    arms, seeds = pool.shape
    number = seeds // rule.n
    disjoint = pool[:, : number * rule.n].reshape(arms, number, rule.n).swapaxes(0, 1)
    return int(rule.finds(disjoint).sum()), number


def rates(pool: np.ndarray, rule: Rule, rng: np.random.Generator) -> list[str]:
    """Returns a row: the rule, found of disjoint sweeps, their exact interval, and the rate."""
    # 1. Disjoint sweeps. They are independent, so that the interval is exact.
    found, number = disjoint_sweeps(pool, rule)
    low, high = clopper_pearson(found, number)
    # 2. Random sweeps of the pool, which overlap: a steadier rate, without an interval.
    seeds = pool.shape[1]
    chosen = np.array([rng.choice(seeds, rule.n, replace=False) for _ in range(DRAWS)])
    rate = float(rule.finds(pool[:, chosen].swapaxes(0, 1)).mean())
    return [rule.name, f"{found} of {number}", f"{low:.1%} to {high:.1%}", f"{rate:.1%}"]


def seen(results: Results) -> dict[str, Any]:
    """Returns how often the first arm after the baseline solves a planted task.

    Raises UserError if the one or the other has no run.
    """
    counts = solved_counts(results, results.last_step)
    arm = next(arm for arm in results.arms if arm != results.baseline)
    ours = counts[arm]
    baseline = counts[results.baseline]
    if not ours.n or not baseline.n:
        lacking = results.baseline if ours.n else arm
        raise UserError(f"{name_of(results)}: no run of {lacking} says whether it solved the task: add some")
    return {
        "arm": arm,
        "solved": ours.solved,
        "n": ours.n,
        # One comparison, which the order of the sweep file has chosen: not corrected.
        "p": fisher_exact(ours.solved, ours.n, baseline.solved, baseline.n),
        "baseline": results.baseline,
        "baseline_solved": baseline.solved,
        "baseline_n": baseline.n,
    }


def found_in_nothing(results: Results) -> dict[str, Any]:
    """Returns how many disjoint tables of 6 seeds find something."""
    pool = differences_of(results)
    found, number = disjoint_sweeps(pool, AT_THE_FOOT)
    if not number:
        raise UserError(
            f"{name_of(results)} has {pool.shape[1]} seeds of which all arms have a value: one sweep of the "
            f"null takes {AT_THE_FOOT.n}"
        )
    low, high = clopper_pearson(found, number)
    return {"found": found, "sweeps": number, "n": AT_THE_FOOT.n, "low": low, "high": high}


def report(results: Results) -> str:
    """Returns the report in Markdown."""
    pool = differences_of(results)
    rng = np.random.default_rng(0)
    rows = [rates(pool, rule, rng) for rule in RULES if rule.n <= pool.shape[1]]
    header = ["what finds something", "disjoint sweeps", "exact 95% interval", f"{DRAWS:,} random sweeps"]
    arms = ", ".join(arm for arm in results.arms if arm != results.baseline)
    text = (
        f"# False positives on {results.profile}\n\n"
        f"A pool of {pool.shape[1]} seeds of {arms} and {results.baseline}, cut into sweeps; primary metric "
        f"{results.primary}. Nothing can be\nforeseen there, so whatever is found is an error. A table and "
        f"the looks may find something in {LEVEL:.0%} of sweeps, a claim that\none arm is better in "
        f"{LEVEL / 2:.1%}.\n\n"
        f"{markdown_table(header, rows)}\n"
        "Disjoint sweeps share no run; their interval is Clopper and Pearson's. Random sweeps are drawn from "
        "the same pool and overlap,\nso that their rate has no interval of its own.\n"
    )
    return text.replace("%", " %")


def controls_among(sweeps: Iterable[Results]) -> tuple[list[Results], list[Results]]:
    """Returns the positive controls, which tell whether help is seen, and the nulls.

    What is no control is left out. Raises UserError for a control of which nothing could be compared.
    """
    positive: list[Results] = []
    nulls: list[Results] = []
    for results in sweeps:
        data = dataset_of(results)
        if data.get("dataset") != PLANTED:
            log.info(f"{name_of(results)} is no control (data.dataset is not {PLANTED}), left out")
            continue
        if results.baseline not in results.arms or len(results.arms) < 2:
            raise UserError(
                f"{name_of(results)} has the arms {', '.join(results.arms)}: give records of the baseline "
                f"{results.baseline} and of another arm"
            )
        kind = nulls if data.get("staircase", {}).get("cut") else positive
        kind.append(results)
    return positive, nulls


def name_of(results: Results) -> str:
    """Returns a sweep's name for a message."""
    return f"{results.axis} ({results.profile})"


def command(argv: list[str]) -> int:
    """Runs the script. Writes and prints the report of each pool."""
    example = "python analysis/false_positives.py --records reports/data/controls_staircase_cut.jsonl"
    args = parser("false_positives", __doc__.splitlines()[0], example).parse_args(argv)
    # 1. All is counted before anything is written.
    positive, nulls = controls_among(load(args))
    if not nulls:
        raise UserError(
            f"none of these sweeps is a null (data.dataset {PLANTED}, data.staircase.cut): {example}"
        )
    of_nulls = [found_in_nothing(results) for results in nulls]
    of_positive = [seen(results) for results in positive]
    if positive and len(positive) + len(nulls) > 2:
        names = ", ".join(map(name_of, [*positive, *nulls]))
        raise UserError(f"{SUMMARY[-1]} is of one positive control and one null, and not of {names}")
    # 2. The report on each null.
    for results in nulls:
        text = report(results)
        write(args.out, f"false_positives_{file_stem(results.profile)}.md", text)
        print(text)
    # 3. With both, what stands at the foot of other tables.
    if positive:
        path = args.out / "data" / SUMMARY[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"positive": of_positive[0], "null": of_nulls[0]})
        log.info(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
