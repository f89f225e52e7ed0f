"""The built-in bidirectional teacher: a transformer that fills in masked tokens (BERT; masking ratios of MaskGIT, arXiv 2202.04200).

It is trained once on the run's own codes, without labels, then frozen and cached by everything it depends on.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Codes
from mirai_bench.model.transformer import INIT_STD, Block, RMSNorm, rope_table
from mirai_bench.utils.cli import progress
from mirai_bench.utils.files import cached
from mirai_bench.utils.hashing import digest

log = logging.getLogger(__name__)

BATCH_SIZE = 64


LEARNING_RATE = 2e-3


RECIPE = 1  # bumped when the training below changes: older cached teachers are then trained again


class MaskedTokens(nn.Module):
    """Width and heads of the student; code V is the mask. No class, no class token."""

    rope: Tensor

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.vocabulary = config.tokenizer.vocabulary
        self.tok_embeddings = nn.Embedding(self.vocabulary + 1, config.model.width)
        self.layers = nn.ModuleList(Block(config.model) for _ in range(config.foresight.encoder.depth))
        self.norm = RMSNorm(config.model.width)
        self.output = nn.Linear(config.model.width, self.vocabulary, bias=False)
        self.register_buffer(
            "rope", rope_table(*config.grid, config.model.width // config.model.heads)[1:], persistent=False
        )

    def init_weights(self, generator: torch.Generator, gain: float | None = None) -> MaskedTokens:
        """N(0, 0.02); with a gain N(0, gain/√fan_in), which lets an untrained network mix its inputs at full strength."""
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(
                    parameter,
                    std=INIT_STD if gain is None else gain / math.sqrt(parameter.shape[-1]),
                    generator=generator,
                )
        return self

    def states(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (B, T), mask (T, T) bool of the cells that each cell sees (None: all) → (B, T, D) after the last block, no final norm."""
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, self.rope, mask=mask, causal=False)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.norm(self.states(tokens)))


def identity(config: RunConfig) -> str:
    """Digest of all that decides the teacher's weights: codes, sizes, length, seed, recipe."""
    run, f = config.identity(), config.foresight
    model = {key: run["model"][key] for key in ("width", "heads", "kv_heads")}
    return digest(
        [RECIPE, run["data"], run["tokenizer"], model, f.encoder.depth, f.encoder.epochs, f.teacher_seed]
    )


def train_masked_tokens(
    config: RunConfig, codes: Codes, device: torch.device, seed: int
) -> tuple[MaskedTokens, float]:
    """→ the trained teacher and its last epoch's mean loss (nats per masked token)."""
    generator = torch.Generator().manual_seed(seed)
    model = MaskedTokens(config).init_weights(generator).to(device)
    size = min(BATCH_SIZE, codes.num_images)
    per_epoch, epochs = codes.steps_per_epoch(size), config.foresight.encoder.epochs
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    losses = torch.zeros(per_epoch)
    for step in progress(
        range(epochs * per_epoch), "masked-token teacher", total=epochs * per_epoch, unit="steps"
    ):
        tokens = codes.batch(seed=seed, step=step, rank=0, world=1, batch_size=size).tokens
        ratio = torch.cos(torch.rand(size, 1, generator=generator) * math.pi / 2)  # MaskGIT's cosine schedule
        hidden = (torch.rand(tokens.shape, generator=generator) < ratio.clamp(min=1 / tokens.shape[1])).to(
            device
        )
        logits = model(tokens.masked_fill(hidden, model.vocabulary))
        loss = F.cross_entropy(logits[hidden].float(), tokens[hidden])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses[step % per_epoch] = loss.detach()
    return model, losses.mean().item()


def load_or_train(config: RunConfig, codes: Codes, device: torch.device) -> MaskedTokens:
    """The frozen teacher on the device, trained first where the cache does not have it; `encoder.weights` names another file."""
    file = config.foresight.encoder.weight_file or cache_folder(config, codes, device) / "model.safetensors"
    model = MaskedTokens(config)
    model.load_state_dict(load_file(file))
    return model.requires_grad_(False).to(device)


def cache_folder(config: RunConfig, codes: Codes, device: torch.device) -> Path:
    def build(folder: Path) -> None:
        log.info(
            f"training the masked-token teacher on the same codes, once ({config.foresight.encoder.epochs} epochs)"
        )
        model, loss = train_masked_tokens(config, codes, device, config.foresight.teacher_seed)
        save_file(
            {name: tensor.cpu() for name, tensor in model.state_dict().items()}, folder / "model.safetensors"
        )
        (folder / "record.json").write_text(
            json.dumps({"loss_nats_per_masked_token": loss, "seed": config.foresight.teacher_seed})
        )

    return cached(config.machine.runs / "cache" / f"masked_tokens-{identity(config)}", build)
