"""A plan tells what is done, what is missing, and what it will cost. Nothing is trained here."""

import json
import os
import re
import time
from collections import Counter

import pytest
import yaml
from filelock import FileLock
from pydantic import BaseModel

from mirai_bench.config.load import SWEEPS, load_run
from mirai_bench.config.variation import IN_SEVERAL_SECTIONS, varied_name
from mirai_bench.sweep.__main__ import command
from mirai_bench.sweep.commands import commands
from mirai_bench.sweep.driver import missing
from mirai_bench.sweep.estimate import measured_rate
from mirai_bench.sweep.looks import can_show
from mirai_bench.sweep.overview import dry_run, status
from mirai_bench.sweep.plan import Plan, in_order_of_execution, make_plan
from mirai_bench.sweep.progress import Screen
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError
from tests.support.small_sweeps import said
from tests.support.synthetic import write_run

FILE = SWEEPS / "injection_level.yaml"


def plan_of(path=FILE, **choices) -> Plan:
    plan = make_plan(path, **choices)
    plan.write()
    return plan


def finish(cell, status="done", runs=None):
    return write_run(
        runs or cell.config.machine.runs, cell.config, lambda epoch: {"FD-digits": 4.0}, status=status
    )


def names(cells):
    return [(cell.arm, cell.seed) for cell in cells]


def test_states_are_read_from_the_folders(here):
    cells = plan_of().sweep.cells
    finish(cells[0])
    finish(cells[1], status="failed")
    finish(cells[2], status="running")
    with FileLock(cells[2].run_path / "run.lock"):
        assert [RunFolder(cell.run_path).state for cell in cells[:4]] == [
            "done",
            "failed",
            "running",
            "pending",
        ]
        text = status(plan_of())
    assert "running  epoch" in text and "failed   10 updates in a row were not finite (step 5)" in text
    assert text.endswith("1 done, 1 running, 1 failed, 12 pending")
    assert RunFolder(cells[2].run_path).state == "pending", "its process is gone: it will be resumed"


def test_the_same_command_again_runs_what_is_missing(here):
    plan = plan_of()
    assert len(missing(plan)) == 15
    for cell in plan.sweep.cells[:-1]:
        finish(cell)
    finish(plan.sweep.cells[-1], status="failed")
    assert names(missing(plan_of())) == names(plan.sweep.cells[-1:]), "a failed cell is tried again"
    finish(plan.sweep.cells[-1])
    (plan.sweep.cells[-1].run_path / "failed.json").unlink()
    assert missing(plan_of()) == []


