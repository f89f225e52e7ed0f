"""The report of a folder of measurements: tables and a chart, made from its JSON files only."""

from __future__ import annotations

import io
from pathlib import Path

from mirai_bench.benchmark.targets import TARGETS, Row
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import read_json, write_bytes, write_text
from mirai_bench.utils.text_table import markdown_table

UNKNOWN = "—"
# The marks in a folder's README.md between which its tables are written.
TABLES = "<!-- tables -->"
END_OF_TABLES = "<!-- end of tables -->"
COLORS = {"fp32": "#4c72b0", "bf16": "#dd8452"}  # of the chart's bars
NOT_IN_0_2 = {"micro_batches": 1}  # what rows lack that version 0.2 and earlier ones wrote
TRAIN_HEADER = ["size", "arm", "precision", "ms", "of the matmul ceiling", "x peer fp32"]
TRAIN_HEADER += ["x peer bf16", "wall: x fp32", "wall: x bf16", "memory / peer", "phases"]


def read_rows(folder: Path) -> list[Row]:
    """Returns the rows of all measurements of speed in the folder, in the order of file names."""
    advice = "remove it to measure again"
    files = [read_json(path, advice) for path in sorted(folder.glob("*.json"))]
    rows: list[Row] = []
    for file in files:
        if "rounds" in file:  # which a file of `benchmark parity` has not
            try:
                machine = file["machine"]
                named = {"machine": machine["gpu"] or machine["cpu"]}
                rows += [NOT_IN_0_2 | row | named for row in file["rows"]]
            except (LookupError, TypeError) as error:
                raise UserError(f"a file of {folder} is damaged ({error!r}): {advice}") from None
    return rows


# ---- rows as text


def table_of(header: list[str], lines: list[list[str]]) -> str:
    """Returns a table in Markdown. Its texts are our own and hold nothing to escape."""
    return markdown_table(header, lines, align="---", escape=False)


def ratio_text(value: dict[str, float] | None) -> str:
    """Returns a median with its quartiles."""
    if value is None:
        return UNKNOWN
    return f"{value['median']:.2f} ({value['q1']:.2f}–{value['q3']:.2f})"


def shares_text(parts: dict[str, float], digits: int) -> str:
    """Returns each part's share of the sum, in percent."""
    total = sum(parts.values())
    return ", ".join(f"{name} {value / total:.{digits}%}" for name, value in parts.items())


def parts_text(row: Row) -> str:
    """Says in how many micro-batches a step is computed, if it is more than one."""
    parts = row["micro_batches"]
    return f" in {parts} parts" if parts > 1 else ""


def train_line(row: Row) -> list[str]:
    """Returns the line of a training step."""
    height, width = row["grid"]
    against = [row.get("peer", {}).get(precision, {}) for precision in ("fp32", "bf16")]
    memory = [ratios["memory"] for ratios in against if ratios.get("memory") is not None]
    phases = dict(sorted(row["phases_ms"].items(), key=lambda item: -item[1]))
    batch = f"batch {row['batch']}{parts_text(row)}"
    return [
        f"{row['size']} ({row['depth']} x {row['width']}, {height}x{width}, {batch})",
        row["arm"],
        row["precision"],
        f"{row['step_ms']['median']:.1f} ({row.get('machine', 'this machine')})",
        UNKNOWN if row["mfu"] is None else f"{row['mfu']:.0%}",
        *(ratio_text(ratios.get(clock)) for clock in ("busy", "wall") for ratios in against),
        f"{memory[0]:.2f}" if memory else UNKNOWN,
        shares_text(phases, 0),
    ]


# What was measured, and the result, by kind of row. Training steps have a table of their own.
TEXTS = {
    "sample": (
        "{size}, batch {batch}, CFG {cfg_scale:g}, {precision}",
        "{times_peer}with / without foresight training {foresight_cost}",
    ),
    "data": ("{reads} random reads of {images} images", "{files_over_shards} times one-file-per-image"),
    "evaluate": (
        "{profile}, {samples} samples",
        "sample {images_per_second[sample]:.0f} images/s, "
        "evaluate {images_per_second[evaluate]:.0f} images/s",
    ),
    "untrained": (
        "{profile}, {samples} samples, random weights",
        "{seconds:.0f} s, of which sampling {parts[sample]:.0f} s",
    ),
    "extractor": ("{size}, batch {batch}{random}", "{images_per_second} images/s"),
    "statistics": ("{what}, {features} features of {dimensions} dimensions", "{seconds:.2f} s"),
    "memory": (
        "{images} images of digits",
        "peak {peak_megabytes} MB, of which features {features_megabytes} MB",
    ),
    "sweep": (
        "{axis}, {cells} cells of {cell_seconds:.0f} s, {at_a_time} at a time",
        "overhead {overhead:.1%}: {shares}",
    ),
}


