"""Images → codes → batches: splits, crops, preparation, and batches as a pure function of (seed, step)."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mirai_bench.config.load import build_run, merge
from mirai_bench.data import prepare as prepare_module
from mirai_bench.data.codes import Codes, has_heldout, images_of, open_codes
from mirai_bench.data.images.crops import all_views, base_sizes, center_crop
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.pixels import Pixels
from mirai_bench.data.prepare import main as prepare
from mirai_bench.data.shards import Joined, codes_folder
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.utils import cli
from mirai_bench.utils.errors import UserError

CPU = torch.device("cpu")
DIGITS_TRAIN_SHA256 = "f61836c3392b5462e7e91c7e39b2cb05e1f37fe6868db91a73884ee811e05343"


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


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train: 3 classes of 7 images of several sizes and formats; val: 2 images of each class."""
    root, rng = tmp_path_factory.mktemp("toys"), np.random.default_rng(0)
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


def write_config(config, path: Path) -> str:
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return str(path)


def prepared(config, tmp_path, *options):
    assert prepare([write_config(config, tmp_path / "run.json"), "--shard-size", "5", *options]) == 0
    return open_codes(config, "train", CPU)


def all_codes(codes: Codes) -> torch.Tensor:
    return torch.from_numpy(codes._codes.take(np.arange(codes.num_images)).astype(np.int64))


# --- digits and batches


def test_digits_split_is_fixed_and_stratified():
    config = run_config()
    train, heldout = (open_dataset(config, split) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (1500, 297)
    assert train.sha256 == DIGITS_TRAIN_SHA256
    total = np.bincount(np.concatenate([train.labels, heldout.labels]))
    share = np.bincount(heldout.labels)
    assert np.abs(share - total * 297 / 1797).max() < 1
    assert (
        len({image.tobytes() for image in heldout.images} & {image.tobytes() for image in train.images}) <= 1
    )


def test_digits_codes_are_the_grey_levels():
    config = run_config()
    codes = open_codes(config, "heldout", CPU)
    tokens, labels = codes.all()
    assert tokens.shape == (297, 64) and labels.shape == (297,) and tokens.max() == 16 and tokens.min() == 0
    pictures = np.concatenate([batch for batch, _ in images_of(config, "heldout")])
    assert torch.equal(load_tokenizer(config.tokenizer, CPU).decode(tokens), torch.from_numpy(pictures))


@pytest.fixture(scope="module")
def digits():
    return open_codes(run_config({"data": {"views": "flip"}}), "train", CPU)


def test_batch_is_a_pure_function_of_seed_and_step(digits):
    def ask(step, seed=0, rank=0, world=1):
        return digits.batch(seed=seed, step=step, rank=rank, world=world, batch_size=32)

    first = ask(50)
    for step in (3, 200, 7):
        ask(step)
    again = ask(50)
    for field in ("tokens", "labels", "index", "view"):
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert getattr(first, field).dtype == torch.long
    assert torch.equal(first.labels, digits.labels[first.index])
    assert not torch.equal(first.index, ask(50, seed=1).index)
    for world in (2, 4, 32):
        parts = [ask(50, rank=rank, world=world) for rank in range(world)]
        assert torch.equal(torch.cat([part.tokens for part in parts]), first.tokens)
        assert torch.equal(torch.cat([part.view for part in parts]), first.view)


def test_an_epoch_sees_each_image_at_most_once(digits):
    per_epoch = digits.steps_per_epoch(64)
    assert per_epoch == 1500 // 64
    epochs = [
        torch.cat(
            [
                digits.batch(seed=0, step=e * per_epoch + s, rank=0, world=1, batch_size=64).index
                for s in range(per_epoch)
            ]
        )
        for e in range(2)
    ]
    assert all(len(epoch.unique()) == per_epoch * 64 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_the_view_depends_on_seed_epoch_and_image_alone(digits):
    def views(batch_size):
        seen = {}
        for step in range(digits.steps_per_epoch(batch_size)):
            batch = digits.batch(seed=3, step=step, rank=0, world=1, batch_size=batch_size)
            seen |= dict(zip(batch.index.tolist(), batch.view.tolist(), strict=True))
        return seen

    small, large = views(30), views(500)
    assert small == large and len(small) == 1500
    assert 600 < sum(small.values()) < 900


def test_streamed_codes_equal_resident_codes():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 65536, (n, 3, 4)).astype(np.uint16) for n in (5, 1, 7)]
    parts[0][0, 0, 0] = 65535
    labels = np.arange(13)
    pixels = Pixels(lambda: None, labels, run_config().data, CPU)
    resident, streamed = (
        Codes(Joined(parts), labels, pixels, {}, CPU, resident=kept) for kept in (True, False)
    )
    for step in (0, 1, 2, 9, 10, 4):
        asked = {"seed": 1, "step": step, "rank": 1, "world": 2, "batch_size": 6}
        a, b = resident.batch(**asked), streamed.batch(**asked)
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.view, b.view)
    assert torch.equal(resident.all()[0], streamed.all()[0]) and resident.all()[0].max() <= 65535
    assert resident.all()[0][0, 0] == 65535


