"""The next batch is read by a thread: the same batch, whatever was read before."""

import threading
from functools import partial

import pytest
import torch

from mirai_bench.data import pixels
from mirai_bench.data.read_ahead import Batches
from mirai_bench.utils.errors import UserError
from tests.support.images import folder_config, prepared

STEPS = 6


@pytest.fixture(params=["files", "stored"])
def codes(request, images, tmp_path):
    """Codes and pixels of ten crops of two ranges, which all are in files."""
    config = folder_config(images, tmp_path, views="ten_crop", crop_ranges=[1.25, 1.5])
    codes = prepared(config, tmp_path, *(["--pixels"] if request.param == "stored" else []))
    codes._tokens = None  # as if they did not fit
    assert codes.reads_files(False) and codes.pixels.from_files
    return codes


def batches_of(codes, needs_pixels=lambda step: True):
    place = partial(codes.place, seed=0, rank=0, world=1, batch_size=4)
    return Batches(codes, STEPS, place, needs_pixels)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_batch_is_a_function_of_the_step(codes):
    expected = [batches_of(codes).at(step) for step in range(STEPS)]  # none of them was read ahead
    ahead = batches_of(codes)
    assert all(same(ahead.at(step), expected[step]) for step in range(STEPS))
    for step in (3, 4, 1, 2, 5):  # a run that goes on elsewhere
        assert same(ahead.at(step), expected[step])
    whole = expected[2]
    assert torch.equal(whole.pixels, codes.pixels(whole.index, whole.view))
    parts = whole.split(2)
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)


def test_each_batch_is_read_once_and_by_the_thread(codes, monkeypatch):
    readers = []
    original = codes.read

    def read(place, with_pixels):
        readers.append((threading.current_thread() is threading.main_thread(), with_pixels))
        return original(place, with_pixels)

    monkeypatch.setattr(codes, "read", read)
    batches = batches_of(codes, needs_pixels=lambda step: step >= 2)  # a warm-up of foresight
    found = [batches.at(step) for step in range(STEPS)]
    batches._thread.shutdown()
    assert [batch.pixels is not None for batch in found] == [False, False, True, True, True, True]
    assert readers == [
        (True, False),
        (False, False),
        (False, True),
        (False, True),
        (False, True),
        (False, True),
    ]


def test_nothing_is_read_for_what_is_in_memory(digits):
    place = partial(digits.place, seed=0, rank=0, world=1, batch_size=4)
    batches = Batches(digits, STEPS, place, lambda step: True)
    assert batches.at(0).pixels is not None
    assert batches._ahead is None


def test_an_image_that_is_gone_is_an_error_of_its_step(images, tmp_path, monkeypatch):
    codes = prepared(folder_config(images, tmp_path, views="center"), tmp_path)
    batches = batches_of(codes)
    batches.at(0)
    batches._ahead.read.result()

    def gone(dataset, rows, size):
        raise UserError("cannot be read")

    monkeypatch.setattr(pixels, "read_bases", gone)
    batches.at(1)  # was read before
    with pytest.raises(UserError, match="cannot be read"):
        batches.at(2)
