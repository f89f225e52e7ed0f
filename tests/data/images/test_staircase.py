"""The planted data set: its cells by hand, its draws, its rule, and the set that has none."""

import math

import numpy as np
import pytest
import torch

from mirai_bench.config.data_config import StaircaseConfig
from mirai_bench.config.load import load_run
from mirai_bench.data.codes import images_of, open_codes
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.images.staircase import (
    floor,
    hidden_cells,
    make_codes,
    make_images,
    obeys,
    parities,
    planted_cells,
)
from mirai_bench.data.prepare import main as prepare
from mirai_bench.model.cost import num_images
from mirai_bench.utils.errors import UserError
from tests.support.images import write_config

CPU = torch.device("cpu")
SMALL = {"images": 200}
# Drawn once and for all: a new stream of random numbers would be another data set.
TRAIN_SHA256 = "59e9c9be4f20f731f2f68744d718234238d3570ef8eb0b1d96df013bd1b29901"


def staircase(*settings):
    return load_run("staircase", settings)


def by_hand(bits, hidden):
    """The planted cells as planted.md's sentence says it: the parity of all, of all but the last, …"""
    return [sum(bits[cell] for cell in hidden[:count]) % 2 for count in range(len(hidden), 0, -1)]


@pytest.mark.parametrize(
    ("draw", "hidden"), [(0, [2, 11, 3, 10, 0]), (1, [1, 12, 7, 10, 14]), (2, [9, 7, 6, 13, 2])]
)
@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_last_cells_are_the_parities_of_the_hidden_ones(draw, hidden, count):
    planted = StaircaseConfig(draw=draw, parities=count, **SMALL)
    assert hidden_cells(planted).tolist() == hidden[:count]
    assert list(planted_cells(planted)) == list(range(25 - count, 25))
    bits = make_codes(planted, "train") % 2
    assert all(list(row[25 - count :]) == by_hand(row, hidden[:count]) for row in bits)


def test_one_image_by_hand():
    planted = StaircaseConfig()
    bits = np.zeros((1, 25), int)
    bits[0, [2, 11]] = 1  # and cell 3 is 0
    assert parities(bits, planted).tolist() == [[0, 0, 1]]  # b2^b11^b3, b2^b11, b2
    bits[0, 24] = 1
    codes = 2 * np.arange(25) + bits
    assert obeys(codes, planted).tolist() == [True]
    for cell in (2, 3, 11, 22, 23, 24):  # each of them breaks a parity
        other = codes.copy()
        other[0, cell] ^= 1
        assert not obeys(other, planted)[0]
    other = codes.copy()
    other[0, 0] ^= 1  # a free cell
    assert obeys(other, planted)[0]
    other[0, 5] = 4  # a code of another cell
    assert not obeys(other, planted)[0]


def test_the_free_bits_are_fair_and_the_splits_differ():
    planted = StaircaseConfig()
    train = make_codes(planted, "train")
    heldout = make_codes(planted, "heldout")
    assert (train.shape, heldout.shape) == ((16_000, 25), (1_000, 25))
    assert obeys(train, planted).all() and obeys(heldout, planted).all()
    assert np.abs((train % 2).mean(0) - 0.5).max() < 4 * 0.5 / math.sqrt(16_000)
    seen = {row.tobytes() for row in train}
    assert len(seen & {row.tobytes() for row in heldout}) < 20  # of 2^22 images
    few = make_codes(StaircaseConfig(images=100), "train")
    assert (few == train[:100]).all()


def test_another_draw_is_another_rule():
    planted = StaircaseConfig(**SMALL)
    other = StaircaseConfig(draw=1, **SMALL)
    share = obeys(make_codes(planted, "train"), other).mean()
    assert 0.05 < share < 0.22  # 1/8 by chance


def test_cutting_moves_last_rows_between_images_and_nothing_else():
    whole = make_codes(StaircaseConfig(), "train")
    cut = make_codes(StaircaseConfig(cut=True), "train")
    assert (cut[:, :20] == whole[:, :20]).all()
    assert sorted(row.tobytes() for row in cut[:, 20:]) == sorted(row.tobytes() for row in whole[:, 20:])
    assert obeys(cut, StaircaseConfig()).mean() == pytest.approx(1 / 8, abs=4 * math.sqrt(7 / 64 / 16_000))
    # Nothing in an image tells its last row: parities of the hidden cells least of all.
    bits = (cut % 2).astype(float)
    signs = 1 - 2 * np.column_stack([bits[:, :20], parities(cut % 2, StaircaseConfig())])
    correlation = signs.T @ (1 - 2 * bits[:, 20:]) / len(bits)
    assert np.abs(correlation).max() < 5 / math.sqrt(16_000)


def test_floors():
    assert floor(StaircaseConfig()) == pytest.approx(22 * math.log(2) / 25) == pytest.approx(0.6100, abs=5e-5)
    assert floor(StaircaseConfig(parities=5)) == pytest.approx(20 * math.log(2) / 25)
    assert floor(StaircaseConfig(cut=True)) == pytest.approx(0.69315, abs=5e-6)


def test_codes_are_those_of_the_pixel_tokenizer():
    config = staircase(f"data.staircase.images={SMALL['images']}")
    codes = make_codes(config.data.staircase, "train")
    found = open_codes(config, "train", CPU)
    tokens, labels = found.all()
    assert (tokens.numpy() == codes).all() and not labels.any()
    assert (found.num_images, found.num_tokens, found.num_views) == (200, 25, 1)
    images, _ = next(images_of(config, "train"))
    assert images.shape[1:] == (5, 5, 3)
    assert (images == make_images(codes)).all()
    assert set(np.unique(images)) <= {round(code * 255 / 49) for code in range(50)}


def test_the_data_never_change():
    assert open_dataset(staircase(), "train").sha256 == TRAIN_SHA256


def test_what_makes_other_images_is_in_the_fingerprint():
    changes = [[], ["draw=1"], ["parities=4"], ["cut=true"], ["images=8000"]]
    prints = {staircase(*(f"data.staircase.{field}" for field in change)).fingerprint() for change in changes}
    assert len(prints) == len(changes)
    digits = load_run("digits")
    assert load_run("digits", ["data.staircase.draw=1"]).fingerprint() == digits.fingerprint()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.image_size=8", "write image_size: 5, views: center"),
        ("data.views=flip", "views flip"),
        ("tokenizer.vocabulary=17", "tokenizer pixel of 17 codes: write"),
        ("data.classes=10", "data.classes is 10, but staircase has 1"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(setting, message):
    with pytest.raises(UserError, match=message):
        open_dataset(staircase(setting), "train")


def test_there_is_nothing_to_prepare(tmp_path):
    with pytest.raises(UserError, match="images of staircase are encoded when they are used"):
        prepare([write_config(staircase(), tmp_path / "run.json")])


def test_costs_are_known_without_the_images():
    config = staircase("data.staircase.images=320")
    assert num_images(config) == len(open_dataset(config, "train")) == 320
