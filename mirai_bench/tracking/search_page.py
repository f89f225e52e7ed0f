"""The page of a search in MLflow: one run whose note is the table of configurations, above their runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mirai_bench.tracking.artifacts import send_artifact
from mirai_bench.tracking.mlflow_store import experiment_id, send_or_skip
from mirai_bench.tracking.ship import find_parent, made_by
from mirai_bench.tracking.sweep_page import MOST_OF_NOTE

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEARCH = "search"  # the kind of its run


def send_search(name: str, profile: str, note: str, record: Mapping[str, Any]) -> str | None:
    """Writes the page of a search and returns the id of its run, or None if MLflow is away.

    A search with this name and profile that is there already is written anew. `record` becomes
    search.json.
    """

    def send(client: MlflowClient, uri: str) -> str:
        tags = {"kind": SEARCH, "axis": name, "profile": profile}
        experiment = experiment_id(client, uri)
        run = find_parent(client, experiment, tags)
        if run is None:
            title = f"search: {name} ({profile})"
            run = client.create_run(experiment, tags=tags | made_by(), run_name=title)
        client.set_tag(run.info.run_id, "mlflow.note.content", note[:MOST_OF_NOTE])
        send_artifact(client, run, "search.json", json.dumps(dict(record), indent=1))
        client.set_terminated(run.info.run_id)
        return run.info.run_id

    return send_or_skip(send)
