"""Sampling through both key/value caches, driven by the same uniform numbers.

Letters: B images, T tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirai_bench.benchmark.peer.pair import ParityPair, Row, difference
from mirai_bench.config.protocol import Protocol
from mirai_bench.model.cache import HostPosition
from mirai_bench.sample.draws import draw, guide, restrict, uniforms
from mirai_bench.sample.sampler import Sampler

# How tokens are drawn. A checkout without generate.py has no filter to compare with, so only PLAIN
# is compared there.
PLAIN = "top-k 0, top-p 1"
SAMPLING: dict[str, dict[str, Any]] = {PLAIN: {}, "top-k 100, top-p 0.9": {"top_k": 100, "top_p": 0.9}}

ROUNDING = 1e-12  # a number this close to its interval is inside

Draw = Callable[..., tuple[Tensor, Tensor]]


def compare_sampling(pair: ParityPair, cfg_scale: float) -> list[Row]:
    """Compares cached decoding with guidance: guided logits along the official codes, and codes.

    A code is the interval of the cumulative distribution that the uniform number falls into.
    Rounding moves the ends of the intervals, so that now and then a number falls into a
    neighbour's, and the images differ from there on. What is measured is how far outside of its
    interval a number lies.
    """
    rows = []
    count = len(pair.labels)
    for label, choices in SAMPLING.items():
        if pair.peer.generate is None and label != PLAIN:
            continue
        protocol = Protocol(name="parity", num_samples=2, cfg_scale=cfg_scale, **choices)
        # In free running each code depends on the earlier ones, so one difference changes the rest.
        free = Sampler(pair.model, protocol, count)(pair.labels, range(count))
        theirs, logits = peer_sample(pair, protocol)
        ours = our_logits(pair, theirs, cfg_scale)
        if label == PLAIN:
            note = f"CFG {cfg_scale:g}, along the peer's codes"
            rows.append(difference("guided logits while decoding", ours, logits, note))
        outside = distance_outside(ours, theirs, uniform_numbers(pair, protocol), protocol)
        inside = int((outside == 0).sum())
        equal = int((free == theirs).sum())
        note = f"{inside} of {theirs.numel()} equal along the peer's codes, {equal} in free running"
        worst = outside.max().item()
        rows.append(Row(f"codes, {label}: uniform number outside its interval", worst, worst, note))
    return rows


def uniform_numbers(pair: ParityPair, protocol: Protocol) -> Tensor:
    """Returns the numbers (B, T) that our sampler draws its codes with."""
    count = 1 + pair.model.tokens  # the first number of a stream is for the class
    draws = [uniforms(protocol.seed, 0, index, count)[1:] for index in range(len(pair.labels))]
    return torch.from_numpy(np.stack(draws)).to(pair.device)


def distance_outside(logits: Tensor, codes: Tensor, uniform: Tensor, protocol: Protocol) -> Tensor:
    """Returns how far each uniform number (B, T) lies outside of the interval of its code, (B, T).

    logits (B, T, V) are guided ones, and codes are (B, T).
    """
    gaps = []
    for position in range(codes.shape[1]):
        allowed = restrict(logits[:, position] / protocol.temperature, protocol.top_k, protocol.top_p)
        probabilities = allowed.double().softmax(-1)
        ends = probabilities.cumsum(-1)  # (B, V), the upper end of each code's interval
        chosen = codes[:, position, None]
        upper = ends.gather(1, chosen)[:, 0]
        lower = upper - probabilities.gather(1, chosen)[:, 0]
        number = uniform[:, position] * ends[:, -1]
        gaps.append(torch.maximum(lower - number, number - upper).clamp(min=0))
    gap = torch.stack(gaps, 1)
    return torch.where(gap < ROUNDING, 0.0, gap)


def peer_sample(pair: ParityPair, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Returns official codes (B, T), drawn with our uniform numbers, and guided logits (B, T, V).

    They come from the peer's own `generate`, or from the same loop over its model if it has none.
    """
    generate = pair.peer.generate
    peer = pair.theirs(pair.peer.gpt, pair.model).eval()
    uniform = uniform_numbers(pair, protocol)
    seen: list[Tensor] = []

    def sample(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
        """Stands for the peer's `sample`: its own filter, then our uniform numbers."""
        allowed = logits[:, -1].float()
        seen.append(allowed.clone())
        if generate is not None:
            allowed = generate.top_k_top_p_filtering(allowed, top_k, top_p)
        return draw(allowed, uniform[:, len(seen) - 1])[:, None], allowed

    with torch.no_grad():
        if generate is None:
            codes = decode_loop(peer, pair.labels, pair.model.tokens, protocol.cfg_scale, sample)
        else:
            generate.sample = sample
            choices = {"top_k": protocol.top_k, "top_p": protocol.top_p}
            codes = generate.generate(
                peer, pair.labels, pair.model.tokens, cfg_scale=protocol.cfg_scale, **choices
            )
    return codes.long(), torch.stack(seen, 1)


def decode_loop(peer: Any, labels: Tensor, count: int, scale: float, sample: Draw) -> Tensor:
    """Returns `count` codes per image: prefill with the class, then one guided token at a time."""
    both = torch.cat([labels, torch.full_like(labels, peer.num_classes)])  # (2B,) with null class
    dtype = peer.tok_embeddings.weight.dtype
    with labels.device:
        peer.setup_caches(max_batch_size=len(both), max_seq_length=1 + count, dtype=dtype)
    codes: list[Tensor] = []
    for position in range(count):
        where = torch.tensor([position], device=labels.device)
        if position == 0:
            logits = peer(None, both, where)[0]
        else:
            logits = peer(codes[-1].repeat(2, 1), None, where)[0]
        codes.append(sample(guide(logits[:, -1], scale)[:, None])[0])
    return torch.cat(codes, 1)


@torch.no_grad()
def our_logits(pair: ParityPair, codes: Tensor, scale: float) -> Tensor:
    """Returns the guided logits (B, T, V) of our cached decoding along given codes (B, T)."""
    model = pair.model
    labels = pair.labels
    both = torch.cat([labels, torch.full_like(labels, model.classes)])
    cache = model.new_cache(len(both))
    x = model.cls_embedding.embedding_table(both)  # (2B, D), the input of the next position
    steps = []
    for position in range(model.tokens):
        logits = model.decode(x, HostPosition(position), cache).float()  # (2B, V)
        steps.append(guide(logits, scale))
        x = model.tok_embeddings(codes[:, position].repeat(2))
    return torch.stack(steps, 1)
