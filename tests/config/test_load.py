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
