"""What the runs of a table have not seen, or not as it stands: said under the table, with counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirai_bench.results.frame import Results

BEGIN = "Left out of the data, or changed"


def left_out_note(results: Results) -> str | None:
    """Returns a note of what the data of the runs lack, or have otherwise than their folders, or None."""
    # Each distinct set of counts with the arms that have it: usually all of them share one data set.
    arms: dict[str, list[str]] = {}
    for record in results.records:
        counts = _counts(record["run"])
        text = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
        known = arms.setdefault(text, [])
        if record["arm"] not in known:
            known.append(record["arm"])
    texts = [text for text in arms if text]
    if not texts:
        return None
    if len(arms) == 1:
        return f"{BEGIN}: {texts[0]}."
    parts = [f"{text or 'nothing'} ({', '.join(named)})" for text, named in arms.items()]
    return f"{BEGIN}: {'; '.join(parts)}."


def _counts(run: Mapping[str, Any]) -> dict[str, int]:
    """Returns how much the data and the reference of a run lack, by the reason."""
    counts = dict(run.get("left_out", {}))
    of_reference = run["reference"].get("left_out", 0)
    if of_reference:
        counts["images that the reference lacks"] = of_reference
    return counts
