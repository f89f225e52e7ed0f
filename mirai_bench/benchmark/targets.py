"""The project's targets for speed, and the measurements that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # one measurement, as it stands in a JSON file
Check = Callable[["Target", list[Row]], float | None]

# What `benchmark targets` runs on each device, as arguments of the subcommands.
DATA = ["data", "--rounds=5"]
SAMPLE = ["sample", "--batch-sizes", "8", "--rounds=5"]
PLAN: dict[str, list[list[str]]] = {
    "cpu": [["train"], SAMPLE, DATA, ["evaluate", "--rounds=5"], ["sweep"]],
    "cuda": [
        ["train", "--sizes", "B"],
        ["train", "--sizes", "B", "--arms", "ntp", "--micro-batches=2", "--rounds=5"],
        ["sample", "--rounds=5"],
        ["train", "--sizes", "L", "XL", "--batch-size=128", "--rounds=5"],
        DATA,
        ["evaluate"],
    ],
}

MINUTE = (50, 70)  # seconds of a cell of "about a minute"


def fits(row: Row, fields: Row) -> bool:
    """Tells whether a row has these fields."""
    return fields.items() <= row.items()


@dataclass(frozen=True)
class Target:
    """A target: the rows that measure it, the number in them, and its limit."""

    what: str
    wanted: str
    """The limit: ≥ or ≤, a number, and x for a ratio, % for a share or s for seconds."""
    fields: Row
    """Fields of the rows that measure it."""
    path: str
    """Keys that lead to the number in a row, with dots."""
    check: Check
    """Returns the number to compare with the limit, or None if it was not measured."""

    def value(self, rows: list[Row]) -> float | None:
        """Returns the measured number, or None if no row has it."""
        measured = [row for row in rows if row["status"] == "measured"]
        return self.check(self, [row for row in measured if fits(row, self.fields)])

    def numbers(self, rows: list[Row]) -> list[float]:
        """Returns the numbers in rows. One of a step without a peer, for instance, has none."""
        found = []
        for row in rows:
            number: Any = row
            for key in self.path.split("."):
                number = number.get(key) if isinstance(number, dict) else None
            if number is not None:
                found.append(number)
        return found

    def met(self, value: float) -> bool:
        """Tells whether the target is met."""
        limit = float(self.wanted[2:-1]) / (100 if self.wanted.endswith("%") else 1)
        return value >= limit if self.wanted.startswith("≥") else value <= limit

    def shown(self, value: float) -> str:
        """Returns a measured number as the table shows it."""
        forms = {"%": f"{value:.0%}", "s": f"{value:.0f} s", "x": f"{value:.2f}x"}
        return forms[self.wanted[-1]]


# ---- kinds of checks


def last(target: Target, rows: list[Row]) -> float | None:
    """Returns the number of the last row."""
    return next(reversed(target.numbers(rows)), None)


def over_flops(target: Target, rows: list[Row]) -> float | None:
    """Returns what an image costs in the arm over NTP, divided by the same ratio of their FLOPs.

    The rows are those of both arms, of which the last machine's count that has both. `path` is the arm.
    """
    arms = ("ntp", target.path)
    counted = [row for row in rows if row["arm"] in arms and row["step_flops"]]
    # Per image, because a batch may have been halved until it fitted.
    by_machine: dict[str | None, dict[str, float]] = {}
    for row in counted:
        of_machine = by_machine.setdefault(row.get("machine"), {})
        of_machine[row["arm"]] = row["batch"] / row["step_flops"] / row["images_per_second"]
    both = [of_machine for of_machine in by_machine.values() if set(of_machine) == set(arms)]
    return both[-1][target.path] / both[-1]["ntp"] if both else None


def of_best_batches(target: Target, rows: list[Row]) -> float | None:
    """Returns our best images per second over the peer's best, each over all batch sizes."""
    theirs = target.numbers(rows)
    return max(row["images_per_second"] for row in rows) / max(theirs) if theirs else None


def of_minute_cells(target: Target, rows: list[Row]) -> float | None:
    """Returns the number of the last sweep whose cells took about a minute."""
    shortest, longest = MINUTE
    return last(target, [row for row in rows if shortest <= row.get("cell_seconds", 0) <= longest])


# ---- the targets


