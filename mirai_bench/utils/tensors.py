"""Weight files: written whole or not at all, and read without running code that they may contain."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mirai_bench.utils.errors import UserError, shortened
from mirai_bench.utils.files import atomic, write_bytes

# What training scripts save beside tensors, and what holds nothing but plain values.
PLAIN: list[Any] = [argparse.Namespace]
SHA256 = "sha256"  # in the metadata of our own .safetensors files: `content_sha256` of the tensors
# Torch names what it refused, among the colours of a terminal.
_REFUSED = re.compile(r"GLOBAL (\w[\w.]*)")


def read_tensors(path: Path) -> dict[str, Any]:
    """Returns the content of a .safetensors file, or of a .pt or .pth file.

    Raises UserError if the file is missing or damaged, or if reading it would need pickle to run
    code.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with torch.serialization.safe_globals(PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly everything
        refused = _REFUSED.search(str(error))
        if refused is not None:
            raise UserError(
                f"{path} was not read: beside tensors it holds {refused[1]}, which only pickle reads, by "
                "running code. If you trust the file, load it with torch.load(…, weights_only=False) and "
                "save its `model`, `ema` and `steps` alone"
            ) from None
        # Torch goes on for a page, which advises to run the file's code.
        reason = str(error).partition("\n")[0]
        why = f" ({reason})" if "weights_only" not in reason else ""
        message = f"{path} was not read: it needs pickle to run code, or is damaged{why}"
        raise UserError(message) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no tensors by name, but a {type(content).__name__}")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        sha256 = (file.metadata() or {}).get(SHA256)
    if sha256 is not None and sha256 != content_sha256(tensors):
        raise UserError(f"{path} is damaged: its content is not what was written")
    return tensors


def content_sha256(content: Any) -> str:
    """Returns the sha256 of tensors and plain values in dicts and lists, whatever the dicts' order."""
    sha256 = hashlib.sha256()
    for name, value in sorted(_leaves(content), key=lambda leaf: leaf[0]):
        sha256.update(name.encode())
        if isinstance(value, Tensor):
            sha256.update(f"{value.dtype} {tuple(value.shape)}".encode())
            whole = value.detach().cpu().contiguous().flatten()
            sha256.update(whole.view(torch.uint8).numpy().data)
        else:
            sha256.update(repr(value).encode())
    return sha256.hexdigest()


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(value, f"{name}/{key}")
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from _leaves(value, f"{name}/{number}")
    else:
        yield name, content


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a .safetensors file, whole or not at all. Raises OSError if the disk is full."""
    # Not by save_file, whose error says only in words that a disk is full.
    write_bytes(path, save(tensors, metadata))


def write_torch(path: Path, content: dict[str, Any]) -> None:
    """Writes a .pt file, whole or not at all. Raises UserError if the disk is full."""
    try:
        with atomic(path) as temporary:
            torch.save(content, temporary)
    except RuntimeError as error:  # of torch's own writer, which keeps no number of the error
        if "inline_container" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} could not be written: is the disk full? ({reason})") from None


def differences(module: nn.Module, state: dict[str, Any], *, spare: bool = False) -> str:
    """Returns how the names or shapes of a state dict differ from those of a module, or "".

    It names the first difference of each kind. With `spare` the state dict may hold more.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    missing = sorted(wanted.keys() - found.keys())
    extra = [] if spare else sorted(state.keys() - wanted.keys(), key=str)
    misshapen = [name for name in wanted if name in found and wanted[name] != found[name]]
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} tensors ({shortened(missing[0])}, …)")
    if extra:
        parts.append(f"it has {len(extra)} that the model has not ({shortened(str(extra[0]))}, …)")
    for name in misshapen[:1]:
        parts += [f"{name} is {found[name]}, but the model's is {wanted[name]}"]
    return "; ".join(parts)


def check_fits(module: nn.Module, state: dict[str, Any], what: str) -> None:
    """Raises UserError if the names or shapes of a state dict are not those of a module."""
    found = differences(module, state)
    if found:
        raise UserError(f"{what} does not fit the config: {found}")


def load_into(module: nn.Module, path: Path) -> None:
    """Loads a weight file into a module. Raises UserError if it is damaged, or does not fit."""
    state = read_tensors(path)
    check_fits(module, state, str(path))
    module.load_state_dict(state)


def load_foreign(
    module: nn.Module,
    state: dict[str, Any],
    path: Path,
    what: str,
    *,
    assign: bool = False,
    spare: bool = False,
) -> None:
    """Loads the state dict of a file that others have made into a module.

    With `assign` the module takes the tensors as they are, and with `spare` the file may hold more.
    Raises UserError if the file is not `what` it should be.
    """
    found = differences(module, state, spare=spare)
    if found:
        raise UserError(f"{path} is not {what}: {found}")
    module.load_state_dict(state, strict=not spare, assign=assign)


def converted(
    convert: Callable[..., dict[str, Any]], module: nn.Module, path: Path, what: str
) -> dict[str, Any]:
    """Returns the state dict of a file under a module's own names, as timm converts it.

    Raises UserError if that fails, because the file is of something else.
    """
    state = read_tensors(path)
    try:
        return convert(state, module)
    except Exception as error:  # timm does not look at what it is given
        reason = shortened(str(error).partition("\n")[0], 300)
        raise UserError(f"{path} is not {what}: {type(error).__name__}: {reason}") from None
