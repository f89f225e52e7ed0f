"""How large a run is: images, parameters, bytes on disk. Counted from the config; no torch in here."""

from __future__ import annotations

import json

from .config import RunConfig
from .flops import ffn_width, projector_layers

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


def num_parameters(config: RunConfig) -> tuple[int, int]:
    """(generator, foresight heads), as they are built."""
    m, f, vocabulary = config.model, config.foresight, config.tokenizer.vocabulary
    width, head_width = m.width, m.width // m.heads
    block = width * (m.heads + 2 * m.kv_heads) * head_width + width**2 + 3 * width * ffn_width(width) + 2 * width
    generator = 2 * vocabulary * width + (config.data.classes + 1) * width + m.depth * block + width
    if f.level == "none":
        return generator, 0
    if f.level == "output":
        return generator, (f.k - 1) * width * vocabulary
    return generator, sum(stack * (a + 1) * b for stack, a, b in projector_layers(config))


def checkpoint_bytes(config: RunConfig) -> int:
    """One checkpoint: weights and two moments of generator and heads, and the generator's EMA, in float32."""
    generator, heads = num_parameters(config)
    return 4 * (3 * (generator + heads) + generator)
