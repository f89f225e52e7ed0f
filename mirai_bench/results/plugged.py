"""A note of the plug-ins that the runs of a table use, with the hash of their code."""

from __future__ import annotations

from mirai_bench.results.frame import Results


def plugins_note(results: Results) -> str | None:
    """Returns which arms use which plug-in, or None if none does."""
    arms: dict[str, list[str]] = {}
    for record in results.records:
        for module, sha256 in record["run"]["config"].get("plugins", {}).items():
            known = arms.setdefault(f"{module} ({sha256})", [])
            if record["arm"] not in known:
                known.append(record["arm"])
    if not arms:
        return None
    listed = "; ".join(f"{plugin} in {', '.join(named)}" for plugin, named in arms.items())
    return f"Plug-ins, which are not part of this project: {listed}."
