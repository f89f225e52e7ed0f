"""Fixes the value of a metric that an arm has to reach, and measures how long arms take to reach it.

    python analysis/fd_targets.py --records reports/data/controls_staircase.jsonl --metric heldout_ntp

The target is the median over the seeds of the baseline's last values. It is fixed beforehand:
reports/fd_targets.yaml says where it was taken from, and plot_convergence.py reads it.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from common import load, logger, parser
from speedup import Curve, curves

from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.results.cost import AXES
from mirai_bench.results.frame import Results, is_distance, lower_is_better, refuse_mixed_protocols
from mirai_bench.results.notes import MISSING
from mirai_bench.results.stats import t_interval
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.files import write_text
from mirai_bench.utils.text_table import markdown_escape, markdown_table

log = logger(__name__)

TARGETS = shipped("reports", "fd_targets.yaml")
HEAD = """\
# Values that a run has to reach, for each profile and metric. They were fixed before the runs that
# are compared with them: each is the median of the baseline's last values over these seeds.
# Written by analysis/fd_targets.py.
"""
DEFINITION = (
    "A run that never reaches the target counts with the cost of its whole training (restricted "
    "time), in arm and baseline alike; none is left out. Time: geometric mean of the restricted times over "
    "the seeds that both have. ×: the baseline's over the arm's, with the 95 % t-interval of its "
    "logarithm, paired by seed. Where more runs of one side are restricted, that side needs still more "
    "than it says. p: exact test of the mean log ratio by changing its signs (the least p of n seeds is "
    "2/2ⁿ), not corrected. ≤: reached before the first evaluation in some seed."
)
MOST_SIGNS = 16  # seeds up to which all changes of signs are tried
RANDOM_SIGNS = 20_000


@dataclass(frozen=True)
class Target:
    """A value that was fixed beforehand, and what it was taken from."""

    value: float
    axis: str
    baseline: str
    seeds: list[int]
    epoch: float
    protocol: str
    """Digest of the protocol. The target holds for records of the same one only."""
    records: list[str]


class Reach(NamedTuple):
    """Where a curve first reaches a value."""

    x: float
    at_start: bool
    """Whether the first point is there already, so that x is an upper bound."""


@dataclass(frozen=True)
class TimeToTarget:
    """How long an arm and the baseline take to reach a target, over the seeds that both have."""

    n: int
    reached: int
    """Number of seeds in which the arm reaches it."""
    early: bool
    """Whether the arm was there before its first evaluation in some seed."""
    time: float
    """Geometric mean of the arm's restricted times."""
    ratio: float
    """The baseline's restricted time over the arm's."""
    low: float
    high: float
    """The t-interval of the ratio. It is nan for n = 1."""
    p: float

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}], p {self.p:.3f}"
        return f"{self.ratio:.2f}×{interval}"


# ---- targets


def target_of(results: Results, metric: str, records: list[str]) -> Target:
    """Returns the target that these results give: the median of the baseline's last values."""
    own = [record for record in results.records if record["arm"] == results.baseline]
    if not own:
        raise UserError(
            f"{results.axis} ({results.profile}) has no record of its baseline {results.baseline}"
        )
    last = max(own, key=lambda record: record["step"])
    values = results.by_seed(results.baseline, last["step"], metric)
    if metric not in results.choices:
        raise unknown("metric", metric, results.choices)
    if not values:
        raise UserError(
            f"{results.axis} ({results.profile}): {metric} of its baseline {results.baseline} has no finite "
            f"value at its last evaluation, epoch {last['epoch']:g}: choose another --metric"
        )
    return Target(
        value=statistics.median(values.values()),
        axis=results.axis,
        baseline=results.baseline,
        seeds=list(values),
        epoch=last["epoch"],
        protocol=last["run"]["protocol_digest"],
        records=records,
    )


def read_target(results: Results, metric: str, path: Path = TARGETS) -> Target | None:
    """Returns the target of a profile and metric, or None if there is none under this protocol."""
    known = (read_yaml(path) or {}) if path.is_file() else {}
    fields = known.get(results.profile, {}).get(metric)
    if fields is None:
        return None
    target = Target(**fields)
    digests = {record["run"]["protocol_digest"] for record in results.records}
    return target if digests == {target.protocol} else None


def write_target(results: Results, metric: str, target: Target, path: Path, replace: bool) -> None:
    """Adds a target to the file. Raises UserError if there is one, unless it is to be replaced."""
    known: dict[str, Any] = (read_yaml(path) or {}) if path.is_file() else {}
    of_profile = known.setdefault(results.profile, {})
    if metric in of_profile and not replace:
        raise UserError(
            f"{path} has a target of {results.profile} in {metric} already: {of_profile[metric]['value']}. "
            "A target is fixed beforehand; to give it up, write --replace"
        )
    of_profile[metric] = vars(target)
    text = yaml.safe_dump(known, sort_keys=False, default_flow_style=None, width=100)
    write_text(path, HEAD + text)


# ---- time to target


