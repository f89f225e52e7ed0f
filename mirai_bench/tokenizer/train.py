"""Training of vq_small: L2 + perceptual + commitment loss, a moving-average codebook whose dead codes are born again.

Everything random is a function of (seed, step), so that a resumed training goes on as if nothing had happened.
Letters: B batch, n = B·H·W rows of a batch, Z code width, V codes.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from mirai_bench.config import run_config as settings
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.crops import read_bases
from mirai_bench.data.images.datasets import Dataset, open_dataset
from mirai_bench.data.tokenizers.convert import from_uint8
from mirai_bench.data.tokenizers.vq_small import SmallVQ, VQSmall, read_model, weight_file
from mirai_bench.tokenizer.perceptual import Perceptual
from mirai_bench.tokenizer.quality import measure
from mirai_bench.utils.cli import progress, say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic
from mirai_bench.utils.hashing import digest, file_sha256


@dataclass(frozen=True)
class Recipe:
    channels: int = 64
    blocks: int = 2
    width: int = 16
    epochs: int = 8
    batch_size: int = 64
    lr: float = 1e-3
    """cosine to zero after a rise over the first 2 %"""
    weight_decay: float = 0.0
    perceptual: float = 0.1
    perceptual_part: float = 0.25
    """share of each batch that goes through VGG16, which costs more than the tokenizer"""
    commitment: float = 0.25
    codebook_decay: float = 0.99
    dead_below: float = 0.05
    """a code is dead when its moving count falls below this share of an equal share"""
    rebirth_until: float = 0.8
    """of training: afterwards the codebook settles"""
    precision: str = "bf16"
    seed: int = 0


REBIRTH_EVERY = 20  # steps


SAVE_EVERY = 120.0  # seconds


class Codebook:
    """Moving averages behind SmallVQ.codebook: e_v = m_v / N_v."""

    def __init__(self, model: SmallVQ, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.counts = torch.zeros(len(model.codebook), device=model.codebook.device)
        self.sums = torch.zeros_like(model.codebook)

    def start(self, rows: Tensor, generator: torch.Generator) -> None:
        """Codes are rows of the first batch."""
        chosen = torch.randint(len(rows), (len(self.counts),), generator=generator)
        self.sums = rows[chosen.to(rows.device)].clone()
        self.counts.fill_(1.0)
        self.model.codebook.copy_(self.sums)

    def update(self, rows: Tensor, codes: Tensor) -> None:
        decay = self.recipe.codebook_decay
        counts = torch.bincount(codes, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.model.codebook.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])

    def revive(self, rows: Tensor, generator: torch.Generator) -> int:
        """Dead codes become rows of this batch, with an equal share as their count → how many."""
        share = len(rows) / len(self.counts)
        dead = (self.counts < self.recipe.dead_below * share).nonzero()[:, 0]
        chosen = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
        self.counts[dead] = share
        self.sums[dead] = rows[chosen] * share
        self.model.codebook[dead] = rows[chosen]
        return len(dead)


class Training:
    """Model, optimizer and codebook of one training; `step()` is a pure function of them and of the step's number."""

    def __init__(
        self, config: RunConfig, recipe: Recipe, vgg: Path, dataset: Dataset, device: torch.device
    ) -> None:
        self.config, self.recipe, self.dataset, self.device = config, recipe, dataset, device
        torch.manual_seed(recipe.seed)
        t = config.tokenizer
        self.model = SmallVQ(t.downsample, t.vocabulary, recipe.channels, recipe.blocks, recipe.width)
        self.model.to(device, memory_format=torch.channels_last)
        self.perceptual = Perceptual(vgg).to(device, memory_format=torch.channels_last)
        self.codebook = Codebook(self.model, recipe)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), recipe.lr, (0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self.per_epoch = len(dataset) // recipe.batch_size
        self.total = recipe.epochs * self.per_epoch
        self.done, self.seconds = 0, 0.0

    def images(self, step: int) -> Tensor:
        """float (B, 3, h, w) in [-1, 1], half of them mirrored."""
        epoch, position = divmod(step, self.per_epoch)
        rng = np.random.default_rng((self.recipe.seed, epoch))
        order, mirrored = rng.permutation(len(self.dataset)), rng.random(len(self.dataset)) < 0.5
        rows = order[position * self.recipe.batch_size :][: self.recipe.batch_size]
        images = from_uint8(
            torch.from_numpy(read_bases(self.dataset, rows, self.config.data.image_size)).to(self.device)
        )
        flips = torch.from_numpy(mirrored[rows]).to(self.device)[:, None, None, None]
        return torch.where(flips, images.flip(-1), images).contiguous(memory_format=torch.channels_last)

    def lr(self, step: int) -> float:
        at = step / self.total
        return self.recipe.lr * min(1.0, at / 0.02 + 1 / self.total) * 0.5 * (1 + math.cos(math.pi * at))

    def step(self, step: int) -> dict[str, float]:
        r = self.recipe
        generator, images = torch.Generator().manual_seed(r.seed * 1_000_003 + step), self.images(step)
        mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=r.precision == "bf16")
        with mixed:
            rows = self.model.rows(images).float()
        if step == 0:
            self.codebook.start(rows.detach(), generator)
        codes = self.model.nearest(rows.detach())
        quantised = self.model.codebook[codes]
        with mixed:
            decoded = self.model.images(rows + (quantised - rows).detach(), len(images))  # straight through
            part = max(1, round(r.perceptual_part * len(images)))
            perceptual = self.perceptual(decoded[:part], images[:part])
        l2, commitment = F.mse_loss(decoded.float(), images), F.mse_loss(rows, quantised)
        loss = l2 + r.perceptual * perceptual + r.commitment * commitment
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.codebook.update(rows.detach(), codes)
        reborn = 0
        if step % REBIRTH_EVERY == REBIRTH_EVERY - 1 and step < r.rebirth_until * self.total:
            reborn = self.codebook.revive(rows.detach(), generator)
        return {
            "l2": l2.item(),
            "perceptual": perceptual.item(),
            "commitment": commitment.item(),
            "reborn": reborn,
        }

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.codebook.counts,
            "sums": self.codebook.sums,
            "done": self.done,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.codebook.counts, self.codebook.sums = state["counts"], state["sums"]
        self.done, self.seconds = state["done"], state["seconds"]


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} CPU cores, no GPU ({torch.get_num_threads()} thread)"


