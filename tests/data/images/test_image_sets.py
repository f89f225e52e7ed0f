"""Sets of images: .npz files and folders are read and written, and broken ones are refused."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from mirai_bench.data.images.image_sets import NpzImages, NpzWriter, open_images, parts, resized
from mirai_bench.evaluate.references import path_images
from mirai_bench.utils.errors import UserError
from tests.support.images import noise


def test_what_is_written_is_read(tmp_path):
    images = noise(1203)
    labels = np.arange(1203) % 10
    path = tmp_path / "samples.npz"
    writer = NpzWriter(path, 1203)
    for rows in np.split(np.arange(1203), [5, 800]):
        assert not path.exists()
        writer.add(images[rows], labels[rows])
    writer.close()
    with np.load(path, allow_pickle=False) as arrays:
        assert (arrays["arr_0"] == images).all() and (arrays["arr_1"] == labels).all()
    found = open_images(path)
    assert (np.concatenate(list(parts(found))) == images).all()
    assert (found.labels == labels).all()
    assert (found.read(range(700, 703)) == images[700:703]).all()
    assert (found.read(range(2)) == images[:2]).all(), "reading goes back, too"


def test_a_file_that_is_not_finished_does_not_appear(tmp_path):
    writer = NpzWriter(tmp_path / "samples.npz", 10)
    writer.add(noise(4), None)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    with pytest.raises(AssertionError, match="as many images as announced"):
        writer.close()
    assert not (tmp_path / "samples.npz").exists()


def test_compressed_files_are_read_too(tmp_path):
    np.savez_compressed(tmp_path / "samples.npz", arr_0=noise(50))
    assert (NpzImages(tmp_path / "samples.npz").read(range(20, 50)) == noise(50)[20:]).all()


def test_a_truncated_array_is_refused(tmp_path):
    whole = io.BytesIO()
    np.lib.format.write_array(whole, noise(10))
    with zipfile.ZipFile(tmp_path / "samples.npz", "w") as archive:
        archive.writestr("arr_0.npy", whole.getvalue()[:-200])
    with pytest.raises(UserError, match="ends within image 8: it is truncated"):
        list(parts(open_images(tmp_path / "samples.npz")))


def test_folders_that_cannot_be_evaluated_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        open_images(tmp_path)
    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    Image.fromarray(noise(1, side=9)[0]).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b.png is 9x9 pixels and a.png is 8x8"):
        path_images(tmp_path)[0].__next__()
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b.png cannot be read as an image"):
        path_images(tmp_path)[0].__next__()


def test_resize_rule():
    """Pillow's bicubic filter changes nothing at the same size and averages where it shrinks."""
    images = noise(3, side=32)
    assert resized(images, 0) is images and resized(images, 32) is images
    stripes = np.zeros((1, 32, 32, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = resized(stripes, 8)
    assert small.shape == (1, 8, 8, 3)
    assert small.dtype == np.uint8
    assert abs(small[:, :, 2:-2].astype(float) - 127.5).max() < 3
