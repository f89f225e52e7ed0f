"""Similarity of representations: whose view of the images do the states have?

States of every layer are compared with features of the run's own teacher, with the same layer of the
baseline of the same seed, and with a classifier's features that no arm was trained with.

A sample is an image, seen from one cell: the states at that cell. Each measure is taken at eight cells and
averaged. Neither a cell's position nor the likeness of neighbouring cells of one image then counts, and an
encoder that has one feature for the whole image can be compared, too. Letters: n images, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.diagnose.absorption import PART
from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.subject import NotMeasurable, Subject
from mirai_bench.evaluate.extractors import EXTRACTORS, open_extractor
from mirai_bench.foresight.level import InternalLevel
from mirai_bench.utils.errors import UserError

NEIGHBOURS = 10  # as in REPA (arXiv 2410.06940)
CELLS = 8
EQUAL = 1e-6  # cosines that differ by less are equal: float32 has 7 digits

HEADLINE = {
    "encoder": "CKNNA of the middle layer's states and features of a classifier that no arm was trained with",
}


def measure(subject: Subject) -> Finding:
    """Compares the states after each block with those of others.

    Values are `cknna_OTHER@l`, `cka_OTHER@l` (unbiased, linear) and `knn_OTHER@l` (mutual nearest
    neighbours), where OTHER is `teacher`, `baseline` or `encoder`, as far as there is one. With
    `teacher_baseline` the baseline's states are compared with this run's teacher. Without @l they are
    those of the middle layer; `encoder` is its CKNNA. There is no detail.
    """
    values: dict[str, float] = {}
    for name, ours, theirs in what_is_compared(subject):
        for layer, (x, y) in enumerate(zip(ours, theirs, strict=True), 1):
            for measured, value in similarities(x, y).items():
                values[f"{measured}_{name}@{layer}"] = value
        for measured in SIMILARITIES:
            values[f"{measured}_{name}"] = values[f"{measured}_{name}@{subject.middle}"]
    if not values:
        raise NotMeasurable("it has no teacher, no baseline and no classifier to be compared with")
    if "cknna_encoder" in values:
        values["encoder"] = values["cknna_encoder"]
    return Finding(values, {})


# ---- what is compared


def what_is_compared(subject: Subject) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Yields the name of a comparison, and what is compared at each layer: (CELLS, n, …) on both sides."""
    states = at_blocks(subject)
    teacher = teacher_features(subject)
    encoder = encoder_features(subject)
    if teacher is not None:
        yield "teacher", states, [teacher] * len(states)
    if subject.baseline is not None:
        others = at_blocks(subject.baseline)
        yield "baseline", states, others
        if teacher is not None:
            yield "teacher_baseline", others, [teacher] * len(states)
    if encoder is not None:
        yield "encoder", states, [encoder.expand(CELLS, -1, -1)] * len(states)


def at_blocks(subject: Subject) -> list[Tensor]:
    """Returns the states (CELLS, n, D) of held-out images at evenly spaced cells, after each block."""
    # The embeddings of a cell are those of a few tokens, so there are no neighbours to speak of.
    return [at_cells(states) for states in islice(subject.layers(subject.heldout), 1, None)]


def at_cells(states: Tensor) -> Tensor:
    """Returns states (n, T, D) at evenly spaced cells, as (CELLS, n, D)."""
    last = states.shape[1] - 1  # state s has consumed s tokens
    at = [max(1, round(last * number / CELLS)) for number in range(1, CELLS + 1)]
    return states[:, at].transpose(0, 1).float()


