"""Images as tests make them, and the configurations and codes of small data sets."""

import json
from pathlib import Path

import numpy as np
import torch

from mirai_bench.config.load import build_run, merge
from mirai_bench.data.codes import Codes, open_codes
from mirai_bench.data.prepare import main as prepare

CPU = torch.device("cpu")


def noise(n, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def run_config(over=None):
    base = {
        "model": {"size": "nano"},
        "train": {"epochs": 1, "batch_size": 8},
        "evaluation": {"at": [1], "protocol": "digits"},
    }
    return build_run(merge(base, over or {}), "test")


def folder_config(root: Path, runs: Path, **data):
    fields = {"dataset": "folder", "name": "toys", "image_size": 16, "classes": 3, "views": "ten_crop"} | data
    return run_config({"data": fields, "machine": {"data": str(root), "runs": str(runs)}})


def write_config(config, path: Path) -> str:
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return str(path)


def prepared(config, tmp_path, *options):
    assert prepare([write_config(config, tmp_path / "run.json"), "--shard-size", "5", *options]) == 0
    return open_codes(config, "train", CPU)


def all_codes(codes: Codes) -> torch.Tensor:
    return torch.from_numpy(codes._codes.take(np.arange(codes.num_images)).astype(np.int64))
