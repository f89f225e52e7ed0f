"""Reading weight files without running any code that they may contain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mirai_bench.utils.errors import UserError


def read_tensors(path: Path) -> dict[str, Any]:
    """Returns the content of a .safetensors file, or of a .pt or .pth file.

    Raises UserError if the file is missing or damaged, or if reading it would need pickle to run
    code.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly everything
        reason = str(error).partition("\n")[0]  # torch goes on for a page
        message = f"{path} was not read: it needs pickle to run code, or is damaged ({reason})"
        raise UserError(message) from None