def train(
    config: RunConfig, recipe: Recipe, vgg: Path, device: torch.device, keep: Path | None = None
) -> Path:
    """Trains, or goes on with, the tokenizer of `config` → its weight file, beside which lies its record (.json)."""
    if config.tokenizer.downsample not in (2, 4, 8):
        raise UserError(
            f"tokenizer.downsample is {config.tokenizer.downsample} with vq_small: write 2, 4 or 8"
        )
    if recipe.channels % 8:
        raise UserError(
            f"--channels is {recipe.channels}: write a multiple of 8 (the groups of its normalisation)"
        )
    dataset, heldout = open_dataset(config, "train"), open_dataset(config, "heldout")
    if recipe.batch_size > len(dataset):
        raise UserError(
            f"--batch-size is {recipe.batch_size}, but there are {len(dataset)} images: write {len(dataset)} or less"
        )
    training = Training(config, recipe, vgg, dataset, device)
    t, side = config.tokenizer, config.grid[0]
    identity = [
        asdict(recipe),
        dataset.identity,
        file_sha256(vgg),
        t.downsample,
        t.vocabulary,
        config.data.image_size,
    ]
    name = f"vq_small_{dataset.name}_{side}x{side}"
    folder = config.machine.runs.absolute() / "tokenizers" / f"{name}-{digest(identity)}"
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.pt"
    if state.is_file():
        training.load(state)
        say(f"going on at step {training.done} of {training.total}")
    run(training, state)
    file = folder / f"{name}.safetensors"
    save_weights(training.model, file)
    measured = measure(
        VQSmall(read_model(file).to(device), ""), heldout, config.data.image_size, device, keep
    )
    record = {
        "weights": {"file": file.name, "sha256": file_sha256(file), "stored_as": "fp16, used as fp32"},
        "sizes": training.model.sizes | {"parameters": sum(p.numel() for p in training.model.parameters())},
        "heldout": measured,
        "training": asdict(recipe)
        | {"images": len(dataset), "steps": training.total, "seconds": round(training.seconds)},
        "data": dataset.identity,
        "perceptual_weights": file_sha256(vgg),
        "hardware": hardware(device),
        "torch": torch.__version__,
    }
    write_record(file, record)
    return file


def run(training: Training, state: Path) -> None:
    """The loop, from `training.done` to the end; saves to `state` every two minutes and at the end."""
    saved, sums = time.monotonic(), dict[str, float]()
    steps = progress(range(training.done, training.total), "vq_small", training.total, "steps", training.done)
    for step in steps:
        began = time.monotonic()
        losses = training.step(step)
        training.done, training.seconds = step + 1, training.seconds + time.monotonic() - began
        if not math.isfinite(losses["l2"]):
            raise FloatingPointError(f"the loss is not finite at step {step}")
        sums = {key: sums.get(key, 0.0) + value for key, value in losses.items()}
        if training.done % 100 == 0:
            shown = ", ".join(
                f"{key} {value / (1 if key == 'reborn' else 100):.4g}" for key, value in sums.items()
            )
            say(f"step {training.done}/{training.total}: {shown}")
            sums = {}
        if time.monotonic() - saved > SAVE_EVERY:
            training.save(state)
            saved = time.monotonic()
    training.save(state)


def save_weights(model: SmallVQ, path: Path) -> None:
    """fp16 tensors, the model's sizes as JSON in the file's metadata."""
    tensors = {key: value.half().contiguous().cpu() for key, value in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(save(tensors, metadata={"sizes": json.dumps(model.sizes)}))
    os.replace(temporary, path)


def write_record(file: Path, record: dict[str, Any]) -> None:
    write_atomic(file.with_suffix(".json"), json.dumps(record, indent=1) + "\n")


def summary(file: Path) -> dict[str, Any]:
    return json.loads(file.with_suffix(".json").read_text())


def open_record(config: settings.Tokenizer) -> Path:
    """The weight file that the config names, beside which its record lies. Raises UserError where the record is not there, or of other weights."""
    if config.name != "vq_small":
        raise UserError(f"tokenizer.name is {config.name!r}, which has no record: leave out --write-record")
    file = weight_file(config)
    try:
        recorded = summary(file)["weights"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file.with_suffix('.json')} is not the record of a training ({error}): leave out --write-record"
        ) from None
    if recorded != file_sha256(file):
        raise UserError(
            f"{file.with_suffix('.json')} is the record of other weights than {file.name}: leave out --write-record"
        )
    return file
