"""The preset `official: true`: the foresight fields that do what the published Mirai code does, where it differs from the paper.

It stands for its fields wherever foresight fields are written (an arm, a run file, `--set foresight.official=true`); fields written beside
it win. The source decides which: `ema` is Mirai-E, `encoder` is Mirai-I.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirai_bench.utils.errors import UserError

_COMMON = {
    "level": "internal",
    "layout": "grid_2d_flat",  # offsets in the flattened sequence, which wrap rows
    "layer": "8/12",
    "weight": 2.0,  # of each head,
    "reduce": "sum",  # and the heads are summed
    "pairing": "consumed",
    "target_norm": "none",
    "projector": {"layers": 3, "shared_trunk": False},
}


OFFICIAL: dict[str, dict[str, Any]] = {
    "ema": _COMMON
    | {
        "source": "ema",
        "k": 3,
        "class_token": True,  # in every head
        "share_label_drop": False,  # the teacher always sees the true label
        "warmup": 0.05,  # 15 of 300 epochs
        "schedule": "step",  # λ 2 → 1 at epoch 80 of 300
        "final_weight": 1.0,
        "step_at": 80 / 300,
    },
    "encoder": _COMMON | {"source": "encoder", "k": 1, "warmup": 0.0, "schedule": "constant"},
}


def expand_official(foresight: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of foresight fields, with `official: true` replaced by what it stands for. Raises UserError for another value or source."""
    fields = {key: value for key, value in foresight.items() if key != "official"}
    chosen = foresight.get("official", False)
    if not isinstance(chosen, bool):
        raise UserError(f"foresight.official is {chosen!r}: write true, or leave it out")
    if not chosen:
        return fields
    source = fields.get("source", "ema")
    if source not in OFFICIAL:
        raise UserError(
            f"foresight.official is true with source: {source}, which the published code does not have: write ema or encoder"
        )
    preset = OFFICIAL[source]
    projector = fields.get("projector")
    nested = {"projector": preset["projector"] | projector} if isinstance(projector, Mapping) else {}
    return preset | fields | nested


def expand(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a tree of config fields that may have a `foresight` section."""
    foresight = tree.get("foresight")
    return (
        dict(tree) | {"foresight": expand_official(foresight)}
        if isinstance(foresight, Mapping)
        else dict(tree)
    )
