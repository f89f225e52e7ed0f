"""One run from outside: its teacher, its lock, and as many attempts as it takes.

What happens within an attempt is loop.py's.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch

from mirai_bench.config.run_config import RunConfig
from mirai_bench.tracking.failure import Failure, RunFailed
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train.loop import Callbacks, Run
from mirai_bench.train.memory import check_memory, next_divisor, with_micro_batches
from mirai_bench.train.trainer import teacher_run
from mirai_bench.utils import distributed
from mirai_bench.utils.device import Hardware, is_out_of_memory
from mirai_bench.utils.distributed import broadcast_from_rank0, rank_and_world
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.exactness import fixed_order
from mirai_bench.utils.signals import on_signals

log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    folder: RunFolder,
    hardware: Hardware,
    *,
    on_evaluation: Callable[[], None] = lambda: None,
    wait: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains to the end, from the newest checkpoint. A finished run returns at once.

    If the run needs a frozen teacher that is missing, the teacher's run is trained first.

    `on_evaluation` is called after each evaluation and at the end. `stop` is asked after each step:
    once it is true, as after SIGTERM, the run saves a checkpoint and raises KeyboardInterrupt.
    Raises UserError if another process trains this run (with `wait` it waits instead), and
    RunFailed if the run cannot continue.
    """
    if broadcast_from_rank0(lambda: folder.is_done):
        return
    check_device(config, hardware)
    # 1. An earlier attempt that ran out of memory has left the number of micro-batches to use.
    failure = broadcast_from_rank0(folder.take_failure)
    if failure is not None and failure.micro_batches is not None:
        config = with_micro_batches(config, failure.micro_batches, rank_and_world()[1])
    distributed.check_shared(folder.path)
    # 2. The teacher. Another run may be waiting for the same one, hence `wait`.
    teacher = teacher_run(config)
    if teacher is not None:
        teacher_folder = RunFolder(teacher.run_path)
        broadcast_from_rank0(teacher_folder.reopen_without_weights)
        try:
            train(teacher, teacher_folder, hardware, wait=True, stop=stop)
        except (RunFailed, UserError) as error:
            folder.write_failure(Failure.of(error))
            raise
    # 3. The run itself, in as many attempts as it takes. Another process may have finished it while
    #    this one waited for the lock.
    calls = Callbacks(on_evaluation, stop)
    torch.set_num_threads(config.machine.threads)
    with ExitStack() as stack:
        broadcast_from_rank0(lambda: stack.enter_context(folder.lock(wait=wait)))
        while not broadcast_from_rank0(lambda: folder.is_done):
            parts = _try(config, folder, hardware, calls)
            if parts is not None:
                how = f"with the batch in {parts} micro-batches"
                log.info(f"out of memory: resuming from the last checkpoint {how}")
                gc.collect()  # what the attempt held
                torch.cuda.empty_cache()
                config = config.with_machine(micro_batches=parts)


def check_device(config: RunConfig, hardware: Hardware) -> None:
    """Raises UserError if a run that asks for GPUs would be computed on the CPU unasked."""
    machine = config.machine
    if machine.gpus > 0 and machine.device == "auto" and hardware.kind == "cpu":
        raise UserError(
            f"machine.gpus is {machine.gpus:g}, but no CUDA device is visible here: write "
            "machine.gpus: 0 or machine.device: cpu to train on the CPU, or look what nvidia-smi and "
            "python -c 'import torch; torch.zeros(1).cuda()' say"
        )


def _try(config: RunConfig, folder: RunFolder, hardware: Hardware, calls: Callbacks) -> int | None:
    """Runs one attempt.

    After an out-of-memory error in a single-process run, returns the number of micro-batches to
    retry with. With several ranks the process exits instead, because the other ranks are blocked in
    a collective; the next attempt reads the number from failed.json.
    """
    _, world = rank_and_world()
    try:
        check_memory(config, hardware, world=world)
        with fixed_order(config.machine.deterministic):
            run = Run(config, folder, hardware, calls)
            # Preemption: a checkpoint, and out after the current step.
            stop = partial(setattr, run, "stopping", True)
            with on_signals(stop, signal.SIGTERM):
                run.train()
        return None
    except Exception as error:
        parts = None
        if is_out_of_memory(error):
            most = config.machine.micro_batches
            parts = next_divisor(config.train.batch_size // world, 2 * most)
            if parts is None:
                text = f"out of memory with machine.micro_batches: {most}, the most there can be"
                error = RunFailed(text)
            elif world == 1:
                return parts
        folder.write_failure(Failure.of(error, parts))
        calls.on_evaluation()  # a search reads what was measured before the failure
        raise error
