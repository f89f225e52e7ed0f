"""LlamaGen's tokenizer VQ-16 (arXiv 2406.06525, 72M parameters).

A token covers 16 pixels along each side, and the 16,384 codes are points of the unit sphere in 8
dimensions. The names of the parameters are those of the official file `vq_ds16_c2i.pt`, which loads
strictly. Letters: B batch; h, w pixels; H, W tokens; C channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.config.data_config import TokenizerConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.tokenizers.network import ResBlock, from_uint8, to_uint8
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.outside import SEE
from mirai_bench.utils.tensors import load_foreign, read_tensors

WIDTHS = (128, 128, 256, 256, 512)  # C at full size, 1/2, 1/4, 1/8, 1/16
LATENT = 256  # channels between the convolutions and the code space
VOCABULARY = 16384
CODE_WIDTH = 8
DOWNSAMPLE = 16
# Images per forward pass: attention over H·W cells and activations of the full size take memory.
BATCH = 32
# Rows of the batch whose inner products with all codes are computed at a time: 8192 x 16384 floats
# are 0.5 GB.
ROWS = 8192
# The file also holds a history of used codes, which only the training of the tokenizer reads.
UNUSED = "quantize.codebook_used"


# ---- the network


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


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
        # (B, H·W, C) each
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj_out(mixed.reshape(x.shape))


def _downsample(channels: int) -> nn.Sequential:
    """Halves the resolution. The official padding is on the right and at the bottom only."""
    conv = nn.Conv2d(channels, channels, 3, stride=2)
    return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=conv))


def _upsample(channels: int) -> nn.Sequential:
    """Doubles the resolution."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(OrderedDict(repeat=nn.Upsample(scale_factor=2.0), conv=conv))


class Level(nn.Module):
    """The residual blocks of one resolution, and the step to the next resolution.

    At the smallest resolution attention follows each block.
    """

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        inputs = [channels] + [out] * (blocks - 1)
        self.res = nn.ModuleList(ResBlock(width, out, _norm) for width in inputs)
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


def _middle(channels: int) -> nn.Sequential:
    first = ResBlock(channels, channels, _norm)
    return nn.Sequential(first, Attention(channels), ResBlock(channels, channels, _norm))


def _encoder() -> nn.Sequential:
    """Returns the encoder (B, 3, h, w) → (B, LATENT, H, W)."""
    levels = _levels(WIDTHS, blocks=2)
    for level, width in zip(levels[:-1], WIDTHS, strict=False):
        level.downsample = _downsample(width)
    layers = OrderedDict(
        conv_in=nn.Conv2d(3, WIDTHS[0], 3, padding=1),
        conv_blocks=nn.Sequential(*levels),
        mid=_middle(WIDTHS[-1]),
        norm_out=_norm(WIDTHS[-1]),
        silu=nn.SiLU(),
        conv_out=nn.Conv2d(WIDTHS[-1], LATENT, 3, padding=1),
    )
    return nn.Sequential(layers)


def _decoder() -> nn.Sequential:
    """Returns the decoder (B, LATENT, H, W) → (B, 3, h, w)."""
    widths = WIDTHS[::-1]
    levels = _levels(widths, blocks=3)
    for level, width in zip(levels[:-1], widths, strict=False):
        level.upsample = _upsample(width)
    layers = OrderedDict(
        conv_in=nn.Conv2d(LATENT, widths[0], 3, padding=1),
        mid=_middle(widths[0]),
        conv_blocks=nn.Sequential(*levels),
        norm_out=_norm(widths[-1]),
        silu=nn.SiLU(),
        conv_out=nn.Conv2d(widths[-1], 3, 3, padding=1),
    )
    return nn.Sequential(layers)


class VQ16Model(nn.Module):
    """The network, by the names of the official file."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()
        self.decoder = _decoder()
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(VOCABULARY, CODE_WIDTH)})
        self.quant_conv = nn.Conv2d(LATENT, CODE_WIDTH, 1)
        self.post_quant_conv = nn.Conv2d(CODE_WIDTH, LATENT, 1)

    def codebook(self) -> Tensor:
        """Returns the codes (V, 8), of unit length."""
        return F.normalize(self.quantize.get_parameter("embedding.weight"), dim=-1)

    def nearest(self, rows: Tensor) -> Tensor:
        """Returns the nearest code (n,) of each row (n, 8).

        On the unit sphere it is the code with the largest inner product.
        """
        codes = self.codebook().T
        parts = F.normalize(rows, dim=-1).split(ROWS)
        return torch.cat([(part @ codes).argmax(1) for part in parts])

    def rows(self, images: Tensor) -> Tensor:
        """Returns rows (B·H·W, 8), in raster order, of images float (B, 3, h, w) in [-1, 1]."""
        return self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)

    def images(self, codes: Tensor) -> Tensor:
        """Returns images float (B, 3, h, w) of codes (B, T) of square grids."""
        side = round(codes.shape[1] ** 0.5)
        latents = self.codebook()[codes].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(latents))


# ---- the tokenizer


class VQ16:
    """The frozen tokenizer around the network."""

    vocabulary = VOCABULARY
    downsample = DOWNSAMPLE
    exact = False

    def __init__(self, model: VQ16Model, sha256: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.identity = {"name": "vq16", "sha256": sha256}
        self.codebook = self.model.codebook()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes long (B, T) of images uint8 (B, h, w, 3)."""
        rows = [self.model.rows(from_uint8(part)) for part in images.split(BATCH)]
        return torch.cat([self.model.nearest(part) for part in rows]).view(len(images), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the images uint8 (B, h, w, 3) of codes long (B, T)."""
        return torch.cat([to_uint8(self.model.images(part)) for part in codes.split(BATCH)])

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """Returns the codes (V, 8), of unit length."""
        return self.model.codebook()


def read_model(path: Path) -> VQ16Model:
    """Returns the network of the official file, or of a bare state dict.

    Raises UserError if the file is that of another network, or could only be read with pickle.
    """
    content = read_tensors(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not LlamaGen's VQ-16: it holds no state dict")
    state.pop(UNUSED, None)
    with torch.device("meta"):  # the weights are assigned: random ones need no memory
        model = VQ16Model()
    load_foreign(model, state, path, "LlamaGen's VQ-16", assign=True)
    return model.float()


def _weight_file(config: TokenizerConfig) -> Path:
    """Returns the weight file. Raises UserError if it is not set, or for other sizes."""
    for name, value, only in (
        ("downsample", config.downsample, DOWNSAMPLE),
        ("vocabulary", config.vocabulary, VOCABULARY),
    ):
        if value != only:
            raise UserError(f"tokenizer.{name} is {value} with vq16: write {name}: {only}")
    if config.weights is None:
        raise UserError(
            f"tokenizer.weights is not set: write the path of LlamaGen's vq_ds16_c2i.pt {SEE}: --set "
            "tokenizer.weights=PATH"
        )
    return config.weights


def identity(config: RunConfig) -> dict[str, str]:
    """Returns the identity of the tokenizer of a configuration."""
    return {"name": "vq16", "sha256": file_sha256(_weight_file(config.tokenizer))}


def load(config: RunConfig, device: torch.device) -> VQ16:
    """Returns the tokenizer of a configuration."""
    path = _weight_file(config.tokenizer)
    return VQ16(read_model(path).to(device), file_sha256(path))
