"""The official LlamaGen or Mirai code, imported from a checkout at run time. Nothing of it is part of this project."""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from mirai_bench.utils.errors import UserError

PACKAGES = ("utils", "autoregressive", "autoregressive.models")


MODEL = "autoregressive/models/gpt.py"


MIRAI_MODEL = "autoregressive/models/Mirai.py"


GENERATE = "autoregressive/models/generate.py"


TRAINERS = {
    "E": "autoregressive/train/train_c2i_Mirai_E.py",
    "I": "autoregressive/train/train_c2i_Mirai_I.py",
}


LLAMAGEN_TRAINER = "autoregressive/train/train_c2i.py"


@dataclass(frozen=True)
class Peer:
    name: str
    """Mirai or LlamaGen"""
    commit: str | None
    gpt: ModuleType
    mirai: ModuleType | None
    generate: ModuleType | None
    """None where the checkout lacks it, as Mirai's does"""
    update_ema: Callable[..., None]
    optimizer: Callable[..., torch.optim.Optimizer]
    head_losses: dict[str, Callable[..., list[torch.Tensor]]]
    """by E and I: (teacher features, projected states) → one loss a head"""
    resize: Callable[[torch.Tensor], torch.Tensor] | None
    """Mirai-I's encoder input"""


@contextmanager
def peer_packages(path: Path) -> Iterator[None]:
    """The checkout's package names resolve to its folders (several have no __init__.py), and are forgotten again."""
    before = {
        name: module
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("utils", "autoregressive")
    }
    for name in before:
        del sys.modules[name]
    for name in PACKAGES:
        package = ModuleType(name)
        package.__path__ = [str(path / name.replace(".", "/"))]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("utils", "autoregressive")]:
            del sys.modules[name]
        sys.modules.update(before)


def function_of(file: Path, name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """One function of a script whose own imports (wandb, data sets) are not wanted; `names` are the globals that it uses."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise UserError(f"{file} has no function {name}: is this checkout another version?")
    found[0].decorator_list = []
    space = dict(names)
    exec(
        compile(ast.Module(found, []), str(file), "exec"), space
    )  # the user's own checkout, named on the command line
    return space[name]


def load_peer(path: Path) -> Peer:
    """Raises UserError for a folder that is no checkout of LlamaGen or Mirai."""
    path = path.expanduser().absolute()
    if not (path / MODEL).is_file():
        raise UserError(
            f"--peer {path} holds no {MODEL}: write the folder of a checkout of LlamaGen or Mirai"
        )
    is_mirai = (path / MIRAI_MODEL).is_file()
    with peer_packages(path):
        gpt = importlib.import_module("autoregressive.models.gpt")
        mirai = importlib.import_module("autoregressive.models.Mirai") if is_mirai else None
        generate = (
            importlib.import_module("autoregressive.models.generate") if (path / GENERATE).is_file() else None
        )
        update_ema = importlib.import_module("utils.ema").update_ema
    trainer = path / (TRAINERS["E"] if is_mirai else LLAMAGEN_TRAINER)
    optimizer = function_of(trainer, "creat_optimizer", {"torch": torch, "inspect": inspect})
    names = {"torch": torch, "F": F}
    losses = (
        {kind: function_of(path / file, "calculate_foresight_loss", names) for kind, file in TRAINERS.items()}
        if is_mirai
        else {}
    )
    return Peer(
        "Mirai" if is_mirai else "LlamaGen", _commit(path), gpt, mirai, generate, update_ema,
        lambda model, *values: optimizer(model, *values, logging.getLogger("peer")), losses,
        _resize(path / TRAINERS["I"]) if is_mirai else None,
    )  # fmt: skip


def _resize(trainer: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    from torchvision.transforms import Normalize

    from mirai_bench.foresight.encoders.zoo import IMAGENET

    names = {
        "torch": torch,
        "Normalize": Normalize,
        "IMAGENET_DEFAULT_MEAN": IMAGENET[0],
        "IMAGENET_DEFAULT_STD": IMAGENET[1],
    }
    return function_of(trainer, "preprocess_raw_image", names)


def _commit(path: Path) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(path), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
