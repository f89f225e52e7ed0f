"""The noise panel of a profile: `python -m mirai_bench.sweep noise PROFILE`.

Its trainings are cells like those of a sweep: what is trained is not trained again. Then the final
weights of each are evaluated with several sampling seeds. What came out is one file of records, and
the tables that are made of it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mirai_bench.config.load import build_run, merge, parse_sets, read_profile
from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Cell, Sweep
from mirai_bench.results.noise import (
    NAMES,
    SOURCES,
    TOGETHER,
    growth_of,
    noise_floor,
    spread_of,
)
from mirai_bench.sweep.driver import Options, run_sweep
from mirai_bench.sweep.plan import Plan, folder_of, with_absolute_paths
from mirai_bench.utils.cli import progress
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_text
from mirai_bench.utils.text_table import markdown_table

log = logging.getLogger(__name__)

AXIS = "noise"
UNKNOWN = "—"
# Numbers of seeds for which the floor is shown.
FLOORS = (3, 6, 12, 24)
# Trainings of a source from which on its share of the variance is shown. The ratio of two variances of three
# trainings each is anything between 1/39 and 39 (in 95 % of cases), even if there is no difference.
ENOUGH_FOR_SHARES = 5
MOST = 1_000  # trainings of a source, and evaluations of a training


@dataclass(frozen=True)
class Panel:
    """What a panel consists of."""

    profile: str
    trainings: int
    """Number of trainings of each source."""
    samplings: int
    """Number of evaluations of each training."""
    first_seed: int
    """Seed of the first training. Sources that are not varied keep it."""
    settings: tuple[str, ...] = ()
    """`--set` options of every training."""

    def __post_init__(self) -> None:
        """Raises UserError if it would take years: a slip of the finger fills the memory with configs."""
        for name in ("trainings", "samplings"):
            number = getattr(self, name)
            if number > MOST:
                raise UserError(f"--{name} is {number}: write {MOST:,} or fewer")

    @cached_property
    def members(self) -> list[tuple[str, int, RunConfig]]:
        """(source, number, config) of each training. Number 0 is the same for all sources."""
        base = read_profile(self.profile)
        overrides = parse_sets(self.settings)
        found = []
        for source in (TOGETHER, *SOURCES):
            for number in range(self.trainings):
                seed = self.first_seed + number
                fields: dict[str, Any] = {"seed": seed}
                if source != TOGETHER:
                    fields = {"seed": self.first_seed, "seeds": {source: seed}}
                config = build_run(merge(base, fields), self.profile, overrides)
                found.append((source, number, with_absolute_paths(config)))
        return found

    def plan(self) -> Plan:
        """Returns the trainings as the cells of a sweep, each once."""
        cells: dict[str, Cell] = {}
        for source, _, config in self.members:
            cell = Cell(source, config)
            cells.setdefault(cell.fingerprint, cell)
        question = "How much does a metric vary between trainings, and what does that come from?"
        return Plan(Sweep(AXIS, question, TOGETHER, tuple(cells.values())))


# ---- what is measured


def run_panel(panel: Panel, options: Options, out: Path) -> int:
    """Trains and evaluates a panel, and writes its records and its tables below `out`.

    Returns 1 if a training failed; what is there is kept, and the same command goes on.
    """
    plan = panel.plan()
    log.info(run_sweep(plan, options).line())
    failed = [cell for cell in plan.sweep.cells if not folder_of(cell).is_done]
    if failed:
        log.info(f"{len(failed)} trainings failed: the same command tries them again")
        return 1
    lines = [head_of(panel), *evaluations(panel), *trajectories(panel)]
    name = Path(panel.profile).stem
    records = out / "data" / f"{AXIS}_{name}.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    write_text(records, "".join(json.dumps(line) + "\n" for line in lines))
    text = report(lines)
    write_text(out / f"{AXIS}_{name}.md", text)
    print(text, end="")
    return 0


def head_of(panel: Panel) -> dict[str, Any]:
    """Returns the first line of the records: what all of them have in common."""
    source, _, config = panel.members[0]
    folder = folder_of(Cell(source, config))
    last = list(folder.journal.lines("evaluation"))[-1]
    names = ("profile", "config", "protocol", "protocol_digest", "extractor", "reference")
    made_by = ("device", "precision", "compiled", "versions", "git")
    return {"kind": "panel"} | {name: last[name] for name in (*names, *made_by)}


def evaluations(panel: Panel) -> list[dict[str, Any]]:
    """Returns the evaluations of the final weights of every training, one per sampling seed."""
    # Imported here, so that a dry run needs no torch.
    from mirai_bench.evaluate.evaluation import Evaluator
    from mirai_bench.sample.sampler import load_for_sampling
    from mirai_bench.utils.device import resolve_device

    members = panel.members
    device = resolve_device(members[0][2].machine.device)
    evaluator = Evaluator(members[0][2], device)
    measured: dict[str, list[dict[str, float]]] = {}  # by fingerprint
    for _, _, config in progress(members, "evaluating", len(members), "trainings"):
        fingerprint = config.fingerprint()
        if fingerprint in measured:
            continue
        folder = folder_of(Cell(TOGETHER, config))
        loaded = load_for_sampling(folder, config.evaluation.protocol.weights, device)
        measured[fingerprint] = []
        for sampling in range(panel.samplings):
            found = evaluator.evaluate_model(loaded.model, sampling_seed=panel.first_seed + sampling)
            assert found is not None, "there is one rank"
            measured[fingerprint].append(found.metrics)
    lines = []
    for source, number, config in members:
        fingerprint = config.fingerprint()
        for sampling, metrics in enumerate(measured[fingerprint]):
            who = {"kind": "evaluation", "source": source, "training": number, "sampling": sampling}
            lines.append(who | {"fingerprint": fingerprint, "metrics": metrics})
    return lines


def trajectories(panel: Panel) -> list[dict[str, Any]]:
    """Returns the evaluations along each training with all sources varied together."""
    lines = []
    for source, number, config in panel.members:
        if source != TOGETHER:
            continue
        for line in folder_of(Cell(source, config)).journal.lines("evaluation"):
            who = {"kind": "trajectory", "training": number, "epoch": line["epoch"]}
            lines.append(who | {"metrics": line["metrics"]})
    return lines


# ---- what is reported


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Returns the tables of a panel's records, in Markdown."""
    head = lines[0]
    records = [line for line in lines if line["kind"] == "evaluation"]
    along = [line for line in lines if line["kind"] == "trajectory"]
    metrics = list(records[0]["metrics"])
    # 1. Each metric with all sources together: how much, and what n seeds can show.
    rows = []
    for metric in metrics:
        spread = spread_of(records, TOGETHER, metric)
        exponent = growth_of(along, metric)
        floors = [f"{noise_floor(spread.single, n):.2g}" for n in FLOORS]
        deviations = [f"{value:.2g}" for value in (spread.between, spread.within, spread.single)]
        shown = UNKNOWN if exponent is None else f"{exponent:.2f}"
        rows.append([metric, f"{spread.mean:.4g}", *deviations, f"{spread.cov:.1%}", shown, *floors])
    header = ["metric", "mean", "s between", "s within", "s", "CoV", "s ~ mean^b"]
    first = markdown_table([*header, *(f"floor, n = {n}" for n in FLOORS)], rows)
    # 2. Each source alone, between trainings.
    spread = spread_of(records, TOGETHER, metrics[0])
    second = by_source(records, metrics, spread.trainings)
    protocol = head["protocol"]
    return (
        f"# Noise of {head['profile']}\n\n"
        f"{spread.trainings} trainings of the baseline for each source of randomness, with "
        f"{spread.samplings} evaluations of the final weights each ({protocol['num_samples']:,} samples, "
        f"protocol {protocol['name']}), on {head['device']} in {head['precision']}.\n\n"
        f"{first}\n"
        "s between: standard deviation between trainings, without that of the evaluation. s within: "
        "between evaluations of one training with other sampling seeds. s: of one evaluation of any "
        "training, and CoV: its share of the mean. s ~ mean^b: how s grows with the mean over the "
        "evaluations along the trainings; near 1 the noise is multiplicative, and the logarithm is the "
        "scale to compare on. Floor: the difference of two means of n trainings that noise alone "
        "exceeds in 5 % of cases, 1.96 · √2 · s / √n; arms that are paired by seed can do better.\n\n"
        "## Where it comes from\n\n"
        f"{second}"
    )


