"""Plug-ins: what they add can be named, belongs to the identity of a run, and replaces nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch

from mirai_bench.config.load import load_run
from mirai_bench.evaluate.extractors import EXTRACTORS
from mirai_bench.sweep.list import everything
from mirai_bench.tracking.journal import read_journal
from mirai_bench.train.__main__ import command as train
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.plugins import import_plugin, loaded
from tests.support.objectives import assemble
from tests.support.paths import ROOT
from tests.support.small_run import SMALL

COLUMN = """
import numpy as np
from mirai_bench.foresight.layout import Layout


@register.layout("column")
def column(height, width, k):
    targets = np.arange(height * width)[:, None] + width * np.arange(k)
    valid = targets < height * width
    return Layout(np.where(valid, targets, 0), valid)
"""
BLUR = """
import torch


class Blur:
    one_off_seconds = 0.0

    def __init__(self, context):
        self.width = 3

    def __call__(self, batch, labels):
        return torch.stack([batch.tokens, batch.tokens.cumsum(1), batch.tokens**2], -1).float()


register.source("blur")(Blur)
"""
OTHERS = """
from typing import Literal

import numpy as np
import torch

from mirai_bench.config.regularizer import Rival
from mirai_bench.data.tokenizers.pixel import Pixel
from mirai_bench.diagnose.diagnostic import Diagnostic, Finding
from mirai_bench.evaluate.extractors import EXTRACTORS, Entry
from mirai_bench.foresight.level import Level
from mirai_bench.foresight.layout import Layout
from mirai_bench.model.regularizer_cost import RegularizerCost
from mirai_bench.regularizer.regularizer import Regularizer
from dataclasses import replace


@register.level("energy")
class Energy(Level):
    def __init__(self, context):
        shape = (context.config.num_tokens, 1)
        super().__init__(context.config.foresight, Layout(np.zeros(shape, int), np.ones(shape, bool)))

    def losses(self, states, batch, labels):
        return states.final.square().mean()[None]


class MySection(Rival):
    name: Literal["shrink"]
    strength: float = 0.5


@register.regularizer("shrink", MySection, lambda config, own: RegularizerCost())
class Shrink(Regularizer):
    def __init__(self, context, section):
        super().__init__()
        self.weight = section.strength

    def loss(self, model, reading, prepared, labels):
        return reading.final.square().mean()


@register.dataset("noise")
def noise(config, split):
    rng = np.random.default_rng(split == "train")
    return rng.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 2, ("a", "b")


@register.tokenizer("grey")
def grey(config, device):
    return Pixel(config.tokenizer.vocabulary)


