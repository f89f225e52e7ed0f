"""The noise of a profile: how much a metric varies between trainings, and where that comes from.

A panel is N trainings of the baseline with S evaluations each, which differ in their sampling seed.
It is trained once with all sources of randomness varied together, and once for each source alone
(initial weights, order of the data, dropout). After "The FID Lottery" (arXiv 2606.20536), which
does this for diffusion models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from mirai_bench.results.frame import file_stem, is_distance
from mirai_bench.results.stats import CONFIDENCE
from mirai_bench.utils.assets import shipped

Records = Sequence[Mapping[str, Any]]

TOGETHER = "together"
SOURCES = ("init", "order", "dropout")
NAMES = {
    TOGETHER: "all together",
    "init": "initial weights",
    "order": "order of the data",
    "dropout": "dropout and dropped labels",
}


@dataclass(frozen=True)
class Spread:
    """The noise of one metric over the trainings of one source, as standard deviations."""

    source: str
    trainings: int
    samplings: int
    mean: float
    between: float
    """Between trainings, with the noise of the evaluation taken out. 0 if it explains all of it."""
    within: float
    """Between the evaluations of one training, which differ in their sampling seed."""

    @property
    def single(self) -> float:
        """Returns the standard deviation of one evaluation of any training."""
        return math.hypot(self.between, self.within)

    @property
    def cov(self) -> float:
        """Returns the coefficient of variation of one evaluation."""
        return self.single / abs(self.mean) if self.mean else math.nan


def spread_of(records: Records, source: str, metric: str, *, in_log: bool = False) -> Spread:
    """Returns the spread of a metric, or of its logarithm, over the trainings of a source.

    A one-way analysis of variance: a training is a group of S evaluations. The mean of a group
    varies by σ_between² + σ_within² / S. All trainings are evaluated with the same sampling seeds,
    whose own effect is a part of σ_within here and cancels in differences that are paired by seed: on
    the digits 0.08 of 0.14 (FD), which changes σ_between by 0.001. Needs two trainings, each with
    the same number of evaluations, of at least two.
    """
    groups: dict[int, list[float]] = {}
    for record in records:
        if record["source"] == source:
            value = record["metrics"][metric]
            groups.setdefault(record["training"], []).append(math.log(value) if in_log else value)
    table = np.array(list(groups.values()))  # (N, S)
    trainings, samplings = table.shape
    within, of_means = variances(table)
    between = max(0.0, of_means - within / samplings)
    mean = float(table.mean())
    return Spread(source, trainings, samplings, mean, math.sqrt(between), math.sqrt(within))


def variances(table: np.ndarray) -> tuple[float, float]:
    """Returns the variance within the groups of (groups, m) values, and that of the groups' means."""
    return float(table.var(1, ddof=1).mean()), float(table.mean(1).var(ddof=1))


def noise_floor(deviation: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Returns the difference of two means of n trainings that noise alone exceeds in 5 % of cases.

    It is z · √2 · s / √n, with s of one evaluation of any training, for arms that share nothing.
    """
    return float(ndtri(0.5 + confidence / 2)) * math.sqrt(2 / n) * deviation


def growth(points: Sequence[tuple[float, float]]) -> float | None:
    """Returns the exponent b of s ~ mean^b over (mean, standard deviation) pairs, or None.

    1 is multiplicative noise, which a logarithm makes equal everywhere; 0 is additive noise. It is
    the slope of a straight line through the logarithms.
    """
    positive = [(mean, deviation) for mean, deviation in points if mean > 0 and deviation > 0]
    if len(positive) < 3:
        return None
    x, y = np.log(np.array(positive)).T
    return float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 0 else None


def growth_of(trajectories: Records, metric: str) -> float | None:
    """Returns the exponent of `growth` over the epochs of the trainings, all sources together."""
    by_epoch: dict[float, list[float]] = {}
    for record in trajectories:
        by_epoch.setdefault(record["epoch"], []).append(record["metrics"][metric])
    points = []
    for values in by_epoch.values():
        if len(values) > 1:
            points.append((float(np.mean(values)), float(np.std(values, ddof=1))))
    return growth(points)


# ---- the panel that ships with the project


def read_panel(profile: str) -> list[dict[str, Any]]:
    """Returns the records of the noise panel of a profile, or an empty list if it has none."""
    path = shipped("reports", "data", f"noise_{file_stem(profile)}.jsonl")
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _that_are_set(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a section without those of None or 0, which a record of older code may lack."""
    return {name: value for name, value in fields.items() if value not in (None, 0)}


def deviation_of(panel: Records, config: Mapping[str, Any], metric: str) -> float | None:
    """Returns the standard deviation of a metric between trainings of a baseline with this recipe.

    It is that of the logarithm for a Fréchet distance. None if the panel, as `read_panel` returns it,
    was not measured with this data, model, recipe and protocol.
    """
    if not panel or any(
        _that_are_set(panel[0]["config"][part]) != _that_are_set(config.get(part, {}))
        for part in ("data", "model")
    ):
        return None
    # What changes no number is not compared.
    theirs, ours = panel[0]["config"]["train"], dict(config["train"])
    if theirs | {"recipe": ""} != ours | {"recipe": ""}:
        return None
    if panel[0]["config"]["evaluation"]["protocol"] != config["evaluation"]["protocol"]:
        return None
    records = [line for line in panel if line["kind"] == "evaluation"]
    if any(metric not in record["metrics"] for record in records):
        return None
    return spread_of(records, TOGETHER, metric, in_log=is_distance(metric)).single
