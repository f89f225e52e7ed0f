"""Files → configs: YAML with its profile and `--set a.b=c` becomes a checked RunConfig; a sweep file becomes its cells.

A run file holds RunConfig's fields over those of the `profile` that it names; a sweep file holds arms (foresight fields over the
profile's own) and seeds. Whatever is wrong with a file is one UserError.
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
from mirai_bench.utils.errors import UserError, unknown

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


M = TypeVar("M", bound=BaseModel)


MOST_VALUES = 100_000  # of one YAML file


class _Loader(yaml.SafeLoader):
    """safe_load that refuses a key written twice (YAML would silently keep the last: two arms of one name)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (list, dict)):
            raise UserError(f"{key_node.start_mark}: a key must be a word, found {key!r}")
        if key in seen:
            mark = key_node.start_mark
            raise UserError(
                f"{mark.name}, line {mark.line + 1}: {key!r} is written twice: give each its own name"
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value
    }


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values once every alias is written out: nine levels of nine aliases are half a billion of them."""
    if id(node) not in known:
        known[id(node)] = 1
        parts = [n for pair in node.value for n in pair] if isinstance(node, yaml.MappingNode) else node.value
        if not isinstance(node, yaml.ScalarNode):
            known[id(node)] += sum(_expanded_size(part, known) for part in parts)
    return known[id(node)]


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise UserError(f"There is no file {str(path)!r}")
        with open(path, encoding="utf-8") as file:
            loader = _Loader(file)  # a SafeLoader
            node = loader.get_single_node()
            if node is not None and _expanded_size(node, {}) > MOST_VALUES:
                raise UserError(
                    f"{path} holds more than {MOST_VALUES} values once its aliases are written out: write it without them"
                )
            value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, OSError, ValueError, RecursionError, TypeError) as error:
        raise UserError(
            f"{path} is not readable YAML: {str(error).strip() or type(error).__name__}"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold `key: value` lines, found {type(value).__name__}")
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_sets(settings: Iterable[str]) -> dict[str, Any]:
    """["train.lr=1e-3", …] → {"train": {"lr": "1e-3"}}; values are read as YAML."""
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


def checked(model: type[M], fields: Any, where: str) -> M:
    """fields → model; all that is wrong in one UserError, misspelt names with a suggestion."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        lines = [_explain(model, e) for e in error.errors()]
        raise UserError(f"{where}: " + "\n  ".join(([""] if len(lines) > 1 else []) + lines)) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"] if not str(part).startswith(("function-", "constrained-"))]
    where, found = ".".join(path), error.get("input")
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        return str(unknown("field", path[-1], fields)) + (f" (in {'.'.join(path[:-1])})" if path[:-1] else "")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        return f"{where} is missing"
    shown = repr(found) if len(repr(found)) < 80 else repr(found)[:77] + "…"
    return f"{where} is {shown}: {message[0].lower()}{message[1:]}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        nested = [
            a
            for a in (annotation, *getattr(annotation, "__args__", ()))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if nested:
            model = nested[0]
    return list(model.model_fields)


def _expand_protocol(fields: dict[str, Any]) -> dict[str, Any]:
    """evaluation.protocol: NAME, or {base: NAME, …}, → the protocol's own fields."""
    evaluation = fields.get("evaluation")
    protocol = evaluation.get("protocol") if isinstance(evaluation, dict) else None
    name = protocol.get("base") if isinstance(protocol, dict) else protocol
    if not isinstance(name, str):
        return fields
    if name not in PROTOCOLS:
        raise unknown("evaluation protocol", name, PROTOCOLS)
    own = (
        {key: value for key, value in protocol.items() if key != "base"} if isinstance(protocol, dict) else {}
    )
    return merge(fields, {"evaluation": {"protocol": None}}) | {
        "evaluation": evaluation | {"protocol": {"name": name} | PROTOCOLS[name] | own}
    }


def find_profile(name: str, beside: Path | None = None) -> Path:
    """A profile by name (from the folder `profiles` beside the file, then the shipped ones) or by path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = [folder / "profiles" for folder in (beside, SWEEPS) if folder is not None]
    for folder in folders:
        if re.fullmatch(r"[A-Za-z0-9_.-]+", name) and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise unknown(
        "profile", name, sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    )


def read_profile(name: str, beside: Path | None = None) -> dict[str, Any]:
    path = find_profile(name, beside)
    return {"profile": path.stem} | read_yaml(path)


def build_run(fields: Mapping[str, Any], where: str, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Raw fields and `--set` values → RunConfig."""
    expanded = _expand_protocol(expand(fields))
    return checked(RunConfig, _expand_protocol(merge(expanded, expand(settings or {}))), where)


def load_run(path: Path, settings: Iterable[str] = ()) -> RunConfig:
    """A run file, a resolved config.json, or the name of a profile → RunConfig."""
    if not path.exists() and path.suffix == "":
        return build_run(read_profile(str(path)), f"profile {path}", parse_sets(settings))
    fields = read_yaml(path)
    profile = fields.get("profile")
    if isinstance(profile, str) and "model" not in fields:
        own = expand(fields) | {"profile": find_profile(profile, path.parent).stem}
        fields = merge(read_profile(profile, path.parent), own)
    return build_run(fields, str(path), parse_sets(settings))
