import numpy as np
import pytest
import torch
from PIL import Image

from mirai_bench.data.codes import open_codes
from tests.support.images import run_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train: 3 classes of 7 images of several sizes and formats; val: 2 images of each class."""
    root = tmp_path_factory.mktemp("toys")
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(12, 70, 2)
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                ending = ("png", "JPEG", "bmp")[i % 3]
                Image.fromarray(pixels if label else pixels[..., 0]).save(
                    root / split / name / f"{i}.{ending}"
                )
    return root


@pytest.fixture(scope="module")
def digits():
    return open_codes(run_config({"data": {"views": "flip"}}), "train", CPU)


@pytest.fixture
def damaged(tmp_path):
    """Ten images, of which one is cut off and one is no image."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(
                tmp_path / "images" / name / f"{i}.jpg"
            )
    whole = (tmp_path / "images" / "a" / "2.jpg").read_bytes()
    (tmp_path / "images" / "a" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "b" / "4.jpg").write_bytes(b"no image at all")
    return tmp_path
