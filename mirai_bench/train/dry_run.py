"""What a run is and costs before it is trained: `python -m mirai_bench.train CONFIG --dry-run`."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
import yaml

from mirai_bench.config.regularizer import NoRegularizer
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.synthetic import random_codes
from mirai_bench.model import cost
from mirai_bench.model.one_off import one_off_flops
from mirai_bench.train.memory import device_bytes
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import Hardware, in_bytes, quantity

MEASURED_STEPS = 3
MEASURED_BATCH = 8  # images on a CPU; a GPU takes a process's whole share
UNKNOWN = "unknown: it depends on the encoder"


class MeasuredStep(NamedTuple):
    """The time of a training step on this machine."""

    seconds: float
    images: int
    """Number of images of the measured step."""
    flops_share: float | None
    """FLOPs of the run's own step divided by those of the measured step, which omits a regularizer and
    teachers that would have to be loaded. None if they are not known."""


def without_teacher(config: RunConfig, **train: Any) -> RunConfig:
    """Returns the run as its steps can be timed on random codes; `train` changes fields of that section.

    A teacher that would have to be loaded is left out, or one that would be trained on codes that
    mean nothing and kept for the real runs. So is a regularizer, which may need the weights of the
    tokenizer. Foresight has no warm-up, so that the first steps compute it.
    """
    foresight = config.foresight
    needs_teacher = foresight.internal and foresight.source != "ema"
    level = "none" if needs_teacher else foresight.level
    changes = {
        "train": config.train.model_copy(update=train),
        "foresight": foresight.model_copy(update={"level": level, "warmup": 0.0}),
        "regularizer": NoRegularizer(),
    }
    return config.model_copy(update=changes)


def measured_step(config: RunConfig, hardware: Hardware) -> MeasuredStep:
    """Measures a training step on random codes: the median of a few.

    It has as many images as one process computes at a time, so that it fits wherever the run does.
    """
    # 1. A run of one process and one micro-batch, without a teacher that has to be loaded.
    share = config.train.batch_size // (config.machine.workers * config.machine.micro_batches)
    size = share if hardware.kind == "cuda" else min(MEASURED_BATCH, share)
    smaller = without_teacher(config, batch_size=size).with_machine(workers=1, micro_batches=1)
    trainer = Trainer(smaller, hardware, codes=random_codes(smaller, hardware.device))
    # 2. Its steps. Reading the loss waits for the device.
    seconds = []
    num_steps = MEASURED_STEPS + 1
    for step in progress(range(num_steps), "measuring a step", num_steps, "steps"):
        began = time.perf_counter()
        float(trainer.step(step)["loss"])
        seconds.append(time.perf_counter() - began)
    median = sorted(seconds[1:])[MEASURED_STEPS // 2]  # the first step is warm-up
    # 3. What it stands for.
    own = cost.step_flops(config)
    measured = cost.step_flops(smaller)
    return MeasuredStep(median, size, own / measured if own and measured else None)


def pace(config: RunConfig, hardware: Hardware) -> dict[str, str]:
    """Returns what a measured step says about the time of the run."""
    seconds, size, share = measured_step(config, hardware)
    where = hardware.name
    if hardware.kind == "cpu":
        where += f", {torch.get_num_threads()} threads"
    left_out = ""
    if share is None:
        left_out = ", without foresight, whose FLOPs are not known"
    elif share != 1:
        term = "foresight" if config.regularizer.name == "none" else "regularizer"
        left_out = f", without {term}: the run's own step has {share:.2f} times the FLOPs"
    facts = {"measured step": f"{seconds:.3g} s for {size} images on {where}{left_out}"}
    steps = cost.num_steps(config)
    if steps is not None and share is not None:
        # The workers share the batch. Foresight is assumed to be as fast per FLOP as the rest, and
        # steps without it, or on shorter sequences, to take as much less as their FLOPs are.
        workers = config.machine.workers
        of_all = cost.training_flops(config, steps, steps)
        of_one = cost.step_flops(config)
        assert of_all is not None and of_one is not None, "the share is known"
        hours = of_all / of_one / size * seconds * share / 3600 / workers
        digits = 0 if hours >= 100 else 2
        text = f"about {hours:,.{digits}f} hours on {workers} such devices"
        facts["training time"] = f"{text}, evaluation not counted"
    return facts


def describe(config: RunConfig, hardware: Hardware, measure: bool) -> str:
    """Returns the resolved config and what it amounts to, as two YAML documents."""
    # 1. Sizes and operations.
    generator, heads = cost.num_parameters(config)
    facts: dict[str, Any] = {
        "fingerprint": config.fingerprint(),
        "parameters": f"{generator:,} of the generator, {heads:,} of heads (dropped after training)",
        "FLOPs per image and training step": number(cost.step_flops(config)),
        "tokens per step": config.train.batch_size * config.num_tokens,
    }
    # 2. Disk and memory.
    images = cost.num_images(config)
    num_codes = (images or 0) * config.data.num_views * config.num_tokens
    codes = in_bytes(2 * num_codes) if images else None  # a code is a uint16
    checkpoint = in_bytes(cost.checkpoint_bytes(config))
    kept = in_bytes(cost.kept_bytes(config))
    memory = device_bytes(config, hardware)
    of_codes = f"; {codes} of codes, if they fit in half of what is free" if codes else ""
    facts |= {
        "checkpoints on disk": f"{config.machine.keep_checkpoints} x {checkpoint}",
        "kept weights on disk": f"{len(config.machine.keep_at)} x {kept}",
        "codes on disk": codes or "known once the data is prepared",
        "device memory": f"{in_bytes(memory.fixed)} of weights, gradients, moments and EMA; about "
        f"{in_bytes(memory.activations)} of activations per process{of_codes}; an encoder is not "
        "counted",
    }
    # 3. Length and time.
    steps = cost.num_steps(config)
    if steps is not None:
        facts["steps"] = steps
        facts["training FLOPs"] = number(cost.training_flops(config, steps, steps))
        once = one_off_flops(config, images)
        if once != 0:
            facts["training FLOPs, once for the teacher"] = number(once)
    if measure:
        facts |= pace(config, hardware)
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return resolved + "---\n" + yaml.safe_dump(facts, sort_keys=False, width=200)


def number(flops: float | None) -> str:
    """Writes a number of operations, or why it is not known."""
    return UNKNOWN if flops is None else quantity(flops, "FLOP")
