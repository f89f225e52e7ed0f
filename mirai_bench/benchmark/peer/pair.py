"""Two models with the same random weights, ours and the official one, and how far tensors differ.

Letters: B images, T tokens, D width, K heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mirai_bench.benchmark.peer.checkout import Peer
from mirai_bench.benchmark.peer.step import build
from mirai_bench.checkpoint.official import OUR_PROJECTOR, to_official
from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.load import build_run, read_profile
from mirai_bench.config.model_config import ffn_width
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.synthetic import random_codes
from mirai_bench.foresight.context import SourceContext
from mirai_bench.foresight.level import InternalLevel
from mirai_bench.model.transformer import ARModel, build_model
from mirai_bench.train.optim import clone_as_ema
from mirai_bench.utils.errors import UserError

TINY = 1e-30  # keeps a relative difference finite where all values are zero


@dataclass(frozen=True)
class ParityOptions:
    """What the two codes are compared on."""

    device: torch.device
    size: str
    """Name of the model size."""
    grid: int
    """Number of tokens along each side. Mirai's offsets are those of 16."""
    vocabulary: int
    classes: int
    images: int
    k: int
    """Number of foresight heads."""
    cfg_scale: float
    seed: int

    def config(self, **foresight: Any) -> RunConfig:
        """Returns the config of a run without dropout and without dropped labels."""
        dropouts = ("token_dropout", "residual_dropout", "ffn_dropout", "class_dropout")
        settings = {
            "seed": self.seed,
            "model": {"size": self.size} | dict.fromkeys(dropouts, 0.0),
            "tokenizer": {"vocabulary": self.vocabulary},
            "data": {"image_size": 16 * self.grid, "classes": self.classes},
            "train": {"precision": "fp32", "batch_size": self.images},
            "foresight": {"official": True, "k": self.k} | foresight,
            "machine": {"workers": 1, "gpus": 0},
        }
        return build_run(read_profile("imagenet256_b"), "parity", settings)


@dataclass(frozen=True)
class Row:
    """How far a quantity of ours differs from the official one."""

    quantity: str
    absolute: float
    """Largest absolute difference."""
    relative: float
    """The same, divided by the largest absolute value of the official quantity."""
    note: str = ""


def difference(quantity: str, ours: Tensor, theirs: Tensor, note: str = "") -> Row:
    """Returns how far two tensors differ. Raises UserError if their shapes do."""
    return largest(quantity, [(ours, theirs)], note)


def largest(quantity: str, pairs: Iterable[tuple[Tensor, Tensor]], note: str = "") -> Row:
    """Returns the largest difference of pairs of ours and theirs, also relative to all values."""
    gaps = []
    scales = []
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            shapes = f"ours is {tuple(ours.shape)}, the peer's {tuple(theirs.shape)}"
            raise UserError(f"{quantity}: {shapes}: is this another version of its code?")
        expected = theirs.detach().double()
        gaps.append((ours.detach().double() - expected).abs().max())
        scales.append(expected.abs().max())
    gap = torch.stack(gaps).max().item()  # NaN if there is one
    scale = torch.stack(scales).max().item()
    return Row(quantity, gap, gap / max(scale, TINY), note)


class ParityPair:
    """Our model with random weights, the official one with the same weights, and one batch."""

    def __init__(self, options: ParityOptions, peer: Peer) -> None:
        self.peer = peer
        self.device = options.device
        # 1. The configs of Mirai-E and Mirai-I. Any bidirectional source will do for the latter:
        #    its features are given.
        self.e = options.config()
        official = options.config(source="encoder")
        foresight = official.foresight.model_copy(update={"source": "random"})
        self.i = official.model_copy(update={"foresight": foresight})
        self.layer = resolve_layer(self.e.foresight.layer, self.e.model.depth)
        # 2. The weights.
        self.generator = torch.Generator().manual_seed(options.seed)
        self.model = build_model(self.e)
        self._randomise(self.model, 0.1)
        self.ema = clone_as_ema(self.model)
        self._randomise(self.ema, 0.02)
        # 3. The inputs: tokens (B, T), labels (B,), and features (B, T, D) of an encoder.
        size = (options.images, self.model.tokens)
        tokens = torch.randint(options.vocabulary, size, generator=self.generator)
        labels = torch.randint(options.classes, size[:1], generator=self.generator)
        features = torch.randn(*size, self.e.model.width, generator=self.generator)
        self.tokens = tokens.to(self.device)
        self.labels = labels.to(self.device)
        self.features = features.to(self.device)
        self.model.to(self.device)
        self.ema.to(self.device)

    def _randomise(self, module: nn.Module, scale: float) -> None:
        """Adds noise to every parameter, so that no zero or one hides a difference."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                std = scale if name.endswith("norm.weight") or name == "output.weight" else 0.02
                parameter.add_(std * torch.randn(parameter.shape, generator=self.generator))

    def level(self, config: RunConfig) -> InternalLevel:
        """Returns our foresight heads. The teacher of Mirai-E is our EMA."""
        codes = random_codes(config, self.device)
        level = InternalLevel(SourceContext(config, self.ema, codes, lambda: self.ema, self.device))
        level.init_weights(torch.Generator().manual_seed(config.seed_of("init")))
        return level.to(self.device)

    def theirs(self, models: Any, model: ARModel, level: InternalLevel | None = None) -> Any:
        """Returns the official model of the module `models` with our weights, loaded strictly."""
        state = dict(model.state_dict())
        if level is not None:
            for name, tensor in level.projector.state_dict().items():
                state[OUR_PROJECTOR + name] = tensor
        peer = build(models, self.e, None if level is None else level.source.width).to(self.device)
        hidden = peer.layers[0].feed_forward.w1.out_features
        assert hidden == ffn_width(self.e.model.width), "the same feed-forward width"
        peer.load_state_dict(to_official(state))
        peer.cls_embedding.dropout_prob = 0.0  # the null class stays in the table
        return peer.train()
