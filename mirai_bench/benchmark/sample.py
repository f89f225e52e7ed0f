"""`benchmark sample`: images per second by batch size and guidance, also of LlamaGen's sampler.

A model that was trained with foresight samples as fast as one that was not. The rows show that,
too.
"""

from __future__ import annotations

import logging
from functools import partial

import torch

from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.peer.step import build
from mirai_bench.benchmark.targets import Row
from mirai_bench.benchmark.timing import Work, alternate, ratio, spread
from mirai_bench.benchmark.workload import TrainStep, find_shape, run_config
from mirai_bench.config.protocol import Protocol
from mirai_bench.sample.draws import draw_classes
from mirai_bench.sample.sampler import Sampler
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import Hardware

log = logging.getLogger(__name__)


def measure(
    options: Options, sizes: list[str] | None, batch_sizes: list[int] | None, cfg_scales: list[float]
) -> list[Row]:
    """Returns one row per size, batch size and guidance. What is None depends on the device."""
    sizes = sizes or (["B"] if options.on_gpu else ["small"])
    batch_sizes = batch_sizes or ([16, 64, 256, 1024] if options.on_gpu else [1, 8, 32])
    cells = [(size, batch, scale) for size in sizes for batch in batch_sizes for scale in cfg_scales]
    for size in sizes:
        find_shape(size)  # a wrong name is an error before the first cell
    rows = []
    for size, batch, scale in progress(cells, "benchmark sample", len(cells), "cells"):
        row: Row = {"kind": "sample", "status": "measured", "size": size}
        row |= {"batch": batch, "cfg_scale": scale}
        try:
            row |= measure_cell(size, batch, scale, options)
        except torch.OutOfMemoryError:
            log.info(f"{size}, batch {batch}: out of memory")
            row["status"] = "out of memory"
        rows.append(row)
    return rows


def measure_cell(size: str, batch: int, scale: float, options: Options) -> Row:
    """Measures our sampler, without and with foresight training, and the peer's, alternating."""
    device = options.device
    precision = "bf16" if options.on_gpu else "fp32"
    dtype = torch.bfloat16 if options.on_gpu else torch.float32
    shape = find_shape(size)
    protocol = Protocol(name="benchmark", num_samples=batch, cfg_scale=scale)
    works: dict[str, Work] = {}
    for arm in ("ntp", "mirai-e-k3"):
        model = TrainStep(run_config(shape, arm, precision), Hardware(device)).trainer.ema.to(dtype)
        labels = draw_classes(protocol, range(batch), model.classes)
        works[arm] = partial(Sampler(model, protocol, batch), labels, range(batch))
    peer = options.peer(lambda peer: peer.generate is not None)
    if peer is not None:
        # As LlamaGen's sample_c2i_ddp does it: in eval mode, and every code may be drawn.
        config = run_config(shape, "ntp", precision)
        theirs = build(peer.gpt, config).to(device=device, dtype=dtype).eval()
        labels = torch.arange(batch, device=device) % config.data.classes
        generate = peer.generate.generate
        works["peer"] = partial(generate, theirs, labels, config.num_tokens, cfg_scale=scale)
    samples = alternate(works, device, options.rounds, warmup=1)
    seconds = spread([sample.wall for sample in samples["ntp"]])
    row: Row = {"precision": precision, "seconds": seconds}
    row["images_per_second"] = batch / seconds["median"]
    row["foresight_cost"] = ratio(samples["mirai-e-k3"], samples["ntp"], "busy")
    if peer is not None:
        row["peer"] = {"name": peer.name, "commit": peer.commit}
        row["peer"]["wall"] = ratio(samples["peer"], samples["ntp"], "wall")
        row["peer"]["busy"] = ratio(samples["peer"], samples["ntp"], "busy")
    return row
