"""Which kinds of machine the runs of a sweep were computed on.

Runs of one seed share every random number. Their rounding is the same on one kind of processor
only, and over a training the differences grow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mirai_bench.results.frame import Results

CORES = re.compile(r" \(\d+ cores\)$")  # at the end of a CPU's name; they change no number


def machine_of(run: Mapping[str, Any]) -> str:
    """Returns the kind of processor or device of a run."""
    return CORES.sub("", run["device"])


def mixed_machines(results: Results) -> str | None:
    """Returns a note that names the seeds whose runs come from several kinds of machine, or None.

    Their paired differences contain what the machines add.
    """
    # 1. The arms of each seed, by machine. A run that was resumed elsewhere has several.
    places: dict[int, dict[str, list[str]]] = {}
    for record in results.records:
        arms = places.setdefault(record["seed"], {}).setdefault(machine_of(record["run"]), [])
        if record["arm"] not in arms:
            arms.append(record["arm"])
    # 2. The seeds that were split in the same way, together.
    seeds: dict[str, list[str]] = {}
    for seed, by_machine in sorted(places.items()):
        if len(by_machine) > 1:
            split = "; ".join(f"{', '.join(arms)} on {machine}" for machine, arms in by_machine.items())
            seeds.setdefault(split, []).append(str(seed))
    if not seeds:
        return None
    splits = [f"seed {', '.join(numbers)}: {split}" for split, numbers in seeds.items()]
    return (
        "Runs that are paired by seed were computed on several kinds of machine, which round "
        f"differently, so that pairing takes out less noise ({'. '.join(splits)})."
    )
