"""What a run is and costs before it runs: `python -m mirai_bench.train CONFIG --dry-run`."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
import yaml

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.synthetic import random_codes
from mirai_bench.model.cost import (
    checkpoint_bytes,
    device_bytes,
    num_images,
    num_parameters,
    step_flops,
    training_flops,
)
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import cpu_name, resolve_device, resolve_precision

MEASURED_STEPS = 3


MEASURED_BATCH = 8  # on a CPU; a GPU takes a process's whole share


class MeasuredStep(NamedTuple):
    seconds: float
    images: int
    flops_share: float
    """FLOPs of a step of the run itself as a multiple of those of the measured one, which leaves out foresight that needs a teacher of its own"""


def measured_step(config: RunConfig) -> MeasuredStep:
    """A training step on random codes, median of a few; of as many images as one process takes at a time, so that it fits where they do."""
    device = resolve_device(config)
    share = config.train.batch_size // (config.machine.workers * config.machine.micro_batches)
    size = share if device.type == "cuda" else min(MEASURED_BATCH, share)
    level = (
        "none"
        if config.foresight.level == "internal" and config.foresight.source != "ema"
        else config.foresight.level
    )
    changes = {
        "train": config.train.model_copy(update={"batch_size": size}),
        "foresight": config.foresight.model_copy(update={"level": level, "warmup": 0.0}),
        "machine": config.machine.model_copy(update={"workers": 1, "micro_batches": 1}),
    }
    smaller = config.model_copy(update=changes)
    trainer = Trainer(smaller, codes=random_codes(smaller, device))
    seconds = []
    for step in progress(range(MEASURED_STEPS + 1), "measuring a step", MEASURED_STEPS + 1, "steps"):
        began = time.perf_counter()
        float(trainer.step(step)["loss"])
        seconds.append(time.perf_counter() - began)
    return MeasuredStep(
        sorted(seconds[1:])[MEASURED_STEPS // 2], size, step_flops(config) / step_flops(smaller)
    )


def pace(config: RunConfig, device: torch.device, steps: int | None) -> dict[str, str]:
    """What a measured step says of the time of a run of `steps`."""
    seconds, size, share = measured_step(config)
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{cpu_name()}, {torch.get_num_threads()} threads"
    )
    left_out = (
        f", without foresight: the run's own step has {share:.2f} times the FLOPs" if share != 1 else ""
    )
    facts = {"measured step": f"{seconds:.3g} s for {size} images on {where}{left_out}"}
    if steps is not None:
        hours = steps * config.train.batch_size / size * seconds * share / 3600 / config.machine.workers
        facts["training time"] = (
            f"about {hours:,.{0 if hours >= 100 else 2}f} hours on {config.machine.workers} such devices, evaluation not counted"
        )
    return facts


def describe(config: RunConfig, measure: bool) -> str:
    """The resolved config, then what it amounts to, as `name: value` lines (a YAML document each)."""
    device = resolve_device(config)
    generator, heads = num_parameters(config)
    images, cells, batch = num_images(config), config.grid[0] * config.grid[1], config.train.batch_size
    memory = device_bytes(config, resolve_precision(config, device) == "bf16")
    codes = f"{2 * images * config.data.num_views * cells / 1e9:.3g} GB" if images else None
    facts = {
        "fingerprint": config.fingerprint(),
        "parameters": f"{generator:,} of the generator, {heads:,} of foresight heads (dropped after training)",
        "FLOPs per image and training step": f"{step_flops(config):.4g}",
        "tokens per step": f"{batch * cells:,}",
        "checkpoints on disk": f"{config.machine.keep_checkpoints} x {checkpoint_bytes(config) / 1e9:.3g} GB",
        "codes on disk": codes or "known once the data is prepared",
        "device memory": f"{memory.fixed / 1e9:.3g} GB of weights, gradients, moments and EMA; about {memory.activations / 1e9:.3g} GB of "
        f"activations a process{f'; {codes} of codes, where they fit in half of what is free' if codes else ''}; an encoder not counted",
    }
    steps = config.train.epochs * (images // batch) if images else None
    if steps is not None:
        facts |= {"steps": f"{steps:,}", "training FLOPs": f"{training_flops(config, steps, steps):.4g}"}
    if measure:
        facts |= pace(config, device, steps)
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return resolved + "---\n" + yaml.safe_dump(facts, sort_keys=False, width=200)
