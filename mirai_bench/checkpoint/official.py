"""The checkpoint layout of LlamaGen and Mirai: official files become run folders, and vice versa.

The generator's parameter names are the official ones already. Mirai's K projectors are K modules
(`projectors.0.2.weight`, whose rows are outputs); ours are one stack of matrices
(`foresight.projector.weights.1`, whose rows are inputs). Letters: K heads.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mirai_bench.checkpoint.store import HEADS, Checkpoint, load_latest, save_checkpoint, unwrap
from mirai_bench.config.run_config import RunConfig
from mirai_bench.foresight.projector import Projector
from mirai_bench.model.transformer import ARModel
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import check_fits, read_tensors, write_torch

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Names that trainers give the averaged weights. LlamaGen's and Mirai's is the first.
EMA_KEYS = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
OUR_PROJECTOR = "foresight.projector."
OUR_MLPS = (f"{OUR_PROJECTOR}weights.", f"{OUR_PROJECTOR}biases.")  # the names of other heads go on otherwise
THEIR_PROJECTOR = re.compile(r"projectors\.(\d+)\.(\d+)\.(weight|bias)")


# ---- names


def split_projectors(official: StateDict) -> tuple[StateDict, StateDict]:
    """Splits an official state dict into the generator and the projectors, as stacks by our names.

    Raises UserError if the heads do not all have the same layers.
    """
    # 1. Each tensor of a projector becomes ours, by layer and head.
    layers: dict[str, dict[int, Tensor]] = {}
    generator = {}
    for name, tensor in official.items():
        if not name.startswith("projectors."):
            generator[name] = tensor
            continue
        match = THEIR_PROJECTOR.fullmatch(name)
        if match is None:
            raise UserError(
                f"The checkpoint holds {name}, which is no layer of a projector "
                "(projectors.<head>.<layer>.weight or .bias)"
            )
        head = int(match[1])
        layer = int(match[2]) // 2  # the odd layers are SiLU
        if match[3] == "weight":
            layers.setdefault(f"weights.{layer}", {})[head] = tensor.T  # (in, out)
        else:
            layers.setdefault(f"biases.{layer}", {})[head] = tensor[None]  # (1, out)
    # 2. The heads are stacked: (K, in, out) and (K, 1, out).
    heads = {tuple(sorted(stack)) for stack in layers.values()}
    if len(heads) > 1 or any(numbers != tuple(range(len(numbers))) for numbers in heads):
        found = sorted(heads)
        raise UserError(f"The checkpoint's projectors are incomplete: heads {found} by layer")
    stacks = {}
    for name, stack in sorted(layers.items()):
        stacks[name] = torch.stack([stack[head] for head in sorted(stack)])
    return generator, stacks


def to_official(tensors: StateDict) -> StateDict:
    """Returns the official state dict of a checkpoint's `model` tensors.

    A shared trunk is written into each head, because the official projectors share nothing.
    """
    # 1. The generator has the official names. Its training heads are put aside.
    official = {}
    stacks = {}
    for name, tensor in tensors.items():
        if name.startswith(OUR_MLPS):
            stacks[name.removeprefix(OUR_PROJECTOR)] = tensor
        elif not name.startswith(HEADS):  # no official file has other heads
            official[name] = tensor
    # 2. Each head gets its own layers 0, 2, 4, …: those between are SiLU.
    num_heads = max(map(len, stacks.values()), default=0)
    for head in range(num_heads):
        for name, stack in stacks.items():
            kind, layer = name.split(".")
            own = stack[head if len(stack) > 1 else 0]  # (in, out) or (1, out)
            prefix = f"projectors.{head}.{2 * int(layer)}"
            # Copies, because views would bring the whole stack into the file.
            if kind == "weights":
                official[f"{prefix}.weight"] = own.T.contiguous()
            else:
                official[f"{prefix}.bias"] = own[0].clone()
    return official


# ---- files


def takes_projectors(config: RunConfig) -> bool:
    """Tells whether a run has projectors like those of an official file, which are MLPs."""
    return config.foresight.internal and config.foresight.projector.kind == "mlp"


class Official(NamedTuple):
    """The content of an official file under our names."""

    generator: StateDict
    ema: StateDict
    projector: StateDict
    """The projectors as stacks. Empty if the file has none."""
    steps: int
    ema_key: str | None
    """The name of the EMA in the file. None if it has none, and the trained weights stand for it."""


def read_official(path: Path, config: RunConfig) -> Official:
    """Returns the content of an official file under our names.

    If the file has no EMA, the trained weights take its place. Raises UserError
    if names and shapes are not those of the config's model, or if reading the file would need
    pickle.
    """
    content = read_tensors(path)
    foresight = config.foresight
    # 1. The generator and its EMA. On the device `meta` tensors have shapes only, which is all that
    #    is compared.
    with torch.device("meta"):
        model = ARModel(config.model, config.tokenizer.vocabulary, config.data.classes, config.grid)
    generator, projector = split_projectors(unwrap(content))
    check_fits(model, generator, str(path))
    ema = generator
    ema_key = next((key for key in EMA_KEYS if isinstance(content.get(key), dict)), None)
    if ema_key is not None:
        ema, _ = split_projectors(unwrap(content[ema_key]))
        check_fits(model, ema, f"{path} ({ema_key})")
    # 2. The projectors. The width of the target is the file's, because no teacher is loaded here.
    if projector and takes_projectors(config):
        last = projector.get(f"weights.{foresight.projector.layers - 1}")  # (K, hidden, Z)
        target_width = 0 if last is None else last.shape[-1]  # 0: it is missing, and so refused
        with torch.device("meta"):
            ours = Projector(foresight.projector, foresight.num_heads, config.model.width, target_width)
        check_fits(ours, projector, f"{path} (projectors)")
    steps = content.get("steps", 0)
    if type(steps) is not int or not 0 <= steps < 2**31:
        raise UserError(f"{path}: steps is {steps!r}, which is no number of steps: save it as one")
    return Official(generator, ema, projector, steps, ema_key)


def import_official(path: Path, config: RunConfig, folder: RunFolder) -> Path:
    """Makes an official file a run that can be sampled and evaluated.

    Returns the path of its checkpoint. Raises UserError if the folder holds a run already.
    """
    if folder.holds_run:
        raise UserError(f"{folder} holds a run already: name a new folder")
    generator, ema, projector, steps, ema_key = read_official(path, config)
    model = dict(generator)  # a copy, because `ema` may be the same dict
    if takes_projectors(config):
        for name, tensor in projector.items():
            model[OUR_PROJECTOR + name] = tensor.contiguous()
    elif projector:
        log.info("the file's projectors are left out: this config has no internal foresight through MLPs")
    tensors = {"model": model, "ema": ema, "optimizer": {}}
    counters = {"imported_from": path.name, "ema_key": ema_key, "train_seconds": 0.0}
    if ema_key is None:
        log.warning(
            f"{path} has no EMA (no {', '.join(EMA_KEYS)}): its trained weights stand for it, and what "
            "is sampled with weights ema is sampled with them"
        )
    elif ema_key != EMA_KEYS[0]:
        log.info(f"the EMA is the file's {ema_key}")
    checkpoint = save_checkpoint(folder, steps, Checkpoint(tensors, counters), keep=1)
    folder.write_config(config.model_dump_json(indent=2))  # the last, because it makes a run of it
    return checkpoint


def export_official(folder: RunFolder, path: Path, weights: str = "raw") -> dict[str, Any]:
    """Writes the newest checkpoint of a run as an official file, and returns its content.

    The file holds `model` (the raw weights with the projectors, or the EMA), `ema` and `steps`.
    """
    checkpoint = load_latest(folder)
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint to export")
    ema = checkpoint.tensors["ema"]
    model = checkpoint.tensors["model"] if weights == "raw" else ema
    content = {"model": to_official(model), "ema": ema, "steps": checkpoint.state["step"]}
    write_torch(path, content)
    return content
