"""The project's targets for speed, each against the rows that measure it; and the commands whose rows they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


# What `benchmark targets` runs on each device, as arguments of the subcommands.
PLAN: dict[str, list[list[str]]] = {
    "cpu": [
        ["train"],
        ["sample", "--batch-sizes", "8", "--rounds", "5"],
        ["data", "--rounds", "5"],
        ["evaluate", "--rounds", "5"],
        ["sweep"],
    ],
    "cuda": [["train", "--sizes", "B", "L", "XL"], ["sample"], ["data", "--rounds", "5"], ["evaluate"]],
}


@dataclass(frozen=True)
class Target:
    what: str
    wanted: str
    met: Callable[[float], bool]
    value: Callable[[list[Row]], float | None]
    """from the rows; None: not measured"""


def rows_of(rows: Iterable[Row], device: str, **fields: Any) -> list[Row]:
    return [
        r
        for r in rows
        if r["status"] == "measured"
        and r["device"] == device
        and all(r.get(k) == v for k, v in fields.items())
    ]


def faster(device: str, size: str, arm: str, asked: str, peer: str) -> Callable[[list[Row]], float | None]:
    """Median ratio to the peer's step in its precision `peer`, by the clock that the device is measured with."""

    def value(rows: list[Row]) -> float | None:
        found = [
            r
            for r in rows_of(rows, device, kind="train", size=size, arm=arm, asked_precision=asked)
            if peer in r.get("peer", {})
        ]
        return found[-1]["peer"][peer]["busy"]["median"] if found else None

    return value


def overhead(arm: str, over: float) -> Callable[[list[Row]], float | None]:
    """Time of the arm over NTP's, divided by what their FLOPs say (`over`)."""

    def value(rows: list[Row]) -> float | None:
        pair = [
            rows_of(rows, "cuda", kind="train", size="B", arm=a, asked_precision="bf16") for a in (arm, "ntp")
        ]
        return (
            pair[0][-1]["step_ms"]["median"] / pair[1][-1]["step_ms"]["median"] / over if all(pair) else None
        )

    return value


def sweep_overhead(rows: list[Row]) -> float | None:
    """Of the last sweep of cells of about a minute, two at a time."""
    found = [r for r in rows_of(rows, "cpu", kind="sweep", at_a_time=2) if 50 <= r["cell_seconds"] <= 70]
    return found[-1]["overhead"] if found else None


def last(
    device: str, path: tuple[str, ...], best: bool = False, **fields: Any
) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        found = []
        for row in rows_of(rows, device, **fields):
            inner: Any = row
            for key in path:
                inner = inner.get(key) if isinstance(inner, dict) else None
            if inner is not None:
                found.append(inner)
        return (max(found) if best else found[-1]) if found else None

    return value


def at_least(limit: float) -> Callable[[float], bool]:
    return lambda value: value >= limit


def at_most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


MEMORY = ("peer", "bf16", "memory")


TARGETS: list[Target] = [
    *(
        Target(f"CPU step, {size}, {arm}, {asked} against fp32", f"≥ {limit:g}x", at_least(limit), faster("cpu", size, arm, asked, "fp32"))
        for asked, limit in (("fp32", 2.0), ("auto", 4.0))
        for size in ("small", "medium")
        for arm in ("ntp", "mirai-e-k3")
    ),
    *(
        Target(f"GPU step, B, batch 256, bf16, {arm}", f"≥ {limit:g}x", at_least(limit), faster("cuda", "B", arm, "bf16", "bf16"))
        for arm, limit in (("ntp", 1.5), ("mirai-e-k3", 2.0), ("mirai-i-online", 2.0))
    ),
    Target("GPU, cost of Mirai-E K 3 over its FLOPs", "≤ 1.05x", at_most(1.05), overhead("mirai-e-k3", 1.42)),
    Target("GPU, cost of Mirai-I with cached features over its FLOPs", "≤ 1.05x", at_most(1.05), overhead("mirai-i-cached", 1.10)),
    *(
        Target(f"GPU, MFU, {size}", f"≥ {limit:.0%}", at_least(limit), last("cuda", ("mfu",), kind="train", size=size, arm="ntp"))
        for size, limit in (("B", 0.45), ("L", 0.55))
    ),
    Target(
        "GPU, sampling, B, CFG 2, best batch", "≥ 3x", at_least(3.0),
        last("cuda", ("peer", "wall", "median"), True, kind="sample", size="B", cfg_scale=2.0),
    ),
    Target("CPU, sampling with over without foresight training", "≤ 1.05x", at_most(1.05), last("cpu", ("foresight_cost", "median"), kind="sample")),
    Target("GPU, sampling with over without foresight training", "≤ 1.05x", at_most(1.05), last("cuda", ("foresight_cost", "median"), kind="sample")),
    Target("GPU, peak memory, B, batch 256", "≤ 0.6x", at_most(0.6), last("cuda", MEMORY, kind="train", size="B", arm="ntp")),
    Target("sweep, cells of 60 s on 2 cores, overhead", "≤ 10%", at_most(0.10), sweep_overhead),
    Target("codes, random access, cold Python", "≥ 20x", at_least(20.0), last("cpu", ("files_over_shards", "median"), kind="data")),
]  # fmt: skip
