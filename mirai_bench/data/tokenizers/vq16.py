"""LlamaGen's VQ-16 (arXiv 2406.06525, 72M parameters): 16 pixels a token along each side, 16,384 codes of 8 dimensions on the unit sphere.

The module's parameter names are those of the official file `vq_ds16_c2i.pt`, which loads strictly.
Letters: B batch, h, w pixels, H, W tokens, C channels.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirai_bench.config import run_config as settings
from mirai_bench.data.tokenizers.convert import from_uint8, to_uint8
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256

WIDTHS = (128, 128, 256, 256, 512)  # C at full size, 1/2, 1/4, 1/8, 1/16


LATENT = 256  # channels between the convolutions and the code space


VOCABULARY, CODE_WIDTH, DOWNSAMPLE = 16384, 8, 16


BATCH = 32  # images at a time: attention over H·W cells and full-size activations


# The file also holds a history of used codes, which only the tokenizer's training reads.
UNUSED = "quantize.codebook_used"


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """One head over all cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))  # (B, H·W, C)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj_out(mixed.reshape(x.shape))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the official padding: right and bottom only


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each at the smallest, and the step to the next resolution."""

    def __init__(
        self, channels: int, out: int, blocks: int, attends: bool, step: tuple[str, type[nn.Module]] | None
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(channels if i == 0 else out, out) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out) for _ in range(blocks if attends else 0))
        self.step = step[0] if step else None
        if step:
            self.add_module(step[0], step[1](out))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.get_submodule(self.step)(x) if self.step else x


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), Attention(channels), ResBlock(channels, channels)])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        last = len(WIDTHS) - 1
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        self.conv_in = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.conv_blocks = nn.Sequential(
            *(
                Level(inputs[i], WIDTHS[i], 2, i == last, ("downsample", Down) if i < last else None)
                for i in range(last + 1)
            )
        )
        self.mid = _middle(WIDTHS[-1])
        self.norm_out, self.conv_out = _norm(WIDTHS[-1]), nn.Conv2d(WIDTHS[-1], LATENT, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_blocks(self.conv_in(x))
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        last = len(WIDTHS) - 1
        widths = WIDTHS[::-1]
        inputs = (widths[0], *widths[:-1])
        self.conv_in = nn.Conv2d(LATENT, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.Sequential(
            *(
                Level(inputs[i], widths[i], 3, i == 0, ("upsample", Up) if i < last else None)
                for i in range(last + 1)
            )
        )
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.conv_blocks(x))))


class Quantizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, CODE_WIDTH)

    def codebook(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, rows: Tensor) -> Tensor:
        """(n, 8) → (n,): on the unit sphere the nearest code is the one of largest inner product."""
        return torch.cat(
            [(part @ self.codebook().T).argmax(1) for part in F.normalize(rows, dim=-1).split(8192)]
        )


class VQ16Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantize = Encoder(), Decoder(), Quantizer()
        self.quant_conv = nn.Conv2d(LATENT, CODE_WIDTH, 1)
        self.post_quant_conv = nn.Conv2d(CODE_WIDTH, LATENT, 1)

    def rows(self, images: Tensor) -> Tensor:
        """float (B, 3, h, w) in [-1, 1] → (B·H·W, 8), raster order."""
        return self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)

    def images(self, codes: Tensor) -> Tensor:
        """(B, T) of square grids → float (B, 3, h, w)."""
        side = round(codes.shape[1] ** 0.5)
        latents = self.quantize.codebook()[codes].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(latents))


class VQ16:
    vocabulary, downsample = VOCABULARY, DOWNSAMPLE

    def __init__(self, model: VQ16Model, sha256: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.identity = {"name": "vq16", "sha256": sha256}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        parts = [
            self.model.quantize.nearest(self.model.rows(from_uint8(part))) for part in images.split(BATCH)
        ]
        return torch.cat(parts).view(len(images), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return torch.cat([to_uint8(self.model.images(part)) for part in codes.split(BATCH)])


def read_model(path: Path) -> VQ16Model:
    """The official file ({"model": state dict}) or a bare state dict, strictly; a file that needs code to be read is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} cannot be read as weights alone ({reason}): write the path of LlamaGen's vq_ds16_c2i.pt"
        ) from None
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not LlamaGen's VQ-16: it holds no state dict")
    state = {key: value for key, value in state.items() if key != UNUSED}
    with torch.device("meta"):
        model = VQ16Model()
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
        raise UserError(f"{path} is not LlamaGen's VQ-16: {reason}") from None
    return model.float()


def _weights(config: settings.Tokenizer) -> Path:
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


def identity(config: settings.Tokenizer) -> dict[str, str]:
    return {"name": "vq16", "sha256": file_sha256(_weights(config))}


def load(config: settings.Tokenizer, device: torch.device) -> VQ16:
    path = _weights(config)
    return VQ16(read_model(path).to(device), file_sha256(path))
