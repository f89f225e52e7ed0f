"""One run: train, evaluate along the way, leave checkpoints and a journal. The same command again goes on where it stopped.

    python -m mirai_bench.train CONFIG

Order of data, dropped labels, dropout and samples are functions of (seed, step), so a resumed run equals an uninterrupted one bit for bit
and no random state is stored. Letters: B batch, T tokens, V codes, K heads.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor, nn

from . import provenance
from .checkpoint import Checkpoint, load_latest, load_weights, save_checkpoint
from .cli import progress, run, say
from .compose import load_run
from .config import Foresight, RunConfig
from .data.codes import Batch, Codes, open_codes
from .errors import UserError
from .flops import training_flops
from .foresight import Level, Parts, build_foresight
from .journal import Journal, write_atomic
from .model import ARModel, build_model
from .optim import build_optimizer, clone_as_ema, foresight_weight, learning_rate, update_ema


class RunFailed(Exception):
    """The run cannot go on; failed.json says why."""

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(reason)
        self.step = step


def resolve_device(config: RunConfig) -> torch.device:
    name = config.machine.device
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device is cuda, but no CUDA device is visible: write device: auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(config: RunConfig, device: torch.device) -> str:
    """auto: bf16 on a GPU, and on a CPU with AMX for widths from 256 (measured: narrower models are slower with it)."""
    if config.train.precision != "auto":
        return config.train.precision
    cpuinfo = Path("/proc/cpuinfo")
    amx = cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text()
    return "bf16" if device.type == "cuda" or (amx and config.model.width >= 256) else "fp32"


def run_dir_of(config: RunConfig) -> Path:
    return config.machine.runs / config.fingerprint()


def teacher_run(config: RunConfig) -> RunConfig | None:
    """The baseline run whose EMA weights are this run's frozen teacher; None where it needs none."""
    f = config.foresight
    if f.level != "internal" or f.source != "frozen" or f.teacher is not None:
        return None
    return config.model_copy(update={"foresight": Foresight(), "seed": f.teacher_seed})