def by_source(records: Sequence[dict[str, Any]], metrics: Sequence[str], trainings: int) -> str:
    """Returns a table of how much trainings differ with each source alone, and its note.

    With enough trainings it is a share of the variance of all sources together, else the standard deviation.
    """
    in_shares = trainings >= ENOUGH_FOR_SHARES
    sources = SOURCES if in_shares else (TOGETHER, *SOURCES)
    rows = []
    for metric in metrics:
        found = [between_of(records, source, metric) for source in sources]
        if in_shares:
            whole = between_of(records, TOGETHER, metric)
            found = [(value / whole) ** 2 if whole else math.nan for value in found]
        form = ".0%" if in_shares else ".2g"
        rows.append([metric, *(UNKNOWN if math.isnan(value) else format(value, form) for value in found)])
    table = markdown_table(["metric", *(NAMES[source] for source in sources)], rows)
    if in_shares:
        note = (
            "Variance between trainings with only this source varied, as a share of that with all of them "
            f"varied. The shares need not add up to 100 %: each is an estimate from {trainings} trainings, "
            "and sources act on each other."
        )
    else:
        note = (
            "Standard deviation between trainings with only this source varied, without that of the "
            "evaluation; 0 if that of the evaluation explains all of it. These are estimates from "
            f"{trainings} trainings each: they show the size of the noise, and not which source causes "
            "more of it."
        )
    return f"{table}\n{note}\n"


def between_of(records: Sequence[dict[str, Any]], source: str, metric: str) -> float:
    """Returns the standard deviation between trainings of a source. It is NaN if the panel lacks it."""
    if not any(record["source"] == source for record in records):
        return math.nan
    return spread_of(records, source, metric).between
