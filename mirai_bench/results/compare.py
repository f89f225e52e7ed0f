"""`evaluate compare A B`: what changes from A to B, paired by seed, with an interval. Records of two protocols are refused."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from mirai_bench.results.stats import CONFIDENCE, paired
from mirai_bench.tracking.journal import read_journal
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError, unknown

MEASURED_BY = ("protocol", "extractor", "reference")


def records_of(what: str, runs: Path) -> list[dict[str, Any]]:
    """Evaluations of a run folder, a file of records (a journal, or what --record wrote), AXIS/ARM of the sweeps in `runs`, or
    FILE/ARM of a frozen file."""
    path = Path(what)
    journal = path / "journal.jsonl" if path.is_dir() else path
    if journal.is_file():
        try:
            found = [line for line in read_journal(journal) if line.get("kind") == "evaluation"]
            records = [{"seed": number, "epoch": 0.0} | record for number, record in enumerate(found)]
            _ = [record[key] for record in records for key in ("metrics", *MEASURED_BY)]
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{journal} is not a file of records ({type(error).__name__}: {error})") from None
    else:
        records = _of_arm(what, runs)
    if not records:
        raise UserError(f"{what} has no evaluation yet")
    return records


def _of_arm(what: str, runs: Path) -> list[dict[str, Any]]:
    from mirai_bench.results.reading import read_journals, read_jsonl

    axis, _, arm = what.rpartition("/")
    sweeps = (
        read_jsonl([Path(axis)])
        if Path(axis).is_file()
        else [s for s in read_journals(runs) if s.axis == axis]
    )
    if not sweeps:
        known = ", ".join(f"{sweep.axis}/{name}" for sweep in read_journals(runs) for name in sweep.arms)
        raise UserError(
            f"There is no {what!r}: write a run folder, a file of records, or AXIS/ARM ({known or f'no sweep in {runs}'})"
        )
    arms = [name for sweep in sweeps for name in sweep.arms]
    if arm not in arms:
        raise unknown(f"arm of {axis}", arm, arms)
    records = [record for sweep in sweeps for record in sweep.records if record["arm"] == arm]
    return [record | {key: record["run"][key] for key in MEASURED_BY} for record in records]


def refuse_difference(records: list[dict[str, Any]]) -> None:
    """Raises UserError that names the first field in which two records were not measured alike."""

    def flat(record: dict[str, Any]) -> dict[str, Any]:
        fields = {f"{part}.{key}": value for part in MEASURED_BY for key, value in record[part].items()}
        fields.pop("protocol.name")
        return fields

    first = flat(records[0])
    for record in records[1:]:
        mine = flat(record)
        for key in [*first, *mine]:
            if first.get(key) != mine.get(key):
                raise UserError(
                    f"records of two protocols cannot be compared: {key} is {first.get(key)!r} in one and {mine.get(key)!r} in another; "
                    "evaluate both alike"
                )


def last_common_epoch(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """The last epoch at which the most seeds have a record on both sides."""
    pairs = {(r["seed"], r["epoch"]) for r in a} & {(r["seed"], r["epoch"]) for r in b}
    if not pairs:
        raise UserError("A and B have no evaluation with the same seed and epoch: nothing to pair")
    counts = {epoch: sum(e == epoch for _, e in pairs) for _, epoch in pairs}
    return max(counts, key=lambda epoch: (counts[epoch], epoch))


def differences(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a metric that both have: name, n, mean of A, mean of B, B - A, half width of its interval, p."""
    values = [{record["seed"]: record["metrics"] for record in side} for side in (a, b)]
    seeds = sorted(values[0].keys() & values[1].keys())
    names = [
        name for name in values[0][seeds[0]] if all(name in side[seed] for side in values for seed in seeds)
    ]
    rows = []
    for name in names:
        ours, theirs = ({seed: side[seed][name] for seed in seeds} for side in values)
        estimate = paired(theirs, ours)
        means = (sum(side.values()) / len(seeds) for side in (ours, theirs))
        spread = ("—", "—") if math.isnan(estimate.half) else (f"± {estimate.half:.4g}", f"{estimate.p:.3g}")
        rows.append(
            (name, str(estimate.n), *(f"{mean:.5g}" for mean in means), f"{estimate.mean:+.4g}", *spread)
        )
    return rows


def table(rows: list[tuple[str, ...]]) -> str:
    head = ("metric", "n", "A", "B", "B - A", f"{CONFIDENCE:.0%} interval", "p")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.evaluate compare",
        description="Differences B - A of every metric, paired by seed: mean, Student's t-interval of the mean difference, two-sided p. "
        "One seed gives a difference without an interval.",
        epilog="example: python -m mirai_bench.evaluate compare injection_level/baseline injection_level/internal-2d",
    )
    parser.add_argument(
        "a", metavar="A", help="a run folder, a file of records, AXIS/ARM, or reports/data/FILE.jsonl/ARM"
    )
    parser.add_argument("b", metavar="B", help="likewise")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs, for AXIS/ARM")
    parser.add_argument(
        "--epoch", type=float, help="by default the last at which both sides have the most seeds"
    )
    args = parser.parse_args(argv)
    a, b = records_of(args.a, args.runs), records_of(args.b, args.runs)
    epoch = last_common_epoch(a, b) if args.epoch is None else args.epoch
    a, b = ([record for record in side if record["epoch"] == epoch] for side in (a, b))
    if not {r["seed"] for r in a} & {r["seed"] for r in b}:
        raise UserError(f"--epoch is {epoch:g}, at which A and B have no seed in common")
    refuse_difference([*a, *b])
    protocol = a[0]["protocol"]
    say(
        f"A = {args.a}, B = {args.b}, epoch {epoch:g}, protocol {protocol['name']}: {protocol['num_samples']:,} samples a record"
    )
    print(table(differences(a, b)))
    return 0
