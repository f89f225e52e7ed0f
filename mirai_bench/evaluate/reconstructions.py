"""The reference as the tokenizer decodes it, which is as good as samples of its codes can be.

Samples of the true distribution of the codes are not 0 away from real images: the tokenizer's own
error, its rFID, stays. From the reconstructions they are, so that this distance shows what the
generator is to blame for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.codes import open_codes
from mirai_bench.data.images.crops import center_view
from mirai_bench.data.images.datasets import Split, open_dataset
from mirai_bench.data.images.image_sets import resized
from mirai_bench.data.shards import split_data
from mirai_bench.data.tokenizers import Tokenizer
from mirai_bench.evaluate.extractors import Extractor
from mirai_bench.evaluate.metrics import Gaussian
from mirai_bench.evaluate.reference_images import SPLITS, ReferenceImages
from mirai_bench.evaluate.references import cached_reference

MOST_IMAGES = 100_000  # of a split that is decoded: ImageNet's would take hours


def reconstructions_of(config: RunConfig, extractor: Extractor, tokenizer: Tokenizer) -> Gaussian | None:
    """Returns the statistics of `pool` of the protocol's reference, as `tokenizer` decodes it.

    Returns None if it is no split of the run's own data, or too large a one, or if the tokenizer is
    exact. Raises UserError if the codes are not prepared.
    """
    split = config.evaluation.protocol.reference
    if split not in SPLITS or tokenizer.exact or len(open_dataset(config, split)) > MOST_IMAGES:
        return None
    images = reconstructed_images(config, split, extractor, tokenizer)
    return cached_reference(config.machine.runs, images, extractor).pool


def reconstructed_images(
    config: RunConfig, split: Split, extractor: Extractor, tokenizer: Tokenizer
) -> ReferenceImages:
    """Returns the decoded codes of a split, the centre view of each image once."""
    dataset = open_dataset(config, split)
    resize = config.evaluation.protocol.resize
    codes = open_codes(config, split, extractor.device)

    def batches() -> Iterator[np.ndarray]:
        for tokens in codes.of_view(center_view(split_data(config.data, split))):
            yield resized(tokenizer.decode(tokens).cpu().numpy(), resize)

    identity = {
        "name": f"{dataset.name}/{split} as decoded",
        "sha256": f"sha256:{dataset.sha256}",
        "image_size": config.data.image_size,
        "resize": resize,
        "images": codes.num_images,  # those that could be read when the codes were prepared
        "tokenizer": tokenizer.identity,
    }
    return ReferenceImages(batches(), codes.num_images, identity, keep=0, label="reconstructions")
