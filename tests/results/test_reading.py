"""Records come back the same from journals, MLflow and frozen files."""

import copy
import json
from dataclasses import replace

import pandas as pd
import pytest

from mirai_bench.config.load import merge
from mirai_bench.results.diagnoses import read_frozen_diagnoses
from mirai_bench.results.frozen import first_kind, freeze, read_jsonl
from mirai_bench.results.reading import fetch_grid, read_journals, read_mlflow
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import markdown
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.ship import ship, start_sweep
from mirai_bench.utils.errors import UserError
from tests.support.paths import RECORDS, ROOT
from tests.support.synthetic import injection_level, shared_store, write_plan, write_run


@pytest.fixture
def runs(tmp_path):
    """Returns a folder with two arms of three seeds. One run has failed, and one has not begun."""
    sweep = injection_level(only=["baseline", "internal-2d"])
    write_plan(tmp_path / "runs", sweep)
    for cell in sweep.cells:

        def metrics(epoch, seed=cell.seed):
            return {"FD-digits": 10 / epoch + seed, "recall": 0.5}

        if (cell.arm, cell.seed) == ("internal-2d", 1):
            write_run(tmp_path / "runs", cell.config, metrics, until=4, status="failed")
        elif (cell.arm, cell.seed) != ("internal-2d", 2):
            write_run(tmp_path / "runs", cell.config, metrics)
    return tmp_path / "runs"


def test_the_same_records_from_journals_mlflow_and_frozen_files(
    runs, tmp_path, tmp_path_factory, monkeypatch
):
    (journals,) = read_journals(runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store(tmp_path_factory.getbasetemp()))
    plan = json.loads((runs / "sweeps" / "injection_level-digits.json").read_text())
    parent = start_sweep(plan)
    for cell in plan["cells"]:
        folder = RunFolder(runs / cell["fingerprint"])
        if folder.holds_run:
            ship(folder, parent=parent, axis=plan["axis"], arm=cell["arm"], seed=cell["seed"])
    (mlflow,) = read_mlflow(sweep=parent)
    assert mlflow.cells in [results.cells for results in read_mlflow()]
    freeze(journals, tmp_path / "frozen.jsonl")
    (frozen,) = read_jsonl([tmp_path / "frozen.jsonl"])
    for other in (mlflow, frozen):
        pd.testing.assert_frame_equal(other.frame, journals.frame)
        assert other.cells == journals.cells
        assert other.arms == ["baseline", "internal-2d"]
        assert other.baseline == "baseline"
    states = [cell["status"] for cell in journals.cells]
    assert states == ["done", "done", "done", "failed", "done", "pending"]
    assert len(journals.frame) == 4 * 5 + 2
    row = journals.frame.query("arm == 'internal-2d' and seed == 1 and epoch == 4").iloc[0]
    assert (row["FD-digits"], row["train_flops"], row["autocast"]) == (3.5, 4e12, "fp32")
    assert row["fingerprint"] == plan["cells"][3]["fingerprint"]
    assert markdown(build_table(mlflow)) == markdown(build_table(journals)) == markdown(build_table(frozen))
    for results in (journals, mlflow):
        assert fetch_grid(results, results.records[0], tmp_path).read_bytes().startswith(b"\x89PNG")
    assert fetch_grid(frozen, frozen.records[0], tmp_path) is None


