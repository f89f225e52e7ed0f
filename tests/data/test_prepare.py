"""Preparation resumes after a kill, shares its work among processes, and names corrupt images."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mirai_bench.data.codes import images_of, open_codes
from mirai_bench.data.preparation import Worker, worker_device
from mirai_bench.data.prepare import main as prepare
from mirai_bench.data.shards import codes_folder
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.evaluate.reference_images import split_images
from mirai_bench.utils import cli
from mirai_bench.utils.errors import UserError
from tests.support.images import all_codes, folder_config, prepared, write_config

CPU = torch.device("cpu")


def test_prepared_split_labels_and_manifest(images, tmp_path):
    config = folder_config(images, tmp_path)
    codes = prepared(config, tmp_path)
    manifest = codes.manifest
    assert manifest["class_names"] == ["ant", "bee", "cat"]
    assert manifest["grid"] == [16, 16]
    assert manifest["views"] == 10
    assert manifest["tokenizer"] == "pixel-17"
    assert manifest["crop"].startswith("ten_crop")
    assert manifest["dataset"]["images"] == 21
    assert codes.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    heldout = open_codes(config, "heldout", CPU)
    assert (heldout.num_images, heldout.num_views) == (6, 1)
    pictures = np.concatenate([batch for batch, _ in images_of(config, "heldout")])
    assert torch.equal(load_tokenizer(config, CPU).encode(torch.from_numpy(pictures)), heldout.all()[0])
    shard = np.load(codes_folder(config) / "train" / "shards" / "00000.npy", mmap_mode="r")
    assert shard.dtype == np.uint16 and shard.shape == (5, 10, 256)


def test_preparation_goes_on_after_a_kill(images, tmp_path, monkeypatch, capsys):
    whole = all_codes(prepared(folder_config(images, tmp_path / "whole"), tmp_path))
    config = folder_config(images, tmp_path / "cut")
    arguments = [write_config(config, tmp_path / "cut.json"), "--shard-size", "5"]
    encode = Worker.encode
    seen = []

    def killed(self, shard):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(shard)
        return encode(self, shard)

    monkeypatch.setattr(Worker, "encode", killed)
    assert cli.run(prepare, arguments) == 130
    with pytest.raises(UserError, match="only partly prepared"):
        open_codes(config, "train", CPU)
    encoded = []

    def counted(self, shard):
        encoded.append((self.job.split, shard[0]))
        return encode(self, shard)

    monkeypatch.setattr(Worker, "encode", counted)
    assert cli.run(prepare, arguments) == 0
    assert [number for split, number in encoded if split == "train"] == [2, 3, 4]
    assert "encoding train: 11 images; 10 are done" in capsys.readouterr().err
    assert torch.equal(all_codes(open_codes(config, "train", CPU)), whole)
    encoded.clear()
    assert cli.run(prepare, arguments) == 0
    assert not encoded
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2, "stdout gets one line per split, and nothing else"


def test_ranks_share_the_work(images, tmp_path, monkeypatch):
    whole = all_codes(prepared(folder_config(images, tmp_path / "whole"), tmp_path))
    config = folder_config(images, tmp_path / "ranks")
    arguments = [write_config(config, tmp_path / "ranks.json"), "--shard-size", "5"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        with pytest.raises(UserError, match="prepare"):
            open_codes(config, "train", CPU)
        monkeypatch.setenv("RANK", rank)
        assert prepare(arguments) == 0
    assert torch.equal(all_codes(open_codes(config, "train", CPU)), whole)


@pytest.mark.slow  # three processes import torch, twice
def test_preparation_goes_on_after_kill_9(images, tmp_path):
    """The parent is killed once there are shards. Its two processes end too.

    The same command then writes what an uninterrupted one writes.
    """
    whole = all_codes(prepared(folder_config(images, tmp_path / "whole"), tmp_path))
    config = folder_config(images, tmp_path / "cut")
    file = write_config(config, tmp_path / "cut.json")
    command = [sys.executable, "-m", "mirai_bench.data.prepare", file]
    command += ["--shard-size", "1", "--processes", "2"]
    shards = codes_folder(config) / "train" / "shards"
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while len(list(shards.glob("*.json"))) < 2:
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):  # none is left of its group
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    (shards / "00020.npy.1.tmp").write_bytes(b"half a shard")
    done = len(list(shards.glob("*.json")))
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done == 21 or f"encoding train: {21 - done} images; {done} are done" in again.stderr
    assert torch.equal(all_codes(open_codes(config, "train", CPU)), whole)
    assert not list(shards.glob("*.tmp"))


@pytest.mark.slow  # two more processes import torch
def test_processes_share_the_work(images, tmp_path, capfd):
    whole = all_codes(prepared(folder_config(images, tmp_path / "whole"), tmp_path))
    pool = prepared(folder_config(images, tmp_path / "pool"), tmp_path, "--processes", "2")
    assert torch.equal(all_codes(pool), whole)
    assert "Traceback" not in capfd.readouterr().err


def test_processes_take_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        devices = [worker_device(name, number) for number in range(4)]
        assert [device.index for device in devices] == [1, 2, 0, 1]
    assert worker_device("cpu", 5) == CPU


def test_corrupt_images_are_named_counted_and_skipped(damaged, capsys):
    config = folder_config(damaged / "images", damaged / "runs", classes=2, views="flip")
    codes = prepared(config, damaged)
    out = capsys.readouterr()
    assert "2.jpg" in out.err and "4.jpg" in out.err and json.loads(out.out)["skipped"] == 2
    assert codes.num_images == 8 and codes.labels.tolist() == [0] * 4 + [1] * 4
    assert [Path(image["image"]).name for image in codes.manifest["skipped"]] == ["2.jpg", "4.jpg"]
    batch = codes.batch(seed=0, step=0, rank=0, world=1, batch_size=8)
    tokenizer = load_tokenizer(config, CPU)
    assert torch.equal(
        tokenizer.encode(codes.pixels(batch.index, batch.view)), batch.tokens
    )  # rows still fit their images


def test_strict_ends_at_a_corrupt_image(damaged, capsys):
    config = folder_config(damaged / "images", damaged / "runs", classes=2)
    arguments = [write_config(config, damaged / "run.json")]
    assert cli.run(prepare, [*arguments, "--strict"]) == 2
    assert "2.jpg" in capsys.readouterr().err
    assert cli.run(prepare, arguments) == 0
    assert cli.run(prepare, [*arguments, "--strict"]) == 2, "what was skipped before is not forgotten"
    assert "2 images were skipped before" in capsys.readouterr().err


def test_an_unreachable_image_is_not_a_corrupt_one(damaged, capsys):
    (damaged / "images" / "b" / "5.jpg").symlink_to(damaged / "gone.jpg")
    config = folder_config(damaged / "images", damaged / "runs", classes=2)
    assert cli.run(prepare, [write_config(config, damaged / "run.json")]) == 2
    assert "5.jpg" in capsys.readouterr().err


def test_the_reference_is_of_the_images_that_preparation_could_read(damaged, capsys):
    config = folder_config(damaged / "images", damaged / "runs", classes=2, views="flip")
    with pytest.raises(UserError, match=r"2\.jpg cannot be read"):
        list(split_images(config, "train").batches)
    prepared(config, damaged)
    found = split_images(config, "train")
    assert sum(len(batch) for batch in found.batches) == found.n == 8
    assert found.identity["left_out"] == 2
    assert "is of 8 images: 2 cannot be read" in capsys.readouterr().err


# ---- what is prepared is checked when it is opened


@pytest.fixture
def ready(images, tmp_path):
    config = folder_config(images, tmp_path)
    prepared(config, tmp_path)
    return config


@pytest.mark.parametrize("name", ["shards/00001.npy", "labels.npy", "rows.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "lose"])
def test_damaged_codes_are_refused_and_made_again(ready, tmp_path, name, damage):
    folder = codes_folder(ready) / "train"
    before = all_codes(open_codes(ready, "train", CPU))
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    changed = {"flip": content, "cut": content[:-9], "empty": b""}
    if damage == "lose":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(changed[damage])
    check = [*words(ready, tmp_path), "--check"]
    for use in (lambda: open_codes(ready, "train", CPU), lambda: prepare(check)):
        with pytest.raises(UserError, match=f"{Path(name).name} is damaged.*prepare the codes again"):
            use()
    prepare(words(ready, tmp_path))
    assert torch.equal(all_codes(open_codes(ready, "train", CPU)), before)
    assert prepare([*words(ready, tmp_path), "--check"]) == 0


def words(config, tmp_path):
    return [write_config(config, tmp_path / "run.json"), "--shard-size", "5"]


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"rows": 3}', '{"sha256": 3}'])
def test_a_damaged_note_of_a_shard_is_made_again(ready, tmp_path, content):
    note = codes_folder(ready) / "train" / "shards" / "00001.json"
    before = note.read_text()
    note.write_text(content)
    prepare(words(ready, tmp_path))
    assert note.read_text() == before


def test_codes_of_earlier_versions_have_no_hashes_and_are_read(ready):
    file = codes_folder(ready) / "train" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"], manifest["digest"]
    file.write_text(json.dumps(manifest))
    assert open_codes(ready, "train", CPU).num_images == 21


def test_a_held_out_split_that_was_only_begun_is_known_before_training(ready):
    (codes_folder(ready) / "heldout" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"\(heldout\) are only partly prepared"):
        Evaluator(ready, CPU).open()