def first_reach(curve: Curve, target: float, metric: str) -> Reach | None:
    """Returns where the curve first reaches the target, or None if it never does."""
    # On the straight line between two evaluations, of Fréchet distances that of the logarithm.
    scale = math.log if is_distance(metric) and min(y for _, y in curve) > 0 else float
    sign = 1 if lower_is_better(metric) else -1  # so that less is better
    points = [(x, sign * scale(y)) for x, y in curve]
    goal = sign * scale(target)
    if points[0][1] <= goal:
        return Reach(points[0][0], True)
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 <= goal:
            return Reach(x0 + (x1 - x0) * (goal - y0) / (y1 - y0), False)
    return None


def sign_test(differences: list[float]) -> float:
    """Returns the two-sided p of the mean of paired differences being 0.

    If arm and baseline are the same, each difference could as well have the other sign (E. J. G.
    Pitman, "Significance tests which may be applied to samples from any populations", 1937). With
    many seeds the signs are drawn.
    """
    d = np.asarray(differences)
    n = len(d)
    if n <= MOST_SIGNS:
        signs = 1 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (RANDOM_SIGNS, n))
        signs[0] = 1  # what was observed is one of them
    sums = np.abs(signs @ d)
    return float(np.mean(sums >= abs(d.sum()) - 1e-9 * np.abs(d).sum()))


def time_to_target(results: Results, arm: str, metric: str, x: str, target: float) -> TimeToTarget | None:
    """Returns the time to target of an arm, or None if it shares no seed with the baseline.

    Times are restricted to the length of each training: see P. Royston and M. Parmar, "Restricted mean
    survival time", 2013. Here the mean is that of the logarithm, because times are compared by
    their ratio.
    """
    by_arm = curves(results, metric, x)
    seeds = sorted(by_arm.get(arm, {}).keys() & by_arm.get(results.baseline, {}).keys())
    if not seeds:
        return None
    # 1. Each seed's restricted times.
    ours = [first_reach(by_arm[arm][seed], target, metric) for seed in seeds]
    theirs = [first_reach(by_arm[results.baseline][seed], target, metric) for seed in seeds]
    times = _restricted([by_arm[arm][seed] for seed in seeds], ours)
    their_times = _restricted([by_arm[results.baseline][seed] for seed in seeds], theirs)
    # 2. Their ratio, paired by seed.
    differences = [math.log(b / a) for a, b in zip(times, their_times, strict=True)]
    found = t_interval(differences)
    assert found is not None
    low, high = (math.exp(found.mean + half) for half in (-found.half, found.half))
    reached = [reach for reach in ours if reach is not None]
    early = any(reach.at_start for reach in reached)
    time = statistics.geometric_mean(times)
    ratio = math.exp(found.mean)
    return TimeToTarget(len(seeds), len(reached), early, time, ratio, low, high, sign_test(differences))


def _restricted(runs: list[Curve], reached: list[Reach | None]) -> list[float]:
    return [reach.x if reach else run[-1][0] for run, reach in zip(runs, reached, strict=True)]


def target_table(results: Results, metric: str, target: Target, timing: bool = True) -> str:
    """Returns a Markdown table of the times that each arm takes to reach a target."""
    axes = [x for x in AXES if timing or x != "seconds"]
    header = ["arm", "reached"]
    for x in axes:
        header += [AXES[x][1], "×"]
    rows = []
    for arm in results.arms:
        found = {x: time_to_target(results, arm, metric, x, target.value) for x in axes}
        first = found["epochs"]
        row = [arm, MISSING if first is None else f"{first.reached} of {first.n}"]
        for time in found.values():
            if time is None:
                row += [MISSING, MISSING]
                continue
            row.append(f"{'≤ ' if time.early else ''}{time.time:.3g}")
            row.append("1.00×" if arm == results.baseline else str(time))
        rows.append(row)
    seeds = ", ".join(map(str, target.seeds))
    own = set(target.seeds) & set(results.seeds(results.baseline))
    same = " These are seeds of this very table, so that the target is not independent of it." if own else ""
    title = f"{results.axis} ({results.profile}): time to {metric} {target.value:.4g}"
    source = (
        f"Target: the median of {target.baseline} at epoch {target.epoch:g} over seeds {seeds} of "
        f"{target.axis} (reports/fd_targets.yaml).{same}"
    )
    return f"**{markdown_escape(title)}**\n\n{markdown_table(header, rows)}\n{source} {DEFINITION}\n"


# ---- the script


def command(argv: list[str]) -> int:
    """Runs the script. Adds a target for each sweep that is read, and prints it."""
    example = "python analysis/fd_targets.py --records reports/data/controls_staircase.jsonl"
    options = parser("fd_targets", __doc__.splitlines()[0], example)
    again = "give up a target that is there: what was compared with it no longer is"
    options.add_argument("--metric", help="what is to be reached; default the metric that decides")
    options.add_argument("--replace", action="store_true", help=again)
    # A target is fixed for all who come after, in the file that plot_convergence.py reads.
    options.set_defaults(out=Path(TARGETS.parent.name))
    args = options.parse_args(argv)
    path = args.out / TARGETS.name
    for results in load(args):
        refuse_mixed_protocols(results)
        metric = args.metric or results.primary
        target = target_of(results, metric, [str(file) for file in args.records or []])
        args.out.mkdir(parents=True, exist_ok=True)
        write_target(results, metric, target, path, args.replace)
        log.info(f"wrote {path}")
        print(f"{results.profile}: {metric} {target.value:.6g} (seeds {', '.join(map(str, target.seeds))})")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
