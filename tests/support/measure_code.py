"""Prints measures of the source as a Markdown table: its size, its density, and the order of its rooms.

python tests/support/measure_code.py [FOLDER ...]        # default: mirai_bench analysis

Nothing is imported of what is measured, so that any checkout can be: name its folders. Their
measures stand side by side, and all of them together in a last column. What a measure counts is
said in MEASURES; shares of lines refer to all lines, blank ones included, and rates to lines that
hold code or a docstring.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from architecture import FLOOR_OF, all_imports, circles, module_files, module_graph, room_graph

LONG = 100
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Tokens without content, and comments. A line that holds others holds code, or a docstring.
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass
class Counts:
    """What is counted in some files."""

    files: int = 0
    lines: int = 0
    code_lines: int = 0
    """Lines without those that are blank, hold a comment only, or belong to a docstring or a
    field's description."""
    text_lines: int = 0
    """Lines that are not blank and do not hold a comment only."""
    comment_lines: int = 0
    """Lines with a comment, after code or alone."""
    docstring_lines: int = 0
    """Lines of the docstrings of modules, classes and functions."""
    line_lengths: list[int] = field(default_factory=list)
    """Characters of each line that is not blank."""
    function_lengths: list[int] = field(default_factory=list)
    """Lines of each function and method, nested ones too, from `def` to its end; decorators are left out."""
    documented_functions: int = 0
    arguments: int = 0
    """Arguments of functions, other than self and cls."""
    annotated_arguments: int = 0
    tuple_assignments: int = 0
    nested_comprehensions: int = 0
    nested_ternaries: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def count(source: str) -> Counts:
    """Counts what is in one file."""
    tree = ast.parse(source)
    counts = Counts(files=1)
    count_lines(source, tree, counts)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            count_function(node, counts)
        counts.tuple_assignments += is_tuple_assignment(node)
        counts.nested_comprehensions += is_nested_comprehension(node)
        counts.nested_ternaries += is_nested_ternary(node)
    return counts


def count_lines(source: str, tree: ast.Module, counts: Counts) -> None:
    lines = source.splitlines()
    with_text: set[int] = set()
    with_comment: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            with_comment.add(token.start[0])
        elif token.type not in LAYOUT:
            with_text.update(range(token.start[0], token.end[0] + 1))
    with_text = {number for number in with_text if lines[number - 1].strip()}  # a text may hold blank lines
    counts.lines = len(lines)
    counts.text_lines = len(with_text)
    counts.code_lines = len(with_text - text_lines_of(tree))
    counts.comment_lines = len(with_comment)
    counts.docstring_lines = docstring_lines_of(tree)
    counts.line_lengths = [len(line) for line in lines if line.strip()]


def text_lines_of(tree: ast.Module) -> set[int]:
    """Returns the lines of all strings that stand alone as a statement: docstrings, and
    descriptions of fields."""
    numbers: set[int] = set()
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            numbers.update(range(node.lineno, node.end_lineno + 1))
    return numbers


def docstring_lines_of(tree: ast.Module) -> int:
    lines = 0
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            lines += length(node.body[0])
    return lines


def length(node: ast.stmt) -> int:
    return node.end_lineno - node.lineno + 1


def count_function(node: ast.FunctionDef | ast.AsyncFunctionDef, counts: Counts) -> None:
    counts.function_lengths.append(length(node))
    counts.documented_functions += ast.get_docstring(node) is not None
    given = node.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    named = [
        argument for argument in arguments if argument is not None and argument.arg not in ("self", "cls")
    ]
    counts.arguments += len(named)
    counts.annotated_arguments += sum(argument.annotation is not None for argument in named)


