"""`benchmark sample`: images per second by batch size and guidance, also of LlamaGen's sampler.

A model that was trained with foresight samples as fast as one that was not. The rows show that,
too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mirai_bench.benchmark.cells import measure_cells
from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.peer.checkout import Peer, official_flags
from mirai_bench.benchmark.peer.step import build
from mirai_bench.benchmark.targets import Row
from mirai_bench.benchmark.timing import WARMUP_ROUNDS, Work, alternate, ratio, spread
from mirai_bench.benchmark.workload import TrainStep, find_shape, run_config
from mirai_bench.config.protocol import Protocol
from mirai_bench.config.run_config import RunConfig
from mirai_bench.sample.draws import draw_classes
from mirai_bench.sample.sampler import Sampler
from mirai_bench.utils.device import Hardware

log = logging.getLogger(__name__)


def measure(
    options: Options, sizes: list[str] | None, batch_sizes: list[int] | None, cfg_scales: list[float]
) -> Iterator[Row]:
    """Yields one row per size, batch size and guidance. What is None depends on the device."""
    sizes = sizes or (["B"] if options.on_gpu else ["small"])
    batch_sizes = batch_sizes or ([16, 64, 256, 1024] if options.on_gpu else [1, 8, 32])
    cells: list[Row] = []
    for size in sizes:
        find_shape(size)  # a wrong name is an error before the first cell
        for batch in batch_sizes:
            cells += [{"size": size, "batch": batch, "cfg_scale": scale} for scale in cfg_scales]
    yield from measure_cells(options, "sample", cells, partial(measure_cell, options))


def measure_cell(options: Options, size: str, batch: int, cfg_scale: float) -> list[Row]:
    """Measures our sampler, without and with foresight training, and the peer's, alternating."""
    device = options.device
    precision = "bf16" if options.on_gpu else "fp32"
    dtype = torch.bfloat16 if options.on_gpu else torch.float32
    shape = find_shape(size)
    protocol = Protocol(name="benchmark", num_samples=batch, cfg_scale=cfg_scale)
    works: dict[str, Work] = {}
    for arm in ("ntp", "mirai-e-k3"):
        model = TrainStep(run_config(shape, arm, precision), Hardware(device)).trainer.ema.to(dtype)
        labels = draw_classes(protocol, 0, range(batch), model.classes)
        works[arm] = partial(Sampler(model, protocol, batch, compile=options.compile), labels, range(batch))
    peer = options.peer(lambda peer: peer.generate is not None)
    theirs = None
    if peer is not None:
        labels = torch.arange(batch, device=device)
        theirs = PeerSampler(peer, run_config(shape, "ntp", precision), dtype, labels, cfg_scale)
        works["peer"] = theirs
    # Compiled code takes its second call to record CUDA graphs.
    warmup = WARMUP_ROUNDS if options.on_gpu else 1
    samples = alternate(works, device, options.rounds, warmup)
    seconds = spread([sample.wall for sample in samples["ntp"]])
    row: Row = {"kind": "sample", "status": "measured", "size": size, "batch": batch}
    row |= {"cfg_scale": cfg_scale, "precision": precision, "seconds": seconds}
    row["compiled"] = options.on_gpu and options.compile
    row["images_per_second"] = batch / seconds["median"]
    row["foresight_cost"] = ratio(samples["mirai-e-k3"], samples["ntp"], "busy")
    if theirs is not None:
        row["peer"] = {"name": theirs.peer.name, "commit": theirs.peer.commit}
        if theirs.error is None:
            wall = spread([sample.wall for sample in samples["peer"]])
            row["peer"]["images_per_second"] = batch / wall["median"]
            row["peer"]["wall"] = ratio(samples["peer"], samples["ntp"], "wall")
            row["peer"]["busy"] = ratio(samples["peer"], samples["ntp"], "busy")
        else:
            log.warning(f"{theirs.peer.name}'s sampler failed: {theirs.error}")
            row["peer"] |= {"error": theirs.error, "wall": None, "busy": None}
    return [row]


class PeerSampler:
    """LlamaGen's sampler as its script sample_c2i_ddp runs it: compiled on a GPU, and under its flags.

    An error is kept in `error` and not raised, so that it does not cost the measurement of our own
    sampler. Later calls do nothing.
    """

    def __init__(
        self, peer: Peer, config: RunConfig, dtype: torch.dtype, labels: Tensor, scale: float
    ) -> None:
        self.peer = peer
        self.error: str | None = None
        model = build(peer.gpt, config).to(device=labels.device, dtype=dtype).eval()
        if labels.is_cuda:
            model = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        # The script's options, but for the scale, are the defaults of `generate`: every code may be
        # drawn. It allocates a new cache per call.
        labels = labels % config.data.classes
        self.work = partial(peer.generate.generate, model, labels, config.num_tokens, cfg_scale=scale)

    def __call__(self) -> None:
        """Samples a batch."""
        if self.error is not None:
            return
        try:
            with official_flags():
                self.work()
        except Exception as error:  # whatever the compiler raises
            self.error = f"{type(error).__name__}: {error}".splitlines()[0]
