"""Sets of images: .npz files and folders are read and written, and broken ones are refused."""

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from mirai_bench.data.images.image_sets import NpzImages, NpzWriter, open_images, parts, resized
from mirai_bench.evaluate.reference_images import path_images
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
    with pytest.raises(UserError, match=r"arr_0\.npy has 1,848 bytes, too few for uint8 \(10, 8, 8, 3\)"):
        open_images(tmp_path / "samples.npz")


def npy(shape, descr="|u1", content=b"", length=None):
    """Returns an .npy stream whose header may lie."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length or len(header)) + header + content


IMAGES = npy((3, 8, 8, 3), content=bytes(576))
LARGE_HEADER = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**30) + b" " * 100_000


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"arr_0.npy": npy((10**12, 8, 8, 3), content=bytes(200))}, "too few for uint8"),
        ({"arr_0.npy": IMAGES, "arr_1.npy": npy((10**12,), "<i8")}, "too few for int64"),
        ({"arr_0.npy": npy((-1, 8, 8, 3), content=bytes(200))}, "a shape of"),
        ({"arr_0.npy": LARGE_HEADER}, "a header of 1,073,741,824 bytes"),
        ({"arr_0.npy": npy((3,), "|O")}, "it holds pickled objects"),
        ({"arr_0.npy": b""}, "cannot be read safely|can be read safely"),
        ({"arr_0.npy": npy((3,), length=9)}, "can be read safely"),
        ({f"a{i}.npy": npy((1,), content=b"x") for i in range(101)}, "it has 101 members"),
        ({"x.npy": IMAGES}, "holds no images"),
    ],
)
def test_headers_that_lie_are_refused_in_a_short_message(tmp_path, members, message):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=message) as refused:
        open_images(path)
    assert len(str(refused.value)) < 600


def test_an_encrypted_file_is_refused_and_a_name_without_an_ending_is_read(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0", IMAGES)
    assert open_images(path).read(range(3)).shape == (3, 8, 8, 3)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        open_images(path)


@pytest.mark.parametrize(
    "labels", [np.zeros(2, int), np.zeros(3), np.zeros((3, 1), int), np.array(["a", "b", "c"])]
)
def test_labels_that_cannot_be_used_are_said(tmp_path, labels, capsys):
    np.savez(tmp_path / "x.npz", arr_0=noise(3), arr_1=labels)
    assert open_images(tmp_path / "x.npz").labels is None
    assert "there is no class accuracy: arr_1 is" in capsys.readouterr().err


def test_hidden_copies_are_no_samples(tmp_path, capsys):
    for name in ("a.png", "b/c.png", ".ipynb_checkpoints/a.png", "b/._c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(1)[0]).save(tmp_path / name)
    assert len(open_images(tmp_path)) == 2
    assert "2 hidden images are left out" in capsys.readouterr().err


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
