"""The page of a sweep in MLflow: its table as the note, the numbers of each arm, tables and figures.

Below the sweep's own run there is one run for each arm, with the mean over its seeds and its interval at
each evaluation, so that a chart shows as many lines as there are arms.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mirai_bench.tracking.artifacts import send_artifact
from mirai_bench.tracking.mlflow_store import MOST_POINTS, children, experiment_id, send_or_skip
from mirai_bench.tracking.saved_view import save_view
from mirai_bench.utils.hashing import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOST_OF_NOTE = 5000  # characters: MLflow's limit of a tag
SUMMARY = "summary"  # the kind of an arm's run
LINK = "Charts: all arms by epoch"


class Point(NamedTuple):
    """A number of an arm at an evaluation."""

    name: str
    value: float
    step: int


class Page(NamedTuple):
    """What the page of a sweep shows."""

    note: str
    """Markdown."""
    numbers: Mapping[str, float]
    """Such as `FD-digits/internal-2d`."""
    arms: Mapping[str, Sequence[Point]]
    """For each arm, the baseline first, its means and intervals along the training."""
    files: Sequence[Path]
    """Tables, figures and the report."""


def send_page(run_id: str, page: Page) -> bool:
    """Writes the page of a sweep's own run. Returns False, after one warning, if MLflow is away."""

    def send(client: MlflowClient, uri: str) -> bool:
        parent = client.get_run(run_id)
        experiment = experiment_id(client, uri)
        view = save_view(client, experiment, parent.data.tags["axis"], parent.data.tags["profile"])
        client.set_tag(run_id, "mlflow.note.content", f"[{LINK}]({view})\n\n{page.note}"[:MOST_OF_NOTE])
        _log(client, run_id, [Point(name, value, 0) for name, value in page.numbers.items()])
        for path in page.files:
            send_artifact(client, parent, path.name, path)
        _send_arms(client, experiment, parent, page.arms)
        return True

    return bool(send_or_skip(send))


def _send_arms(
    client: MlflowClient, experiment: str, parent: Run, arms: Mapping[str, Sequence[Point]]
) -> None:
    contents = {arm: digest([list(point) for point in points]) for arm, points in arms.items()}
    known = [run for run in children(client, experiment, parent) if run.data.tags.get("kind") == SUMMARY]
    if {run.data.tags["arm"]: run.data.tags["content"] for run in known} == contents:
        return
    # Another seed has changed every mean, and a metric's history is never rewritten. All arms are
    # written anew, because MLflow shows the newest runs first: the baseline, and then the arms in order.
    for run in known:
        client.delete_run(run.info.run_id)
    now = int(1000 * time.time())
    for number, (arm, points) in enumerate(arms.items()):
        tags = {"kind": SUMMARY, "arm": arm, "content": contents[arm]}
        tags["mlflow.parentRunId"] = parent.info.run_id
        tags |= {key: parent.data.tags[key] for key in ("axis", "profile")}
        tags["mlflow.note.content"] = f"Mean over the seeds of {arm}, and its 95 % interval."
        start = now - 1000 * number
        run = client.create_run(experiment, start_time=start, tags=tags, run_name=f"{arm}, mean over seeds")
        _log(client, run.info.run_id, points)
        client.set_terminated(run.info.run_id)


def _log(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    metrics: list[Any] = [Metric(point.name, point.value, now, point.step) for point in points]
    for start in range(0, len(metrics), MOST_POINTS):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_POINTS])
