"""Views: each crop equals torchvision's, and codes and pixels of a view come from the same crop."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mirai_bench.data.images.crops import all_views, base_sizes, center_crop
from mirai_bench.data.tokenizers import load_tokenizer
from tests.support.images import all_codes, folder_config, prepared, run_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("spare", [0, 1, 2, 5, 25])
def test_ten_crop_equals_torchvision(spare):
    size = 32
    pixels = np.random.default_rng(spare).integers(0, 256, (size + spare, size + spare, 3), np.uint8)
    data = run_config(
        {"data": {"image_size": size, "views": "ten_crop", "crop_ranges": [1 + spare / size]}}
    ).data
    assert base_sizes(data) == (size + spare,)
    ours = all_views([torch.from_numpy(pixels)[None]], data)[0]
    theirs = np.stack([np.array(crop) for crop in transforms.TenCrop(size)(Image.fromarray(pixels))])
    assert np.array_equal(ours.numpy(), theirs)


def test_base_sizes_round_down_as_llamagen_does():
    data = run_config(
        {
            "data": {"image_size": 256, "views": "ten_crop", "crop_ranges": [1.1, 1.05]},
            "tokenizer": {"vocabulary": 17},
        }
    ).data
    assert base_sizes(data) == (281, 268) and data.num_views == 20


def test_center_crop():
    gradient = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    cut = center_crop(Image.fromarray(gradient), 50)  # 400x100 → the middle 100x100 at half size
    assert cut.shape == (50, 50, 3) and cut.dtype == np.uint8
    assert abs(int(cut[25, 0, 0]) - 96) <= 2 and abs(int(cut[25, -1, 0]) - 159) <= 2
    exact = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    assert np.array_equal(center_crop(Image.fromarray(exact), 50), exact)
    assert center_crop(Image.new("L", (7, 30)), 50).shape == (50, 50, 3)


VIEWS = [
    {"views": "center"},
    {"views": "flip"},
    {"views": "ten_crop"},
    {"views": "ten_crop", "crop_ranges": [1.25, 1.5]},
]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("views", VIEWS)
def test_code_and_pixels_of_a_view_are_of_the_same_crop(images, tmp_path, views, stored):
    config = folder_config(images, tmp_path, **views)
    codes = prepared(config, tmp_path, *(["--pixels"] if stored else []))
    assert bool(codes.pixels.stored) == stored
    tokenizer = load_tokenizer(config, CPU)
    index = torch.arange(codes.num_images).repeat_interleave(codes.num_views)
    view = torch.arange(codes.num_views).repeat(codes.num_images)
    pixels = codes.pixels(index, view)
    assert pixels.shape == (21 * config.data.num_views, 16, 16, 3) and pixels.dtype == torch.uint8
    assert torch.equal(tokenizer.encode(pixels), all_codes(codes).flatten(0, 1))
    batch = codes.batch(seed=0, step=1, rank=0, world=1, batch_size=8)
    assert torch.equal(tokenizer.encode(codes.pixels(batch.index, batch.view)), batch.tokens)


def test_digits_views_are_of_the_same_crop(digits):
    tokenizer = load_tokenizer(run_config(), CPU)
    batch = digits.batch(seed=0, step=0, rank=0, world=1, batch_size=200)
    assert torch.equal(tokenizer.encode(digits.pixels(batch.index, batch.view)), batch.tokens)
    ones = torch.ones_like(batch.view)
    assert torch.equal(digits.pixels(batch.index, ones), digits.pixels(batch.index, 0 * ones).flip(2))
