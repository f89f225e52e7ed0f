"""One run: train, evaluate along the way, write checkpoints and a journal. It can be resumed.

The order of the data, dropped labels, dropout and samples are functions of (seed, step), so a
resumed run equals an uninterrupted one bit for bit, and no random state is stored.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mirai_bench.checkpoint.store import Checkpoint, keep_weights, load_latest, read_checkpoint
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.grid import write_image
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.model.cost import training_flops
from mirai_bench.model.one_off import one_off_flops
from mirai_bench.tracking import provenance
from mirai_bench.tracking.failure import RunFailed
from mirai_bench.tracking.journal import Counts
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train.saving import CheckpointWriter
from mirai_bench.train.trainer import Trainer
from mirai_bench.utils import distributed
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import Hardware, is_out_of_memory
from mirai_bench.utils.distributed import COLLECTIVE_TIMEOUT, broadcast_from_rank0, rank_and_world

log = logging.getLogger(__name__)

# With several ranks, which then ask each other whether to stop. Asking waits for the device.
STEPS_BETWEEN_STOP_CHECKS = 10


class Callbacks(NamedTuple):
    """What a run calls while it trains."""

    on_evaluation: Callable[[], None]
    """Called after each evaluation, at the end, and after a failure."""
    stop: Callable[[], bool]
    """Asked after each step. Once it is true, the run saves a checkpoint and leaves."""


@contextlib.contextmanager
def ending_without_memory(reason: str, step: int | None = None) -> Iterator[None]:
    """Makes a lack of memory in the block end the run, for this reason.

    It is none of a training step, which more micro-batches would mend.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailed(reason, step) from error


