"""Cells that are known from frozen records are done, and nothing of them is lost on the way."""

import json

import pytest
import yaml

from mirai_bench.results.frozen import freeze, read_jsonl
from mirai_bench.results.reading import read_journals
from mirai_bench.sweep.__main__ import command
from mirai_bench.sweep.overview import dry_run
from mirai_bench.sweep.plan import folder_of, make_plan
from mirai_bench.sweep.recorded import recorded_cells, restore
from mirai_bench.utils.errors import UserError
from tests.support.small_run import SMALL, train

ARMS = {
    "baseline": {"level": "none"},
    "frozen": {"level": "internal", "source": "frozen", "k": 1, "layer": 2},
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "small.yaml").write_text(yaml.safe_dump({"profile": "digits"} | SMALL))
    sweep = {"axis": "recorded", "question": "?", "profile": "small", "seeds": [0, 1], "arms": ARMS}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def plan_in(file, runs):
    return make_plan(file, settings=[f"machine.runs={runs}", "machine.device=cpu"])


@pytest.fixture
def frozen(file, tmp_path):
    """The records of two cells of four: the baseline's."""
    plan = plan_in(file, tmp_path / "first")
    plan.write()
    for cell in plan.sweep.cells:
        if cell.arm == "baseline":
            train(cell.config, cell.run_path)
    (results,) = read_journals(tmp_path / "first")
    freeze(results, tmp_path / "frozen.jsonl")
    return tmp_path / "frozen.jsonl"


def test_recorded_cells_are_done_and_freeze_to_the_same_file(file, frozen, tmp_path):
    plan = plan_in(file, tmp_path / "second")
    assert "recorded" in dry_run(plan, None, recorded=set(recorded_cells(plan, read_jsonl([frozen]))))
    assert not (tmp_path / "second").exists(), "a dry run writes nothing"
    assert restore(plan, read_jsonl([frozen])) == 2 and restore(plan, read_jsonl([frozen])) == 0
    states = {(cell.arm, cell.seed): folder_of(cell).state for cell in plan.sweep.cells}
    assert states == {
        ("baseline", 0): "done",
        ("frozen", 0): "pending",
        ("baseline", 1): "done",
        ("frozen", 1): "pending",
    }
    plan.write()
    (results,) = read_journals(tmp_path / "second")
    freeze(results, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == frozen.read_bytes()


def test_a_recorded_teacher_is_trained_again_for_its_weights(file, frozen, tmp_path):
    plan = plan_in(file, tmp_path / "second")
    restore(plan, read_jsonl([frozen]))
    baseline, student = plan.sweep.cells[:2]
    before = [line["metrics"] for line in folder_of(baseline).journal.lines("evaluation")]
    train(student.config, student.run_path)
    assert folder_of(student).is_done and folder_of(baseline).checkpoints.is_dir()
    assert [line["metrics"] for line in folder_of(baseline).journal.lines("evaluation")] == before


def test_another_configuration_is_not_taken_for_the_same(file, frozen, tmp_path):
    changed = make_plan(file, settings=[f"machine.runs={tmp_path / 'second'}", "train.lr=0.001"])
    assert recorded_cells(changed, read_jsonl([frozen])) == {}
    (tmp_path / "other.jsonl").write_text(json.dumps({"kind": "run"}))
    with pytest.raises(UserError, match="is not a file of frozen records"):
        command([str(file), "--dry-run", "--records", str(tmp_path / "other.jsonl")])
