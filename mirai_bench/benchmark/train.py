"""`benchmark train`: a training step and its parts, also of the official code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from mirai_bench.benchmark.cells import measure_cells, release
from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.peer.checkout import Peer
from mirai_bench.benchmark.peer.step import PeerStep, supports
from mirai_bench.benchmark.targets import Row
from mirai_bench.benchmark.timing import (
    Sample,
    alternate,
    ceiling,
    data_sheet_flops,
    phases_of,
    ratio,
    spread,
    with_peak,
)
from mirai_bench.benchmark.workload import ARMS, Shape, TrainStep, find_shape, run_config
from mirai_bench.model.cost import step_flops
from mirai_bench.utils.device import Hardware

log = logging.getLogger(__name__)

Names = list[str] | None

PHASE_STEPS = 3  # over which the parts of a step are averaged
GPU_STEPS = 5  # in one round: a single step is as short as its launch


def measure(
    options: Options,
    sizes: Names,
    arms: Names,
    precisions: Names,
    batch_size: int | None,
    micro_batches: int,
) -> Iterator[Row]:
    """Yields one row per size, arm and precision. What is None depends on the device.

    Our steps compute the batch in `micro_batches` parts, and the peer's compute it at once.
    """
    sizes = sizes or (["B", "L"] if options.on_gpu else ["small", "medium"])
    arms = arms or (list(ARMS) if options.on_gpu else ["ntp", "mirai-e-k3"])
    precisions = precisions or (["bf16"] if options.on_gpu else ["fp32", "auto"])
    cells: list[Row] = []
    for size in sizes:
        batch = batch_size or find_shape(size).batch
        of_size = {"size": size, "asked_batch": batch, "micro_batches": micro_batches}
        cells += [of_size | {"arm": arm} for arm in arms]
    for cell in cells:  # a wrong name or number is an error now
        shape = replace(find_shape(cell["size"]), batch=cell["asked_batch"])
        run_config(shape, cell["arm"], "fp32", micro_batches)
    yield from measure_cells(options, "train", cells, partial(measure_fitting, precisions, options))


def measure_fitting(
    precisions: list[str], options: Options, size: str, arm: str, asked_batch: int, micro_batches: int = 1
) -> list[Row]:
    """Measures a cell at the largest batch that fits: the one asked for, or a half of a half of it.

    The peer needs more memory than we do. Both are measured at the batch that fits both.
    """
    batch = asked_batch
    while True:
        try:
            shape = replace(find_shape(size), batch=batch)
            rows = measure_cell(shape, arm, precisions, options, micro_batches)
            break
        except torch.OutOfMemoryError:
            if batch == micro_batches:
                raise
            log.info(f"{size} {arm}: out of memory with batch {batch}")
            batch = max(1, batch // 2 // micro_batches) * micro_batches  # which the parts divide
        release(options.device)
    return [row | {"size": size, "asked_batch": asked_batch} for row in rows]


def measure_cell(
    shape: Shape, arm: str, precisions: list[str], options: Options, micro_batches: int = 1
) -> list[Row]:
    """Measures our step in each precision and the peer's steps, alternating.

    Returns a row per precision of ours.
    """
    device = options.device
    # 1. Our steps, and those of the first peer that has the arm, on the batches of our first one.
    ours: dict[str, TrainStep] = {}
    memory: dict[str, float | None] = {}
    for precision in precisions:
        config = run_config(shape, arm, precision, micro_batches)
        asked = config.train.precision
        hardware = Hardware.resolve(str(device), asked, options.compile, width=shape.width)
        ours[precision], memory[precision] = with_peak(partial(TrainStep, config, hardware), device)
    first = ours[precisions[0]]
    peer = options.peer(lambda peer: supports(peer, first.config))
    theirs = {} if peer is None else peer_steps(peer, first, memory)
    # 2. The rounds.
    # In each round every step is called once, or on a GPU several times.
    calls = GPU_STEPS if options.on_gpu else 1
    samples = alternate({**ours, **theirs}, device, options.rounds, calls=calls)
    # 3. The rows.
    rows = []
    for precision, step in ours.items():
        row = row_of(arm, step, samples[precision])
        row["peak_mib"] = memory[precision]
        row["phases_ms"] = phases_of(step.trainer, PHASE_STEPS, step.steps)
        if peer is not None:
            row["peer"] = {"name": peer.name, "commit": peer.commit}
        for name in theirs:
            row["peer"][name.removeprefix("peer ")] = {
                "wall": ratio(samples[name], samples[precision], "wall"),
                "busy": ratio(samples[name], samples[precision], "busy"),
                "memory": share(memory[precision], memory[name]),
            }
        rows.append(row)
    return rows


def peer_steps(peer: Peer, ours: TrainStep, memory: dict[str, float | None]) -> dict[str, PeerStep]:
    """Returns the peer's steps by precision, and adds their peak memory to `memory`.

    On a GPU the official default is bf16, and only that is compared.
    """
    device = ours.trainer.device
    steps = {}
    for precision in ("bf16",) if device.type == "cuda" else ("fp32", "bf16"):
        name = f"peer {precision}"
        build = partial(PeerStep, peer, ours, bf16=precision == "bf16")
        steps[name], memory[name] = with_peak(build, device)
    return steps


def row_of(arm: str, step: TrainStep, samples: list[Sample]) -> Row:
    """Returns a row without what needs other steps.

    `step_flops` and `mfu` are None if the FLOPs are not known.
    """
    config = step.config
    hardware = step.trainer.hardware
    batch = config.train.batch_size
    wall = spread([sample.wall for sample in samples])
    busy = spread([sample.busy for sample in samples])
    most = ceiling(step.trainer.device, hardware.precision)
    flops = step_flops(config)  # of one image
    if flops is not None:
        flops *= batch
    images = batch / wall["median"]
    row: Row = {"kind": "train", "status": "measured"}
    row |= {"depth": config.model.depth, "width": config.model.width, "grid": list(config.grid)}
    row |= {"vocabulary": config.tokenizer.vocabulary, "batch": batch, "arm": arm}
    row["micro_batches"] = config.machine.micro_batches
    row |= {"asked_precision": config.train.precision, "precision": hardware.precision}
    row |= {"compiled": hardware.compile}
    row["parameters"] = sum(parameter.numel() for parameter in step.trainer.model.parameters())
    row["step_flops"] = flops
    row |= {"step_ms": in_ms(wall), "busy_ms": in_ms(busy)}
    row |= {"images_per_second": images, "tokens_per_second": images * config.num_tokens}
    row |= {"ceiling_flops": most, "mfu": flops and flops / busy["median"] / most}
    sheet = data_sheet_flops(hardware)
    row["mfu_data_sheet"] = flops and sheet and flops / busy["median"] / sheet
    return row


def share(ours: float | None, theirs: float | None) -> float | None:
    """Returns our peak memory over the peer's, or None if it was not measured."""
    return ours / theirs if ours and theirs else None


def in_ms(seconds: dict[str, float]) -> dict[str, float]:
    """Returns a median and quartiles in milliseconds. `n` is no time."""
    return {name: value if name == "n" else 1e3 * value for name, value in seconds.items()}
