"""Triviality of the target: how much of what foresight teaches is the position of the cell?

If a target is nearly the same vector in every image, a small loss says little: a constant reaches it, too.
Letters: N images, T states, K heads, Z width of the targets, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.data.batch import Batch
from mirai_bench.diagnose.absorption import FITTED, PART, Pairs, projected_cosines
from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.probes import Examples, log_marginals
from mirai_bench.diagnose.subject import NotMeasurable, Subject
from mirai_bench.foresight.level import InternalLevel, Level, OutputLevel
from mirai_bench.foresight.loss import reduce_heads
from mirai_bench.train.objective import Objective

HEADLINE = {
    "constant": "foresight loss of the best constant of each cell, which knows nothing of the image",
    "removed": "share of that loss which the trained heads remove",
    "position": "share of the target's variance (internal) or entropy (output) that its cell explains",
}


def measure(subject: Subject) -> Finding:
    """Compares the trained foresight loss on held-out images with that of constants.

    Constants are fitted to training images. Losses are reduced over the heads as the run's configuration
    says, so `loss` compares with the journal's unless `foresight.loss` is another one than the cosine,
    which is what is measured here. Of an internal level, `constant_center` is the loss of
    constants if the mean of all targets is subtracted first. detail: `constant` [K] and
    `loss` [K], by head; heads without a pair have 0.
    """
    objective = subject.objective
    level = objective.foresight
    if isinstance(level, InternalLevel):
        return of_features(subject, level)
    if isinstance(level, OutputLevel):
        return of_tokens(subject, level)
    raise NotMeasurable("nothing is foreseen")


# ---- internal levels


def of_features(subject: Subject, level: InternalLevel) -> Finding:
    """Measures an internal level, whose targets are features and whose loss is 1 - cosine."""
    few = max(2, round(subject.scope.fit_images * FITTED))
    fit, _ = raw_pairs(subject.objective, subject.training(few))
    heldout, states = raw_pairs(subject.heldout_objective, subject.heldout)
    norm = level.config.target_norm
    values = {"position": explained_by_cell(level.targets(fit), level.targets(heldout))}
    by_head: dict[str, Tensor] = {}
    for name in (norm, "center"):
        constant = constant_cosines(level.targets(fit, name), level.targets(heldout, name))
        by_head[name] = 1 - over_pairs(constant, level)
    values["constant_center"] = reduced(by_head["center"], level)
    targets = F.normalize(level.targets(heldout), dim=-1)
    trained = 1 - projected_cosines(level, Pairs(states, targets)).to(targets.device)
    return compared(values, by_head[norm], trained, level)


@torch.no_grad()
def raw_pairs(objective: Objective, images: Batch) -> tuple[Tensor, Tensor]:
    """Returns the source's features (N, T, Z), and the states (N, T, D) that are aligned with them."""
    level = objective.foresight
    assert isinstance(level, InternalLevel) and level.tap is not None, "measure has asked"
    features = []
    states = []
    for part in images.split(-(-len(images.tokens) // PART)):
        features.append(level.source(part, part.labels).float())
        states.append(objective.model.states(part.tokens, part.labels, level.tap))
    return torch.cat(features), torch.cat(states)


def explained_by_cell(fit: Tensor, heldout: Tensor) -> float:
    """Returns the share of the variance of targets (n, T, Z) that the mean of each cell explains.

    The means are those of `fit` (N, T, Z).
    """
    rest = (heldout - fit.mean(0)).square().mean()
    return (1 - rest / (heldout - fit.mean((0, 1))).square().mean()).item()


def constant_cosines(fit: Tensor, heldout: Tensor) -> Tensor:
    """Returns the mean cosine (T,) of targets to the constant of their cell that is best for `fit`.

    The mean cosine to a direction is its inner product with the mean of the unit targets, so the best
    direction is that of this mean.
    """
    best = F.normalize(F.normalize(fit, dim=-1).mean(0), dim=-1)  # (T, Z)
    return (F.normalize(heldout, dim=-1) * best).sum(-1).mean(0)


# ---- output levels


def of_tokens(subject: Subject, level: OutputLevel) -> Finding:
    """Measures an output level, whose targets are tokens and whose loss is the cross-entropy in nats."""
    tokens = subject.heldout.tokens
    vocabulary = subject.config.tokenizer.vocabulary
    shares = log_marginals(examples(subject.fit.tokens), vocabulary)[:, 0]  # (T, V)
    everywhere = log_marginals(examples(subject.fit.tokens.flatten()[:, None]), vocabulary)[0, 0]  # (V,)
    by_cell = -shares.gather(1, tokens.T).mean(1)  # (T,), the loss at each cell
    values = {"position": 1 - (by_cell.mean() / -everywhere[tokens].mean()).item()}
    trained = trained_losses(subject.objective, level, subject.heldout)
    return compared(values, over_pairs(by_cell, level), trained, level)


def examples(tokens: Tensor) -> Examples:
    """Returns tokens (N, T) as examples of probes without features."""
    cells = tokens.T
    nothing = torch.zeros(*cells.shape, 0, device=tokens.device)
    return Examples(nothing, cells[..., None], torch.ones_like(cells[:, :1], dtype=torch.bool))


@torch.no_grad()
def trained_losses(objective: Objective, level: OutputLevel, images: Batch) -> Tensor:
    """Returns the loss of each trained head (K - 1,)."""
    total = torch.zeros(len(level.heads), device=images.tokens.device)
    for part in images.split(-(-len(images.tokens) // PART)):
        final = objective.model.trunk(part.tokens, part.labels).final
        for number, head in enumerate(level.heads):
            valid = level.valid[:, number]
            logits = final[:, valid] @ head.T  # (n, t, V)
            targets = part.tokens[:, level.index[valid, number]]
            total[number] += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return total / (level.valid.sum(0).clamp(min=1) * len(images.tokens))


# ---- heads


def over_pairs(of_target: Tensor, level: Level) -> Tensor:
    """Returns the mean over the pairs of each head (K,) of what each target has, (T,)."""
    valid = level.valid.float()
    return (of_target[level.index] * valid).sum(0) / valid.sum(0).clamp(min=1)


def reduced(of_heads: Tensor, level: Level) -> float:
    """Reduces losses (K,) as the run's loss is reduced. Heads without a pair have none."""
    return reduce_heads(of_heads * level.valid.any(0), level.valid, level.config.reduce).item()


def compared(values: dict[str, float], constant: Tensor, trained: Tensor, level: Level) -> Finding:
    """Returns the finding from the losses (K,) of constants and of the trained heads."""
    values |= {"constant": reduced(constant, level), "loss": reduced(trained, level)}
    values["removed"] = 1 - values["loss"] / max(values["constant"], 1e-12)
    has_pair = level.valid.any(0)
    detail = {"constant": (constant * has_pair).tolist(), "loss": (trained * has_pair).tolist()}
    return Finding(values, detail)
