"""Two models with the same random weights, ours and the peer's, and how far two tensors are apart. Letters: T tokens."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mirai_bench.benchmark.peer.checkout import Peer
from mirai_bench.checkpoint.official import OURS, to_official
from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.load import build_run, read_profile
from mirai_bench.config.run_config import RunConfig, ffn_width
from mirai_bench.data.codes import Batch
from mirai_bench.foresight.level import InternalLevel
from mirai_bench.foresight.source import Source
from mirai_bench.model.transformer import ARModel, build_model
from mirai_bench.train.optim import clone_as_ema
from mirai_bench.utils.errors import UserError


@dataclass(frozen=True)
class Row:
    quantity: str
    absolute: float
    """largest |ours - theirs|"""
    relative: float
    """that over the largest |theirs|"""
    note: str = ""


def difference(quantity: str, ours: Tensor, theirs: Tensor, note: str = "") -> Row:
    if ours.shape != theirs.shape:
        raise UserError(
            f"{quantity}: ours is {tuple(ours.shape)}, the peer's {tuple(theirs.shape)}: is this another version of its code?"
        )
    gap = (ours.detach().double() - theirs.detach().double()).abs().max().item()
    return Row(quantity, gap, gap / max(theirs.detach().double().abs().max().item(), 1e-30), note)


def largest(quantity: str, pairs: Iterable[tuple[Tensor, Tensor]], note: str = "") -> Row:
    """Over many tensors: absolute difference over the largest value of all of them."""
    rows = [
        (difference(quantity, ours, theirs), theirs.detach().abs().max().item()) for ours, theirs in pairs
    ]
    gap = max(row.absolute for row, _ in rows)
    return Row(quantity, gap, gap / max(max(scale for _, scale in rows), 1e-30), note)


class Given:
    """A source whose features are known."""

    def __init__(self, features: Tensor) -> None:
        self.features, self.width = features, features.shape[-1]

    def __call__(self, batch: Batch, labels: Tensor) -> Tensor:
        return self.features


class Setup:
    """Our model and projectors with random weights, the peer's with the same, and one batch."""

    def __init__(self, args: argparse.Namespace, peer: Peer) -> None:
        self.peer, self.device = peer, torch.device(args.device)
        no_dropout = {f"{part}_dropout": 0.0 for part in ("token", "residual", "ffn", "class")}
        settings = {
            "seed": args.seed, "model": {"size": args.size} | no_dropout, "tokenizer": {"vocabulary": args.vocabulary},
            "data": {"image_size": 16 * args.grid, "classes": args.classes}, "train": {"precision": "fp32"},
        }  # fmt: skip

        def build(**fields):
            return build_run(read_profile("imagenet256_b"), "parity", settings | {"foresight": fields})

        self.e, self.i = build(official=True, k=args.k), build(official=True, source="encoder", k=args.k)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.model = build_model(self.e)
        self.randomise(self.model, 0.1)
        self.ema = clone_as_ema(self.model)
        self.randomise(self.ema, 0.02)
        size = (args.images, self.model.tokens)
        tokens = torch.randint(args.vocabulary, size, generator=self.generator)
        labels = torch.randint(args.classes, size[:1], generator=self.generator)
        index = torch.arange(args.images)
        self.batch = Batch(*(t.to(self.device) for t in (tokens, labels, index, torch.zeros_like(index))))
        self.encoder_features = torch.randn(*size, self.e.model.width, generator=self.generator).to(
            self.device
        )
        for module in (self.model, self.ema):
            module.to(self.device)
        self.layer = resolve_layer(self.e.foresight.layer, self.e.model.depth)

    def randomise(self, module: nn.Module, scale: float) -> None:
        """Adds noise to every parameter, so that no zero or one hides a difference."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                std = scale if name.endswith("norm.weight") or name == "output.weight" else 0.02
                parameter += std * torch.randn(parameter.shape, generator=self.generator)

    def level(self, config: RunConfig, source: Source) -> InternalLevel:
        level = InternalLevel(config, source)
        level.init_weights(torch.Generator().manual_seed(config.seed))
        return level.to(self.device)

    def theirs(self, module: Any, model: ARModel, level: InternalLevel | None = None) -> nn.Module:
        """The peer's Transformer with our weights, loaded strictly by its own names."""
        c = model.config
        arguments = {
            "dim": c.width, "n_layer": c.depth, "n_head": c.heads, "multiple_of": 256 if c.width >= 256 else 16,
            "vocab_size": model.vocabulary, "block_size": model.tokens, "num_classes": model.classes,
            "token_dropout_p": 0.0, "resid_dropout_p": 0.0, "ffn_dropout_p": 0.0,
        }  # fmt: skip
        state = dict(model.state_dict())
        if level is not None:
            f = self.e.foresight
            arguments |= {
                "encoder_depth": self.layer,
                "num_heads": f.k,
                "z_dims": [c.width],
                "projector_dim": f.projector.hidden,
            }
            state |= {OURS + name: tensor for name, tensor in level.projector.state_dict().items()}
        peer = module.Transformer(module.ModelArgs(**arguments)).to(self.device)
        assert peer.layers[0].feed_forward.w1.out_features == ffn_width(c.width), (
            "the same feed-forward width"
        )
        peer.load_state_dict(to_official(state))
        peer.cls_embedding.dropout_prob = 0.0  # the null class stays in the table, but no label is dropped
        return peer.train()
