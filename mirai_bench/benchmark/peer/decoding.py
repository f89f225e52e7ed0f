"""Sampling through both key/value caches, driven by the same uniform numbers. Letters: B batch, T tokens, V codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirai_bench.benchmark.peer.pair import Row, Setup, difference
from mirai_bench.config.protocol import Protocol
from mirai_bench.model.transformer import Place
from mirai_bench.sample.draws import draw, guide, restrict, uniforms
from mirai_bench.sample.sampler import Sampler

PLAIN = "top-k 0, top-p 1"


SAMPLING: dict[str, dict[str, Any]] = {PLAIN: {}, "top-k 100, top-p 0.9": {"top_k": 100, "top_p": 0.9}}


def compare_sampling(setup: Setup, cfg_scale: float) -> list[Row]:
    """Cached decoding with guidance, both driven by the same uniform numbers: the guided logits along the peer's codes, and the codes.

    A code is the interval of the cumulative distribution that the uniform number falls into. Rounding moves the ends of intervals, so
    now and then a number falls into a neighbour's, and the images go apart from there: what is measured is how far outside.
    """
    rows, count = [], len(setup.batch.labels)
    kinds = (
        SAMPLING if setup.peer.generate is not None else {PLAIN: SAMPLING[PLAIN]}
    )  # no filter there to compare with
    for label, choices in kinds.items():
        protocol = Protocol(name="parity", num_samples=2, cfg_scale=cfg_scale, **choices)
        free = Sampler(setup.model, protocol, count)(setup.batch.labels, range(count))
        theirs, logits = peer_sample(setup, protocol)
        ours = our_logits(setup, theirs, cfg_scale)
        if not choices:
            rows.append(
                difference(
                    "guided logits while decoding", ours, logits, f"CFG {cfg_scale:g}, along the peer's codes"
                )
            )
        outside = distance_outside(ours, theirs, uniform_numbers(setup, protocol), protocol)
        inside, equal, all_ = int((outside == 0).sum()), int((free == theirs).sum()), theirs.numel()
        note = f"{inside} of {all_} equal along the peer's codes, {equal} in free running"
        rows.append(
            Row(
                f"codes, {label}: uniform number outside its interval",
                outside.max().item(),
                outside.max().item(),
                note,
            )
        )
    return rows


def uniform_numbers(setup: Setup, protocol: Protocol) -> Tensor:
    """(B, T), those of our sampler."""
    draws = [
        uniforms(protocol.seed, index, 1 + setup.model.tokens)[1:] for index in range(len(setup.batch.labels))
    ]
    return torch.from_numpy(np.stack(draws)).to(setup.device)


def distance_outside(logits: Tensor, codes: Tensor, uniform: Tensor, protocol: Protocol) -> Tensor:
    """Guided logits (B, T, V), codes and uniform numbers (B, T) → how far each number lies outside its code's interval (B, T)."""
    gaps = []
    for position in range(codes.shape[1]):
        allowed = restrict(logits[:, position] / protocol.temperature, protocol.top_k, protocol.top_p)
        ends = allowed.double().softmax(-1).cumsum(-1)
        upper = ends.gather(1, codes[:, position, None])[:, 0]
        width = allowed.double().softmax(-1).gather(1, codes[:, position, None])[:, 0]
        number = uniform[:, position] * ends[:, -1]
        gaps.append(torch.maximum(upper - width - number, number - upper).clamp(min=0))
    gap = torch.stack(gaps, 1)
    return torch.where(gap < 1e-12, 0.0, gap)


def peer_sample(setup: Setup, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """The peer's generate, or where its file is missing the same loop over its model → codes (B, T), guided logits (B, T, V)."""
    peer = setup.theirs(setup.peer.gpt, setup.model).eval()
    labels, count = setup.batch.labels, setup.model.tokens
    uniform, seen = uniform_numbers(setup, protocol), []

    def sample(
        logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """In the place of the peer's: its own filter, then our uniform numbers instead of multinomial's."""
        logits = logits[:, -1].float()
        seen.append(logits.clone())
        allowed = (
            setup.peer.generate.top_k_top_p_filtering(logits / temperature, top_k, top_p)
            if setup.peer.generate
            else logits
        )
        return draw(allowed, uniform[:, len(seen) - 1])[:, None], allowed

    with torch.no_grad():
        if setup.peer.generate is not None:
            setup.peer.generate.sample = sample
            options = {
                "cfg_scale": protocol.cfg_scale,
                "temperature": 1.0,
                "top_k": protocol.top_k,
                "top_p": protocol.top_p,
            }
            codes = setup.peer.generate.generate(peer, labels, count, **options)
        else:
            codes = decode_loop(peer, labels, count, protocol.cfg_scale, sample)
    return codes.long(), torch.stack(seen, 1)


def decode_loop(
    peer: Any, labels: Tensor, count: int, scale: float, sample: Callable[..., tuple[Tensor, Tensor]]
) -> Tensor:
    """Prefill with the class, then token by token through the peer's key/value cache, guided at every token."""
    both = torch.cat([labels, torch.full_like(labels, peer.num_classes)])
    with labels.device:
        peer.setup_caches(
            max_batch_size=len(both), max_seq_length=1 + count, dtype=peer.tok_embeddings.weight.dtype
        )
    codes: list[Tensor] = []
    for position in range(count):
        token = codes[-1].repeat(2, 1) if codes else None
        where = torch.tensor([position], device=labels.device)
        logits = peer(token, None if codes else both, where)[0]
        codes.append(sample(guide(logits[:, -1], scale)[:, None])[0])
    return torch.cat(codes, 1)


@torch.no_grad()
def our_logits(setup: Setup, codes: Tensor, scale: float) -> Tensor:
    """Our cached decoding along given codes → guided logits (B, T, V)."""
    model, labels = setup.model, setup.batch.labels
    both = torch.cat([labels, torch.full_like(labels, model.classes)])
    cache, x, steps = model.new_cache(len(both)), model.cls_embedding.embedding_table(both), []
    for position in range(model.tokens):
        steps.append(guide(model.decode(x, Place(position, position + 1), cache).float(), scale))
        x = model.tok_embeddings(codes[:, position].repeat(2))
    return torch.stack(steps, 1)
