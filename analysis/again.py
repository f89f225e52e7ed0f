"""What scripts share that evaluate the final weights of finished runs again, under a varied protocol.

What is measured is one line per cell of a file, which grows: a cell that has a line is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import MAIN_JOB, add_out

from mirai_bench.config.load import build_run, load_run, merge
from mirai_bench.config.run_config import RunConfig
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.model.transformer import ARModel
from mirai_bench.results.frame import Results, file_stem
from mirai_bench.results.reading import read_journals
from mirai_bench.sample.sampler import load_for_sampling
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.device import resolve_device
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.files import write_text

Line = dict[str, Any]
Key = tuple[str, str, str]
Measure = Callable[[Results, dict[Key, Line]], Iterator[Line]]
"""Yields the lines of a sweep, given those that are known."""

OTHER = 10_000  # is added to the sampling seed for other random numbers
NAMED = ("axis", "profile", "baseline", "arm", "seed", "fingerprint", "metric")  # fields of every line
PROFILE = "digits"  # the one that is measured by default


# ---- a run that is evaluated again


class Measured(NamedTuple):
    """What an evaluation measured, and what it took."""

    metrics: dict[str, float]
    seconds: float
    """CPU seconds, without what was opened once."""


@dataclass
class Again:
    """Evaluates weights under varied protocols. What evaluations share is opened once."""

    evaluators: dict[str, Evaluator] = field(default_factory=dict)
    """By what was varied."""

    def __call__(self, run: FinalWeights, other: bool = False, **fields: Any) -> Measured:
        """Evaluates the run with these fields of the protocol changed, or with `other` random numbers."""
        varied = json.dumps([run.config.evaluation.protocol.digest(), fields])
        if varied not in self.evaluators:
            changed = {"evaluation": {"protocol": fields}}
            config = build_run(merge(run.config.model_dump(mode="json"), changed), "varied protocol")
            self.evaluators[varied] = Evaluator(config, run.device)
            self.evaluators[varied].open()
        seed = run.config.seed_of("sampling") + (OTHER if other else 0)
        before = time.process_time()
        found = self.evaluators[varied].evaluate_model(run.model, sampling_seed=seed)
        assert found is not None, "there is one rank"
        return Measured(found.metrics, time.process_time() - before)


@dataclass(frozen=True)
class FinalWeights:
    """The weights of a finished run that its protocol names."""

    config: RunConfig
    model: ARModel
    device: torch.device

    @classmethod
    def of(cls, folder: RunFolder) -> FinalWeights:
        """Loads them. Raises UserError if the run has no checkpoint."""
        config = load_run(folder.config_file)
        # A run that was moved finds its caches beside it.
        config = config.with_machine(runs=folder.path.absolute().parent)
        device = resolve_device(config.machine.device)
        loaded = load_for_sampling(folder, config.evaluation.protocol.weights, device)
        return cls(config, loaded.model, device)


def finished(results: Results) -> list[dict[str, Any]]:
    """Returns the finished cells of a sweep that have a checkpoint."""
    done = [cell for cell in results.cells if cell["status"] == "done"]
    return [cell for cell in done if folder_of(results, cell).checkpoints.is_dir()]


def folder_of(results: Results, cell: dict[str, Any]) -> RunFolder:
    """Returns the run folder of a finished cell."""
    return RunFolder(Path(results.sources[cell["fingerprint"]]))


def last_record(results: Results, cell: dict[str, Any]) -> dict[str, Any]:
    """Returns the last evaluation of a finished cell."""
    who = (cell["arm"], cell["seed"])
    return [record for record in results.records if (record["arm"], record["seed"]) == who][-1]


def made_by(record: dict[str, Any]) -> Line:
    """Returns what a line says about how its run was evaluated."""
    return {name: record["run"][name] for name in ("device", "protocol_digest", "versions", "git")}


def named(results: Results, cell: dict[str, Any]) -> Line:
    """Returns what names the line of a cell."""
    who = {"kind": "cell", "axis": results.axis, "profile": results.profile, "baseline": results.baseline}
    own = {name: cell[name] for name in ("arm", "seed", "fingerprint")}
    return who | own | {"metric": results.primary}


# ---- the file


def key_of(line: Line) -> Key:
    """Returns what names a line: a run may be a cell of several sweeps."""
    return line["axis"], line["arm"], line["fingerprint"]


def read(path: Path, has: str) -> list[Line]:
    """Returns the lines of a file of an earlier call, which all have the field `has`.

    Raises UserError if it is no such file.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if lines and all(line["kind"] == "cell" and {has, *NAMED} <= line.keys() for line in lines):
            return lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as records of this script: {error!r}") from None
    raise UserError(f"{path} holds no records of this script")


def lines_of(args: argparse.Namespace, name: str, has: str, measure: Measure) -> list[Line]:
    """Returns the lines that the arguments ask for, all of one profile: read, or else measured."""
    return chosen(args, read(args.records, has)) if args.records else measured(args, name, has, measure)


def chosen(args: argparse.Namespace, lines: list[Line]) -> list[Line]:
    """Returns the lines of a file that are of the wanted axis and profile.

    Raises UserError if there are none, or if they are of several profiles.
    """
    for name in ("axis", "profile"):
        wanted = getattr(args, name)
        known = dict.fromkeys(line[name] for line in lines)
        if wanted is not None and wanted not in known:
            raise unknown(name, wanted, known)
        lines = [line for line in lines if wanted in (None, line[name])]
    profiles = dict.fromkeys(line["profile"] for line in lines)
    if len(profiles) > 1:
        raise UserError(f"{args.records} has lines of {', '.join(profiles)}: choose one with --profile")
    return lines


def measured(args: argparse.Namespace, name: str, has: str, measure: Measure) -> list[Line]:
    """Returns the lines of all finished cells in folders of runs, and writes them to their file.

    The file is written anew with each line.
    """
    profile = args.profile or PROFILE
    every = [results for runs in args.runs for results in read_journals(runs)]
    every = [results for results in every if finished(results)]
    sweeps = [each for each in every if args.axis in (None, each.axis) and each.profile == profile]
    if not sweeps:
        folders = ", ".join(map(str, args.runs))
        asked = f"--profile {profile}" + (" (the default)" if args.profile is None else "")
        asked += f" and --axis {args.axis}" if args.axis else ""
        there = ", ".join(dict.fromkeys(f"{each.axis} ({each.profile})" for each in every))
        advice = f"there are runs of {there}" if there else f"run a sweep first: {MAIN_JOB}"
        raise UserError(f"{folders}: no finished run of {asked} that has weights; {advice}")
    file = args.out / "data" / file_stem(f"{name}_{profile}.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = {key_of(line): line for line in (read(file, has) if file.is_file() else [])}
    for results in sweeps:
        for line in measure(results, dict(lines)):
            lines[key_of(line)] = line
            write_text(file, "".join(json.dumps(each) + "\n" for each in lines.values()))
    return list(lines.values())


def add_sources(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the options that say what is evaluated again, and where to write."""
    source = parser.add_mutually_exclusive_group()
    folders = "folders of runs, for instance one for each length of training; default runs"
    source.add_argument(
        "--runs", nargs="+", type=Path, default=[Path("runs")], metavar="FOLDER", help=folders
    )
    source.add_argument(
        "--records", type=Path, metavar="FILE", help=f"data/{name}_PROFILE.jsonl: measures nothing"
    )
    parser.add_argument("--axis", help="only this axis, for instance injection_level")
    parser.add_argument("--profile", help=f"only this profile; default {PROFILE}, of records theirs")
    add_out(parser)


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
