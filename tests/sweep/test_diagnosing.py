"""`sweep FILE --diagnose` looks into the weights of the cells that have ended."""

import pytest

from mirai_bench.diagnose.records import journal_of
from mirai_bench.diagnose.registry import DIAGNOSTICS
from mirai_bench.sweep.__main__ import command
from mirai_bench.sweep.plan import folder_of
from mirai_bench.tracking import mlflow_store
from mirai_bench.tracking.failure import Failure
from tests.support.small_run import train
from tests.support.small_sweeps import ARMS, plan_at
from tests.support.synthetic import shared_store


@pytest.fixture
def store(tmp_path_factory, monkeypatch):
    uri = shared_store(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow_store.connect(uri)


def test_finished_cells_are_diagnosed_once_and_sent(sweep_file, store, monkeypatch, trained_run, capsys):
    for name in set(DIAGNOSTICS) - {"spatial"}:
        monkeypatch.delitem(DIAGNOSTICS, name)
    file = sweep_file({name: ARMS[name] for name in ("baseline", "internal")})
    plan = plan_at(file)
    monkeypatch.chdir(file.parent)
    for cell in plan.sweep.cells:
        train(cell.config, cell.run_path)
    for made in (2, 0):
        assert command([file.name, "--diagnose"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("**small: Does it run?"), "stdout has the table"
        assert f"{made} diagnoses made, {2 - made} were there already" in err
        assert "analysis/diagnose.py" in err
    for cell in plan.sweep.cells:
        (line,) = journal_of(folder_of(cell)).lines()
        (run,) = store.search_runs(
            [mlflow_store.experiment_id(store, "")],
            f"tags.fingerprint = '{cell.fingerprint}' and tags.axis = 'small'",
        )
        assert run.data.metrics["diagnose/spatial/lds"] == line["values"]["lds"]
        parent = store.get_run(run.data.tags["mlflow.parentRunId"])
        assert parent.info.status == "FINISHED"


def test_without_the_option_nothing_is_diagnosed(sweep_file, store, monkeypatch, trained_run):
    file = sweep_file({"baseline": ARMS["baseline"]})
    (cell,) = plan_at(file).sweep.cells
    monkeypatch.chdir(file.parent)
    train(cell.config, cell.run_path)
    assert command([file.name]) == 0
    assert not folder_of(cell).diagnosis_file.exists()


def test_cells_that_have_not_ended_are_counted(sweep_file, store, monkeypatch, trained_run, capsys):
    from mirai_bench.sweep.diagnosing import diagnose_finished

    for name in set(DIAGNOSTICS) - {"spatial"}:
        monkeypatch.delitem(DIAGNOSTICS, name)
    file = sweep_file({name: ARMS[name] for name in ("baseline", "internal")})
    plan = plan_at(file)
    monkeypatch.chdir(file.parent)
    done, failed = plan.sweep.cells
    train(done.config, done.run_path)
    folder_of(failed).write_failure(Failure("not finite"))
    diagnose_finished(plan)
    assert "1 of 2 cells have not ended" in capsys.readouterr().err
    assert folder_of(done).diagnosis_file.exists()
