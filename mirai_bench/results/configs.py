"""The configurations that records carry: what their foresight is, and that an arm has one only.

An average over seeds of two configurations would be of nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.utils.errors import UserError

# Sections and fields in which runs of one arm may differ: the seeds, where and how a run was
# computed, how it was evaluated (which is compared on its own), and names.
FREE = ("seed", "seeds.", "machine.", "evaluation.", "profile", "model.size", "train.recipe")


def foresight_of(run: Mapping[str, Any]) -> ForesightConfig:
    """Returns the foresight of the run of a record. What an older record lacks has its default."""
    return ForesightConfig.model_validate(run["config"].get("foresight", {}))


def refuse_other_configs(axis: str, records: Sequence[dict[str, Any]]) -> None:
    """Raises UserError, which names the field, if an arm has runs of two configurations.

    A field that one of the records lacks is passed over: older records have fewer fields.
    """
    first: dict[str, dict[str, Any]] = {}  # of each arm, the first record
    for record in {id(record["run"]): record for record in records}.values():  # one of each run
        other = first.setdefault(record["arm"], record)
        found = _difference(other["run"]["config"], record["run"]["config"])
        if found is not None:
            key, ours, theirs = found
            raise UserError(
                f"{axis}: {record['arm']} has seeds of two configurations: {key} is {ours!r} with seed "
                f"{other['seed']} and {theirs!r} with seed {record['seed']}. They are two experiments: "
                "leave the files of one out"
            )


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    ours = dict(_flat(one))
    for key, theirs in _flat(other):
        if key in ours and ours[key] != theirs and not key.startswith(FREE):
            return key, ours[key], theirs
    return None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the fields of a configuration by names such as `train.lr`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
