"""Data sets: splits, the forms of CIFAR-10 and Fashion-MNIST, and files that are refused."""

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mirai_bench.config.load import build_run, merge
from mirai_bench.data.codes import has_heldout_codes, open_codes
from mirai_bench.data.images.datasets import has_heldout_images, open_dataset
from mirai_bench.data.shards import codes_folder
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.model import cost
from mirai_bench.utils.errors import UserError
from tests.support.images import folder_config, prepared, run_config

CPU = torch.device("cpu")


DIGITS_TRAIN_SHA256 = "f61836c3392b5462e7e91c7e39b2cb05e1f37fe6868db91a73884ee811e05343"


def test_digits_split_is_fixed_and_stratified():
    config = run_config()
    train, heldout = (open_dataset(config, split) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (1500, 297)
    assert train.sha256 == DIGITS_TRAIN_SHA256
    total = np.bincount(np.concatenate([train.labels, heldout.labels]))
    share = np.bincount(heldout.labels)
    assert np.abs(share - total * 297 / 1797).max() < 1
    seen = {image.tobytes() for image in train.images}
    assert len(seen & {image.tobytes() for image in heldout.images}) <= 1


def cifar_config(path: Path, subset: int | None = 50):
    fields = {"dataset": "cifar10", "image_size": 32, "views": "flip", "subset": subset}
    machine = {"data": str(path), "runs": str(path.parent / "runs")}
    return run_config({"data": fields, "machine": machine})


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """The same 50 + 10 images as cifar10.npz and as cifar-10-batches-py."""
    root = tmp_path_factory.mktemp("cifar")
    x = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    y = np.arange(60, dtype=np.uint8) % 10
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
    tokenizer = load_tokenizer(run_config(), CPU)
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
    ("labels", "message"),
    [
        (np.array([3, 10], np.uint8), "the label 10"),
        (np.zeros(2), "labels float64"),
        (np.zeros(3), "3 labels"),
    ],
)
def test_labels_of_no_class_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "cifar10.npz", x_train=np.zeros((2, 32, 32, 3), np.uint8), y_train=labels)
    with pytest.raises(UserError, match=message):
        open_dataset(cifar_config(tmp_path), "train")


def test_a_subset_is_another_experiment_and_never_taken_for_the_whole(cifar, tmp_path):
    path = cifar / "cifar10.npz"
    subset, other, whole = (cifar_config(path, size) for size in (50, 40, None))
    assert len({subset.fingerprint(), other.fingerprint(), whole.fingerprint()}) == 3
    assert "subset" not in whole.identity()["data"], "earlier fingerprints stay"
    assert cost.num_images(subset) == 50 and cost.num_images(whole) == 50_000
    for config in (other, whole):
        with pytest.raises(UserError, match=r"holds 50 images \(train\), but data\.subset: (40|null) means"):
            open_dataset(config, "train")
    with pytest.raises(UserError, match=r"holds 10 images \(heldout\), .* means 10,000"):
        open_dataset(whole, "heldout")
    # Codes that were prepared from a subset are not those of the whole data set either.
    codes = tmp_path / "codes"
    at_codes = subset.with_machine(codes=codes)
    prepared(at_codes, tmp_path)
    manifest = json.loads((codes / "train" / "manifest.json").read_text())
    assert manifest["subset"] == 50
    with pytest.raises(UserError, match=r"manifest\.json holds 50 images"):
        open_codes(whole.with_machine(codes=codes), "train", CPU)
    assert codes_folder(subset) != codes_folder(whole)
    with pytest.raises(UserError, match=r"data\.subset is 5 with dataset: digits"):
        run_config({"data": {"subset": 5}})


# ---- Fashion-MNIST


def fashion_config(path: Path):
    fields = {"dataset": "fashion_mnist", "image_size": 28, "views": "center", "subset": 50}
    machine = {"data": str(path), "runs": str(path.parent / "runs")}
    return run_config({"data": fields, "machine": machine})


