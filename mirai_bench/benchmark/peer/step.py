"""The official training step and sampler, driven as its own scripts drive them: its model, its EMA, its teacher copy, its losses, its
optimizer, and a host read of every loss each step. What its loader's own processes do is left out.

Letters: B batch, T tokens, K heads.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mirai_bench.benchmark.peer.checkout import Peer
from mirai_bench.benchmark.workload import Ours, StoredFeatures
from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.run_config import RunConfig
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.utils.errors import UserError

OPTIMIZER = (0.05, 1e-4, (0.9, 0.95))  # weight decay, learning rate, betas


CLIP = 1.0


WEIGHT = 2.0  # of each head


def supports(peer: Peer, config: RunConfig) -> bool:
    """Mirai's code has what LlamaGen's has not; neither has multi-token heads."""
    return config.foresight.level == "none" or (
        config.foresight.level == "internal" and peer.mirai is not None
    )


class PeerStep:
    """One official step a call, on the batches of `ours`. `bf16`: its autocast; on a CPU its script's own choice has no effect, so false."""

    def __init__(self, peer: Peer, config: RunConfig, ours: Ours, bf16: bool) -> None:
        self.peer, self.config, self.codes, self.bf16 = peer, config, ours.trainer.codes, bf16
        self.device, self.steps, f = ours.trainer.device, 0, config.foresight
        if not supports(peer, config):
            raise UserError(
                f"{peer.name} has no counterpart of foresight.level {f.level}: leave out --peer, or this arm"
            )
        self.foresight = f.level == "internal"
        model = build(peer, config, foresight=self.foresight).to(self.device)
        self.ema = copy.deepcopy(model).requires_grad_(False).eval()
        self.teacher: nn.Module | None = None
        self.encoder: Any = None
        if self.foresight and f.source == "ema":
            self.teacher = build(peer, config, foresight=True).to(self.device).requires_grad_(False).eval()
            self.teacher.load_state_dict(model.state_dict())
        elif self.foresight and f.encoder.cache:
            self.encoder = StoredFeatures(config, self.device)
        elif self.foresight:
            self.encoder = PixelEncoder("dinov2_b", config.grid, self.device, pretrained=False).model
        self.optimizer = peer.optimizer(model, *OPTIMIZER)
        self.raw = model
        self.model = (torch.compile(model) if config.machine.compile else model).train()

    def __call__(self) -> float:
        c = self.config
        batch = self.codes.batch(seed=c.seed, step=self.steps, rank=0, world=1, batch_size=c.train.batch_size)
        self.steps += 1
        tokens, labels = batch.tokens, batch.labels
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            outputs = self.model(cond_idx=labels, idx=tokens[:, :-1], targets=tokens)
        primary = outputs[-1]
        losses = self._head_losses(batch, outputs[1]) if self.foresight else []
        loss = primary + sum(WEIGHT * head for head in losses)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.peer.update_ema(self.ema, self.raw)
        if self.teacher is not None:
            self.teacher.load_state_dict(self.ema.state_dict())
        values = [
            value.item() for value in (loss, *losses, primary)
        ]  # a host synchronisation each, as the script has
        return values[0]

    def _head_losses(self, batch: Any, states: list[Tensor]) -> list[Tensor]:
        if self.teacher is not None:
            with torch.no_grad():
                features = self.teacher.forward_ema(
                    cond_idx=batch.labels, idx=batch.tokens[:, :-1], targets=None
                )
            return self.peer.head_losses["E"]([features], states)
        if isinstance(self.encoder, StoredFeatures):
            return self.peer.head_losses["I"]([self.encoder(batch, self.codes)], states)
        images = self.codes.pixels(batch.index, batch.view).permute(0, 3, 1, 2).float() / 255
        features = self.encoder.forward_features(self.peer.resize(images))[
            :, self.encoder.num_prefix_tokens :
        ]
        return self.peer.head_losses["I"]([features.detach()], states)


def build(peer: Peer, config: RunConfig, foresight: bool) -> nn.Module:
    """The peer's own model of the config's shape; NTP is plain LlamaGen, without projectors."""
    m, f, module = config.model, config.foresight, peer.mirai if foresight else peer.gpt
    arguments: dict[str, Any] = {
        "dim": m.width, "n_layer": m.depth, "n_head": m.heads, "multiple_of": 256 if m.width >= 256 else 16,
        "vocab_size": config.tokenizer.vocabulary, "block_size": config.grid[0] * config.grid[1], "num_classes": config.data.classes,
        "resid_dropout_p": m.residual_dropout, "ffn_dropout_p": m.ffn_dropout, "token_dropout_p": m.token_dropout,
    }  # fmt: skip
    if foresight:
        width = m.width if f.source == "ema" else StoredFeatures.width
        arguments |= {
            "encoder_depth": resolve_layer(f.layer, m.depth),
            "num_heads": f.k,
            "z_dims": [width],
            "projector_dim": f.projector.hidden,
        }
    return module.Transformer(module.ModelArgs(**arguments))
