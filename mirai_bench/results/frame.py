"""Records back: from MLflow, from run folders, or from frozen files, as one frame with a row for each evaluation. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mirai_bench.utils.errors import UserError, unknown

# Better is … By the name's beginning: `FD-digits` is an FD, `FID∞` an FID.
LOWER = ("FID", "sFID", "FD-", "KID", "heldout_ntp")


HIGHER = ("IS", "precision", "recall", "density", "coverage", "class_accuracy")


def lower_is_better(metric: str) -> bool:
    if not metric.startswith(LOWER + HIGHER):
        raise unknown("metric (whether more or less of it is better is not declared)", metric, LOWER + HIGHER)
    return metric.startswith(LOWER)


def primary_metric(metrics: Sequence[str]) -> str:
    """The Fréchet distance that the records carry: FID if it is there, else FD-…"""
    for prefix in ("FID", "FD-"):
        for metric in metrics:
            if metric.startswith(prefix):
                return metric
    raise UserError(
        f"these records have no Fréchet distance: choose one of {', '.join(metrics) or 'no metrics at all'} with --metric"
    )


def file_stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", name).lstrip(".") or "_"


@dataclass
class Results:
    """One sweep with one profile: its plan, and the evaluations of its cells so far."""

    axis: str
    profile: str
    question: str
    baseline: str
    arms: list[str]
    """in the order of the sweep file"""
    cells: list[dict[str, Any]]
    """{arm, seed, fingerprint, status: done | failed | running | pending}"""
    records: list[dict[str, Any]] = field(repr=False, default_factory=list)
    """MEASURED fields, arm, seed, and `run`: the PROVENANCE fields, one object for all evaluations of a run that share them"""
    sources: dict[str, Path | str] = field(repr=False, default_factory=dict)
    """fingerprint → folder of the run (or of its artifacts) on this machine, or its MLflow run id"""

    @property
    def name(self) -> str:
        """Stem of this sweep's report files: the axis, and the profile unless it is the embedded one. Never a path."""
        return file_stem(self.axis if self.profile == "digits" else f"{self.axis}_{self.profile}")

    @cached_property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for record in self.records for name in record["metrics"]))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row an evaluation: axis, profile, arm, seed, step, epoch, cost so far, where it comes from, one column a metric."""
        plain = ("step", "epoch", "train_flops", "train_seconds", "sample_seconds", "evaluate_seconds")
        same = ("fingerprint", "protocol_digest", "device", "parameters")
        rows = [
            {"axis": self.axis, "profile": self.profile, "arm": record["arm"], "seed": record["seed"]}
            | {key: record[key] for key in plain}
            | {key: record["run"][key] for key in same}
            | {"git_commit": record["run"]["git"]["commit"], "git_dirty": record["run"]["git"]["dirty"]}
            | {"autocast": record["run"]["precision"]}  # `precision` is a metric
            | record["metrics"]
            for record in self.records
        ]
        labels = ("axis", "profile", "arm", "seed", *plain, *same, "git_commit", "git_dirty", "autocast")
        return pd.DataFrame(rows, columns=[*labels, *self.metrics])

    def seeds(self, arm: str) -> list[int]:
        return [cell["seed"] for cell in self.cells if cell["arm"] == arm]


def refuse_mixed_protocols(results: Results) -> None:
    """Raises UserError, naming the first field that differs and both values, where two records were not measured alike."""

    def flat(run: dict[str, Any]) -> dict[str, Any]:
        parts = {"protocol": {key: value for key, value in run["protocol"].items() if key != "name"}}
        parts |= {key: run[key] for key in ("extractor", "reference")}
        return {f"{part}.{key}": value for part, fields in parts.items() for key, value in fields.items()}

    first: dict[str, Any] | None = None
    for record in {id(record["run"]): record for record in results.records}.values():
        mine = flat(record["run"])
        if first is None:
            first, where = mine, record
        for key in [*first, *mine]:
            if first.get(key) != mine.get(key):
                raise UserError(
                    f"{results.axis}: records of two protocols cannot stand in one table: {key} is {first.get(key)!r} for {_of(where)} "
                    f"and {mine.get(key)!r} for {_of(record)}. Evaluate them alike, or choose one with --protocol DIGEST "
                    f"({where['run']['protocol_digest']} or {record['run']['protocol_digest']})"
                )


def _of(record: dict[str, Any]) -> str:
    return f"{record['arm']}, seed {record['seed']}, epoch {record['epoch']:g}"


def with_protocol(results: Results, digest: str) -> Results:
    """Only the evaluations under the protocol of this digest or name."""
    kept = [
        r for r in results.records if digest in (r["run"]["protocol_digest"], r["run"]["protocol"]["name"])
    ]
    if not kept:
        known = {r["run"]["protocol_digest"]: r["run"]["protocol"]["name"] for r in results.records}
        raise unknown("protocol", digest, [*known, *dict.fromkeys(known.values())])
    return replace(results, records=kept)
