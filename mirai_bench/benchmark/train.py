"""`benchmark train`: what a training step costs, and its parts; beside the official code's step on the same batches."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from mirai_bench.benchmark.options import Options, peers_of, pick
from mirai_bench.benchmark.peer.step import PeerStep, supports
from mirai_bench.benchmark.timing import Memory, alternate, ceiling, phases_of, ratio, spread
from mirai_bench.benchmark.workload import ARMS, SHAPES, Ours, run_config
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cost import step_flops
from mirai_bench.utils.cli import progress, say

PHASE_STEPS = 3


GPU_STEPS = 10  # of one round: one alone is as short as the launch of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SHAPES), help="default: small medium; on a GPU B L"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="default: ntp mirai-e-k3; on a GPU all")
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16", "auto"), help="default: fp32 auto; on a GPU bf16"
    )
    parser.add_argument("--batch-size", type=int, help="instead of the size's own")


def measure(args: argparse.Namespace, options: Options) -> list[dict[str, Any]]:
    gpu = options.device.type == "cuda"
    sizes = args.sizes or (["B", "L"] if gpu else ["small", "medium"])
    arms = args.arms or (list(ARMS) if gpu else ["ntp", "mirai-e-k3"])
    precisions = args.precisions or (["bf16"] if gpu else ["fp32", "auto"])
    cells = [(size, arm) for size in sizes for arm in arms]
    ceilings: dict[str, float] = {}
    rows = []
    for size, arm in progress(cells, "benchmark train", len(cells), "cells"):
        try:
            rows += measure_cell(size, arm, precisions, args.batch_size, options, ceilings)
        except torch.OutOfMemoryError:
            say(f"{size} {arm}: out of memory")
            rows.append({"kind": "train", "size": size, "arm": arm, "status": "out of memory"})
    return rows


def measure_cell(
    size: str,
    arm: str,
    precisions: list[str],
    batch: int | None,
    options: Options,
    ceilings: dict[str, float],
) -> list[dict[str, Any]]:
    """All precisions of ours and the peer's step, alternating → one row for each of ours."""
    device, shape = options.device, SHAPES[size]
    shape = shape if batch is None else type(shape)(**(vars(shape) | {"batch": batch}))
    ours, configs, works, memory = {}, {}, {}, {}
    for precision in precisions:
        configs[precision] = config = run_config(
            shape, arm, precision, device, options.compile, options.threads
        )
        start = Memory(device)
        works[precision] = ours[precision] = Ours(config)
        memory[precision] = _peak(ours[precision], start)
    first = next(iter(configs.values()))
    peer = pick(peers_of(options), lambda p: supports(p, first))
    if peer is not None:
        for name, bf16 in {"peer fp32": False, "peer bf16": True}.items():
            if bf16 or device.type == "cpu":  # on a GPU its default, bfloat16, is what it is compared in
                start = Memory(device)
                try:
                    step = PeerStep(peer, first, next(iter(ours.values())), bf16)
                    memory[name], works[name] = _peak(step, start), step
                except torch.OutOfMemoryError:
                    say(f"{size} {arm}, {name}: out of memory")
    steps = GPU_STEPS if device.type == "cuda" else 1
    repeated = {name: (lambda work=work: [work() for _ in range(steps)]) for name, work in works.items()}
    samples = alternate(repeated, device, options.rounds)
    rows = []
    for precision, work in ours.items():
        resolved = work.trainer.precision
        ceilings[resolved] = ceilings.get(resolved) or ceiling(device, resolved)
        row = _row(size, arm, configs[precision], work, resolved)
        row |= _speed(row, samples[precision], steps, shape.batch, ceilings[resolved])
        row |= {"peak_mib": memory[precision], "phases_ms": phases_of(work.trainer, PHASE_STEPS, work.steps)}
        if peer is not None:
            row["peer"] = {"name": peer.name, "commit": peer.commit} | _against(samples, precision, memory)
        rows.append(row)
    return rows


def _peak(work: Any, start: Memory) -> float | None:
    for _ in range(2):
        work()
    return start.peak()


def _row(size: str, arm: str, config: RunConfig, work: Ours, precision: str) -> dict[str, Any]:
    m = config.model
    return {
        "kind": "train", "status": "measured", "size": size, "depth": m.depth, "width": m.width, "grid": list(config.grid),
        "vocabulary": config.tokenizer.vocabulary, "batch": config.train.batch_size, "arm": arm, "asked_precision": config.train.precision,
        "precision": precision, "compiled": work.trainer.compiled, "parameters": sum(p.numel() for p in work.trainer.model.parameters()),
        "step_flops": step_flops(config) * config.train.batch_size,
    }  # fmt: skip


def _speed(
    row: dict[str, Any], samples: list[Any], steps: int, batch: int, ceiling_flops: float
) -> dict[str, Any]:
    wall, busy = (spread([getattr(s, clock) / steps for s in samples]) for clock in ("wall", "busy"))
    images = batch / wall["median"]
    cells = row["grid"][0] * row["grid"][1]
    return {
        "step_ms": {key: value if key == "n" else 1e3 * value for key, value in wall.items()},
        "busy_ms": {key: value if key == "n" else 1e3 * value for key, value in busy.items()},
        "images_per_second": images, "tokens_per_second": images * cells,
        "ceiling_flops": ceiling_flops, "mfu": row["step_flops"] / busy["median"] / ceiling_flops,
    }  # fmt: skip


def _against(
    samples: dict[str, list[Any]], precision: str, memory: dict[str, float | None]
) -> dict[str, Any]:
    """Ratios to the peer in each of its precisions: above 1 is faster, memory below 1 is smaller."""
    out: dict[str, Any] = {}
    for name in (name for name in samples if name.startswith("peer ")):
        ours, theirs = memory[precision], memory[name]
        out[name.removeprefix("peer ")] = {
            "wall": ratio(samples[name], samples[precision], "wall"),
            "busy": ratio(samples[name], samples[precision], "busy"),
            "memory": ours / theirs if ours and theirs else None,
        }
    return out
