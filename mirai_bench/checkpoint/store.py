"""Checkpoints: folders of safetensors and JSON, written whole or not at all, and checked when read.

`step_00000690/` holds model.safetensors (the generator and, under HEADS, its training heads),
ema.safetensors, optimizer.safetensors, and state.json with the step, the counters, the
sha256 of the other files, and that of its own other fields. There is no pickle. Nothing random is
stored: data order, dropout and samples are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import atomic, remove, remove_leftovers
from mirai_bench.utils.tensors import SHA256, content_sha256, read_tensors, write_safetensors

log = logging.getLogger(__name__)

# What the names of training heads begin with: the term of the objective that they belong to.
HEADS = ("foresight.", "regularizer.")
# Of a checkpoint, each with the ending .safetensors.
FILES = ("model", "ema", "optimizer")
# Put before names by torch.compile, DDP and FSDP, in any order.
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.)+")
# What a model computes itself, and what torch's AveragedModel counts.
COMPUTED = ("freqs_cis", "causal_mask", "n_averaged")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step."""

    tensors: dict[str, dict[str, Tensor]]
    """Tensors by file (model, ema, optimizer) and by name."""
    state: dict[str, Any]
    """The content of state.json: `step`, `sha256` of the files and of the rest, and counters."""


# ---- checkpoints of a run


def _path(folder: RunFolder, step: int) -> Path:
    return folder.checkpoints / f"step_{step:08d}"  # names sort as numbers do


def saved(folder: RunFolder) -> list[Path]:
    """Returns the checkpoints of a run, oldest first."""
    return sorted(path for path in folder.checkpoints.glob("step_*") if path.suffix != ".tmp")


def save_checkpoint(folder: RunFolder, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes the checkpoint of `step` and removes all but the newest `keep`. Returns its path.

    Raises UserError if the disk is full. Earlier checkpoints stay.
    """
    # 1. The files, under a temporary name until all of them are on the disk.
    path = _path(folder, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)  # the run is locked, so whoever wrote them is gone
        with atomic(path) as temporary:
            temporary.mkdir()
            hashes = {}
            for name in FILES:
                # Hashed in memory: what is on the disk may already differ from what was meant.
                content = save(checkpoint.tensors[name])
                (temporary / f"{name}.safetensors").write_bytes(content)
                hashes[name] = hashlib.sha256(content).hexdigest()
            state = checkpoint.state | {"step": step}
            state |= {"sha256": hashes | {"state": _hash_of(state)}}
            (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The checkpoint of step {step} could not be written to {path}: {error}. Earlier "
            "checkpoints are intact."
        ) from error
    # 2. Older ones go once the new one is safe.
    for old in saved(folder)[:-keep]:
        remove(old)
    return path


def keep_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Writes weights as a file of their own, which `load_weights` reads.

    Raises UserError if the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, weights, {SHA256: content_sha256(weights)})
    except OSError as error:
        raise UserError(f"Weights could not be kept in {path}: {error}") from error


def _hash_of(state: dict[str, Any]) -> str:
    """Returns the hash of state.json without its hashes."""
    rest = {key: value for key, value in state.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_checkpoint(folder: RunFolder, step: int) -> Checkpoint:
    """Returns the checkpoint of `step`.

    Raises ValueError, naming the file, if one is missing, cut short or changed.
    """
    return _read(_path(folder, step))


def _read(path: Path) -> Checkpoint:
    file = path / "state.json"
    try:
        state = json.loads(file.read_bytes())
        hashes = state["sha256"]
        # Older files have no hash of their own, but the folder of a run's checkpoint names the step.
        if _hash_of(state) != hashes.get("state", _hash_of(state)):
            raise ValueError("its content is not what was written")
        step = state["step"]
        if type(step) is not int or (path.name.startswith("step_") and path.name != f"step_{step:08d}"):
            raise ValueError(f"its step is {step!r}")
        seconds = state.get("train_seconds", 0.0)
        if type(seconds) not in (int, float) or not math.isfinite(seconds):
            raise ValueError(f"its train_seconds is {seconds!r}")
        tensors = {}
        for name in FILES:
            file = path / f"{name}.safetensors"
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != hashes[name]:
                raise ValueError("its content is not what was written")
            tensors[name] = load(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{file}: {error}") from error
    return Checkpoint(tensors, state)


def load_latest(folder: RunFolder) -> Checkpoint | None:
    """Returns the newest checkpoint that is undamaged, or None if the run has no checkpoint.

    It warns about each damaged one that it passes over. Raises UserError if all of them are
    damaged: nothing is deleted, and no run silently starts again from step 0.
    """
    damaged = []
    for path in reversed(saved(folder)):  # the newest first
        try:
            return _read(path)
        except ValueError as error:
            damaged.append(str(error))
            log.warning(f"checkpoint passed over: {error}")
    if damaged:
        raise UserError(
            f"Every checkpoint of {folder} is broken ({damaged[0]}). Nothing was deleted: remove "
            "the folder to begin again."
        )
    return None


# ---- weights from anywhere


def load_weights(path: Path) -> dict[str, Tensor]:
    """Returns generator weights by their official names.

    `path` is a run's folder or a checkpoint's folder (whose EMA is read), a .safetensors, or an
    official .pt or .pth. Of an official file these are the trained weights (not its EMA), without
    Mirai's projectors; `read_official` of checkpoint/official.py returns the rest.
    """
    if path.is_dir():
        weights = _ema_of(path)
    else:
        weights = unwrap(read_tensors(path))
    return {name: tensor for name, tensor in weights.items() if not name.startswith("projectors.")}


def _ema_of(path: Path) -> dict[str, Tensor]:
    """Returns the EMA of a run's newest undamaged checkpoint, or of a checkpoint."""
    checkpoint = load_latest(RunFolder(path))
    if checkpoint is None:  # without any it is a checkpoint itself
        try:
            checkpoint = _read(path)
        except ValueError as error:
            raise UserError(f"{path} holds no whole checkpoint ({error})") from None
    return checkpoint.tensors["ema"]


def unwrap(content: dict[str, Any], key: str = "model") -> dict[str, Tensor]:
    """Returns the state dict of an official file.

    It lies under `key` (DDP), `module` (DeepSpeed) or `state_dict`, or is the whole file (FSDP).
    The prefixes that wrappers add are removed, and so is what the model computes itself
    (`freqs_cis`, key/value caches). What is no tensor is left out.
    """
    # As LlamaGen looks for it (autoregressive/sample/sample_c2i_ddp.py).
    candidates = [content.get(name) for name in (key, "module", "state_dict")]
    found = next((inner for inner in candidates if isinstance(inner, dict)), content)
    weights = {}
    for name, tensor in found.items():
        name = WRAPPERS.sub("", str(name))
        if isinstance(tensor, Tensor) and name not in COMPUTED and ".kv_cache." not in name:
            weights[name] = tensor
    return weights
