"""What buys power: averaged evaluations, more samples, fewer evaluations, common random numbers.

    python analysis/power.py --runs runs --profile digits

The final weights of every run of a finished sweep are evaluated again, with more samples and with
other random numbers. What is measured is in data/power_PROFILE.jsonl, and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import MAIN_JOB, add_out
from scipy.special import chdtri

from mirai_bench.config.load import build_run, load_run, merge
from mirai_bench.config.run_config import RunConfig
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.results.frame import Results, is_distance
from mirai_bench.results.reading import read_journals
from mirai_bench.results.stats import POWER, paired, seeds_needed
from mirai_bench.sample.sampler import load_for_sampling
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.cli import progress, run
from mirai_bench.utils.device import resolve_device
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_text
from mirai_bench.utils.text_table import markdown_table

Cell = dict[str, Any]  # a line of the file
Key = tuple[str, str, str]

EFFECT = 0.15  # the difference that is to be shown, as a share of the baseline's value
LEVEL = 0.05
TIMES = (1, 2, 4)  # as many samples as the protocol says
OTHER = 10_000  # is added to the sampling seed for other random numbers
AVERAGED = (1, 2, 3)  # of the last evaluations
UNKNOWN = "—"


class Outcome(NamedTuple):
    """What one cell shows under a variant of the protocol, and what that costs."""

    value: float
    seconds: float
    """CPU seconds of training and all evaluations."""


# ---- what is measured


def measure(results: Results, known: dict[Key, Cell]) -> Iterator[Cell]:
    """Yields a line for each finished cell of a sweep; `known` are the lines of an earlier call."""
    done = [cell for cell in results.cells if cell["status"] == "done"]
    evaluators: dict[int, Evaluator] = {}  # by number of samples
    for cell in progress(done, f"{results.axis}: evaluating", len(done), "runs"):
        arm, seed, fingerprint = cell["arm"], cell["seed"], cell["fingerprint"]
        line = next((line for line in known.values() if line["fingerprint"] == fingerprint), None)
        if line is None:
            folder = RunFolder(Path(results.sources[fingerprint]))
            config = load_run(folder.config_file)
            again = list(evaluate_again(folder, config, evaluators))
            line = along(results, arm, seed) | {"threads": config.machine.threads, "again": again}
        who = {"kind": "cell", "axis": results.axis, "profile": results.profile, "baseline": results.baseline}
        yield line | who | {"arm": arm, "seed": seed, "fingerprint": fingerprint, "metric": results.primary}


def along(results: Results, arm: str, seed: int) -> Cell:
    """Returns the evaluations along the training of a cell, and what the training took."""
    own = [record for record in results.records if (record["arm"], record["seed"]) == (arm, seed)]
    points = [{"epoch": record["epoch"], "metrics": record["metrics"]} for record in own]
    last = own[-1]
    names = ("device", "protocol_digest", "versions", "git")
    made_by = {name: last["run"][name] for name in names}
    return made_by | {"epochs": last["epoch"], "train_seconds": last["train_seconds"], "along": points}


def evaluate_again(
    folder: RunFolder, config: RunConfig, evaluators: dict[int, Evaluator]
) -> Iterator[dict[str, Any]]:
    """Yields evaluations of the final weights: with more samples, and with other random numbers."""
    device = resolve_device(config.machine.device)
    protocol = config.evaluation.protocol
    model = load_for_sampling(folder, protocol.weights, device).model
    own = config.seed_of("sampling")
    for times, seed in (*((times, own) for times in TIMES), (1, own + OTHER)):
        n = times * protocol.num_samples
        if n not in evaluators:
            evaluators[n] = Evaluator(with_samples(config, n), device)
            evaluators[n].open()
        before = time.process_time()
        found = evaluators[n].evaluate_model(model, sampling_seed=seed)
        assert found is not None, "there is one rank"
        seconds = time.process_time() - before
        yield {"times": times, "other": seed != own, "seconds": seconds, "metrics": found.metrics}


def with_samples(config: RunConfig, n: int) -> RunConfig:
    """Returns the config with n samples per evaluation."""
    fields = {"evaluation": {"protocol": {"num_samples": n}}}
    return build_run(merge(config.model_dump(mode="json"), fields), "power")


# ---- what each variant shows and costs


def variants(cell: Cell, in_log: bool) -> dict[str, Outcome]:
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


def table(cells: Sequence[Cell]) -> str:
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


def report(cells: Sequence[Cell]) -> str:
    """Returns the tables of all sweeps, with what their columns mean."""
    groups: dict[tuple[str, float], list[Cell]] = {}
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


def read(path: Path) -> list[Cell]:
    """Returns the lines of a file of an earlier call. Raises UserError if it is no such file."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if lines and all(line["kind"] == "cell" and "again" in line for line in lines):
            return lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as records of this script: {error!r}") from None
    raise UserError(f"{path} holds no records of this script")


def key_of(line: Cell) -> Key:
    """Returns what names a line: a run may be a cell of several sweeps."""
    return line["axis"], line["arm"], line["fingerprint"]


def measured(args: argparse.Namespace) -> list[Cell]:
    """Returns the lines of all finished cells in a folder of runs, and writes them to their file."""
    sweeps = [results for runs in args.runs for results in read_journals(runs, args.axis, args.profile)]
    sweeps = [results for results in sweeps if any(cell["status"] == "done" for cell in results.cells)]
    if not sweeps:
        folders = ", ".join(map(str, args.runs))
        raise UserError(f"{folders}: no finished run of such a sweep. Run one first: {MAIN_JOB}")
    file = args.out / "data" / f"power_{args.profile}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    earlier = read(file) if file.is_file() else []
    lines = {key_of(line): line for line in earlier}
    for results in sweeps:
        for line in measure(results, lines):
            lines[key_of(line)] = line
            write_text(file, "".join(json.dumps(each) + "\n" for each in lines.values()))
    return list(lines.values())


def command(argv: list[str]) -> None:
    """Measures what is missing, and writes the tables."""
    parser = argparse.ArgumentParser(prog="python analysis/power.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    folders = "folders of runs, for instance one for each length of training; default runs"
    source.add_argument(
        "--runs", nargs="+", type=Path, default=[Path("runs")], metavar="FOLDER", help=folders
    )
    source.add_argument(
        "--records", type=Path, metavar="FILE", help="data/power_PROFILE.jsonl: measures nothing"
    )
    add("--axis", help="only this axis, for instance injection_level")
    add("--profile", default="digits", help="only this profile; default digits")
    add_out(parser)
    args = parser.parse_args(argv)
    cells = read(args.records) if args.records else measured(args)
    text = report(cells)
    path = args.out / f"power_{args.profile}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(text)


if __name__ == "__main__":
    sys.exit(run(command))
