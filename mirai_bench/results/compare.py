"""The command `python -m mirai_bench.evaluate compare A B`.

It shows what changes from A to B, paired by seed. Records of two protocols are refused.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import Any

from mirai_bench.results.configs import refuse_other_configs
from mirai_bench.results.frame import MEASURED_WITH, bits_per_image, first_difference
from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.reading import read_journals
from mirai_bench.results.stats import CONFIDENCE, paired
from mirai_bench.tracking.journal import read_journal
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.text_table import console_table

log = logging.getLogger(__name__)

Records = list[dict[str, Any]]


# ---- the records that a word of the command line names


def records_of(what: str, runs: Path) -> Records:
    """Returns the evaluations of a run folder, a file of records, or an arm.

    A file of records is a journal, or what `evaluate --record` wrote. An arm is AXIS/ARM of the
    sweeps in `runs`, or FILE/ARM of a frozen file. Raises UserError if there are none.
    """
    path = Path(what)
    journal = RunFolder(path).journal.path if path.is_dir() else path
    records = _of_file(journal) if journal.is_file() else _of_arm(what, runs)
    if not records:
        raise UserError(f"{what} has no evaluation yet")
    return records


def _of_file(path: Path) -> Records:
    records: Records = []
    try:
        for line in read_journal(path):
            if line.get("kind") == "evaluation":
                # `evaluate --record` of images has neither seed nor epoch: each line is a seed then.
                records.append({"seed": len(records), "epoch": 0.0} | line)
                _ = [line[key] for key in ("metrics", *MEASURED_WITH)]  # KeyError if one is missing
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a file of records ({type(error).__name__}: {error})") from None
    return records


def _of_arm(what: str, runs: Path) -> Records:
    # 1. The sweeps that the word may mean: AXIS in a folder of runs, or a frozen FILE.
    axis, _, arm = what.rpartition("/")
    file = Path(axis)
    known = read_jsonl([file]) if file.is_file() else read_journals(runs)
    sweeps = [sweep for sweep in known if file.is_file() or sweep.axis == axis]
    if not sweeps:
        names = ", ".join(f"{sweep.axis}/{name}" for sweep in known for name in sweep.arms)
        raise UserError(
            f"There is no {what!r}: write a run folder, a file of records, or AXIS/ARM "
            f"({names or f'no sweep in {runs}'})"
        )
    # 2. Their records of the arm, made flat as the lines of a journal are.
    arms = [name for sweep in sweeps for name in sweep.arms]
    if arm not in arms:
        raise unknown(f"arm of {axis}", arm, arms)
    records = [record for sweep in sweeps for record in sweep.records if record["arm"] == arm]
    return [record["run"] | record for record in records]


# ---- comparing


def refuse_difference(records: Records) -> None:
    """Raises UserError if two records were not measured alike.

    It names the first field that differs.
    """
    for record in records[1:]:
        found = first_difference(records[0], record)
        if found is not None:
            key, one, other = found
            raise UserError(
                f"records of two protocols cannot be compared: {key} is {one!r} in one and "
                f"{other!r} in another; evaluate both alike"
            )


def refuse_other_runs(what: str, records: Records) -> None:
    """Raises UserError, which names the field, if the records of one side are of two configurations."""
    of_runs = [record for record in records if "config" in record]  # images have none
    refuse_other_configs(
        what, [{"arm": "one side", "seed": record["seed"], "run": record} for record in of_runs]
    )


def last_common_epoch(a: Records, b: Records) -> float:
    """Returns the last of the epochs at which the most seeds have a record on both sides."""
    pairs = _pairs(a) & _pairs(b)
    if not pairs:
        raise UserError("A and B have no evaluation with the same seed and epoch: nothing to pair")
    # The number of seeds comes first: three pairs at epoch 8 say more than one pair at epoch 10.
    epochs = [epoch for _, epoch in pairs]
    return max(epochs, key=lambda epoch: (epochs.count(epoch), epoch))


def _pairs(records: Records) -> set[tuple[int, float]]:
    return {(record["seed"], record["epoch"]) for record in records}


def differences(a: Records, b: Records) -> list[tuple[str, ...]]:
    """Returns a row of texts per metric that both sides have for all their common seeds.

    A row is: name, n, mean of A, mean of B, B - A, half width of its interval, p.
    """
    # 1. The metrics of each side, by seed.
    of_a, of_b = (
        {record["seed"]: record["metrics"] | bits_per_image(record["metrics"], record) for record in side}
        for side in (a, b)
    )
    seeds = sorted(of_a.keys() & of_b.keys())
    # 2. A row per metric. One that a side lacks for a seed would not be the mean over all of them.
    rows = []
    for name in of_a[seeds[0]]:
        if not all(name in of_a[seed] and name in of_b[seed] for seed in seeds):
            continue
        # Of the seeds whose values are finite on both sides: a record of others may hold anything.
        finite = [seed for seed in seeds if _is_finite(of_a[seed][name]) and _is_finite(of_b[seed][name])]
        ours = {seed: of_a[seed][name] for seed in finite}
        theirs = {seed: of_b[seed][name] for seed in finite}
        estimate = paired(theirs, ours) if finite else None
        if estimate is None:
            rows.append((name, "0", *["—"] * 5))
            continue
        half = "—" if math.isnan(estimate.half) else f"± {estimate.half:.4g}"
        p = "—" if math.isnan(estimate.p) else f"{estimate.p:.3g}"
        means = [f"{sum(side.values()) / len(finite):.5g}" for side in (ours, theirs)]
        rows.append((name, str(estimate.n), *means, f"{estimate.mean:+.4g}", half, p))
    return rows


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# ---- the command


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `evaluate compare`."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.evaluate compare",
        description="Differences B - A of every metric, paired by seed: mean, Student's t-interval "
        "of the mean difference, two-sided p. One seed gives a difference without an interval.",
        epilog="example: python -m mirai_bench.evaluate compare "
        "injection_level/baseline injection_level/internal-2d",
    )
    what = "a run folder, a file of records, AXIS/ARM, or reports/data/FILE.jsonl/ARM"
    result.add_argument("a", metavar="A", help=what)
    result.add_argument("b", metavar="B", help="what to compare with A, in the same forms")
    result.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs, for AXIS/ARM")
    result.add_argument(
        "--epoch", type=float, help="default: the last one at which both sides have the most seeds"
    )
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints the table."""
    # 1. The records of both sides at one epoch.
    args = parser().parse_args(argv)
    a = records_of(args.a, args.runs)
    b = records_of(args.b, args.runs)
    epoch = last_common_epoch(a, b) if args.epoch is None else args.epoch
    a = [record for record in a if record["epoch"] == epoch]
    b = [record for record in b if record["epoch"] == epoch]
    if not _pairs(a) & _pairs(b):
        raise UserError(f"--epoch is {epoch:g}, at which A and B have no seed in common")
    # 2. Numbers of two protocols are not of one kind, and a mean over two configurations is of nothing.
    refuse_difference([*a, *b])
    refuse_other_runs(args.a, a)
    refuse_other_runs(args.b, b)
    # 3. What is compared (stderr), and the differences (stdout).
    protocol = a[0]["protocol"]
    log.info(
        f"A = {args.a}, B = {args.b}, epoch {epoch:g}, protocol {protocol['name']}: "
        f"{protocol['num_samples']:,} samples per record"
    )
    header = ("metric", "n", "A", "B", "B - A", f"{CONFIDENCE:.0%} interval", "p")
    print(console_table(header, differences(a, b)))
    return 0
