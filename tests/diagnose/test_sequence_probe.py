"""Probes of the class along the sequence."""

from dataclasses import replace

import pytest
import torch

from mirai_bench.data.batch import Batch
from mirai_bench.diagnose import sequence_probe
from mirai_bench.diagnose.sequence_probe import positions, predictions
from mirai_bench.diagnose.subject import NotMeasurable


def test_positions_are_evenly_spaced_and_end_with_the_last_state():
    assert positions(64) == [8, 16, 24, 32, 39, 47, 55, 63]
    assert positions(5) == [1, 1, 2, 2, 2, 3, 4, 4]


def test_a_class_that_the_states_hold_is_read_off_and_one_that_they_do_not_is_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (600,), generator=generator)
    states = torch.randn(600, 16, generator=generator)
    names = 0.5 * torch.randn(4, 16, generator=generator)
    told = states + 4 * names[labels]
    for held, low, high in ((told, 0.95, 1.01), (states, 0.1, 0.4)):
        predicted = predictions(held[:400], labels[:400], held[400:], 4)
        assert low < (predicted == labels[400:]).float().mean() < high


def test_the_class_token_tells_the_probe_nothing(subject, monkeypatch):
    """Images that are all black differ in their class alone, and the null class hides it."""
    fit, heldout = subject.fit, subject.heldout
    black = replace(subject)
    black.fit = Batch(torch.zeros_like(fit.tokens), fit.labels, fit.index, fit.view)
    black.heldout = Batch(torch.zeros_like(heldout.tokens), heldout.labels, heldout.index, heldout.view)
    finding = sequence_probe.measure(black)
    for number in range(1, 9):
        assert finding.values[f"accuracy_{number}"] == pytest.approx(
            finding.detail["most_frequent"], abs=0.051
        )


def test_images_without_classes_are_left_out(subject):
    alike = replace(subject)
    fit = subject.fit
    alike.fit = Batch(fit.tokens, torch.zeros_like(fit.labels), fit.index, fit.view)
    with pytest.raises(NotMeasurable, match="no classes"):
        sequence_probe.measure(alike)
