"""One process of one run: weights, EMA, optimizer, and the optimizer step.

Folders, journals and evaluations belong to loop.py. Letters: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirai_bench.checkpoint.store import HEADS, Checkpoint, load_weights
from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.regularizer import NoRegularizer
from mirai_bench.config.run_config import RunConfig, SeedsConfig
from mirai_bench.data.codes import Codes, open_codes
from mirai_bench.data.read_ahead import Batches
from mirai_bench.foresight import SourceContext, build_foresight
from mirai_bench.model.transformer import ARModel, build_model
from mirai_bench.regularizer.registry import build_regularizer
from mirai_bench.regularizer.regularizer import Moment
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train import optim
from mirai_bench.train.compiled import compile_forward
from mirai_bench.train.objective import Losses, Objective
from mirai_bench.utils.device import Hardware, dropout_generator, send
from mirai_bench.utils.errors import UserError

BUCKET_MIB = 256  # of the gradients that processes reduce at a time; torch's 25 would be many


def resolve_hardware(config: RunConfig) -> Hardware:
    """Returns what this process computes the run on. Called when a command or a trial starts."""
    machine = config.machine
    width = config.model.width
    return Hardware.resolve(machine.device, config.train.precision, machine.compile, width)


def teacher_run(config: RunConfig) -> RunConfig | None:
    """Returns the baseline run whose EMA weights are this run's frozen teacher.

    Returns None if the run needs no teacher, or names the weights of one.
    """
    if not config.foresight.trains_teacher:
        return None
    changes: dict[str, Any] = {"foresight": ForesightConfig(), "regularizer": NoRegularizer()}
    changes |= {"seed": config.foresight.teacher_seed, "seeds": SeedsConfig()}
    return config.model_copy(update=changes)


def dropped_labels(config: RunConfig, step: int, rank: int, world: int) -> np.ndarray:
    """Returns which of this rank's labels become the null class, (B,) bool.

    It is a function of (seed, step) over the global batch, so it is the same for every number of
    processes.
    """
    size = config.train.batch_size
    # Philox is keyed by the pair, so that no step depends on how many were drawn before it.
    draws = np.random.Generator(np.random.Philox(key=[config.seed_of("dropout"), step])).random(size)
    return draws[rank * size // world : (rank + 1) * size // world] < config.model.class_dropout


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
        size = config.train.batch_size
        parts = config.machine.micro_batches
        self.steps_per_epoch = self.codes.steps_per_epoch(size)  # UserError: more than there is
        self.total_steps = config.train.epochs * self.steps_per_epoch
        # The config was checked for machine.workers, but torchrun may start another number.
        if size % (world * parts):
            raise UserError(
                f"train.batch_size is {size}, which {world} processes x machine.micro_batches = "
                f"{world} x {parts} does not divide"
            )
        try:
            config.check_groups(world * parts)
        except ValueError as error:
            raise UserError(str(error)) from None
        # 1. What is trained, and the EMA that follows it.
        self.model = build_model(config).to(self.device)
        self.ema = optim.clone_as_ema(self.model)
        context = SourceContext(config, self.ema, self.codes, self._load_teacher, self.device)
        self.objective = Objective(self.model, build_foresight(context), build_regularizer(context))
        self.regularizer = self.objective.regularizer
        self.optimizer = optim.build_optimizer(config.train, self.objective.parameters())
        # 2. The forward pass, compiled and distributed if the hardware calls for it.
        self.forward: Callable[..., Losses] = self.objective
        if hardware.compile:
            # A recorded backward pass writes the gradients to its own memory, where neither another
            # micro-batch nor another process can add to them.
            alone = world == 1 and parts == 1
            self.forward = compile_forward(self.objective, graphs=hardware.graphs and alone)
        if world > 1:
            # Gradients are reduced bucket by bucket during the backward pass. Without the view each
            # is held twice. The only buffers are tables, which are the same everywhere.
            self.forward = nn.parallel.DistributedDataParallel(
                self.forward,
                broadcast_buffers=False,
                bucket_cap_mb=BUCKET_MIB,
                find_unused_parameters=optim.foresight_can_be_off(config.foresight),
                gradient_as_bucket_view=True,
            )
        # 3. The data. The next batch is read while a step is computed.
        which = {"seed": config.seed_of("order"), "rank": rank, "world": world, "batch_size": size}
        place = partial(self.codes.place, **which)
        self.batches = Batches(self.codes, self.total_steps, place, self._needs_pixels)
        # 4. Randomness and counters. Seeding the device's own generator is 0.2 ms faster per step
        #    than torch.manual_seed, which also formats the call stack for each device type that is
        #    not in use. The counters are tensors, so that counting does not wait for the device.
        self.dropout_generator = dropout_generator(self.device)
        self.skipped = torch.zeros((), device=self.device)
        self.skipped_in_a_row = torch.zeros((), device=self.device)

    def one_off_seconds(self) -> float | None:
        """Returns how long it took to make the run's teacher, or None if that is not known."""
        teacher = teacher_run(self.config)
        if teacher is not None:
            return RunFolder(teacher.run_path).training_seconds()
        level = self.objective.foresight
        return 0.0 if level is None else level.one_off_seconds

    def _load_teacher(self) -> ARModel:
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
        """Computes optimizer step number `step` (from 0).

        Returns its losses, λ, learning rate and gradient norm. A non-finite update is skipped and
        counted. Nothing here waits for the device.
        """
        # 1. Schedules.
        config = self.config
        progress = step / self.total_steps
        weight = optim.foresight_weight(config.foresight, progress)
        lr = self.regularizer.learning_rate(progress, 1 / self.total_steps)
        if lr is None:
            lr = optim.learning_rate(config.train, progress, 1 / self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # 2. Gradients. As in the official code, the norm includes those of the foresight heads.
        losses = self._accumulate(step, weight)
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), config.train.clip)
        # 3. The update. The norm is that of the reduced gradients, so all ranks agree. If
        #    `found_inf` is 1, the fused kernel of AdamW leaves weights and moments unchanged.
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * bad
        optim.update_ema(self.ema, self.model, config.train.ema_decay)
        loss, ntp, foresight, regularizer = losses
        values = {"loss": loss, "ntp": ntp, "foresight": foresight}
        if config.regularizer.name != "none":
            values |= {"regularizer": regularizer, "regularizer_weight": self.regularizer.weight}
        return values | {"foresight_weight": weight, "grad_norm": norm, "lr": lr}

    def _needs_pixels(self, step: int) -> bool:
        """Tells whether the loss of a step looks at pixels."""
        level = self.objective.foresight
        weight = optim.foresight_weight(self.config.foresight, step / self.total_steps)
        return level is not None and level.needs_pixels and weight > 0

    def _accumulate(self, step: int, weight: float) -> Tensor:
        """Accumulates the gradients of the global batch over micro-batches and ranks.

        Returns (4,): mean loss, NTP, foresight and regularizer of this rank.
        """
        # 1. This rank's share of the batch, B images, and its labels after label dropout.
        config = self.config
        ranks = {"rank": self.rank, "world": self.world}
        images = self.batches.at(step)
        moment = Moment(config.seed_of("dropout"), step, step / self.total_steps, **ranks)
        prepared = self.regularizer.prepare(images, moment)
        dropped = send(dropped_labels(config, step, **ranks), self.device)  # (B,)
        labels = prepared.batch.labels.masked_fill(dropped, config.data.classes)  # the null class
        # 2. The dropout masks: a function of (seed, step, rank), so that a resumed run draws the
        #    same. The shift makes the unsigned 64-bit number fit in a signed one.
        sequence = np.random.SeedSequence([config.seed_of("dropout"), step, self.rank])
        self.dropout_generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
        # 3. The gradients. λ is a tensor, because a compiler makes one graph per Python number, and
        #    on the device, because a CUDA graph reads nothing else.
        penalty = self.regularizer.weight
        weights = send(np.array([weight, penalty], np.float32), self.device)
        weight_tensor = weights[0] if weight > 0 else None
        penalty_tensor = weights[1] if penalty > 0 else None
        total = torch.zeros(4, device=self.device)
        num_parts = config.machine.micro_batches
        parts = zip(prepared.split(num_parts), labels.chunk(num_parts), strict=True)
        for index, ((part, extra), part_labels) in enumerate(parts, 1):
            # DDP reduces gradients in every backward pass, unless told to wait for the last one.
            wait = self.world > 1 and index < num_parts
            with self.forward.no_sync() if wait else nullcontext():  # type: ignore[attr-defined]
                with torch.autocast(self.hardware.kind, torch.bfloat16, enabled=self.hardware.half):
                    losses = self.forward(part, part_labels, weight_tensor, extra, penalty_tensor)
                (losses[0] / num_parts).backward()
            total += torch.stack([loss.detach() for loss in losses]) / num_parts
        return total

    def student_weights(self) -> dict[str, Tensor]:
        """Returns the trained weights and the heads, which are under the prefixes HEADS."""
        # Without the prefix a checkpoint has LlamaGen's names, and the heads have their own.
        parameters = self.objective.named_parameters()
        return {name.removeprefix("model."): parameter.detach() for name, parameter in parameters}

    def load(self, student: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        """Loads trained weights, as `student_weights` returns them, and their EMA."""
        weights = {}
        for name, tensor in student.items():
            weights[name if name.startswith(HEADS) else f"model.{name}"] = tensor
        self.objective.load_state_dict(weights)
        self.ema.load_state_dict(ema)

    def checkpoint(self, counters: dict[str, Any]) -> Checkpoint:
        """Returns the state of the run. `counters` is stored with it."""
        moments = {}
        for name, parameter in self.objective.named_parameters():
            # Heads that have not been used yet have no moments.
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{key}.{name}"] = value
        skipped = {"skipped": self.skipped.item(), "skipped_in_a_row": self.skipped_in_a_row.item()}
        tensors = {
            "model": self.student_weights(),
            "ema": dict(self.ema.state_dict()),
            "optimizer": moments,
        }
        return Checkpoint(tensors, counters | skipped)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores the state of a checkpoint."""
        self.load(checkpoint.tensors["model"], checkpoint.tensors["ema"])
        parameters = dict(self.objective.named_parameters())
        for key, tensor in checkpoint.tensors["optimizer"].items():
            moment, name = key.split(".", 1)
            self.optimizer.state[parameters[name]][moment] = tensor.to(self.device)
        self.skipped.fill_(checkpoint.state["skipped"])
        self.skipped_in_a_row.fill_(checkpoint.state["skipped_in_a_row"])
