"""Files to configs: a YAML file with its profile and `--set a.b=c` becomes a checked RunConfig.

A run file holds fields of RunConfig, which override those of the `profile` that it names. Whatever
is wrong with a file is reported as one UserError.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mirai_bench.config.checking import checked
from mirai_bench.config.official import expand
from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.yaml_file import BAD_YAML, read_yaml, yaml_value
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.errors import UserError, unknown

log = logging.getLogger(__name__)

SWEEPS = shipped("sweeps")


class Unfit(UserError):
    """The data of a configuration cannot carry what an arm asks for."""


# ---- trees of fields


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of both trees. If both have a field, that of `over` is taken."""
    merged = dict(base)
    for key, value in over.items():
        both_are_sections = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_are_sections else value
    return merged


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Returns fields by their paths as `--set` options: {"train.lr": 0.1} becomes ["train.lr=0.1"].

    A path of a file is written as its text. Raises UserError for another value that JSON has not.
    """
    found = []
    for path, value in values.items():
        try:
            found.append(f"{path}={json.dumps(str(value) if isinstance(value, Path) else value)}")
        except TypeError as error:
            raise UserError(
                f"settings: {path} is {value!r} ({error}): write a number, a text or a list"
            ) from None
    return found


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
            value: Any = yaml_value(text, f"--set {path}")
        except BAD_YAML:
            value = text
        # A text is taken as it stands, and not up to a #, unless it is in quotes.
        if isinstance(value, str) and not text.lstrip().startswith(("'", '"', "!")):
            value = text.strip()
        for key in reversed(path.split(".")):
            value = {key: value}
        tree = merge(tree, value)
    return tree


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
    holds_all = path.suffix == ".json" and "model" in fields
    if isinstance(profile, str) and not holds_all:
        own = expand(fields) | {"profile": find_profile(profile, path.parent).stem}
        fields = merge(read_profile(profile, path.parent), own)
    return build_run(fields, str(path), overrides)
