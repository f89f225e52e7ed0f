"""The evaluations of one sweep, as records and as one frame with a row per evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirai_bench.tracking.records import COSTS
from mirai_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

# Beginnings of the names of metrics of which less, or more, is better.
_PLANTED_LOWER = ("heldout_excess", "decisive_nats", "nats_")  # of planted data sets
LOWER = ("FID", "sFID", "FD-", "KID", "MIND", "copies", "heldout_ntp", "heldout_bits", *_PLANTED_LOWER)
_PLANTED = ("rule", "decisive_accuracy", "solved", "accuracy_")
HIGHER = ("IS", "precision", "recall", "density", "coverage", "class_accuracy", *_PLANTED)
DISTANCES = ("FID", "sFID", "FD-")
# Metrics that are computed from no features of samples.
_OF_LOSS = ("heldout_ntp", "heldout_bits", *_PLANTED_LOWER, *_PLANTED)
# The held-out loss of an image in bits, which is derived from `heldout_ntp` and never recorded.
BITS = "heldout_bits"
# Shares of something, from 0 to 1. Density may exceed 1.
_SHARES = ("precision", "recall", "coverage", "copies", "class_accuracy", *_PLANTED)
# End of the name of a Fréchet distance to what the tokenizer makes of the reference.
RECONSTRUCTIONS = "-reconstructions"
# Parts of a record that decide what its numbers mean. Records that differ in them are never mixed.
MEASURED_WITH = ("protocol", "extractor", "reference")
# Columns of the frame: fields of a record, and fields of its run.
OWN_COLUMNS = ("step", "epoch", *COSTS)
RUN_COLUMNS = ("fingerprint", "protocol_digest", "device", "parameters")


@dataclass
class Results:
    """One sweep with one profile: its plan, and the evaluations of its cells so far."""

    axis: str
    profile: str
    question: str
    baseline: str
    arms: list[str]
    """Names of the arms in the order of the sweep file."""
    cells: list[dict[str, Any]]
    """For each cell {arm, seed, fingerprint, status: done | failed | running | pending}."""
    records: list[dict[str, Any]] = field(repr=False, default_factory=list)
    """For each evaluation the fields MEASURED of tracking/records.py, arm, seed, and `run`: the \
fields PROVENANCE. `run` is one object for all evaluations of a run that share it."""
    registered: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What decides (`Sweep.registered`): `first`, before the first run, and `now`. Empty in older \
records."""
    settings: list[str] = field(default_factory=list)
    """The `--set` options by which its runs differ from those of the sweep file."""
    sources: dict[str, Path | str] = field(repr=False, default_factory=dict)
    """For each fingerprint the local folder of the run or its artifacts, or its MLflow run id."""

    @property
    def name(self) -> str:
        """Returns the stem of this sweep's report files, which is never a path.

        It is the axis, followed by the profile unless that is the embedded one.
        """
        return file_stem(self.axis if self.profile == "digits" else f"{self.axis}_{self.profile}")

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all metrics that a table shows, in the order in which they first appear."""
        names = list(dict.fromkeys(name for record in self.records for name in record["metrics"]))
        # Nats per token are of one kind only where all images have as many tokens.
        sizes = {tokens_of(record["run"]) for record in self.records if value_of(record, BITS) is not None}
        return [*names, BITS] if len(sizes) > 1 else names

    @cached_property
    def choices(self) -> list[str]:
        """The names of all metrics that can be asked for."""
        names = self.metrics
        is_derived = BITS not in names and any(value_of(record, BITS) is not None for record in self.records)
        return [*names, BITS] if is_derived else names

    @property
    def last_step(self) -> int:
        """The last step at which any cell was evaluated. Raises ValueError without records."""
        return max(record["step"] for record in self.records)

    @cached_property
    def primary(self) -> str:
        """The metric that decides: the one that the sweep or its profile names, or the one by default.

        Raises UserError if the records do not have it.
        """
        if "now" in self.registered:
            named = self.registered["now"]["primary"]
        else:
            # Older records say it with each run. A run may have been trained for another sweep.
            of_runs = (record["run"]["config"].get("evaluation", {}) for record in self.records)
            named = next((each["primary"] for each in of_runs if each.get("primary")), None)
        if named is None:
            return primary_metric(self.metrics)
        if named not in self.choices:
            known = ", ".join(self.choices)
            raise UserError(
                f"evaluation.primary is {named}, which {self.axis} has no values of: choose one of "
                f"{known} with --metric, or change it in the sweep file and run the sweep again"
            )
        return named

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per evaluation: its cell, its costs so far, its provenance and its metrics."""
        import pandas as pd

        rows = []
        for record in self.records:
            run = record["run"]
            row = {"axis": self.axis, "profile": self.profile, "arm": record["arm"], "seed": record["seed"]}
            row |= {key: record[key] for key in OWN_COLUMNS}
            row |= {key: run[key] for key in RUN_COLUMNS}
            row |= {"git_commit": run["git"]["commit"], "git_dirty": run["git"]["dirty"]}
            row["autocast"] = run["precision"]  # `precision` is a metric
            plugins = run["config"].get("plugins", {})
            row["plugins"] = ", ".join(f"{module} {sha256}" for module, sha256 in plugins.items())
            rows.append(row | record["metrics"] | bits_per_image(record["metrics"], run))
        return pd.DataFrame(rows)

    def seeds(self, arm: str) -> list[int]:
        """Returns the seeds of an arm."""
        return [cell["seed"] for cell in self.cells if cell["arm"] == arm]

    def by_seed(self, arm: str, step: int, name: str) -> dict[int, float]:
        """Returns a metric or a cost of an arm at an evaluation, by seed, where it is known."""
        found = {}
        for record in self.records:
            value = value_of(record, name)
            if record["arm"] == arm and record["step"] == step and value is not None:
                found[record["seed"]] = value
        return dict(sorted(found.items()))