def test_a_batch_larger_than_the_data_is_refused(digits):
    with pytest.raises(UserError, match=r"batch_size is 2000.*1500"):
        digits.steps_per_epoch(2000)


# --- views


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
    tokenizer = load_tokenizer(config.tokenizer, CPU)
    index = torch.arange(codes.num_images).repeat_interleave(codes.num_views)
    view = torch.arange(codes.num_views).repeat(codes.num_images)
    pixels = codes.pixels(index, view)
    assert pixels.shape == (21 * config.data.num_views, 16, 16, 3) and pixels.dtype == torch.uint8
    assert torch.equal(tokenizer.encode(pixels), all_codes(codes).flatten(0, 1))
    batch = codes.batch(seed=0, step=1, rank=0, world=1, batch_size=8)
    assert torch.equal(tokenizer.encode(codes.pixels(batch.index, batch.view)), batch.tokens)


def test_digits_views_are_of_the_same_crop(digits):
    tokenizer = load_tokenizer(run_config().tokenizer, CPU)
    batch = digits.batch(seed=0, step=0, rank=0, world=1, batch_size=200)
    assert torch.equal(tokenizer.encode(digits.pixels(batch.index, batch.view)), batch.tokens)
    ones = torch.ones_like(batch.view)
    assert torch.equal(digits.pixels(batch.index, ones), digits.pixels(batch.index, 0 * ones).flip(2))


# --- preparation


def test_prepared_split_labels_and_manifest(images, tmp_path):
    config = folder_config(images, tmp_path)
    codes = prepared(config, tmp_path)
    manifest = codes.manifest
    assert (
        manifest["class_names"] == ["ant", "bee", "cat"]
        and manifest["grid"] == [16, 16]
        and manifest["views"] == 10
    )
    assert (
        manifest["tokenizer"] == "pixel-17"
        and manifest["crop"].startswith("ten_crop")
        and manifest["dataset"]["images"] == 21
    )
    assert codes.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    heldout = open_codes(config, "heldout", CPU)
    assert (heldout.num_images, heldout.num_views) == (6, 1)
    pictures = np.concatenate([batch for batch, _ in images_of(config, "heldout")])
    assert torch.equal(
        load_tokenizer(config.tokenizer, CPU).encode(torch.from_numpy(pictures)), heldout.all()[0]
    )
    shard = np.load(codes_folder(config) / "train" / "shards" / "00000.npy", mmap_mode="r")
    assert shard.dtype == np.uint16 and shard.shape == (5, 10, 256)


def test_preparation_goes_on_after_a_kill(images, tmp_path, monkeypatch, capsys):
    whole = all_codes(prepared(folder_config(images, tmp_path / "whole"), tmp_path))
    config, encode = folder_config(images, tmp_path / "cut"), prepare_module.Worker.shard
    arguments = [write_config(config, tmp_path / "cut.json"), "--shard-size", "5"]
    seen = []

    def killed(self, number, part):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(number)
        return encode(self, number, part)

    monkeypatch.setattr(prepare_module.Worker, "shard", killed)
    assert cli.run(prepare, arguments) == 130
    with pytest.raises(UserError, match="only partly prepared"):
        open_codes(config, "train", CPU)
    encoded = []

    def counted(self, number, part):
        encoded.append((self.job.split, number))
        return encode(self, number, part)

    monkeypatch.setattr(prepare_module.Worker, "shard", counted)
    assert cli.run(prepare, arguments) == 0
    assert [number for split, number in encoded if split == "train"] == [2, 3, 4]
    assert "encoding train: 11 images; 10 are done" in capsys.readouterr().err
    assert torch.equal(all_codes(open_codes(config, "train", CPU)), whole)
    encoded.clear()
    assert cli.run(prepare, arguments) == 0 and not encoded
    assert len(capsys.readouterr().out.splitlines()) == 2  # one line a split, nothing else, on stdout


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
    """SIGKILL of the parent once shards lie there: its two processes end too, and the same command makes what an unbroken one makes."""
    whole = all_codes(prepared(folder_config(images, tmp_path / "whole"), tmp_path))
    config = folder_config(images, tmp_path / "cut")
    command = [sys.executable, "-m", "mirai_bench.data.prepare", write_config(config, tmp_path / "cut.json")]
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
    assert torch.equal(all_codes(open_codes(config, "train", CPU)), whole) and not list(shards.glob("*.tmp"))