def test_no_store_is_an_empty_list(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'absent.db'}")
    assert read_mlflow() == []
    assert not (tmp_path / "absent.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        read_mlflow()


@pytest.mark.parametrize("text", ["", "not json", '{"kind": "sweep"}', "[1, 2]"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match="not a file of frozen records"):
        read_jsonl([tmp_path / "x.jsonl"])
    with pytest.raises(UserError, match="no file"):
        read_jsonl([tmp_path / "absent.jsonl"])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("sweep", {"cells": 3}),
        ("sweep", {"cells": [{"arm": "a", "seed": 0, "fingerprint": "../../etc"}]}),
        ("sweep", {"cells": [{"arm": "a", "seed": "0", "fingerprint": "0"}]}),
        ("sweep", {"arms": "baseline"}),
        ("sweep", {"question": None}),
        ("sweep", {"registered": []}),
        ("sweep", {"registered": {"first": {"looks": [3]}, "now": {"looks": "abc"}}}),
        ("sweep", {"cells": [{"arm": "baseline", "seed": 0, "fingerprint": "0"}]}),
        ("sweep", {"cells": [{"arm": "baseline", "seed": 0, "fingerprint": "0", "status": "ended"}]}),
        ("run", {"seed": "0"}),
        ("run", {"config": {}}),
        ("run", {"protocol": {}}),
        ("run", {"extractor": {}}),
        ("run", {"device": None}),
        ("run", {"precision": None}),
        ("run", {"parameters": None}),
        ("run", {"git": {}}),
        ("run", {"versions": None}),
        ("run", {"config": None}),
        ("run", {"protocol": []}),
        ("run", {"protocol_digest": 7}),
        ("evaluation", {"arm": None}),
        ("evaluation", {"seed": "0"}),
        ("evaluation", {"metrics": []}),
        ("evaluation", {"metrics": {"FD-digits": "3.2"}}),
        ("evaluation", {"sample_seconds": "1"}),
        ("evaluation", {"evaluate_seconds": []}),
        ("evaluation", {"one_off_flops": "1"}),
        ("evaluation", {"step": "1"}),
        ("evaluation", {"epoch": None}),
        ("evaluation", {"train_seconds": "1"}),
    ],
)
def test_fields_of_another_type_are_refused_in_one_message(tmp_path, kind, change):
    lines = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    next(line for line in lines if line["kind"] == kind).update(change)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=rf"not a file of frozen records \(ValueError: {next(iter(change))}"):
        read_jsonl([tmp_path / "x.jsonl"])


def without(*names):
    """Returns a damage: all lines of a file lack these fields."""
    return lambda lines: [{key: value for key, value in line.items() if key not in names} for line in lines]


def of_another_arm(lines):
    return [line | {"arm": "other"} if line.get("arm") == "internal-2d" else line for line in lines]


def with_an_evaluation_twice(lines):
    return [*lines, lines[-1] | {"metrics": {"FD-digits": 0.1}}]


def without_a_run(lines):
    runs = [line for line in lines if line["kind"] == "run"]
    return [line for line in lines if line is not runs[2]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_another_arm, "other is none of its arms: baseline"),
        (lambda lines: [lines[0] | {"arms": []}, *lines[1:]], "baseline is none of its arms"),
        (lambda lines: [lines[0] | {"arms": lines[0]["arms"] * 2}, *lines[1:]], "arms names one twice"),
        (with_an_evaluation_twice, r"seed \d, at step \d+ is there twice"),
        (without_a_run, r"seed \d, at step \d+ does not follow the line of its run"),
        (without("arm"), "arm: Field required"),
        (without("seed"), "seed: Field required"),
        (without("sample_seconds"), "sample_seconds: Field required"),
        (without("git"), "git: Field required"),
    ],
)
def test_lines_that_tables_could_not_read_are_refused(tmp_path, damage, message):
    lines = damage([json.loads(line) for line in RECORDS.read_text().splitlines()])
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=rf"not a file of frozen records .*{message}.*: freeze it again"):
        read_jsonl([tmp_path / "x.jsonl"])


def test_fields_that_older_records_lack_are_optional(tmp_path):
    newer = without("workers", "compiled", "left_out", "one_off_flops", "one_off_seconds", "registered")
    lines = newer([json.loads(line) for line in RECORDS.read_text().splitlines()])
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert markdown(build_table(read_jsonl([tmp_path / "x.jsonl"])[0]))


def test_every_committed_file_can_be_read():
    files = sorted((ROOT / "reports" / "data").rglob("*.jsonl"))
    own = [path for path in files if first_kind(path) == "sweep"]
    assert len(own) > 20 and all(read_jsonl([path]) for path in own)
    assert all(read_frozen_diagnoses([path]) for path in files if first_kind(path) == "diagnoses")


@pytest.mark.parametrize("kind", ["diagnoses", "panel", "cell"])
def test_files_that_lie_beside_those_of_sweeps_are_passed_over(kind, frozen, tmp_path, capsys):
    """A shell writes them all for reports/data/*.jsonl. One that is named alone was meant."""
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"kind": kind}) + "\n")
    (found,) = read_jsonl([other, RECORDS])
    assert len(found.records) == len(frozen.records)
    assert f"{other} is not read as a sweep: it holds " in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{other} holds .*, and no sweep: write a file of frozen records"):
        read_jsonl([other, other])
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text(json.dumps({"kind": "run"}) + "\n")
    with pytest.raises(UserError, match=f"{unknown} is not a file of frozen records"):
        read_jsonl([RECORDS, unknown])


