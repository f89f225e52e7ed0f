"""Files and words of the command line become a configuration."""

import subprocess
import sys

import pytest
import yaml

from mirai_bench.config.load import build_run, load_run, merge, parse_sets, read_profile
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