def test_progress_counts_what_an_item_weighs(monkeypatch, capsys):
    clock = iter([0, 10, 40, 50])
    monkeypatch.setattr(cli, "monotonic", lambda: next(clock))
    assert list(cli.progress([100, 100, 50], "encoding", 1250, "images", 1000, weigh=int)) == [100, 100, 50]
    assert capsys.readouterr().err == "encoding: 1200/1250 images, 5.0 images/s, 10 s left\n"


@pytest.mark.slow  # two more processes import torch
def test_processes_share_the_work(images, tmp_path, capfd):
    whole = all_codes(prepared(folder_config(images, tmp_path / "whole"), tmp_path))
    assert torch.equal(
        all_codes(prepared(folder_config(images, tmp_path / "pool"), tmp_path, "--processes", "2")), whole
    )
    assert "Traceback" not in capfd.readouterr().err


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


def test_corrupt_images_are_named_counted_and_skipped(damaged, capsys):
    config = folder_config(damaged / "images", damaged / "runs", classes=2, views="flip")
    codes = prepared(config, damaged)
    out = capsys.readouterr()
    assert "2.jpg" in out.err and "4.jpg" in out.err and json.loads(out.out)["skipped"] == 2
    assert codes.num_images == 8 and codes.labels.tolist() == [0] * 4 + [1] * 4
    assert [Path(image["image"]).name for image in codes.manifest["skipped"]] == ["2.jpg", "4.jpg"]
    batch = codes.batch(seed=0, step=0, rank=0, world=1, batch_size=8)
    tokenizer = load_tokenizer(config.tokenizer, CPU)
    assert torch.equal(
        tokenizer.encode(codes.pixels(batch.index, batch.view)), batch.tokens
    )  # rows still fit their images


def test_strict_ends_at_a_corrupt_image(damaged, capsys):
    config = folder_config(damaged / "images", damaged / "runs", classes=2)
    arguments = [write_config(config, damaged / "run.json")]
    assert cli.run(prepare, [*arguments, "--strict"]) == 2
    assert "2.jpg" in capsys.readouterr().err
    assert cli.run(prepare, arguments) == 0
    assert cli.run(prepare, [*arguments, "--strict"]) == 2  # what an earlier run skipped is not forgotten
    assert "2 images were skipped before" in capsys.readouterr().err


def test_an_unreachable_image_is_not_a_corrupt_one(damaged, capsys):
    (damaged / "images" / "b" / "5.jpg").symlink_to(damaged / "gone.jpg")
    config = folder_config(damaged / "images", damaged / "runs", classes=2)
    assert cli.run(prepare, [write_config(config, damaged / "run.json")]) == 2
    assert "5.jpg" in capsys.readouterr().err


