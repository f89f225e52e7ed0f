"""The rooms of the package, in the order in which they may import each other, and what the source
says they import.

A room is a folder of mirai_bench. This is the only place that states their order:
test_architecture.py checks the package against it, and measure_code.py counts what runs against it.
Nothing here imports the package.
"""

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = "mirai_bench"

# From the ground up. A room imports only itself and rooms of lower floors; rooms of one floor do
# not know each other. The places of `regularizer` (rivals of foresight) and of `diagnose`
# (diagnostics of trained runs) are reserved.
FLOORS = (
    ("utils",),
    ("config", "tracking"),
    ("data", "model", "results"),
    ("foresight",),
    ("regularizer",),
    ("checkpoint",),
    ("sample",),
    ("evaluate",),
    ("train", "tokenizer"),
    ("diagnose",),
    ("sweep",),
    ("benchmark", "api"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


class Import(NamedTuple):
    """One import of one module by another, wherever it stands in the file."""

    importer: str
    imported: str
    line: int
    in_function: bool
    for_types: bool
    """Whether it stands under `if TYPE_CHECKING:`."""

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def module_files(root: Path, folder: str = PACKAGE) -> dict[str, Path]:
    """Returns the files of all modules below root/folder, by module name; a package goes by its own name."""
    files = {}
    for path in sorted((root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        files[".".join(parts)] = path
    return files


def room_of(module: str) -> str | None:
    """Returns the room of a module of the package: the first part of its name below the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def imports_of(module: str, path: Path, modules: Collection[str]) -> list[Import]:
    """Returns every import of a file, those in functions and under TYPE_CHECKING included.

    `from a.b import c` is an import of a.b.c if that is one of `modules`, and of a.b otherwise.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), module, package, modules, False, False))


def _walk(
    tree: ast.AST, module: str, package: str, modules: Collection[str], in_function: bool, for_types: bool
) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in _names(node, package, modules):
                yield Import(module, name, node.lineno, in_function, for_types)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _walk(node, module, package, modules, True, for_types)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _walk(node, module, package, modules, in_function, True)
        else:
            yield from _walk(node, module, package, modules, in_function, for_types)


def _names(node: ast.Import | ast.ImportFrom, package: str, modules: Collection[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    names = []
    for alias in node.names:
        name = f"{base}.{alias.name}"
        names.append(name if name in modules else base)
    return names


def all_imports(root: Path, folder: str = PACKAGE) -> list[Import]:
    """Returns every import of every module below root/folder."""
    files = module_files(root, folder)
    found: list[Import] = []
    for module, path in files.items():
        found += imports_of(module, path, files)
    return found


def runs_back_up(found: Import) -> bool:
    """Tells whether an import leads to another room that does not stand on a lower floor than the
    importer's."""
    importer = room_of(found.importer)
    imported = room_of(found.imported)
    if imported is None or importer == imported:
        return False
    if importer in (None, "__main__"):  # the package itself and its command stand above all rooms
        return False
    return FLOOR_OF[imported] >= FLOOR_OF[importer]


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Returns the circles of a graph: its strongly connected parts of two or more nodes, each sorted."""
    order: list[str] = []
    seen: set[str] = set()
    for node in graph:
        _visit(node, graph, seen, order)
    backwards: dict[str, list[str]] = {node: [] for node in graph}
    for node, targets in graph.items():
        for target in targets:
            backwards[target].append(node)
    assigned: set[str] = set()
    found = []
    for node in reversed(order):
        part: list[str] = []
        _visit(node, backwards, assigned, part)
        if len(part) > 1:
            found.append(sorted(part))
    return sorted(found)


def _visit(node: str, graph: Mapping[str, Collection[str]], seen: set[str], order: list[str]) -> None:
    """Adds to `order` what can be reached from a node and is not yet seen, the farthest first."""
    if node in seen:
        return
    seen.add(node)
    for target in graph[node]:
        _visit(target, graph, seen, order)
    order.append(node)


def module_graph(imports: Collection[Import], modules: Collection[str]) -> dict[str, set[str]]:
    """Returns which modules of the package each of them imports, other than itself."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports:
        if found.imported in graph and found.imported != found.importer:
            graph[found.importer].add(found.imported)
    return graph


def room_graph(imports: Collection[Import], modules: Collection[str]) -> dict[str, set[str]]:
    """Returns which rooms each room imports, other than itself."""
    graph: dict[str, set[str]] = {room: set() for room in map(room_of, modules) if room is not None}
    for found in imports:
        importer = room_of(found.importer)
        imported = room_of(found.imported)
        if importer in graph and imported in graph and importer != imported:
            graph[importer].add(imported)
    return graph
