"""Says which of the paper's differences one run of each arm can show, at the noise that others have measured.

    python analysis/single_runs.py

The comparisons are those of reports/claims.yaml. The paper's values are in reports/data/paper_values.csv, the
noise of FID in reports/data/training_noise.csv, and that of our own profiles in their noise panels.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from common import add_out, write
from scipy.special import ndtr, ndtri

from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.results.noise import TOGETHER, read_panel, spread_of
from mirai_bench.results.paper import EPOCHS, read_paper
from mirai_bench.results.stats import CONFIDENCE, holm
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.cli import run
from mirai_bench.utils.text_table import markdown_table

CLAIMS = shipped("reports", "claims.yaml")
NOISE = shipped("reports", "data", "training_noise.csv")
PANELS = {"cifar10_cpu": "FD-cifar10", "digits": "FD-digits"}  # of our own, and their metrics
SIZES = {"imagenet256_l": "L", "imagenet256_xl": "XL", "imagenet384_b": "B-384"}  # of profiles; else B
LEVEL = 1 - CONFIDENCE
SHOWN, WITHIN, OPPOSITE = "shown", "within the noise", "the other way round"

INTRODUCTION = """# What the paper's single runs can tell

Each value of the Mirai paper is one training, sampled once. No spread is given, so none of its differences
comes with a test. Others have measured how much FID varies between trainings that differ in their seed alone:

{noise}
s is the coefficient of variation of one value, √(between² + within²). *The FID Lottery* measured diffusion
models (SiT). Whether autoregressive models of the paper's size vary as much is not known; our own small ones,
whose noise panels are in `reports/data`, are in other feature spaces. Digits vary ten times as much.

z is the difference of the logarithms over √2 · s, with the first s and, as the most favourable case, with the
second: the paper's runs are guided, at one fixed scale. p is two-sided, at the first s, and corrected over
the table by Holm's method. **Shown** means p < 0.05. It does not mean that the claim is true: a bug, a recipe
that suits one arm, or the best of several λ are no noise.

"""
COMPARED = """## The comparisons that its claims rest on

{table}
{shown} of {count} are shown. The others may well be true; these runs do not say so.

## Every value of LlamaGen-B against the baseline

{arms}
## The speed-ups

A speed-up compares a value of the arm with the baseline's curve. If both vary by the first s, the epoch at
which the baseline has the arm's value is known no better than this (95 %, interpolated in the logarithms; ≥
is beyond the baseline's last epoch):

{speedups}"""


class Pair(NamedTuple):
    """Two values of the paper that a claim compares."""

    claim: str
    arms: str
    """In words."""
    model: str
    """The size of LlamaGen."""
    ours: float
    theirs: float
    epochs: int

    @property
    def difference(self) -> float:
        """Returns the difference of the logarithms, below 0 if the first arm has the lower FID."""
        return math.log(self.ours / self.theirs)

    def z(self, cov: float) -> float:
        """Returns the difference over its standard deviation between two single runs."""
        return abs(self.difference) / (math.sqrt(2) * cov)


# ---- what is compared


def curves(axis: str, size: str) -> dict[str, dict[int, float]]:
    """Returns the paper's FID of each arm of an axis, by epoch."""
    found: dict[str, dict[int, float]] = {}
    for row in read_paper(axis, size):
        if row["metric"] == "FID":
            found.setdefault(row["arm"], {})[int(row["epochs"])] = float(row["value"])
    return found


def epochs_of(ours: dict[int, float], theirs: dict[int, float], size: str) -> list[int]:
    """Returns the epochs at which two arms are compared: the last common one, and 80 for size B."""
    common = ours.keys() & theirs.keys()
    return sorted({EPOCHS, max(common)} & common if size == "B" else {max(common)}) if common else []


def pairs_of(claims: list[dict[str, Any]]) -> list[Pair]:
    """Returns the comparisons of arms that the paper has values of, each pair of values of a claim once."""
    found: dict[tuple[object, ...], Pair] = {}
    for claim, test, size in product_of(claims):
        of_axis = curves(test["axis"], size)
        ours, theirs = (of_axis.get(test[key], {}) for key in ("better", "than"))
        for epochs in epochs_of(ours, theirs, size):
            arms = f"{test['better']} against {test['than']}"
            pair = Pair(claim, arms, size, ours[epochs], theirs[epochs], epochs)
            # Arms of the text's and of the code's reading share a value.
            found.setdefault((claim, size, *pair[3:]), pair)
    return list(found.values())