def cpu_step(size: str, arm: str, wanted: str) -> Target:
    """Compares our bf16 step on a CPU with the peer's under bf16 autocast, in CPU seconds."""
    what = f"CPU step, {size}, {arm}, bf16"
    fields = {"device": "cpu", "kind": "train", "size": size, "arm": arm, "precision": "bf16"}
    return Target(what, wanted, fields, "peer.bf16.busy.median", last)


def gpu_step(arm: str, wanted: str) -> Target:
    """Compares our step on a GPU with the peer's, both compiled and in bf16."""
    what = f"GPU step, B, batch 256, bf16, {arm}"
    return Target(what, wanted, GPU_STEP | {"arm": arm}, "peer.bf16.busy.median", last)


def gpu_cost(name: str, arm: str) -> Target:
    """Compares what an arm's step costs over NTP's with what their FLOPs say."""
    return Target(f"GPU, cost of {name} over its FLOPs", "≤ 1x", GPU_STEP, arm, over_flops)


def gpu_memory(what: str, fields: Row) -> Target:
    """Compares the peak memory of our step on a GPU with the peer's, which takes the whole batch at once."""
    return Target(f"GPU, peak memory, B, {what}", "≤ 0.6x", fields, "peer.bf16.memory", last)


def gpu_sampling(what: str, wanted: str, batches: Row, path: str, check: Check) -> Target:
    """Compares our sampler on a GPU with LlamaGen's, which is compiled."""
    fields = {"device": "cuda", "kind": "sample", "size": "B", "cfg_scale": 2.0} | batches
    return Target(f"GPU, sampling, B, CFG 2, {what}", wanted, fields, path, check)


def foresight_cost(name: str, device: str) -> Target:
    """Compares sampling from models that were trained with and without foresight."""
    what = f"{name}, sampling with over without foresight training"
    fields = {"device": device, "kind": "sample"}
    return Target(what, "≤ 1.05x", fields, "foresight_cost.median", last)


GPU_STEP = {
    "device": "cuda",
    "kind": "train",
    "size": "B",
    "asked_precision": "bf16",
    "micro_batches": 1,
}
GPU_NTP_B = GPU_STEP | {"arm": "ntp"}
GPU_NTP_L = GPU_NTP_B | {"size": "L"}
GPU_NTP_B_IN_PARTS = GPU_NTP_B | {"micro_batches": 2}
GPU_EVALUATION = {"device": "cuda", "kind": "untrained", "size": "B", "samples": 50_000}
SWEEP = {"device": "cpu", "kind": "sweep", "at_a_time": 2}
CODES = {"device": "cpu", "kind": "data"}
# reports/benchmarks/README.md says where the numbers come from, and which earlier ones they replace.
TARGETS = [
    cpu_step("small", "ntp", "≥ 1.5x"),
    cpu_step("small", "mirai-e-k3", "≥ 1.3x"),
    cpu_step("medium", "ntp", "≥ 1.5x"),
    cpu_step("medium", "mirai-e-k3", "≥ 1.3x"),
    gpu_step("ntp", "≥ 1.05x"),
    gpu_step("mirai-e-k3", "≥ 1.3x"),
    gpu_step("mirai-i-online", "≥ 1.3x"),
    gpu_cost("Mirai-E K 3", "mirai-e-k3"),
    gpu_cost("Mirai-I online", "mirai-i-online"),
    Target("GPU, MFU of the sustained ceiling, B", "≥ 46%", GPU_NTP_B, "mfu", last),
    Target("GPU, MFU of the sustained ceiling, L", "≥ 52%", GPU_NTP_L, "mfu", last),
    gpu_memory("batch 256", GPU_NTP_B),
    gpu_memory("batch 256 in two parts", GPU_NTP_B_IN_PARTS),
    gpu_sampling("batch 16", "≥ 1x", {"batch": 16}, "peer.wall.median", last),
    gpu_sampling("best batch of each", "≥ 2x", {}, "peer.images_per_second", of_best_batches),
    Target("GPU, an evaluation of 50,000 images, B", "≤ 300 s", GPU_EVALUATION, "seconds", last),
    foresight_cost("CPU", "cpu"),
    foresight_cost("GPU", "cuda"),
    Target("sweep, cells of 60 s on 2 cores, overhead", "≤ 5%", SWEEP, "overhead", of_minute_cells),
    Target("codes, random access, cold Python", "≥ 20x", CODES, "files_over_shards.median", last),
]