def teacher_features(subject: Subject) -> Tensor | None:
    """Returns the features (CELLS, n, Z) of the run's teacher, or None if it has none of its own.

    The run's own EMA is none: its states are those that are looked at.
    """
    foresight = subject.config.foresight
    if not foresight.internal or foresight.provider == "ema":
        return None
    try:
        level = subject.heldout_objective.foresight
    except NotMeasurable:
        return None
    assert isinstance(level, InternalLevel), "it is an internal level"
    images = subject.heldout
    with torch.no_grad():
        parts = images.split(-(-len(images.tokens) // PART))
        features = torch.cat([level.source(part, part.labels).float() for part in parts])
    if not foresight.explicit:  # feature j is that of cell j, and of an explicit source that of state j
        features = F.pad(features, (0, 0, 1, 0))[:, :-1]
    return at_cells(features)


def encoder_features(subject: Subject) -> Tensor | None:
    """Returns the features (n, d) of the images in the classifier of the evaluation, or None without one."""
    name = subject.config.evaluation.protocol.extractor
    if name not in EXTRACTORS or not EXTRACTORS[name].labels:
        return None
    try:
        extractor = open_extractor(subject.config, name, subject.device)
    except UserError:
        return None
    batch = subject.heldout
    images = subject.heldout_codes.pixels(batch.index, batch.view)
    pool = extractor(images.cpu().numpy())["pool"]
    return torch.from_numpy(pool).float().to(subject.device)


# ---- measures of similarity. All are between rows of x (n, D) and rows of y (n, Z).


def similarities(x: Tensor, y: Tensor) -> dict[str, float]:
    """Returns every measure, averaged over the cells of x (CELLS, n, D) and y (CELLS, n, Z)."""
    found = {}
    for name, similarity in SIMILARITIES.items():
        found[name] = sum(similarity(a, b) for a, b in zip(x, y, strict=True)) / len(x)
    return found


def kernel(x: Tensor, *, unit: bool) -> Tensor:
    """Returns the inner products (n, n) of the centred rows, of unit length if `unit`.

    CKNNA and shared neighbours are published without centring, so that values cannot be compared with
    those of other papers. States of a transformer have a large common mean, beside which all rows
    would be neighbours.
    """
    x = x.double() - x.double().mean(0)
    if unit:
        x = F.normalize(x, dim=-1)
    return x @ x.T


def nearest(products: Tensor) -> Tensor:
    """Returns which k rows are nearest to each row, by the largest inner products, (n, n) bool.

    Rows that are as near as the k-th one are neighbours, too: images that begin alike have equal states.
    """
    without_self = products.clone().fill_diagonal_(-torch.inf)
    last = without_self.topk(min(NEIGHBOURS, len(products) - 1), 1).values[:, -1:]
    return without_self >= last - EQUAL


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """Returns the unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al. 2012)."""
    n = len(k)
    k = k.clone().fill_diagonal_(0)
    m = m.clone().fill_diagonal_(0)
    product = (k.sum(0) * m.sum(1)).sum()  # of all elements of k @ m
    total = (k * m.T).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * product / (n - 2)
    return total / (n * (n - 3))


def normalised(xy: Tensor, xx: Tensor, yy: Tensor) -> float:
    """Returns xy / sqrt(xx · yy), and 0 where rows do not differ at all."""
    return (xy / (xx * yy).clamp(min=1e-24).sqrt()).item()


def unbiased_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA (Kornblith et al. 2019) of unbiased estimates: 0 in the mean if x and y are independent.

    The usual, biased estimate is near 1 if there are fewer rows than columns.
    """
    k, m = kernel(x, unit=False), kernel(y, unit=False)
    return normalised(hsic(k, m), hsic(k, k), hsic(m, m))


def cknna(x: Tensor, y: Tensor) -> float:
    """CKNNA (Huh et al., arXiv 2405.07987): unbiased CKA over the neighbours that x and y agree on."""
    k, m = kernel(x, unit=True), kernel(y, unit=True)
    of_k, of_m = nearest(k), nearest(m)
    both = of_k & of_m
    return normalised(hsic(k * both, m * both), hsic(k * of_k, k * of_k), hsic(m * of_m, m * of_m))


def mutual_neighbours(x: Tensor, y: Tensor) -> float:
    """Returns the share of the k nearest neighbours in x that are so in y, too."""
    of_x, of_y = nearest(kernel(x, unit=True)), nearest(kernel(y, unit=True))
    return ((of_x & of_y).sum() / (of_x.sum() * of_y.sum()).sqrt()).item()


SIMILARITIES = {"cknna": cknna, "cka": unbiased_cka, "knn": mutual_neighbours}
