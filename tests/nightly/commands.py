"""Finds the command lines of the documentation, and gives them to their own parsers."""

import argparse
import contextlib
import importlib
import importlib.util
import io
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mirai_bench.__main__ import ALIASES, COMMANDS, COMPLETION, usage
from mirai_bench.__main__ import SCRIPTS as COMMANDS_OF_ANALYSIS
from tests.support.paths import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "sweeps").rglob("*.md")),
    *sorted((ROOT / "reports").rglob("*.md")),
]

# How a command of this project begins. `mirai-bench` is also the name of an image and of a
# secret of Kubernetes.
BEGINNING = re.compile(
    r"python3? -m mirai_bench\b"
    r"|python3? analysis/"
    r"|(?<![\w/.:-])mirai-bench(?= +[\w-])"
    r"|torchrun [^`\n]*-m mirai_bench\b"
    r"|sbatch [^`\n]*\.sbatch\b"
)
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`((?:[^`\n]|\n(?!\s*\n))+)`(?!`)")
INDENTED = re.compile(r"^ {4,}(.*)$", re.MULTILINE)
ASSIGNMENT = re.compile(r'([A-Z_]+)="(.*)"')
# In a help text, what a command does stands after it, at a distance.
EXPLANATION = re.compile(r" {3,}.*")

# Forms that a command hands over to a parser of their own. Their help is read, too.
FORMS = {"sweep": ("status", "search", "schema"), "evaluate": ("compare", "reference")}
ANALYSIS = sorted((ROOT / "analysis").glob("*.py"))
SCRIPTS = [path.stem for path in ANALYSIS if "def command(" in path.read_text("utf-8")]


@dataclass(frozen=True)
class Written:
    """A command as it is written somewhere."""

    where: str
    text: str
    """From the name of the program on, with the variables of its block written out."""

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Command:
    """A command, with the placeholders replaced."""

    launcher: str
    """What starts it: python, mirai-bench, torchrun or sbatch."""
    module: str
    """Name of its module, such as mirai_bench.sweep, or path of a script of analysis/."""
    words: tuple[str, ...]
    """Its arguments."""

    @property
    def program(self) -> tuple[str, ...]:
        """Returns what `python` is given to run it in one process."""
        return (self.module,) if self.module.endswith(".py") else ("-m", self.module)


# ---- where commands stand


def commands_of_page(page: Path) -> list[Written]:
    """Returns the commands in a page: in code blocks, between backticks, and in indented blocks."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[int, str]] = []
    for block in FENCE.finditer(text):
        found += _commands_of_block(block.group(3), block.start(3))
    text = FENCE.sub(_blank, text)
    found += [(span.start(), span.group(1)) for span in SPAN.finditer(text)]
    text = SPAN.sub(_blank, text)
    found += [(line.start(), line.group(1)) for line in INDENTED.finditer(text)]
    text = INDENTED.sub(_blank, text)
    return [
        Written(_place(page, start), " ".join(code[begin.start() :].split()))
        for start, code in sorted(found)
        if (begin := BEGINNING.search(code))
    ]


def commands_outside_code(page: Path) -> list[str]:
    """Returns where a page names a command without marking it as code.

    `commands_of_page` does not see such a command.
    """
    text = page.read_text(encoding="utf-8")
    for code in (FENCE, SPAN, INDENTED):
        text = code.sub(_blank, text)
    return [_place(page, begin.start()) for begin in BEGINNING.finditer(text)]


def other_commands(page: Path) -> list[str]:
    """Returns the lines of the `bash` blocks of a page that are not commands of this project."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for block in FENCE.finditer(text) if block.group(2) == "bash"]
    lines = [line for block in blocks for _, line in _lines(block.group(3))]
    return [line for line in lines if line.strip() and not BEGINNING.search(line)]


def _commands_of_block(block: str, start: int) -> Iterator[tuple[int, str]]:
    """Yields the lines of a block with their places. `$NAME` becomes what the block assigns to NAME."""
    variables: dict[str, str] = {}
    for place, line in _lines(block):
        assignment = ASSIGNMENT.fullmatch(line.strip())
        if assignment:
            variables[assignment.group(1)] = assignment.group(2)
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        yield start + place, line


