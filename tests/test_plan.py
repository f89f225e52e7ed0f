"""Planning: what is there, what is missing, what it will cost. Nothing is trained in here."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import write_run

from mirai_bench import cli
from mirai_bench.compose import SWEEPS
from mirai_bench.errors import UserError
from mirai_bench.sweep import estimate, schema
from mirai_bench.sweep.command import command, dry_run, status
from mirai_bench.sweep.driver import Options, missing, run_sweep
from mirai_bench.sweep.plan import Plan, in_order_of_execution, make_plan, progress_of, run_dir_of, state_of
from mirai_bench.sweep.screen import Screen

AXES = ["injection_level", "foresight_layout", "foresight_source"]
FILE = SWEEPS / "injection_level.yaml"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to give commands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(path=FILE, **choices) -> Plan:
    plan = make_plan(path, **choices)
    plan.write()
    return plan


def finish(cell, status="done", runs=None):
    return write_run(runs or cell.config.machine.runs, cell.config, lambda epoch: {"FD-digits": 4.0}, status=status)


def names(cells):
    return [(cell.arm, cell.seed) for cell in cells]


# ---- what is missing


def test_states_are_read_from_the_folders(here):
    cells = plan_of().sweep.cells
    finish(cells[0])
    finish(cells[1], status="failed")
    finish(cells[2], status="running")
    with FileLock(run_dir_of(cells[2]) / "run.lock"):
        assert [state_of(run_dir_of(cell)) for cell in cells[:4]] == ["done", "failed", "running", "pending"]
        text = status(plan_of())
    assert "running  epoch" in text and "failed   10 updates in a row were not finite (step 5)" in text
    assert text.endswith("1 done, 1 running, 1 failed, 12 pending")
    assert state_of(run_dir_of(cells[2])) == "pending", "its process is gone: it will be resumed"


def test_the_same_command_again_runs_what_is_missing(here):
    plan = plan_of()
    assert len(missing(plan)) == 15
    for cell in plan.sweep.cells[:-1]:
        finish(cell)
    finish(plan.sweep.cells[-1], status="failed")
    assert names(missing(plan_of())) == names(plan.sweep.cells[-1:]), "a failed cell is tried again"
    finish(plan.sweep.cells[-1])
    (run_dir_of(plan.sweep.cells[-1]) / "failed.json").unlink()
    assert missing(plan_of()) == []


def test_more_seeds_a_new_arm_or_a_changed_value_run_alone(here, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(FILE.read_text())
    for cell in plan_of(file).sweep.cells:
        finish(cell)
    assert {seed for _, seed in names(missing(plan_of(file, seeds=[0, 1, 2, 3, 4])))} == {3, 4}
    content = yaml.safe_load(file.read_text())
    content["arms"]["output-k9"] = {"level": "output", "k": 9}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert names(missing(plan_of(file))) == [("output-k9", seed) for seed in (0, 1, 2)]
    content["arms"]["internal-2d"]["weight"] = 1.5
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert {arm for arm, _ in names(missing(plan_of(file, seeds=[0, 1, 2])))} == {"output-k9", "internal-2d"}


def test_moving_runs_or_data_runs_nothing_again(here, tmp_path, monkeypatch):
    for cell in plan_of().sweep.cells:
        finish(cell)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert missing(plan_of(settings=["machine.runs=elsewhere", "machine.data=some/other", "machine.threads=2"])) == []
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert missing(plan_of(settings=["machine.runs=../elsewhere"])) == []


def test_what_another_process_trains_comes_last(here):
    plan = plan_of(seeds=[0])
    first = missing(plan)[0]
    run_dir_of(first).mkdir(parents=True)
    with FileLock(run_dir_of(first) / "run.lock"):
        assert missing(plan)[-1] is first


def test_the_plan_keeps_earlier_cells_that_still_stand(here):
    plan_of()
    extended = plan_of(seeds=[3], only=["baseline", "internal-2d"])
    content = json.loads(extended.file(".json").read_text())
    assert len(extended.sweep.cells) == 2 and len(content["cells"]) == 17
    assert content["arms"] == ["baseline", "output-1d", "output-2d", "internal-1d", "internal-2d"]
    assert [cell["seed"] for cell in content["cells"]] == sorted(cell["seed"] for cell in content["cells"])
    changed = plan_of(settings=["train.epochs=12", "evaluation.at=[12]"], seeds=[0])
    assert len(json.loads(changed.file(".json").read_text())["cells"]) == 5, "cells of another config are no part of the table"


def test_a_damaged_plan_is_named(here):
    plan = plan_of()
    plan.file(".json").write_text("{")
    with pytest.raises(UserError, match=r"injection_level-digits.json is not a readable plan .* remove it"):
        make_plan(FILE)


def test_order_of_execution(here):
    cells = plan_of(SWEEPS / "foresight_source.yaml").sweep.cells
    order = names(in_order_of_execution(cells, "baseline"))
    assert sorted(order) == sorted(names(cells))
    assert order[:3] == [("baseline", 0), ("baseline", 1), ("baseline", 2)]
    assert order[3] == ("mirai-i-k1", 0), "trains the teacher"
    assert {arm for arm, _ in order[4:6]} <= {"mirai-e-k1", "mirai-e-k3"}, "… beside cells that need none"
    frozen = [arm.startswith("mirai-e-frozen") for arm, _ in order]
    assert frozen == sorted(frozen) and sum(frozen) >= 3, "last: the finished baseline is their teacher"


def test_a_thousand_cells_are_planned_in_two_seconds(here):
    plan = plan_of(seeds=range(200))
    for cell in plan.sweep.cells[::10]:
        run_dir_of(cell).mkdir(parents=True)
        (run_dir_of(cell) / "done.json").write_text("{}")
    start = time.perf_counter()
    assert len(missing(make_plan(FILE, seeds=range(200)))) == 900
    assert time.perf_counter() - start < 2.0


def test_paths_are_absolute_wherever_a_trial_runs(here, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"weights")
    sets = ["machine.data=images", "machine.codes=codes", "tokenizer.weights=w.bin", "foresight.encoder.weights=w.bin"]
    config = make_plan(FILE, settings=sets).sweep.cells[-1].config
    paths = [
        config.machine.runs,
        config.machine.data,
        config.machine.codes,
        config.tokenizer.weights,
        config.foresight.encoder.weights,
    ]
    assert paths == [tmp_path / name for name in ("runs", "images", "codes", "w.bin", "w.bin")]


def test_progress_of_a_resumed_run(here, tmp_path):
    now = time.time()
    lines = [("start", 0, now - 900), ("train", 2, now - 800), ("start", 2, now - 40), ("train", 4, now)]
    text = "".join(json.dumps({"kind": kind, "epoch": epoch, "step": 10 * epoch, "time": at}) + "\n" for kind, epoch, at in lines)
    (tmp_path / "journal.jsonl").write_text(text + '{"kind": "tr')
    config = make_plan(FILE, settings=["train.epochs=10", "evaluation.at=[10]"]).sweep.cells[0].config
    progress = progress_of(tmp_path, config)
    assert progress.epoch == 4 and progress.seconds_left == pytest.approx(120, abs=5), "20 s an epoch since it was resumed"


def test_the_screen_says_what_changes(here, capsys, monkeypatch):
    plan = plan_of(seeds=[0])
    first, second, third, *_ = cells = plan.sweep.cells
    finish(first, status="failed")
    os.utime(run_dir_of(first) / "failed.json", (1, 1))
    screen = Screen(plan, list(cells))
    screen.refresh()
    finish(second)
    finish(third, status="failed")
    os.utime(run_dir_of(third) / "failed.json", (2e9, 2e9))
    finish(first, status="running")
    with FileLock(run_dir_of(first) / "run.lock"):
        monkeypatch.setattr("mirai_bench.sweep.screen.EVERY_SECONDS", 0.0)
        screen.refresh()
    screen.refresh()
    first_said, *said = capsys.readouterr().err.splitlines()
    assert first_said.startswith("injection_level (digits): 5 cells, 0 done before, 5 to run")
    ended = [f"done: {second.arm}, seed 0", f"failed: {third.arm}, seed 0: 10 updates in a row were not finite (step 5)"]
    assert said[:2] == ended, "the failure of an earlier command is none of this one; each is said once"
    assert said[2].startswith(f"1/5 done, 1 failed · {first.arm} s0 epoch {first.config.train.epochs:.1f}/") and said[2].endswith(
        "left"
    )
    assert len([line for line in said if line.startswith(("done", "failed"))]) == 2


# ---- what it will cost


def test_dry_run_shows_cells_and_costs_and_starts_nothing(here):
    text = dry_run(make_plan(FILE), None)
    assert "15 cells, 15 to run" in text and "hours are estimated once" in text
    assert not (here / "runs").exists()
    cells = plan_of().sweep.cells
    for cell in cells[:5]:
        finish(cell)
    text = dry_run(make_plan(FILE), None)
    assert "15 cells, 10 to run" in text and "h of trials" in text
    assert all(cell.fingerprint in text for cell in cells)


@pytest.mark.parametrize("axis", AXES)
def test_parameters_and_checkpoint_size_are_those_built(axis, here, make_config, tmp_path):
    import torch

    from mirai_bench.foresight.level import LEVELS
    from mirai_bench.model import build_model

    for cell in make_plan(SWEEPS / f"{axis}.yaml", seeds=[0]).sweep.cells:
        config = cell.config
        generator, heads = estimate.num_parameters(config)
        assert generator == sum(p.numel() for p in build_model(config).parameters())
        level = LEVELS[config.foresight.level]
        if level is not None:
            built = level(config, type("Source", (), {"width": config.model.width}))
            assert heads == sum(p.numel() for p in built.parameters() if isinstance(p, torch.nn.Parameter))


def test_disk_and_flops_of_a_real_run(trained_run, make_config, monkeypatch):
    from mirai_bench.checkpoint import saved
    from mirai_bench.data.datasets import open_dataset
    from mirai_bench.journal import read_journal

    config = make_config()
    size = sum(path.stat().st_size for path in saved(trained_run)[-1].iterdir())
    assert estimate.checkpoint_bytes(config) == pytest.approx(size, rel=0.05)
    assert estimate.num_images(config) == len(open_dataset(config, "train"))
    (record,) = [line for line in read_journal(trained_run / "journal.jsonl") if line["kind"] == "evaluation"]
    assert estimate.cell_flops(config) == pytest.approx(record["train_flops"])


# ---- bad input


def refused(capsys, *argv):
    assert cli.run(command, list(map(str, argv))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.yaml"], "no file 'nowhere.yaml'"),
        ([FILE, "--only", "internal2d"], "Did you mean 'internal-2d'"),
        ([FILE, "--profile", "digit"], "Did you mean 'digits'"),
        ([FILE, "--set", "train.epoch=5"], "Did you mean 'epochs'"),
        ([FILE, "--set", "foresight.k=65"], "write k: 64 or less"),
        ([FILE, "--set", "train.epochs"], "write section.field=value"),
        ([FILE, "--seeds", "-1"], "seed is -1"),
        ([FILE, "--max-concurrent", "0"], "--max-concurrent is 0: write 1 or more"),
        ([FILE, "--retries", "-1"], "--retries is -1: write 0 or more"),
        ([FILE, FILE], "one sweep file at a time"),
        (["schema", FILE], "schema takes no file"),
        (["status"], "one sweep file at a time"),
        ([FILE, "--set", "profile=../../elsewhere"], "profile is '../../elsewhere'"),
    ],
)
def test_a_wrong_command_ends_in_one_message(argv, message, capsys, here):
    assert message in refused(capsys, *argv)
    assert not list(here.iterdir())


ESCAPES = ["../../etc", "/abs", "a/b", "nul\0", "x" * 65, "", ".", "..", "-rf", "a\nb", "a\n"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("place", ["axis", "arm", "profile"])
def test_names_cannot_leave_the_runs_folder(name, place, here, tmp_path):
    content = yaml.safe_load(FILE.read_text())
    if place == "arm":
        content["arms"][name] = {"level": "output", "k": 5}
    elif place == "axis":
        content["axis"] = name
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError):
        make_plan(tmp_path / "sweep.yaml", settings=[f"profile={json.dumps(name)}"] if place == "profile" else [])


def test_two_drivers_on_one_sweep(here):
    plan = plan_of()
    with FileLock(plan.file(".lock")), pytest.raises(UserError, match="another process is at work on this sweep"):
        run_sweep(plan, Options())


def test_planning_imports_neither_torch_nor_ray_nor_mlflow(here):
    code = (
        "import sys; from mirai_bench.sweep.command import command; command(sys.argv[1:]);"
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    for argv in ([str(FILE), "--dry-run"], ["status", str(FILE)]):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_the_console_script_dispatches(here):
    def run(*argv):
        return subprocess.run([sys.executable, "-m", "mirai_bench", *argv], capture_output=True, text=True)

    assert "mirai-bench sweep" in run("--help").stdout
    done = run("sweep", str(FILE), "--dry-run", "--seeds", "0")
    assert done.returncode == 0 and "5 cells, 5 to run" in done.stdout
    wrong = run("swep")
    assert wrong.returncode == 2 and "Did you mean 'sweep'" in wrong.stderr


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"arm": "internl", "space": {"foresight.k": [1, 3]}}, "search.arm is 'internl', which is not an arm"),
        ({"arm": "internal-2d", "space": {}}, "search.space"),
        ({"arm": "internal-2d", "space": {"foresight.weight": {"low": 2, "high": 1}}}, "write low < high"),
        ({"arm": "internal-2d", "space": {"foresight.weight": {"low": 0, "high": 1, "log": True}}}, "low > 0 with log: true"),
        ({"arm": "internal-2d", "space": {"foresight.k": [1]}, "sampels": 3}, "Did you mean 'samples'"),
    ],
)
def test_a_wrong_search_is_refused(search, message, here, tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(yaml.safe_load(FILE.read_text()) | {"search": search}))
    with pytest.raises(UserError) as error:
        make_plan(tmp_path / "sweep.yaml")
    assert message in str(error.value)


def test_every_value_of_a_search_fits_before_it_starts(here, tmp_path):
    from mirai_bench.sweep.search import run_search

    for space, message in (
        ({"foresight.k": [3, 65]}, "write k: 64 or less"),
        ({"foresight.wieght": [1.0]}, "Did you mean 'weight'"),
    ):
        search = {"arm": "internal-2d", "space": space}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(yaml.safe_load(FILE.read_text()) | {"search": search}))
        plan = make_plan(tmp_path / "sweep.yaml")
        with pytest.raises(UserError, match=message):
            run_search(plan, tmp_path / "sweep.yaml", Options())
    with pytest.raises(UserError, match="has no `search:`"):
        run_search(plan, FILE, Options())
    assert not (tmp_path / "runs").exists()


# ---- schemas


def test_schemas_are_those_of_the_code_and_the_shipped_files_keep_to_them():
    for name, make in schema.SCHEMAS.items():
        committed = json.loads((SWEEPS / "schema" / f"{name}.schema.json").read_text())
        assert committed == make(), "run: python -m mirai_bench.sweep schema"
    for folder, name, pointer in ((SWEEPS, "sweep", "schema/"), (SWEEPS / "profiles", "profile", "../schema/")):
        for path in sorted(folder.glob("*.yaml")):
            jsonschema.validate(yaml.safe_load(path.read_text()), schema.SCHEMAS[name]())
            assert path.read_text().startswith(f"# yaml-language-server: $schema={pointer}{name}.schema.json\n")


@pytest.mark.parametrize(
    "wrong", [{"arms": {"a": {"levl": "none"}}}, {"seeds": []}, {"machine": {"gpu": 1}}, {"arms": {"../a": {}}}]
)
def test_the_schema_refuses_what_the_planner_refuses(wrong, here, tmp_path):
    content = yaml.safe_load(FILE.read_text()) | wrong
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError):
        make_plan(tmp_path / "sweep.yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema.sweep_schema())


# ---- fuzzing: a thousand mutated files, each accepted or refused in one message, at once


def shortened(sweep):
    """One seed, three arms: the files are written and read a thousand times."""
    return sweep | {"seeds": [0], "arms": dict(list(sweep["arms"].items())[::4])}


SHIPPED = {
    "sweep": [shortened(yaml.safe_load((SWEEPS / f"{axis}.yaml").read_text())) for axis in AXES],
    "profile": [yaml.safe_load(path.read_text()) for path in sorted((SWEEPS / "profiles").glob("*.yaml"))],
}
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([10**30, -1, 0, 1e308, "8/12", "0/0", "1/0", "999/1", "internal", "ema", "../x", "\0", "1e-4", "digits", "paper", "x" * 70]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=6
)


def places(tree, path=()):
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def mutate(draw, tree):
    """One node is replaced, removed, renamed or given a neighbour."""
    path = draw(st.sampled_from(list(places(tree))))
    if not path:
        return draw(VALUES)
    *parents, last = path
    holder = tree
    for key in parents:
        holder = holder[key]
    action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
    if action == "replace" or isinstance(holder, list):
        number = isinstance(holder[last], (int, float)) and draw(st.booleans())
        holder[last] = holder[last] * draw(st.sampled_from([1, 2, 4, 0.5])) if number else draw(VALUES)
    elif action == "remove":
        del holder[last]
    else:
        name = draw(st.sampled_from(["k", "layer", "level", "encoder", "protocol", "baseline"]) | st.text(max_size=8))
        holder[name] = holder.pop(last) if action == "rename" else draw(VALUES)
    return tree


STREWN = ["\t", ": ", "- ", "{", "]", "&a ", "*a", "!!python/object:os.system ", "\x07", "'", "? ", "<<: ", "|"]


def scramble(draw, text):
    """Characters are removed, doubled, or strewn in."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 12))
        text = text[:at] + draw(st.sampled_from(["", text[at : at + length] * 2, *STREWN])) + text[at + length :]
    return text


