"""Runs of one seed on several kinds of machine are noted, and nothing else is."""

from dataclasses import replace

import pytest

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


def on(results, device_of):
    """The same results with the device of each run as `device_of(arm, seed, epoch)` says."""
    records = []
    for record in results.records:
        device = device_of(record["arm"], record["seed"], record["epoch"])
        records.append(record | {"run": record["run"] | {"device": device}})
    return replace(results, records=records)


def test_one_machine_per_seed_needs_no_note(frozen):
    assert mixed_machines(on(frozen, lambda arm, seed, epoch: EPYC)) is None
    assert mixed_machines(on(frozen, lambda arm, seed, epoch: XEON if seed else EPYC)) is None
    assert mixed_machines(on(frozen, lambda arm, seed, epoch: EPYC.replace("2 c", f"{seed + 2} c"))) is None


def test_arms_of_a_seed_on_two_machines_are_named(frozen):
    *others, arm = frozen.arms
    _, *moved = sorted(frozen.seeds(arm))
    note = mixed_machines(on(frozen, lambda own, seed, epoch: XEON if own == arm and seed in moved else EPYC))
    seeds = ", ".join(map(str, moved))
    others = ", ".join(others)
    assert (
        f"(seeds {seeds}: {others} on AMD EPYC, family 25, model 17, AVX512; {arm} on Intel(R) Xeon" in note
    )
    assert "cores" not in note


def test_a_run_that_was_resumed_elsewhere_is_named(frozen):
    moved = tuple(frozen.records[-1][field] for field in ("arm", "seed", "epoch"))
    arm, seed, _ = moved
    note = mixed_machines(on(frozen, lambda *who: XEON if who == moved else EPYC))
    assert f"seed {seed}: " in note and f"; {arm} on Intel" in note
