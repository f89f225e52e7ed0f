"""How large a run is: images, parameters, bytes on disk. Counted from the config; no torch in here."""

from __future__ import annotations

import json

from .config import Model, RunConfig
from .flops import VITS, ffn_width, projector_layers

# Training images of the sets whose size is fixed; a folder's are counted in the manifest of its prepared codes.
IMAGES = {"digits": 1500, "cifar10": 50_000, "imagenet": 1_281_167}


def num_images(config: RunConfig) -> int | None:
    """Of the training split; None where that is not known before the data is prepared."""
    data = config.data
    name = data.name if data.dataset == "folder" else data.dataset
    codes = config.machine.codes
    folders = [codes] if codes is not None else (config.machine.runs / "codes").glob(f"{name}-{data.image_size}-*")
    for folder in folders if data.dataset == "folder" else []:
        try:
            return int(json.loads((folder / "train" / "manifest.json").read_bytes())["num_images"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return IMAGES.get(name)


def block_parameters(model: Model) -> int:
    width, head_width = model.width, model.width // model.heads
    return width * (model.heads + 2 * model.kv_heads) * head_width + width**2 + 3 * width * ffn_width(width) + 2 * width


def num_parameters(config: RunConfig) -> tuple[int, int]:
    """(generator, foresight heads), as they are built."""
    m, f, vocabulary = config.model, config.foresight, config.tokenizer.vocabulary
    width = m.width
    generator = 2 * vocabulary * width + (config.data.classes + 1) * width + m.depth * block_parameters(m) + width
    if f.level == "none":
        return generator, 0
    if f.level == "output":
        return generator, (f.k - 1) * width * vocabulary
    return generator, sum(stack * (a + 1) * b for stack, a, b in projector_layers(config))


LITE0_PARAMETERS = 3_371_024  # EfficientNet-Lite0 without its classifier


def encoder_parameters(name: str) -> int:
    """Of an image encoder without a classifier, its position table at the size it was trained at; 0 for one that is not listed in flops.py."""
    if name in VITS:
        blocks, width, _, patch = VITS[name]
        return blocks * (12 * width**2 + 13 * width) + 3 * patch**2 * width
    return LITE0_PARAMETERS if name == "efficientnet_lite0" else 0


def teacher_parameters(config: RunConfig) -> int:
    """Of the frozen network beside the student. None for Mirai-E, whose teacher is the EMA itself."""
    f, m, vocabulary = config.foresight, config.model, config.tokenizer.vocabulary
    if f.level != "internal" or (f.explicit and f.source != "frozen"):
        return 0
    if f.source == "frozen":
        return num_parameters(config)[0]
    if f.source == "random" or f.encoder.name == "masked_tokens":
        return f.encoder.depth * block_parameters(m) + (2 * vocabulary + 2) * m.width
    return encoder_parameters(f.encoder.name)


def checkpoint_bytes(config: RunConfig) -> int:
    """One checkpoint: weights and two moments of generator and heads, and the generator's EMA, in float32."""
    generator, heads = num_parameters(config)
    return 4 * (3 * (generator + heads) + generator)
