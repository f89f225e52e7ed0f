"""One process of one run: weights, EMA, optimizer, and the optimizer step. Folders, journals and evaluations are train.py's.

Letters: B batch, T tokens, V codes, K heads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirai_bench.checkpoint.store import Checkpoint, load_weights
from mirai_bench.config.foresight import Foresight
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Batch, Codes, open_codes
from mirai_bench.foresight import build_foresight
from mirai_bench.foresight.level import Level
from mirai_bench.foresight.source import Parts
from mirai_bench.model.cross_entropy import linear_cross_entropy
from mirai_bench.model.transformer import ARModel, build_model
from mirai_bench.train.optim import (
    build_optimizer,
    clone_as_ema,
    foresight_rests,
    foresight_weight,
    learning_rate,
    update_ema,
)
from mirai_bench.utils.device import default_generator_of, resolve_compile, resolve_device, resolve_precision
from mirai_bench.utils.errors import UserError


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

    def forward(self, batch: Batch, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """→ (loss, NTP in nats per token, foresight before λ; zero while it is off, so that its heads see no gradient and no decay)."""
        on = self.foresight is not None and weight is not None
        states = self.model.trunk(batch.tokens, labels, dropout=True, tap=self.foresight.tap if on else None)
        targets = batch.tokens.flatten()
        mean = states.final.new_full(targets.shape, 1 / len(targets), dtype=torch.float32)
        ntp = linear_cross_entropy(states.final.flatten(0, 1), self.model.output.weight, targets, mean)
        if not on:
            return ntp, ntp, ntp.new_zeros(())
        foresight = self.foresight(states, batch, labels)
        return ntp + weight * foresight, ntp, foresight


class Trainer:
    """The state of one run in one process: weights, EMA, optimizer, counters."""

    def __init__(self, config: RunConfig, rank: int = 0, world: int = 1, codes: Codes | None = None) -> None:
        """`codes` stand for those of the config's data, on the same device."""
        self.config, self.rank, self.world = config, rank, world
        self.device = resolve_device(config)
        self.precision = resolve_precision(config, self.device)
        self.codes: Codes = codes or open_codes(config, "train", self.device)
        if config.train.batch_size > self.codes.num_images:
            raise UserError(
                f"train.batch_size is {config.train.batch_size}, but the training split has {self.codes.num_images} images: write less"
            )
        if config.train.batch_size % (world * config.machine.micro_batches):
            raise UserError(
                f"train.batch_size is {config.train.batch_size}, which {world} processes x machine.micro_batches = "
                f"{world} x {config.machine.micro_batches} does not divide"
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
            # Gradients are reduced bucket by bucket while backward goes on, and live in the buckets: without the view, each is held twice.
            self.forward = nn.parallel.DistributedDataParallel(
                self.objective,
                find_unused_parameters=foresight_rests(config.foresight),
                gradient_as_bucket_view=True,
            )
        self.compiled = resolve_compile(config, self.device)
        if self.compiled:
            # the compiler's own dropout masks would be other masks: compiled or not, a run has the same numbers but for rounding
            self.forward = torch.compile(self.forward, dynamic=False, options={"fallback_random": True})
        # the device's own generator: torch.manual_seed also formats the call stack for each device type that is not in use (0.2 ms)
        self.dropout_generator = default_generator_of(self.device)
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
        weight, lr = (
            foresight_weight(c.foresight, progress_),
            learning_rate(c.train, progress_, 1 / self.total_steps),
        )
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
        batch = self.codes.batch(
            seed=c.seed, step=step, rank=self.rank, world=self.world, batch_size=c.train.batch_size
        )
        dropped = torch.from_numpy(dropped_labels(c, step, self.rank, self.world)).to(self.device)
        labels = batch.labels.masked_fill(dropped, c.data.classes)
        masks = np.random.SeedSequence([c.seed, step, self.rank]).generate_state(1, np.uint64)[0] >> 1
        self.dropout_generator.manual_seed(int(masks))
        scale = (
            torch.tensor(weight) if weight > 0 else None
        )  # no number: a compiler would make a graph of each
        total = torch.zeros(3, device=self.device)
        for index, (part, part_labels) in enumerate(
            zip(batch.split(parts), labels.chunk(parts), strict=True)
        ):
            last = index == parts - 1
            with nullcontext() if self.world == 1 or last else self.forward.no_sync():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    losses = self.forward(part, part_labels, scale)
                (losses[0] / parts).backward()
            total += torch.stack([loss.detach() for loss in losses]) / parts
        return total

    def checkpoint(self, counters: dict[str, Any]) -> Checkpoint:
        names = [name for name, _ in self.objective.named_parameters()]
        parameters = dict(self.objective.named_parameters())
        moments = {
            f"{key}.{name}": value
            for name in names
            for key, value in self.optimizer.state.get(parameters[name], {}).items()
        }
        model = {name.removeprefix("model."): parameter.detach() for name, parameter in parameters.items()}
        counters = counters | {
            "skipped": self.skipped.item(),
            "skipped_in_a_row": self.skipped_in_a_row.item(),
        }
        return Checkpoint(
            {"model": model, "ema": dict(self.ema.state_dict()), "optimizer": moments}, counters
        )

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
