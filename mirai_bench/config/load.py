"""Files to configs: a YAML file with its profile and `--set a.b=c` becomes a checked RunConfig.

A run file holds fields of RunConfig, which override those of the `profile` that it names. Whatever
is wrong with a file is reported as one UserError.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mirai_bench.config.official import expand
from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.regularizer import BUILTIN
from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.errors import UserError, shortened, unknown

log = logging.getLogger(__name__)

SWEEPS = shipped("sweeps")
MOST_VALUES = 100_000  # in one YAML file, once its aliases are written out
MOST_BYTES = 200_000  # of one YAML file, which is read at 100 kB/s
MOST_NESTED = 50  # levels of one YAML file, whose scanner takes time with their square
MOST_SHOWN = 80  # characters of a wrong value in a message
# What constructing a value from YAML may raise, for instance from `!!int ''`. TypeError and
# RecursionError: a value that is a key, and thousands of brackets.
BAD_YAML = (
    yaml.YAMLError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    ArithmeticError,
    RecursionError,
)
# Types that YAML 1.1 sees in `no`, `2024-01-01`, `12` or `null`, where a text was meant.
NO_TEXT = (bool, int, float, date, type(None))
# Pydantic names its own validators among the fields that lead to an error. No user knows them.
INTERNAL_NAMES = ("function-", "constrained-", "lax-or-strict")
REGULARIZER = "regularizer"  # the section of which there are several, told apart by their `name`

M = TypeVar("M", bound=BaseModel)


class Unfit(UserError):
    """The data of a configuration cannot carry what an arm asks for."""


# ---- YAML


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key written twice, and values within more than MOST_NESTED others.

    YAML would silently keep the last of two keys.
    """

    levels = 0  # that are open where the loader reads

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.levels += 1
        if self.levels > MOST_NESTED:
            raise UserError(
                f"{self.name}, line {self.line + 1}: values stand within more than {MOST_NESTED} others, "
                "which no configuration needs"
            )
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            line = f"{mark.name}, line {mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a word, found {shortened(repr(key))}")
            if not isinstance(key, str):
                word = shortened(key_node.value)
                kind = type(key).__name__
                raise UserError(f"{line}: the key {word} is read as {kind}: write it in quotes, '{word}'")
            if key in seen:
                raise UserError(f"{line}: {key!r} is written twice: give each its own name")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns the number of values once every alias is written out. `known` holds counted nodes.

    Nine levels of nine aliases are half a billion values, which an error message would write out.
    """
    if id(node) not in known:
        known[id(node)] = 1  # so that a node that contains itself ends
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        for child in children:
            # A child of a mapping is a pair: the key and its value.
            for part in child if isinstance(child, tuple) else (child,):
                known[id(node)] += _num_values(part, known)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the fields of a YAML file. Raises UserError if it is unreadable, or no mapping."""
    value = None
    try:
        if not path.is_file():
            raise UserError(f"There is no file {str(path)!r}")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has more than {MOST_BYTES:,} bytes, which no configuration needs")
        with open(path, encoding="utf-8") as file:
            loader = _Loader(file)
            node = loader.get_single_node()  # None if the file is empty
            if node is not None and _num_values(node, {}) > MOST_VALUES:
                raise UserError(
                    f"{path} holds more than {MOST_VALUES} values once its aliases are written "
                    "out: write it without them"
                )
            if node is not None:
                # `deep` refuses a mapping that contains itself, which would be an endless dict.
                value = loader.construct_object(node, deep=True)
    except (*BAD_YAML, OSError) as error:
        reason = shortened(str(error).strip(), 500) or type(error).__name__
        raise UserError(f"{path} is not readable YAML: {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold `key: value` lines, found {type(value).__name__}")
    return value


# ---- trees of fields


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of both trees. If both have a field, that of `over` is taken."""
    merged = dict(base)
    for key, value in over.items():
        both_are_sections = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_are_sections else value
    return merged


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Returns fields by their paths as `--set` options: {"train.lr": 0.1} becomes ["train.lr=0.1"]."""
    return [f"{path}={json.dumps(value)}" for path, value in values.items()]


