"""Folders of class/image: what is left out is said, and the identity follows names and contents."""

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirai_bench.data.images import datasets, listing
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.images.listing import content_hash, file_digests, list_images
from mirai_bench.utils.errors import UserError
from tests.support.images import folder_config, noise, prepared


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(1, side=16, seed=seed)[0]).save(path)


def opened(root: Path, classes: int = 2):
    datasets.open_folder.cache_clear()  # as in another process
    return open_dataset(folder_config(root, root.parent / "runs", classes=classes, views="center"), "train")


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate(("ant/0.bmp", "ant/1.bmp", "bee/0.bmp")):
        picture(tmp_path / "images" / name, number)
    return tmp_path / "images"


# ---- what is left out


def test_what_is_left_out_is_counted_said_and_in_the_manifest(images, tmp_path, capsys):
    for name in (
        "ant/a.tif",
        "ant/b.TIF",
        "bee/a.gif",
        "bee/deeper/0.png",
        "bee/deeper/x/1.png",
        "ant/.0.png",
    ):
        picture(images / name)
    (images / "ant" / "notes").touch()
    os.mkfifo(images / "ant" / "pipe.png")
    expected = {"*.tif": 2, "*.gif": 1, "in a deeper folder": 2, "hidden": 1, "without an ending": 1}
    expected |= {"no regular file": 1}
    datasets.open_folder.cache_clear()
    codes = prepared(folder_config(images, tmp_path / "runs", classes=2, views="center"), tmp_path)
    out = capsys.readouterr()
    assert codes.manifest["left_out"] == expected
    assert "1 *.gif, 2 *.tif, 1 hidden, 2 in a deeper folder" in out.err
    assert '"*.tif": 2' in out.out
    assert codes.num_images == 3


def test_an_empty_class_is_named(images, tmp_path, capsys):
    (images / "cat").mkdir()
    assert opened(images, classes=3).empty == ("cat",)
    assert "no image in 1 classes, which a model never sees: cat" in capsys.readouterr().err


@pytest.mark.parametrize(("names", "said"), [(range(12), True), (range(10), False), (["07", "08"], False)])
def test_the_order_of_numbered_folders_is_said_if_it_is_not_that_of_the_numbers(
    tmp_path, capsys, names, said
):
    for name in names:
        picture(tmp_path / "images" / str(name) / "0.png")
    opened(tmp_path / "images", classes=len(names))
    assert ("class 2 is the folder '10'" in capsys.readouterr().err) == said


def test_a_name_that_is_not_utf8_is_a_name(images):
    os.rename(os.fsencode(images / "ant" / "0.bmp"), os.fsencode(images / "ant") + b"/ma\xf1ana.bmp")
    assert len(opened(images)) == 3


# ---- contents


def test_other_pictures_of_the_same_names_and_sizes_are_other_data(images):
    before = opened(images).sha256
    assert opened(images).sha256 == before
    size = (images / "ant" / "0.bmp").stat().st_size
    picture(images / "ant" / "0.bmp", seed=9)
    assert (images / "ant" / "0.bmp").stat().st_size == size
    assert opened(images).sha256 != before
    picture(images / "ant" / "0.bmp", seed=0)
    assert opened(images).sha256 == before


@pytest.fixture
def many(images, monkeypatch):
    """Returns the arguments of `file_digests`, which keeps digests, and counts the files that are read."""
    monkeypatch.setattr(listing, "WORTH_KEEPING", 1)
    read = Counter()
    real = listing._sha256
    monkeypatch.setattr(listing, "_sha256", lambda path: read.update([path]) or real(path))

    def look(runs=None):
        read.clear()
        files = list_images(images, ["ant", "bee"]).files
        digests = file_digests(images, files, runs or images.parent / "runs")
        return content_hash(images, files, digests), sum(read.values())

    return look


@pytest.mark.parametrize("restore_times", [False, True])
def test_only_what_has_changed_is_read_again(many, images, restore_times):
    first, count = many()
    assert count == 3
    assert many() == (first, 0)
    file = images / "bee" / "0.bmp"
    facts = file.stat()
    picture(file, seed=9)  # of the same size
    if restore_times:
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second, count = many()
    assert second != first and count == 1


def test_a_file_that_is_replaced_by_another_of_its_size_and_times_is_seen(many, images):
    first, _ = many()
    file = images / "bee" / "0.bmp"
    facts = file.stat()
    picture(images.parent / "other.bmp", seed=9)
    os.utime(images.parent / "other.bmp", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(images.parent / "other.bmp", file)
    assert many()[0] != first


def test_digests_are_kept_in_the_runs_where_the_images_cannot_be_written(many, images, monkeypatch):
    real = listing.write_bytes

    def refuses(path, content):
        if path.parent == images:
            raise PermissionError(13, "Permission denied")
        real(path, content)

    monkeypatch.setattr(listing, "write_bytes", refuses)
    first, _ = many()
    assert not (images / listing.DIGESTS).exists()
    assert many() == (first, 0)


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"a\tb\n", b"\xff\n", b"x" * 9999])
def test_damaged_digests_are_made_again(many, images, content):
    first, _ = many()
    (images / listing.DIGESTS).write_bytes(content)
    assert many() == (first, 3)


def test_a_file_that_cannot_be_read_is_named(many, images):
    (images / "bee" / "1.bmp").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"bee/1\.bmp could not be opened"):
        many()


@pytest.mark.slow  # 100,000 files
def test_a_second_look_at_many_files_is_quick(tmp_path, figures):
    (tmp_path / "a").mkdir()
    for number in range(100_000):
        (tmp_path / "a" / f"{number:06d}.png").write_bytes(b"%d" % number)
    seconds = []
    hashes = set()
    for _ in range(2):
        start = time.process_time()  # not wall-clock: other work may share the machine
        files = list_images(tmp_path, ["a"]).files
        hashes.add(content_hash(tmp_path, files, file_digests(tmp_path, files, tmp_path)))
        seconds.append(time.process_time() - start)
    assert len(hashes) == 1
    figures(f"100,000 files: {seconds[0]:.1f} s of CPU time at first, {seconds[1]:.1f} s the second time")
    assert seconds[1] < 2.0, np.round(seconds, 2)