def product_of(claims: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yields each claim, each of its comparisons of two arms, and each size that the paper may have it of."""
    for claim in claims:
        for test in claim["tests"]:
            if "better" in test:
                for size in [SIZES.get(test["profile"], "B")] if "profile" in test else ("B", "L", "XL"):
                    yield claim["claim"], test, size


def against_baseline(axes: list[str]) -> list[Pair]:
    """Returns the comparisons of the values of size B with the baseline's, each method and epoch once."""
    found: dict[tuple[str, int], Pair] = {}
    for axis in axes:
        methods = {row["arm"]: row["method"] for row in read_paper(axis, "B")}
        of_axis = curves(axis, "B")
        baseline = of_axis.pop("baseline", {})
        for arm, curve in of_axis.items():
            for epochs in epochs_of(curve, baseline, "B"):
                pair = Pair("", methods[arm], "B", curve[epochs], baseline[epochs], epochs)
                found.setdefault((pair.arms, epochs), pair)
    return list(found.values())


# ---- the tables


def table_of(pairs: list[Pair], covs: tuple[float, float], first: list[str]) -> tuple[str, int]:
    """Returns the table of some comparisons in Markdown, and how many of them are shown.

    `first` are the leading columns, which are fields of a pair.
    """
    ps = holm([2 * (1 - float(ndtr(pair.z(covs[0])))) for pair in pairs])
    rows = []
    for pair, p in zip(pairs, ps, strict=True):
        side = SHOWN if p < LEVEL else WITHIN
        if "claim" in first and pair.difference >= 0:  # a claim has a side
            side = OPPOSITE
        values = [f"{pair.ours:.2f}", f"{pair.theirs:.2f}", str(pair.epochs), percent(pair.difference)]
        numbers = [f"{pair.z(cov):.1f}" for cov in covs]
        shown_p = "<0.001" if p < 0.001 else f"{p:.3f}"
        rows.append([*(getattr(pair, name) for name in first), *values, *numbers, shown_p, side])
    header = [*first, "FID", "of the other", "epochs", "difference"]
    header += ["z", "z at the second s", "p (Holm)", "verdict"]
    return markdown_table(header, rows), sum(row[-1] == SHOWN for row in rows)


def percent(difference: float) -> str:
    """Returns a difference of logarithms as a change in per cent."""
    return f"{100 * math.expm1(difference):+.1f} %".replace("-", "−")


def speedups_of(claims: list[dict[str, Any]], cov: float) -> str:
    """Returns the table of the speed-ups in epochs that the paper claims."""
    reach = float(ndtri(0.5 + CONFIDENCE / 2)) * math.sqrt(2) * cov
    rows = []
    for claim in claims:
        for test in claim["tests"]:
            if "speedup" not in test or "cost" in test:
                continue
            of_axis = curves(test["axis"], "B")
            baseline = of_axis["baseline"]
            last = max(baseline)
            at = round(last / test["speedup"])  # the epoch of the arm that is compared with the last one
            value = of_axis[test["arm"]][at]
            ends = [
                baseline_epoch(baseline, value * math.exp(change)) / at for change in (reach, 0.0, -reach)
            ]
            limit = last / at
            low, middle, high = (f"≥ {limit:.1f}" if each >= limit else f"{each:.1f}" for each in ends)
            interval = f"{low} to {high}" if low != high else low
            compared = f"{value:.2f} @{at} against {baseline[last]:.2f} @{last}"
            rows.append([claim["claim"], f"{test['speedup']}×", compared, middle, interval])
    return markdown_table(["claim", "claimed", "FID", "by the baseline's curve", "with noise"], rows)


def baseline_epoch(curve: dict[int, float], value: float) -> float:
    """Returns the epoch at which a falling curve has a value; infinity beyond its end."""
    epochs = sorted(curve)
    if value < curve[epochs[-1]]:
        return math.inf
    falling = [math.log(curve[epoch]) for epoch in epochs]
    where = np.interp(-math.log(value), [-each for each in falling], [math.log(epoch) for epoch in epochs])
    return float(np.exp(where))


def noises() -> tuple[str, tuple[float, float]]:
    """Returns the table of the noise that was measured, and the two published coefficients of variation."""
    rows = []
    covs = []
    with open(NOISE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            between, within = float(row["between"]), float(row["within"])
            covs.append(math.hypot(between, within))
            what = f"{row['model']}, {row['setting']}"
            panel = f"{row['trainings']} × {row['samplings']}"
            shares = [f"{100 * each:.2f} %" for each in (between, within, covs[-1])]
            rows.append([what, row["metric"], panel, *shares, row["source"]])
    for profile, metric in PANELS.items():
        records = [record for record in read_panel(profile) if record["kind"] == "evaluation"]
        spread = spread_of(records, TOGETHER, metric)
        parts = (spread.between, spread.within, spread.single)
        shares = [f"{100 * each / spread.mean:.2f} %" for each in parts]
        panel = f"{spread.trainings} × {spread.samplings}"
        rows.append([f"our {profile}", metric, panel, *shares, f"reports/noise_{profile}.md"])
    header = ["measured on", "metric", "trainings × samplings", "between", "within", "s", "source"]
    first, second = covs
    return markdown_table(header, rows), (first, second)


def report() -> str:
    """Returns the report in Markdown."""
    claims = read_yaml(CLAIMS)["claims"]
    noise, covs = noises()
    pairs = pairs_of(claims)
    table, shown = table_of(pairs, covs, ["claim", "arms", "model"])
    axes = list(dict.fromkeys(test["axis"] for claim in claims for test in claim["tests"]))
    arms, _ = table_of(against_baseline(axes), covs, ["arms"])
    text = INTRODUCTION.format(noise=noise)
    parts = {"table": table, "shown": shown, "count": len(pairs), "arms": arms}
    return text + COMPARED.format(**parts, speedups=speedups_of(claims, covs[0]))


def command(argv: list[str]) -> int:
    """Runs the script. Writes and prints the report."""
    options = argparse.ArgumentParser(
        prog="python analysis/single_runs.py", description=__doc__.splitlines()[0]
    )
    add_out(options)
    args = options.parse_args(argv)
    text = report()
    write(args.out, "paper_single_runs.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