def parse_sets(settings: Iterable[str]) -> dict[str, Any]:
    """Returns the tree of `--set` options: ["train.lr=1e-3"] becomes {"train": {"lr": "1e-3"}}.

    Values are read as YAML. Raises UserError for an option that is not of the form
    section.field=value.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not all(path.split(".")):
            form = "write section.field=value, for instance train.epochs=5"
            raise UserError(f"--set {setting!r}: {form}")
        try:
            # In YAML 1.1 "1e-3" is a text, because it has no dot. Pydantic makes it a number.
            value: Any = yaml.safe_load(text)
        except BAD_YAML:
            value = text
        # A text is taken as it stands, and not up to a #, unless it is in quotes.
        if isinstance(value, str) and not text.lstrip().startswith(("'", '"', "!")):
            value = text.strip()
        for key in reversed(path.split(".")):
            value = {key: value}
        tree = merge(tree, value)
    return tree


# ---- checking


def checked(model: type[M], fields: Any, where: str) -> M:
    """Returns the model of these fields. `where` names their origin in messages.

    Raises one UserError with all that is wrong, with suggestions for misspelt names.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        lines = [_explain(model, details) for details in error.errors()]
    first = "\n  " if len(lines) > 1 else ""  # each of several on a line of its own
    raise UserError(f"{where}: {first}" + "\n  ".join(lines))


def _explain(model: type[BaseModel], error: Any) -> str:
    """Returns one of pydantic's errors in the words of this project."""
    names = [str(part) for part in error["loc"]]
    path = [name for name in names if not name.startswith(INTERNAL_NAMES)]
    # Without the regularizer's name, by which pydantic tells the built-in sections apart.
    shown = path[:1] + path[2:] if path[:1] == [REGULARIZER] and set(path[1:2]) & set(BUILTIN) else path
    where = ".".join(shown)
    if error["type"] == "extra_forbidden":
        message = str(unknown("field", path[-1], _fields_at(model, path[:-1])))
        return f"{message} (in {'.'.join(shown[:-1])})" if path[:-1] else message
    if error["type"] == "union_tag_invalid":
        names = error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return str(unknown(REGULARIZER, error["ctx"]["tag"], names))
    if error["type"] == "union_tag_not_found":
        return f"{where}.name is missing: write which regularizer is meant"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # raised by a validator of ours, which names the field
        return message
    if error["type"] == "unknown_name":
        return f"{where}: {message}"
    if error["type"] == "missing":
        return f"{where} is missing"
    found = repr(error.get("input"))
    if len(found) >= MOST_SHOWN:
        found = found[: MOST_SHOWN - 3] + "…"
    quotes = "; write it in quotes" if _was_meant_as_text(error) else ""
    return f"{where} is {found}: {message[0].lower()}{message[1:]}{quotes}"


def _was_meant_as_text(error: Any) -> bool:
    wants_text = error["type"] in ("string_type", "path_type", "literal_error")
    return wants_text and isinstance(error["input"], NO_TEXT)


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Returns the names of the fields of the section that `path` leads to."""
    sections: list[type[BaseModel]] = []  # that the field before may hold
    for part in path:
        if part not in model.model_fields:  # a name, by which one of several sections is chosen
            named = [each for each in sections if part in get_args(each.model_fields["name"].annotation)]
            model = named[0] if named else model
            continue
        annotation = model.model_fields[part].annotation
        # The section itself, or those in a union such as `Search | None`.
        items = (annotation, *get_args(annotation))
        sections = [item for item in items if isinstance(item, type) and issubclass(item, BaseModel)]
        model = sections[0] if sections else model
    return [name for name, field in model.model_fields.items() if not field.exclude]


# ---- profiles, protocols, runs


def _expand_protocol(fields: dict[str, Any]) -> dict[str, Any]:
    """Replaces evaluation.protocol: NAME, or {base: NAME, …}, by the protocol's own fields."""
    evaluation = fields.get("evaluation")
    if not isinstance(evaluation, dict):
        return fields
    protocol = evaluation.get("protocol")
    own = dict(protocol) if isinstance(protocol, dict) else {"base": protocol}
    name = own.pop("base", None)
    if not isinstance(name, str):  # all fields are written out, as in a run's config.json
        return fields
    if name not in PROTOCOLS:
        raise unknown("evaluation protocol", name, PROTOCOLS)
    expanded = {"name": name} | PROTOCOLS[name] | own
    return fields | {"evaluation": evaluation | {"protocol": expanded}}


