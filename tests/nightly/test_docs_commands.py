"""Every command line of the documentation and of the help texts is understood, and runs if it can.

Covers the README, CONTRIBUTING, docs/, and the README files of sweeps/ and reports/: code blocks,
text, and the examples that `--help` shows. Each command is parsed by its own parser. Then `way_of`
decides by rule whether it is run as it is written, run with --dry-run, or not run. The list of all
commands with the decision and its reason is printed. Commands run in a copy of the repository,
after a small sweep that stands for what the reader has trained by then. Takes about 7 minutes.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mirai_bench.config.load import load_run
from mirai_bench.utils.errors import UserError
from tests.nightly.commands import (
    PAGES,
    Command,
    NotUnderstood,
    Written,
    commands_of_help,
    commands_of_page,
    commands_outside_code,
    other_commands,
    parse,
    read,
)
from tests.nightly.environments import clean_environment, run
from tests.support.paths import copy_repository

pytestmark = pytest.mark.nightly

# Words that stand for something, and what they become here. RUN_FOLDER becomes the folder of a run
# of the small sweep.
RUN_FOLDER = "runs/FINGERPRINT"
PLACEHOLDERS = {
    r"\b(COMMAND|ROOM)\b": "sweep",
    r"\bruns/[0-9a-f]{12}\b": RUN_FOLDER,
    r"\bsweeps/FILE\.yaml\b": "sweeps/injection_level.yaml",
    r"\bFILE\b": "reports/data/injection_level_digits.jsonl",
    r"\bNAME\b": "digits",
    r"\bcolumn-k3\b": "grid-2d-k3",  # the arm that docs/variants.md adds
    r"^foresight_source$": "injection_level",  # the axis of the small sweep
    r"^my_layouts$": "json",  # a reader's own module
}
# Options that name what a command writes, and fields of --set that name a file or folder to read.
OUTPUTS = {"out", "grid", "npz", "record", "reconstructions"}
FILE_FIELDS = {"weights", "assets", "data", "codes", "teacher"}
ADDED = {"dry run": ["--dry-run"], "help": ["--help"]}
SHORT = 2  # epochs of a training that is run
LIMIT = 900  # seconds of a command

# What a reader has after the README's main job, without three of its arms and one of its seeds.
SMALL_SWEEP = ["sweeps/injection_level.yaml", "--seeds", "10", "11", "--only", "baseline", "internal-2d"]


@pytest.fixture(scope="module")
def written() -> list[Written]:
    """All commands, in the order of the pages; each text once."""
    found: dict[str, Written] = {}
    for page in PAGES:
        for command in commands_of_page(page):
            found.setdefault(command.text, command)
    for command in commands_of_help():
        found.setdefault(command.text, command)
    return list(found.values())


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the repository, with a small sweep of the README's axis, also in MLflow."""
    folder = tmp_path_factory.mktemp("copy")
    copy_repository(folder)
    words = [sys.executable, "-m", "mirai_bench.sweep", *SMALL_SWEEP]
    run(words, folder, environment_of(folder), timeout=1800)
    return folder


def environment_of(folder: Path) -> dict[str, str]:
    return clean_environment(Path(sys.executable).parent, PYTHONPATH=str(folder))


# ---- the rules


def substituted(command: Command) -> Command:
    """Returns the command with its placeholders replaced."""
    words = list(command.words)
    module = command.module
    for placeholder, value in PLACEHOLDERS.items():
        module = re.sub(placeholder, value, module)
        words = [re.sub(placeholder, value, word) for word in words]
    return replace(command, module=module, words=tuple(words))


def in_copy(command: Command, copy: Path) -> Command:
    """Returns the command as a shell runs it in the copy: with an existing run, and globs expanded."""
    (plan,) = (copy / "runs" / "sweeps").glob("injection_level-digits.json")
    fingerprint = json.loads(plan.read_text(encoding="utf-8"))["cells"][-1]["fingerprint"]
    words: list[str] = []
    for word in command.words:
        word = word.replace(RUN_FOLDER, f"runs/{fingerprint}")
        matches = copy.glob(word) if "*" in word else []
        words += sorted(str(path.relative_to(copy)) for path in matches) or [word]
    return replace(command, words=tuple(words))


