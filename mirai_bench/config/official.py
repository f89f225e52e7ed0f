"""The preset `official: true`: the foresight fields that do what the published Mirai code does.

The published code differs from the paper's text in several places. The preset may be written
wherever foresight fields are written (an arm, a run file, `--set foresight.official=true`), and
stands for its fields there. Fields that are written next to it override it. The source decides
which preset is meant: `ema` is Mirai-E, `encoder` is Mirai-I.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirai_bench.utils.errors import UserError

# Read in the published code at commit 4e8611e: autoregressive/train/train_c2i_Mirai_E.py and _I.py.
_COMMON: dict[str, Any] = {
    "level": "internal",
    "layout": "grid_2d_flat",  # offsets in the flat sequence, which wrap from one row to the next
    "layer": "8/12",
    "weight": 2.0,  # of each head,
    "reduce": "sum",  # and the heads are summed: λ of the paper's mean is K times as large
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
        "schedule": "step",  # λ changes from 2 to 1 at epoch 80 of 300
        "final_weight": 1.0,
        "step_at": 80 / 300,
    },
    "encoder": _COMMON | {"source": "encoder", "k": 1, "warmup": 0.0, "schedule": "constant"},
}


def expand_official(foresight: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces `official: true` among foresight fields by the fields that it stands for.

    Raises UserError if `official` is not a bool, or if the published code does not have the source.
    """
    fields = dict(foresight)
    chosen = fields.pop("official", False)
    if not isinstance(chosen, bool):
        raise UserError(f"foresight.official is {chosen!r}: write true, or leave it out")
    if not chosen:
        return fields
    source = fields.get("source", "ema")
    if source not in OFFICIAL:
        raise UserError(
            f"foresight.official is true with source: {source}, which the published code does not "
            "have: write ema or encoder"
        )
    expanded = OFFICIAL[source] | fields
    # A projector that is written next to the preset overrides single fields of the preset's, not
    # all of them.
    projector = fields.get("projector")
    if isinstance(projector, Mapping):
        expanded["projector"] = OFFICIAL[source]["projector"] | projector
    return expanded


def expand(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces `official: true` in the section `foresight` of a tree of config fields."""
    foresight = tree.get("foresight")
    if not isinstance(foresight, Mapping):  # a wrong value is reported when the tree is checked
        return dict(tree)
    return dict(tree) | {"foresight": expand_official(foresight)}
