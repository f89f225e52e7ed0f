"""Diagnoses are read, joined with the plan and the evaluations, and frozen."""

import json
from dataclasses import replace

import pytest

from mirai_bench.results.diagnoses import freeze_diagnoses, read_diagnosed, read_frozen_diagnoses, rounded
from mirai_bench.utils.errors import UserError
from tests.support.diagnosed import SCOPE, diagnosis_line, write_diagnoses
from tests.support.synthetic import injection_level, write_plan, write_run


def smoothness(cell):
    """The arms on the grid are smoother by 0.2 with every seed."""
    return 0.1 * cell.seed + (0.2 if "2d" in cell.arm else 0)


@pytest.fixture
def sweep():
    return injection_level(seeds=[0, 1, 2])


@pytest.fixture
def runs(tmp_path, sweep):
    runs = tmp_path / "runs"
    write_plan(runs, sweep)
    for cell in sweep.cells:
        write_run(runs, cell.config, lambda epoch, seed=cell.seed: {"FD-digits": 10 / epoch + seed})
        detail = {"profile": [[1.23456789, 2], [3.0, 4.0]]}
        lines = [diagnosis_line(cell.config, "spatial", {"lds": smoothness(cell), "lds@1": 0.5}, detail)]
        if cell.arm != "baseline":
            lines.append(diagnosis_line(cell.config, "gradients", {"cosine": -0.25}))
        write_diagnoses(runs, cell.config, lines)
    return runs


def test_diagnoses_are_joined_with_the_plan_and_the_evaluations(runs):
    (read,) = read_diagnosed(runs)
    assert read.diagnostics == ["spatial", "gradients"]
    assert read.values("spatial") == ["lds", "lds@1"]
    assert read.by_seed("spatial", "internal-2d", "lds") == {0: 0.2, 1: 0.3, 2: 0.4}
    assert read.by_seed("gradients", "baseline", "cosine") == {}
    change = read.change("spatial", "output-2d", "lds")
    assert (change.n, change.mean) == (3, pytest.approx(0.2))
    assert read.change("gradients", "output-2d", "cosine") is None, "the baseline has no foresight"
    assert read.metric("spatial", "baseline", "FD-digits") == {s: 10 / 12 + s for s in (0, 1, 2)}
    assert read.details("spatial", "baseline")[1] == {"profile": [[1.2346, 2], [3.0, 4.0]]}
    assert read.epochs("spatial") == {120: 12.0}
    assert read.name == "diagnose_injection_level"


def test_a_frozen_file_says_the_same_as_the_run_folders(runs, tmp_path):
    (read,) = read_diagnosed(runs)
    freeze_diagnoses(read, tmp_path / "a.jsonl")
    (again,) = read_frozen_diagnoses([tmp_path / "a.jsonl"])
    assert again.found == read.found
    assert again.results.arms == read.results.arms
    assert again.results.by_seed("output-1d", 120, "FD-digits") == read.metric(
        "spatial", "output-1d", "FD-digits"
    )
    assert {record["step"] for record in again.results.records} == {120}, "no others were diagnosed"
    freeze_diagnoses(again, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert kinds.count("subject") == 15, "what the diagnoses of a run share is written once"


def test_files_of_other_seeds_are_joined(runs, tmp_path):
    (read,) = read_diagnosed(runs)
    for name, mine in (("a", {0}), ("b", {1, 2})):
        part = read_diagnosed(runs)[0]
        part.found = [each for each in part.found if each.seed in mine]
        freeze_diagnoses(part, tmp_path / f"{name}.jsonl")
    (both,) = read_frozen_diagnoses([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert both.by_seed("spatial", "baseline", "lds") == read.by_seed("spatial", "baseline", "lds")
    with pytest.raises(UserError, match="records of baseline, seed 0, too"):
        read_frozen_diagnoses([tmp_path / "a.jsonl"] * 2)


def test_mixed_scopes_and_versions_are_refused(runs, sweep):
    cell = sweep.cells[0]
    values = {"lds": 9.0, "lds@1": 9.0}
    line = diagnosis_line(cell.config, "spatial", values, digest="cd34", scope=SCOPE | {"heldout_images": 7})
    write_diagnoses(runs, cell.config, [line])
    (read,) = read_diagnosed(runs)
    assert read.by_seed("spatial", "baseline", "lds")[0] < 1, "one run in another scope is passed over"
    one = runs / sweep.cells[1].fingerprint / "diagnosis.jsonl"
    one.write_text("\n".join(one.read_text().splitlines()[1:]) + "\n")  # and one lacks the usual scope
    write_diagnoses(runs, sweep.cells[1].config, [line])
    with pytest.raises(UserError, match=r"heldout_images is 40 for baseline, .* and 7 for baseline, seed 0"):
        read_diagnosed(runs)
    one.write_text(one.read_text().replace('"heldout_images": 7', '"heldout_images": 40'))
    other = runs / cell.fingerprint / "diagnosis.jsonl"
    other.write_text(other.read_text().replace('"heldout_images": 7', '"heldout_images": 40'))
    with pytest.raises(UserError, match="two versions"):
        read_diagnosed(runs)


def test_the_newest_kind_that_all_runs_have_counts(runs, sweep):
    for cell in sweep.cells:
        values = {"lds": 7.0, "lds@1": 7.0}
        write_diagnoses(runs, cell.config, [diagnosis_line(cell.config, "spatial", values, digest="new")])
    (read,) = read_diagnosed(runs)
    assert set(read.by_seed("spatial", "baseline", "lds").values()) == {7.0}
    assert len(read.of("spatial")) == 15


@pytest.mark.parametrize(
    ("field", "value"),
    [("values", {"lds": "x"}), ("values", {"lds": float("nan")}), ("detail", 3), ("diagnostic", "../x")],
)
def test_what_is_no_diagnosis_is_one_message(runs, sweep, tmp_path, field, value):
    (read,) = read_diagnosed(runs)
    path = tmp_path / "a.jsonl"
    freeze_diagnoses(read, path)
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps(json.loads(last) | {field: value})]) + "\n")
    with pytest.raises(UserError, match="is not a file of frozen records"):
        read_frozen_diagnoses([path])
    config = sweep.cells[0].config
    write_diagnoses(runs, config, [diagnosis_line(config, "spatial", {}) | {field: value}])
    with pytest.raises(UserError, match="of another form"):
        read_diagnosed(runs)


def test_freezing_loses_no_cell(runs, tmp_path):
    (read,) = read_diagnosed(runs)
    freeze_diagnoses(read, tmp_path / "a.jsonl")
    some = replace(read, found=[each for each in read.found if each.seed != 2])
    with pytest.raises(UserError, match=r"seed 2 and \d+ more, which would be lost: diagnose their runs"):
        freeze_diagnoses(some, tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kind": "sweep"}', '{"kind": "diagnoses"}', "{"])
def test_another_file_is_one_message(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match="is not a file of frozen records"):
        read_frozen_diagnoses([tmp_path / "x.jsonl"])


def test_numbers_are_rounded_wherever_they_stand():
    tree = {"a": [1.23456789, {"b": 0.000123456789}], "n": 123456789, "t": True}
    assert rounded(tree) == {"a": [1.2346, {"b": 0.00012346}], "n": 123456789, "t": True}
