"""What is spent once for the teacher of a run, before its first step. Counted as in cost.py."""

from __future__ import annotations

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.regularizer import NoRegularizer
from mirai_bench.config.run_config import RunConfig
from mirai_bench.model.cost import training_flops
from mirai_bench.model.encoder_cost import encoder_flops
from mirai_bench.model.parts import block_flops, output_flops

MASKED_TOKENS_BATCH = 64  # images in a training step of the masked-token encoder


def one_off_flops(config: RunConfig, images: int | None) -> float | None:
    """Returns the operations that are spent once, before the first step, for the run's teacher.

    They are the whole training of a teacher that the project trains, and the forward passes of an
    encoder whose features are stored. The training of weights that come from elsewhere is not known
    here and does not count. `images` is the number of training images. Returns None where a cost is
    not known.
    """
    foresight = config.foresight
    encoder = foresight.encoder
    stores = foresight.uses_encoder and encoder.cache
    trains_encoder = foresight.uses_encoder and encoder.name == "masked_tokens" and encoder.weights is None
    if not (foresight.trains_teacher or stores or trains_encoder):
        return 0.0
    if images is None:
        return None
    # 1. A finished baseline run.
    if foresight.trains_teacher:
        plain = {"foresight": ForesightConfig(), "regularizer": NoRegularizer()}
        teacher = config.model_copy(update=plain)
        steps = config.train.epochs * (images // config.train.batch_size)
        return training_flops(teacher, steps, steps)
    # 2. The masked-token encoder: it predicts from all tokens, and the backward pass costs twice the
    #    forward pass.
    if trains_encoder:
        size = min(MASKED_TOKENS_BATCH, images)
        seen = encoder.epochs * (images // size) * size
        blocks = encoder.depth * block_flops(config.model, config.num_tokens)
        return seen * 3 * (blocks + output_flops(config))
    # 3. One forward pass of every stored view.
    forward = encoder_flops(encoder.name, config.grid[0], encoder.layer)
    return None if forward is None else images * config.data.num_views * forward
