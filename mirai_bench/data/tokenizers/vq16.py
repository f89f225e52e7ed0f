"""LlamaGen's tokenizer VQ-16 (arXiv 2406.06525, 72M parameters).

A token covers 16 pixels along each side, and the 16,384 codes are points of the unit sphere in 8 dimensions. The names
of the parameters are those of the official file `vq_ds16_c2i.pt`, which loads strictly.
Letters: B batch; h, w pixels; H, W tokens; C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.config.run_config import TokenizerConfig
from mirai_bench.data.tokenizers.convert import from_uint8, to_uint8
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.tensors import read_tensors

WIDTHS = (128, 128, 256, 256, 512)  # C at full size, 1/2, 1/4, 1/8, 1/16
LATENT = 256  # channels between the convolutions and the code space
VOCABULARY = 16384
CODE_WIDTH = 8
DOWNSAMPLE = 16
# Images per forward pass: attention over H·W cells and activations of the full size take memory.
BATCH = 32
# Rows of the batch whose inner products with all codes are computed at a time: 8192 x 16384 floats are 0.5 GB.
ROWS = 8192
# The file also holds a history of used codes, which only the training of the tokenizer reads.
UNUSED = "quantize.codebook_used"


# ---- the network


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Self-attention of one head over all cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))  # (B, H·W, C)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj_out(mixed.reshape(x.shape))


class Down(nn.Module):
    """Halves the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the official padding: right and bottom only


class Up(nn.Module):
    """Doubles the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, with attention after each at the smallest one, and a change of size."""

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(channels if i == 0 else out, out) for i in range(blocks))
        attends = out == WIDTHS[-1]  # no other resolution is as wide
        self.attn = nn.ModuleList(Attention(out) if attends else nn.Identity() for _ in range(blocks))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, out, h, w), or half or twice that size."""
        for res, attn in zip(self.res, self.attn, strict=True):
            x = attn(res(x))
        return self.upsample(self.downsample(x))


def _levels(widths: Sequence[int], blocks: int) -> list[Level]:
    """Returns one level per resolution, whose blocks have these widths."""
    inputs = (widths[0], *widths[:-1])
    return [Level(channels, out, blocks) for channels, out in zip(inputs, widths, strict=True)]


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), Attention(channels), ResBlock(channels, channels)])


class Encoder(nn.Module):
    """Images to latents."""

    def __init__(self) -> None:
        super().__init__()
        levels = _levels(WIDTHS, blocks=2)
        for level, width in zip(levels[:-1], WIDTHS, strict=False):
            level.downsample = Down(width)
        self.conv_in = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.conv_blocks = nn.Sequential(*levels)
        self.mid = _middle(WIDTHS[-1])
        self.norm_out = _norm(WIDTHS[-1])
        self.conv_out = nn.Conv2d(WIDTHS[-1], LATENT, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) → (B, LATENT, H, W)."""
        x = self.conv_blocks(self.conv_in(x))
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents to images."""

    def __init__(self) -> None:
        super().__init__()
        widths = WIDTHS[::-1]
        levels = _levels(widths, blocks=3)
        for level, width in zip(levels[:-1], widths, strict=False):
            level.upsample = Up(width)
        self.conv_in = nn.Conv2d(LATENT, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.Sequential(*levels)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, LATENT, H, W) → (B, 3, h, w)."""
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.conv_blocks(x))))


class Quantizer(nn.Module):
    """The codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, CODE_WIDTH)

    def codebook(self) -> Tensor:
        """Returns the codes (V, 8), of unit length."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, rows: Tensor) -> Tensor:
        """Returns the nearest code (n,) of each row (n, 8): on the unit sphere it has the largest inner product."""
        codes = self.codebook().T
        return torch.cat([(part @ codes).argmax(1) for part in F.normalize(rows, dim=-1).split(ROWS)])


class VQ16Model(nn.Module):
    """The network, by the names of the official file."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.quantize = Quantizer()
        self.quant_conv = nn.Conv2d(LATENT, CODE_WIDTH, 1)
        self.post_quant_conv = nn.Conv2d(CODE_WIDTH, LATENT, 1)

    def rows(self, images: Tensor) -> Tensor:
        """Returns rows (B·H·W, 8), in raster order, of images float (B, 3, h, w) in [-1, 1]."""
        return self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)

    def images(self, codes: Tensor) -> Tensor:
        """Returns images float (B, 3, h, w) of codes (B, T) of square grids."""
        side = round(codes.shape[1] ** 0.5)
        latents = self.quantize.codebook()[codes].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(latents))


# ---- the tokenizer


class VQ16:
    """The frozen tokenizer around the network."""

    vocabulary = VOCABULARY
    downsample = DOWNSAMPLE

    def __init__(self, model: VQ16Model, sha256: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.identity = {"name": "vq16", "sha256": sha256}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes long (B, T) of images uint8 (B, h, w, 3)."""
        rows = [self.model.rows(from_uint8(part)) for part in images.split(BATCH)]
        return torch.cat([self.model.quantize.nearest(part) for part in rows]).view(len(images), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images uint8 (B, h, w, 3) of codes long (B, T)."""
        return torch.cat([to_uint8(self.model.images(part)) for part in codes.split(BATCH)])


def read_model(path: Path) -> VQ16Model:
    """Returns the network of the official file ({"model": state dict}) or of a bare state dict, loaded strictly.

    Raises UserError if the file is that of another network, or could only be read with pickle.
    """
    content = read_tensors(path)
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not LlamaGen's VQ-16: it holds no state dict")
    state.pop(UNUSED, None)
    with torch.device("meta"):  # the weights are assigned, so no memory is needed for random ones
        model = VQ16Model()
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
        raise UserError(f"{path} is not LlamaGen's VQ-16: {reason}") from None
    return model.float()


def _weight_file(config: TokenizerConfig) -> Path:
    """Returns the weight file. Raises UserError if it is not set, or if the configuration has other sizes."""
    for name, value, only in (
        ("downsample", config.downsample, DOWNSAMPLE),
        ("vocabulary", config.vocabulary, VOCABULARY),
    ):
        if value != only:
            raise UserError(f"tokenizer.{name} is {value} with vq16: write {name}: {only}")
    if config.weights is None:
        raise UserError(
            "tokenizer.weights is not set: write the path of LlamaGen's vq_ds16_c2i.pt (--set tokenizer.weights=PATH)"
        )
    return config.weights


def identity(config: TokenizerConfig) -> dict[str, str]:
    """Returns the identity of the tokenizer of a configuration."""
    return {"name": "vq16", "sha256": file_sha256(_weight_file(config))}


def load(config: TokenizerConfig, device: torch.device) -> VQ16:
    """Returns the tokenizer of a configuration."""
    path = _weight_file(config)
    return VQ16(read_model(path).to(device), file_sha256(path))
