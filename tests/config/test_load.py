"""Files and words of the command line become a configuration."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mirai_bench.config.json_schema import profile_schema, sweep_schema
from mirai_bench.config.load import SWEEPS, as_settings, build_run, load_run, merge, parse_sets, read_profile
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.utils.errors import UserError


def digits(**sections):
    return build_run(merge(read_profile("digits"), sections), "test")


def test_unreadable_files_are_user_errors(tmp_path):
    for content in (
        b"&x {arms: *x}",
        b"a: &x {b: *x}",
        b"\xff\xfe\x00",
        b"a: [1",
        b"- 1",
        b"",
        b"a: &x [*x]",
        b"? [1, 2]\n: 3",
        b"!!python/object:os.system {}",
    ):
        path = tmp_path / "bad.yaml"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"readable YAML|must hold|a key must be"):
            load_sweep(path)


@pytest.mark.parametrize(
    "tag",
    [
        "!!int ''",
        "!!bool x",
        "!!timestamp x",
        "!!float ''",
        "!!binary é",
        "!!set x",
        "!!omap x",
        "!!int 0b",
        "!!null [",
        "2024-13-45",
    ],
)
def test_a_tag_that_does_not_fit_is_a_message(tmp_path, tag):
    path = tmp_path / "bad.yaml"
    path.write_text(f"profile: digits\nseed: {tag}\n")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_run(path)
    with pytest.raises(UserError):
        load_run("digits", [f"seed={tag}"])


@pytest.mark.parametrize("word", ["no", "on", "12", "2024-01-01", "null", "1.5", "0x1F"])
def test_a_name_that_yaml_reads_otherwise_is_to_be_quoted(tmp_path, word):
    sweep = {"axis": "x", "question": "?", "profile": "digits", "seeds": [0]}
    text = yaml.safe_dump(sweep) + "arms: {{baseline: {{level: none}}, {}: {{level: internal}}}}\n"
    path = tmp_path / "sweep.yaml"
    path.write_text(text.format(word))
    with pytest.raises(UserError, match=rf"line 6: the key {word} is read as \w+: write it in quotes"):
        load_sweep(path)
    path.write_text(text.format(f"'{word}'"))
    assert load_sweep(path).arms == ["baseline", word]


def test_a_value_that_yaml_reads_otherwise_is_to_be_quoted():
    with pytest.raises(UserError, match=r"machine\.runs is .*2024.*write it in quotes"):
        load_run("digits", ["machine.runs=2024-11-25"])
    assert str(load_run("digits", ["machine.runs='2024-11-25'"]).machine.runs) == "2024-11-25"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my runs #2", "my runs #2"),
        (" a b ", "a b"),
        ("'a #b'", "a #b"),
        ('"a"', "a"),
        ("3 # three", 3),
        ("", None),
    ],
)
def test_a_text_is_taken_as_it_stands(text, value):
    assert parse_sets([f"a.b={text}"]) == {"a": {"b": value}}


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").touch()
    fields = ("machine.runs", "machine.data", "machine.codes", "machine.assets", "tokenizer.weights")
    config = load_run("digits", [f"{name}=~/weights" for name in (*fields, "foresight.teacher")])
    for name in (*fields, "foresight.teacher"):
        section, field = name.split(".")
        assert getattr(getattr(config, section), field) == tmp_path / "weights"
    with pytest.raises(UserError, match="no such home folder"):
        load_run("digits", ["machine.runs=~nobody-of-this-name/runs"])


@pytest.mark.parametrize("section", ["model", "data", "train", "evaluation"])
def test_a_run_file_overrides_its_profile_in_any_section(tmp_path, section):
    field = {"model": "token_dropout", "data": "views", "train": "lr", "evaluation": "at"}[section]
    value = {"model": 0.25, "data": "flip", "train": 0.5, "evaluation": [2, 6]}[section]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"profile": "digits", section: {field: value}}))
    found = load_run(path)
    assert json.loads(found.model_dump_json())[section][field] == value
    assert found == load_run("digits", [f"{section}.{field}={json.dumps(value)}"])


def test_a_folder_of_the_name_of_a_profile_does_not_hide_it(here):
    (here / "digits").mkdir()
    assert load_run("digits").profile == "digits"


def test_a_very_large_file_is_refused_at_once(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text("a: 1\n" * 100_000)
    with pytest.raises(UserError, match="which no configuration needs"):
        load_run(path)


def test_a_seed_of_a_sweep_is_not_set(tmp_path):
    with pytest.raises(UserError, match="write --seeds"):
        load_sweep(SWEEPS / "injection_level.yaml", settings=["seed=5"])


def unbounded(schema, definitions, name, seen=()):
    """Yields the names of the numbers of a schema that have no lower or no upper bound."""
    if "$ref" in schema:
        kind = schema["$ref"].rsplit("/", 1)[-1]
        if kind not in seen:
            yield from unbounded(definitions[kind], definitions, name, (*seen, kind))
        return
    if schema.get("type") in ("number", "integer") and not schema.keys() & {"enum", "const"}:
        bounds = (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
        if not all(any(key in schema for key in keys) for keys in bounds):
            yield name
    inner = list(schema.get("properties", {}).items())
    inner += [("", part) for key in ("anyOf", "oneOf", "prefixItems") for part in schema.get(key, [])]
    inner += [
        ("[]", schema[key]) for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)
    ]
    for field, part in inner:
        if not isinstance(part, dict):
            continue
        yield from unbounded(part, definitions, f"{name}.{field}", seen)


@pytest.mark.parametrize("schema", [profile_schema(), sweep_schema()], ids=["profile", "sweep"])
def test_every_number_of_a_config_has_both_bounds(schema):
    assert list(unbounded(schema, schema["$defs"], "")) == []


@pytest.mark.parametrize(
    "setting",
    [
        "evaluation.protocol.seed=18446744073709551616",
        "evaluation.protocol.resize=1000000",
        "evaluation.protocol.top_k=99999999999",
        "machine.checkpoint_every=1e308",
        "train.lr=1e39",
        "foresight.weight=1e300",
    ],
)
def test_a_value_beyond_all_bounds_is_known_at_once(setting):
    with pytest.raises(UserError, match=setting.split("=")[0]):
        load_run("digits", [setting])


def test_resolved_config_reads_back(tmp_path):
    config = digits(foresight={"level": "internal", "encoder": {"context": {"block_causal": 8}}})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_run(tmp_path / "config.json") == config


def test_set_reads_yaml_and_names_its_form():
    assert parse_sets(["train.lr=1e-3", "data.views=flip", "train.betas=[0.9, 0.99]"]) == {
        "train": {"lr": "1e-3", "betas": [0.9, 0.99]},
        "data": {"views": "flip"},
    }
    assert parse_sets(["a.date=2001-99-99", "a.open=[1"]) == {"a": {"date": "2001-99-99", "open": "[1"}}
    with pytest.raises(UserError, match=r"write section\.field=value"):
        parse_sets(["train.lr"])


def test_a_wrong_config_exits_with_2_and_no_traceback(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"profile": "digits", "train": {"epoch": 3}}))
    done = subprocess.run(
        [sys.executable, "-m", "mirai_bench.train", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "Did you mean 'epochs'" in done.stderr and "Traceback" not in done.stderr


# ---- a profile that builds on another one


def write_profiles(folder, **profiles):
    (folder / "profiles").mkdir()
    for name, fields in profiles.items():
        (folder / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(fields))


def test_a_profile_overrides_the_one_that_it_names(tmp_path):
    write_profiles(tmp_path, slow={"profile": "digits", "train": {"lr": 1e-4}})
    own = read_profile("slow", tmp_path)
    base = read_profile("digits")
    assert own == merge(base, {"profile": "slow", "train": {"lr": 1e-4}})
    assert read_profile(str(tmp_path / "profiles" / "slow.yaml")) == own
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"profile": "slow", "seed": 3}))
    config = load_run(tmp_path / "run.yaml")
    assert (config.profile, config.train.lr, config.seed) == ("slow", 1e-4, 3)
    assert config.model == digits().model


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("itself", "profile itself builds on another one itself: name that one"),
        ("slow", "profile slow builds on another one"),
        ("digts", "Did you mean 'digits'"),
        (3, "profile is 3: write the name of another profile"),
    ],
)
def test_a_profile_that_cannot_build_on_another_one_says_why(tmp_path, base, message):
    write_profiles(tmp_path, slow={"profile": "digits"}, itself={"profile": base})
    with pytest.raises(UserError, match=message):
        read_profile("itself", tmp_path)


def test_a_shorter_training_keeps_the_places_of_its_evaluations_and_says_so(caplog):
    caplog.set_level("INFO")
    profile = load_run("digits")
    assert (profile.train.epochs, profile.evaluation.at) == (6, (2, 4, 5, 6))
    shorter = load_run("digits", ["train.epochs=3"])
    assert shorter.evaluation.at == (1, 2, 2.5, 3)
    assert "train.epochs is 3, so the evaluations are at epochs [1.0, 2.0, 2.5, 3.0]" in caplog.text
    # What is said with --set counts, and a longer training evaluates where the profile says.
    assert load_run("digits", ["train.epochs=2", "evaluation.at=[2]"]).evaluation.at == (2,)
    assert load_run("digits", ["train.epochs=12"]).evaluation.at == (2, 4, 5, 6)
    with pytest.raises(UserError, match=r"evaluation.at ends at epoch 6, after train.epochs = 2"):
        load_run("digits", ["train.epochs=2", "evaluation.at=[4, 6]"])
    with pytest.raises(UserError, match=r"train.epochs is 0"):
        load_run("digits", ["train.epochs=0"])
    with pytest.raises(UserError, match=r"train.epochs is 'two'"):
        load_run("digits", ["train.epochs=two"])


def test_settings_of_python_are_options(tmp_path):
    assert as_settings({"train.lr": 0.1, "machine.runs": Path("a b")}) == [
        "train.lr=0.1",
        'machine.runs="a b"',
    ]
    with pytest.raises(UserError, match=r"settings: train.lr is \{1\} .*: write a number"):
        as_settings({"train.lr": {1}})
