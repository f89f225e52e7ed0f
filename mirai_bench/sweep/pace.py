"""How fast this machine trains a profile, timed in seconds, before any run of it has finished.

Steps are timed on random codes, and an evaluation on the images of a model that has learned nothing:
neither changes what they cost. As many processes as trials will run work at the same time, because
they share caches and memory.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Cell
from mirai_bench.model.cost import num_steps, training_flops
from mirai_bench.sweep.estimate import cell_flops
from mirai_bench.utils.errors import UserError

WARM_UP = 3  # steps that are not timed
SECONDS = 5.0  # of timed steps
LEAST_STEPS = 5
IMAGES = 100  # that are sampled and extracted


def timed_rate(cell: Cell, processes: int) -> float:
    """Returns the FLOPs of training per second of wall-clock of a cell, its evaluations included.

    Raises UserError if the number of steps is not known, or if the cell could not be evaluated.
    """
    config = cell.config
    steps = num_steps(config)
    flops = cell_flops(config)
    if steps is None:
        raise UserError(
            f"--time: how many steps an epoch of {config.profile} has is not known before its data are "
            "prepared: python -m mirai_bench.data.prepare PROFILE --data FOLDER, or leave out --time"
        )
    if flops is None:
        raise UserError(
            f"--time: the FLOPs of {cell.arm}, the first arm, are not known, so that no other arm's time "
            "follows from its own: choose others with --only, or leave out --time"
        )
    if config.machine.gpus:
        processes = 1
    spawn = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    with ProcessPoolExecutor(processes, spawn) as pool:
        seconds = list(pool.map(run_seconds, [config] * processes, [steps] * processes))
    return flops / statistics.mean(seconds)


def run_seconds(config: RunConfig, steps: int) -> float:
    """Returns what a run of so many steps will take in seconds, from what is timed in this process."""
    # Imported here, so that a dry run needs no torch.
    import torch

    from mirai_bench.data.synthetic import random_codes
    from mirai_bench.evaluate.evaluation import Evaluator
    from mirai_bench.evaluate.measure import SampledImages
    from mirai_bench.train.dry_run import without_teacher
    from mirai_bench.train.trainer import Trainer, resolve_hardware

    torch.set_num_threads(config.machine.threads)
    hardware = resolve_hardware(config)
    timed = without_teacher(config)
    trainer = Trainer(timed, hardware, codes=random_codes(timed, hardware.device))
    # 1. A step.
    for step in range(WARM_UP):
        float(trainer.step(step)["loss"])  # waits for the device
    done = 0
    start = time.perf_counter()
    while done < LEAST_STEPS or time.perf_counter() - start < SECONDS:
        float(trainer.step(WARM_UP + done)["loss"])
        done += 1
    per_step = (time.perf_counter() - start) / done
    # What was left out takes as long for each operation as the rest.
    own, measured = (training_flops(each, steps, steps) for each in (config, timed))
    assert own and measured, "timed_rate has looked"
    per_step *= own / measured
    # 2. An image of an evaluation.
    evaluator = Evaluator(config, hardware.device)
    protocol = config.evaluation.protocol
    source = SampledImages(trainer.ema, evaluator.tokenizer, protocol, config.seed_of("sampling"), IMAGES)
    extractor = evaluator.extractor
    start = time.perf_counter()
    images, _ = source.read(range(IMAGES))
    if extractor is not None:
        extractor(images)
    per_image = (time.perf_counter() - start) / IMAGES
    evaluations = len({*config.evaluation.at, config.train.epochs})
    return steps * per_step + evaluations * protocol.num_samples * per_image
