"""What each arm changes on each rung of the ladder: a data set with a model of one size.

The effects are those of the sweeps' own tables. `ladder.py` draws and writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from common import logger

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.model.cost import IMAGES, num_parameters, training_flops
from mirai_bench.results.configs import foresight_of
from mirai_bench.results.cost import with_one_off
from mirai_bench.results.frame import RECONSTRUCTIONS, Results
from mirai_bench.results.looks import decide
from mirai_bench.results.notes import MISSING
from mirai_bench.results.paper import read_paper
from mirai_bench.results.stats import CONFIDENCE, Estimate, t_interval
from mirai_bench.results.table import build_table

log = logger(__name__)

# The arms that are followed from rung to rung, by what they are. Sweeps name them differently.
_OTHER_IMAGE: dict[str, Any] = {"level": "internal", "source": "shuffled"}
_CODES: dict[str, Any] = {"level": "internal", "source": "encoder", "k": 1}
_PRETRAINED = _CODES | {"encoder": {"name": "dinov2_b"}}
ARMS: dict[str, dict[str, Any]] = {
    "multi-token prediction, raster": {"level": "output", "layout": "raster_1d", "k": 3, "weight": 1.0},
    "multi-token prediction, grid": {"level": "output", "layout": "grid_2d", "k": 3, "weight": 1.0},
    "Mirai-E, raster": {"level": "internal", "layout": "raster_1d", "k": 3, "warmup": 0.05},
    "Mirai-E": {"level": "internal", "layout": "grid_2d", "k": 3, "warmup": 0.05},
    "Mirai-E, nine cells": {"level": "internal", "layout": "grid_2d", "k": 9, "warmup": 0.05},
    "Mirai-E, no future": {"level": "internal", "k": 1, "warmup": 0.05},
    "Mirai-E, wrong image": _OTHER_IMAGE | {"shuffled_of": "ema", "k": 3, "warmup": 0.05},
    "Mirai-I, trained on the codes": _CODES,
    "Mirai-I on codes, wrong image": _CODES | _OTHER_IMAGE,
    "Mirai-I, pretrained encoder": _PRETRAINED,
    "Mirai-I pretrained, wrong image": _PRETRAINED | _OTHER_IMAGE,
}
DATA_SETS = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "imagenet": "ImageNet"}
PAPER = "ImageNet (paper)"
PAPERS_AXES = ("injection_level", "foresight_source")  # these have all arms above that the paper has
SINGLE = "single run"
METRICS = ("images", "reconstructions")  # that the Fréchet distance is measured to


@dataclass(frozen=True)
class Point:
    """The effect of an arm on one rung."""

    arm: str
    """A key of ARMS."""
    sweeps: tuple[str, ...]
    """What the sweeps call it: `axis/arm`, of all sweeps that have these runs."""
    data: str
    profile: str
    parameters: int
    flops: float | None
    """Training FLOPs of a run of this arm, the cost of its teacher included, if they are known."""
    epochs: float
    metric: str
    change: Estimate
    """The difference of the logarithms to the baseline."""
    confidence: float
    """Of the interval of `change`."""
    verdict: str
    fingerprints: frozenset[str]
    """Those of the runs."""

    @property
    def rung(self) -> tuple[str, int]:
        """Returns what the points of one rung share."""
        return self.data, self.parameters


# ---- the points


def identity(foresight: ForesightConfig) -> str:
    """Returns what makes two arms the same at any scale, as text.

    It is everything that can change a number, but for the width of the projectors, which follows that
    of the model. Of an encoder only the kind and the context count.
    """
    fields = foresight.relevant()
    if "projector" in fields:
        fields["projector"].pop("hidden", None)
    if "encoder" in fields:
        encoder = foresight.encoder
        kind = "untrained" if encoder.weights == "random" else "pretrained"
        kind = encoder.name if encoder.name == "masked_tokens" else kind
        fields["encoder"] = {"kind": kind, "context": fields["encoder"]["context"]}
    return json.dumps(fields, sort_keys=True)


NAMES = {identity(ForesightConfig.model_validate(fields)): name for name, fields in ARMS.items()}


def points_of(results: Results, metric: str) -> list[Point]:
    """Returns the points of a sweep. `metric` is an entry of METRICS."""
    # 1. What the table of the sweep says, at its last evaluation.
    name = results.primary
    if metric == "reconstructions" and name + RECONSTRUCTIONS in results.metrics:
        name += RECONSTRUCTIONS
    table = build_table(results, metric=name)
    changes = {row.arm: (row.differences.get(name), row.verdict or MISSING) for row in table.rows}
    levels = _confidences(results, name)
    # 2. The runs. The size is the baseline's: foresight heads are left in the training.
    step = results.last_step
    last = [record for record in results.records if record["step"] == step]
    sizes = [record["run"]["parameters"] for record in last if record["arm"] == results.baseline]
    costs = with_one_off(results)
    # 3. The points of the arms that are followed.
    found = []
    for arm, (change, verdict) in changes.items():
        if change is None:
            continue
        runs = [record["run"] for record in last if record["arm"] == arm]
        config = runs[0]["config"]
        known_as = NAMES.get(identity(foresight_of(runs[0])))
        if known_as is None:
            log.info(
                f"{results.axis}/{arm} ({results.profile}) is left out: ARMS in rungs.py has no such arm"
            )
            continue
        flops = t_interval(costs.by_seed(arm, step, "train_flops").values())
        point = Point(
            arm=known_as,
            sweeps=(f"{results.axis}/{arm}",),
            data=_data_set(config["data"]),
            profile=results.profile,
            parameters=sizes[0],
            flops=flops.mean if flops else None,
            epochs=last[0]["epoch"],
            metric=name,
            change=change,
            confidence=levels.get(arm, CONFIDENCE),
            verdict=verdict,
            fingerprints=frozenset(each["fingerprint"] for each in runs),
        )
        found.append(point)
    return found


def _confidences(results: Results, metric: str) -> dict[str, float]:
    """Returns the confidence of the intervals of the arms that a look has judged."""
    decisions = decide(results, results.last_step, metric) if metric == results.primary else None
    if decisions is None:
        return {}
    return {arm: 1 - decisions.level(arm) for arm, verdict in decisions.verdicts.items() if verdict.look}


def _data_set(data: dict[str, Any]) -> str:
    name = data["name"] if data["dataset"] == "folder" else data["dataset"]
    return DATA_SETS.get(name, name)


def papers_points() -> list[Point]:
    """Returns the points of the paper, from its FID at the last epoch that an arm and its baseline have."""
    found = []
    for size in ("B", "L", "XL"):
        for axis in PAPERS_AXES:
            curves: dict[str, dict[int, float]] = {}  # FID by epoch
            for row in read_paper(axis, size):
                if row["metric"] == "FID":
                    curves.setdefault(row["arm"], {})[int(row["epochs"])] = float(row["value"])
            baseline = curves.pop("baseline")
            found += [_papers_point(size, axis, arm, curve, baseline) for arm, curve in curves.items()]
    return found


def _papers_point(
    size: str, axis: str, arm: str, curve: dict[int, float], baseline: dict[int, float]
) -> Point:
    # The sweep file under the paper's profile says what the arm is, and what it costs.
    profile = f"imagenet256_{size.lower()}"
    (cell,) = load_sweep(SWEEPS / f"{axis}.yaml", profile=profile, seeds=[0], only=[arm]).cells
    config = cell.config
    epochs = max(curve.keys() & baseline.keys())
    steps = epochs * (IMAGES[config.data.name] // config.train.batch_size)
    return Point(
        arm=NAMES[identity(config.foresight)],
        sweeps=(f"{axis}/{arm}",),
        data=PAPER,
        profile=f"LlamaGen-{size}",
        parameters=num_parameters(config)[0],
        flops=training_flops(config, steps, steps),
        epochs=epochs,
        metric="FID",
        change=Estimate(1, math.log(curve[epochs] / baseline[epochs]), math.nan),
        confidence=math.nan,
        verdict=SINGLE,
        fingerprints=frozenset([cell.fingerprint]),
    )


def joined(points: Iterable[Point]) -> list[Point]:
    """Returns the points in the order of ARMS and of size.

    Of two points that share runs the one of more seeds stays, with the names of both.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: -point.change.n):
        twin = next((other for other in kept if other.fingerprints & point.fingerprints), None)
        if twin is None:
            kept.append(point)
        else:
            kept[kept.index(twin)] = replace(twin, sweeps=twin.sweeps + point.sweeps)
    arms = list(ARMS)
    return sorted(kept, key=lambda point: (arms.index(point.arm), point.parameters, point.sweeps))


def by_arm(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Returns the points of each arm that is on two rungs or more."""
    arms: dict[str, list[Point]] = {}
    for point in points:
        arms.setdefault(point.arm, []).append(point)
    return {arm: own for arm, own in arms.items() if len({point.rung for point in own}) > 1}


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
