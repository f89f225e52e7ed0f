"""The training of vq_small: its codebook, its perceptual loss, and its exact resume."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mirai_bench.data.images.colors import IMAGENET
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.images.vgg16 import read_weights, weights_sha256
from mirai_bench.data.tokenizers import load_tokenizer, vq_small
from mirai_bench.tokenizer.__main__ import main
from mirai_bench.tokenizer.adversary import MAX_RATIO, Adversary, SpectralConv, length_ratio
from mirai_bench.tokenizer.batches import Batches
from mirai_bench.tokenizer.codebook import Codebook
from mirai_bench.tokenizer.perceptual import Perceptual
from mirai_bench.tokenizer.quality import measure
from mirai_bench.tokenizer.recipe import Recipe
from mirai_bench.tokenizer.train import Training, save_weights
from mirai_bench.utils import cli
from mirai_bench.utils.device import cpu_name
from mirai_bench.utils.errors import UserError
from tests.support.small_tokenizer import small_config

CPU = torch.device("cpu")
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14)  # of VGG16's .features up to relu3_3


def test_codebook_follows_its_rows_and_dead_codes_are_reborn():
    model = vq_small.SmallVQ(4, 4, channels=8, blocks=1, width=2)
    codebook = Codebook(model, Recipe())
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).repeat(50, 1)
    codebook.start(rows, generator)
    model.codebook.copy_(torch.tensor([[0.1, 0.0], [0.9, 0.0], [9.0, 9.0], [-9.0, 9.0]]))
    codebook.sums.copy_(model.codebook)
    for _ in range(800):
        codebook.update(rows, model.nearest(rows))
    assert torch.allclose(model.codebook[:2], rows[:2], atol=1e-2)
    assert codebook.revive(rows, generator) == 2
    assert {tuple(code) for code in model.codebook[2:].tolist()} <= {(0.0, 0.0), (1.0, 0.0)}
    assert codebook.revive(rows, generator) == 0


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A VGG16 of random weights."""
    path = tmp_path_factory.mktemp("vgg") / "vgg.pt"
    widths = (64, 64, 128, 128, 256, 256, 256)
    generator = torch.Generator().manual_seed(0)
    state = {}
    before = 3
    for layer, width in zip(CONVOLUTIONS, widths, strict=True):
        state[f"{layer}.weight"] = (
            torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        )
        state[f"{layer}.bias"] = torch.zeros(width)
        before = width
    torch.save(state, path)
    return path


def test_the_features_are_those_of_vgg16_computed_by_hand(vgg):
    weights = read_weights(vgg)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    x = ((images + 1) / 2 - mean) / deviation
    expected = []
    for layer in range(16):
        if layer in CONVOLUTIONS:
            x = F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)
        elif layer in (4, 9):
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(x)
        if layer in (3, 8, 15):
            expected.append(F.normalize(x, dim=1))
    found = Perceptual(weights).features(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_perceptual_distance(vgg):
    distance = Perceptual(read_weights(vgg))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert distance(images, images) == 0
    near, far = (
        distance((images + amount * torch.randn_like(images)).clamp(-1, 1), images) for amount in (0.05, 0.5)
    )
    assert 0 < near < far <= 2


def test_a_part_of_the_file_is_the_same_perceptual_distance(vgg, tmp_path):
    more = torch.load(vgg, weights_only=True) | {"17.bias": torch.zeros(512)}
    torch.save(more, tmp_path / "whole.pt")
    assert weights_sha256(read_weights(tmp_path / "whole.pt")) == weights_sha256(read_weights(vgg))
    del more["14.bias"]
    torch.save(more, tmp_path / "less.pt")
    with pytest.raises(UserError, match="not a state dict"):
        read_weights(tmp_path / "less.pt")


RECIPE = Recipe(
    channels=8, blocks=1, width=4, epochs=4, batch_size=300, lr=5e-3, perceptual_part=0.02, precision="fp32"
)


# Of its 20 steps all but the first are adversarial.
ADVERSARIAL = replace(RECIPE, adversarial=0.5, adversarial_from=0.05, discriminator_channels=8, ema_decay=0.9)


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, ADVERSARIAL, replace(ADVERSARIAL, normalised=True, decoder_blocks=2)],
    ids=["plain", "adversarial", "normalised"],
)
def test_training_goes_on_bit_for_bit(vgg, tmp_path, recipe):
    config = small_config(tmp_path)
    digits = open_dataset(config, "train")
    weights = read_weights(vgg)
    whole, first, second = (Training(config, recipe, weights, digits, CPU) for _ in range(3))
    for step in range(4):
        losses = whole.step(step)
    for step in range(2):
        first.step(step)
    first.done = 2
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    again = [second.step(step) for step in range(second.done, 4)][-1]
    assert again == losses
    assert ("adversarial" in losses) == bool(recipe.adversarial)
    for ours, theirs in ((whole.model, second.model), (whole.result, second.result)):
        for key, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key


