"""Checkpoints: a folder of safetensors and JSON, written whole or not at all, checked by hash when read. No pickle.

`step_00000690/`: model (the generator and, under `foresight.`, its training heads), ema, optimizer, and state.json with the step, the
counters and the sha256 of the other files. Nothing random is stored: data order, dropout and samples are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import read_tensors

FILES = ("model", "ema", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, dict[str, Tensor]]
    """by file (model, ema, optimizer), by name"""
    state: dict[str, Any]


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(run_dir: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes the checkpoint of `step`, then removes all but the newest `keep`. Raises UserError where the disk is full; older ones stay."""
    folder = folder_of(run_dir, step)
    temporary = folder.with_suffix(".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hashes = {
            name: _write(temporary / f"{name}.safetensors", save(checkpoint.tensors[name])) for name in FILES
        }
        _write(
            temporary / "state.json", json.dumps(checkpoint.state | {"step": step, "sha256": hashes}).encode()
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. Earlier checkpoints are intact."
        ) from error
    for old in saved(run_dir)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _write(path: Path, content: bytes) -> str:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def saved(run_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in run_dir.glob("checkpoints/step_*") if path.suffix != ".tmp")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Raises ValueError, naming the file, where one is missing, cut short or changed."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_bytes())
        hashes, _ = state["sha256"], state["step"]
        tensors = {}
        for name in FILES:
            path = folder / f"{name}.safetensors"
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != hashes[name]:
                raise ValueError("its content is not what was written")
            tensors[name] = load(content)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Checkpoint(tensors, state)


def load_latest(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, with a warning for each broken one passed over; None where there is none.

    Raises UserError when there are checkpoints and all are broken: nothing is deleted, nothing is silently begun again.
    """
    broken = []
    for folder in reversed(saved(run_dir)):
        try:
            return read_checkpoint(folder)
        except ValueError as error:
            broken.append(str(error))
            say(f"warning: checkpoint passed over: {error}")
    if broken:
        raise UserError(
            f"Every checkpoint of {run_dir} is broken ({broken[0]}). Nothing was deleted: remove the folder to begin again."
        )
    return None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Generator weights by official name, from a run folder, a checkpoint folder (EMA), a .safetensors, or an official .pt/.pth.

    Of an official file these are the trained weights (not its EMA), without Mirai's projectors: `official.read` gives the rest.
    """
    if path.is_dir():
        newest = saved(path)
        path = (newest[-1] if newest else path) / "ema.safetensors"
    weights = unwrap(read_tensors(path))
    return {name: tensor for name, tensor in weights.items() if not name.startswith("projectors.")}


def unwrap(content: dict[str, Any], key: str = "model") -> dict[str, Tensor]:
    """The state dict in an official file: under `key` (DDP), `module` (DeepSpeed) or `state_dict`, or the whole file (FSDP).

    The prefixes that torch.compile and DDP add are cut off; what the model computes itself (`freqs_cis`, key/value caches) is left out.
    """
    found = next(
        (content[k] for k in (key, "module", "state_dict") if isinstance(content.get(k), dict)), content
    )
    names = {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in found.items()
    }
    computed = ("freqs_cis", "causal_mask")
    return {
        name: tensor for name, tensor in names.items() if name not in computed and ".kv_cache." not in name
    }