def test_more_seeds_a_new_arm_or_a_changed_value_run_alone(here, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(FILE.read_text())
    for cell in plan_of(file).sweep.cells:
        finish(cell)
    assert {seed for _, seed in names(missing(plan_of(file, seeds=[10, 11, 12, 13, 14])))} == {13, 14}
    content = yaml.safe_load(file.read_text())
    content["arms"]["output-k9"] = {"level": "output", "k": 9}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert names(missing(plan_of(file))) == [("output-k9", seed) for seed in (10, 11, 12)]
    content["arms"]["internal-2d"]["weight"] = 1.5
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert {arm for arm, _ in names(missing(plan_of(file, seeds=[10, 11, 12])))} == {
        "output-k9",
        "internal-2d",
    }


def test_moving_runs_or_data_runs_nothing_again(here, tmp_path, monkeypatch):
    for cell in plan_of().sweep.cells:
        finish(cell)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert (
        missing(plan_of(settings=["machine.runs=elsewhere", "machine.data=some/other", "machine.threads=2"]))
        == []
    )
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert missing(plan_of(settings=["machine.runs=../elsewhere"])) == []


def test_what_another_process_trains_comes_last(here):
    plan = plan_of(seeds=[0])
    first = missing(plan)[0]
    first.run_path.mkdir(parents=True)
    with FileLock(first.run_path / "run.lock"):
        assert missing(plan)[-1] is first


def test_the_plan_keeps_earlier_cells_that_still_stand(here):
    plan_of()
    extended = plan_of(seeds=[3], only=["baseline", "internal-2d"])
    content = json.loads(extended.file(".json").read_text())
    assert len(extended.sweep.cells) == 2 and len(content["cells"]) == 17
    assert content["arms"] == ["baseline", "output-1d", "output-2d", "internal-1d", "internal-2d"]
    assert [cell["seed"] for cell in content["cells"]] == sorted(cell["seed"] for cell in content["cells"])


def test_a_sweep_under_set_is_another_sweep_and_takes_nothing_from_the_first(here):
    first = plan_of()
    before = first.file(".json").read_text()
    varied = plan_of(settings=["train.epochs=12", "machine.threads=2", "evaluation.at=[12]"], seeds=[0])
    assert varied.sweep.axis == "injection_level+at-12+epochs-12"
    content = json.loads(varied.file(".json").read_text())
    assert content["settings"] == ["evaluation.at=[12]", "train.epochs=12"] and len(content["cells"]) == 5
    assert first.file(".json").read_text() == before
    # Their order does not matter, the last of two counts, and where it runs makes no difference.
    again = plan_of(settings=["evaluation.at=[12]", "train.epochs=3", "train.epochs=12"], seeds=[1])
    assert again.file(".json") == varied.file(".json")
    assert plan_of(settings=["machine.threads=2"]).file(".json") == first.file(".json")
    long = varied_name("injection_level", [f"foresight.encoder.weights=/a/long/path/{'x' * 80}"])
    assert re.fullmatch(r"injection_level\+[0-9a-f]{6}", long)


def test_two_sweeps_under_set_have_two_names(here):
    fields = ("train.epochs", "foresight.encoder.epochs", "model.depth", "foresight.encoder.depth")
    names_of = [varied_name("axis", [f"{field}=2"]) for field in fields]
    assert names_of == ["axis+epochs-2", "axis+encoder.epochs-2", "axis+depth-2", "axis+encoder.depth-2"]
    assert varied_name("axis", ["tokenizer.name=a"]) != varied_name("axis", ["data.name=a"])
    # Of all sections these are the fields whose names do not tell which section they belong to.
    sections = [section for _, section in load_run("digits") if isinstance(section, BaseModel)]
    counts = Counter(name for section in sections for name in type(section).model_fields)
    assert tuple(name for name, count in counts.items() if count > 1) == IN_SEVERAL_SECTIONS
    # Values that look alike in a name are told apart by the plan.
    plan_of(settings=["train.lr=1e+0"])
    with pytest.raises(UserError, match=r"train.lr=1e\+0, of the same name as one under train.lr=1e-0"):
        plan_of(settings=["train.lr=1e-0"])


def test_a_damaged_plan_is_named(here):
    plan = plan_of()
    plan.file(".json").write_text("{")
    with pytest.raises(UserError, match=r"injection_level-digits.json is not a readable plan .* remove it"):
        make_plan(FILE)


def test_order_of_execution(here):
    cells = plan_of(SWEEPS / "foresight_source.yaml").sweep.cells
    order = names(in_order_of_execution(cells, "baseline"))
    assert sorted(order) == sorted(names(cells))
    assert order[:3] == [("baseline", 10), ("baseline", 11), ("baseline", 12)]
    assert order[3] == ("mirai-i-k1", 10), "trains the teacher"
    assert {arm for arm, _ in order[4:6]} <= {"mirai-e-k1", "mirai-e-k3"}, "… beside cells that need none"
    frozen = [arm.startswith("mirai-e-frozen") for arm, _ in order]
    assert frozen == sorted(frozen) and sum(frozen) >= 3, "last: the finished baseline is their teacher"


def test_a_thousand_cells_are_planned_in_two_seconds(here):
    plan = plan_of(seeds=range(200))
    for cell in plan.sweep.cells[::10]:
        cell.run_path.mkdir(parents=True)
        (cell.run_path / "done.json").write_text("{}")
    start = time.process_time()  # not wall-clock: other tests may share the machine
    assert len(missing(make_plan(FILE, seeds=range(200)))) == 900
    assert time.process_time() - start < 2.0


def test_paths_are_absolute_wherever_a_trial_runs(here, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"weights")
    sets = [
        "machine.data=images",
        "machine.codes=codes",
        "machine.assets=assets",
        "tokenizer.weights=w.bin",
        "foresight.encoder.weights=w.bin",
    ]
    config = make_plan(FILE, settings=sets).sweep.cells[-1].config
    paths = [
        config.machine.runs,
        config.machine.data,
        config.machine.codes,
        config.machine.assets,
        config.tokenizer.weights,
        config.foresight.encoder.weights,
    ]
    assert paths == [tmp_path / name for name in ("runs", "images", "codes", "assets", "w.bin", "w.bin")]


def test_the_screen_says_what_changes(here, capsys, monkeypatch):
    plan = plan_of(seeds=[0])
    first, second, third, *_ = cells = plan.sweep.cells
    finish(first, status="failed")
    os.utime(first.run_path / "failed.json", (1, 1))
    screen = Screen(plan, list(cells))
    screen.refresh()
    finish(second)
    finish(third, status="failed")
    os.utime(third.run_path / "failed.json", (2e9, 2e9))
    finish(first, status="running")
    with FileLock(first.run_path / "run.lock"):
        monkeypatch.setattr("mirai_bench.sweep.progress.EVERY_SECONDS", 0.0)
        screen.refresh()
    screen.refresh()
    first_said, *others = said(capsys.readouterr().err)
    assert first_said.startswith("injection_level (digits): 5 cells, 0 done before, 5 to run")
    ended = [
        f"done: {second.arm}, seed 0",
        f"failed: {third.arm}, seed 0: 10 updates in a row were not finite (step 5)",
    ]
    assert others[:2] == ended, "the failure of an earlier command is none of this one; each is said once"
    assert others[2].startswith(
        f"1/5 done, 1 failed · {first.arm} s0 epoch {first.config.train.epochs:.1f}/"
    ) and others[2].endswith("left")
    assert len([line for line in others if line.startswith(("done", "failed"))]) == 2


def test_a_failure_that_a_new_attempt_takes_meanwhile_has_no_reason(here, capsys, monkeypatch):
    """failed.json is there when the state is read, and gone when its reason is."""
    plan = plan_of(seeds=[0])
    cell = plan.sweep.cells[0]
    screen = Screen(plan, [cell])
    finish(cell, status="failed")
    os.utime(cell.run_path / "failed.json", (2e9, 2e9))
    monkeypatch.setattr(RunFolder, "failure", lambda self: None)
    assert "failed   no reason was left" in status(plan)
    screen.refresh()
    assert f"failed: {cell.arm}, seed 0: no reason was left" in said(capsys.readouterr().err)


def test_dry_run_shows_cells_and_costs_and_starts_nothing(here):
    text = dry_run(make_plan(FILE), measured_rate(make_plan(FILE)))
    assert "15 cells, 15 to run" in text and "hours are known once" in text
    assert not (here / "runs").exists()
    cells = plan_of().sweep.cells
    for cell in cells[:5]:
        finish(cell)
    text = dry_run(make_plan(FILE), measured_rate(make_plan(FILE)))
    assert "15 cells, 10 to run" in text and "h of trials" in text
    assert all(cell.fingerprint in text for cell in cells)


# ---- planned looks

LOOKS = {"pilot": 2, "looks": [3, 5], "smallest_effect": 0.15, "seeds": [10, 11, 12, 13, 14]}


def file_with(tmp_path, **fields):
    """Returns a sweep file of two arms with these fields."""
    content = yaml.safe_load(FILE.read_text()) | LOOKS | fields
    content["arms"] = {name: content["arms"][name] for name in ("baseline", "internal-2d")}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_command_trains_the_pilot_or_else_the_first_look(here, tmp_path):
    assert {cell.seed for cell in plan_of(file_with(tmp_path)).sweep.cells} == {10, 11}
    assert len(plan_of(file_with(tmp_path, pilot=None)).sweep.cells) == 2 * 3
    assert len(plan_of(file_with(tmp_path), seeds=[10, 14]).sweep.cells) == 2 * 2


def test_the_plan_keeps_what_was_registered_first(here, tmp_path):
    plan = plan_of(file_with(tmp_path))
    assert plan.content()["registered"]["first"] == plan.content()["registered"]["now"]
    changed = plan_of(file_with(tmp_path, looks=[3, 4])).content()["registered"]
    assert changed["first"]["looks"] == [3, 5] and changed["now"]["looks"] == [3, 4]
    assert changed["first"]["hash"] != changed["now"]["hash"]
    again = plan_of(file_with(tmp_path)).content()["registered"]
    assert again["first"] == again["now"] == plan.content()["registered"]["now"]


def test_the_primary_metric_of_a_sweep_is_that_of_its_runs(here, tmp_path):
    plan = plan_of(file_with(tmp_path, primary="heldout_ntp"))
    assert plan.sweep.cells[0].config.evaluation.primary == "heldout_ntp"
    assert plan.sweep.cells[0].fingerprint == plan_of(file_with(tmp_path)).sweep.cells[0].fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"looks": [5, 3]}, "looks is [5, 3]: write increasing"),
        ({"looks": [3, 9]}, "looks ends at 9 seeds, but seeds has 5"),
        ({"looks": [], "pilot": None}, "smallest_effect is 0.15 without looks"),
        ({"pilot": 3}, "pilot is 3 with looks [3, 5]: write fewer"),
        ({"families": {"one": ["baseline"]}}, "families names 'baseline'"),
        ({"families": {"a": ["internal-2d"], "b": ["internal-2d"]}}, "twice"),
    ],
)
def test_bad_looks_are_refused(here, tmp_path, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make_plan(file_with(tmp_path, **fields))


def test_until_decided_goes_on_with_the_arms_that_need_it(here, tmp_path, monkeypatch):
    """The pilot, the first look with all arms, and the second one, which decides nothing more."""
    trained = []

    def train(plan, args):
        plan.write()
        trained.append(sorted({cell.seed for cell in plan.sweep.cells}))
        for cell in plan.sweep.cells:
            noise = (cell.seed % 3) * (-1 if cell.arm == "baseline" else 1)
            write_run(
                cell.config.machine.runs, cell.config, lambda epoch, n=noise: {"FD-digits": 4.0 + 0.3 * n}
            )
        return 0

    monkeypatch.setattr("mirai_bench.sweep.__main__.train", train)
    assert command([str(file_with(tmp_path)), "--until-decided"]) == 0
    assert trained == [[10, 11], [10, 11, 12], [10, 11, 12, 13, 14]]
    del trained[:]
    with pytest.raises(UserError, match="plans no looks"):
        command([str(file_with(tmp_path, looks=[], pilot=None, smallest_effect=None)), "--until-decided"])
    assert not trained


def test_until_decided_does_not_wait_for_ever(here, tmp_path, monkeypatch, caplog):
    path = file_with(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["arms"]["output-2d"] = yaml.safe_load(FILE.read_text())["arms"]["output-2d"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    plan_of(path, seeds=[10, 11, 12]).write()  # an earlier command, of which nothing is trained

    def train(plan, args):
        plan.write()
        for cell in plan.sweep.cells:
            write_run(cell.config.machine.runs, cell.config, lambda epoch: {"FD-digits": 4.0})
        return 0

    monkeypatch.setattr("mirai_bench.sweep.__main__.train", train)
    caplog.set_level("INFO")
    assert command([str(path), "--until-decided", "--only", "baseline", "internal-2d"]) == 0
    assert "this look waits for arms that --only leaves out: output-2d" in caplog.text


def test_a_dry_run_says_what_the_seeds_can_show(here, tmp_path):
    assert "there is no noise panel of staircase" in can_show(plan_of(SWEEPS / "controls.yaml"))
    # The family is the registered one, whatever a command trains of it.
    assert can_show(plan_of(only=["output-2d"], seeds=[10])) == can_show(plan_of(seeds=[10]))


def test_commands_for_what_is_missing(here, capfd):
    plan = plan_of(seeds=[10])
    finish(plan.sweep.cells[1])
    first = commands(plan)
    assert len(first) == 4
    for line, arm in zip(first, ("baseline", "output-2d", "internal-1d", "internal-2d"), strict=True):
        (cell,) = [cell for cell in plan.sweep.cells if cell.arm == arm]
        assert line == f"python -m mirai_bench.train {cell.run_path / 'config.json'}"
        # The command trains the very run that the sweep means.
        assert load_run(cell.run_path / "config.json").fingerprint() == cell.fingerprint
        assert RunFolder(cell.run_path).state == "pending"
    finish(plan.sweep.cells[0])
    assert commands(plan_of(seeds=[10])) == first[1:]
    assert json.loads(plan.file(".json").read_text())["cells"]
    (several,) = commands(plan_of(seeds=[10], only=["output-2d"], settings=["machine.workers=2"]))
    assert several.startswith("torchrun --nproc-per-node 2 -m mirai_bench.train ")
