"""One process of one run: weights, EMA, optimizer, and the optimizer step.

Folders, journals and evaluations belong to run.py. Letters: B batch, T tokens, V codes, K heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirai_bench.checkpoint.store import Checkpoint, load_weights
from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Batch, Codes, open_codes
from mirai_bench.foresight import Level, SourceContext, build_foresight
from mirai_bench.model.kernels import linear_cross_entropy
from mirai_bench.model.transformer import ARModel, build_model
from mirai_bench.train.optim import (
    build_optimizer,
    clone_as_ema,
    foresight_can_be_off,
    foresight_weight,
    learning_rate,
    update_ema,
)
from mirai_bench.utils.device import Hardware, dropout_generator
from mirai_bench.utils.errors import UserError


def resolve_hardware(config: RunConfig) -> Hardware:
    """Returns what this process computes the run on. Called once, at the start of a command or of a trial."""
    return Hardware.resolve(
        config.machine.device, config.train.precision, config.machine.compile, config.model.width
    )


def teacher_run(config: RunConfig) -> RunConfig | None:
    """Returns the baseline run whose EMA weights are this run's frozen teacher, or None if it needs none."""
    if not config.foresight.trains_teacher:
        return None
    changes = {"foresight": ForesightConfig(), "seed": config.foresight.teacher_seed}
    return config.model_copy(update=changes)


def dropped_labels(config: RunConfig, step: int, rank: int, world: int) -> np.ndarray:
    """Returns which of this rank's labels become the null class, (B,) bool.

    It is a function of (seed, step) over the global batch, so it is the same for every number of processes.
    """
    size = config.train.batch_size
    draws = np.random.Generator(np.random.Philox(key=[config.seed, step])).random(size)
    start = rank * size // world
    end = (rank + 1) * size // world
    return draws[start:end] < config.model.class_dropout


