"""Plug-ins: modules of a user that add entries to the dictionaries of the project.

A plug-in is trusted code, as the project itself is. It is imported because a command line or a caller
names it (`--import MODULE`), and never because a file says so. What it has registered is known by the
pair (kind, name), such as ("layout", "column"), and belongs to the identity of every run that uses it:
the hash of the plug-in's Python files is part of the fingerprint.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import digest, file_sha256

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # names files, as those of arms do


class Plugin(NamedTuple):
    """A module that has registered something, as another process can import it."""

    module: str
    folder: str
    """The folder in which Python finds it."""

    @property
    def word(self) -> str:
        """Returns what `--import` takes for it: its file, from any folder, or the module of a package."""
        file = Path(self.folder, f"{self.module}.py")
        return str(file) if file.is_file() else self.module


class Owner(NamedTuple):
    """Who has registered a name."""

    plugin: Plugin
    sha256: str
    """Hash of the code, 12 hexadecimal digits."""


_owners: dict[tuple[str, str], Owner] = {}


# ---- import


def import_plugin(what: str) -> str:
    """Imports a plug-in, a module or the path of a Python file, and returns the module's name.

    Raises UserError, in one line, if it cannot be imported.
    """
    path = Path(what)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UserError(f"--import {what}: there is no such file")
    module = path.stem if is_file else what
    load([Plugin(module, str((path.parent if is_file else Path()).resolve()))])
    return module


def load(plugins: Iterable[Plugin]) -> None:
    """Imports plug-ins, each from the folder in which the process that names them found it."""
    for plugin in plugins:
        if plugin.folder not in sys.path:
            sys.path.append(plugin.folder)  # last, so that no file there hides a library
        try:
            found = importlib.import_module(plugin.module)
        except UserError as error:
            raise UserError(f"--import {plugin.module}: {error}") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}{_place(error)}"
            raise UserError(
                f"--import {plugin.module} failed ({reason}): write the name of a module that Python finds "
                f"from {plugin.folder}, or the path of a .py file"
            ) from None
        own = Path(plugin.folder, f"{plugin.module}.py")
        file = getattr(found, "__file__", None)
        if own.is_file() and (file is None or not own.samefile(file)):
            raise UserError(
                f"--import {own}: another module is called {plugin.module} ({file or 'built into Python'}): "
                "rename the file"
            )


def _place(error: Exception) -> str:
    """Returns where in the plug-in's own code an error arose, or nothing if it was not found at all."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    last = frames[-1]
    return "" if last.filename == __file__ else f" in {Path(last.filename).name}, line {last.lineno}"


def loaded() -> tuple[Plugin, ...]:
    """Returns the plug-ins that have registered something in this process, for another process."""
    return tuple(dict.fromkeys(owner.plugin for owner in _owners.values()))


# ---- names


def enter(kind: str, name: str, module: str, known: Collection[str]) -> None:
    """Notes that a module has registered a name of this kind. `known` are the names that there are.

    Raises UserError if the name is built in, or another plug-in's: nothing is replaced in silence.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{kind} {name!r}: write a name of letters, digits, dots, dashes and underscores")
    plugin = _plugin_of(module)
    owner = _owners.get((kind, name))
    if owner is None and name in known:
        raise UserError(f"{kind} {name!r} is built in: choose another name")
    if owner is not None and owner.plugin.module != plugin.module:
        raise UserError(f"{kind} {name!r} is registered by {owner.plugin.module}, too: choose another name")
    _owners[kind, name] = Owner(plugin, code_hash(plugin))


def names(kind: str) -> list[str]:
    """Returns the names of this kind that plug-ins have registered."""
    return [name for of_kind, name in _owners if of_kind == kind]


def identity_of(used: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the plug-ins behind these pairs of kind and name, each with the hash of its code."""
    owners = [_owners[pair] for pair in used if pair in _owners]
    return {owner.plugin.module: owner.sha256 for owner in sorted(owners)}


def is_loaded(module: str) -> bool:
    """Tells whether a plug-in has registered something in this process."""
    return any(owner.plugin.module == module for owner in _owners.values())


def _plugin_of(module: str) -> Plugin:
    """Returns a module as another process can import it. Raises UserError for a script or a notebook."""
    file = getattr(sys.modules[module], "__file__", None)
    if module == "__main__" or file is None:
        raise UserError(
            "a plug-in is registered in a script or a notebook, which other processes cannot import: write "
            "it into a module of its own, and import that"
        )
    path = Path(file).absolute()
    levels = module.count(".") + (path.name == "__init__.py")
    return Plugin(module, str(path.parents[levels]))


def code_hash(plugin: Plugin) -> str:
    """Returns 12 hexadecimal digits of the hash of a plug-in's Python files and their names.

    They are all files of the package that the module belongs to, or the module's own file.
    """
    folder = Path(plugin.folder)
    package = folder / plugin.module.partition(".")[0]
    own_file = folder.joinpath(*plugin.module.split(".")).with_suffix(".py")
    files = sorted(package.rglob("*.py")) if (package / "__init__.py").is_file() else [own_file]
    return digest({file.relative_to(folder).as_posix(): file_sha256(file) for file in files})
