"""Wrong sweep files, profiles and command lines end in one message each, and nothing starts."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, given, settings

from mirai_bench.config import json_schema
from mirai_bench.config.load import SWEEPS, load_run
from mirai_bench.sweep.__main__ import command
from mirai_bench.sweep.driver import Options, run_sweep
from mirai_bench.sweep.plan import make_plan
from mirai_bench.utils import cli
from mirai_bench.utils.errors import UserError
from tests.support.mutated_configs import files, read_in_this_process, write_files

FILE = SWEEPS / "injection_level.yaml"


def refused(capsys, *argv):
    assert cli.run(command, list(map(str, argv))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.yaml"], "There is no file 'nowhere.yaml'"),
        ([FILE, "--only", "internal2d"], "Did you mean 'internal-2d'"),
        ([FILE, "--profile", "digit"], "Did you mean 'digits'"),
        ([FILE, "--set", "train.epoch=5"], "Did you mean 'epochs'"),
        ([FILE, "--set", "foresight.k=65"], "write k: 64 or less"),
        ([FILE, "--set", "train.epochs"], "write section.field=value"),
        ([FILE, "--seeds", "-1"], "seed is -1"),
        ([FILE, "--max-concurrent", "0"], "--max-concurrent is 0: write 1 or more"),
        ([FILE, "--retries", "-1"], "--retries is -1: write 0 or more"),
        ([FILE, FILE], "one sweep file at a time"),
        (["stats", FILE], "Did you mean 'status'"),
        ([FILE, "--set", "foresight.k", "9"], "--set 'foresight.k': write section.field=value"),
        (["sweeps/injection_levle.yaml"], "Did you mean 'injection_level'"),
        ([FILE, "--set", "evaluation.protocol.extractor=digts", "--dry-run"], "Did you mean 'digits'"),
        ([FILE, "--set", "foresight.encoder.name=dinov2", "--dry-run"], "Did you mean 'dinov2_"),
        (["schema", FILE], "schema takes no file"),
        (["status"], "one sweep file at a time"),
        ([FILE, "--set", "profile=../../elsewhere"], "profile is '../../elsewhere'"),
    ],
)
def test_a_wrong_command_ends_in_one_message(argv, message, capsys, here):
    assert message in refused(capsys, *argv)
    assert not list(here.iterdir())


def test_a_choice_written_twice_is_both(capsys, here):
    assert (
        command(
            [
                str(FILE),
                "--only",
                "baseline",
                "--only",
                "internal-2d",
                "--seeds",
                "0",
                "--seeds",
                "5",
                "--dry-run",
            ]
        )
        == 0
    )
    assert "4 cells, 4 to run" in capsys.readouterr().out


ESCAPES = ["../../etc", "/abs", "a/b", "nul\0", "x" * 65, "", ".", "..", "-rf", "a\nb", "a\n"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("place", ["axis", "arm", "profile", "data.name"])
def test_names_cannot_leave_the_runs_folder(name, place, here, tmp_path):
    content = yaml.safe_load(FILE.read_text())
    if place == "arm":
        content["arms"][name] = {"level": "output", "k": 5}
    elif place == "axis":
        content["axis"] = name
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError):
        make_plan(
            tmp_path / "sweep.yaml",
            settings=[f"{place}={json.dumps(name)}"] if place in ("profile", "data.name") else [],
        )


def test_two_drivers_on_one_sweep(here):
    plan = make_plan(FILE)
    plan.write()
    with (
        FileLock(plan.file(".lock")),
        pytest.raises(UserError, match="another process is at work on this sweep"),
    ):
        run_sweep(plan, Options())


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
        ({"arms": {"internl": {"foresight.k": [1, 3]}}}, "search.arms has 'internl', which is not an arm"),
        ({"arms": {"internal-2d": {}}}, "search.arms.internal-2d"),
        ({"arms": {"internal-2d": {"foresight.weight": {"low": 2, "high": 1}}}}, "write low < high"),
        (
            {"arms": {"internal-2d": {"foresight.weight": {"low": 0, "high": 1, "log": True}}}},
            "low > 0 with log: true",
        ),
        ({"arms": {"internal-2d": {"foresight.k": [1]}}, "sampels": 3}, "Did you mean 'samples'"),
        (
            {"arms": {"internal-2d": {"foresight.weight": {"low": 1, "high": 2}}}, "samples": "all"},
            "foresight.weight is a range: write a list of values, or a number",
        ),
    ],
)
def test_a_wrong_search_is_refused(search, message, here, tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(FILE.read_text()) | {"search": search})
    )
    with pytest.raises(UserError) as error:
        make_plan(tmp_path / "sweep.yaml")
    assert message in str(error.value)


def test_every_value_of_a_search_fits_before_it_starts(here, tmp_path):
    from mirai_bench.sweep.search import plan_searches

    for space, message in (
        ({"foresight.k": [3, 65]}, "write k: 64 or less"),
        ({"foresight.wieght": [1.0]}, "Did you mean 'weight'"),
    ):
        search = {"arms": {"internal-2d": space}}
        (tmp_path / "sweep.yaml").write_text(
            yaml.safe_dump(yaml.safe_load(FILE.read_text()) | {"search": search})
        )
        plan = make_plan(tmp_path / "sweep.yaml")
        with pytest.raises(UserError, match=message):
            plan_searches(plan, tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match=r"has no `search:`: write for instance\n.*\n.*\n +internal-1d:\n"):
        plan_searches(plan, FILE)  # the example names an arm of the plan
    only = make_plan(tmp_path / "sweep.yaml", only=["baseline"])
    with pytest.raises(UserError, match="write one of internal-2d, or nothing"):
        plan_searches(only, tmp_path / "sweep.yaml")
    assert not (tmp_path / "runs").exists()


# ---- schemas


def test_schemas_are_those_of_the_code_and_the_shipped_files_keep_to_them():
    for name, make in json_schema.SCHEMAS.items():
        committed = json.loads((SWEEPS / "schema" / f"{name}.schema.json").read_text())
        assert committed == make(), "run: python -m mirai_bench.sweep schema"
    for folder, name, pointer in (
        (SWEEPS, "sweep", "schema/"),
        (SWEEPS / "profiles", "profile", "../schema/"),
    ):
        for path in sorted(folder.glob("*.yaml")):
            jsonschema.validate(yaml.safe_load(path.read_text()), json_schema.SCHEMAS[name]())
            assert path.read_text().startswith(
                f"# yaml-language-server: $schema={pointer}{name}.schema.json\n"
            )


@pytest.mark.parametrize(
    "wrong",
    [{"arms": {"a": {"levl": "none"}}}, {"seeds": []}, {"machine": {"gpu": 1}}, {"arms": {"../a": {}}}],
)
def test_the_schema_refuses_what_the_planner_refuses(wrong, here, tmp_path):
    content = yaml.safe_load(FILE.read_text()) | wrong
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError):
        make_plan(tmp_path / "sweep.yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json_schema.sweep_schema())


# ---- fuzzing: a thousand mutated files, each accepted or refused in one message, at once

OUTCOMES: Counter[str] = Counter()


@settings(max_examples=1050, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(texts=files())
def test_fuzzed_files_are_accepted_or_refused(texts, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    write_files(texts, folder)
    assert read_in_this_process(folder, OUTCOMES) < 2.0, "it hung"


def test_the_fuzzing_saw_both_outcomes():
    if not OUTCOMES.total():
        pytest.skip("the fuzzing test did not run")
    assert OUTCOMES.total() >= 1000 and min(OUTCOMES["accepted"], OUTCOMES["refused"]) >= 100, OUTCOMES


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(BOMB + "axis: *j\n", id="a billion laughs"),
        pytest.param(
            "axis: x\nquestion: q\nseeds: [0]\narms: &a {baseline: *a}\n", id="a mapping within itself"
        ),
        pytest.param(
            "axis: x\nquestion: q\nseeds: [0]\narms: {baseline: {encoder: &e {context: *e}}}\n",
            id="a section within itself",
        ),
        pytest.param("axis: " + "[" * 5000, id="deep"),
        pytest.param(
            "axis: x\nquestion: q\nseeds: [" + "9" * 5000 + "]\narms: {baseline: {level: none}}\n",
            id="a number of 5,000 digits",
        ),
        pytest.param("axis: 2001-99-99\n", id="a date that is none"),
    ],
)
def test_hostile_yaml_is_refused_at_once(text, here, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(UserError) as error:
        make_plan(tmp_path / "sweep.yaml")
    assert time.process_time() - start < 5 and len(str(error.value)) < 5000


@pytest.mark.parametrize(
    "value", ["[" * 5000, "{a: 1, a: 2}", "{a: &x [*x]}"], ids=["deep", "twice", "itself"]
)
def test_hostile_settings_are_refused_at_once(value):
    start = time.process_time()
    with pytest.raises(UserError, match=r"model\.width") as error:
        load_run("digits", [f"model.width={value}"])
    assert time.process_time() - start < 5 and len(str(error.value)) < 1000


def test_file_names_that_are_no_files(here):
    for path in (Path("x\0y"), Path("/dev/null"), Path("x" * 5000), Path(os.curdir)):
        with pytest.raises(UserError):
            make_plan(path)
