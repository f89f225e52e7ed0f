"""The classifiers behind FD-cifar10 and FD-fashion: network, training, weight file, whose data it is."""

import json

import numpy as np
import pytest
import torch

from mirai_bench.config.load import load_run
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.evaluate import image_classifier
from mirai_bench.evaluate.__main__ import command
from mirai_bench.evaluate.classifier_training import Batches, Recipe, accuracy, save_classifier, train
from mirai_bench.evaluate.extractors import EXTRACTORS, open_extractor
from mirai_bench.evaluate.image_classifier import (
    SHIPPED,
    ImageClassifier,
    load_image_classifier,
    read_about,
    weight_name,
)
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256
from tests.support.images import noise, write_config

CPU = torch.device("cpu")


def grey_images(n, seed):
    """Noise whose mean level says the class."""
    labels = np.arange(n) % 10
    images = noise(n, side=32, seed=seed) // 8 + (22 * labels).astype(np.uint8)[:, None, None, None]
    return images, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A cifar10.npz of images that are told apart easily."""
    path = tmp_path_factory.mktemp("data") / "cifar10.npz"
    x_train, y_train = grey_images(120, seed=0)
    x_test, y_test = grey_images(50, seed=1)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def config_of(data, *settings):
    settings = ("data.subset=120", "machine.device=cpu", *settings)
    return load_run("cifar10", [f"machine.data={data}", *settings])


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory):
    """The file of an untrained classifier."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / weight_name("cifar10")
    save_classifier(ImageClassifier(10), open_dataset(config_of(data), "train"), file)
    return file


# ---- network and file


def test_the_file_is_small_and_folding_leaves_the_features_as_they_are(weights):
    model = ImageClassifier(10)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.from_numpy(noise(3, side=32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model.eval()(images)
        model.fold()
        found = model(images)
    assert found["pool"].shape == (3, 128) and found["logits"].shape == (3, 10)
    for name in ("pool", "logits"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert weights.stat().st_size < 2e6


def test_a_file_of_something_else_is_refused(weights, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="is not a weight file of"):
        read_about(tmp_path / "other.safetensors")
    torch.save({"output.bias": torch.zeros(10)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="is not a weight file of an image classifier"):
        load_image_classifier(tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_the_shipped_weights_are_those_of_their_record(name):
    file = SHIPPED / weight_name(name)
    if not file.is_file():
        pytest.skip("no weights ship yet")
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["weights"] == {
        "file": file.name,
        "sha256": file_sha256(file),
        "stored_as": "fp16, used as fp32",
    }
    assert read_about(file) == {"dataset": name, "sha256": record["data"]["sha256"]}
    assert record["heldout"]["accuracy"] >= 0.9


# ---- training


def test_images_are_moved_mirrored_and_partly_hidden(data):
    dataset = open_dataset(config_of(data), "train")
    rows = torch.tensor([3, 4])
    still = Batches(dataset, Recipe(shift=2, hole=4), CPU)
    shifts = torch.tensor([[2, 2], [1, 4]])  # 2 leaves an image where it is
    far = torch.tensor([[-9, -9], [10, 20]])  # the first square is outside
    first, second = still.images(rows, shifts, torch.tensor([True, False]), far).permute(0, 2, 3, 1).numpy()
    assert (first == dataset.images[3][:, ::-1]).all()
    assert (second[10:14, 20:24] == 127.5).all() and (second == 127.5).all(-1).sum() == 16
    assert (second[20:, :30] == dataset.images[4][19:31, 2:]).all()


def test_a_training_learns_and_is_repeatable(data):
    config = config_of(data)
    dataset = open_dataset(config, "train")
    recipe = Recipe(epochs=3, batch_size=20, lr=0.03)
    one = train(dataset, recipe, CPU).eval()
    assert accuracy(one, open_dataset(config, "heldout"), CPU) >= 0.3
    short = Recipe(epochs=1, batch_size=60)
    first, again = (train(dataset, short, CPU).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_command_writes_weights_and_record(data, tmp_path, capsys):
    argv = ["classifier", "cifar10", "--epochs", "1", "--out", str(tmp_path), "--set", "data.subset=120"]
    assert command([*argv, "--set", f"machine.data={data}", "--set", "machine.device=cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = json.loads((tmp_path / "cifar10_classifier.json").read_text())
    file = tmp_path / "cifar10_classifier.safetensors"
    assert printed == {"file": str(file)} | record["heldout"]
    assert record["weights"]["sha256"] == file_sha256(file)
    assert record["training"]["epochs"] == 1 and record["training"]["mirror"]
    assert record["data"]["sha256"] == read_about(file)["sha256"]
    assert 0.5e6 < record["parameters"] < 0.9e6


@pytest.mark.parametrize("options", [["--epochs", "0"], ["--set", "machine.data=nowhere.npz"]])
def test_a_wrong_command_is_refused_before_training(options):
    with pytest.raises(UserError, match=r"--epochs is 0|nowhere.npz"):
        command(["classifier", "cifar10", *options])


def test_the_digits_classifier_is_not_trained_by_the_command():
    with pytest.raises(UserError, match="the digits classifier ships with the package"):
        command(["classifier", "digits"])


# ---- as an extractor


def test_features_do_not_depend_on_who_asks_with_how_many(data, weights):
    extractor = open_extractor(config_of(data), "cifar10", CPU, weights)
    assert extractor.identity == {"name": "cifar10", "sha256": file_sha256(weights)}
    images = noise(500, side=32)
    whole = extractor(images)
    part = extractor(images[250:])
    for name in ("pool", "logits"):
        assert (part[name] == whole[name][250:]).all()


def test_a_classifier_is_for_the_data_that_it_was_trained_on(data, weights, tmp_path, monkeypatch):
    locate = EXTRACTORS["cifar10"].locate
    with pytest.raises(UserError, match=r"protocol.extractor is cifar10, but data.dataset is digits"):
        locate(load_run("digits"), weights)
    with np.load(data) as arrays:
        np.savez(tmp_path / "other.npz", **{name: arrays[name][:40] for name in arrays})
    other = tmp_path / "other.npz"
    with pytest.raises(UserError, match=r"was trained on cifar10 with sha256 .*, but machine.data has"):
        locate(config_of(other, "data.subset=40"), weights)
    # Compared with a file of images they are fine, and need no data.
    images = load_run("cifar10", ["evaluation.protocol.reference=images.npz"])
    assert locate(images, weights) == weights
    monkeypatch.setattr(image_classifier, "SHIPPED", tmp_path)
    with pytest.raises(UserError, match=r"There is no file .*: train a classifier with `python -m"):
        locate(config_of(data), None)


def test_images_are_evaluated_in_its_features(data, weights, tmp_path, capsys):
    images, labels = grey_images(500, seed=2)
    np.savez(tmp_path / "samples.npz", arr_0=images, arr_1=labels)
    config = write_config(config_of(data), tmp_path / "run.json")
    argv = [str(tmp_path / "samples.npz"), "--protocol", "cifar10_2k", "--config", config]
    argv += ["--weights", str(weights), "--device", "cpu", "--set", f"machine.data={data}"]
    assert command([*argv, "--set", f"machine.runs={tmp_path}"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = record["metrics"]
    assert {"FD-cifar10", "KID-cifar10", "MIND-cifar10", "class_accuracy"} <= set(found)
    assert record["extractor"]["sha256"] == file_sha256(weights)
    assert found["FD-cifar10"] > 0
