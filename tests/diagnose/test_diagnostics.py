"""What holds for every entry of DIAGNOSTICS."""

import json
import math
from dataclasses import replace

import pytest
import torch

from mirai_bench.diagnose import subject as subject_module
from mirai_bench.diagnose.registry import DIAGNOSTICS
from mirai_bench.diagnose.scope import Scope


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_a_finding_is_finite_can_be_written_and_has_the_headline(name, subject):
    finding = DIAGNOSTICS[name].measure(subject)
    assert all(math.isfinite(value) for value in finding.values.values())
    assert DIAGNOSTICS[name].headline.keys() <= finding.values.keys()
    json.dumps(finding._asdict(), allow_nan=False)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_a_finding_is_the_same_again_and_with_another_batch_size(name, subject, monkeypatch):
    # A copy of a subject has computed nothing yet.
    first = DIAGNOSTICS[name].measure(replace(subject))
    torch.manual_seed(1)  # nothing may depend on the global state
    assert DIAGNOSTICS[name].measure(replace(subject)) == first
    monkeypatch.setattr(subject_module, "BATCH", 7)
    other = DIAGNOSTICS[name].measure(replace(subject))
    assert other.values.keys() == first.values.keys()
    for key, value in other.values.items():
        assert value == pytest.approx(first.values[key], rel=1e-3, abs=1e-4), key


def test_a_digest_tells_scopes_diagnostics_and_versions_apart():
    spatial = DIAGNOSTICS["spatial"]
    digests = {
        spatial.digest("spatial", Scope()),
        spatial.digest("spatial", Scope(heldout_images=100)),
        spatial.digest("other", Scope()),
        replace(spatial, version=2).digest("spatial", Scope()),
    }
    assert len(digests) == 4