def other_line(row: Row) -> list[str]:
    """Returns the line of any other measurement."""
    fields = dict(row)
    for name, value in row.items():
        if isinstance(value, dict) and "median" in value:
            fields[name] = ratio_text(value)
    peer = row.get("peer")
    fields["times_peer"] = f"{ratio_text(peer['busy'])} times {peer['name']}'s; " if peer else ""
    fields["random"] = ", random weights" if row.get("weights") == "random" else ""
    fields["shares"] = shares_text(row.get("slot_seconds", {}), 1)
    return [row["kind"], *(text.format(**fields) for text in TEXTS[row["kind"]])]


# ---- tables and chart


def table(rows: list[Row]) -> str:
    """Returns a table of the training steps and one of all else. A ratio above 1 is faster."""
    measured = [row for row in rows if row["status"] == "measured"]
    steps = [train_line(row) for row in measured if row["kind"] == "train"]
    others = [other_line(row) for row in measured if row["kind"] != "train"]
    for row in rows:
        if row["status"] != "measured":
            what = f"{row.get('size', '')} {row.get('arm', '')}".strip()
            others.append([row["kind"], what, row["status"]])
    tables = ((TRAIN_HEADER, steps), (["what", "of", "result"], others))
    return "\n".join(table_of(header, lines) for header, lines in tables if lines)


def targets_table(rows: list[Row]) -> str:
    """Returns a table of the targets, with what was measured for each."""
    lines = []
    for target in TARGETS:
        value = target.value(rows)
        found = [UNKNOWN, "not measured"]
        if value is not None:
            found = [target.shown(value), "met" if target.met(value) else "missed"]
        lines.append([target.what, target.wanted, *found])
    return table_of(["target", "wanted", "measured", ""], lines)


def chart(rows: list[Row], path: Path) -> None:
    """Draws how many times as fast as the peer's step of the same precision our training steps are.

    There is a panel for each machine. A step that the peer did not compute in its precision is left out,
    and without any other there is no chart.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mirai_bench"  # the same rows make the same file
    from matplotlib import pyplot as plt

    steps = [row for row in rows if row["kind"] == "train" and row.get("precision") in row.get("peer", {})]
    if not steps:
        return
    machines = list(dict.fromkeys(row["machine"] for row in steps))
    panels = [[row for row in steps if row["machine"] == machine] for machine in machines]
    figure, grid = plt.subplots(
        len(panels),
        figsize=(7, 0.6 + 0.32 * len(steps) + 0.4 * len(panels)),
        height_ratios=[0.5 + len(panel) for panel in panels],
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, machine, panel in zip(grid[:, 0], machines, panels, strict=True):
        for place, row in enumerate(reversed(panel)):
            ratio = row["peer"][row["precision"]]["busy"]
            quartiles = [[ratio["median"] - ratio["q1"]], [ratio["q3"] - ratio["median"]]]
            axes.barh(place, ratio["median"], xerr=quartiles, color=COLORS[row["precision"]], height=0.7)
        names = [
            f"{row['size']}, {row['arm']}{parts_text(row)}, {row['precision']}" for row in reversed(panel)
        ]
        axes.set_yticks(range(len(names)), names)
        axes.set_title(machine, loc="left", fontsize="medium")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel("times as fast as the official step of the same precision (median, quartiles)")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_bytes(path, drawn.getvalue())
    plt.close(figure)


def write_report(folder: Path) -> str:
    """Writes targets.md, table.md and speed.svg, and the tables in the folder's README.

    Returns the two tables.
    """
    rows = read_rows(folder)
    targets = targets_table(rows)
    measured = table(rows)
    write_text(folder / "targets.md", targets)
    write_text(folder / "table.md", measured)
    chart(rows, folder / "speed.svg")
    readme = folder / "README.md"
    if readme.is_file():
        before, start, rest = readme.read_text(encoding="utf-8").partition(TABLES)
        _, end, after = rest.partition(END_OF_TABLES)
        if start and end:
            write_text(readme, f"{before}{start}\n{targets}\n{measured}{end}{after}")
    return f"{targets}\n{measured}"