def find_profile(name: str, beside: Path | None = None) -> Path:
    """Returns the path of a profile, which is named or given as a path.

    A name is looked for in the folder `profiles` next to the file that names it (`beside` is the
    file's folder), then among the profiles that ship with the project. Raises UserError if there is
    none.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = [folder / "profiles" for folder in (beside, SWEEPS) if folder is not None]
    known: set[str] = set()
    for folder in folders:
        # The pattern keeps names like ../x from leaving the folder.
        if re.fullmatch(r"[A-Za-z0-9_.-]+", name) and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
        known.update(path.stem for path in folder.glob("*.yaml"))
    raise unknown("profile", name, sorted(known))


def read_profile(name: str, beside: Path | None = None) -> dict[str, Any]:
    """Returns the fields of a profile, together with its name.

    A profile may name another `profile`, whose fields it overrides. That one names none.
    """
    path = find_profile(name, beside)
    fields = read_yaml(path)
    base = fields.pop("profile", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: profile is {base!r}: write the name of another profile")
        of_base = read_yaml(find_profile(base, beside))
        if "profile" in of_base:
            raise UserError(f"{path}: profile {base} builds on another one itself: name that one")
        fields = merge(of_base, expand(fields))
    return {"profile": path.stem} | fields


def build_run(
    fields: Mapping[str, Any],
    where: str,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Returns the RunConfig of these fields, which come from `where`, under `settings`.

    Raises UserError for whatever is wrong, and Unfit if the data cannot carry the regularizer.
    """
    # Protocols are expanded before the settings are merged, which may change single fields of one,
    # and after it, because they may also name another one.
    own = expand(settings or {})
    expanded = merge(_expand_protocol(expand(fields)), own)
    config = checked(RunConfig, _expand_protocol(_fit_evaluations(fields, own, expanded)), where)
    reason = config.regularizer.unfit(config.grid, config.data.num_views)
    if reason is not None:
        raise Unfit(f"{where}: regularizer.name is {config.regularizer.name}, {reason}")
    return config


def _fit_evaluations(
    fields: Mapping[str, Any], settings: Mapping[str, Any], merged: dict[str, Any]
) -> dict[str, Any]:
    """Returns the merged fields with the evaluations of a training that the settings shorten.

    They keep their places as shares of the training, and a message says so. Nothing changes if the
    settings name evaluations of their own. What is no number is left to the check.
    """
    try:
        before, after = fields["train"]["epochs"], settings["train"]["epochs"]
        epochs = fields["evaluation"]["at"]
        fits = "at" in settings.get("evaluation", {}) or epochs[-1] <= after or after < 1
        scaled = [] if fits else [float(f"{epoch * after / before:.4g}") for epoch in epochs]
    except (KeyError, TypeError, IndexError, ValueError, ZeroDivisionError):
        return merged
    if not scaled:
        return merged
    _say_once(f"train.epochs is {after}, so the evaluations are at epochs {scaled} instead of {epochs}")
    return merge(merged, {"evaluation": {"at": scaled}})


@lru_cache
def _say_once(message: str) -> None:
    """Logs a message, and not again for every cell of a sweep."""
    log.info(message)


def load_run(source: str | Path, settings: Iterable[str] = ()) -> RunConfig:
    """Returns the RunConfig of a run file, of a run's config.json, or of a profile by its name.

    `settings` are `--set` options. Raises UserError for whatever is wrong with them or with the
    file.
    """
    path = Path(source)
    overrides = parse_sets(settings)
    # A folder of that name does not hide the profile.
    if not path.is_file() and path.suffix == "":
        return build_run(read_profile(str(source)), f"profile {source}", overrides)
    fields = read_yaml(path)
    profile = fields.get("profile")
    # A config.json also says which profile it comes from, but holds all fields itself.
    if isinstance(profile, str) and "model" not in fields:
        own = expand(fields) | {"profile": find_profile(profile, path.parent).stem}
        fields = merge(read_profile(profile, path.parent), own)
    return build_run(fields, str(path), overrides)
