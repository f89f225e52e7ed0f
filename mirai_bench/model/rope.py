"""The rotary position embedding of the token grid (2-D RoPE), as in LlamaGen."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(height: int, width: int, head_width: int, base: float = 10_000.0) -> Tensor:
    """Returns the cosines and sines of 2-D RoPE, (1 + H·W, d/2, 2).

    The first half of the channel pairs turns with the row, the second half with the column. Slot 0,
    that of the class token, is all zeros: its rotated queries and keys vanish, as in LlamaGen
    (precompute_freqs_cis_2d).
    """
    half = head_width // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2, dtype=torch.float32) / half)  # (d/4,)
    of_rows = torch.outer(torch.arange(height, dtype=torch.float32), frequencies)  # (H, d/4)
    of_columns = torch.outer(torch.arange(width, dtype=torch.float32), frequencies)  # (W, d/4)
    rows = of_rows[:, None].expand(-1, width, -1)
    columns = of_columns[None].expand(height, -1, -1)
    angles = torch.cat([rows, columns], -1).reshape(height * width, half)  # (T, d/2)
    table = torch.stack([angles.cos(), angles.sin()], -1)  # (T, d/2, 2)
    return torch.cat([torch.zeros(1, half, 2), table])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turns each pair of neighbouring channels of x by its angle, in float32.

    x is (B, T, heads, d), rope (T, d/2, 2).
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, T, heads, d/2, 2)
    if torch.compiler.is_compiling():
        # A compiler does not compile complex products. Written as each channel times the cosine
        # plus its partner times the sine, forward and backward become one kernel each.
        cos, sin = rope[:, None, :, :, None].unbind(-2)  # (T, 1, d/2, 1) each
        sign = 2 * torch.arange(2, device=x.device) - 1  # of the sine: - for the even channel
        turned = pairs * cos + pairs.flip(-1) * (sin * sign)
    else:
        # One complex product is 3x as fast on a CPU as four strided real ones.
        turns = torch.view_as_complex(rope)[:, None]  # (T, 1, d/2)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    return turned.flatten(-2).type_as(x)
