"""Rows → JSON, a table, the targets' table, a bar chart. Nothing is typed in: all is read from the JSON files of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mirai_bench.benchmark.targets import TARGETS, Row
from mirai_bench.utils.files import write_atomic

NOT_MEASURED = "not measured"


TABLES = (
    "<!-- tables -->",
    "<!-- end of tables -->",
)  # marks in README.md between which the tables are written


def write_json(path: Path, head: dict[str, Any], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(head | {"rows": rows}, indent=1) + "\n")


def read_rows(folder: Path) -> list[Row]:
    """All rows of the benchmark's files in the folder, the oldest commit's first as their names sort."""
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [row for file in files if "rounds" in file for row in file["rows"]]


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def ratio_text(value: dict[str, float] | None) -> str:
    return "—" if value is None else f"{value['median']:.2f} ({value['q1']:.2f}–{value['q3']:.2f})"


def train_line(row: Row) -> list[str]:
    peer, phases = row.get("peer", {}), sum(row["phases_ms"].values())
    parts = ", ".join(
        f"{name} {ms / phases:.0%}"
        for name, ms in sorted(row["phases_ms"].items(), key=lambda item: -item[1])
    )
    against = [peer.get(name, {}) for name in ("fp32", "bf16")]
    memory = next((a["memory"] for a in against if a.get("memory") is not None), None)
    return [
        f"{row['size']} ({row['depth']} x {row['width']}, {row['grid'][0]}x{row['grid'][1]}, batch {row['batch']})", row["arm"],
        row["precision"], f"{row['mfu']:.0%}", *(ratio_text(a.get("busy")) for a in against), *(ratio_text(a.get("wall")) for a in against),
        "—" if memory is None else f"{memory:.2f}", parts,
    ]  # fmt: skip


TRAIN_HEAD = [
    "size",
    "arm",
    "precision",
    "of the matmul ceiling",
    "x peer fp32",
    "x peer bf16",
    "wall: x fp32",
    "wall: x bf16",
    "memory / peer",
    "phases",
]


# of → result, of the rows that `benchmark evaluate` makes
EVALUATION: dict[str, Callable[[Row], tuple[str, str]]] = {
    "evaluate": lambda row: (
        f"{row['profile']}, {row['samples']} samples",
        ", ".join(f"{part} {rate:.0f} images/s" for part, rate in row["images_per_second"].items()),
    ),
    "extractor": lambda row: (
        f"{row['size']}, batch {row['batch']}" + (", random weights" if row["weights"] == "random" else ""),
        f"{ratio_text(row['images_per_second'])} images/s",
    ),
    "statistics": lambda row: (
        f"{row['what']}, {row['features']} features of {row['dimensions']} dimensions",
        f"{row['seconds']:.2f} s",
    ),
    "memory": lambda row: (
        f"{row['images']} images of digits",
        f"peak {row['peak_megabytes']} MB, of which features {row['features_megabytes']} MB",
    ),
}


def other_line(row: Row) -> list[str]:
    if row["kind"] == "sample":
        cost = f"with / without foresight training {ratio_text(row['foresight_cost'])}"
        peer = row.get("peer")
        beside = f"{ratio_text(peer['busy'])} times {peer['name']}'s; " if peer else ""
        return [
            "sample",
            f"{row['size']}, batch {row['batch']}, CFG {row['cfg_scale']:g}, {row['precision']}",
            beside + cost,
        ]
    if row["kind"] == "data":
        return [
            "data",
            f"{row['reads']} random reads of {row['images']} images",
            f"{ratio_text(row['files_over_shards'])} times one-file-per-image",
        ]
    if row["kind"] in EVALUATION:
        return [row["kind"], *EVALUATION[row["kind"]](row)]
    total = sum(row["slot_seconds"].values())
    parts = ", ".join(f"{part} {seconds / total:.1%}" for part, seconds in row["slot_seconds"].items())
    cells = (
        f"{row['axis']}, {row['cells']} cells of {row['cell_seconds']:.0f} s, {row['at_a_time']} at a time"
    )
    return ["sweep", cells, f"overhead {row['overhead']:.1%}: {parts}"]


def table(rows: list[Row]) -> str:
    """Training steps, then the rest. Ratios are medians with quartiles; above 1 is faster than the peer."""
    measured = [row for row in rows if row["status"] == "measured"]
    lines = [train_line(row) for row in measured if row["kind"] == "train"]
    others = [other_line(row) for row in measured if row["kind"] != "train"]
    failed = [
        [row["kind"], f"{row.get('size', '')} {row.get('arm', '')}".strip(), row["status"]]
        for row in rows
        if row not in measured
    ]
    parts = [markdown(TRAIN_HEAD, lines)] if lines else []
    parts += [markdown(["what", "of", "result"], others + failed)] if others or failed else []
    return "\n".join(parts)


def targets_table(rows: list[Row]) -> str:
    lines = []
    for target in TARGETS:
        value = target.value(rows)
        verdict = NOT_MEASURED if value is None else "met" if target.met(value) else "missed"
        shown = "—" if value is None else f"{value:.0%}" if "%" in target.wanted else f"{value:.2f}x"
        lines.append([target.what, target.wanted, shown, verdict])
    return markdown(["target", "wanted", "measured", ""], lines)


def chart(rows: list[Row], path: Path) -> None:
    """Bars: how many times as fast as the peer's fp32 step (on a GPU its bf16 step), with quartiles; a line at 1. Without rows: no file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mirai_bench"
    from matplotlib import pyplot as plt

    bars = []
    for row in (r for r in rows if r["kind"] == "train" and r["status"] == "measured" and "peer" in r):
        against = row["peer"].get("fp32") or row["peer"]["bf16"]
        bars.append((f"{row['size']}, {row['arm']}, {row['precision']}", against["busy"], row["precision"]))
    if not bars:
        return
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(bars)), layout="constrained")
    for place, (_, value, precision) in enumerate(reversed(bars)):
        error = [[value["median"] - value["q1"]], [value["q3"] - value["median"]]]
        axes.barh(
            place,
            value["median"],
            xerr=error,
            color={"fp32": "#4c72b0", "bf16": "#dd8452"}[precision],
            height=0.7,
        )
    axes.set_yticks(range(len(bars)), [name for name, *_ in reversed(bars)])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the official training step (median, quartiles)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write_report(folder: Path) -> str:
    """targets.md, table.md and speed.svg of the folder's JSON files, and the tables within its README → the two tables."""
    rows = read_rows(folder)
    targets, whole = targets_table(rows), table(rows)
    write_atomic(folder / "targets.md", targets)
    write_atomic(folder / "table.md", whole)
    chart(rows, folder / "speed.svg")
    readme = folder / "README.md"
    if readme.is_file():
        before, start, rest = readme.read_text(encoding="utf-8").partition(TABLES[0])
        _, end, after = rest.partition(TABLES[1])
        if start and end:
            write_atomic(readme, f"{before}{start}\n{targets}\n{whole}{end}{after}")
    return f"{targets}\n{whole}"
