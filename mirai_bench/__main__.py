"""The command `mirai-bench COMMAND …`, which is `python -m mirai_bench.COMMAND …`.

Only the command's own modules are imported. The scripts of analysis/ are commands, too.
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from pathlib import Path

from mirai_bench import __version__
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError, unknown

# What --help says of each command. It is the module of its name in mirai_bench.
COMMANDS = {
    "sweep": "trains and evaluates all arms of a sweep file with all seeds",
    "sweep.list": "lists sweeps, arms, profiles, protocols, extractors, encoders and diagnostics",
    "sweep.init": "writes a commented sweep or profile file to begin with",
    "train": "trains one run",
    "sample": "samples images from a run",
    "diagnose": "looks into the weights of finished runs: why does an arm help?",
    "evaluate": "evaluates a run or a folder of images under a protocol",
    "data.assets": "lists, fetches and verifies the files that do not ship with the project",
    "data.prepare": "turns images into codes, once",
    "tokenizer": "trains and measures the small VQ tokenizer",
    "tracking": "sends runs to MLflow that it does not have, or writes them for TensorBoard",
    "checkpoint": "imports and exports official LlamaGen and Mirai checkpoints",
    "benchmark": "measures speed and memory, also of a peer's code",
}
# The words that make another command of it, each with its own --help.
FORMS = {
    "sweep": ("status", "search", "noise", "schema"),
    "sweep.init": ("sweep", "profile"),
    "evaluate": ("compare", "reference", "classifier"),
    "data.assets": ("list", "fetch", "verify"),
    "tokenizer": ("train", "measure"),
    "tracking": ("replay", "tensorboard"),
    "checkpoint": ("export", "import"),
    "benchmark": ("train", "sample", "evaluate", "data", "sweep", "targets", "report", "parity"),
}
# Short names of commands that lie in a room of others.
ALIASES = {"assets": "data.assets", "prepare": "data.prepare", "list": "sweep.list", "init": "sweep.init"}
SHORT = {module: name for name, module in ALIASES.items()}
# The scripts of analysis/, by the names of their commands, and what --help says of each.
SCRIPTS = {
    "table": ("fid_table", "writes the table of a sweep as Markdown, CSV, LaTeX and HTML"),
    "plot": ("plot_convergence", "draws the metric against epochs, FLOPs or seconds"),
    "grid": ("sample_grid", "puts samples of all arms side by side"),
    "report": ("report", "writes a sweep as one page: verdicts, table, figures, samples, costs"),
    "claims": ("claims", "gives a verdict on each claim of the paper"),
    "ladder": ("ladder", "draws what each arm changes against the size of the model"),
    "why": ("diagnose", "draws what diagnostics found, and whether it goes with the gain"),
    "guidance": ("guidance", "compares the arms at their best scale of classifier-free guidance"),
}
COMPLETION = "completion"


def command(argv: list[str]) -> int:
    """Runs the command that the first word names, with the other words as its arguments."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"mirai-bench {__version__}")
        return 0
    if argv[0] == COMPLETION:
        print(completion(argv[1] if len(argv) == 2 else ""))
        return 0
    name = ALIASES.get(argv[0], argv[0])
    if name not in COMMANDS and name not in SCRIPTS:
        raise unknown("command", argv[0], [*COMMANDS, *ALIASES, *SCRIPTS, COMPLETION])
    # As if the module were the script: its parser reads sys.argv, and its `__name__` is "__main__".
    sys.argv = [f"mirai-bench {argv[0]}", *argv[1:]]
    if name in SCRIPTS:
        script = script_of(name)
        sys.path.insert(0, str(script.parent))  # as for a script: they share modules beside them
        runpy.run_path(str(script), run_name="__main__")
    else:
        runpy.run_module(f"mirai_bench.{name}", run_name="__main__", alter_sys=True)
    return 0  # only if the command does not end the process itself


def script_of(name: str) -> Path:
    """Returns the path of the script behind a command."""
    return shipped("analysis", f"{SCRIPTS[name][0]}.py")


def usage() -> str:
    """Returns the text of --help."""
    shown: dict[str, str] = {}
    for name, what in COMMANDS.items():
        shown[SHORT.get(name, name)] = f"{what} [{', '.join(FORMS[name])}]" if name in FORMS else what
    shown |= {name: what for name, (_, what) in SCRIPTS.items()}
    shown[COMPLETION] = "prints a script that completes all of this in a shell: bash, zsh, fish"
    width = max(map(len, shown))
    lines = ["usage: mirai-bench COMMAND …        (mirai-bench COMMAND --help says more)", ""]
    lines += [f"  {name:{width}}  {what}" for name, what in shown.items()]
    lines += ["", "A word in brackets follows the command: mirai-bench sweep status injection_level"]
    lines += ["example: mirai-bench sweep injection_level --dry-run"]
    return "\n".join(lines)


def completion(shell: str) -> str:
    """Returns the script that completes commands, their options, and names of files, in a shell."""
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion is made by the package shtab: pip install shtab") from error
    if shell not in shtab.SUPPORTED_SHELLS:
        raise unknown("shell", shell, shtab.SUPPORTED_SHELLS)
    result = argparse.ArgumentParser(prog="mirai-bench")
    commands = result.add_subparsers()
    for name, what in COMMANDS.items():
        module = f"mirai_bench.{name}" if "." in name else f"mirai_bench.{name}.__main__"
        parser = importlib.import_module(module).parser()
        for action in parser._actions:
            if action.nargs != 0 and not action.choices:
                action.complete = shtab.FILE
        commands.add_parser(SHORT.get(name, name), parents=[parser], add_help=False, help=what)
    for name, (_, what) in SCRIPTS.items():
        commands.add_parser(name, help=what)
    return shtab.complete(result, shell)


def main() -> int:
    """Runs the command line of this process."""
    return run(command)


if __name__ == "__main__":
    sys.exit(main())
