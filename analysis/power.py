"""What buys power: averaged evaluations, more samples, fewer evaluations, common random numbers.

    python analysis/power.py --runs runs --profile digits

The final weights of every run of a finished sweep are evaluated again, with more samples and with
other random numbers. What is measured is in data/power_PROFILE.jsonl, and is not measured again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from again import (
    Again,
    FinalWeights,
    Key,
    Line,
    add_sources,
    finished,
    folder_of,
    last_record,
    lines_of,
    made_by,
    named,
)
from scipy.special import chdtri

from mirai_bench.results.frame import Results, file_stem, is_distance
from mirai_bench.results.stats import POWER, paired, seeds_needed
from mirai_bench.utils.cli import progress, run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_text
from mirai_bench.utils.text_table import markdown_table

EFFECT = 0.15  # the difference that is to be shown, as a share of the baseline's value
LEVEL = 0.05
TIMES = (1, 2, 4)  # as many samples as the protocol says
AVERAGED = (1, 2, 3)  # of the last evaluations
UNKNOWN = "—"
NAME = "power"  # of the files
HAS = "again"  # a field of their lines


class Outcome(NamedTuple):
    """What one cell shows under a variant of the protocol, and what that costs."""

    value: float
    seconds: float
    """CPU seconds of training and all evaluations."""


# ---- what is measured


def measure(results: Results, known: dict[Key, Line]) -> Iterator[Line]:
    """Yields a line for each finished cell of a sweep; `known` are the lines of an earlier call."""
    cells = finished(results)
    evaluate = Again()
    by_run = {line["fingerprint"]: line for line in known.values()}
    for cell in progress(cells, f"{results.axis}: evaluating", len(cells), "runs"):
        line = by_run.get(cell["fingerprint"])
        if line is None:
            final = FinalWeights.of(folder_of(results, cell))
            threads = final.config.machine.threads
            again = list(evaluate_again(final, evaluate))
            line = along(results, cell) | {"threads": threads, "again": again}
        yield line | named(results, cell)


def along(results: Results, cell: dict[str, Any]) -> Line:
    """Returns the evaluations along the training of a cell, and what the training took."""
    who = (cell["arm"], cell["seed"])
    own = [record for record in results.records if (record["arm"], record["seed"]) == who]
    points = [{"epoch": record["epoch"], "metrics": record["metrics"]} for record in own]
    last = last_record(results, cell)
    cost = {"epochs": last["epoch"], "train_seconds": last["train_seconds"]}
    return made_by(last) | cost | {"along": points}


def evaluate_again(final: FinalWeights, evaluate: Again) -> Iterator[dict[str, Any]]:
    """Yields evaluations of the final weights: with more samples, and with other random numbers."""
    n = final.config.evaluation.protocol.num_samples
    for times, other in (*((times, False) for times in TIMES), (1, True)):
        found = evaluate(final, other, num_samples=times * n)
        yield {"times": times, "other": other, "seconds": found.seconds, "metrics": found.metrics}


# ---- what each variant shows and costs


def variants(cell: Line, in_log: bool) -> dict[str, Outcome]:
    """Returns the outcome of a cell under each variant of the protocol; the first is as it is."""
    metric = cell["metric"]
    again = {(found["times"], found["other"]): found for found in cell["again"]}
    last = {times: again[times, False]["metrics"][metric] for times in TIMES}
    seconds = {times: again[times, False]["seconds"] for times in TIMES}
    # A training's seconds are the clock's, those of an evaluation the CPU's.
    training = cell["train_seconds"] * cell["threads"]
    values = [point["metrics"][metric] for point in cell["along"]]
    n = len(values)
    found: dict[str, Outcome] = {}
    for kept in (values, values[::-2][::-1]):  # all, and every second one up to the last
        k = len(kept)
        for number in AVERAGED:
            if number <= k:
                name = f"{k} evaluations" + (f", mean of the last {number}" if number > 1 else "")
                found[name] = Outcome(average(kept[-number:], in_log), training + k * seconds[1])
        for times in TIMES[1:]:
            cost = training + (k - 1) * seconds[1] + seconds[times]
            found[f"{k} evaluations, the last with {times}x the samples"] = Outcome(last[times], cost)
    for times in TIMES[1:]:
        cost = training + n * seconds[times]
        found[f"{n} evaluations, each with {times}x the samples"] = Outcome(last[times], cost)
    # The baseline keeps its random numbers, and each arm draws others.
    drawn = again[1, cell["arm"] != cell["baseline"]]["metrics"][metric]
    found[f"{n} evaluations, no common random numbers"] = Outcome(drawn, training + n * seconds[1])
    return found


def average(values: Sequence[float], in_log: bool) -> float:
    """Returns the mean of values; with `in_log` their geometric mean."""
    return float(np.exp(np.log(values).mean()) if in_log else np.mean(values))


def table(cells: Sequence[Line]) -> str:
    """Returns the table of one sweep at one length of training."""
    metric, baseline = cells[0]["metric"], cells[0]["baseline"]
    in_log = is_distance(metric)
    outcomes: dict[str, dict[str, dict[int, Outcome]]] = {}  # by variant, arm and seed
    for cell in cells:
        for name, outcome in variants(cell, in_log).items():
            outcomes.setdefault(name, {}).setdefault(cell["arm"], {})[cell["seed"]] = outcome
    rows = []
    for name, arms in outcomes.items():
        theirs = arms.pop(baseline, {})
        deviation, freedom = pooled_deviation(arms, theirs, in_log)
        if not freedom:
            raise UserError(f"{cells[0]['axis']}: no arm has two seeds in common with {baseline}")
        middle = average([outcome.value for outcome in theirs.values()], in_log)
        cost = float(np.mean([outcome.seconds for own in arms.values() for outcome in own.values()]))
        n = seeds_needed(-math.log1p(-EFFECT) if in_log else EFFECT * abs(middle), deviation, LEVEL)
        needed = [UNKNOWN, UNKNOWN] if n is None else [str(n), f"{n * cost / 60:.3g}"]
        # (n - 1) s² / σ² has the chi-squared distribution.
        low, high = (deviation * math.sqrt(freedom / chdtri(freedom, tail)) for tail in (0.025, 0.975))
        shown = f"{deviation:.3g} [{low:.2g}, {high:.2g}]"
        rows.append([name, f"{middle:.4g}", shown, f"{cost:.3g}", *needed])
    scale = "log difference" if in_log else "difference"
    header = ["variant", f"{baseline}'s {metric}", f"s of the paired {scale}", "CPU s a cell"]
    return markdown_table([*header, f"seeds for {EFFECT:.0%}", "CPU min an arm"], rows)


def pooled_deviation(
    arms: dict[str, dict[int, Outcome]], theirs: dict[int, Outcome], in_log: bool
) -> tuple[float, int]:
    """Returns the standard deviation of the paired differences within the arms, and its degrees of freedom.

    It is (0, 0) if no arm has two seeds in common with the baseline, which is `theirs`.
    """
    squares, freedom = 0.0, 0
    values = {seed: outcome.value for seed, outcome in theirs.items()}
    for own in arms.values():
        found = paired({seed: outcome.value for seed, outcome in own.items()}, values, in_log=in_log)
        if found is not None and found.n > 1:
            squares += (found.n - 1) * found.deviation**2
            freedom += found.n - 1
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


def report(cells: Sequence[Line]) -> str:
    """Returns the tables of all sweeps, with what their columns mean."""
    groups: dict[tuple[str, float], list[Line]] = {}
    for cell in cells:
        groups.setdefault((cell["axis"], cell["epochs"]), []).append(cell)
    parts = [f"# Power per CPU-minute of {cells[0]['profile']}\n"]
    for (axis, epochs), own in sorted(groups.items()):
        arms = sorted({cell["arm"] for cell in own})
        seeds = sorted({cell["seed"] for cell in own})
        device = ", ".join(sorted({cell["device"] for cell in own}))
        parts.append(
            f"## {axis}, {epochs:g} epochs\n\n{len(arms) - 1} arms and the baseline, {len(seeds)} seeds, on "
            f"{device}.\n\n{table(own)}"
        )
    parts.append(
        "The first row of a table is the protocol as it is. s: standard deviation over seeds of the "
        "difference to the baseline of the seed, pooled over the arms, with its 95 % interval as if the arms "
        "did not share a baseline; rows share their runs, so that they compare better than that. CPU s a "
        "cell: training (by the clock, too much where other work ran beside) and all evaluations (CPU time), "
        "mean over the arms. Seeds: as many "
        f"show a difference of {EFFECT:.0%} with a power of {POWER:.0%} in a paired t-test at the level of "
        f"{LEVEL:.0%}. CPU min an arm: of so many cells of the arm, without the baseline's. A mean of "
        "several evaluations, and a distance of more samples, is another quantity with another mean (second "
        "column), which an effect may change by another share. What common random numbers save is the "
        "difference between the last row and the first.\n"
    )
    return "\n".join(parts)


# ---- command line


def command(argv: list[str]) -> None:
    """Measures what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(prog="python analysis/power.py", description=__doc__.splitlines()[0])
    add_sources(parser, NAME)
    args = parser.parse_args(argv)
    cells = lines_of(args, NAME, HAS, measure)
    text = report(cells)
    path = args.out / file_stem(f"{NAME}_{cells[0]['profile']}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(text)


if __name__ == "__main__":
    sys.exit(run(command))