def test_the_adversarial_term_changes_nothing_before_its_start(vgg, tmp_path):
    config = small_config(tmp_path)
    digits = open_dataset(config, "train")
    recipes = (RECIPE, replace(ADVERSARIAL, adversarial_from=0.5, ema_decay=0.0))
    plain, later = (Training(config, recipe, read_weights(vgg), digits, CPU) for recipe in recipes)
    encoder, decoder = "encoder.1.weight", "decoder.0.weight"
    total = plain.total_steps
    for step in (0, 1, 2):
        plain.step(step)
        later.step(step)
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.model.state_dict().values(), later.model.state_dict().values(), strict=True)
    )
    for step in (total - 2, total - 1):  # beyond its start, the gradient reaches both networks
        plain.step(step)
        later.step(step)
    for name in (encoder, decoder):
        assert not torch.equal(plain.model.state_dict()[name], later.model.state_dict()[name]), name


def test_the_discriminator_learns_what_is_real():
    torch.manual_seed(0)
    adversary = Adversary(replace(ADVERSARIAL, discriminator_lr=5e-3), CPU)
    images = torch.rand(16, 3, 8, 8) * 2 - 1
    decoded = images * 0.5
    losses = []
    for _ in range(60):
        losses.append(adversary.loss(images, decoded))
        adversary.update(losses[-1], 5e-3)
    assert losses[0] > 0.9 and losses[-1] < 0.7
    convolutions = [layer for layer in adversary.network if isinstance(layer, SpectralConv)]
    assert convolutions[-1](torch.zeros(1, 32, 2, 2)).shape == (1, 1, 2, 2)
    for layer in convolutions:  # what divides the weights is near their largest singular value
        matrix = layer.weight.detach().flatten(1)
        value = (layer.left @ matrix).norm()
        assert value == pytest.approx(torch.linalg.svdvals(matrix)[0].item(), rel=0.1)
    # Its gradient points to where images look more real.
    leaf = decoded.clone().requires_grad_()
    loss, gradient = adversary.gradient(leaf)
    assert adversary.gradient(leaf - 0.1 * gradient / gradient.norm())[0] < loss
    # It grows from nothing, and stays at the recipe's weight.
    assert adversary.weight(0.05) == 0 and 0 < adversary.weight(0.07) < adversary.weight(1.0) == 0.5


def test_the_two_gradients_are_balanced_at_the_last_layer():
    x = torch.randn(8, 3, 4, 4)
    last = torch.randn(3, 3, 1, 1, requires_grad=True)
    decoded = F.conv2d(x, last)
    others, gradient = torch.randn(2, 8, 3, 4, 4)
    ratio = length_ratio(decoded, last, others, 7 * gradient)
    lengths = [torch.einsum("bohw,bihw->oi", each, x).norm() for each in (others, 7 * gradient)]
    assert ratio == pytest.approx((lengths[0] / lengths[1]).item(), rel=1e-4)
    assert length_ratio(decoded, last, others, 1e-9 * gradient) == MAX_RATIO


