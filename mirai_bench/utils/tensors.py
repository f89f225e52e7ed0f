"""TODO: utils.tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mirai_bench.utils.errors import UserError


def read_tensors(path: Path) -> dict[str, Any]:
    """The content of a .safetensors or of a .pt/.pth file. Raises UserError for a missing or damaged one, and one that needs pickle."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
    except Exception as error:
        raise UserError(
            f"{path} was not read: it needs pickle to run code, or is damaged ({str(error).splitlines()[0]})"
        ) from None
