"""The sender of a sweep: a store of no use is known before training, and never takes the table with it."""

import threading

import pytest

from mirai_bench.sweep import mlflow_sync
from mirai_bench.sweep.mlflow_sync import Shipper
from mirai_bench.sweep.plan import Plan
from mirai_bench.utils.errors import UserError
from tests.support.synthetic import injection_level


@pytest.fixture
def shipper(tmp_path):
    return Shipper(Plan(injection_level(only=["baseline"], seeds=[0])))


def test_a_store_of_no_use_is_known_before_the_first_trial(shipper, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    shipper.start()
    with pytest.raises(UserError, match="write the address of a server"):
        shipper.check()
    shipper.close()  # as after a command with nothing to train
    assert "not everything was sent to MLflow" in capsys.readouterr().err


def test_the_page_is_made_while_the_command_does_other_things(shipper, monkeypatch):
    sent = threading.Event()
    monkeypatch.setattr(mlflow_sync.mlflow_store, "create_store", lambda: "")
    monkeypatch.setattr(mlflow_sync.ship, "start_sweep", lambda plan: "parent")
    monkeypatch.setattr(mlflow_sync.ship, "end_sweep", lambda parent, failed: None)
    monkeypatch.setattr(mlflow_sync, "send_summary", lambda plan, parent: sent.set())
    monkeypatch.setattr(Plan, "write", lambda plan: None)
    shipper.start()
    shipper.accept()
    assert not sent.wait(0.2), "trials train"
    shipper.end()
    assert sent.wait(60)
    shipper.close()


def test_a_sender_that_dies_is_said_and_nothing_else(shipper, monkeypatch, capsys):
    def dies(plan):
        raise RuntimeError("no route to http://u:SeCrEt@host")

    monkeypatch.setattr(mlflow_sync.mlflow_store, "create_store", lambda: "")
    monkeypatch.setattr(mlflow_sync.ship, "start_sweep", dies)
    monkeypatch.setattr(Plan, "write", lambda plan: None)
    shipper.start()
    shipper.check()
    shipper.accept()
    shipper.close()
    said = capsys.readouterr().err
    assert "not everything was sent to MLflow (no route to http://host)" in said
    assert not any(isinstance(thread, Shipper) for thread in threading.enumerate())