@pytest.mark.parametrize(
    "content", ['{"half": ', "[]", "7", "{}", '{"cells": []}', '{"axis": 1, "cells": [{}]}', "[" * 9999, "\0"]
)
def test_a_foreign_file_among_the_plans_is_named_and_passed_over(tmp_path, content, capsys):
    write_plan(tmp_path, injection_level(only=["baseline"], seeds=[0]))
    (tmp_path / "sweeps" / "notes.json").write_text(content)
    assert [results.axis for results in read_journals(tmp_path)] == ["injection_level"]
    is_other = content in ("[]", "7", "{}")  # a file of another kind, and not half of a plan
    assert ("notes.json is passed over" in capsys.readouterr().err) != is_other


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("train", "lr", 0.1), ("model", "width", 999), ("foresight", "weight", 7.5), ("train", "epochs", 99)],
)
def test_seeds_of_another_configuration_are_not_averaged_in(frozen, tmp_path, section, field, value):
    def part(name, mine, changed=False):
        records = [copy.deepcopy(record) for record in frozen.records if mine(record["seed"])]
        for record in records:
            usual = {"train": {"lr": 1e-3, "epochs": 8}, "foresight": {"weight": 1}}
            usual |= {"model": {"size": "S", "width": 8}}
            usual |= {"machine": {"threads": record["seed"] + 1}}  # which may differ
            record["run"]["config"] = merge(usual, {section: {field: value}} if changed else {})
        cells = [cell if mine(cell["seed"]) else cell | {"status": "pending"} for cell in frozen.cells]
        freeze(replace(frozen, cells=cells, records=records), tmp_path / name)
        return tmp_path / name

    first = part("first.jsonl", lambda seed: seed == 0)
    read_jsonl([first, part("same.jsonl", lambda seed: seed != 0)])
    other = part("other.jsonl", lambda seed: seed != 0, changed=True)
    with pytest.raises(UserError, match=rf"two configurations: {section}\.{field} is"):
        read_jsonl([first, other])


def states(results):
    return {(cell["arm"], cell["seed"]): cell["status"] for cell in results.cells}


def test_a_run_whose_process_died_is_pending_in_tables_and_in_the_status_of_its_sweep(tmp_path):
    """The folder of such a run has a journal, and nothing that says how the run ended."""
    sweep = injection_level(only=["baseline"], seeds=[0])
    write_plan(tmp_path, sweep)
    config = sweep.cells[0].config
    path = write_run(tmp_path, config, lambda epoch: {"FD-digits": 10 / epoch}, until=4, status="running")
    (results,) = read_journals(tmp_path)
    assert states(results) == {("baseline", 0): "pending"}
    assert RunFolder(path).state == "pending"
    assert len(results.records) == 2
    with RunFolder(path).lock(wait=False):
        (results,) = read_journals(tmp_path)
    assert states(results) == {("baseline", 0): "running"}


def test_files_of_one_sweep_are_joined(frozen, tmp_path):
    """It makes no difference whether all seeds lie in one file, or seed 0 in one and the rest in another."""

    def part(name, mine):
        cells = [cell if mine(cell["seed"]) else cell | {"status": "pending"} for cell in frozen.cells]
        records = [record for record in frozen.records if mine(record["seed"])]
        freeze(replace(frozen, cells=cells, records=records), tmp_path / name)
        return tmp_path / name

    paths = [part("first.jsonl", lambda seed: seed == 0), part("more.jsonl", lambda seed: seed != 0)]
    for files in (paths, paths[::-1]):
        (joined,) = read_jsonl(files)
        assert states(joined) == states(frozen)
        assert markdown(build_table(joined)) == markdown(build_table(frozen))
    with pytest.raises(UserError, match=r"an earlier file has records of baseline, seed 0, too"):
        read_jsonl([*paths, paths[0]])


def test_freezing_loses_no_cell(frozen, tmp_path):
    path = tmp_path / "frozen.jsonl"
    some = replace(frozen, records=[record for record in frozen.records if record["seed"] != 1])
    freeze(some, path)
    freeze(frozen, path)  # more is welcome
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"seed 1 and \d+ more, which would be lost: .*--records"):
        freeze(some, path)
    assert path.read_bytes() == before
