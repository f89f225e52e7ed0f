"""Training of vq_small.

The loss is L2 + perceptual + commitment, and an adversarial term if the recipe asks for it. The
codebook is a moving average, and its dead codes are replaced. Everything random is a function of
(seed, step), so that a resumed training equals an uninterrupted one bit for bit. Letters: B batch; n
= B·H·W rows of a batch; Z code width; V codes.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.datasets import Dataset, open_dataset
from mirai_bench.data.images.vgg16 import read_weights, weights_sha256
from mirai_bench.data.tokenizers.network import ResBlock
from mirai_bench.data.tokenizers.vq_small import SmallVQ, VQSmall, read_model
from mirai_bench.tokenizer.adversary import Adversary, length_ratio
from mirai_bench.tokenizer.batches import Batches
from mirai_bench.tokenizer.codebook import Codebook
from mirai_bench.tokenizer.perceptual import Perceptual
from mirai_bench.tokenizer.quality import measure, record_file
from mirai_bench.tokenizer.recipe import Recipe
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import device_name
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json
from mirai_bench.utils.hashing import digest, file_sha256
from mirai_bench.utils.tensors import SHA256, content_sha256, read_tensors, write_safetensors, write_torch

log = logging.getLogger(__name__)

STEPS_PER_REBIRTH = 20
STEPS_PER_LOOK = 50  # after as many steps the losses are read, for which the host waits


class Training:
    """Model, optimizer and codebook of one training. Nothing else decides what a step computes."""

    def __init__(
        self,
        config: RunConfig,
        recipe: Recipe,
        vgg: dict[str, Tensor] | None,
        dataset: Dataset,
        device: torch.device,
        compile: bool = False,
    ) -> None:
        """Compiles the residual blocks and the perceptual distance with torch.compile if asked to.

        `vgg` are the weights that `vgg16.read_weights` returned. With None there is no perceptual term.
        """
        self.recipe = recipe
        self.device = device
        torch.manual_seed(recipe.seed)
        self.model = SmallVQ(
            config.tokenizer.downsample,
            config.tokenizer.vocabulary,
            recipe.channels,
            recipe.blocks,
            recipe.width,
            recipe.decoder_blocks,
            recipe.normalised,
        )
        self.model.to(device).to(memory_format=torch.channels_last)
        # The moving average of the weights and of the codes, which move with them.
        self.average = copy.deepcopy(self.model) if recipe.ema_decay else None
        self.perceptual: Perceptual | None = None
        if vgg is not None:
            self.perceptual = Perceptual(vgg).to(device).to(memory_format=torch.channels_last)
        self.codebook = Codebook(self.model, recipe)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            recipe.lr,
            (0.9, 0.99),
            weight_decay=recipe.weight_decay,
            fused=device.type == "cuda",
        )
        self.adversary = Adversary(recipe, device) if recipe.adversarial else None
        if compile:
            if self.perceptual is not None:
                self.perceptual.compile()
            for module in self.model.modules():
                if isinstance(module, ResBlock):
                    module.compile()
        self.batches = Batches(dataset, config.data.image_size, recipe, device)
        self.steps_per_epoch = self.batches.per_epoch
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.done = 0  # steps
        self.seconds = 0.0  # of steps

    @property
    def result(self) -> SmallVQ:
        """Returns the network that is stored: the moving average, if there is one."""
        return self.model if self.average is None else self.average

    def lr_share(self, step: int) -> float:
        """Returns the learning rate of a step, as a share of the peak."""
        progress = step / self.total_steps
        # From one step's share to 1 over the first 2 %.
        warmup = min(1.0, progress / 0.02 + 1 / self.total_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self, step: int) -> dict[str, Tensor | int]:
        """Computes step number `step` (from 0).

        Returns its losses, still on the device, and, as `reborn`, the number of codes that were
        replaced.
        """
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        images = self.batches.images(step)
        # 1. Encode and quantise.
        with self._autocast():
            rows = self.model.rows(images).float()
        detached = rows.detach()
        if step == 0:
            self.codebook.start(detached, generator)
        codes = self.model.nearest(detached)
        quantised = self.model.codebook[codes]
        # 2. Decode. The gradient goes straight through the quantisation: the sum is `quantised`, and
        #    its derivative that of `rows`.
        with self._autocast():
            decoded = self.model.images(rows + (quantised - rows).detach(), len(images))
        commitment = F.mse_loss(rows, quantised)  # of the rows only: the codebook has no gradient
        # 3. Update the weights, then the codebook.
        self.optimizer.zero_grad()
        if self.adversary is None or step < recipe.adversarial_from * self.total_steps:
            losses = self._reconstruction(decoded, images)
            (self._weighted(losses) + recipe.commitment * commitment).backward()
        else:
            losses = self._adversarial(self.adversary, decoded, images, commitment, step)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * self.lr_share(step)
        self.optimizer.step()
        self.codebook.update(detached, codes)
        reborn = 0  # codes
        settled = step >= recipe.rebirth_until * self.total_steps
        if (step + 1) % STEPS_PER_REBIRTH == 0 and not settled:
            reborn = self.codebook.revive(detached, generator)
        if self.average is not None:
            self._move_average(self.average, step)
        losses["commitment"] = commitment
        return {name: value.detach() for name, value in losses.items()} | {"reborn": reborn}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _reconstruction(self, decoded: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Returns the losses that compare decoded images (B, 3, h, w) with their originals."""
        l2 = F.mse_loss(decoded.float(), images)
        if self.perceptual is None:
            return {"l2": l2}
        part = max(1, round(self.recipe.perceptual_part * len(images)))  # images
        with self._autocast():
            perceptual = self.perceptual(decoded[:part], images[:part])
        return {"l2": l2, "perceptual": perceptual}

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Returns the sum of the losses that compare images."""
        if "perceptual" not in losses:
            return losses["l2"]
        return losses["l2"] + self.recipe.perceptual * losses["perceptual"]

    def _adversarial(
        self, adversary: Adversary, decoded: Tensor, images: Tensor, commitment: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Writes the gradient of all losses, and updates the discriminator. Returns the losses."""
        # 1. The gradients at the decoded images, and by what the second is multiplied.
        leaf = decoded.detach().requires_grad_()
        losses = self._reconstruction(leaf, images)
        (others,) = torch.autograd.grad(self._weighted(losses), leaf)
        with self._autocast():
            losses["adversarial"], gradient = adversary.gradient(leaf)
            losses["discriminator"] = adversary.loss(images, leaf.detach())
        last = self.model.decoder.get_parameter(f"{len(self.model.decoder) - 1}.weight")
        ratio = length_ratio(decoded, last, others, gradient)
        weight = ratio * adversary.weight(step / self.total_steps)
        # 2. From there to the weights.
        at_images = others + (weight * gradient).to(others.dtype)
        torch.autograd.backward([decoded, self.recipe.commitment * commitment], [at_images, None])
        # 3. The discriminator.
        adversary.update(losses["discriminator"], self.recipe.discriminator_lr * self.lr_share(step))
        return losses

    @torch.no_grad()
    def _move_average(self, average: SmallVQ, step: int) -> None:
        """Moves the average towards the weights and codes, faster at first."""
        decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(self.model.parameters()), 1 - decay)
        average.codebook.lerp_(self.model.codebook, 1 - decay)
        if average.normalised:
            average.codebook.copy_(F.normalize(average.codebook, dim=1))

    def run(self, state: Path) -> None:
        """Trains from step `done` to the end. After every epoch it saves to `state` and logs its losses."""
        epoch: list[dict[str, Tensor | int]] = []  # losses of each step
        total = self.total_steps
        start = time.monotonic()
        for step in progress(range(self.done, total), "vq_small", total, "steps", self.done):
            losses = self.step(step)
            self.done = step + 1
            epoch.append(losses)
            over = self.done % self.steps_per_epoch == 0
            if (over or self.done % STEPS_PER_LOOK == 0) and not math.isfinite(losses["l2"]):
                raise FloatingPointError(f"the loss is not finite at step {step}")
            if over:
                now = time.monotonic()
                self.seconds += now - start
                start = now
                self.save(state)
                means = {
                    name: float(sum(each.get(name, 0) for each in epoch)) / len(epoch) for name in losses
                }
                text = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
                log.info(f"step {self.done}/{total}, mean of {len(epoch)} steps: {text}")
                epoch = []

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.codebook.counts,
            "sums": self.codebook.sums,
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
        }
        write_torch(path, state | {SHA256: content_sha256(state)})

    def load(self, path: Path) -> None:
        """Restores the state that `save` wrote."""
        state = read_tensors(path)
        if state.pop(SHA256, None) != content_sha256(state):
            raise UserError(f"{path} is damaged: remove it to begin the training again")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.codebook.counts = state["counts"].to(self.device)
        self.codebook.sums = state["sums"].to(self.device)
        self.done = state["done"]
        self.seconds = state["seconds"]


