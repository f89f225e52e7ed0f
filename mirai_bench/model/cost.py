"""What a run costs: floating-point operations, parameters and bytes. No torch.

All is counted from the configuration. A multiply-add counts as two operations. Only matrix products
count, and the backward pass counts twice the forward pass. The tests compare the counts with
torch's own counters and with the modules that are built.

A cost is None if it depends on an encoder whose size is not known here (`timm:<model>`). Tables
show it as "—".
"""

from __future__ import annotations

import json
import math

from mirai_bench.config.data_config import OFFICIAL_SIZES
from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.encoder_cost import encoder_flops, encoder_parameters, encoder_width
from mirai_bench.model.parts import block_flops, block_parameters, output_flops
from mirai_bench.model.regularizer_cost import regularizer_cost
from mirai_bench.utils import plugins

# ---- floating-point operations


def forward_flops(config: RunConfig) -> float:
    """Returns the operations of one image through the generator (teacher forcing)."""
    blocks = config.model.depth * block_flops(config.model, config.num_tokens)
    return blocks + output_flops(config)


def _is_plugged(config: RunConfig) -> bool:
    """Tells whether the source is that of a plug-in, whose cost is not known."""
    return config.foresight.provider in plugins.names("source")


def target_width(config: RunConfig) -> int | None:
    """Returns the width Z of the features that the projectors aim at, or None."""
    encoder = config.foresight.encoder.name
    if _is_plugged(config):
        return None
    # All other teachers are networks of the student's width.
    if not config.foresight.uses_encoder or encoder == "masked_tokens":
        return config.model.width
    return encoder_width(encoder, config.grid[0])


def projector_shapes(config: RunConfig) -> list[tuple[int, int, int]]:
    """Returns (copies, inputs, outputs) of each linear layer of the run's projectors.

    If the width of the encoder's features is not known, the student's width takes its place.
    """
    width = config.model.width
    foresight = config.foresight
    return foresight.projector.shapes(foresight.num_heads, width, target_width(config) or width)


def head_flops(config: RunConfig) -> float | None:
    """Returns the operations of one image through the projectors, or the multi-token heads."""
    foresight = config.foresight
    if foresight.level == "none":
        return 0.0
    if foresight.level == "output":
        return (foresight.k - 1) * output_flops(config)  # head 0 is the generator's own
    if target_width(config) is None or not foresight.internal:  # a plug-in's level
        return None
    tokens = config.num_tokens
    products = sum(2.0 * tokens * copies * a * b for copies, a, b in projector_shapes(config))
    if foresight.projector.kind == "transformer":  # queries by keys, and weights by values
        products += foresight.num_heads * 4.0 * tokens**2 * config.model.width
    return products


def teacher_flops(config: RunConfig) -> float | None:
    """Returns the operations of one image through the teacher, in each training step.

    Stored features cost nothing here: model/one_off.py counts what it took to compute them.
    """
    foresight = config.foresight
    if not foresight.internal:
        return 0.0
    block = block_flops(config.model, config.num_tokens)
    if _is_plugged(config):
        return None
    if foresight.explicit:  # only the first blocks of the teacher run
        return resolve_layer(foresight.teacher_layer or foresight.layer, config.model.depth) * block
    if foresight.source == "random" or foresight.encoder.name == "masked_tokens":
        return foresight.encoder.depth * block
    encoder = foresight.encoder
    return 0.0 if encoder.cache else encoder_flops(encoder.name, config.grid[0], encoder.layer)


def step_flops(config: RunConfig) -> float | None:
    """Returns the operations of one image in one training step, or None.

    They are those of the forward and backward pass of the generator and the heads, of the teacher's
    forward pass, and of the regularizer.
    """
    heads = head_flops(config)
    teacher = teacher_flops(config)
    if heads is None or teacher is None:
        return None
    return 3 * forward_flops(config) + (3 * heads + teacher) + regularizer_cost(config).flops