@st.composite
def files(draw):
    texts = {}
    victim = draw(st.sampled_from(["sweep", "profile"]))
    for name, shipped in SHIPPED.items():
        tree = json.loads(json.dumps(draw(st.sampled_from(shipped))))
        if name == victim:
            for _ in range(draw(st.integers(0, 2))):
                tree = mutate(draw, tree)
        texts[name] = yaml.safe_dump(tree, allow_unicode=draw(st.booleans()))
    if draw(st.integers(0, 4)) == 0:
        texts[victim] = scramble(draw, texts[victim])
    return texts


OUTCOMES = {"accepted": 0, "refused": 0}


@settings(max_examples=1050, deadline=5000, database=None, suppress_health_check=list(HealthCheck))
@given(texts=files())
def test_fuzzed_files_are_accepted_or_refused(texts, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        plan = make_plan(folder / "sweep.yaml", profile=str(folder / "profile.yaml"))
        dry_run(plan, None)
        OUTCOMES["accepted"] += 1
    except UserError as error:
        assert str(error)
        OUTCOMES["refused"] += 1


def test_the_fuzzing_saw_both_outcomes():
    if not sum(OUTCOMES.values()):
        pytest.skip("the fuzzing test did not run")
    assert sum(OUTCOMES.values()) >= 1000 and min(OUTCOMES.values()) >= 100, OUTCOMES


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(BOMB + "axis: *j\n", id="a billion laughs"),
        pytest.param("axis: x\nquestion: q\nseeds: [0]\narms: &a {baseline: *a}\n", id="a mapping within itself"),
        pytest.param(
            "axis: x\nquestion: q\nseeds: [0]\narms: {baseline: {encoder: &e {context: *e}}}\n", id="a section within itself"
        ),
        pytest.param("axis: " + "[" * 5000, id="deep"),
        pytest.param(
            "axis: x\nquestion: q\nseeds: [" + "9" * 5000 + "]\narms: {baseline: {level: none}}\n", id="a number of 5,000 digits"
        ),
        pytest.param("axis: 2001-99-99\n", id="a date that is none"),
    ],
)
def test_hostile_yaml_is_refused_at_once(text, here, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(UserError) as error:
        make_plan(tmp_path / "sweep.yaml")
    assert time.perf_counter() - start < 5 and len(str(error.value)) < 5000


def test_file_names_that_are_no_files(here):
    for path in (Path("x\0y"), Path("/dev/null"), Path("x" * 5000), Path(os.curdir)):
        with pytest.raises(UserError):
            make_plan(path)
