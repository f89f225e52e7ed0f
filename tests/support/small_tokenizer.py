"""The configuration of a vq_small that trains in seconds."""

from pathlib import Path

from mirai_bench.config.load import build_run


def small_config(runs: Path):
    return build_run(
        {
            "data": {"image_size": 8},
            "tokenizer": {"name": "vq_small", "downsample": 4, "vocabulary": 16},
            "model": {"size": "nano"},
            "train": {"epochs": 1, "batch_size": 8},
            "evaluation": {"at": [1], "protocol": "digits"},
            "machine": {"runs": str(runs)},
        },
        "test",
    )
