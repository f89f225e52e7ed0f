"""Runs of one seed on several kinds of machine are noted, and nothing else is."""

from itertools import product

import pytest

from mirai_bench.results.frame import Results
from mirai_bench.results.machines import machine_of, mixed_machines

EPYC = "AMD EPYC, family 25, model 17, AVX512 (2 cores)"
XEON = "Intel(R) Xeon(R) Processor, family 6, model 143, AVX512 (8 cores)"


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (EPYC, "AMD EPYC, family 25, model 17, AVX512"),
        ("Intel(R) Xeon(R) Processor (2 cores)", "Intel(R) Xeon(R) Processor"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_the_number_of_cores_is_no_part_of_the_kind(device, kind):
    assert machine_of({"device": device}) == kind


def results(device_of):
    """Three arms with three seeds, evaluated twice on the device that `device_of(arm, seed, epoch)` says."""
    records = []
    for arm, seed, epoch in product("abc", (10, 11, 12), (1.0, 2.0)):
        run = {"device": device_of(arm, seed, epoch)}
        records.append({"arm": arm, "seed": seed, "epoch": epoch, "run": run})
    return Results("axis", "digits", "?", "a", ["a", "b", "c"], [], records)


def test_one_machine_per_seed_needs_no_note():
    assert mixed_machines(results(lambda arm, seed, epoch: EPYC)) is None
    assert mixed_machines(results(lambda arm, seed, epoch: XEON if seed > 10 else EPYC)) is None
    assert mixed_machines(results(lambda arm, seed, epoch: EPYC.replace("2 c", f"{seed} c"))) is None


def test_arms_of_a_seed_on_two_machines_are_named():
    note = mixed_machines(results(lambda arm, seed, epoch: XEON if arm == "c" and seed > 10 else EPYC))
    expected = (
        "(seed 11, 12: a, b on AMD EPYC, family 25, model 17, AVX512; "
        "c on Intel(R) Xeon(R) Processor, family 6, model 143, AVX512)."
    )
    assert note.endswith(expected)


def test_a_run_that_was_resumed_elsewhere_is_named():
    note = mixed_machines(results(lambda *who: XEON if who == ("b", 11, 2.0) else EPYC))
    assert "(seed 11: a, b, c on AMD" in note and "; b on Intel" in note