def _lines(block: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of a block and where they begin. A backslash at an end joins two of them."""
    for line in re.finditer(r"(?:[^\n\\]|\\.)*(?:\\\n(?:[^\n\\]|\\.)*)*", block):
        yield line.start(), line.group().replace("\\\n", " ")


def _blank(found: re.Match[str]) -> str:
    """Replaces code by spaces, so that the places of what is left stay the same."""
    return re.sub(r"[^\n]", " ", found.group())


def _place(page: Path, start: int) -> str:
    line = page.read_text(encoding="utf-8").count("\n", 0, start) + 1
    return f"{page.relative_to(ROOT)}:{line}"


# ---- commands in help texts


def commands_of_help() -> list[Written]:
    """Returns the commands that the help texts of all commands show as examples."""
    texts = {"mirai-bench --help": usage()}
    for name in COMMANDS:
        for form in ("", *FORMS.get(name, ())):
            texts |= _help_of(f"mirai_bench.{name}", form)
    for script in SCRIPTS:
        texts |= _help_of(f"analysis/{script}.py")
    found = []
    for title, text in texts.items():
        for line in text.splitlines():
            begin = BEGINNING.search(line)
            if begin and not line.startswith("usage:"):
                found.append(Written(title, EXPLANATION.sub("", line[begin.start() :]).strip()))
    return found


def _help_of(module: str, form: str = "") -> dict[str, str]:
    """Returns the help text of a command, and of the commands below it, by what prints them."""
    shown: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = lambda self, file=None: shown.append(self)
    try:
        entry(module)([*form.split(), "--help"])
    except SystemExit:
        pass
    finally:
        argparse.ArgumentParser.print_help = original
    (parser,) = shown
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"  # so that no example is wrapped
    try:
        return {f"{each.prog} --help": each.format_help() for each in _with_subparsers(parser)}
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _with_subparsers(below)


# ---- what a command says


def read(text: str) -> Command:
    """Returns the command of a text, up to a pipe or a file that it is written to.

    Comments and dots that stand for further words are left out, and of a range of numbers all but the
    first.
    """
    text = re.sub(r"\$\(seq (\d+) \d+\)", r"\1", text)
    words = [word for word in shlex.split(text, comments=True) if word not in ("…", "...")]
    words = list(itertools.takewhile(lambda word: word not in ("|", ">"), words))
    launcher = words[0]
    if launcher == "mirai-bench":
        if words[1] in COMMANDS_OF_ANALYSIS:
            return Command(launcher, f"analysis/{COMMANDS_OF_ANALYSIS[words[1]][0]}.py", tuple(words[2:]))
        if words[1] == COMPLETION:  # has no module of its own
            return Command(launcher, "mirai_bench", tuple(words[1:]))
        module = f"mirai_bench.{ALIASES.get(words[1], words[1])}"
        return Command(launcher, module, tuple(words[2:]))
    if launcher == "sbatch":  # the words after the script are those of a sweep
        (script,) = (number for number, word in enumerate(words) if word.endswith(".sbatch"))
        return Command(launcher, "mirai_bench.sweep", tuple(words[script + 1 :]))
    if "-m" in words:
        place = words.index("-m")
        return Command(launcher, words[place + 1], tuple(words[place + 2 :]))
    return Command(launcher, words[1], tuple(words[2:]))


def entry(module: str) -> Callable[[list[str]], int | None]:
    """Returns the function of a module, or of a script of analysis/, that takes a command's words."""
    if module.endswith(".py"):
        return importlib.import_module(Path(module).stem).command
    name = module
    found = importlib.util.find_spec(module)
    assert found is not None, f"there is no module {module}"
    if found.submodule_search_locations is not None:
        name = f"{module}.__main__"
    loaded = importlib.import_module(name)
    return getattr(loaded, "command", None) or loaded.main


class Understood(Exception):
    """The parser has understood a command; nothing else of it is run."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options


class NotUnderstood(Exception):
    """The parser has refused a command, with this message."""


def parse(command: Command) -> argparse.Namespace | None:
    """Returns what the command's own parser makes of it, or None if the command asks for help.

    Raises NotUnderstood if the parser refuses the command.
    """
    if command.words[:1] == (COMPLETION,):
        return argparse.Namespace(shell=command.words[1])  # the one command without a parser
    names = ("parse_args", "parse_intermixed_args")
    originals = {name: getattr(argparse.ArgumentParser, name) for name in names}
    said = io.StringIO()
    for name, original in originals.items():
        setattr(argparse.ArgumentParser, name, _stopping(original))
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            entry(command.module)(list(command.words))
    except Understood as understood:
        return understood.options
    except SystemExit as ended:
        if ended.code == 0:
            return None
        raise NotUnderstood(said.getvalue().strip().splitlines()[-1]) from None
    finally:
        for name, original in originals.items():
            setattr(argparse.ArgumentParser, name, original)
    raise AssertionError(f"{command.module} has not parsed its words")


def _stopping(original):
    def parse_and_stop(self, *args, **options):
        raise Understood(original(self, *args, **options))

    return parse_and_stop