DIFFERENCES = {
    "crop": ({"data": {"crop_ranges": [1.25]}}, "crop is 'ten_crop"),
    "views": ({"data": {"views": "flip"}}, "crop is"),
    "grid": ({"data": {"image_size": 24}}, "image_size is 16, but the config asks for 24"),
    "vocabulary": ({"tokenizer": {"vocabulary": 33}}, "vocabulary is 17, but the config asks for 33"),
    "name": ({"data": {"name": "others"}}, "data is 'toys', but the config asks for 'others'"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_codes_of_another_config_are_refused_by_name(images, tmp_path, name):
    over, message = DIFFERENCES[name]
    config = folder_config(images, tmp_path)
    prepared(config, tmp_path)
    fields = merge(
        config.model_dump(mode="json"), merge(over, {"machine": {"codes": str(codes_folder(config))}})
    )
    with pytest.raises(UserError, match=message):
        open_codes(build_run(fields, "test"), "train", CPU)
    with pytest.raises(UserError, match=message):
        prepare([write_config(build_run(fields, "test"), tmp_path / "other.json")])


def test_pixels_of_other_images_are_refused(images, damaged):
    config = folder_config(images, damaged)
    prepared(config, damaged)
    fields = merge(
        config.model_dump(mode="json"),
        {"machine": {"data": str(damaged / "three"), "codes": str(codes_folder(config))}},
    )
    for name in ("ant", "bee", "cat"):
        (damaged / "three" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(damaged / "three" / name / "x.png")
    other = open_codes(build_run(fields, "test"), "train", CPU)
    with pytest.raises(UserError, match="sha256"):
        other.pixels(torch.tensor([0]), torch.tensor([0]))


def test_a_damaged_shard_is_named(images, tmp_path):
    config = folder_config(images, tmp_path)
    prepared(config, tmp_path)
    (codes_folder(config) / "train" / "shards" / "00002.npy").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        open_codes(config, "train", CPU)


# --- data sets


def cifar_config(path: Path):
    fields = {"dataset": "cifar10", "image_size": 32, "views": "flip"}
    return run_config({"data": fields, "machine": {"data": str(path), "runs": str(path.parent / "runs")}})


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """The same 50 + 10 images as cifar10.npz and as cifar-10-batches-py."""
    root, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 32, 32, 3), np.uint8), np.arange(60, dtype=np.uint8) % 10
    np.savez(root / "cifar10.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    (root / "python" / "cifar-10-batches-py").mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = slice(10 * i, 10 * i + 10)
        batch = {
            b"data": x[rows].transpose(0, 3, 1, 2).reshape(10, -1),
            b"labels": y[rows].tolist(),
            b"batch_label": b"one",
        }
        (root / "python" / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=4))
    return root


def test_both_forms_of_cifar10_are_the_same_data(cifar, tmp_path):
    places = ["cifar10.npz", ".", "python", "python/cifar-10-batches-py"]
    for split, count in (("train", 50), ("heldout", 10)):
        found = [open_dataset(cifar_config(cifar / place), split) for place in places]
        assert len({dataset.sha256 for dataset in found}) == 1
        assert len(found[0]) == count and found[0].class_names[3] == "cat"
    codes = prepared(cifar_config(cifar / "python"), tmp_path)
    tokenizer = load_tokenizer(run_config().tokenizer, CPU)
    batch = codes.batch(seed=0, step=2, rank=0, world=1, batch_size=8)
    assert torch.equal(tokenizer.encode(codes.pixels(batch.index, batch.view)), batch.tokens)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_a_file_that_is_no_cifar10_is_refused(tmp_path, content):
    (tmp_path / "cifar10.npz").write_bytes(content)
    with pytest.raises(UserError, match="holds no CIFAR-10") as refusal:
        open_dataset(cifar_config(tmp_path / "cifar10.npz"), "train")
    assert "unsafely" not in str(refusal.value)


def test_images_of_another_shape_are_not_cifar10(tmp_path):
    arrays = {"x_train": np.zeros((2, 28, 28, 3), np.uint8), "y_train": np.zeros(2, np.uint8)}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(UserError, match=r"\(2, 28, 28, 3\)"):
        open_dataset(cifar_config(tmp_path / "cifar10.npz"), "train")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Trap()}, protocol=4))
    with pytest.raises(UserError, match="refused"):
        open_dataset(cifar_config(tmp_path), "train")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": {"data": "nowhere"}}, "does not exist"),
        ({"machine": {"data": None}}, r"--set machine\.data=PATH"),
        ({"data": {"classes": 4}}, "data.classes is 4, but toys has 3"),
    ],
)
def test_missing_images_are_explained(images, tmp_path, change, message):
    fields = merge(folder_config(images, tmp_path).model_dump(mode="json"), change)
    with pytest.raises(UserError, match=message):
        open_dataset(build_run(fields, "test"), "train")


def test_a_folder_without_val_is_all_training(images, tmp_path):
    config = folder_config(images / "train", tmp_path)
    assert prepared(config, tmp_path).num_images == 21 and not has_heldout(config)
    with pytest.raises(UserError, match="no class folders"):
        open_dataset(config, "heldout")
    both = folder_config(images, tmp_path / "both")
    prepared(both, tmp_path)
    assert has_heldout(both) and has_heldout(run_config())


def test_a_cell_of_another_data_name_is_another_experiment(images, tmp_path):
    a, b = (folder_config(images, tmp_path, name=name) for name in ("toys", "others"))
    assert a.fingerprint() != b.fingerprint()
