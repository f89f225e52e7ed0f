"""The paper's numbers, which tables and figures show next to ours: reports/data/paper_values.csv."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass

from mirai_bench.results.frame import RECONSTRUCTIONS, Results
from mirai_bench.utils.assets import shipped

PAPER_VALUES = shipped("reports", "data", "paper_values.csv")
EPOCHS = 80  # of the paper's ablations, whose values stand next to ours if the profile is not the paper's


@dataclass(frozen=True)
class Paper:
    """A value of the paper."""

    value: float
    epochs: int
    mark: str
    """How it was read; see reports/data/README.md."""


PaperValues = dict[tuple[str, str], Paper]  # by arm and metric


def is_papers(results: Results) -> bool:
    """Tells whether the profile is the paper's own setting."""
    return results.profile.startswith(("imagenet256", "imagenet384"))


def paper_size(results: Results) -> str:
    """Returns the size of the paper's model that stands next to this sweep: the same size, or B.

    B-384 is B on images of 384 pixels.
    """
    if results.profile.startswith("imagenet384"):
        return "B-384"
    # The sizes of other profiles, such as that of digits, have no model in the paper.
    size = results.records[0]["run"]["config"]["model"]["size"] if results.records else "B"
    return size if size in ("B", "L", "XL") else "B"


def paper_setting(results: Results) -> str:
    """Returns in words what the paper's values that stand next to this sweep were measured on."""
    size, _, pixels = paper_size(results).partition("-")
    resized = f" at {pixels} pixels, evaluated at 256" if pixels else " 256×256"
    return f"LlamaGen-{size} on ImageNet{resized}"


def papers_name(metric: str) -> str:
    """Returns the paper's metric that stands next to ours: FID next to any distance to real images."""
    is_real = metric.startswith("FD-") and not metric.endswith(RECONSTRUCTIONS)
    return "FID" if is_real else metric


def read_paper(axis: str, size: str) -> list[dict[str, str]]:
    """Returns the rows of paper_values.csv for the arms of an axis, with the arm's name as `arm`."""
    found = []
    with open(PAPER_VALUES, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            # A published value belongs to the same setting in every sweep: AXIS/ARM AXIS/ARM …
            for name in row["arms"].split():
                of_axis, _, arm = name.partition("/")
                if row["size"] == size and of_axis == axis:
                    found.append(row | {"arm": arm})
    return found


def paper_values(results: Results, epoch: float) -> PaperValues:
    """Returns what the paper reports for (arm, metric).

    It is the value at the epoch nearest to ours if the profile is the paper's. Otherwise it is the one
    at the epoch that most arms have a value of, which is 80 if it is one of them.
    """
    rows = read_paper(results.axis, paper_size(results))
    target = epoch
    if not is_papers(results):
        # A baseline at epoch 80 says nothing beside arms at epoch 300, as in the paper's tables of λ.
        arms = Counter(int(row["epochs"]) for row in rows if row["metric"] == "FID")
        target = min(arms, key=lambda each: (-arms[each], abs(each - EPOCHS)), default=EPOCHS)
    rows.sort(key=lambda row: abs(int(row["epochs"]) - target), reverse=True)
    # The nearest comes last, and stays.
    values = {}
    for row in rows:
        values[row["arm"], row["metric"]] = Paper(float(row["value"]), int(row["epochs"]), row["mark"])
    return values