@dataclass(eq=False)
class Run:
    """A trainer with its folder: journal, checkpoints, evaluations. Only rank 0 writes."""

    config: RunConfig
    folder: RunFolder
    hardware: Hardware
    calls: Callbacks

    def __post_init__(self) -> None:
        rank, self.world = rank_and_world()
        self.is_leader = rank == 0
        self.journal = self.folder.journal
        full = f"{self.hardware.name} ran out of memory before the first step"
        instead = "let fewer processes share it (machine.gpus), or choose a smaller model or encoder"
        with ending_without_memory(f"{full}: {instead}"):
            self.trainer = Trainer(self.config, self.hardware, rank, self.world)
        self.evaluator = Evaluator(self.config, self.hardware.device)
        # The ranks share an evaluation. Features travel from CPU to CPU, whatever backend the
        # gradients use.
        group = None
        if self.world > 1:
            group = torch.distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        self.ranks = distributed.Ranks(rank, self.world, group)
        in_thread = self.hardware.kind == "cuda"
        self.writer = CheckpointWriter(self.folder, self.config.machine.keep_checkpoints, in_thread)
        # Numbers of steps after which the run is evaluated, and after which it is saved besides.
        # The last step is always evaluated.
        total = self.trainer.total_steps
        per_epoch = self.trainer.steps_per_epoch
        epochs = self.config.evaluation.at
        self.evaluation_steps = {total, *(round(epoch * per_epoch) for epoch in epochs)}
        every = max(1, round(self.config.machine.checkpoint_every * per_epoch))
        # The epochs whose weights are kept, by the number of steps.
        self.kept = {epoch * per_epoch: epoch for epoch in self.config.machine.keep_at}
        self.saved_steps = {*range(0, total, every), *self.kept}
        self.seconds = 0.0  # of training steps; evaluations and checkpoints do not count
        self.stopping = False  # set by SIGTERM

    # ---- the loop

    def train(self) -> None:
        """Trains from the newest checkpoint to the end.

        Raises KeyboardInterrupt after a checkpoint if it is asked to stop.
        """
        with self.writer:
            self._train()

    def _train(self) -> None:
        start = self._resume()
        # A run that was killed after the checkpoint of an evaluation step, and before its record
        # was in the journal, makes up for the evaluation.
        if start in self.evaluation_steps and not broadcast_from_rank0(
            lambda: self.journal.has("evaluation", start)
        ):
            self._evaluate(start)
        total = self.trainer.total_steps
        steps: Iterable[int] = range(start, total)
        if self.is_leader:
            steps = progress(steps, self.folder.path.name, total, "steps", start)
        logged = start  # step and seconds of the last line of the log
        logged_seconds = self.seconds
        clock = time.perf_counter()  # since when training steps have not been added to self.seconds
        for step in steps:
            values = self.trainer.step(step)
            done = step + 1
            # 1. Log. Reading the values is the only time that the loop waits for the device.
            if done % self.config.machine.log_every == 0 or done in self.evaluation_steps:
                numbers = {name: float(value) for name, value in values.items()}
                now = time.perf_counter()
                self.seconds += now - clock
                clock = now
                self._log(done, numbers, (done - logged) / (self.seconds - logged_seconds))
                logged = done
                logged_seconds = self.seconds
            # 2. Save, stop, evaluate. None of it counts as training time.
            stop = self._stop_agreed(done)
            if done in self.evaluation_steps or done in self.saved_steps or stop:
                self.seconds += time.perf_counter() - clock
                self._save(done)
                if stop:
                    self.writer.wait()
                    raise KeyboardInterrupt
                if done in self.evaluation_steps:
                    self._evaluate(done)
                clock = time.perf_counter()
        # 3. The end. The journal comes first: a run that is marked as done is never opened again.
        self.writer.wait()
        self.write("end", total, {"train_seconds": self.seconds}, durable=True)
        if self.is_leader:
            self.folder.mark_done(total, self.seconds)
        self.calls.on_evaluation()

    def _save(self, step: int) -> None:
        if not self.is_leader:
            return
        # Before the checkpoint, from which a run that is killed here would go on.
        if step in self.kept:
            epoch = self.kept[step]
            keep_weights(self.folder.kept_student_file(epoch), self.trainer.student_weights())
            keep_weights(self.folder.kept_file(epoch), dict(self.trainer.ema.state_dict()))
        self.journal.sync()
        counters = {"train_seconds": self.seconds, "journal": self.journal.counts()}
        self.writer.save(step, self.trainer.checkpoint(counters))

    def _stop_agreed(self, step: int) -> bool:
        """Tells whether to stop now.

        SIGTERM reaches ranks at different steps, and a rank that left early would leave the others
        waiting in a collective. So they agree, at certain steps.
        """
        if self.world == 1:
            return self.stopping or self.calls.stop()
        if step % min(STEPS_BETWEEN_STOP_CHECKS, self.config.machine.log_every):
            return False
        flag = torch.tensor(float(self.stopping or self.calls.stop()), device=self.hardware.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    # ---- what it writes

    def identity(self) -> dict[str, Any]:
        """Returns what a record says about the run itself."""
        left_out = self.trainer.codes.left_out
        return ({"left_out": left_out} if left_out else {}) | {
            "fingerprint": self.config.fingerprint(),
            "profile": self.config.profile,
            "seed": self.config.seed,
            "config": self.config.for_record(),
            "git": provenance.git_state(),
            "versions": provenance.versions(),
            "device": self.hardware.name,
            "precision": self.hardware.precision,
            "compiled": self.hardware.compile,
            "workers": self.world,
            "parameters": sum(parameter.numel() for parameter in self.trainer.model.parameters()),
        }

    def spent(self, step: int) -> dict[str, Any]:
        """Returns what training has cost up to `step`."""
        flops = training_flops(self.config, step, self.trainer.total_steps)
        return {"train_seconds": self.seconds, "train_flops": flops}

    def spent_once(self) -> dict[str, Any]:
        """Returns what was spent once for the run's teacher, before its first step."""
        flops = one_off_flops(self.config, self.trainer.codes.num_images)
        return {"one_off_flops": flops, "one_off_seconds": self.trainer.one_off_seconds()}

    def write(self, kind: str, step: int, fields: dict[str, Any], durable: bool = False) -> None:
        """Appends a line to the journal."""
        if self.is_leader:
            epoch = step / self.trainer.steps_per_epoch
            line = {"kind": kind, "time": time.time(), "step": step, "epoch": epoch}
            self.journal.append(line | fields, durable=durable)

    def _resume(self) -> int:
        """Restores the newest checkpoint, if there is one. Returns the step to continue from."""
        checkpoint = self._newest_checkpoint()
        start = 0
        if checkpoint is not None:
            start = checkpoint.state["step"]
            self.seconds = checkpoint.state["train_seconds"]
            self.trainer.restore(checkpoint)
        # Older checkpoints do not say what the journal held.
        then = () if checkpoint is None else checkpoint.state.get("journal", ())
        broadcast_from_rank0(lambda: self._rewind(start, Counts(*then)))
        self.write("start", start, self.identity(), durable=True)
        return start

    def _rewind(self, start: int, then: Counts) -> None:
        """Removes what was logged after the checkpoint, which is trained again."""
        self.journal.rewind(start)
        self.journal.check(then)
        self.folder.write_config(self.config.model_dump_json(indent=2))

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
        # Rank 0 has it already. The others read the one of the same step.
        return found if self.is_leader or step is None else read_checkpoint(self.folder, step)

    def _log(self, step: int, values: dict[str, float], steps_per_second: float) -> None:
        """Writes a line to the journal.

        Raises RunFailed after too many non-finite updates in a row, or if nothing is learned.
        """
        # JSON has no word for infinity.
        shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
        images = steps_per_second * self.config.train.batch_size
        counters = {"skipped": int(self.trainer.skipped), "images_per_second": images}
        self.write("train", step, shown | counters | self.spent(step))
        # A compiler that loses the backward pass still gives right losses. Rounding leaves no zero.
        if values["grad_norm"] == 0:
            raise RunFailed(
                f"the gradient norm of step {step} is exactly 0, so nothing is learned: try "
                f"machine.compile: false, or another version of torch than {torch.__version__}",
                step,
            )
        in_a_row = int(self.trainer.skipped_in_a_row)
        if in_a_row >= self.config.train.max_bad_steps:
            found = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
            bad = f"{in_a_row} updates in a row were not finite"
            raise RunFailed(f"{bad}, up to step {step} ({found})", step)

    def _evaluate(self, step: int) -> None:
        """Evaluates the weights that the protocol names, and writes the record and its grid."""
        uses_ema = self.config.evaluation.protocol.weights == "ema"
        model = self.trainer.ema if uses_ema else self.trainer.model
        if not all(bool(torch.isfinite(tensor).all()) for tensor in model.parameters()):
            raise RunFailed(f"weights are not finite after step {step}: lower train.lr", step)
        full = f"the evaluation after step {step} ran out of memory on {self.hardware.name}"
        instead = "let fewer processes share it (machine.gpus), or choose a smaller extractor"
        with ending_without_memory(f"{full}: {instead}", step):
            result = self.evaluator.evaluate_model(model, ranks=self.ranks)
        if result is None:  # this is not rank 0
            return
        grid = self.folder.grid_file(step / self.trainer.steps_per_epoch)
        self.folder.grids.mkdir(exist_ok=True)
        write_image(self.folder.path / grid, result.grid)
        seconds = {
            "sample_seconds": result.sample_seconds,
            "evaluate_seconds": result.evaluate_seconds,
        }
        measured = {"metrics": result.metrics} | self.spent(step) | self.spent_once() | seconds
        record = measured | result.provenance | self.identity() | {"grid": str(grid)}
        self.write("evaluation", step, record, durable=True)
        self.calls.on_evaluation()
