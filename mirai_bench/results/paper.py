"""The paper's numbers beside ours: reports/data/paper_values.csv, value by value, with how each was read."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from mirai_bench.results.frame import Results

PAPER_VALUES = Path(__file__).resolve().parents[2] / "reports" / "data" / "paper_values.csv"


@dataclass(frozen=True)
class Paper:
    value: float
    epochs: int
    mark: str
    """how it was read, see reports/data/README.md"""


def paper_size(results: Results) -> str:
    """The paper's model that this sweep's numbers stand beside: the one of the same size, or B."""
    size = results.records[0]["run"]["config"]["model"]["size"] if results.records else "B"
    return size if size in ("B", "L", "XL") else "B"


def papers_name(name: str) -> str:
    return "FID" if name.startswith("FD-") else name


def read_paper(axis: str, size: str) -> list[dict[str, str]]:
    """Rows of paper_values.csv for arms of this axis, `arm` added; none where the data files do not lie beside the package."""
    if not PAPER_VALUES.is_file():
        return []
    with open(PAPER_VALUES, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["size"] == size]
    return [
        row | {"arm": arm.split("/")[1]}
        for row in rows
        for arm in row["arms"].split()
        if arm.startswith(f"{axis}/")
    ]


def paper_values(results: Results, epoch: float) -> dict[tuple[str, str], Paper]:
    """(arm, metric) → what the paper reports for it: at the epoch nearest to ours where the profile is the paper's, else at 80."""
    target = epoch if is_papers(results) else 80
    rows = sorted(
        read_paper(results.axis, paper_size(results)), key=lambda row: -abs(int(row["epochs"]) - target)
    )
    return {
        (row["arm"], row["metric"]): Paper(float(row["value"]), int(row["epochs"]), row["mark"])
        for row in rows
    }


def is_papers(results: Results) -> bool:
    """Whether the profile is the paper's own setting."""
    return results.profile.startswith("imagenet256")
