"""The official LlamaGen or Mirai code, imported from a checkout at run time.

None of it is part of this project.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.data.images.colors import IMAGENET
from mirai_bench.tracking.provenance import git_state
from mirai_bench.utils.errors import UserError

# The checkout's packages, several of which have no __init__.py, and the files in them that are
# used.
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
class MiraiCode:
    """What the official Mirai adds to LlamaGen."""

    models: Any
    """The module of the model with projectors."""
    head_losses: dict[str, Callable[..., list[Tensor]]]
    """By E and I: functions of teacher features and projected states. They return a loss per head."""
    resize: Callable[[Tensor], Tensor]
    """The preprocessing of Mirai-I's encoder: images (B, 3, h, w) in 0…1."""


@dataclass(frozen=True)
class Peer:
    """A checkout of the official code."""

    name: str
    """Mirai or LlamaGen."""
    commit: str | None
    """The checkout's commit, or None if it is not a git checkout."""
    gpt: Any
    """The module of LlamaGen's model."""
    generate: Any
    """The module of LlamaGen's sampler. None if the checkout lacks it, as Mirai's does."""
    update_ema: Callable[..., None]
    optimizer: Callable[..., torch.optim.Optimizer]
    """The function of (model, weight decay, learning rate, betas) that builds the optimizer."""
    mirai: MiraiCode | None = None
    """None for LlamaGen."""

    @property
    def models(self) -> Any:
        """Returns the module of the model that the checkout trains."""
        return self.gpt if self.mirai is None else self.mirai.models


def _is_of_peer(module: str) -> bool:
    return module.split(".")[0] in ("utils", "autoregressive")


@contextmanager
def official_flags() -> Iterator[None]:
    """Computes float32 products in TF32 until the block ends.

    The official scripts switch it on when they are imported, for training and for sampling.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def peer_packages(path: Path) -> Iterator[None]:
    """Makes the checkout's package names resolve to its folders until the block ends."""
    before = {name: module for name, module in sys.modules.items() if _is_of_peer(name)}
    for name in before:
        del sys.modules[name]
    # A module with a __path__ is a package, whose submodules are looked for there.
    for name in PACKAGES:
        package = ModuleType(name)
        package.__path__ = [str(path / name.replace(".", "/"))]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in list(sys.modules):
            if _is_of_peer(name):
                del sys.modules[name]
        sys.modules.update(before)


def function_of(file: Path, name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Returns one function of a script, whose imports (wandb, data sets) are not wanted.

    `names` are the globals that the function uses. Raises UserError if the script has no such
    function.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not functions:
        raise UserError(f"{file} has no function {name}: is this checkout another version?")
    function = functions[0]
    function.decorator_list = []  # such as torch.compiler.allow_in_graph, which is not at hand
    code = compile(ast.Module([function], []), str(file), "exec")
    space = dict(names)
    exec(code, space)  # the user's own checkout, named on the command line
    return space[name]


@cache
def load_peer(path: Path) -> Peer:
    """Imports the official code. Raises UserError if the folder is not a checkout of it."""
    path = path.expanduser().absolute()
    if not (path / MODEL).is_file():
        raise UserError(
            f"--peer {path} holds no {MODEL}: write the folder of a checkout of LlamaGen or Mirai"
        )
    # 1. Modules, which import each other by the checkout's own package names.
    is_mirai = (path / MIRAI_MODEL).is_file()
    with peer_packages(path):
        gpt = importlib.import_module("autoregressive.models.gpt")
        generate = None
        if (path / GENERATE).is_file():
            generate = importlib.import_module("autoregressive.models.generate")
        update_ema = importlib.import_module("utils.ema").update_ema
        mirai = _load_mirai(path) if is_mirai else None
    # 2. The optimizer. It logs how many tensors decay.
    trainer = path / (TRAINERS["E"] if is_mirai else LLAMAGEN_TRAINER)
    creat_optimizer = function_of(trainer, "creat_optimizer", {"torch": torch, "inspect": inspect})

    def optimizer(model: nn.Module, *values: Any) -> torch.optim.Optimizer:
        return creat_optimizer(model, *values, logging.getLogger("peer"))

    name = "Mirai" if is_mirai else "LlamaGen"
    return Peer(name, git_state(path)["commit"], gpt, generate, update_ema, optimizer, mirai)


def _load_mirai(path: Path) -> MiraiCode:
    from torchvision.transforms import Normalize

    models = importlib.import_module("autoregressive.models.Mirai")
    mean, std = IMAGENET
    names: dict[str, Any] = {"torch": torch, "F": F, "Normalize": Normalize}
    names |= {"IMAGENET_DEFAULT_MEAN": mean, "IMAGENET_DEFAULT_STD": std}
    losses = {}
    for kind, file in TRAINERS.items():
        losses[kind] = function_of(path / file, "calculate_foresight_loss", names)
    resize = function_of(path / TRAINERS["I"], "preprocess_raw_image", names)
    return MiraiCode(models, losses, resize)
