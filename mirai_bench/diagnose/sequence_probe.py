"""Probes along the sequence: how much of the image's class has been understood by when?

The class token is the null class, so that a state knows of the class what the tokens before it tell
(ST-AR, arXiv 2509.15185, section 3.2, does so on LlamaGen). Letters: N images, D width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.probes import Examples, fit_probes, standardised
from mirai_bench.diagnose.subject import NotMeasurable, Subject

POSITIONS = 8

HEADLINE = {
    "accuracy": "share of held-out images whose class a linear probe reads off the middle layer, on average "
    "over eight positions along the sequence",
    "accuracy_half": "the same when half of the image has been consumed",
}


def measure(subject: Subject) -> Finding:
    """Reads the class off states of the middle layer, at eight evenly spaced positions.

    `accuracy_1` … `accuracy_8` are their accuracies. detail: `consumed` [8], how many tokens the states
    have consumed, and `most_frequent`, the accuracy of always saying the most frequent class.
    """
    labels = subject.fit.labels
    heldout_labels = subject.heldout.labels
    if len(labels.unique()) < 2:
        raise NotMeasurable("its images have no classes")
    classes = subject.config.data.classes
    fit = subject.states(subject.middle, subject.fit, null_class=True)
    heldout = subject.states(subject.middle, subject.heldout, null_class=True)
    consumed = positions(subject.config.num_tokens)
    values: dict[str, float] = {}
    for number, at in enumerate(consumed, 1):
        predicted = predictions(fit[:, at], labels, heldout[:, at], classes)
        values[f"accuracy_{number}"] = (predicted == heldout_labels).float().mean().item()
    mean = sum(values.values()) / POSITIONS
    values |= {"accuracy": mean, "accuracy_half": values[f"accuracy_{POSITIONS // 2}"]}
    guess = (heldout_labels == labels.mode().values).float().mean().item()
    return Finding(values, {"consumed": consumed, "most_frequent": guess})


def positions(num_tokens: int) -> list[int]:
    """Returns how many tokens the states have consumed: evenly spaced, the last one all but one."""
    return [max(1, round((num_tokens - 1) * number / POSITIONS)) for number in range(1, POSITIONS + 1)]


def predictions(fit: Tensor, labels: Tensor, heldout: Tensor, classes: int) -> Tensor:
    """Returns the classes (n,) that a probe of states (N, D) with labels (N,) reads off others (n, D)."""
    # To the probe all images are examples of one cell.
    features, heldout_features = standardised(fit[None], heldout[None], each=True)
    one_cell = torch.ones(1, 1, dtype=torch.bool, device=fit.device)
    probe = fit_probes(Examples(features, labels[None, :, None], one_cell), classes)
    return (heldout_features[0] @ probe.weight[0].T + probe.bias[0, 0]).argmax(1)