def test_the_average_of_the_weights_is_stored(vgg, tmp_path):
    config = small_config(tmp_path)
    recipe = replace(RECIPE, ema_decay=0.9, normalised=True)
    training = Training(config, recipe, read_weights(vgg), open_dataset(config, "train"), CPU)
    name = "decoder.0.weight"
    expected = training.model.state_dict()[name].clone()
    for step, decay in enumerate((0.1, 2 / 11, 3 / 12)):
        training.step(step)
        expected = decay * expected + (1 - decay) * training.model.state_dict()[name]
    stored = training.result.state_dict()
    assert torch.allclose(stored[name], expected, atol=1e-6)
    assert not torch.allclose(stored[name], training.model.state_dict()[name], atol=1e-4)
    assert torch.allclose(stored["codebook"].norm(dim=1), torch.ones(16))
    save_weights(training.result, tmp_path / "mine.safetensors")
    again = vq_small.read_model(tmp_path / "mine.safetensors")
    assert again.sizes == training.model.sizes and again.normalised
    rows = again.rows(torch.rand(2, 3, 8, 8))
    assert torch.allclose(rows.norm(dim=1), torch.ones(8))


def test_images_of_a_step_are_the_same_wherever_they_are_kept(tmp_path, monkeypatch):
    digits = open_dataset(small_config(tmp_path), "train")
    kept = Batches(digits, 8, RECIPE, CPU)
    monkeypatch.setattr("mirai_bench.tokenizer.batches.fits", lambda num_bytes, device: False)
    read = Batches(digits, 8, RECIPE, CPU)
    assert kept.pixels is not None and read.pixels is None
    for step in (0, 7, 3):
        assert torch.equal(kept.images(step), read.images(step))
    assert not torch.equal(kept.images(0), kept.images(5))


def test_training_learns_and_writes_its_record(vgg, tmp_path, capsys):
    config = small_config(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(config.model_dump(mode="json")))
    flags = {
        "channels": 8,
        "blocks": 1,
        "width": 4,
        "epochs": 8,
        "batch-size": 100,
        "lr": 5e-3,
        "perceptual-part": 0.02,
        "precision": "fp32",
    }
    arguments = [
        "train",
        str(tmp_path / "run.json"),
        "--vgg",
        str(vgg),
        "--reconstructions",
        str(tmp_path / "images.npz"),
    ]
    assert main(arguments + [part for key, value in flags.items() for part in (f"--{key}", str(value))]) == 0
    shown = json.loads(capsys.readouterr().out)
    record = json.loads(Path(shown["file"]).with_suffix(".json").read_text())
    assert record["heldout"]["n"] == 297
    assert record["heldout"]["usage"] > 0.9
    assert record["heldout"]["psnr_db"] > 11
    assert record["training"]["seed"] == 0
    assert record["training"]["seconds"] >= 0
    assert record["hardware"] == cpu_name()
    with np.load(tmp_path / "images.npz") as arrays:
        assert arrays["arr_0"].shape == (297, 8, 8, 3)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].shape == (297,)
    trained = config.tokenizer.model_copy(update={"weights": Path(shown["file"])})
    tokenizer = load_tokenizer(config.model_copy(update={"tokenizer": trained}), CPU)
    assert tokenizer.identity["sha256"] == record["weights"]["sha256"]
    assert measure(tokenizer, open_dataset(config, "heldout"), 8, CPU) == record["heldout"]
    assert main(["measure", str(tmp_path / "run.json"), "--set", f"tokenizer.weights={shown['file']}"]) == 0
    assert json.loads(capsys.readouterr().out) == tokenizer.identity | record["heldout"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--channels", "12"], "multiple of 8"),
        (["--set", "tokenizer.name=pixel"], "write vq_small"),
        (["--batch-size", "9999"], "1500"),
    ],
)
def test_training_refuses_bad_input(vgg, tmp_path, change, message, capsys):
    (tmp_path / "run.json").write_text(json.dumps(small_config(tmp_path).model_dump(mode="json")))
    assert cli.run(main, ["train", str(tmp_path / "run.json"), "--vgg", str(vgg), *change]) == 2
    assert message in capsys.readouterr().err