def train(
    config: RunConfig,
    recipe: Recipe,
    vgg: Path | None,
    device: torch.device,
    keep: Path | None = None,
    compile: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Trains the tokenizer of a configuration, or resumes its training.

    Returns the weight file and its record, which is written next to it. `keep` is an .npz file that
    gets the reconstructed held-out images. Without `vgg` there is no perceptual term. `compile` is as
    `Training` takes it. Raises UserError if
    the sizes do not fit each other.
    """
    tokenizer = config.tokenizer
    if tokenizer.downsample not in (2, 4, 8):
        raise UserError(f"tokenizer.downsample is {tokenizer.downsample} with vq_small: write 2, 4 or 8")
    if recipe.channels % 8:  # the groups of its normalisation
        raise UserError(f"--channels is {recipe.channels}: write a multiple of 8")
    dataset = open_dataset(config, "train")
    heldout = open_dataset(config, "heldout")
    size = len(dataset)
    if recipe.batch_size > size:
        raise UserError(f"--batch-size is {recipe.batch_size}, but there are {size} images: write less")
    # 1. The folder is named by everything that decides the weights.
    vgg_weights = None if vgg is None else read_weights(vgg)
    vgg_sha256 = "none" if vgg_weights is None else weights_sha256(vgg_weights)
    if vgg_weights is None:  # as the record says it
        recipe = replace(recipe, perceptual=0.0, perceptual_part=0.0)
    image_size = config.data.image_size
    sizes = [tokenizer.downsample, tokenizer.vocabulary, image_size]
    identity = digest([asdict(recipe), dataset.identity, vgg_sha256, *sizes])
    name = config.tokenizer_title
    folder = config.machine.runs.absolute() / "tokenizers" / f"{name}-{identity}"
    folder.mkdir(parents=True, exist_ok=True)
    # 2. Train, or resume.
    training = Training(config, recipe, vgg_weights, dataset, device, compile)
    state = folder / "state.pt"
    if state.is_file():
        training.load(state)
        log.info(f"resuming at step {training.done} of {training.total_steps}")
    training.run(state)
    # 3. Measure the weights as they are stored, and write the record.
    file = folder / f"{name}.safetensors"
    save_weights(training.result, file)
    stored = VQSmall(read_model(file).to(device), "")  # its identity is not read
    steps = {"images": size, "steps": training.total_steps, "seconds": round(training.seconds)}
    num_parameters = sum(parameter.numel() for parameter in training.model.parameters())
    record = {
        "weights": {"file": file.name, "sha256": file_sha256(file), "stored_as": "fp16, used as fp32"},
        "sizes": training.model.sizes | {"parameters": num_parameters},
        "heldout": measure(stored, heldout, image_size, device, keep),
        "training": asdict(recipe) | steps,
        "data": dataset.identity,
        "perceptual_weights": vgg_sha256,
        "hardware": device_name(device),
        "torch": torch.__version__,
    }
    write_json(record_file(file), record)
    return file, record


def save_weights(model: SmallVQ, path: Path) -> None:
    """Writes the tensors in fp16, with the sizes of the network as JSON in the file's metadata."""
    tensors = {name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}
    write_safetensors(path, tensors, {"sizes": json.dumps(model.sizes)})
