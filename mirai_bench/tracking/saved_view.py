"""A saved view of MLflow's charts: the mean of each arm of a sweep, the baseline first, by epoch.

MLflow's own x axis is the step, a whole number. A chart can have a metric as its x axis instead, which
its interface remembers in views: tags of the experiment, in JSON (seen in MLflow 3.17). An interface
that does not know such a view shows its usual page.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from mirai_bench.utils.hashing import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "mlflow.sharedViewState."
EPOCH = "eval/epoch"  # the metric on the x axis


def save_view(client: MlflowClient, experiment: str, axis: str, profile: str) -> str:
    """Saves the view of a sweep and returns its address inside of MLflow's pages.

    A view that is there already is left alone: a user may have changed it.
    """
    state = state_of(axis, profile)
    key = digest([axis, profile])
    if TAG + key not in client.get_experiment(experiment).tags:
        named = {"name": f"{axis} ({profile}) by epoch", "createdAt": int(1000 * time.time())}
        # Versions without names read the state itself, and others what is under its name.
        view = state | named | {"state": json.dumps(state)}
        client.set_experiment_tag(experiment, TAG + key, json.dumps(view))
    return f"#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART"


def state_of(axis: str, profile: str) -> dict[str, Any]:
    """Returns what differs from MLflow's usual page: the runs, their groups, and the x axis."""
    tags = {"axis": axis, "profile": profile, "kind": "summary"}
    by_arm = {"mode": "tag", "groupByData": "arm"}
    return {
        "searchFilter": " AND ".join(f"tags.{key} = '{value}'" for key, value in tags.items()),
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [by_arm]},
        "runsHiddenMode": "FIRST_20_RUNS",
        "globalLineChartConfig": {"xAxisKey": "metric", "selectedXAxisMetricKey": EPOCH, "lineSmoothness": 0},
    }
