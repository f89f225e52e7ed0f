"""Every file becomes 8-bit RGB in one place, which opens the formats of its endings and no other."""

import os
import struct

import numpy as np
import pytest
from PIL import Image

from mirai_bench.data.images.crops import center_crop
from mirai_bench.data.images.decoding import UNREADABLE, read_image, to_rgb
from mirai_bench.data.images.image_sets import open_images
from tests.support.images import noise

GREY = np.random.default_rng(0).integers(0, 256, (9, 8), np.uint8)


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bits_are_the_same_picture_as_eight(tmp_path, kind):
    Image.fromarray(GREY).save(tmp_path / "8.png")
    levels = (GREY.astype(np.uint16) * 257).astype(kind)
    if kind == ">u2":
        header = f"P5 {GREY.shape[1]} {GREY.shape[0]} 65535\n".encode()
        (tmp_path / "16.ppm").write_bytes(header + levels.tobytes())
    else:
        Image.fromarray(levels).save(tmp_path / "16.png")
    eight, sixteen = (np.asarray(read_image(path)) for path in sorted(tmp_path.iterdir(), reverse=True))
    assert (eight == sixteen).all() and (eight[..., 0] == GREY).all()


def test_what_pillow_decodes_to_32_bits_is_of_16():
    levels = GREY.astype(np.int32) * 257
    assert (np.asarray(to_rgb(Image.fromarray(levels)))[..., 0] == GREY).all()
    for wrong in (levels - 65_536, levels + 65_536):
        with pytest.raises(ValueError, match="not of 16 bits"):
            to_rgb(Image.fromarray(wrong.astype(np.int32)))


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (128, 0), (129, 1), (32768, 128), (65535, 255)])
def test_sixteen_bits_are_rounded(tmp_path, level, expected):
    Image.fromarray(np.full((2, 2), level, np.uint16)).save(tmp_path / "x.png")
    assert (np.asarray(read_image(tmp_path / "x.png")) == expected).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "RGB"])
def test_other_modes_are_converted_as_before(tmp_path, mode):
    image = Image.fromarray(noise(1)[0]).convert(mode)
    image.save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "ppm"])
def test_every_ending_is_read_also_under_the_name_of_another(tmp_path, ending):
    image = Image.fromarray(noise(1, side=16)[0])
    image.save(tmp_path / f"x.{ending}")
    os.rename(tmp_path / f"x.{ending}", tmp_path / "x.jpeg")
    assert read_image(tmp_path / "x.jpeg").size == (16, 16)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
FLOAT = struct.pack("<4sI", b"II*\0", 8)


@pytest.mark.parametrize("content", [POSTSCRIPT, FLOAT, b"", b"GIF89a", b"<svg/>", b"%PDF", b"\0\0\1\0\1\0"])
def test_other_formats_are_no_images_whatever_their_name(tmp_path, monkeypatch, content):
    """Pillow would run Ghostscript for PostScript."""
    (tmp_path / "bin").mkdir()
    gs = tmp_path / "bin" / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent))
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UNREADABLE):
        read_image(tmp_path / "x.png")
    assert not (tmp_path / "ran").exists()


def test_grey_levels_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "x.tif")
    os.rename(tmp_path / "x.tif", tmp_path / "x.png")
    with pytest.raises(UNREADABLE):
        read_image(tmp_path / "x.png")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="no regular file"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (1, 178_000)])
def test_an_image_too_thin_to_be_enlarged_is_refused_by_its_size(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels are too thin"):
        center_crop(Image.new("RGB", size), 256)
    assert center_crop(Image.new("RGB", size), 2).shape == (2, 2, 3)


def test_samples_of_sixteen_bits_are_those_of_eight(tmp_path):
    for name, levels in (("8", GREY), ("16", GREY.astype(np.uint16) * 257)):
        (tmp_path / name).mkdir()
        Image.fromarray(levels).save(tmp_path / name / "x.png")
    eight, sixteen = (open_images(tmp_path / name).read(range(1)) for name in ("8", "16"))
    assert (eight == sixteen).all()
