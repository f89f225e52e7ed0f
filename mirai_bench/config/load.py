"""Files to configs: a YAML file with its profile and `--set a.b=c` becomes a checked RunConfig.

A run file holds fields of RunConfig, which override those of the `profile` that it names. Whatever is wrong with a
file is reported as one UserError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mirai_bench.config.official import expand
from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.run_config import RunConfig
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.errors import UserError, unknown

SWEEPS = shipped("sweeps")
MOST_VALUES = 100_000  # in one YAML file, once its aliases are written out
MOST_SHOWN = 80  # characters of a wrong value in a message

M = TypeVar("M", bound=BaseModel)


# ---- YAML


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key written twice. YAML itself would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            if isinstance(key, (list, dict)):
                raise UserError(f"{mark}: a key must be a word, found {key!r}")
            if key in seen:
                raise UserError(
                    f"{mark.name}, line {mark.line + 1}: {key!r} is written twice: give each its own name"
                )
            seen.add(key)
        return super().construct_mapping(node, deep=True)


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns the number of values once every alias is written out. Nine levels of nine aliases are half a billion."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 1  # so that a node that contains itself ends
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            children.extend(pair)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] += sum(_num_values(child, known) for child in children)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the fields of a YAML file. Raises UserError if it is missing, unreadable, or no mapping."""
    try:
        if not path.is_file():
            raise UserError(f"There is no file {str(path)!r}")
        with open(path, encoding="utf-8") as file:
            loader = _Loader(file)
            node = loader.get_single_node()
            if node is not None and _num_values(node, {}) > MOST_VALUES:
                raise UserError(
                    f"{path} holds more than {MOST_VALUES} values once its aliases are written out: write it without "
                    "them"
                )
            value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, OSError, ValueError, RecursionError, TypeError) as error:
        raise UserError(
            f"{path} is not readable YAML: {str(error).strip() or type(error).__name__}"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold `key: value` lines, found {type(value).__name__}")
    return value


# ---- trees of fields


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of both trees. Where both have a field, `over` wins, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both_are_sections = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_are_sections else value
    return merged


def parse_sets(settings: Iterable[str]) -> dict[str, Any]:
    """Returns the tree of `--set` options: ["train.lr=1e-3"] becomes {"train": {"lr": "1e-3"}}.

    Values are read as YAML. Raises UserError for an option that is not of the form section.field=value.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not all(path.split(".")):
            raise UserError(f"--set {setting!r}: write section.field=value, for instance train.epochs=5")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        for key in reversed(path.split(".")):
            value = {key: value}
        tree = merge(tree, value)
    return tree


# ---- checking


def checked(model: type[M], fields: Any, where: str) -> M:
    """Returns the model of these fields. Raises one UserError with all that is wrong, with suggestions for misspelt names."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        lines = [_explain(model, details) for details in error.errors()]
    if len(lines) > 1:
        lines.insert(0, "")
    raise UserError(f"{where}: " + "\n  ".join(lines))


def _explain(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"] if not str(part).startswith(("function-", "constrained-"))]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        message = str(unknown("field", path[-1], _fields_at(model, path[:-1])))
        return f"{message} (in {'.'.join(path[:-1])})" if path[:-1] else message
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        return f"{where} is missing"
    found = repr(error.get("input"))
    if len(found) >= MOST_SHOWN:
        found = found[: MOST_SHOWN - 3] + "…"
    return f"{where} is {found}: {message[0].lower()}{message[1:]}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Returns the names of the fields of the section that `path` leads to."""
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = (annotation, *getattr(annotation, "__args__", ()))
        sections = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
        if sections:
            model = sections[0]
    return list(model.model_fields)


# ---- profiles, protocols, runs


def _expand_protocol(fields: dict[str, Any]) -> dict[str, Any]:
    """Replaces evaluation.protocol: NAME, or {base: NAME, …}, by the protocol's own fields."""
    evaluation = fields.get("evaluation")
    protocol = evaluation.get("protocol") if isinstance(evaluation, dict) else None
    name = protocol.get("base") if isinstance(protocol, dict) else protocol
    if not isinstance(name, str) or not isinstance(evaluation, dict):
        return fields
    if name not in PROTOCOLS:
        raise unknown("evaluation protocol", name, PROTOCOLS)
    own: dict[str, Any] = dict(protocol) if isinstance(protocol, dict) else {}
    own.pop("base", None)
    return fields | {"evaluation": evaluation | {"protocol": {"name": name} | PROTOCOLS[name] | own}}


def find_profile(name: str, beside: Path | None = None) -> Path:
    """Returns the path of a profile, which is named or given as a path.

    A name is looked for in the folder `profiles` next to the file that names it (`beside` is the file's folder),
    then among the profiles that ship with the project. Raises UserError if there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = [folder / "profiles" for folder in (beside, SWEEPS) if folder is not None]
    for folder in folders:
        if re.fullmatch(r"[A-Za-z0-9_.-]+", name) and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known: set[str] = set()
    for folder in folders:
        known.update(path.stem for path in folder.glob("*.yaml"))
    raise unknown("profile", name, sorted(known))


def read_profile(name: str, beside: Path | None = None) -> dict[str, Any]:
    """Returns the fields of a profile, together with its name."""
    path = find_profile(name, beside)
    return {"profile": path.stem} | read_yaml(path)


def build_run(fields: Mapping[str, Any], where: str, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Returns the RunConfig of these fields, overridden by `settings`. `where` names their origin in messages."""
    expanded = _expand_protocol(expand(fields))
    return checked(RunConfig, _expand_protocol(merge(expanded, expand(settings or {}))), where)


def load_run(source: str | Path, settings: Iterable[str] = ()) -> RunConfig:
    """Returns the RunConfig of a run file, of the config.json of a run, or of a profile by its name.

    `settings` are `--set` options. Raises UserError for whatever is wrong with them or with the file.
    """
    path = Path(source)
    overrides = parse_sets(settings)
    if not path.exists() and path.suffix == "":
        return build_run(read_profile(str(source)), f"profile {source}", overrides)
    fields = read_yaml(path)
    profile = fields.get("profile")
    if isinstance(profile, str) and "model" not in fields:
        own = expand(fields) | {"profile": find_profile(profile, path.parent).stem}
        fields = merge(read_profile(profile, path.parent), own)
    return build_run(fields, str(path), overrides)
