"""The training of vq_small: its codebook, its perceptual loss, and its exact resume."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mirai_bench.config.data_config import TokenizerConfig
from mirai_bench.data.images.colors import IMAGENET
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.tokenizers import load_tokenizer, vq_small
from mirai_bench.tokenizer.__main__ import main
from mirai_bench.tokenizer.perceptual import Perceptual
from mirai_bench.tokenizer.quality import measure
from mirai_bench.tokenizer.recipe import Recipe
from mirai_bench.tokenizer.train import Codebook, Training
from mirai_bench.utils import cli
from mirai_bench.utils.device import cpu_name
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
    weights = torch.load(vgg, weights_only=True)
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
    found = Perceptual(vgg).features(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_perceptual_distance(vgg):
    distance = Perceptual(vgg)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert distance(images, images) == 0
    near, far = (
        distance((images + amount * torch.randn_like(images)).clamp(-1, 1), images) for amount in (0.05, 0.5)
    )
    assert 0 < near < far <= 2


RECIPE = Recipe(
    channels=8, blocks=1, width=4, epochs=4, batch_size=300, lr=5e-3, perceptual_part=0.02, precision="fp32"
)


def test_training_goes_on_bit_for_bit(vgg, tmp_path):
    config = small_config(tmp_path)
    digits = open_dataset(config, "train")
    whole, first, second = (Training(config, RECIPE, vgg, digits, CPU) for _ in range(3))
    for step in range(4):
        losses = whole.step(step)
    for step in range(2):
        first.step(step)
    first.done = 2
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    again = [second.step(step) for step in range(second.done, 4)][-1]
    assert again == losses
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key


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
    tokenizer = load_tokenizer(
        TokenizerConfig(name="vq_small", downsample=4, vocabulary=16, weights=Path(shown["file"])), CPU
    )
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
