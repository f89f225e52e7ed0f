"""What a newcomer asks first: what is there, and a file to begin with."""

import argparse
import importlib
import json

import pytest

from mirai_bench import __main__ as main
from mirai_bench.config.load import load_run
from mirai_bench.config.sweep_file import find_sweep, load_sweep
from mirai_bench.sweep import init
from mirai_bench.sweep import list as listing
from mirai_bench.utils.errors import UserError

TITLES = {"sweep", "profile", "protocol", "extractor", "encoder", "regularizer", "diagnostic"}


def test_everything_that_a_file_can_name_is_listed(capsys):
    assert listing.command(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == TITLES
    for title, entries in found.items():
        assert entries and all(entries.values()), f"each {title} has a line"
    assert "8x8 tokens, 3 blocks x 64" in found["profile"]["digits"]
    assert listing.command(["injection_level"]) == 0
    assert "output-2d    level: output, layout: grid_2d" in capsys.readouterr().out


def test_a_sweep_is_found_by_its_name_from_anywhere(here):
    for name in ("injection_level", "injection_level.yaml"):
        assert find_sweep(name).name == "injection_level.yaml"
    (here / "injection_level.yaml").write_text("axis: mine")
    assert str(find_sweep("injection_level.yaml")) == "injection_level.yaml", "the user's own comes first"
    with pytest.raises(UserError, match="Did you mean 'injection_level'"):
        find_sweep("injecton_level")
    with pytest.raises(UserError, match=r"There is no file 'elsewhere/injection_level.yaml'"):
        find_sweep("elsewhere/injection_level.yaml")


def test_files_to_begin_with_can_be_read(here, capsys):
    assert init.command(["sweep", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mirai-bench sweep mine.yaml --dry-run\n"
    sweep = load_sweep(here / "mine.yaml")
    assert sweep.axis == "my_sweep" and len(sweep.cells) == 6 * len(sweep.arms)
    assert init.command(["profile", "own.yaml"]) == 0
    # Nothing is changed yet but what its comments say.
    assert load_run("own.yaml").train == load_run("digits").train.model_copy(update={"recipe": "untuned"})
    with pytest.raises(UserError, match="is there already"):
        init.command(["sweep", "mine.yaml"])


def test_scripts_of_the_analysis_are_commands(capsys):
    for name in main.SCRIPTS:
        assert main.script_of(name).is_file(), name
        assert f"\n  {name}" in main.usage()
    with pytest.raises(UserError, match="Did you mean 'plot'"):
        main.command(["plott"])
    assert main.command(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mirai-bench ")


def module_of(name):
    return importlib.import_module(f"mirai_bench.{name}" if "." in name else f"mirai_bench.{name}.__main__")


def words_of(name):
    """Returns the words after a command that its own parser knows."""
    module = module_of(name)
    if hasattr(module, "ACTIONS"):
        return {*module.ACTIONS} - {"run"}
    return {
        word
        for action in module.parser()._actions
        for word in action.choices or ()
        if not action.option_strings
    }


@pytest.mark.parametrize("name", [name for name in main.FORMS if name != "evaluate"])
def test_help_names_the_commands_below_a_command(name):
    assert {*main.FORMS[name]} == words_of(name)
    assert f"[{', '.join(main.FORMS[name])}]" in main.usage()


def without_help(parser):
    """Returns what a parser takes without saying what it is."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [words for below in action.choices.values() for words in without_help(below)]
        elif action.help is None:
            found.append(f"{parser.prog}: {action.dest}")
    return found


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_option_has_a_word(name):
    assert without_help(module_of(name).parser()) == []


def test_a_shell_completes_commands_options_and_words():
    pytest.importorskip("shtab")
    script = main.completion("bash")
    assert all(word in script for word in ("guidance", "--until-decided", "fetch", "parity"))
    with pytest.raises(UserError, match=r"Unknown shell 'fsh'\. Did you mean 'fish'"):
        main.completion("fsh")