def value_of(record: dict[str, Any], name: str) -> float | None:
    """Returns a metric or a cost of a record, or a number of its run, if it is known and finite."""
    metrics = record["metrics"]
    if name == BITS:
        metrics = bits_per_image(metrics, record["run"])
    # Metrics first: `precision` is also the name of the run's arithmetic.
    for fields in (metrics, record, record["run"]):
        value = fields.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            return value
    return None


def tokens_of(run: dict[str, Any]) -> int | None:
    """Returns the number of tokens of an image of this run, if its configuration says it."""
    config = run.get("config", {})
    try:
        return (config["data"]["image_size"] // config["tokenizer"]["downsample"]) ** 2
    except (KeyError, TypeError):  # records of other code may lack a part, or hold None there
        return None


def bits_per_image(metrics: dict[str, float], run: dict[str, Any]) -> dict[str, float]:
    """Returns the held-out loss of an image in bits, under its name, if it can be derived.

    It is -log₂ p(image) = T · nats per token / ln 2, by the chain rule over the T tokens: the length
    of an ideal code of the image's tokens, which compares tokenizers of unlike T.
    """
    tokens = tokens_of(run)
    nats = metrics.get("heldout_ntp")
    return {} if tokens is None or nats is None else {BITS: tokens * nats / math.log(2)}


def file_stem(name: str) -> str:
    """Returns the name without the characters that a file name should not have."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", name).lstrip(".") or "_"


# ---- metrics


def lower_is_better(metric: str) -> bool:
    """Tells whether less of a metric is better. Raises UserError for a metric that is not known."""
    if not metric.startswith(LOWER + HIGHER):
        raise unknown("metric (whether more or less of it is better is not declared)", metric, LOWER + HIGHER)
    return metric.startswith(LOWER)


def is_distance(metric: str) -> bool:
    """Tells whether a metric is a Fréchet distance, which is compared by its ratio.

    Its noise grows with its value, if less than in proportion (s ~ mean^0.4 along the trainings of
    reports/noise_digits.md), and a ratio means the same at every value.
    """
    return metric.startswith(DISTANCES)


def is_share(metric: str) -> bool:
    """Tells whether a metric lies between 0 and 1."""
    return metric.startswith(_SHARES)


def is_of_features(metric: str) -> bool:
    """Tells whether a metric is computed from the extractor's features of samples."""
    return metric.startswith(LOWER + HIGHER) and not metric.startswith(_OF_LOSS)


def primary_metric(metrics: Sequence[str]) -> str:
    """Returns the metric that decides by default.

    It is the Fréchet distance to real images: FID, or else FD-digits and the like. Without one it
    is the held-out loss.
    """
    for prefix in ("FID", "FD-", "heldout_ntp"):
        for metric in metrics:
            if metric.startswith(prefix) and not metric.endswith(RECONSTRUCTIONS):
                return metric
    known = ", ".join(metrics) or "no metrics at all"
    raise UserError(
        f"these records have no Fréchet distance and no held-out loss: choose one of {known} with --metric"
    )


# ---- protocols


def measured_with(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what a record was measured with, as flat fields such as `protocol.cfg_scale`.

    The name of the protocol is left out, because it changes nothing.
    """
    fields = {}
    for part in MEASURED_WITH:
        for key, value in record[part].items():
            fields[f"{part}.{key}"] = value
    del fields["protocol.name"]
    return fields


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the first field in which two records were not measured alike, and both values.

    Returns None if they were measured alike.
    """
    ours = measured_with(one)
    theirs = measured_with(other)
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            return key, ours.get(key), theirs.get(key)
    return None


def refuse_mixed_protocols(results: Results) -> None:
    """Raises UserError if two records were not measured alike.

    It names the first field that differs.
    """
    # Records of one run were measured alike if they share its object, so that one of each is enough.
    one_per_run = list({id(record["run"]): record for record in results.records}.values())
    for record in one_per_run[1:]:
        first = one_per_run[0]
        found = first_difference(first["run"], record["run"])
        if found is not None:
            key, ours, theirs = found
            digests = f"{first['run']['protocol_digest']} or {record['run']['protocol_digest']}"
            raise UserError(
                f"{results.axis}: records of two protocols cannot stand in one table: {key} is "
                f"{ours!r} for {_place(first)} and {theirs!r} for {_place(record)}. Evaluate them "
                f"alike, or choose one with --protocol DIGEST ({digests})"
            )


def _place(record: dict[str, Any]) -> str:
    return f"{record['arm']}, seed {record['seed']}, epoch {record['epoch']:g}"


def with_protocol(results: Results, wanted: str) -> Results:
    """Returns only the evaluations under the protocol of this digest or name."""
    names = [(r["run"]["protocol_digest"], r["run"]["protocol"]["name"]) for r in results.records]
    kept = [record for record, own in zip(results.records, names, strict=True) if wanted in own]
    if not kept:
        digests, titles = (dict.fromkeys(column) for column in zip(*names, strict=True))
        raise unknown("protocol", wanted, [*digests, *titles])
    return replace(results, records=kept)
