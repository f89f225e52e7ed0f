"""One run: train, evaluate along the way, leave checkpoints and a journal. The same command again goes on where it stopped.

    python -m mirai_bench.train CONFIG

Order of data, dropped labels, dropout and samples are functions of (seed, step), so a resumed run equals an uninterrupted one bit for bit
and no random state is stored.
"""

from __future__ import annotations

import gc
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mirai_bench.checkpoint.store import Checkpoint, folder_of, load_latest, read_checkpoint, save_checkpoint
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cost import training_flops
from mirai_bench.tracking import provenance
from mirai_bench.tracking.journal import Journal
from mirai_bench.tracking.run_folder import RunFailed, leave_failure, locked, take_failure
from mirai_bench.train.memory import check_memory, in_parts, more_parts
from mirai_bench.train.trainer import Trainer, run_dir_of, teacher_run
from mirai_bench.utils.cli import progress, say
from mirai_bench.utils.device import cpu_name, is_out_of_memory
from mirai_bench.utils.distributed import PATIENCE, Ranks, check_shared, of_rank_0, rank_and_world
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic

ASK_EVERY = 10  # steps: how often several ranks ask each other whether to stop


class Run:
    """A trainer with its folder: journal, checkpoints, evaluations. Only rank 0 writes."""

    def __init__(
        self, config: RunConfig, run_dir: Path, on_evaluation: Callable[[], None], stop: Callable[[], bool]
    ) -> None:
        self.config, self.run_dir, self.on_evaluation, self.stop = config, run_dir, on_evaluation, stop
        rank, world = rank_and_world()
        self.trainer = Trainer(config, rank, world)
        self.leads = rank == 0
        self.journal = Journal(run_dir / "journal.jsonl")
        self.seconds = 0.0  # of training alone: evaluation and checkpoints do not count
        self.stopping = False

    def identity(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self.trainer.device.type == "cuda" else cpu_name()
        return {
            "fingerprint": self.config.fingerprint(), "profile": self.config.profile, "seed": self.config.seed,
            "config": self.config.model_dump(mode="json", exclude={"machine": {"runs", "data"}}),
            "git": provenance.git_state(), "versions": provenance.versions(), "device": device, "precision": self.trainer.precision,
            "workers": self.trainer.world, "parameters": sum(p.numel() for p in self.trainer.model.parameters()),
        }  # fmt: skip

    def write(self, kind: str, step: int, fields: dict[str, Any], durable: bool = False) -> None:
        if self.leads:
            epoch = step / self.trainer.steps_per_epoch
            self.journal.append(
                {"kind": kind, "time": time.time(), "step": step, "epoch": epoch} | fields, durable=durable
            )

    def go(self) -> None:
        trainer, config = self.trainer, self.config
        start = self._resume()
        evaluations = {round(epoch * trainer.steps_per_epoch) for epoch in config.evaluation.at} | {
            trainer.total_steps
        }
        saves = set(
            range(
                0,
                trainer.total_steps,
                max(1, round(config.machine.checkpoint_every * trainer.steps_per_epoch)),
            )
        )
        if start in evaluations and not of_rank_0(lambda: self.journal.has("evaluation", start)):
            self._evaluate(start)
        clock, logged = time.perf_counter(), start
        steps = range(start, trainer.total_steps)
        for step in (
            progress(steps, self.run_dir.name, trainer.total_steps, "steps", start) if self.leads else steps
        ):
            values = trainer.step(step)
            done = step + 1
            if done % config.machine.log_every == 0 or done in evaluations:
                values = {
                    name: float(value) for name, value in values.items()
                }  # the only host synchronisation of the loop
                clock, elapsed = time.perf_counter(), time.perf_counter() - clock
                self.seconds += elapsed
                self._log(done, values, (done - logged) / elapsed)
                logged = done
            stop = self._stop_agreed(done)
            if done in evaluations or done in saves or stop:
                self.seconds += time.perf_counter() - clock
                self._save(done)
                if stop:
                    raise KeyboardInterrupt
                if done in evaluations:
                    self._evaluate(done)
                clock = time.perf_counter()
        if self.leads:
            self.write("end", trainer.total_steps, {"train_seconds": self.seconds}, durable=True)
            write_atomic(
                self.run_dir / "done.json", json.dumps({"step": trainer.total_steps, "seconds": self.seconds})
            )
        self.on_evaluation()

    def _stop_agreed(self, step: int) -> bool:
        """SIGTERM reaches ranks at different steps: they leave together, at a step at which all ask each other."""
        if self.trainer.world == 1:
            return self.stopping or self.stop()
        if step % min(ASK_EVERY, self.config.machine.log_every):
            return False
        flag = torch.tensor(float(self.stopping or self.stop()), device=self.trainer.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _resume(self) -> int:
        checkpoint = self._newest()
        start = checkpoint.state["step"] if checkpoint else 0
        if checkpoint:
            self.trainer.restore(checkpoint)
            self.seconds = checkpoint.state["train_seconds"]
        if self.leads:
            self.journal.rewind(start)
            write_atomic(self.run_dir / "config.json", self.config.model_dump_json(indent=2))
        self.write("start", start, self.identity(), durable=True)
        return start

    def _newest(self) -> Checkpoint | None:
        """Of all ranks the one that rank 0 finds: what another node lists of a network file system may be a minute old."""
        found: list[Checkpoint | None] = []

        def step() -> int | None:
            found.append(load_latest(self.run_dir))
            return found[0].state["step"] if found[0] else None

        newest = of_rank_0(step)
        if newest is None:
            return None
        return found[0] if found else read_checkpoint(folder_of(self.run_dir, newest))

    def _log(self, step: int, values: dict[str, float], steps_per_second: float) -> None:
        trainer = self.trainer
        in_a_row = int(trainer.skipped_in_a_row)
        extra = {
            "skipped": int(trainer.skipped),
            "images_per_second": steps_per_second * self.config.train.batch_size,
            "train_seconds": self.seconds,
            "train_flops": training_flops(self.config, step, trainer.total_steps),
        }
        self.write(
            "train",
            step,
            {name: value if math.isfinite(value) else None for name, value in values.items()} | extra,
        )
        if in_a_row >= self.config.train.max_bad_steps:
            found = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
            raise RunFailed(f"{in_a_row} updates in a row were not finite, up to step {step} ({found})", step)

    def _save(self, step: int) -> None:
        if self.leads:
            save_checkpoint(
                self.run_dir,
                step,
                self.trainer.checkpoint({"train_seconds": self.seconds}),
                self.config.machine.keep_checkpoints,
            )

    @cached_property
    def ranks(self) -> Ranks:
        """All of them share an evaluation; features travel from CPU to CPU, whatever backend the gradients take."""
        rank, world = self.trainer.rank, self.trainer.world
        return (
            Ranks(rank, world, torch.distributed.new_group(backend="gloo", timeout=PATIENCE))
            if world > 1
            else Ranks()
        )

    def _evaluate(self, step: int) -> None:
        from PIL import Image

        from mirai_bench.evaluate.evaluation import evaluate_model

        model = self.trainer.ema if self.config.evaluation.protocol.weights == "ema" else self.trainer.model
        result = evaluate_model(model, self.config, self.trainer.device, ranks=self.ranks)
        if result is None:
            return
        grid = Path("samples") / f"epoch_{step / self.trainer.steps_per_epoch:07.2f}.png"
        (self.run_dir / grid).parent.mkdir(exist_ok=True)
        Image.fromarray(result.grid).save(self.run_dir / grid)
        spent = {
            "train_seconds": self.seconds,
            "train_flops": training_flops(self.config, step, self.trainer.total_steps),
            "sample_seconds": result.sample_seconds,
            "evaluate_seconds": result.evaluate_seconds,
        }
        record = (
            {"metrics": result.metrics} | spent | result.provenance | self.identity() | {"grid": str(grid)}
        )
        self.write("evaluation", step, record, durable=True)
        self.on_evaluation()


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    on_evaluation: Callable[[], None] = lambda: None,
    wait: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains to the end, from the newest checkpoint; a finished run returns at once. A frozen teacher's run is trained first if it is missing.

    `on_evaluation` is called after each evaluation and at the end. `stop` is asked after each step: once true, as after SIGTERM, the run
    saves a checkpoint and raises KeyboardInterrupt. Raises UserError where another process trains this run (unless `wait`, which waits
    for it), RunFailed where the run cannot go on.
    """
    done = run_dir / "done.json"
    if of_rank_0(done.exists):
        return
    config = in_parts(config, of_rank_0(lambda: take_failure(run_dir)).get("micro_batches", 1))
    check_shared(run_dir)
    teacher = teacher_run(config)
    if teacher is not None:
        try:
            train(teacher, run_dir_of(teacher), wait=True, stop=stop)
        except (RunFailed, UserError) as error:
            leave_failure(run_dir, error)
            raise
    with ExitStack() as held:
        of_rank_0(lambda: held.enter_context(locked(run_dir, wait)))
        if not of_rank_0(done.exists):
            _train_locked(config, run_dir, on_evaluation, stop)


def _train_locked(
    config: RunConfig, run_dir: Path, on_evaluation: Callable[[], None], stop: Callable[[], bool]
) -> None:
    torch.set_num_threads(config.machine.threads)
    while (parts := _attempt(config, run_dir, on_evaluation, stop)) is not None:
        say(f"out of memory: going on from the last checkpoint with the batch in {parts} parts")
        gc.collect()  # what the attempt held
        torch.cuda.empty_cache()
        config = in_parts(config, parts)


def _attempt(
    config: RunConfig, run_dir: Path, on_evaluation: Callable[[], None], stop: Callable[[], bool]
) -> int | None:
    """→ after too little memory the number of parts to go on with.

    Several ranks cannot: the others wait for the one that ran out. It ends, all are ended with it, and the next attempt reads the number.
    """
    try:
        check_memory(config)
        work = Run(config, run_dir, on_evaluation, stop)
        with leave_on_sigterm(work):
            return work.go()
    except Exception as error:
        parts = None
        if is_out_of_memory(error):
            parts = more_parts(config, 2 * config.machine.micro_batches)
            if parts is None:
                error = RunFailed(
                    f"out of memory with machine.micro_batches: {config.machine.micro_batches}, the most there can be"
                )
            elif rank_and_world()[1] == 1:
                return parts
        leave_failure(run_dir, error, parts)
        on_evaluation()
        raise error


@contextmanager
def leave_on_sigterm(work: Run) -> Iterator[None]:
    """SIGTERM (preemption) asks the run to save a checkpoint after the step at hand and leave."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are whoever's owns the main thread
        return
    handler = signal.signal(signal.SIGTERM, lambda *_: setattr(work, "stopping", True))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