class Objective(nn.Module):
    """The loss L = NTP + λ · foresight of one batch, and what is trained: the generator and its foresight heads."""

    def __init__(self, model: ARModel, level: Level | None) -> None:
        super().__init__()
        self.model = model
        self.foresight = level

    def forward(self, batch: Batch, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (loss, NTP in nats per token, foresight before λ).

        `weight` is λ. With None foresight is off: its loss is zero, and its heads see no gradient and no decay.
        """
        level = None if weight is None else self.foresight
        tap = None if level is None else level.tap
        states = self.model.trunk(batch.tokens, labels, dropout=True, tap=tap)
        targets = batch.tokens.flatten()
        mean = states.final.new_full(targets.shape, 1 / len(targets), dtype=torch.float32)
        ntp = linear_cross_entropy(states.final.flatten(0, 1), self.model.output.weight, targets, mean)
        if level is None:
            return ntp, ntp, ntp.new_zeros(())
        foresight = level(states, batch, labels)
        return ntp + weight * foresight, ntp, foresight


class Trainer:
    """The state of one run in one process: weights, EMA, optimizer, counters."""

    def __init__(
        self,
        config: RunConfig,
        hardware: Hardware,
        rank: int = 0,
        world: int = 1,
        codes: Codes | None = None,
    ) -> None:
        """`codes` replaces those of the config's data. They must be on the same device."""
        self.config = config
        self.hardware = hardware
        self.rank = rank
        self.world = world
        self.device = hardware.device
        self.codes = codes or open_codes(config, "train", self.device)
        self._check_batch()
        self.steps_per_epoch = self.codes.steps_per_epoch(config.train.batch_size)
        self.total_steps = config.train.epochs * self.steps_per_epoch
        # 1. What is trained, and the EMA that follows it.
        self.model = build_model(config).to(self.device)
        self.ema = clone_as_ema(self.model)
        context = SourceContext(config, self.ema, self.codes, self._load_frozen_teacher, self.device)
        self.objective = Objective(self.model, build_foresight(context))
        self.optimizer = build_optimizer(config.train, self.objective.parameters())
        # 2. The forward pass, distributed and compiled if the hardware calls for it.
        self.forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = self.objective
        if world > 1:
            # Gradients are reduced bucket by bucket during the backward pass. Without the view each is held twice.
            self.forward = nn.parallel.DistributedDataParallel(
                self.objective,
                find_unused_parameters=foresight_can_be_off(config.foresight),
                gradient_as_bucket_view=True,
            )
        if hardware.compile:
            # With `fallback_random` a compiled run draws the same dropout masks as an eager one.
            self.forward = torch.compile(self.forward, dynamic=False, options={"fallback_random": True})
        # 3. Randomness and counters. Seeding the device's own generator is 0.2 ms faster per step than
        #    torch.manual_seed, which also formats the call stack for each device type that is not in use.
        self.dropout_generator = dropout_generator(self.device)
        self.skipped = torch.zeros((), device=self.device)
        self.skipped_in_a_row = torch.zeros((), device=self.device)

    def _check_batch(self) -> None:
        size = self.config.train.batch_size
        parts = self.config.machine.micro_batches
        if size > self.codes.num_images:
            raise UserError(
                f"train.batch_size is {size}, but the training split has {self.codes.num_images} images: write less"
            )
        if size % (self.world * parts):
            raise UserError(
                f"train.batch_size is {size}, which {self.world} processes x machine.micro_batches = {self.world} x "
                f"{parts} does not divide"
            )

    def _load_frozen_teacher(self) -> ARModel:
        teacher_config = teacher_run(self.config)
        path = self.config.foresight.teacher if teacher_config is None else teacher_config.run_path
        assert path is not None, "the source is frozen"
        teacher = build_model(self.config)
        try:
            teacher.load_state_dict(load_weights(path))
        except RuntimeError as error:
            first_difference = str(error).splitlines()[1].strip()
            raise UserError(
                f"foresight.teacher {path} is not a model of this run's shape: {first_difference}"
            ) from None
        return teacher.requires_grad_(False).to(self.device)

    def step(self, step: int) -> dict[str, Tensor | float]:
        """Computes optimizer step number `step` (from 0) and returns its losses, λ, learning rate and gradient norm.

        A non-finite update is skipped and counted. Nothing here waits for the device.
        """
        config = self.config
        progress = step / self.total_steps
        weight = foresight_weight(config.foresight, progress)
        lr = learning_rate(config.train, progress, 1 / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = self._accumulate(step, weight)
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), config.train.clip)
        # The norm is that of the reduced gradients, so all ranks agree. Where `found_inf` is 1, the fused kernel of
        # AdamW leaves weights and moments unchanged.
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad
        update_ema(self.ema, self.model, config.train.ema_decay)
        return {
            "loss": losses[0],
            "ntp": losses[1],
            "foresight": losses[2],
            "foresight_weight": weight,
            "grad_norm": norm,
            "lr": lr,
        }

    def _accumulate(self, step: int, weight: float) -> Tensor:
        """Accumulates the gradients of the global batch over micro-batches and ranks.

        Returns (3,): mean loss, NTP and foresight of this rank.
        """
        num_parts = self.config.machine.micro_batches
        self._seed_dropout(step)
        # λ is a tensor, because a compiler would make one graph for each Python number.
        weight_tensor = torch.tensor(weight) if weight > 0 else None
        total = torch.zeros(3, device=self.device)
        for index, (part, labels) in enumerate(self._micro_batches(step)):
            is_last = index == num_parts - 1
            with nullcontext() if self.world == 1 or is_last else self.forward.no_sync():  # type: ignore[attr-defined]
                with torch.autocast(self.hardware.kind, torch.bfloat16, enabled=self.hardware.half):
                    losses = self.forward(part, labels, weight_tensor)
                (losses[0] / num_parts).backward()
            total += torch.stack([loss.detach() for loss in losses]) / num_parts
        return total

    def _seed_dropout(self, step: int) -> None:
        """Seeds dropout by (seed, step, rank), so that a resumed run draws the same masks."""
        sequence = np.random.SeedSequence([self.config.seed, step, self.rank])
        self.dropout_generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def _micro_batches(self, step: int) -> Iterator[tuple[Batch, Tensor]]:
        """Yields this rank's micro-batches of a step, each with its labels after label dropout."""
        config = self.config
        batch = self.codes.batch(
            seed=config.seed, step=step, rank=self.rank, world=self.world, batch_size=config.train.batch_size
        )
        dropped = torch.from_numpy(dropped_labels(config, step, self.rank, self.world)).to(self.device)
        labels = batch.labels.masked_fill(dropped, config.data.classes)
        num_parts = config.machine.micro_batches
        yield from zip(batch.split(num_parts), labels.chunk(num_parts), strict=True)

    def checkpoint(self, counters: dict[str, Any]) -> Checkpoint:
        """Returns the state of the run. `counters` is stored with it."""
        parameters = dict(self.objective.named_parameters())
        moments = {}
        for name, parameter in parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{key}.{name}"] = value
        weights = {name.removeprefix("model."): parameter.detach() for name, parameter in parameters.items()}
        skipped = {"skipped": self.skipped.item(), "skipped_in_a_row": self.skipped_in_a_row.item()}
        tensors = {"model": weights, "ema": dict(self.ema.state_dict()), "optimizer": moments}
        return Checkpoint(tensors, counters | skipped)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores the state of a checkpoint."""
        weights = {}
        for name, tensor in checkpoint.tensors["model"].items():
            weights[name if name.startswith("foresight.") else f"model.{name}"] = tensor
        self.objective.load_state_dict(weights)
        self.ema.load_state_dict(checkpoint.tensors["ema"])
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in checkpoint.tensors["optimizer"].items():
            moment, name = key.split(".", 1)
            moments.setdefault(name, {})[moment] = tensor.to(self.device)
        for name, parameter in self.objective.named_parameters():
            if name in moments:
                self.optimizer.state[parameter] = moments[name]
        self.skipped.fill_(checkpoint.state["skipped"])
        self.skipped_in_a_row.fill_(checkpoint.state["skipped_in_a_row"])
