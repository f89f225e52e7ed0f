"""The context mask of frozen encoders."""

import torch

from mirai_bench.foresight.encoders.build import block_causal_mask

CPU = torch.device("cpu")


def test_block_causal_mask_by_hand():
    assert block_causal_mask(4, 2, CPU).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
    ]
    assert block_causal_mask(4, 1, CPU).equal(torch.ones(4, 4).tril().bool())
