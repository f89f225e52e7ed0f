"""Prepared codes on disk: where they are, what their manifest says, and how they are read.

<folder>/<split>/plan.json               what is being prepared; written first
<folder>/<split>/shards/00012.npy        codes, uint16 (n, R, T)
                 shards/00012.base0.npy  with --pixels: images uint8 (n, S, S, 3), a file per range
                 shards/00012.json       the shard's rows of the data set, and the images that could
                                         not be read; written last: a shard with it is complete
<folder>/<split>/labels.npy, rows.npy    int64 (N,)
<folder>/<split>/manifest.json           written when every shard is complete, with the sha256 of the
                                         other files
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirai_bench.config.data_config import DataConfig
from mirai_bench.config.machine_config import MachineConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.crops import crop_rule
from mirai_bench.data.images.datasets import Split, check_size
from mirai_bench.data.tokenizers import tokenizer_identity
from mirai_bench.utils.arrays import UNREADABLE
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import atomic, read_json
from mirai_bench.utils.hashing import digest, file_sha256

# Raised when the files of prepared codes change. Codes of another format are refused.
FORMAT = 1

# ---- files


def read_part(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file of prepared codes. Raises UserError if it is damaged."""
    return read_json(path, "remove it and prepare the codes again")


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file, whole or not at all."""
    # Not "wb": there numpy writes by itself, and a full disk has no number of an error.
    with atomic(path) as temporary, open(temporary, "wb+") as file:
        np.save(file, array, allow_pickle=False)


# ---- where codes are, and what they are of


def split_data(data: DataConfig, split: Split) -> DataConfig:
    """Returns the data with the views of a split: held-out images are seen as their centre crop."""
    return data if split == "train" else data.model_copy(update={"views": "center"})


def expected(config: RunConfig, split: Split) -> dict[str, Any]:
    """Returns the fields of the manifest that the configuration decides."""
    data = split_data(config.data, split)
    tokenizer = tokenizer_identity(config)
    fields: dict[str, Any] = {
        "format": FORMAT,
        "split": split,
        "data": data.title,
        "classes": data.classes,
        "image_size": data.image_size,
        "crop": crop_rule(data),
        "views": data.num_views,
        "grid": list(config.grid),
        "vocabulary": config.tokenizer.vocabulary,
        "tokenizer": tokenizer["name"],
        "tokenizer_sha256": tokenizer["sha256"],
    }
    if data.subset is not None:
        fields["subset"] = data.subset
    if data.heldout_share is not None:
        fields["heldout_share"] = data.heldout_share
    return fields


def codes_folder(config: RunConfig) -> Path:
    """Returns machine.codes, by default the folder of this data and tokenizer in machine.runs."""
    if config.machine.codes is not None:
        return config.machine.codes.absolute()
    fields = expected(config, "train")
    name = f"{fields['data']}-{fields['image_size']}-{digest(fields)}"
    return config.machine.runs.absolute() / "codes" / name


def check_fields(path: Path, found: dict[str, Any], wanted: dict[str, Any], advice: str) -> None:
    """Raises UserError, which names the field, if one of `wanted` has another value in `found`."""
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: {key} is {found.get(key)!r}, but the config asks for {value!r}: {advice}"
            )


def prepare_command(config: RunConfig) -> str:
    """Returns the command that prepares the codes where this configuration looks for them."""
    profile = "CONFIG" if config.profile == "custom" else config.profile
    data = str(config.machine.data or "PATH")
    words = ["python", "-m", "mirai_bench.data.prepare", profile, "--data", data]
    for name in ("runs", "codes"):
        place = getattr(config.machine, name)
        if place != MachineConfig.model_fields[name].default:
            words += ["--set", f"machine.{name}={place}"]
    return shlex.join(words)


def read_manifest(config: RunConfig, split: Split) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of a split and its manifest.

    Raises UserError if the codes are not prepared, or are prepared for another configuration.
    """
    folder = codes_folder(config) / split
    file = folder / "manifest.json"
    if not file.is_file():
        begun = (folder / "plan.json").is_file()
        state = "are only partly prepared" if begun else "are not prepared"
        raise UserError(
            f"The codes of {config.data.dataset} ({split}) {state} in {folder}: run {prepare_command(config)}"
        )
    manifest = read_part(file)
    found = manifest.pop("digest", None)  # older ones have none
    if found not in (None, digest(manifest)):
        raise UserError(f"{file} is damaged, its content is not what was prepared: {AGAIN}")
    advice = "prepare codes for this config, or set machine.codes to a folder that has them"
    check_fields(file, manifest, expected(config, split), advice)
    check_size(config.data, split, manifest["dataset"]["images"], file)
    return folder, manifest


AGAIN = "prepare the codes again, which makes again what is damaged"


def check_intact(folder: Path, manifest: dict[str, Any], files: Iterable[str]) -> None:
    """Raises UserError, which names the first of these files, if they are not as they were prepared.

    Manifests of earlier versions have no hashes.
    """
    known = manifest.get("sha256", {})
    for name in files:
        if name in known and not is_intact(folder / name, known[name]):
            raise UserError(f"{folder / name} is damaged, its content is not what was prepared: {AGAIN}")


def is_intact(path: Path, sha256: str) -> bool:
    """Tells whether a file is there with this hash."""
    return path.is_file() and file_sha256(path) == sha256


def read_array(folder: Path, manifest: dict[str, Any], name: str) -> np.ndarray:
    """Returns the rows or the labels of prepared codes. Raises UserError if they are damaged."""
    check_intact(folder, manifest, [f"{name}.npy"])
    try:
        return np.load(folder / f"{name}.npy", allow_pickle=False)
    except UNREADABLE as error:
        raise UserError(f"{folder / name}.npy is missing or damaged ({error}): {AGAIN}") from None


# ---- shards as one array


class ShardedArray:
    """Several arrays that follow each other, as one of which only the rows asked for are read."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0] + [len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one row."""
        return self.parts[0].shape[1:]

    def take(self, rows: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """Returns array[rows], or array[rows, second], in the order of `rows`."""
        holder = np.searchsorted(self.starts, rows, side="right") - 1  # (n,) part that has the row
        shape = self.shape if second is None else self.shape[1:]
        out = np.empty((len(rows), *shape), self.parts[0].dtype)
        for number in np.unique(holder):
            here = holder == number
            local = rows[here] - self.starts[number]  # row within the part
            part = self.parts[number]
            out[here] = part[local] if second is None else part[local, second[here]]
        return out


def open_shards(folder: Path, names: Sequence[str], ending: str = "") -> ShardedArray:
    """Memory-maps <name><ending>.npy of every shard. Raises UserError if one is damaged."""
    paths = [folder / "shards" / f"{name}{ending}.npy" for name in names]
    try:
        return ShardedArray([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])
    except UNREADABLE as error:
        raise UserError(f"{folder}: a shard is missing or damaged ({error}): {AGAIN}") from None