def idx(array):
    """An array uint8 as an official file holds it."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """The same 50 + 10 images as fashion_mnist.npz and as official files, plain and gzipped."""
    root = tmp_path_factory.mktemp("fashion")
    x = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    y = np.arange(60, dtype=np.uint8) % 10
    np.savez(root / "fashion_mnist.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    for folder in ("plain", "zipped"):
        (root / folder).mkdir()
    for part, rows in (("train", slice(50)), ("t10k", slice(50, None))):
        for name, array in ((f"{part}-images-idx3-ubyte", x[rows]), (f"{part}-labels-idx1-ubyte", y[rows])):
            (root / "plain" / name).write_bytes(idx(array))
            (root / "zipped" / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return root


def test_every_form_of_fashion_mnist_is_the_same_data(fashion, tmp_path):
    for split, count in (("train", 50), ("heldout", 10)):
        places = ["fashion_mnist.npz", ".", "plain", "zipped"]
        found = [open_dataset(fashion_config(fashion / place), split) for place in places]
        assert len({dataset.sha256 for dataset in found}) == 1
        images = found[0].images
        assert images.shape == (count, 28, 28, 3) and images.dtype == np.uint8
        assert (images == images[..., :1]).all()
        assert found[0].class_names[9] == "ankle boot"
    config = fashion_config(fashion / "zipped")
    assert prepared(config, tmp_path).num_images == 50
    assert has_heldout_images(config)


TRAIN_IMAGES = "train-images-idx3-ubyte"
HEADER = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a file of Fashion-MNIST"),
        (struct.pack(">HBB3I", 0, 8, 1, 2, 28, 28), "does not begin as an IDX file"),
        (struct.pack(">HBB3I", 0, 8, 3, 2, 32, 32), r"\[2, 32, 32\], not \[1 … 60000, 28, 28\]"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28), r"\[4294967295, 28, 28\], not"),
        (HEADER + bytes(2 * 784 - 1), "ends early"),
        (HEADER + bytes(2 * 784 + 1), "goes on after its last value"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_hostile_and_truncated_files_are_refused(tmp_path, content, message, zipped):
    name = TRAIN_IMAGES + ".gz" * zipped
    (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(UserError, match=message) as refusal:
        open_dataset(fashion_config(tmp_path), "train")
    assert TRAIN_IMAGES in str(refusal.value) and "write the path of fashion_mnist.npz" in str(refusal.value)


@pytest.mark.parametrize("cut", [5, 300])
def test_a_truncated_gzip_file_is_refused(fashion, tmp_path, cut):
    whole = (fashion / "zipped" / f"{TRAIN_IMAGES}.gz").read_bytes()
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(whole[:cut])
    with pytest.raises(UserError, match="is not a file of Fashion-MNIST"):
        open_dataset(fashion_config(tmp_path), "train")


def test_a_missing_part_of_fashion_mnist_is_explained(fashion, tmp_path):
    (tmp_path / TRAIN_IMAGES).write_bytes((fashion / "plain" / TRAIN_IMAGES).read_bytes())
    with pytest.raises(UserError, match=r"lacks train-labels-idx1-ubyte\[\.gz\]"):
        open_dataset(fashion_config(tmp_path), "train")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(UserError, match=r"\(50, 28, 28\) and 3 labels"):
        open_dataset(fashion_config(tmp_path), "train")
    with pytest.raises(UserError, match=r"holds no Fashion-MNIST .*fashion_mnist\.npz"):
        open_dataset(fashion_config(tmp_path), "heldout")


# ---- all


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
    assert prepared(config, tmp_path).num_images == 21
    assert not has_heldout_codes(config)
    assert not has_heldout_images(config)
    with pytest.raises(UserError, match="no class folders"):
        open_dataset(config, "heldout")
    both = folder_config(images, tmp_path / "both")
    assert has_heldout_images(both)
    assert not has_heldout_codes(both), "they are not prepared yet"
    prepared(both, tmp_path)
    assert has_heldout_codes(both)
    assert has_heldout_codes(run_config())
    assert has_heldout_images(run_config())


def test_a_cell_of_another_data_name_is_another_experiment(images, tmp_path):
    a, b = (folder_config(images, tmp_path, name=name) for name in ("toys", "others"))
    assert a.fingerprint() != b.fingerprint()
