"""Spatial structure of the states: are neighbouring cells alike, and how many directions are used?

LDS, CDS, RMSC and SRSS are those of iREPA (arXiv 2512.10794), with its distances for 16×16 cells scaled to
the grid. Letters: N images, C cells, D width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.subject import Subject

FAR = 6 / 16  # of the grid's longer side: cells so far apart are distant
DECAY = 8 / 16  # of the grid's longer side: how far the decay of similarity is followed
TOP = 1 / 16  # of the directions: those whose share of all singular values is told (REPA: 50 of 768)

HEADLINE = {
    "lds": "cosine of neighbouring states minus that of distant ones, in the middle layer",
    "rank": "effective number of directions of the states, in the middle layer",
}


def measure(subject: Subject) -> Finding:
    """Measures the states at their cells, layer by layer."""
    distances = cell_distances(*subject.grid)[:-1, :-1]  # no state has consumed the last cell
    far = max(2, round(FAR * max(subject.grid)))
    decay = max(2, round(DECAY * max(subject.grid)))
    ink = foreground(subject)
    values: dict[str, float] = {}
    profile = []
    for layer, states in enumerate(subject.layers(subject.heldout)):
        at_cells = states[:, 1:].float()  # (N, C, D): state s has just consumed cell s-1
        by_distance = similarity_by_distance(at_cells, distances)
        profile.append(by_distance.tolist())
        values[f"lds@{layer}"] = local_minus_distant(at_cells, distances, far)
        values[f"cds@{layer}"] = decay_slope(by_distance, decay)
        values[f"rmsc@{layer}"] = contrast(at_cells)
        spectrum = singular_values(at_cells)
        values[f"rank@{layer}"] = effective_rank(spectrum)
        values[f"top@{layer}"] = share_of_largest(spectrum)
        if ink is not None:
            values[f"srss@{layer}"] = foreground_contrast(at_cells, distances, ink[:, :-1], far)
    values |= {name: values[f"{name}@{subject.middle}"] for name in HEADLINE}
    return Finding(values, {"similarity_by_distance": profile})


def foreground(subject: Subject) -> Tensor | None:
    """Returns which cells (N, T) show the object, where the data says so: ink, on digits."""
    if subject.config.data.dataset != "digits":
        return None
    return subject.heldout.tokens > 0


def cell_distances(rows: int, columns: int) -> Tensor:
    """Returns the Manhattan distance (T, T) of every two cells."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # (T, 2)
    return (places[:, None] - places[None]).abs().sum(-1)


def cosines(states: Tensor) -> Tensor:
    """Returns the cosine (N, C, C) of every two states of an image."""
    unit = F.normalize(states, dim=-1)
    return unit @ unit.transpose(1, 2)


def similarity_by_distance(states: Tensor, distances: Tensor) -> Tensor:
    """Returns the mean cosine of cells at each distance, from 1 up."""
    mean = cosines(states).mean(0).cpu()  # (C, C)
    return torch.stack([mean[distances == d].mean() for d in range(1, int(distances.max()) + 1)])


def local_minus_distant(states: Tensor, distances: Tensor, far: int) -> float:
    """LDS: the mean cosine of the four neighbours minus that of cells at least `far` apart."""
    mean = cosines(states).mean(0).cpu()
    return (mean[distances == 1].mean() - mean[distances >= far].mean()).item()


def decay_slope(by_distance: Tensor, most: int) -> float:
    """CDS: how fast the cosine falls with distance: minus the slope of a line through distances 1 … most."""
    followed = by_distance[:most].double().numpy()
    return -float(np.polyfit(np.arange(1, len(followed) + 1), followed, 1)[0])


def contrast(states: Tensor) -> float:
    """RMSC: the root mean square distance of an image's unit states to their mean, over the images."""
    unit = F.normalize(states, dim=-1)
    deviations = (unit - unit.mean(1, keepdim=True)).square().sum(-1)  # (N, C)
    return deviations.mean(1).sqrt().mean().item()


def foreground_contrast(states: Tensor, distances: Tensor, ink: Tensor, far: int) -> float:
    """SRSS: from cells of the object, the mean cosine to the object nearby minus to the background afar.

    Nearby is a distance of 1, afar of at least `far`. ink is (N, C) bool.
    """
    found = cosines(states).cpu()
    anchor = ink.cpu()[:, :, None]
    other = ink.cpu()[:, None]
    near = anchor & other & (distances == 1)
    afar = anchor & ~other & (distances >= far)
    return (found[near].mean() - found[afar].mean()).item()


def singular_values(states: Tensor) -> Tensor:
    """Returns the singular values (D,) of all states, centred, the largest first."""
    rows = states.flatten(0, 1).double()
    rows = rows - rows.mean(0)
    return torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0).sqrt().flip(0)


def effective_rank(spectrum: Tensor) -> float:
    """Returns exp(entropy) of the shares of the singular values (Roy and Vetterli 2007)."""
    shares = spectrum / spectrum.sum()
    shares = shares[shares > 0]
    return float((-(shares * shares.log()).sum()).exp())


def share_of_largest(spectrum: Tensor) -> float:
    """Returns the share of the sum of singular values that the largest ones have."""
    top = max(1, round(TOP * len(spectrum)))
    return float(spectrum[:top].sum() / spectrum.sum())
