"""What the runs of a table have not seen, or were measured on: said under the table, with counts."""

from __future__ import annotations

from mirai_bench.results.frame import Results


def left_out_note(results: Results) -> str | None:
    """Returns a note of what was left out of the data of the runs, by the reason, or None."""
    # Each distinct set of counts with the arms that have it: usually all of them share one data set.
    arms: dict[str, list[str]] = {}
    for record in results.records:
        counts = record["run"].get("left_out", {})
        text = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
        known = arms.setdefault(text, [])
        if record["arm"] not in known:
            known.append(record["arm"])
    texts = [text for text in arms if text]
    if not texts:
        return None
    if len(arms) == 1:
        return f"Left out of the data: {texts[0]}."
    parts = [f"{text or 'nothing'} ({', '.join(named)})" for text, named in arms.items()]
    return f"Left out of the data: {'; '.join(parts)}."
