"""Every entry of DIAGNOSTICS can be drawn from what it finds."""

from dataclasses import replace

import diagnosed
import numpy as np
import pytest
from diagnosis_table import headlines
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mirai_bench.diagnose.registry import DIAGNOSTICS
from mirai_bench.results.diagnoses import Diagnoses, Diagnosis, rounded
from mirai_bench.results.frame import Results

ARMS = ["baseline", "mirai-e", "odd$name_"]


def diagnoses_of(name, finding):
    """The same finding for three arms, two seeds and two epochs, its values a little apart."""
    found = []
    for step, epoch in ((30, 1.0), (60, 2.0)):
        for seed in (0, 1):
            for number, arm in enumerate(ARMS):
                shift = 0.01 * (number + seed)
                values = {key: value + shift for key, value in finding.values.items()}
                fields = {"step": step, "epoch": epoch, "diagnostic": name, "digest": "d", "seconds": 1.0}
                fields |= {"values": values, "detail": rounded(finding.detail)}
                found.append(Diagnosis(arm, seed, fields, {"scope": {"heldout_images": 40}}))
    return Diagnoses(Results("axis", "test", "?", "baseline", ARMS, []), found)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_a_finding_is_drawn(name, subject):
    scope = subject.scope.model_copy(update={"pictures": True})
    finding = DIAGNOSTICS[name].measure(replace(subject, scope=scope))
    figures = diagnosed.draw_diagnostic(diagnoses_of(name, finding), name)
    assert "" in figures
    for figure in figures.values():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert name in figure.get_suptitle()
        drawn = np.asarray(canvas.buffer_rgba())[..., :3]
        assert (drawn < 250).any(axis=2).mean() > 0.01
        renderer = canvas.get_renderer()
        width, height = canvas.get_width_height()
        for axes in figure.axes:
            box = axes.get_tightbbox(renderer)
            assert box is None or (box.x0 > -2 and box.x1 < width + 2 and box.y0 > -2 and box.y1 < height + 2)


def test_headlines_are_those_of_the_registry_and_all_values_of_others(subject):
    finding = DIAGNOSTICS["spatial"].measure(subject)
    found = diagnoses_of("spatial", finding)
    assert headlines(found, DIAGNOSTICS) == {"spatial": ["lds", "rank"]}
    other = diagnoses_of("older", finding)
    assert headlines(other, DIAGNOSTICS) == {"older": ["lds", "rank"]}, "those that no layer has"
