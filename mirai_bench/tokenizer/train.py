"""Training of vq_small.

The loss is L2 + perceptual + commitment. The codebook is a moving average, and its dead codes are
replaced. Everything random is a function of (seed, step), so that a resumed training equals an
uninterrupted one bit for bit. Letters: B batch; n = B·H·W rows of a batch; Z code width; V codes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.crops import read_bases
from mirai_bench.data.images.datasets import Dataset, open_dataset
from mirai_bench.data.tokenizers.network import from_uint8
from mirai_bench.data.tokenizers.vq_small import SmallVQ, VQSmall, read_model
from mirai_bench.tokenizer.perceptual import Perceptual
from mirai_bench.tokenizer.quality import measure, record_file
from mirai_bench.tokenizer.recipe import Recipe
from mirai_bench.utils.cli import progress
from mirai_bench.utils.device import device_name
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import atomic, write_json
from mirai_bench.utils.hashing import digest, file_sha256
from mirai_bench.utils.tensors import read_tensors

log = logging.getLogger(__name__)

STEPS_PER_REBIRTH = 20


class Codebook:
    """The moving averages behind SmallVQ.codebook: code v is m_v / N_v (arXiv 1711.00937, appendix A.1).

    m_v is the moving sum of the rows that chose code v, and N_v their moving number.
    """

    def __init__(self, model: SmallVQ, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.counts = torch.zeros(len(model.codebook), device=model.codebook.device)  # N (V,)
        self.sums = torch.zeros_like(model.codebook)  # m (V, Z)

    def start(self, rows: Tensor, generator: torch.Generator) -> None:
        """Sets the codes to rows (n, Z) of the first batch."""
        chosen = torch.randint(len(rows), (len(self.counts),), generator=generator)
        self.sums = rows[chosen.to(rows.device)].clone()
        self.counts.fill_(1.0)
        self.model.codebook.copy_(self.sums)

    def update(self, rows: Tensor, codes: Tensor) -> None:
        """Moves the codes towards the rows (n, Z) that have chosen them, `codes` (n,)."""
        # N_v ← γ N_v + (1 - γ) n_v, and m_v ← γ m_v + (1 - γ) Σ rows, with γ the decay.
        decay = self.recipe.codebook_decay
        # Counts n (V,) and sums (V, Z) of this batch.
        counts = torch.bincount(codes, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.model.codebook.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])

    def revive(self, rows: Tensor, generator: torch.Generator) -> int:
        """Replaces dead codes by rows (n, Z) of this batch, with an equal share as their count.

        Returns how many there were.
        """
        # A code that no row chooses gets no update, and would never be chosen again.
        share = len(rows) / len(self.counts)
        dead = (self.counts < self.recipe.dead_below * share).nonzero()[:, 0]
        chosen = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
        self.counts[dead] = share
        self.sums[dead] = rows[chosen] * share
        self.model.codebook[dead] = rows[chosen]
        return len(dead)


class Training:
    """Model, optimizer and codebook of one training. Nothing else decides what a step computes."""

    def __init__(
        self, config: RunConfig, recipe: Recipe, vgg: Path, dataset: Dataset, device: torch.device
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.image_size = config.data.image_size
        self.device = device
        torch.manual_seed(recipe.seed)
        sizes = (config.tokenizer.downsample, config.tokenizer.vocabulary)
        self.model = SmallVQ(*sizes, recipe.channels, recipe.blocks, recipe.width)
        self.model.to(device).to(memory_format=torch.channels_last)
        self.perceptual = Perceptual(vgg).to(device).to(memory_format=torch.channels_last)
        self.codebook = Codebook(self.model, recipe)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), recipe.lr, (0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self.steps_per_epoch = len(dataset) // recipe.batch_size
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.done = 0  # steps
        self.seconds = 0.0  # of steps

    def images(self, step: int) -> Tensor:
        """Returns the images of a step, float (B, 3, h, w) in [-1, 1], half of them mirrored."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng((self.recipe.seed, epoch))
        order = rng.permutation(len(self.dataset))
        mirrored = rng.random(len(self.dataset)) < 0.5
        start = position * self.recipe.batch_size  # the rest of an epoch's order is dropped
        rows = order[start : start + self.recipe.batch_size]
        pixels = torch.from_numpy(read_bases(self.dataset, rows, self.image_size))
        images = from_uint8(pixels.to(self.device))
        flips = torch.from_numpy(mirrored[rows]).to(self.device)[:, None, None, None]
        return torch.where(flips, images.flip(-1), images).contiguous(memory_format=torch.channels_last)

    def lr(self, step: int) -> float:
        """Returns the learning rate of a step."""
        progress = step / self.total_steps
        # From one step's share to 1 over the first 2 %.
        warmup = min(1.0, progress / 0.02 + 1 / self.total_steps)
        return self.recipe.lr * warmup * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self, step: int) -> dict[str, float]:
        """Computes step number `step` (from 0).

        Returns its losses and, as `reborn`, the number of codes that were replaced.
        """
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        images = self.images(step)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        # 1. Encode and quantise.
        with autocast:
            rows = self.model.rows(images).float()
        detached = rows.detach()
        if step == 0:
            self.codebook.start(detached, generator)
        codes = self.model.nearest(detached)
        quantised = self.model.codebook[codes]
        # 2. Decode. The gradient goes straight through the quantisation: the sum is `quantised`, and
        #    its derivative that of `rows`.
        with autocast:
            decoded = self.model.images(rows + (quantised - rows).detach(), len(images))
            part = max(1, round(recipe.perceptual_part * len(images)))  # images
            perceptual = self.perceptual(decoded[:part], images[:part])
        l2 = F.mse_loss(decoded.float(), images)
        commitment = F.mse_loss(rows, quantised)  # of the rows only: the codebook has no gradient
        loss = l2 + recipe.perceptual * perceptual + recipe.commitment * commitment
        # 3. Update the weights, then the codebook.
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.codebook.update(detached, codes)
        reborn = 0  # codes
        settled = step >= recipe.rebirth_until * self.total_steps
        if (step + 1) % STEPS_PER_REBIRTH == 0 and not settled:
            reborn = self.codebook.revive(detached, generator)
        losses = {"l2": l2, "perceptual": perceptual, "commitment": commitment}
        return {name: value.item() for name, value in losses.items()} | {"reborn": reborn}

    def run(self, state: Path) -> None:
        """Trains from step `done` to the end. After every epoch it saves to `state` and logs its losses."""
        epoch: list[dict[str, float]] = []  # losses of each step
        total = self.total_steps
        for step in progress(range(self.done, total), "vq_small", total, "steps", self.done):
            start = time.monotonic()
            losses = self.step(step)
            self.done = step + 1
            self.seconds += time.monotonic() - start
            if not math.isfinite(losses["l2"]):
                raise FloatingPointError(f"the loss is not finite at step {step}")
            epoch.append(losses)
            if self.done % self.steps_per_epoch == 0:
                self.save(state)
                means = {name: sum(each[name] for each in epoch) / len(epoch) for name in losses}
                text = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
                log.info(f"step {self.done}/{total}, mean of {len(epoch)} steps: {text}")
                epoch = []

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.codebook.counts,
            "sums": self.codebook.sums,
            "done": self.done,
            "seconds": self.seconds,
        }
        with atomic(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Restores the state that `save` wrote."""
        state = read_tensors(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.codebook.counts = state["counts"].to(self.device)
        self.codebook.sums = state["sums"].to(self.device)
        self.done = state["done"]
        self.seconds = state["seconds"]


def train(
    config: RunConfig, recipe: Recipe, vgg: Path, device: torch.device, keep: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Trains the tokenizer of a configuration, or resumes its training.

    Returns the weight file and its record, which is written next to it. `keep` is an .npz file that
    gets the reconstructed held-out images. Raises UserError if the sizes do not fit each other.
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
    vgg_sha256 = file_sha256(vgg)
    image_size = config.data.image_size
    sizes = [tokenizer.downsample, tokenizer.vocabulary, image_size]
    identity = digest([asdict(recipe), dataset.identity, vgg_sha256, *sizes])
    name = f"vq_small_{dataset.name}_{config.grid[0]}x{config.grid[1]}"
    folder = config.machine.runs.absolute() / "tokenizers" / f"{name}-{identity}"
    folder.mkdir(parents=True, exist_ok=True)
    # 2. Train, or resume.
    training = Training(config, recipe, vgg, dataset, device)
    state = folder / "state.pt"
    if state.is_file():
        training.load(state)
        log.info(f"resuming at step {training.done} of {training.total_steps}")
    training.run(state)
    # 3. Measure the weights as they are stored, and write the record.
    file = folder / f"{name}.safetensors"
    save_weights(training.model, file)
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
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"sizes": json.dumps(model.sizes)})
