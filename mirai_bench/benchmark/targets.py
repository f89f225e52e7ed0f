"""The project's targets for speed, and the measurements that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # one measurement, as it stands in a JSON file

# What `benchmark targets` runs on each device, as arguments of the subcommands.
DATA = ["data", "--rounds=5"]
SAMPLE = ["sample", "--batch-sizes", "8", "--rounds=5"]
PLAN: dict[str, list[list[str]]] = {
    "cpu": [["train"], SAMPLE, DATA, ["evaluate", "--rounds=5"], ["sweep"]],
    "cuda": [["train", "--sizes", "B", "L", "XL"], ["sample"], DATA, ["evaluate"]],
}

MINUTE = (50, 70)  # seconds of a cell of "about a minute"


@dataclass(frozen=True)
class Target:
    """A target: the rows that measure it, the number in them, and its limit."""

    what: str
    wanted: str
    """The limit: ≥ or ≤, a number, and x for a ratio or % for a share."""
    fields: Row
    """Fields of the rows that measure it."""
    path: str
    """Keys that lead to the number in a row, with dots."""
    check: Callable[[Target, list[Row]], float | None]
    """Returns the number to compare with the limit, or None if it was not measured."""
    flops: float = 1.0
    """Check `over_flops`: the FLOPs of the arm's step divided by those of NTP's."""

    def value(self, rows: list[Row]) -> float | None:
        """Returns the measured number, or None if no row has it."""
        return self.check(self, [row for row in rows if row["status"] == "measured"])

    def numbers(self, rows: list[Row], **others: Any) -> list[float]:
        """Returns the numbers in rows with the target's fields, some of which `others` replace."""
        fields = self.fields | others
        found = []
        for row in rows:
            fitting = all(row.get(name) == value for name, value in fields.items())
            number: Any = row if fitting else None
            # A row without one of the keys, for instance of a step without a peer, has no number.
            for key in self.path.split("."):
                number = number.get(key) if isinstance(number, dict) else None
            if number is not None:
                found.append(number)
        return found

    @property
    def is_share(self) -> bool:
        """Tells whether the number is a share and not a ratio."""
        return self.wanted.endswith("%")

    def met(self, value: float) -> bool:
        """Tells whether the target is met."""
        limit = float(self.wanted[2:-1]) / (100 if self.is_share else 1)
        return value >= limit if self.wanted.startswith("≥") else value <= limit

    def shown(self, value: float) -> str:
        """Returns a measured number as the table shows it."""
        return f"{value:.0%}" if self.is_share else f"{value:.2f}x"


# ---- kinds of checks


def last(target: Target, rows: list[Row]) -> float | None:
    """Returns the number of the last row."""
    return next(reversed(target.numbers(rows)), None)


def best(target: Target, rows: list[Row]) -> float | None:
    """Returns the largest number."""
    return max(target.numbers(rows), default=None)


def over_flops(target: Target, rows: list[Row]) -> float | None:
    """Returns the time of an arm over that of NTP, divided by the same ratio of their FLOPs."""
    of_arm = target.numbers(rows)
    of_ntp = target.numbers(rows, arm="ntp")
    return of_arm[-1] / of_ntp[-1] / target.flops if of_arm and of_ntp else None


def of_minute_cells(target: Target, rows: list[Row]) -> float | None:
    """Returns the number of the last sweep whose cells took about a minute."""
    shortest, longest = MINUTE
    return last(target, [row for row in rows if shortest <= row.get("cell_seconds", 0) <= longest])


# ---- the targets


def cpu_step(size: str, arm: str, precision: str, wanted: str) -> Target:
    """Compares our step on a CPU with the peer's float32 step, in CPU seconds."""
    what = f"CPU step, {size}, {arm}, {precision} against fp32"
    fields = {"device": "cpu", "kind": "train", "size": size, "arm": arm, "asked_precision": precision}
    return Target(what, wanted, fields, "peer.fp32.busy.median", last)


def gpu_step(arm: str, wanted: str) -> Target:
    """Compares our step on a GPU with the peer's, both in bf16."""
    what = f"GPU step, B, batch 256, bf16, {arm}"
    return Target(what, wanted, GPU_STEP | {"arm": arm}, "peer.bf16.busy.median", last)


def gpu_cost(name: str, arm: str, flops: float) -> Target:
    """Compares what an arm's step costs over NTP's with what their FLOPs say."""
    what = f"GPU, cost of {name} over its FLOPs"
    return Target(what, "≤ 1.05x", GPU_STEP | {"arm": arm}, "step_ms.median", over_flops, flops)


def foresight_cost(name: str, device: str) -> Target:
    """Compares sampling from models that were trained with and without foresight."""
    what = f"{name}, sampling with over without foresight training"
    fields = {"device": device, "kind": "sample"}
    return Target(what, "≤ 1.05x", fields, "foresight_cost.median", last)


GPU_STEP = {"device": "cuda", "kind": "train", "size": "B", "asked_precision": "bf16"}
GPU_NTP_B = {"device": "cuda", "kind": "train", "size": "B", "arm": "ntp"}
GPU_NTP_L = GPU_NTP_B | {"size": "L"}
GPU_SAMPLING = {"device": "cuda", "kind": "sample", "size": "B", "cfg_scale": 2.0}
SWEEP = {"device": "cpu", "kind": "sweep", "at_a_time": 2}
CODES = {"device": "cpu", "kind": "data"}
TARGETS = [
    cpu_step("small", "ntp", "fp32", "≥ 2x"),
    cpu_step("small", "mirai-e-k3", "fp32", "≥ 2x"),
    cpu_step("medium", "ntp", "fp32", "≥ 2x"),
    cpu_step("medium", "mirai-e-k3", "fp32", "≥ 2x"),
    cpu_step("small", "ntp", "auto", "≥ 4x"),
    cpu_step("small", "mirai-e-k3", "auto", "≥ 4x"),
    cpu_step("medium", "ntp", "auto", "≥ 4x"),
    cpu_step("medium", "mirai-e-k3", "auto", "≥ 4x"),
    gpu_step("ntp", "≥ 1.5x"),
    gpu_step("mirai-e-k3", "≥ 2x"),
    gpu_step("mirai-i-online", "≥ 2x"),
    gpu_cost("Mirai-E K 3", "mirai-e-k3", 1.42),
    gpu_cost("Mirai-I with cached features", "mirai-i-cached", 1.10),
    Target("GPU, MFU, B", "≥ 45%", GPU_NTP_B, "mfu", last),
    Target("GPU, MFU, L", "≥ 55%", GPU_NTP_L, "mfu", last),
    Target("GPU, sampling, B, CFG 2, best batch", "≥ 3x", GPU_SAMPLING, "peer.wall.median", best),
    foresight_cost("CPU", "cpu"),
    foresight_cost("GPU", "cuda"),
    Target("GPU, peak memory, B, batch 256", "≤ 0.6x", GPU_NTP_B, "peer.bf16.memory", last),
    Target("sweep, cells of 60 s on 2 cores, overhead", "≤ 10%", SWEEP, "overhead", of_minute_cells),
    Target("codes, random access, cold Python", "≥ 20x", CODES, "files_over_shards.median", last),
]