register.extractor("mean", replace(EXTRACTORS["digits"], frechet="FD-mean", kernel="KID-mean"))
register.diagnostic("norm", Diagnostic("How long are the states?", lambda of: Finding({"norm": 1.0}, {})))
"""


def test_a_layout_and_a_source_of_a_plug_in_are_trained(plugin, make_config):
    import_plugin(plugin("column_plugin", COLUMN))
    import_plugin(plugin("blur_plugin", BLUR))
    variant = {"level": "internal", "layout": "column", "source": "blur", "k": 2}
    config, objective, _, batch = assemble(make_config, variant)
    loss, ntp, foresight, _ = objective(batch, batch.labels, torch.tensor(1.0))
    assert loss.item() == pytest.approx(ntp.item() + foresight.item()) and 0 < foresight.item() < 2
    assert config.plugins.keys() == {"column_plugin", "blur_plugin"}
    assert config.model_dump(mode="json")["plugins"] == config.for_record()["plugins"] == config.plugins


def test_a_plug_in_is_the_file_that_was_named(plugin, here):
    """Another module of that name would be imported instead, and nothing said."""
    import_plugin(plugin("twin_plugin", COLUMN.replace('"column"', '"twin"')))
    other = here / "other" / "twin_plugin.py"
    other.parent.mkdir()
    other.write_text(COLUMN)
    with pytest.raises(UserError, match=r"another module is called twin_plugin \(.*rename the file"):
        import_plugin(str(other))
    (here / "json.py").write_text(COLUMN)
    with pytest.raises(UserError, match="another module is called json"):
        import_plugin(str(here / "json.py"))


def test_every_other_dictionary_takes_a_plug_in(plugin, make_config):
    import_plugin(plugin("others", OTHERS))
    energy = assemble(make_config, {"level": "energy"}, regularizer={"name": "shrink", "strength": 0.25})
    config, objective, _, batch = energy
    loss, ntp, foresight, penalty = objective(
        batch, batch.labels, torch.tensor(1.0), penalty=torch.tensor(0.25)
    )
    assert loss.item() == pytest.approx(ntp.item() + foresight.item() + 0.25 * penalty.item())
    assert config.regularizer.strength == 0.25 and config.plugins.keys() == {"others"}
    noisy = make_config(
        data={"dataset": "noise", "classes": 2}, tokenizer={"name": "grey"}, evaluation={"at": [1]}
    )
    from mirai_bench.data.codes import open_codes
    from mirai_bench.data.tokenizers import load_tokenizer, tokenizer_identity

    codes = open_codes(noisy, "train", torch.device("cpu"))
    assert codes.num_images == 40 and codes.manifest["dataset"]["name"] == "noise"
    assert load_tokenizer(noisy, "cpu").identity == tokenizer_identity(noisy)
    assert "code" in tokenizer_identity(noisy)["sha256"]
    lists = everything()
    assert "mean" in lists["extractor"] and "norm" in lists["diagnostic"]


def test_what_a_regularizer_of_a_plug_in_refuses_is_said_as_of_a_built_in_one(plugin, make_config):
    import_plugin(plugin("others", OTHERS))
    with pytest.raises(UserError, match="strength"):
        make_config(regularizer={"name": "shrink", "strength": "much"})


def test_without_plug_ins_fingerprints_are_as_before(make_config, plugin):
    before = make_config().fingerprint()
    import_plugin(plugin("column_plugin", COLUMN))
    config = make_config()
    assert config.fingerprint() == before and "plugins" not in config.model_dump(mode="json")
    # A layout has no effect without foresight.
    assert make_config(foresight={"level": "none", "layout": "column"}).plugins == {}


def test_other_code_under_the_same_name_is_another_run(plugin, make_config, here):
    fields = {"foresight": {"level": "internal", "layout": "column"}}
    import_plugin(plugin("column_plugin", COLUMN))
    first = make_config(**fields)
    fingerprint = first.fingerprint()
    (here / "config.json").write_text(first.model_dump_json())
    assert load_run(here / "config.json").fingerprint() == fingerprint
    plugin("column_plugin", COLUMN + "# changed\n")
    sys.modules.pop("column_plugin")
    import_plugin("column_plugin")
    assert make_config(**fields).fingerprint() != fingerprint
    with pytest.raises(UserError, match="made with the plug-in column_plugin of hash"):
        load_run(here / "config.json")


def test_the_file_of_a_run_asks_for_its_plug_in(plugin, make_config, here):
    import_plugin(plugin("column_plugin", COLUMN))
    config = make_config(foresight={"level": "internal", "layout": "column"})
    (here / "config.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "mirai_bench.sample", ".", "--num", "1", "--grid", "x.png"],
        cwd=here,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 2 and "write --import column_plugin" in done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('register.layout("grid_2d")(print)', "layout 'grid_2d' is built in: choose another name"),
        ('register.layout("a/b")(print)', "write a name of letters"),
        ("import nowhere_to_be_found", r"No module named 'nowhere_to_be_found' in wrong_plugin.py, line 2"),
        ("1 / 0", r"ZeroDivisionError: division by zero in wrong_plugin.py, line 2"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_one_message(code, words, plugin, capsys):
    from mirai_bench.utils.cli import run

    assert run(train, ["digits", "--import", plugin("wrong_plugin", code), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --import wrong_plugin") and "Traceback" not in error
    assert __import__("re").search(words, error), error


def test_a_name_is_registered_by_one_plug_in_and_may_be_registered_again(plugin):
    import_plugin(plugin("one", COLUMN))
    with pytest.raises(UserError, match="is registered by one, too"):
        import_plugin(plugin("two", COLUMN))
    sys.modules.pop("one")
    import_plugin("one")
    assert [each.module for each in loaded()] == ["one"]


def test_commands_of_a_sweep_import_the_plug_in_from_any_folder(plugin, sweep_file, here, capsys):
    from mirai_bench.sweep.__main__ import command

    file = sweep_file({"baseline": {"level": "none"}, "column": {"level": "internal", "layout": "column"}})
    name = plugin("column_plugin", COLUMN)
    assert command([str(file), "--import", name, "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.endswith(f"--import {here / 'column_plugin.py'}") for line in lines)


def test_there_is_no_such_module(here, capsys):
    from mirai_bench.utils.cli import run

    assert run(train, ["digits", "--import", "no_such_module_here"]) == 2
    assert "No module named 'no_such_module_here'" in capsys.readouterr().err
    assert run(train, ["digits", "--import", "no/such/file.py"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_script_or_notebook_is_no_plug_in():
    code = "from mirai_bench import register\nregister.layout('mine')(print)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "write it into a module of its own" in done.stderr


def test_a_package_is_one_plug_in_with_all_its_files(plugin, here):
    (here / "my_pack").mkdir()
    (here / "my_pack" / "__init__.py").write_text("from my_pack import layouts\n")
    (here / "my_pack" / "layouts.py").write_text(f"from mirai_bench import register\n{COLUMN}")
    (here / "my_pack" / "helper.py").write_text("A = 1\n")
    import_plugin("my_pack")
    (found,) = loaded()
    assert found == ("my_pack.layouts", str(here)) and found.word == "my_pack.layouts"
    from mirai_bench.utils.plugins import code_hash

    before = code_hash(found)
    (here / "my_pack" / "helper.py").write_text("A = 2\n")
    assert code_hash(found) != before


def test_a_diagnosis_of_a_plug_in_has_another_digest_with_other_code(plugin):
    from mirai_bench.diagnose.registry import DIAGNOSTICS
    from mirai_bench.diagnose.scope import Scope

    import_plugin(plugin("others", OTHERS))
    first = DIAGNOSTICS["norm"].digest("norm", Scope())
    plugin("others", OTHERS + "# changed\n")
    sys.modules.pop("others")
    import_plugin("others")
    assert DIAGNOSTICS["norm"].digest("norm", Scope()) != first
    assert "mean" in EXTRACTORS


RUN_AND_READ = """
import json, sys
from mirai_bench import read_results, run_sweep
sweep, settings = json.loads(sys.argv[1])
finished = run_sweep(sweep, settings=settings, plugins=["column_plugin"], max_concurrent=1)
assert finished.failed == ()
frame = read_results(finished)
print(json.dumps(dict(zip(frame.arm, frame.plugins))))
"""


@pytest.mark.slow  # a sweep on Ray
def test_trials_of_a_sweep_import_the_plug_in_first(plugin, here, shared_runs):
    (here / "profiles").mkdir()
    plugin("column_plugin", COLUMN)
    sweep = {
        "axis": "plugged",
        "question": "Does it run?",
        "seeds": [0],
        "arms": {
            "baseline": {"level": "none"},
            "column": {"level": "internal", "layout": "column", "k": 2, "projector": {"hidden": 16}},
        },
        "machine": {"runs": str(here / "runs"), "device": "cpu"},
    }
    settings = {
        "model.width": SMALL["model"]["width"],
        "model.heads": 2,
        "train.epochs": 1,
        "evaluation.at": [1],
        "evaluation.protocol.num_samples": 50,
    }
    # In a process of its own: Ray keeps the first token that a process has, and later tests have another.
    words = [sys.executable, "-c", RUN_AND_READ, json.dumps([sweep, settings])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout.splitlines()[-1])
    assert used["column"].startswith("column_plugin ") and used["baseline"] == ""
    (run,) = [path for path in (here / "runs").glob("*/journal.jsonl") if "column" in path.read_text()]
    assert next(line for line in read_journal(run) if line["kind"] == "start")["config"]["plugins"]
