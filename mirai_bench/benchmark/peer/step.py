"""The official model and training step, driven as the official scripts drive them.

The step has its own EMA, teacher copy, losses and optimizer, and reads every loss on the host. What
the processes of the official data loader do is left out.

Letters: B batch, T tokens, K heads, Z feature width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mirai_bench.benchmark.peer.checkout import Peer, official_flags
from mirai_bench.benchmark.workload import DINOV2_WIDTH, StoredFeatures, TrainStep
from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.batch import Batch
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.utils.errors import UserError

# What the official scripts train with.
WEIGHT_DECAY = 0.05
LEARNING_RATE = 1e-4
BETAS = (0.9, 0.95)
CLIP = 1.0
HEAD_WEIGHT = 2.0  # λ of each head


def supports(peer: Peer, config: RunConfig) -> bool:
    """Tells whether the peer has the config's foresight.

    Only Mirai aligns states, and neither has multi-token heads.
    """
    if config.foresight.internal:
        return peer.mirai is not None
    return config.foresight.level == "none"


def build(models: Any, config: RunConfig, target_width: int | None = None) -> Any:
    """Returns the official model of the config's shape, from the module `models` of a checkout.

    With a `target_width` Z it has the config's projectors, which only Mirai's module knows.
    """
    model = config.model
    arguments: dict[str, Any] = {"dim": model.width, "n_layer": model.depth, "n_head": model.heads}
    arguments["multiple_of"] = 256 if model.width >= 256 else 16
    arguments |= {"block_size": config.num_tokens, "vocab_size": config.tokenizer.vocabulary}
    arguments |= {"num_classes": config.data.classes, "token_dropout_p": model.token_dropout}
    arguments |= {"resid_dropout_p": model.residual_dropout, "ffn_dropout_p": model.ffn_dropout}
    if target_width is not None:
        foresight = config.foresight
        arguments["encoder_depth"] = resolve_layer(foresight.layer, model.depth)
        arguments |= {"num_heads": foresight.k, "projector_dim": foresight.projector.hidden}
        arguments["z_dims"] = [target_width]
    return models.Transformer(models.ModelArgs(**arguments))


class PeerStep:
    """Computes one official step per call, on the batches of our own step.

    `bf16` runs it under autocast, which the official script does on a GPU only.
    """

    def __init__(self, peer: Peer, ours: TrainStep, bf16: bool) -> None:
        config = ours.config
        foresight = config.foresight
        if not supports(peer, config):
            raise UserError(
                f"{peer.name} has no counterpart of foresight.level {foresight.level}: leave out "
                "--peer, or this arm"
            )
        self.peer = peer
        self.config = config
        self.codes = ours.trainer.codes
        self.bf16 = bf16
        self.steps = 0
        # 1. The model, and its EMA.
        device = ours.trainer.device
        if foresight.internal:
            target_width = config.model.width if foresight.explicit else DINOV2_WIDTH
            self.raw = build(peer.models, config, target_width).to(device)
        else:
            self.raw = build(peer.gpt, config).to(device)
        self.ema = copy.deepcopy(self.raw).requires_grad_(False).eval()
        # 2. What gives the targets: a copy of the EMA, stored features, or an encoder.
        self.teacher: Any = None
        self.stored: StoredFeatures | None = None
        self.encoder: Any = None
        if foresight.internal and foresight.explicit:
            self.teacher = copy.deepcopy(self.ema)
        elif foresight.internal and foresight.encoder.cache:
            self.stored = StoredFeatures(config, device)
        elif foresight.internal:
            self.encoder = PixelEncoder("dinov2_b", config.grid, device, weights="random").model
        # 3. The optimizer, and compilation if our own step is compiled.
        self.optimizer = peer.optimizer(self.raw, WEIGHT_DECAY, LEARNING_RATE, BETAS)
        compiled: Any = torch.compile(self.raw) if ours.trainer.hardware.compile else self.raw
        self.model = compiled.train()

    def __call__(self) -> float:
        """Computes the next step and returns its loss."""
        with official_flags():
            return self._step()

    def _step(self) -> float:
        train = self.config.train
        batch = self.codes.batch(
            seed=self.config.seed_of("order"), step=self.steps, rank=0, world=1, batch_size=train.batch_size
        )
        self.steps += 1
        inputs = batch.tokens[:, :-1]
        with torch.autocast(self.codes.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.model(cond_idx=batch.labels, idx=inputs, targets=batch.tokens)
        ntp = outputs[-1]  # of (logits, loss), or with projectors (logits, states, loss)
        losses = self._head_losses(batch, outputs[1]) if self.config.foresight.internal else []
        loss = ntp + sum(HEAD_WEIGHT * head for head in losses)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.peer.update_ema(self.ema, self.raw)
        if self.teacher is not None:
            self.teacher.load_state_dict(self.ema.state_dict())
        # The official script reads each loss on the host, which waits for the device each time.
        values = [value.item() for value in (loss, *losses, ntp)]
        return values[0]

    def _head_losses(self, batch: Batch, states: list[Tensor]) -> list[Tensor]:
        """Returns the loss of each head, whose projected states are (B, T, Z)."""
        mirai = self.peer.mirai
        assert mirai is not None, "the peer supports the arm"
        if self.teacher is not None:
            with torch.no_grad():
                features = self.teacher.forward_ema(cond_idx=batch.labels, idx=batch.tokens[:, :-1])
            return mirai.head_losses["E"]([features], states)
        if self.stored is not None:
            features = self.stored(batch, batch.labels)
        else:
            images = self.codes.pixels(batch.index, batch.view).permute(0, 3, 1, 2).float() / 255
            tokens = self.encoder.forward_features(mirai.resize(images))
            features = tokens[:, self.encoder.num_prefix_tokens :].detach()  # (B, T, Z)
        return mirai.head_losses["I"]([features], states)
