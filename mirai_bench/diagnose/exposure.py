"""Exposure gap: is the model less sure of how to go on after its own samples than after real images?

What a model expects to lose on the continuation that it samples itself is its entropy. Its mean over a
position is compared between prefixes that the model has sampled and real ones. A model that has the
distribution of the data has no gap, and neither has one that ignores its prefix, however well it fits:
the same function is averaged over both. A loss on *real* continuations of sampled prefixes has no such zero:
it grows with whatever the prefix no longer says about the image (reAR, arXiv 2510.04450 §3.1, avoids that
with the completed image's distance). A drift of the entropy is the sign of errors that add up
(Braverman et al., arXiv 1906.05664). Letters: N images, T tokens, V codes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mirai_bench.config.protocol import Protocol
from mirai_bench.data.batch import Batch
from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.subject import BATCH, Subject
from mirai_bench.model.transformer import ARModel
from mirai_bench.sample.sampler import Sampler

EIGHTHS = 8

HEADLINE = {
    "gap": "entropy of the next token after the model's own samples minus that after real images, in bits",
}


def measure(subject: Subject) -> Finding:
    """Compares prefixes that the EMA weights sample, without guidance, with held-out images.

    There are as many samples as held-out images, of the same classes. Prefixes are those of the n-th
    eighth of the positions: `gap_1` … `gap_8`, in bits per token, and `gap` is the mean over all positions.
    With fewer than 8 tokens there are fewer.

    detail: `own`, `real` [T], the entropy after the first s = 0 … T-1 tokens of either, in bits; `loss` [T],
    the loss on the real next token; `error` [8], the standard error of each gap.
    """
    real = subject.heldout
    model = subject.model
    own = replace(real, tokens=sampled(model, real.labels, subject.scope.seed))
    of_own, _ = entropy_and_loss(model, own)
    of_real, loss = entropy_and_loss(model, real)
    gaps = gaps_by_length(of_own, of_real)
    values = {f"gap_{number}": gap.mean().item() for number, gap in enumerate(gaps, 1)}
    values["gap"] = (of_own - of_real).mean().item()
    # The images are drawn independently, two of one class apart from that.
    errors = [(gap.std() / math.sqrt(len(gap))).item() for gap in gaps]
    detail = {"own": of_own.mean(0).tolist(), "real": of_real.mean(0).tolist()}
    return Finding(values, detail | {"loss": loss.mean(0).tolist(), "error": errors})


def sampled(model: ARModel, labels: Tensor, seed: int) -> Tensor:
    """Returns tokens (N, T) that the model samples for these labels (N,), at temperature 1."""
    protocol = Protocol(name="exposure", num_samples=max(2, len(labels)), seed=seed)
    sampler = Sampler(model, protocol, min(BATCH, len(labels)))
    numbers = torch.arange(len(labels))
    parts = zip(labels.split(sampler.batch), numbers.split(sampler.batch), strict=True)
    return torch.cat([sampler(part, indices.tolist()) for part, indices in parts])


@torch.inference_mode()
def entropy_and_loss(model: ARModel, images: Batch) -> tuple[Tensor, Tensor]:
    """Returns the entropy of each next token and the loss on the one that comes, (N, T) each, in bits."""
    entropies = []
    losses = []
    for tokens, labels in zip(images.tokens.split(BATCH), images.labels.split(BATCH), strict=True):
        log_p = model(tokens, labels).logits.double().log_softmax(-1)  # (B, T, V)
        entropies.append(-(log_p.exp() * log_p).sum(-1))
        losses.append(-log_p.gather(2, tokens[:, :, None])[:, :, 0])
    return torch.cat(entropies).cpu() / math.log(2), torch.cat(losses).cpu() / math.log(2)


def gaps_by_length(own: Tensor, real: Tensor) -> list[Tensor]:
    """Returns the differences of the images (N,) in each eighth of the positions, the first one first."""
    return [part.mean(1) for part in (own - real).tensor_split(min(EIGHTHS, own.shape[1]), 1)]