def dropped_labels(config: RunConfig, step: int, rank: int, world: int) -> np.ndarray:
    """(B,) bool of this rank: which labels become the null class; a function of (seed, step) over the global batch."""
    size = config.train.batch_size
    draws = np.random.Generator(np.random.Philox(key=[config.seed, step])).random(size)
    return (draws < config.model.class_dropout)[rank * size // world : (rank + 1) * size // world]


class Objective(nn.Module):
    """L = NTP + λ·foresight of one batch. What is trained: the generator and its foresight heads."""

    def __init__(self, model: ARModel, level: Level | None) -> None:
        super().__init__()
        self.model, self.foresight = model, level

    def forward(self, batch: Batch, labels: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """→ (loss, NTP in nats per token, foresight before λ; zero while it is off, so that its heads see no gradient and no decay)."""
        on = self.foresight is not None and weight > 0
        output = self.model(batch.tokens, labels, dropout=True, tap=self.foresight.tap if on else None)
        ntp = F.cross_entropy(output.logits.flatten(0, 1).float(), batch.tokens.flatten())
        if not on:
            return ntp, ntp, ntp.new_zeros(())
        foresight = self.foresight(output, batch, labels)
        return ntp + weight * foresight, ntp, foresight


class Trainer:
    """The state of one run in one process: weights, EMA, optimizer, counters."""

    def __init__(self, config: RunConfig, rank: int = 0, world: int = 1) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.device = resolve_device(config)
        self.precision = resolve_precision(config, self.device)
        self.codes: Codes = open_codes(config, "train", self.device)
        if config.train.batch_size > self.codes.num_images:
            raise UserError(
                f"train.batch_size is {config.train.batch_size}, but the training split has {self.codes.num_images} images: write less"
            )
        self.steps_per_epoch = self.codes.steps_per_epoch(config.train.batch_size)
        self.total_steps = config.train.epochs * self.steps_per_epoch
        model = build_model(config).to(self.device)
        self.ema = clone_as_ema(model)
        parts = Parts(config, self.ema, self.codes, self._frozen_teacher, self.device)
        self.objective = Objective(model, build_foresight(config, parts))
        self.optimizer = build_optimizer(config.train, self.objective.parameters())
        self.forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = self.objective
        if world > 1:
            # heads without gradient during warm-up are parameters that a step does not use
            self.forward = nn.parallel.DistributedDataParallel(self.objective, find_unused_parameters=config.foresight.warmup > 0)
        if config.machine.compile:
            self.forward = torch.compile(self.forward)
        self.skipped = torch.zeros((), device=self.device)
        self.skipped_in_a_row = torch.zeros((), device=self.device)

    @property
    def model(self) -> ARModel:
        return self.objective.model

    def _frozen_teacher(self) -> ARModel:
        teacher_config = teacher_run(self.config)
        path = self.config.foresight.teacher or run_dir_of(teacher_config)
        teacher = build_model(self.config)
        try:
            teacher.load_state_dict(load_weights(path))
        except RuntimeError as error:
            raise UserError(
                f"foresight.teacher {path} is not a model of this run's shape: {str(error).splitlines()[1].strip()}"
            ) from None
        return teacher.requires_grad_(False).to(self.device)

    def step(self, step: int) -> dict[str, Tensor | float]:
        """Optimizer step number `step` (from 0) → its losses, λ, learning rate and gradient norm. A non-finite update is skipped and counted."""
        c, progress_ = self.config, step / self.total_steps
        weight, lr = foresight_weight(c.foresight, progress_), learning_rate(c.train, progress_, 1 / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = self._accumulate(step, weight)
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), c.train.clip)
        bad = (~torch.isfinite(norm)).float()  # of the reduced gradients, so that all ranks agree
        self.optimizer.found_inf = (
            bad  # the fused kernel leaves weights and moments alone where this is 1; no host synchronisation
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad
        update_ema(self.ema, self.model, c.train.ema_decay)
        return {
            "loss": losses[0],
            "ntp": losses[1],
            "foresight": losses[2],
            "foresight_weight": weight,
            "grad_norm": norm,
            "lr": lr,
        }

    def _accumulate(self, step: int, weight: float) -> Tensor:
        """Gradients of the global batch over micro-batches and ranks → (3,) mean loss, NTP, foresight of this rank."""
        c, parts = self.config, self.config.machine.micro_batches
        batch = self.codes.batch(seed=c.seed, step=step, rank=self.rank, world=self.world, batch_size=c.train.batch_size)
        dropped = torch.from_numpy(dropped_labels(c, step, self.rank, self.world)).to(self.device)
        labels = batch.labels.masked_fill(dropped, c.data.classes)
        torch.manual_seed(
            int(np.random.SeedSequence([c.seed, step, self.rank]).generate_state(1, np.uint64)[0] >> 1)
        )  # dropout masks
        total = torch.zeros(3, device=self.device)
        for index, (part, part_labels) in enumerate(zip(batch.split(parts), labels.chunk(parts), strict=True)):
            last = index == parts - 1
            with nullcontext() if self.world == 1 or last else self.forward.no_sync():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    losses = self.forward(part, part_labels, weight)
                (losses[0] / parts).backward()
            total += torch.stack([loss.detach() for loss in losses]) / parts
        return total

    def checkpoint(self, counters: dict[str, Any]) -> Checkpoint:
        names = [name for name, _ in self.objective.named_parameters()]
        parameters = dict(self.objective.named_parameters())
        moments = {
            f"{key}.{name}": value for name in names for key, value in self.optimizer.state.get(parameters[name], {}).items()
        }
        model = {name.removeprefix("model."): parameter.detach() for name, parameter in parameters.items()}
        counters = counters | {"skipped": self.skipped.item(), "skipped_in_a_row": self.skipped_in_a_row.item()}
        return Checkpoint({"model": model, "ema": dict(self.ema.state_dict()), "optimizer": moments}, counters)

    def restore(self, checkpoint: Checkpoint) -> None:
        weights = checkpoint.tensors["model"]
        self.objective.load_state_dict(
            {name if name.startswith("foresight.") else f"model.{name}": t for name, t in weights.items()}
        )
        self.ema.load_state_dict(checkpoint.tensors["ema"])
        for name, parameter in self.objective.named_parameters():
            kept = {
                key.split(".", 1)[0]: t.to(self.device)
                for key, t in checkpoint.tensors["optimizer"].items()
                if key.split(".", 1)[1] == name
            }
            if kept:
                self.optimizer.state[parameter] = kept
        self.skipped.fill_(checkpoint.state["skipped"])
        self.skipped_in_a_row.fill_(checkpoint.state["skipped_in_a_row"])


class Run:
    """A trainer with its folder: journal, checkpoints, evaluations. Only rank 0 writes."""

    def __init__(self, config: RunConfig, run_dir: Path, on_evaluation: Callable[[], None]) -> None:
        self.config, self.run_dir, self.on_evaluation = config, run_dir, on_evaluation
        group = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if group else (0, 1)
        self.trainer = Trainer(config, rank, world)
        self.leads = rank == 0
        self.journal = Journal(run_dir / "journal.jsonl")
        self.seconds = 0.0  # of training alone: evaluation and checkpoints do not count
        self.stopping = False

    def identity(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self.trainer.device.type == "cuda" else provenance.cpu_name()
        return {
            "fingerprint": self.config.fingerprint(), "profile": self.config.profile, "seed": self.config.seed,
            "config": self.config.model_dump(mode="json", exclude={"machine": {"runs", "data"}}),
            "git": provenance.git_state(), "versions": provenance.versions(), "device": device, "precision": self.trainer.precision,
            "workers": self.trainer.world, "parameters": sum(p.numel() for p in self.trainer.model.parameters()),
        }  # fmt: skip

    def write(self, kind: str, step: int, fields: dict[str, Any], durable: bool = False) -> None:
        if self.leads:
            epoch = step / self.trainer.steps_per_epoch
            self.journal.append({"kind": kind, "time": time.time(), "step": step, "epoch": epoch} | fields, durable=durable)

    def go(self) -> None:
        trainer, config = self.trainer, self.config
        start = self._resume()
        evaluations = {round(epoch * trainer.steps_per_epoch) for epoch in config.evaluation.at} | {trainer.total_steps}
        saves = set(range(0, trainer.total_steps, max(1, round(config.machine.checkpoint_every * trainer.steps_per_epoch))))
        if start in evaluations and not self.journal.has("evaluation", start):
            self._evaluate(start)
        clock, logged = time.perf_counter(), start
        steps = range(start, trainer.total_steps)
        for step in progress(steps, self.run_dir.name, trainer.total_steps, "steps", start):
            values = trainer.step(step)
            done = step + 1
            if done % config.machine.log_every == 0 or done in evaluations:
                values = {name: float(value) for name, value in values.items()}  # the only host synchronisation of the loop
                clock, elapsed = time.perf_counter(), time.perf_counter() - clock
                self.seconds += elapsed
                self._log(done, values, (done - logged) / elapsed)
                logged = done
            if done in evaluations or done in saves or self.stopping:
                self.seconds += time.perf_counter() - clock
                self._save(done)
                if self.stopping:
                    raise KeyboardInterrupt
                if done in evaluations:
                    self._evaluate(done)
                clock = time.perf_counter()
        if self.leads:
            self.write("end", trainer.total_steps, {"train_seconds": self.seconds}, durable=True)
            write_atomic(self.run_dir / "done.json", json.dumps({"step": trainer.total_steps, "seconds": self.seconds}))
        self.on_evaluation()

    def _resume(self) -> int:
        checkpoint = load_latest(self.run_dir)
        start = checkpoint.state["step"] if checkpoint else 0
        if checkpoint:
            self.trainer.restore(checkpoint)
            self.seconds = checkpoint.state["train_seconds"]
        if self.leads:
            self.journal.rewind(start)
            write_atomic(self.run_dir / "config.json", self.config.model_dump_json(indent=2))
            (self.run_dir / "failed.json").unlink(missing_ok=True)
        self.write("start", start, self.identity(), durable=True)
        return start

    def _log(self, step: int, values: dict[str, float], steps_per_second: float) -> None:
        trainer = self.trainer
        in_a_row = int(trainer.skipped_in_a_row)
        extra = {
            "skipped": int(trainer.skipped),
            "images_per_second": steps_per_second * self.config.train.batch_size,
            "train_seconds": self.seconds,
            "train_flops": training_flops(self.config, step, trainer.total_steps),
        }
        self.write("train", step, {name: value if math.isfinite(value) else None for name, value in values.items()} | extra)
        if in_a_row >= self.config.train.max_bad_steps:
            found = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
            raise RunFailed(f"{in_a_row} updates in a row were not finite, up to step {step} ({found})", step)

    def _save(self, step: int) -> None:
        if self.leads:
            save_checkpoint(
                self.run_dir, step, self.trainer.checkpoint({"train_seconds": self.seconds}), self.config.machine.keep_checkpoints
            )

    def _evaluate(self, step: int) -> None:
        if not self.leads:
            return
        from PIL import Image

        from .evaluate import evaluate_model

        model = self.trainer.ema if self.config.evaluation.protocol.weights == "ema" else self.trainer.model
        result = evaluate_model(model, self.config, self.trainer.device)
        grid = Path("samples") / f"epoch_{step / self.trainer.steps_per_epoch:07.2f}.png"
        (self.run_dir / grid).parent.mkdir(exist_ok=True)
        Image.fromarray(result.grid).save(self.run_dir / grid)
        spent = {
            "train_seconds": self.seconds,
            "train_flops": training_flops(self.config, step, self.trainer.total_steps),
            "sample_seconds": result.sample_seconds,
            "evaluate_seconds": result.evaluate_seconds,
        }
        record = {"metrics": result.metrics} | spent | result.provenance | self.identity() | {"grid": str(grid)}
        self.write("evaluation", step, record, durable=True)
        self.on_evaluation()


def train(config: RunConfig, run_dir: Path, *, on_evaluation: Callable[[], None] = lambda: None, wait: bool = False) -> None:
    """Trains to the end, from the newest checkpoint; a finished run returns at once. A frozen teacher's run is trained first if it is missing.

    `on_evaluation` is called after each evaluation and at the end. Raises UserError where another process trains this run (unless
    `wait`, which waits for it), RunFailed where the run cannot go on.
    """
    if (run_dir / "done.json").exists():
        return
    teacher = teacher_run(config)
    if teacher is not None:
        train(teacher, run_dir_of(teacher), wait=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    lock = (
        nullcontext()
        if distributed and torch.distributed.get_rank()
        else FileLock(run_dir / "run.lock", timeout=-1 if wait else 0)
    )
    try:
        with lock:
            if not (run_dir / "done.json").exists():
                _train_locked(config, run_dir, on_evaluation)
    except Timeout:
        raise UserError(f"{run_dir} is being trained by another process") from None


def _train_locked(config: RunConfig, run_dir: Path, on_evaluation: Callable[[], None]) -> None:
    torch.set_num_threads(config.machine.threads)
    work = Run(config, run_dir, on_evaluation)
    handler = None
    try:
        handler = signal.signal(signal.SIGTERM, lambda *_: setattr(work, "stopping", True))
    except ValueError:  # not the main thread: whoever owns that decides about signals
        handler = None
    try:
        work.go()
    except RunFailed as error:
        write_atomic(run_dir / "failed.json", json.dumps({"reason": str(error), "step": error.step}))
        on_evaluation()
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.train",
        description="Trains one run; the same command again resumes it.",
        epilog="example: python -m mirai_bench.train digits --set foresight.level=internal --set train.epochs=2",
    )
    parser.add_argument("config", type=Path, help="a run file (YAML), a run's config.json, or the name of a profile")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="settings")
    args = parser.parse_args(argv)
    config = load_run(args.config, args.settings)
    run_dir = run_dir_of(config)
    try:
        train(config, run_dir)
    except RunFailed as error:
        say(f"failed: {error}")
        return 1
    print(run_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