def missing_inputs(options: argparse.Namespace, copy: Path) -> list[str]:
    """Returns the files and folders that a command reads and that are not in the repository."""
    inputs: list[Path] = []
    for name, value in vars(options).items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if name not in OUTPUTS:
            inputs += [each for each in values if isinstance(each, Path)]
        if name in ("files", "config", "profile"):  # a name without an ending is a profile
            inputs += [Path(each) for each in values if each and Path(each).suffix]
    settings = filter(names_file, getattr(options, "settings", []))
    inputs += [Path(setting.partition("=")[2]) for setting in settings]
    return [str(path) for path in inputs if not (copy / path).exists()]


def names_file(setting: str) -> bool:
    """Tells whether an option `--set` gives the path of a file or folder."""
    field = setting.partition("=")[0]
    return field.rpartition(".")[2] in FILE_FIELDS


def way_of(command: Command, copy: Path) -> tuple[str, str]:
    """Returns how a command is tried (run, dry run, help or parse), and why. The first rule decides."""
    if names_command(command):
        return "help", "is the name of a command"
    options = parse(command)
    if options is None:
        return "run", "asks for help"
    if command.launcher == "torchrun":
        return "parse", "needs several processes"
    if command.launcher == "sbatch":
        return "parse", "needs SLURM"
    if getattr(options, "peer", None):
        return "parse", "needs a checkout of the official code"
    refused = why_not_here(command, options, copy)
    if refused:
        return "parse", refused
    if hasattr(options, "dry_run"):
        return dry_or_not(options)
    profile = getattr(options, "profile", None)
    if profile not in (None, "digits"):
        return "parse", f"there are no records of the profile {profile}"
    return "run", "short, and writes into its folder only"


def why_not_here(command: Command, options: argparse.Namespace, copy: Path) -> str | None:
    """Returns why a command would be refused in the copy, or None."""
    if getattr(options, "action", None) in ("fetch", "verify"):
        return "needs a folder of files that do not ship"
    if command.module.endswith("fd_targets.py"):
        return "the targets are fixed already"
    missing = missing_inputs(options, copy)
    return f"not in the repository: {', '.join(missing)}" if missing else None


def dry_or_not(options: argparse.Namespace) -> tuple[str, str]:
    """Returns whether a command that can be shown without starting anything is only shown."""
    if options.dry_run:
        return "run", "starts nothing"
    if hasattr(options, "config"):
        config = load_run(options.config, options.settings)
        if config.train.epochs <= SHORT:
            return "run", f"trains for {SHORT} epochs or less"
    return "dry run", "would train for longer"


def names_command(command: Command) -> bool:
    """Tells whether a text only names a command: all but the scripts of analysis/ need an argument."""
    return not command.words and command.module.startswith("mirai_bench")


# ---- the tests


def test_commands_stand_in_code_and_not_in_the_text_around_it():
    """A command that is not marked as code would not be found by the other tests."""
    assert [place for page in PAGES for place in commands_outside_code(page)] == []


def test_every_option_is_known_to_the_parser_of_its_command(written, figures):
    assert len(written) > 50
    refused = []
    for command in written:
        meant = substituted(read(command.text))
        try:
            options = None if names_command(meant) else parse(meant)
            if options is not None and hasattr(options, "config") and hasattr(options, "settings"):
                others = [setting for setting in options.settings if not names_file(setting)]
                is_there = options.config and (
                    Path(options.config).exists() or not Path(options.config).suffix
                )
                load_run(options.config if is_there else "digits", others)  # every field of --set exists
        except (NotUnderstood, UserError) as error:
            refused.append(f"{command}\n    {error}")
    figures(f"{len(written)} commands are understood, {len(refused)} are not")
    assert not refused, "\n".join(refused)


def test_commands_run_as_they_are_written(written, copy, figures, stopwatch):
    failed = []
    counts: Counter = Counter()
    for text in written:
        start = time.monotonic()
        command = in_copy(substituted(read(text.text)), copy)
        try:
            way, reason = way_of(command, copy)
            if way != "parse":
                program = [sys.executable, *command.program, *command.words, *ADDED.get(way, ())]
                run(program, copy, environment_of(copy), LIMIT)
        except NotUnderstood as error:
            way, reason = "refused", str(error)
            failed.append(f"{text}\n{error}")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed.append(f"{text}\n{error}")
        counts[way] += 1
        figures(f"{way:8}{time.monotonic() - start:6.1f} s  {text}  ({reason})")
    for line in dict.fromkeys(line for page in PAGES for line in other_commands(page)):
        figures(f"{'other':8}{'':8}  {line}  (not a command of this project)")
    ways = ", ".join(f"{number} {way}" for way, number in counts.items())
    figures(f"{stopwatch():.0f} s: {ways}")
    assert not failed, "\n\n".join(failed)
