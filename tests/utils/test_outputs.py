"""A place that cannot be written is known when the words of a command are read."""

import argparse
import importlib
import os

import pytest

from mirai_bench.__main__ import COMMANDS
from mirai_bench.benchmark.__main__ import parser as benchmark
from mirai_bench.checkpoint.__main__ import parser as checkpoint
from mirai_bench.evaluate.__main__ import parser as evaluate
from mirai_bench.evaluate.__main__ import reference_parser
from mirai_bench.sample.__main__ import parser as sample
from mirai_bench.sweep.__main__ import parser as sweep
from mirai_bench.tokenizer.__main__ import parser as tokenizer
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.outputs import output_file, output_folder

FILES = [
    (evaluate, ["run", "--npz"], ".npz"),
    (evaluate, ["run", "--record"], ".jsonl"),
    (reference_parser, ["train", "--extractor", "digits"], ".npz"),
    (sample, ["run", "--npz"], ".npz"),
    (sample, ["run", "--grid"], ".png"),
    (tokenizer, ["measure", "cifar10", "--reconstructions"], ".npz"),
    (checkpoint, ["export", "run"], ".pt"),
]
BENCHMARKS = ["train", "sample", "evaluate", "data", "sweep"]
FOLDERS = [
    (benchmark, ["targets", "--out"]),
    (benchmark, ["parity", "--peer", "x", "--out"]),
    (checkpoint, ["import", "file.pt", "digits"]),
    (lambda: sweep("noise"), ["digits", "--out"]),
]


@pytest.mark.parametrize(("parser", "words", "ending"), FILES)
@pytest.mark.parametrize("place", ["absent/x", "folder", "file/x"])
def test_a_file_in_no_folder_is_refused_before_any_work(here, parser, words, ending, place):
    (here / f"folder{ending}").mkdir()
    (here / "file").touch()
    parser().parse_args([*words, f"x{ending}"])
    with pytest.raises(UserError, match="cannot be written"):
        parser().parse_args([*words, f"{place}{ending}"])


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_a_measurement_makes_the_folder_of_its_file_and_refuses_what_cannot_be_one(here, kind):
    (here / "folder.json").mkdir()
    (here / "file").touch()
    assert benchmark().parse_args([kind, "--out", "new/folder/x.json"]).out.name == "x.json"
    for place in ("folder.json", "file/x.json", "x.csv"):
        with pytest.raises(UserError, match="cannot be"):
            benchmark().parse_args([kind, "--out", place])


def options_that_name_outputs():
    """Yields every option of a command that names what it writes, with its check."""
    for module in COMMANDS:
        try:
            made = importlib.import_module(f"mirai_bench.{module}.__main__").parser
        except (ModuleNotFoundError, AttributeError):
            continue
        parsers = [made("noise") if module == "sweep" else made()]
        while parsers:
            for action in (found := parsers.pop())._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parsers += action.choices.values()
                elif action.dest in ("out", "npz", "record", "grid", "reconstructions", "output"):
                    yield found.prog, action


def test_every_option_that_names_an_output_is_checked_by_this_module():
    found = [each for each in options_that_name_outputs() if each[1].type is not int]  # --grid of parity
    assert len(found) >= 12
    for prog, action in found:
        assert action.type.__module__ == "mirai_bench.utils.outputs", (prog, action.dest)


@pytest.mark.parametrize(("parser", "words"), FOLDERS)
def test_a_folder_below_a_file_is_refused_before_any_work(here, parser, words):
    (here / "file").touch()
    parser().parse_args([*words, "new/folder"])
    for place in ("file", "file/x/y"):
        with pytest.raises(UserError, match="cannot be made a folder"):
            parser().parse_args([*words, place])


@pytest.mark.parametrize("name", ["grid", "grid.", "grid.pngx", "grid.npz", ".png"])
def test_a_name_with_another_ending_is_refused(here, name):
    with pytest.raises(UserError, match=r"ends in \.png or \.jpg"):
        output_file(".png", ".jpg")(name)
    assert output_file(".png")("a.PNG").name == "a.PNG"


def test_a_place_without_rights_is_refused(here, monkeypatch):
    """Root may write everywhere, hence the answer of the system in its place."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for check in (output_file(), output_folder):
        with pytest.raises(UserError, match="no right"):
            check("x")
    (here / "x").touch()
    with pytest.raises(UserError, match="no right"):
        output_file()("x")


def test_the_home_folder_is_meant_by_a_tilde(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert output_file()("~/x.json") == here / "x.json"
    assert output_folder("~/reports") == here / "reports"
