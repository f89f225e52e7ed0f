"""Applies diagnostics to the snapshots of a run, and writes down what is missing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mirai_bench.config.load import load_run
from mirai_bench.data.codes import Codes, open_codes
from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.records import Key, measured, write
from mirai_bench.diagnose.registry import DIAGNOSTICS
from mirai_bench.diagnose.runs import baseline_of
from mirai_bench.diagnose.scope import Scope, full_scope
from mirai_bench.diagnose.snapshots import Place, places
from mirai_bench.diagnose.subject import NotMeasurable, Subject
from mirai_bench.tracking.replay import end_ended, is_usable, replay
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.cli import progress
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import locked


@dataclass
class Report:
    """What came out of a command."""

    done: int = 0
    """Number of diagnoses that were made now."""
    known: int = 0
    """Number of those that were made before."""
    left_out: dict[tuple[str, str], int] = field(default_factory=dict)
    """How often a diagnostic did not apply, by its name and the reason."""

    def lines(self) -> list[str]:
        """Returns the report in words."""
        first = f"{self.done} diagnoses made, {self.known} were there already"
        reasons = [f"{name} left out {n} times: {why}" for (name, why), n in sorted(self.left_out.items())]
        return [first, *reasons]


@dataclass(frozen=True)
class Choice:
    """What a command asks for."""

    names: Sequence[str]
    """The diagnostics, in the order of DIAGNOSTICS."""
    epochs: Sequence[float]
    """The epochs. Empty means every snapshot that there is."""
    full: bool
    device: torch.device


def diagnose_runs(folders: Sequence[RunFolder], choice: Choice) -> Report:
    """Makes what is missing of the diagnoses of runs, and sends each run to MLflow when it is done.

    If MLflow is away, a warning says so, once, and nothing else happens: the run folders have everything.
    """
    report = Report()
    sends = is_usable()
    for folder in progress(folders, "diagnosing", len(folders), "runs"):
        diagnose_run(folder, choice, report)
        sends = sends and replay(folder) > 0
    if sends:
        end_ended(folders)
    return report


def diagnose_run(folder: RunFolder, choice: Choice, report: Report) -> None:
    """Makes what is missing of the diagnoses of a run.

    Raises UserError if the run has no weights, or none of an epoch that was asked for.
    """
    folder.check()
    config = load_run(folder.config_file)
    # A run that was moved finds its caches beside it.
    config = config.with_machine(runs=folder.path.absolute().parent)
    codes = open_codes(config, "train", choice.device)
    found = places(folder, config, codes.steps_per_epoch(config.train.batch_size))
    scope = full_scope(config.grid) if choice.full else Scope()
    with locked(folder.path / "diagnosis.lock", wait=True):  # a second command makes nothing twice
        known = measured(folder)
        for place in chosen(found, choice.epochs, folder):
            keys = [Key(name, place.step, DIAGNOSTICS[name].digest(name, scope)) for name in choice.names]
            missing = [key for key in keys if key not in known]
            report.known += len(keys) - len(missing)
            if not missing:
                continue
            others = baseline_subject(folder, place.step, scope, choice.device, codes)
            subject = Subject(config, place.load(), scope, choice.device, codes, others)
            for key in missing:
                measure_one(folder, subject, key, report)


def baseline_subject(
    folder: RunFolder, step: int, scope: Scope, device: torch.device, codes: Codes
) -> Subject | None:
    """Returns the baseline of the sweep and seed of a run after the same step, if it has weights of it."""
    baseline = baseline_of(folder)
    if baseline is None:
        return None
    config = load_run(baseline.config_file).with_machine(runs=folder.path.absolute().parent)
    found = places(baseline, config, codes.steps_per_epoch(config.train.batch_size))
    loads = [place.load for place in found if place.step == step]
    return Subject(config, loads[0](), scope, device, codes) if loads else None


def chosen(found: Sequence[Place], epochs: Sequence[float], folder: RunFolder) -> list[Place]:
    """Returns the snapshots of these epochs, or all. Raises UserError if one is not there."""
    if not found:
        raise UserError(
            f"{folder} has no weights: it was taken from records, or its checkpoints were deleted. Train it "
            "again with machine.keep_at"
        )
    there = {place.epoch: place for place in found}
    for epoch in epochs:
        if epoch not in there:
            known = ", ".join(f"{place.epoch:g}" for place in found)
            raise UserError(f"--at {epoch:g}: {folder} has weights of epoch {known}: choose one of these")
    return [there[epoch] for epoch in epochs] if epochs else list(found)


def measure_one(folder: RunFolder, subject: Subject, key: Key, report: Report) -> None:
    """Makes one diagnosis and writes it down, or reports why it does not apply."""
    start = time.perf_counter()
    try:
        finding = DIAGNOSTICS[key.diagnostic].measure(subject)
    except NotMeasurable as reason:
        about = (key.diagnostic, str(reason))
        report.left_out[about] = report.left_out.get(about, 0) + 1
        return
    refuse_infinite(key.diagnostic, finding)
    write(folder, key, subject, finding, time.perf_counter() - start)
    report.done += 1


def refuse_infinite(name: str, finding: Finding) -> None:
    """Raises UserError if a value is not finite: the weights are broken, and no table must average it."""
    for key, value in finding.values.items():
        if not math.isfinite(value):
            raise UserError(f"diagnostic {name}: {key} is {value}; are the run's weights finite?")