def is_tuple_assignment(node: ast.AST) -> bool:
    """Tells whether this is `a, b = x, y`: one statement that assigns several things."""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def is_nested_comprehension(node: ast.AST) -> bool:
    """Tells whether a comprehension has a second `for`, or holds another comprehension."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    return len(node.generators) > 1 or holds(node, COMPREHENSIONS)


def is_nested_ternary(node: ast.AST) -> bool:
    """Tells whether a conditional expression holds another one."""
    return isinstance(node, ast.IfExp) and holds(node, (ast.IfExp,))


def holds(node: ast.AST, kinds: tuple[type[ast.AST], ...]) -> bool:
    return any(isinstance(inner, kinds) for inner in ast.walk(node) if inner is not node)


# ---- the measures of a folder


def function_lengths(counts: Counts) -> str:
    lengths = sorted(counts.function_lengths)
    if not lengths:
        return "—"
    p90 = lengths[int(0.9 * len(lengths))]
    return f"{statistics.median_high(lengths)} / {p90} / {lengths[-1]}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "—"


def per_thousand(number: int, lines: int) -> str:
    return f"{1000 * number / lines:.1f}" if lines else "—"


def mean_length(counts: Counts) -> str:
    return f"{statistics.mean(counts.line_lengths):.1f}" if counts.line_lengths else "—"


MEASURES: dict[str, Callable[[Counts], str]] = {
    "files": lambda c: f"{c.files:,}",
    "lines": lambda c: f"{c.lines:,}",
    "lines of code (no blank lines, comments, docstrings)": lambda c: f"{c.code_lines:,}",
    "lines of a function, median / p90 / longest": function_lengths,
    "arguments with a type": lambda c: share(c.annotated_arguments, c.arguments),
    "functions with a docstring": lambda c: share(c.documented_functions, len(c.function_lengths)),
    "lines with a comment": lambda c: share(c.comment_lines, c.lines),
    "lines of docstrings": lambda c: share(c.docstring_lines, c.lines),
    "characters of a line that is not blank, mean": mean_length,
    f"lines over {LONG} characters": lambda c: share(sum(n > LONG for n in c.line_lengths), c.lines),
    "`a, b = x, y` per 1,000 lines": lambda c: per_thousand(c.tuple_assignments, c.text_lines),
    "nested comprehensions per 1,000 lines": lambda c: per_thousand(c.nested_comprehensions, c.text_lines),
    "nested ternaries per 1,000 lines": lambda c: per_thousand(c.nested_ternaries, c.text_lines),
}


def measure(folder: Path) -> Counts:
    total = Counts()
    for path in sorted(folder.rglob("*.py")):
        total += count(path.read_text(encoding="utf-8"))
    return total


# ---- the structure of the package


def structure(package: Path) -> dict[str, str]:
    """Returns the measures of a package's rooms. `__main__` stands above all of them and is left out."""
    modules = module_files(package.parent, package.name)
    imports = all_imports(package.parent, package.name)
    rooms = room_graph(imports, modules)
    rooms.pop("__main__", None)
    back_up = arrows_back_up(rooms)
    flat = [path for path in package.glob("*.py") if path.stem not in ("__init__", "__main__")]
    return {
        "rooms (folders, and modules that lie flat)": str(len(rooms)),
        "modules that lie flat": str(len(flat)),
        "arrows (pairs of rooms of which one imports the other)": str(sum(map(len, rooms.values()))),
        "arrows that run back up": str(len(back_up)),
        "circles of modules": str(len(circles(module_graph(imports, modules)))),
        "circles of rooms": str(len(circles(rooms))),
        "floors": str(floors(rooms, back_up)),
    }


def arrows_back_up(rooms: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    """Returns the arrows that run against the stated order of the rooms.

    If some rooms have no place in that order, these are the fewest arrows without which there would
    be no circle.
    """
    if rooms.keys() <= FLOOR_OF.keys():
        arrows = [(room, other) for room in rooms for other in rooms[room]]
        return [(room, other) for room, other in arrows if FLOOR_OF[other] >= FLOOR_OF[room]]
    found = []
    for circle in circles(rooms):
        order = best_order(circle, rooms)
        for place, room in enumerate(order):
            found += [(room, other) for other in order[place:] if other in rooms[room]]
    return found


def best_order(circle: Sequence[str], rooms: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Returns the order of a circle's rooms, from the ground up, in which the fewest arrows run up."""

    @cache
    def best(below: frozenset[str]) -> tuple[int, tuple[str, ...]]:
        found = []
        for top in below:
            rest = below - {top}
            number, order = best(rest)
            up = sum(top in rooms[room] for room in rest)
            found.append((number + up, (*order, top)))
        return min(found, default=(0, ()))

    return best(frozenset(circle))[1]


def floors(rooms: Mapping[str, Collection[str]], back_up: Collection[tuple[str, str]]) -> int:
    """Returns how many floors the rooms take if each stands above all that it imports but by arrows
    back up."""

    @cache
    def floor(room: str) -> int:
        below = [other for other in rooms[room] if (room, other) not in back_up]
        return 1 + max(map(floor, below), default=0)

    return max(map(floor, rooms), default=0)


# ---- the table


def rows_of(folders: Sequence[Path]) -> Iterator[list[str]]:
    counted = [measure(folder) for folder in folders]
    names = [folder.name for folder in folders]
    if len(folders) > 1:
        counted.append(sum(counted, Counts()))
        names.append("together")
    yield ["measure", *names]
    for name, write in MEASURES.items():
        yield [name, *(write(counts) for counts in counted)]
    structures = [structure(folder) if (folder / "__init__.py").is_file() else {} for folder in folders]
    for name in next(filter(None, structures), {}):
        cells = [found.get(name, "") for found in structures]
        yield [name, *cells, *[""] * (len(names) - len(cells))]


def main(words: Sequence[str]) -> None:
    folders = [Path(word).resolve() for word in words or ("mirai_bench", "analysis")]
    for folder in folders:
        if not folder.is_dir():
            sys.exit(f"error: there is no folder {folder}")
    head, *body = rows_of(folders)
    for row in (head, ["---", *["---:"] * (len(head) - 1)], *body):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
