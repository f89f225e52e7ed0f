"""The page of a sweep in MLflow shows what a reader looks for first."""

import json
import math
import re
import sys
from types import SimpleNamespace

import pytest

from mirai_bench.results.table import build_table
from mirai_bench.sweep.page import curves, numbers, send_summary
from mirai_bench.sweep.plan import Plan
from mirai_bench.tracking import mlflow_store
from mirai_bench.tracking.mlflow_store import children
from mirai_bench.tracking.ship import start_sweep
from tests.support.synthetic import injection_level, plan_of, shared_store, write_plan, write_run


@pytest.fixture
def plan(here, monkeypatch, request, tmp_path_factory):
    """A finished sweep of two arms and three seeds, below the current folder."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store(tmp_path_factory.getbasetemp()))
    sweep = injection_level(only=["baseline", "output-2d"])
    for cell in sweep.cells:
        factor = (0.5 if cell.arm == "output-2d" else 1.0) * (1 + cell.seed / 10)
        write_run("runs", cell.config, lambda epoch, factor=factor: {"FD-digits": 12 * factor / epoch})
    write_plan("runs", sweep)
    return Plan(sweep)


def summaries(client, parent):
    found = children(client, parent.info.experiment_id, parent)
    return {run.data.tags["arm"]: run for run in found if run.data.tags["kind"] == "summary"}


def test_numbers_and_curves_are_those_of_the_table(plan):
    from mirai_bench.results.reading import read_journals

    (results,) = read_journals(plan.runs)
    found = numbers(build_table(results))
    assert found["table/FD-digits/baseline"] == pytest.approx(1.1)  # the mean of 1.0, 1.1 and 1.2
    assert found["table/FD-digits change/output-2d"] == pytest.approx(-0.5)
    assert found["table/FD-digits/baseline/low"] < 1.1 < found["table/FD-digits/baseline/high"]
    drawn = curves(results)
    assert list(drawn) == ["baseline", "output-2d"]
    means = {point.step: point.value for point in drawn["output-2d"] if point.name == "eval/FD-digits"}
    assert len(means) == 5 and means[max(means)] == pytest.approx(0.55)
    assert all(math.isfinite(point.value) for points in drawn.values() for point in points)


def test_the_page_has_table_numbers_files_and_a_run_for_each_arm(plan):
    parent_id = start_sweep(plan_of(plan.sweep) | {"axis": plan.sweep.axis})
    send_summary(plan, parent_id)
    client = mlflow_store.connect(mlflow_store.store_uri())
    parent = client.get_run(parent_id)
    note = parent.data.tags["mlflow.note.content"]
    assert "| output-2d | 3 |" in note and "Group by: arm" in note
    assert parent.data.metrics["table/FD-digits change/output-2d"] == pytest.approx(-0.5)
    files = {artifact.path for artifact in client.list_artifacts(parent_id)}
    assert {"plan.json", "injection_level.md", "injection_level.csv", "injection_level.svg"} <= files
    assert {"injection_level_speedup.md", "injection_level_report.html"} <= files
    arms = summaries(client, parent)
    assert list(arms) == ["baseline", "output-2d"], "the newest run is shown first"
    assert arms["output-2d"].data.metrics["eval/FD-digits"] == pytest.approx(0.55)
    history = client.get_metric_history(arms["output-2d"].info.run_id, "eval/FD-digits")
    assert len(history) == 5
    # The same again changes nothing, and another seed replaces the means.
    send_summary(plan, parent_id)
    assert {run.info.run_id for run in summaries(client, parent).values()} == {
        run.info.run_id for run in arms.values()
    }
    cell = plan.sweep.cells[1]
    write_run("runs", cell.config, lambda epoch: {"FD-digits": 24 / epoch})
    send_summary(plan, parent_id)
    renewed = summaries(client, parent)
    assert list(renewed) == ["baseline", "output-2d"]
    assert renewed["output-2d"].data.metrics["eval/FD-digits"] == pytest.approx((2 + 0.55 + 0.6) / 3)
    # Whoever opens the sweep again, such as `tracking replay`, leaves the table in its note.
    assert start_sweep(plan_of(plan.sweep)) == parent_id
    assert "| output-2d | 3 |" in client.get_run(parent_id).data.tags["mlflow.note.content"]


def test_a_view_of_all_arms_has_epochs_on_its_x_axis(plan, monkeypatch):
    monkeypatch.setattr("mirai_bench.sweep.page.SCRIPTS", {})
    parent_id = start_sweep(plan_of(plan.sweep) | {"axis": plan.sweep.axis})
    send_summary(plan, parent_id)
    client = mlflow_store.connect(mlflow_store.store_uri())
    parent = client.get_run(parent_id)
    note = parent.data.tags["mlflow.note.content"]
    key = re.match(r"\[.*\]\(#/experiments/\d+/runs\?viewStateShareKey=(\w+)&", note)[1]
    tag = f"mlflow.sharedViewState.{key}"
    view = client.get_experiment(parent.info.experiment_id).tags[tag]
    state = json.loads(json.loads(view)["state"])
    assert state.items() <= json.loads(view).items(), "for versions that know no names of views"
    assert state["globalLineChartConfig"]["selectedXAxisMetricKey"] == "eval/epoch"
    shown = client.search_runs([parent.info.experiment_id], state["searchFilter"])
    assert [run.data.tags["arm"] for run in shown] == ["baseline", "output-2d"]
    assert all(run.data.metrics["eval/epoch"] == 12 for run in shown)
    # What a user has made of it stays.
    client.set_experiment_tag(parent.info.experiment_id, tag, "{}")
    send_summary(plan, parent_id)
    assert client.get_experiment(parent.info.experiment_id).tags[tag] == "{}"


def test_what_a_script_cannot_make_is_missing_and_said(plan, monkeypatch, caplog):
    def command(words):
        raise OSError("no room")

    monkeypatch.setattr("mirai_bench.sweep.page.SCRIPTS", {"fid_table": "table", "report": "report"})
    monkeypatch.setitem(sys.modules, "report", SimpleNamespace(command=command))
    parent_id = start_sweep(plan_of(plan.sweep) | {"axis": plan.sweep.axis})
    send_summary(plan, parent_id)
    client = mlflow_store.connect(mlflow_store.store_uri())
    files = {artifact.path for artifact in client.list_artifacts(parent_id)}
    assert "injection_level.md" in files and "injection_level_report.html" not in files
    assert "MLflow gets no report of this sweep: OSError: no room" in caplog.text
