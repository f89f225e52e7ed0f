"""`benchmark sample`: images a second by batch size and guidance; beside LlamaGen's own generate; with and without foresight training."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from mirai_bench.benchmark.options import Options, peers_of, pick
from mirai_bench.benchmark.peer.checkout import Peer
from mirai_bench.benchmark.peer.step import build
from mirai_bench.benchmark.timing import alternate, ratio, spread
from mirai_bench.benchmark.workload import SHAPES, Ours, run_config
from mirai_bench.config.protocol import Protocol
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.transformer import ARModel
from mirai_bench.sample.draws import classes_of
from mirai_bench.sample.sampler import Sampler
from mirai_bench.utils.cli import progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), help="default: small; on a GPU B")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="default: 1 8 32; on a GPU 16 64 256 1024")
    parser.add_argument("--cfg-scales", nargs="+", type=float, default=[1.0, 2.0])


def measure(args: argparse.Namespace, options: Options) -> list[dict[str, Any]]:
    gpu = options.device.type == "cuda"
    sizes, batches = (
        args.sizes or (["B"] if gpu else ["small"]),
        args.batch_sizes or ([16, 64, 256, 1024] if gpu else [1, 8, 32]),
    )
    cells = [(size, batch, scale) for size in sizes for batch in batches for scale in args.cfg_scales]
    rows = []
    for size, batch, scale in progress(cells, "benchmark sample", len(cells), "cells"):
        try:
            rows.append(measure_cell(size, batch, scale, options))
        except torch.OutOfMemoryError:
            say(f"{size}, batch {batch}: out of memory")
            rows.append(
                {
                    "kind": "sample",
                    "size": size,
                    "batch": batch,
                    "cfg_scale": scale,
                    "status": "out of memory",
                }
            )
    return rows


def measure_cell(size: str, batch: int, scale: float, options: Options) -> dict[str, Any]:
    device = options.device
    precision = "bf16" if device.type == "cuda" else "fp32"
    configs = {
        arm: run_config(SHAPES[size], arm, precision, device, False, options.threads)
        for arm in ("ntp", "mirai-e-k3")
    }
    protocol = Protocol(name="benchmark", num_samples=batch, cfg_scale=scale)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def sampler(model: ARModel) -> Any:
        model = model.to(dtype)
        labels, sample = classes_of(protocol, range(batch), model.classes), Sampler(model, protocol, batch)
        return lambda: sample(labels, range(batch))

    works = {arm: sampler(Ours(config).trainer.ema) for arm, config in configs.items()}
    peer = pick(peers_of(options), lambda p: p.generate is not None)
    if peer is not None:
        works["peer"] = peer_sampler(peer, configs["ntp"], batch, scale, device, dtype)
    samples = alternate(works, device, options.rounds, warmup=1)
    seconds = spread([sample.wall for sample in samples["ntp"]])
    row = {
        "kind": "sample", "status": "measured", "size": size, "batch": batch, "cfg_scale": scale, "precision": precision,
        "seconds": seconds, "images_per_second": batch / seconds["median"],
        "foresight_cost": ratio(samples["mirai-e-k3"], samples["ntp"], "busy"),
    }  # fmt: skip
    if peer is not None:
        against = {clock: ratio(samples["peer"], samples["ntp"], clock) for clock in ("wall", "busy")}
        row["peer"] = {"name": peer.name, "commit": peer.commit, **against}
    return row


def peer_sampler(
    peer: Peer, config: RunConfig, batch: int, scale: float, device: torch.device, dtype: torch.dtype
) -> Any:
    """LlamaGen's generate as its sample_c2i_ddp drives it: eval mode, every code allowed."""
    model: nn.Module = build(peer, config, foresight=False).to(device=device, dtype=dtype).eval()
    labels = torch.arange(batch, device=device) % config.data.classes
    cells = config.grid[0] * config.grid[1]
    return lambda: peer.generate.generate(
        model, labels, cells, cfg_scale=scale, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True
    )
