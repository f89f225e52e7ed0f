"""The built-in bidirectional teacher: a transformer that fills in masked tokens.

It is BERT on image tokens, with the masking ratios of MaskGIT (arXiv 2202.04200). It is trained
once on the run's own codes, without labels, and then frozen. The weights are cached under a digest
of everything they depend on.

Letters: B batch, T tokens, V codes, D width.
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import Codes
from mirai_bench.model.one_off import MASKED_TOKENS_BATCH
from mirai_bench.model.rope import rope_table
from mirai_bench.model.transformer import INIT_STD, Block, RMSNorm
from mirai_bench.utils.cli import progress
from mirai_bench.utils.files import cached
from mirai_bench.utils.hashing import digest
from mirai_bench.utils.tensors import load_into

log = logging.getLogger(__name__)

# The training recipe. Raise RECIPE whenever the training changes, so that cached teachers are
# trained again.
RECIPE = 1
LEARNING_RATE = 2e-3


class MaskedTokens(nn.Module):
    """A bidirectional transformer of the student's width and heads.

    Code V is the mask; there is no class token.
    """

    rope: Tensor

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model = config.model
        self.vocabulary = config.tokenizer.vocabulary
        self.tok_embeddings = nn.Embedding(self.vocabulary + 1, model.width)
        self.layers = nn.ModuleList(Block(model) for _ in range(config.foresight.encoder.depth))
        self.norm = RMSNorm(model.width)
        self.output = nn.Linear(model.width, self.vocabulary, bias=False)
        rope = rope_table(*config.grid, model.width // model.heads)
        self.register_buffer("rope", rope[1:], persistent=False)  # slot 0 is of the class token

    def init_weights(self, generator: torch.Generator, gain: float | None = None) -> MaskedTokens:
        """Draws the matrices from N(0, 0.02) or, with a gain, from N(0, gain/√fan_in).

        A gain of 1 lets an untrained network mix its inputs at full strength.
        """
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                std = INIT_STD if gain is None else gain / math.sqrt(parameter.shape[-1])
                nn.init.normal_(parameter, std=std, generator=generator)
        return self

    def states(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the residual stream (B, T, D) after the last block, without the final norm.

        tokens is (B, T). mask (T, T) bool says which cells each cell sees; by default it sees all
        of them.
        """
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, self.rope, mask=mask, causal=False)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, T, V) of every token."""
        return self.output(self.norm(self.states(tokens)))


def identity(config: RunConfig) -> str:
    """Returns the digest of all that decides the weights: codes, sizes, training and recipe."""
    run = config.identity()
    foresight = config.foresight
    model = {key: run["model"][key] for key in ("width", "heads", "kv_heads")}
    length = (foresight.encoder.depth, foresight.encoder.epochs)
    return digest([RECIPE, run["data"], run["tokenizer"], model, *length, foresight.teacher_seed])


def train_masked_tokens(
    config: RunConfig, codes: Codes, device: torch.device, seed: int
) -> tuple[MaskedTokens, float]:
    """Trains the teacher.

    Returns it with the mean loss of its last epoch, in nats per masked token.
    """
    # 1. The network, AdamW, and a cosine schedule that ends at zero.
    generator = torch.Generator().manual_seed(seed)
    model = MaskedTokens(config).init_weights(generator).to(device)
    size = min(MASKED_TOKENS_BATCH, codes.num_images)
    steps_per_epoch = codes.steps_per_epoch(size)
    total = config.foresight.encoder.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    losses = torch.zeros(steps_per_epoch)
    for step in progress(range(total), "masked-token teacher", total=total, unit="steps"):
        # 2. Each image masks its own share of the tokens: cos(πu/2) of them, MaskGIT's cosine
        #    schedule.
        tokens = codes.batch(seed=seed, step=step, rank=0, world=1, batch_size=size).tokens
        ratio = torch.cos(torch.rand(size, 1, generator=generator) * math.pi / 2)
        ratio = ratio.clamp(min=1 / tokens.shape[1])
        hidden = (torch.rand(tokens.shape, generator=generator) < ratio).to(device)
        # 3. Only the masked tokens are predicted.
        logits = model(tokens.masked_fill(hidden, model.vocabulary))
        loss = F.cross_entropy(logits[hidden].float(), tokens[hidden])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses[step % steps_per_epoch] = loss.detach()
    return model, losses.mean().item()


def load_or_train(config: RunConfig, codes: Codes, device: torch.device) -> MaskedTokens:
    """Returns the frozen teacher on the device. It is trained first if it is not in the cache.

    If `foresight.encoder.weights` names a file, the weights are read from there instead.
    """
    file = config.foresight.encoder.weights  # which the config has checked not to be "random"
    if file is None:
        file = cache_folder(config, codes, device) / "model.safetensors"
    model = MaskedTokens(config)
    assert isinstance(file, Path), "the config has refused random weights"
    load_into(model, file)
    return model.requires_grad_(False).to(device)


def cache_folder(config: RunConfig, codes: Codes, device: torch.device) -> Path:
    """Returns the folder of the trained teacher below machine.runs.

    Trains the teacher if there is none.
    """
    seed = config.foresight.teacher_seed

    def build(folder: Path) -> None:
        epochs = config.foresight.encoder.epochs
        log.info(f"training the masked-token teacher on the same codes, once ({epochs} epochs)")
        began = time.perf_counter()
        model, loss = train_masked_tokens(config, codes, device, seed)
        seconds = time.perf_counter() - began  # the mean loss was read, so that the device is done
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(weights))  # an OSError if the disk is full
        record = {"loss_nats_per_masked_token": loss, "seed": seed, "seconds": seconds}
        (folder / "record.json").write_text(json.dumps(record))

    return cached(_folder(config), build)


def _folder(config: RunConfig) -> Path:
    return config.machine.runs / "cache" / f"masked_tokens-{identity(config)}"


def training_seconds(config: RunConfig) -> float | None:
    """Returns how long the training of the teacher took, or None if that was not written down.

    It is 0 for weights that were read from a file.
    """
    if config.foresight.encoder.weights is not None:
        return 0.0
    record: dict[str, float] = json.loads((_folder(config) / "record.json").read_bytes())
    return record.get("seconds")
