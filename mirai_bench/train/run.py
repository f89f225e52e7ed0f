"""One run: train, evaluate along the way, write checkpoints and a journal. The same command again resumes it.

The order of the data, dropped labels, dropout and samples are functions of (seed, step), so a resumed run equals an
uninterrupted one bit for bit, and no random state is stored.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from mirai_bench.checkpoint.store import Checkpoint, load_latest, read_checkpoint, save_checkpoint
from mirai_bench.config.run_config import RunConfig
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.model.cost import training_flops
from mirai_bench.tracking import provenance
from mirai_bench.tracking.run_folder import Failure, RunFailed, RunFolder
from mirai_bench.train.memory import check_memory, next_divisor, with_micro_batches
from mirai_bench.train.trainer import Trainer, teacher_run
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import Hardware, is_out_of_memory
from mirai_bench.utils.distributed import (
    COLLECTIVE_TIMEOUT,
    Ranks,
    broadcast_from_rank0,
    check_shared,
    rank_and_world,
)
from mirai_bench.utils.errors import UserError

log = logging.getLogger(__name__)

STEPS_BETWEEN_STOP_CHECKS = 10  # with several ranks, which then ask each other whether to stop


class Run:
    """A trainer with its folder: journal, checkpoints, evaluations. Only rank 0 writes."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        hardware: Hardware,
        on_evaluation: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config = config
        self.folder = folder
        self.hardware = hardware
        self.on_evaluation = on_evaluation
        self.stop = stop
        self.rank, self.world = rank_and_world()
        self.trainer = Trainer(config, hardware, self.rank, self.world)
        self.evaluator = Evaluator(config, hardware.device)
        self.is_leader = self.rank == 0
        self.journal = folder.journal
        self.seconds = 0.0  # of training steps; evaluations and checkpoints do not count
        self.stopping = False  # set by SIGTERM

    # ---- the loop

    def train(self) -> None:
        """Trains from the newest checkpoint to the end. Raises KeyboardInterrupt after a checkpoint if asked to stop."""
        start = self._resume()
        # A run that was killed after the checkpoint of an evaluation step makes up for the evaluation.
        if start in self.evaluation_steps and not broadcast_from_rank0(
            lambda: self.journal.has("evaluation", start)
        ):
            self._evaluate(start)
        logged = start
        clock = time.perf_counter()  # since when training steps have not been added to self.seconds
        for step in self._steps(start):
            values = self.trainer.step(step)
            done = step + 1
            # 1. Log. Reading the values is the only time that the loop waits for the device.
            if done % self.config.machine.log_every == 0 or done in self.evaluation_steps:
                numbers = {name: float(value) for name, value in values.items()}
                now = time.perf_counter()
                elapsed = now - clock
                clock = now
                self.seconds += elapsed
                self._log(done, numbers, (done - logged) / elapsed)
                logged = done
            # 2. Save, stop, evaluate. None of it counts as training time.
            stop = self._stop_agreed(done)
            if done in self.evaluation_steps or done in self.checkpoint_steps or stop:
                self.seconds += time.perf_counter() - clock
                self._save(done)
                if stop:
                    raise KeyboardInterrupt
                if done in self.evaluation_steps:
                    self._evaluate(done)
                clock = time.perf_counter()
        self._finish()

    @cached_property
    def evaluation_steps(self) -> set[int]:
        """The steps after which the run is evaluated. The last one is always among them."""
        per_epoch = self.trainer.steps_per_epoch
        return {round(epoch * per_epoch) for epoch in self.config.evaluation.at} | {self.trainer.total_steps}

    @cached_property
    def checkpoint_steps(self) -> set[int]:
        """The steps after which a checkpoint is written, besides those of evaluations."""
        every = max(1, round(self.config.machine.checkpoint_every * self.trainer.steps_per_epoch))
        return set(range(0, self.trainer.total_steps, every))

    def _steps(self, start: int) -> Iterator[int]:
        total = self.trainer.total_steps
        steps = range(start, total)
        if not self.is_leader:
            return iter(steps)
        return progress(steps, self.folder.path.name, total, "steps", start)

    def _stop_agreed(self, step: int) -> bool:
        """Tells whether to stop now. SIGTERM reaches ranks at different steps, so they agree at certain steps."""
        if self.world == 1:
            return self.stopping or self.stop()
        if step % min(STEPS_BETWEEN_STOP_CHECKS, self.config.machine.log_every):
            return False
        flag = torch.tensor(float(self.stopping or self.stop()), device=self.hardware.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    # ---- what it writes

    def identity(self) -> dict[str, Any]:
        """Returns what a record says about the run itself."""
        return {
            "fingerprint": self.config.fingerprint(),
            "profile": self.config.profile,
            "seed": self.config.seed,
            "config": self.config.for_record(),
            "git": provenance.git_state(),
            "versions": provenance.versions(),
            "device": self.hardware.name,
            "precision": self.hardware.precision,
            "workers": self.world,
            "parameters": sum(parameter.numel() for parameter in self.trainer.model.parameters()),
        }

    def spent(self, step: int) -> dict[str, Any]:
        """Returns what training has cost up to `step`."""
        return {
            "train_seconds": self.seconds,
            "train_flops": training_flops(self.config, step, self.trainer.total_steps),
        }

    def write(self, kind: str, step: int, fields: dict[str, Any], durable: bool = False) -> None:
        """Appends a line to the journal."""
        if self.is_leader:
            epoch = step / self.trainer.steps_per_epoch
            line = {"kind": kind, "time": time.time(), "step": step, "epoch": epoch}
            self.journal.append(line | fields, durable=durable)

    def _resume(self) -> int:
        """Restores the newest checkpoint, if there is one, and returns the step to continue from."""
        checkpoint = self._newest_checkpoint()
        start = 0
        if checkpoint is not None:
            start = checkpoint.state["step"]
            self.seconds = checkpoint.state["train_seconds"]
            self.trainer.restore(checkpoint)
        if self.is_leader:
            self.journal.rewind(start)
            self.folder.write_config(self.config.model_dump_json(indent=2))
        self.write("start", start, self.identity(), durable=True)
        return start

    def _newest_checkpoint(self) -> Checkpoint | None:
        """Returns the checkpoint that rank 0 found, on every rank.

        Directory listings on a network file system can be up to a minute stale on other nodes.
        """
        found: Checkpoint | None = None

        def newest_step() -> int | None:
            nonlocal found
            found = load_latest(self.folder)
            return None if found is None else found.state["step"]

        step = broadcast_from_rank0(newest_step)
        if step is None or found is not None:
            return found
        return read_checkpoint(self.folder, step)

    def _log(self, step: int, values: dict[str, float], steps_per_second: float) -> None:
        """Writes a line to the journal. Raises RunFailed after too many non-finite updates in a row."""
        shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
        counters = {
            "skipped": int(self.trainer.skipped),
            "images_per_second": steps_per_second * self.config.train.batch_size,
        }
        self.write("train", step, shown | counters | self.spent(step))
        in_a_row = int(self.trainer.skipped_in_a_row)
        if in_a_row >= self.config.train.max_bad_steps:
            found = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
            raise RunFailed(f"{in_a_row} updates in a row were not finite, up to step {step} ({found})", step)

    def _save(self, step: int) -> None:
        if self.is_leader:
            checkpoint = self.trainer.checkpoint({"train_seconds": self.seconds})
            save_checkpoint(self.folder, step, checkpoint, self.config.machine.keep_checkpoints)

    @cached_property
    def ranks(self) -> Ranks:
        """The ranks share an evaluation. Features travel from CPU to CPU, whatever backend the gradients use."""
        if self.world == 1:
            return Ranks()
        group = torch.distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return Ranks(self.rank, self.world, group)

    def _evaluate(self, step: int) -> None:
        uses_ema = self.config.evaluation.protocol.weights == "ema"
        model = self.trainer.ema if uses_ema else self.trainer.model
        result = self.evaluator.evaluate_model(model, ranks=self.ranks)
        if result is None:  # this is not rank 0
            return
        grid = self.folder.grid_file(step / self.trainer.steps_per_epoch)
        self.folder.grids.mkdir(exist_ok=True)
        Image.fromarray(result.grid).save(self.folder.path / grid)
        seconds = {"sample_seconds": result.sample_seconds, "evaluate_seconds": result.evaluate_seconds}
        measured = {"metrics": result.metrics} | self.spent(step) | seconds
        record = measured | result.provenance | self.identity() | {"grid": str(grid)}
        self.write("evaluation", step, record, durable=True)
        self.on_evaluation()

    def _finish(self) -> None:
        if self.is_leader:
            total = self.trainer.total_steps
            self.write("end", total, {"train_seconds": self.seconds}, durable=True)
            self.folder.mark_done(total, self.seconds)
        self.on_evaluation()


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

    `on_evaluation` is called after each evaluation and at the end. `stop` is asked after each step: once it is true,
    as after SIGTERM, the run saves a checkpoint and raises KeyboardInterrupt. Raises UserError if another process
    trains this run (with `wait` it waits instead), and RunFailed if the run cannot continue.
    """
    if broadcast_from_rank0(lambda: folder.is_done):
        return
    # An earlier attempt that ran out of memory has left the number of micro-batches to use.
    failure = broadcast_from_rank0(folder.take_failure)
    if failure is not None and failure.micro_batches is not None:
        config = with_micro_batches(config, failure.micro_batches, rank_and_world()[1])
    check_shared(folder.path)
    teacher = teacher_run(config)
    if teacher is not None:
        try:
            train(teacher, RunFolder(teacher.run_path), hardware, wait=True, stop=stop)
        except (RunFailed, UserError) as error:
            folder.write_failure(Failure.of(error))
            raise
    with ExitStack() as stack:
        broadcast_from_rank0(lambda: stack.enter_context(folder.lock(wait=wait)))
        if not broadcast_from_rank0(lambda: folder.is_done):
            _train_locked(config, folder, hardware, on_evaluation, stop)


def _train_locked(
    config: RunConfig,
    folder: RunFolder,
    hardware: Hardware,
    on_evaluation: Callable[[], None],
    stop: Callable[[], bool],
) -> None:
    torch.set_num_threads(config.machine.threads)
    while True:
        parts = _attempt(config, folder, hardware, on_evaluation, stop)
        if parts is None:
            return
        log.info(f"out of memory: resuming from the last checkpoint with the batch in {parts} micro-batches")
        gc.collect()  # what the attempt held
        torch.cuda.empty_cache()
        config = config.with_machine(micro_batches=parts)


def _attempt(
    config: RunConfig,
    folder: RunFolder,
    hardware: Hardware,
    on_evaluation: Callable[[], None],
    stop: Callable[[], bool],
) -> int | None:
    """Runs one attempt.

    After an out-of-memory error in a single-process run, returns the number of micro-batches to retry with. With
    several ranks the process exits instead, because the other ranks are blocked in a collective; the next attempt
    reads the number from failed.json.
    """
    _, world = rank_and_world()
    try:
        check_memory(config, hardware, world=world)
        run = Run(config, folder, hardware, on_evaluation, stop)
        with leave_on_sigterm(run):
            run.train()
        return None
    except Exception as caught:
        error = caught
        parts = None
        if is_out_of_memory(error):
            parts = next_divisor(config, 2 * config.machine.micro_batches, world)
            if parts is None:
                most = config.machine.micro_batches
                error = RunFailed(f"out of memory with machine.micro_batches: {most}, the most there can be")
            elif world == 1:
                return parts
        folder.write_failure(Failure.of(error, parts))
        on_evaluation()
        raise error


@contextmanager
def leave_on_sigterm(run: Run) -> Iterator[None]:
    """Makes SIGTERM (preemption) ask the run to save a checkpoint after the current step and to leave.

    Does nothing outside of the main thread, because signals belong to whoever owns that one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        run.stopping = True

    handler = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