def training_flops(config: RunConfig, steps: int, total_steps: int) -> float | None:
    """Returns the operations of the first `steps` of `total_steps`, or None."""
    with_foresight = step_flops(config)
    if with_foresight is None:
        return None
    # Foresight costs nothing where λ is 0: during its warm-up, or after the step of a schedule.
    active = 0
    for start, end in config.foresight.active:
        first, last = (min(steps, math.ceil(part * total_steps)) for part in (start, end))
        active += last - first
    regularizer = regularizer_cost(config)
    without = 3 * forward_flops(config) + regularizer.flops
    of_all = (steps - active) * without + active * with_foresight
    # No foresight stands beside shorter sequences.
    early = min(steps, math.ceil(regularizer.early_share * total_steps))
    of_all += early * (regularizer.early_flops - without)
    return config.train.batch_size * of_all


# ---- parameters


def num_parameters(config: RunConfig) -> tuple[int, int]:
    """Returns the parameters of the generator, and of the heads of foresight and the regularizer."""
    model = config.model
    foresight = config.foresight
    # + 1 is the null class. The last norm has `width` scales, and the output head is not tied to
    # the embeddings.
    embeddings = (config.tokenizer.vocabulary + config.data.classes + 1) * model.width
    output = config.tokenizer.vocabulary * model.width
    generator = embeddings + model.depth * block_parameters(model) + model.width + output
    heads = regularizer_cost(config).parameters
    if foresight.level == "output":
        heads += (foresight.k - 1) * output
    elif foresight.level == "internal":
        heads += sum(copies * (inputs + 1) * outputs for copies, inputs, outputs in projector_shapes(config))
        if foresight.projector.kind == "transformer":  # two norms with scales and shifts
            heads += foresight.num_heads * 4 * model.width
    return generator, heads


def teacher_parameters(config: RunConfig) -> int | None:
    """Returns the parameters of the frozen teacher, or None.

    Mirai-E has none, because its teacher is the EMA itself.
    """
    foresight = config.foresight
    if not foresight.internal or (foresight.explicit and foresight.source != "frozen"):
        return 0
    if foresight.source == "frozen":
        return num_parameters(config)[0]
    if _is_plugged(config):
        return None
    if foresight.source == "random" or foresight.encoder.name == "masked_tokens":
        # Embeddings of the tokens and of the mask, the final norm, and the output head.
        embeddings = (2 * config.tokenizer.vocabulary + 2) * config.model.width
        return foresight.encoder.depth * block_parameters(config.model) + embeddings
    return encoder_parameters(foresight.encoder.name, foresight.encoder.layer)


# ---- images and bytes

# Training images of the data sets whose size is fixed. Those of a folder are in the manifest of its
# prepared codes; until then a folder that is called imagenet is taken to be ImageNet.
IMAGES = {"digits": 1500, "imagenet": 1_281_167}
IMAGES |= {name: training for name, (training, _) in OFFICIAL_SIZES.items()}


def num_images(config: RunConfig) -> int | None:
    """Returns the number of training images, or None if the data has to be prepared first."""
    data = config.data
    if data.dataset == "staircase":
        return data.staircase.images
    if data.dataset != "folder":
        return data.subset or IMAGES.get(data.dataset)
    folders = sorted((config.machine.runs / "codes").glob(f"{data.name}-{data.image_size}-*"))
    for folder in [config.machine.codes] if config.machine.codes is not None else folders:
        try:
            return int(json.loads((folder / "train" / "manifest.json").read_bytes())["num_images"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return IMAGES.get(data.name)


def num_steps(config: RunConfig) -> int | None:
    """Returns the number of steps of the whole training, or None as `num_images` does."""
    images = num_images(config)
    return None if images is None else config.train.epochs * (images // config.train.batch_size)


def kept_bytes(config: RunConfig) -> int:
    """Returns the size of what is kept of one epoch of `machine.keep_at`.

    It is the generator's EMA, and the weights of generator and heads, in float32.
    """
    generator, heads = num_parameters(config)
    return 4 * (2 * generator + heads)


def checkpoint_bytes(config: RunConfig) -> int:
    """Returns the size of one checkpoint.

    It holds the weights and two moments of generator and heads, and the generator's EMA, in
    float32.
    """
    generator, heads = num_parameters(config)
    return 4 * (3 * (generator + heads) + generator)
