"""What a run is and costs before it runs: `python -m mirai_bench.train CONFIG --dry-run`."""

from __future__ import annotations

import time

import torch
import yaml

from .benchmark.workload import random_codes
from .config import RunConfig
from .cross_entropy import part_rows
from .flops import step_flops, training_flops
from .provenance import cpu_name
from .sweep.estimate import checkpoint_bytes, num_images, num_parameters
from .trainer import Trainer, resolve_device, resolve_precision

MEASURED_STEPS = 3
MEASURED_BATCH = 8  # on a CPU; a GPU takes the whole batch


def device_bytes(config: RunConfig, half: bool) -> tuple[int, int]:
    """(weights, gradients, two moments, EMA; activations kept for backward) of one process's micro-batch, in bytes.

    Activations are an estimate: in each block the inputs of its seven matrix products, both norms, SwiGLU's two factors and the dropout
    masks, in the precision of autocast but for the float32 residual stream; and the head's gradients and one part of its logits
    (cross_entropy.py).
    """
    generator, heads = num_parameters(config)
    m, cells = config.model, config.grid[0] * config.grid[1]
    images = config.train.batch_size // (config.machine.workers * config.machine.micro_batches)
    narrow, hidden = 2 if half else 4, 8 / 3 * m.width
    block = narrow * (6 * m.width + 3 * hidden) + 4 * 4 * m.width + 2 * m.width
    vocabulary, rows = config.tokenizer.vocabulary, images * cells
    part = min(rows, part_rows(vocabulary, resolve_device(config).type)) * vocabulary
    states = rows * (m.depth * block + narrow * m.width) + 4 * vocabulary * m.width + (4 + narrow) * part
    return 4 * (4 * (generator + heads) + generator), int(states)


def measured_step(config: RunConfig) -> tuple[float, int]:
    """(seconds, images) of a training step on random codes, foresight off where it needs a teacher of its own; median of a few."""
    device = resolve_device(config)
    size = config.train.batch_size if device.type == "cuda" else min(MEASURED_BATCH, config.train.batch_size)
    level = "none" if config.foresight.source != "ema" else config.foresight.level
    changes = {
        "train": config.train.model_copy(update={"batch_size": size}),
        "foresight": config.foresight.model_copy(update={"level": level, "warmup": 0.0}),
        "machine": config.machine.model_copy(update={"workers": 1, "micro_batches": 1}),
    }
    smaller = config.model_copy(update=changes)
    trainer = Trainer(smaller, codes=random_codes(smaller, device))
    seconds = []
    for step in range(MEASURED_STEPS + 1):
        began = time.perf_counter()
        float(trainer.step(step)["loss"])
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[MEASURED_STEPS // 2], size


def describe(config: RunConfig, measure: bool) -> str:
    """The resolved config, then what it amounts to, as `name: value` lines (a YAML document each)."""
    device = resolve_device(config)
    generator, heads = num_parameters(config)
    images, cells, batch = num_images(config), config.grid[0] * config.grid[1], config.train.batch_size
    fixed, activations = device_bytes(config, resolve_precision(config, device) == "bf16" or config.train.precision == "bf16")
    facts = {
        "fingerprint": config.fingerprint(),
        "parameters": f"{generator:,} of the generator, {heads:,} of foresight heads (dropped after training)",
        "FLOPs per image and training step": f"{step_flops(config):.4g}",
        "tokens per step": f"{batch * cells:,}",
        "checkpoints on disk": f"{config.machine.keep_checkpoints} x {checkpoint_bytes(config) / 1e9:.3g} GB",
        "codes on disk": f"{2 * images * config.data.num_views * cells / 1e9:.3g} GB"
        if images
        else "known once the data is prepared",
        "device memory": f"{fixed / 1e9:.3g} GB of weights, gradients, moments and EMA; about {activations / 1e9:.3g} GB of activations a process",
    }
    if images:
        steps = config.train.epochs * (images // batch)
        facts |= {"steps": f"{steps:,}", "training FLOPs": f"{training_flops(config, steps, steps):.4g}"}
    if measure:
        seconds, size = measured_step(config)
        where = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
        facts["measured step"] = f"{seconds:.3g} s for {size} images on {where}"
        if images:
            hours = steps * batch / size * seconds / 3600 / config.machine.workers
            facts["training time"] = f"about {hours:,.0f} hours on {config.machine.workers} such devices, evaluation not counted"
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return resolved + "---\n" + yaml.safe_dump(facts, sort_keys=False, width=200)
