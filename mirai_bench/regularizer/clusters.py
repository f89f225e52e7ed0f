"""Clusters of codes of equal size: k-means whose clusters have a capacity. Letters: V codes, C clusters."""

from __future__ import annotations

import numpy as np

ROUNDS = 20  # of k-means; clusters of a few hundred codes hardly move after ten


def balanced_clusters(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """Returns the cluster int64 (V,) of each code, from the codes' vectors (V, Z).

    Sizes differ by one at most. It depends on the vectors alone: a codebook has one clustering.
    """
    vectors = vectors.astype(np.float64)
    # 1. Centres: codes far from each other (farthest-point initialisation, from the first code on).
    chosen = [0]
    nearest = _squares(vectors, vectors[:1])[:, 0]  # (V,), the distance to the nearest centre
    while len(chosen) < clusters:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _squares(vectors, vectors[chosen[-1:]])[:, 0])
    centers = vectors[chosen]  # (C, Z)
    # 2. Assignments and means, in turn.
    assigned = np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        before = assigned
        assigned = _assign(_squares(vectors, centers))
        if (assigned == before).all():
            break
        centers = np.stack([vectors[assigned == cluster].mean(0) for cluster in range(clusters)])
    return assigned


def _squares(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns the squared distances (V, C) of vectors (V, Z) to centres (C, Z)."""
    products = vectors @ centers.T
    return (vectors**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * products


def _assign(distances: np.ndarray) -> np.ndarray:
    """Returns the cluster (V,) of each code, given distances (V, C), so that no cluster is too full.

    In each round every code without a cluster asks the nearest one that has room, and a cluster takes
    the nearest of those that ask.
    """
    num_codes, clusters = distances.shape
    # The first clusters take one code more where V is not a multiple of C.
    room = np.full(clusters, num_codes // clusters)
    room[: num_codes % clusters] += 1
    assigned = np.full(num_codes, -1)
    while (assigned < 0).any():
        asking = np.flatnonzero(assigned < 0)
        open_to = np.where(room > 0, distances[asking], np.inf)
        wanted = open_to.argmin(1)
        for cluster in np.unique(wanted):
            own = asking[wanted == cluster]
            taken = own[np.argsort(distances[own, cluster], kind="stable")[: room[cluster]]]
            assigned[taken] = cluster
            room[cluster] -= len(taken)
    return assigned
