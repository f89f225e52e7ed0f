"""Where the weights of pretrained networks come from, and DINOv2.

A network maps images uint8 (B, 3, h, w) to {feature: (B, d)}. A file that claims to be the 2015
Inception is checked by its sha256, so that "FID" means one network. Downloads are always announced
on stderr.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai_bench.data.images.colors import IMAGENET
from mirai_bench.utils.assets import assets_folder, find_asset
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.outside import OUTSIDE, SEE, download
from mirai_bench.utils.tensors import converted, load_foreign

log = logging.getLogger(__name__)

COMPAT = OUTSIDE["inception"]
COMPAT_FILE = COMPAT.file
# TorchScript files of the same network: without its 1,008-way head, and as StyleGAN and EDM publish
# it.
TORCHSCRIPT_FILES = {OUTSIDE[name].file: OUTSIDE[name].sha256 for name in ("fid-inception", "inception-2015")}

DINOV2_MODEL = "vit_large_patch14_dinov2.lvd142m"
DINOV2_FILES = ("dinov2_vitl14.safetensors", "dinov2_vitl14_pretrain.pth")
DINOV2_SIDE = 224  # pixels


# ---- the two files of the 2015 Inception, whose network is in inception.py


def locate_compat(assets: Path | None, weights: Path | None) -> Path:
    """Returns torch-fidelity's weight file: `weights`, or one among the assets, or torch.hub's.

    The last one is downloaded if it is missing. Raises UserError if that fails, or if the file is
    another one.
    """
    hub = Path(torch.hub.get_dir()) / "checkpoints" / COMPAT_FILE
    path = weights or find_asset(assets, COMPAT_FILE) or hub
    if path == hub and not hub.is_file():
        try:
            download(COMPAT, hub.parent)
        except UserError as error:
            raise UserError(
                f"extractor inception: {error}, write --weights FILE, or set machine.assets or "
                "$MIRAI_BENCH_ASSETS to its folder"
            ) from None
    return _check_content(path, {COMPAT_FILE: COMPAT.sha256}, "torch-fidelity's 2015 Inception")


def locate_2015(assets: Path | None, weights: Path | None) -> Path:
    """Returns the TorchScript file: `weights`, or the one among the assets.

    Raises UserError if there is none, or if it is another network.
    """
    path = weights or find_asset(assets, *TORCHSCRIPT_FILES)
    if path is None:
        raise UserError(
            f"extractor inception_2015 needs {' or '.join(TORCHSCRIPT_FILES)} {SEE}: put it into "
            f"machine.assets or $MIRAI_BENCH_ASSETS (found {str(assets_folder(assets))!r}), or write "
            "`evaluate --weights FILE`"
        )
    return _check_content(path, TORCHSCRIPT_FILES, "the TorchScript Inception of 2015-12-05")


def _check_content(path: Path, files: dict[str, str | None], what: str) -> Path:
    """Returns `path`.

    Raises UserError if its content is not that of one of `files` (name: sha256).
    """
    if not path.is_file():
        names = " or ".join(files)
        raise UserError(f"There is no file {str(path)!r}: write the path of {what}, {names} {SEE}")
    found = file_sha256(path)
    if found not in files.values():
        known = ", ".join(f"{name} {sha}" for name, sha in files.items())
        raise UserError(f"{path} is not {what}: its content is {found}, known are {known}")
    return path


# ---- DINOv2


class Dinov2(nn.Module):
    """The class token of DINOv2 ViT-L/14 after the last norm, which is the space of FD-DINOv2.

    The metric is that of Stein et al. (arXiv 2306.04675). Images are resized to 224 pixels,
    bicubically with antialiasing; timm resamples the position table from 37x37 to 16x16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path, model: str = DINOV2_MODEL) -> None:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        super().__init__()
        vit: Any = timm.create_model(model, pretrained=False, num_classes=0, img_size=DINOV2_SIDE)
        what = f"the weight file of {model}"
        load_foreign(vit, converted(checkpoint_filter_fn, vit, weights, what), weights, what)
        self.model = vit
        mean, std = torch.tensor(IMAGENET).view(2, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns pool (B, 1024)."""
        size = (DINOV2_SIDE, DINOV2_SIDE)
        x = F.interpolate(images.float() / 255, size=size, mode="bicubic", antialias=True)
        return {"pool": self.model((x.clamp(0, 1) - self.mean) / self.std)}


def locate_dinov2(assets: Path | None, weights: Path | None) -> Path:
    """Returns the weight file of DINOv2: `weights`, or one among the assets, or the Hub's.

    Raises UserError if there is no such file, it cannot be fetched, or timm is not installed.
    """
    path = weights or find_asset(assets, *DINOV2_FILES)
    if path is not None and not path.is_file():
        names = " or ".join(DINOV2_FILES)
        raise UserError(f"There is no file {str(path)!r}: write the path of {names}")
    try:
        import timm  # noqa: F401
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError("extractor dinov2 needs timm: pip install 'mirai-bench[encoders]'") from None
    if path is not None:
        return path
    log.info(f"fetching timm/{DINOV2_MODEL} from the Hugging Face Hub, unless it is there")
    try:
        return Path(hf_hub_download(f"timm/{DINOV2_MODEL}", "model.safetensors"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"timm/{DINOV2_MODEL} could not be fetched ({type(error).__name__}): write --weights "
            f"FILE, or put {' or '.join(DINOV2_FILES)} into machine.assets or $MIRAI_BENCH_ASSETS {SEE}"
        ) from None
