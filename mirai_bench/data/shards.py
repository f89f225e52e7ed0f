"""Prepared codes on disk: where they lie, what their manifest says, and how arrays that follow each other are read as one.

<folder>/<split>/plan.json       what is being prepared, written first: a preparation only goes on with the same
<folder>/<split>/shards/00012.npy          uint16 (n, R, T)
                        00012.base0.npy    uint8 (n, S, S, 3), with --pixels: one a crop range
                        00012.json         rows of the data set that these are, and the images that could not be read: written last
<folder>/<split>/labels.npy, rows.npy      int64 (N,)
<folder>/<split>/manifest.json   written when every shard is there
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.crops import crop_rule
from mirai_bench.data.images.datasets import Split
from mirai_bench.data.tokenizers import tokenizer_identity
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import read_json
from mirai_bench.utils.hashing import digest

FORMAT = 1


def split_data(config: RunConfig, split: Split) -> RunConfig:
    """The config with the views of a split: held-out images are seen once, as their centre crop."""
    if split == "train":
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"views": "center"})})


def expected(config: RunConfig, split: Split) -> dict[str, Any]:
    """The manifest's fields that the config decides."""
    data = split_data(config, split).data
    tokenizer = tokenizer_identity(config.tokenizer)
    return {
        "format": FORMAT,
        "split": split,
        "data": data.name if data.dataset == "folder" else data.dataset,
        "classes": data.classes,
        "image_size": data.image_size,
        "crop": crop_rule(data),
        "views": data.num_views,
        "grid": list(config.grid),
        "vocabulary": config.tokenizer.vocabulary,
        "tokenizer": tokenizer["name"],
        "tokenizer_sha256": tokenizer["sha256"],
    }


def codes_folder(config: RunConfig) -> Path:
    """machine.codes, or the folder of this data and tokenizer below machine.runs."""
    if config.machine.codes is not None:
        return config.machine.codes.absolute()
    fields = expected(config, "train")
    return (
        config.machine.runs.absolute() / "codes" / f"{fields['data']}-{fields['image_size']}-{digest(fields)}"
    )


def prepare_command(config: RunConfig) -> str:
    profile = "CONFIG" if config.profile == "custom" else config.profile
    return f"python -m mirai_bench.data.prepare {profile} --data {config.machine.data or 'PATH'}"


def refuse_difference(where: Path, found: dict[str, Any], wanted: dict[str, Any], advice: str) -> None:
    """Raises UserError with the first field of `wanted` that `found` says otherwise."""
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{where}: {key} is {found.get(key)!r}, but the config asks for {value!r}: {advice}"
            )


def read_manifest(config: RunConfig, split: Split) -> tuple[Path, dict[str, Any]]:
    """(folder of the split, manifest). Raises UserError where nothing is prepared, or something else."""
    folder = codes_folder(config) / split
    if not (folder / "manifest.json").is_file():
        state = "are only partly prepared" if (folder / "plan.json").is_file() else "are not prepared"
        raise UserError(
            f"The codes of {config.data.dataset} ({split}) {state} in {folder}: run {prepare_command(config)}"
        )
    manifest = read_json(folder / "manifest.json")
    advice = "prepare codes for this config, or set machine.codes to a folder that has them"
    refuse_difference(folder / "manifest.json", manifest, expected(config, split), advice)
    return folder, manifest


class Joined:
    """Arrays that follow each other, as one; only what is asked for is read."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0] + [len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self.parts[0].shape[1:]

    def take(self, rows: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """[rows], or [rows, second], in the order of `rows`."""
        holder = np.searchsorted(self.starts, rows, side="right") - 1
        shape = self.shape if second is None else self.shape[1:]
        out = np.empty((len(rows), *shape), self.parts[0].dtype)
        for number in np.unique(holder):
            here = holder == number
            local = rows[here] - self.starts[number]
            out[here] = (
                self.parts[number][local] if second is None else self.parts[number][local, second[here]]
            )
        return out


def open_shards(folder: Path, names: Sequence[str], ending: str = "") -> Joined:
    """Memory-maps <name><ending>.npy of every shard."""
    try:
        paths = [folder / "shards" / f"{name}{ending}.npy" for name in names]
        return Joined([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{folder}: a shard is missing or damaged ({error}): remove that folder and prepare the codes again"
        ) from None
