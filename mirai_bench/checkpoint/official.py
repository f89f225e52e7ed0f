"""LlamaGen's and Mirai's own checkpoint layout: official files become run folders, and ours become official files.

    python -m mirai_bench.checkpoint import c2i_B_256.pt imagenet256_b imported/c2i_B_256
    python -m mirai_bench.checkpoint export RUN out.pt

The generator's parameter names are the official ones already. Mirai's K projectors are K modules (`projectors.0.2.weight`, rows are
outputs); ours are one stack of matrices (`foresight.projector.weights.1`, rows are inputs). Letters: K heads.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirai_bench.checkpoint.store import Checkpoint, load_latest, save_checkpoint, unwrap
from mirai_bench.config.run_config import RunConfig
from mirai_bench.foresight.loss import Projector
from mirai_bench.model.transformer import ARModel
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic
from mirai_bench.utils.tensors import read_tensors

State = dict[str, Tensor]


OURS = "foresight.projector."


PROJECTOR = re.compile(r"projectors\.(\d+)\.(\d+)\.(weight|bias)")


def split_projectors(official: State) -> tuple[State, State]:
    """Official state dict → (generator, projector stack by our names, empty where the file has none). Raises UserError for uneven heads."""
    generator = {name: tensor for name, tensor in official.items() if not name.startswith("projectors.")}
    parts: dict[str, dict[int, Tensor]] = {}
    for name in official.keys() - generator.keys():
        match = PROJECTOR.fullmatch(name)
        if match is None:
            raise UserError(
                f"The checkpoint holds {name}, which is no layer of a projector (projectors.<head>.<layer>.weight or .bias)"
            )
        head, layer, kind = int(match[1]), int(match[2]) // 2, match[3]  # layers 1, 3 are SiLU
        tensor = official[name].T if kind == "weight" else official[name][None]
        parts.setdefault(f"{'weights' if kind == 'weight' else 'biases'}.{layer}", {})[head] = tensor
    heads = {tuple(sorted(stack)) for stack in parts.values()}
    if len(heads) > 1 or any(heads_ != tuple(range(len(heads_))) for heads_ in heads):
        raise UserError(f"The checkpoint's projectors are incomplete: heads {sorted(heads)} by layer")
    return generator, {
        name: torch.stack([stack[k] for k in sorted(stack)]) for name, stack in sorted(parts.items())
    }


def to_official(tensors: State) -> State:
    """A checkpoint's `model` tensors → the official state dict. A shared trunk is written into each head."""
    official = {name: tensor for name, tensor in tensors.items() if not name.startswith("foresight.")}
    stacks = {name.removeprefix(OURS): tensor for name, tensor in tensors.items() if name.startswith(OURS)}
    heads = max((len(tensor) for tensor in stacks.values()), default=0)
    for head in range(heads):
        for name, stack in stacks.items():
            kind, layer = name.split(".")
            part = stack[head if len(stack) > 1 else 0]
            place = f"projectors.{head}.{2 * int(layer)}."
            official |= (
                {place + "weight": part.T.contiguous()}
                if kind == "weights"
                else {place + "bias": part[0].clone()}
            )
    return official


def check_fits(module: nn.Module, state: State, what: str) -> None:
    """Every name and shape, or a UserError that shows the first of what differs."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [name for name in wanted if name in found and wanted[name] != found[name]]
    lines = [f"it lacks {len(missing)} tensors ({missing[0]}, …)"] if missing else []
    lines += [f"it has {len(extra)} that the model has not ({extra[0]}, …)"] if extra else []
    lines += [f"{name} is {found[name]}, but the model's is {wanted[name]}" for name in shapes[:1]]
    if lines:
        raise UserError(f"{what} does not fit the config: {'; '.join(lines)}")


def read_official(path: Path, config: RunConfig) -> tuple[State, State, State, int]:
    """→ (generator, its EMA, projector stack, steps), all checked against the config. Without an EMA in the file, the weights stand for it.

    Raises UserError for a file that is not of this model's names and shapes, or needs pickle.
    """
    content = read_tensors(path)
    with torch.device("meta"):
        model = ARModel(config.model, config.tokenizer.vocabulary, config.data.classes, config.grid)
    generator, projector = split_projectors(unwrap(content))
    check_fits(model, generator, str(path))
    ema = generator
    if isinstance(content.get("ema"), dict):
        ema = split_projectors(unwrap(content, "ema"))[0]
        check_fits(model, ema, f"{path} (ema)")
    f = config.foresight
    if projector and f.level == "internal":
        width = (
            projector[f"weights.{f.projector.layers - 1}"].shape[-1]
            if len(projector) == 2 * f.projector.layers
            else 0
        )
        with torch.device("meta"):
            check_fits(
                Projector(f.projector, f.k, config.model.width, width), projector, f"{path} (projectors)"
            )
    return generator, ema, projector, int(content.get("steps", 0))


def import_official(path: Path, config: RunConfig, run_dir: Path) -> Path:
    """An official file → a run folder that can be sampled and evaluated. → its checkpoint. Raises UserError where the folder is a run."""
    if (run_dir / "config.json").exists():
        raise UserError(f"{run_dir} holds a run already: name a new folder")
    generator, ema, projector, steps = read_official(path, config)
    if projector and config.foresight.level != "internal":
        say("the file's projectors are left out: this config has no internal foresight")
        projector = {}
    model = generator | {OURS + name: tensor.contiguous() for name, tensor in projector.items()}
    tensors = {"model": model, "ema": dict(ema), "optimizer": {}}
    run_dir.mkdir(parents=True, exist_ok=True)
    folder = save_checkpoint(
        run_dir, steps, Checkpoint(tensors, {"imported_from": path.name, "train_seconds": 0.0}), keep=1
    )
    write_atomic(run_dir / "config.json", config.model_dump_json(indent=2))
    return folder


def export_official(run_dir: Path, path: Path, weights: str = "raw") -> dict[str, Any]:
    """The newest checkpoint of a run → an official file with `model` (raw weights with the projectors, or the EMA), `ema` and `steps`."""
    checkpoint = load_latest(run_dir)
    if checkpoint is None:
        raise UserError(f"{run_dir} has no checkpoint to export")
    ema = checkpoint.tensors["ema"]
    content = {"model": to_official(checkpoint.tensors["model"] if weights == "raw" else ema), "ema": ema}
    content["steps"] = checkpoint.state["step"]
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)
    return content
