"""One contract for every tokenizer, LlamaGen's VQ-16 by its published keys, the shipped weights."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mirai_bench.config import run_config as run_configs
from mirai_bench.config.load import load_run
from mirai_bench.data.tokenizers import TOKENIZERS, load_tokenizer, tokenizer_identity, vq16, vq_small
from mirai_bench.data.tokenizers.network import from_uint8, to_uint8
from mirai_bench.tokenizer.train import save_weights
from mirai_bench.utils.errors import UserError
from tests.support.images import run_config
from tests.support.paths import FIXTURES

CPU = torch.device("cpu")
KEYS = json.loads((FIXTURES / "vq16_keys.json").read_text())
SIZES = {
    "pixel": (1, 17, 8),
    "vq_small": (4, 64, 32),
    "vq16": (16, 16384, 32),
}  # down-sampling, codes, pixels a side


def with_tokenizer(size=32, dataset="cifar10", **tokenizer):
    """The configuration of a run on images of `size` pixels."""
    fields = {key: str(value) if key == "weights" and value else value for key, value in tokenizer.items()}
    return run_config({"data": {"dataset": dataset, "image_size": size}, "tokenizer": fields})


@pytest.fixture(scope="module")
def official():
    """A state dict of the published names and shapes, with random values of a sensible size."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in KEYS.items():
        fan_in = max(1, int(np.prod(shape[1:])))
        state[key] = (
            torch.randn(shape, generator=generator) * fan_in**-0.5 if len(shape) > 1 else torch.ones(shape)
        )
        if key.endswith("bias"):
            state[key] = torch.zeros(shape)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory, official):
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"model": official, "steps": 1}, folder / "vq16.pt")
    torch.manual_seed(0)
    model = vq_small.SmallVQ(4, 64, channels=8, blocks=1, width=4)
    model.codebook.normal_(0, 0.3)
    save_weights(model, folder / "vq_small.safetensors")
    return {"vq16": folder / "vq16.pt", "vq_small": folder / "vq_small.safetensors", "pixel": None}


@pytest.fixture(scope="module")
def tokenizers(weights):
    held = {}

    def get(name):
        downsample, vocabulary, _ = SIZES[name]
        config = with_tokenizer(
            name=name, downsample=downsample, vocabulary=vocabulary, weights=weights[name]
        )
        if name not in held:
            held[name] = load_tokenizer(config, CPU)
        return held[name], config

    return get


@pytest.mark.parametrize("name", TOKENIZERS)
def test_contract(tokenizers, name):
    tokenizer, config = tokenizers(name)
    downsample, vocabulary, side = SIZES[name]
    images = torch.randint(
        0, 256, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    codes = tokenizer.encode(images)
    assert codes.shape == (3, (side // downsample) ** 2) and codes.dtype == torch.long
    assert codes.min() >= 0
    assert codes.max() < vocabulary == tokenizer.vocabulary
    assert tokenizer.downsample == downsample
    assert torch.equal(tokenizer.encode(images), codes)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8
    assert torch.equal(tokenizer.decode(codes), decoded)
    assert tokenizer.identity == tokenizer_identity(config)
    assert {"name", "sha256"} <= tokenizer.identity.keys()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_codes_are_in_raster_order(tokenizers, name):
    """Changing the last code changes the bottom right more than the top left."""
    tokenizer, _ = tokenizers(name)
    codes = torch.zeros(1, 16, dtype=torch.long)
    other = codes.clone()
    other[0, -1] = 5
    changed = (tokenizer.decode(codes) != tokenizer.decode(other)).any(-1)[0].float()
    half = changed.shape[0] // 2
    assert changed[half:, half:].sum() > 0
    assert changed[half:, half:].sum() >= changed[:half, :half].sum()


def test_an_unknown_tokenizer_and_wrong_sizes_are_refused():
    with pytest.raises(UserError, match="downsample is 2"):
        load_tokenizer(with_tokenizer(name="pixel", downsample=2), CPU)
    with pytest.raises(UserError, match="256 grey levels"):
        load_tokenizer(with_tokenizer(name="pixel", vocabulary=300), CPU)
    with pytest.raises(UserError, match=r"vq_ds16_c2i\.pt"):
        load_tokenizer(with_tokenizer(name="vq16", downsample=16, vocabulary=16384), CPU)
    with pytest.raises(UserError, match="downsample: 16"):
        load_tokenizer(with_tokenizer(name="vq16", downsample=8, vocabulary=16384), CPU)


def test_uint8_conversion_is_exact_and_rounds():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 128, 255]


def test_pixel_is_exact_on_its_levels():
    tokenizer = load_tokenizer(with_tokenizer(), CPU)
    codes = torch.arange(17).repeat(4)[:64].view(1, 64)
    assert torch.equal(tokenizer.encode(tokenizer.decode(codes)), codes)


def test_vq16_has_the_published_names_and_shapes():
    with torch.device("meta"):
        ours = {key: list(value.shape) for key, value in vq16.VQ16Model().state_dict().items()}
    assert ours == {key: shape for key, shape in KEYS.items() if key != vq16.UNUSED}
    assert sum(np.prod(shape) for key, shape in KEYS.items() if key != vq16.UNUSED) == 71_883_403


def test_vq16_reads_the_official_layout_and_a_bare_state_dict(official, weights, tmp_path):
    model = vq16.read_model(weights["vq16"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, official[key])
    assert torch.allclose(model.codebook().norm(dim=1), torch.ones(16384))
    torch.save(official, tmp_path / "bare.pt")
    bare = vq16.read_model(tmp_path / "bare.pt")
    assert torch.equal(bare.encoder.conv_in.weight, official["encoder.conv_in.weight"])


def test_vq16_codes_survive_a_round_trip(tokenizers):
    """Random weights decode to noise; the codes of the codebook's own vectors must come back."""
    model = tokenizers("vq16")[0].model
    codes = torch.arange(0, 16384, 37)
    assert torch.equal(model.nearest(model.codebook()[codes] * 3.0), codes)


DAMAGES = {
    "missing": r"not LlamaGen's VQ-16.*decoder\.conv_out\.bias",
    "extra": r"decoder\.more",
    "shape": "but the model's is",
    "other": "no state dict",
    "pickle": "was not read",
    "text": "was not read",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_vq16_refuses_other_files_by_reason(official, tmp_path, damage):
    # Parts of the weights, which are quick to write.
    state = {key: value[:1] if value.ndim > 2 else value for key, value in official.items()}
    path = tmp_path / "file.pt"
    if damage == "missing":
        state.pop("decoder.conv_out.bias")
    elif damage == "extra":
        state["decoder.more"] = torch.zeros(1)
    torch.save({"model": 5 if damage == "other" else state}, path)
    if damage == "pickle":
        path.write_bytes(pickle.dumps(Path("x"), protocol=2))
    elif damage == "text":
        path.write_text("weights")
    with pytest.raises(UserError, match=DAMAGES[damage]):
        vq16.read_model(path)


def test_vq_small_refuses_another_size(weights, tmp_path):
    with pytest.raises(UserError, match=r"vocabulary is 65, but vq_small\.safetensors has 64"):
        load_tokenizer(
            with_tokenizer(name="vq_small", downsample=4, vocabulary=65, weights=weights["vq_small"]), CPU
        )
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a weight file"):
        load_tokenizer(
            with_tokenizer(name="vq_small", downsample=4, vocabulary=64, weights=tmp_path / "x.safetensors"),
            CPU,
        )


def test_weights_that_do_not_ship_are_explained():
    with pytest.raises(UserError, match=r"for cifar10 of 32 pixels with down-sampling 8: .*tokenizer train"):
        load_tokenizer(with_tokenizer(name="vq_small", downsample=8, vocabulary=64), CPU)
    # The shipped weights of CIFAR-10 are not those of other data of the same grid.
    config = with_tokenizer(name="vq_small", downsample=4, vocabulary=1024, dataset="folder")
    with pytest.raises(UserError, match="No vq_small weights ship for folder"):
        load_tokenizer(config, CPU)


def test_shipped_weights_are_named_by_data_and_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(run_configs, "SHIPPED_TOKENIZERS", tmp_path)
    config = with_tokenizer(size=28, dataset="fashion_mnist", name="vq_small", downsample=4, vocabulary=16)
    file = tmp_path / "vq_small_fashion_mnist_7x7.safetensors"
    save_weights(vq_small.SmallVQ(4, 16, channels=8, blocks=1, width=4), file)
    tokenizer = load_tokenizer(config, CPU)
    codes = tokenizer.encode(torch.zeros(2, 28, 28, 3, dtype=torch.uint8))
    assert codes.shape == (2, 49) and tokenizer.decode(codes).shape == (2, 28, 28, 3)


def test_other_shipped_weights_make_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_configs, "SHIPPED_TOKENIZERS", tmp_path)
    config = load_run("cifar10")
    file = tmp_path / "vq_small_cifar10_8x8.safetensors"
    found = {config.fingerprint()}
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found.add(config.fingerprint())
    assert len(found) == 3


@pytest.mark.parametrize(("downsample", "side"), [(2, 16), (4, 8), (8, 4)])
def test_vq_small_grids(downsample, side):
    model = vq_small.SmallVQ(downsample, 16, channels=8, blocks=1, width=4)
    rows = model.rows(torch.zeros(2, 3, 32, 32))
    assert rows.shape == (2 * side * side, 4) and model.images(rows, 2).shape == (2, 3, 32, 32)


def test_nearest_is_the_smallest_distance():
    model = vq_small.SmallVQ(4, 32, channels=8, blocks=1, width=4)
    model.codebook.normal_(generator=torch.Generator().manual_seed(0))
    rows = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.nearest(rows), torch.cdist(rows, model.codebook).argmin(1))


SHIPPED = sorted(run_configs.SHIPPED_TOKENIZERS.glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_are_those_of_their_record(path):
    record = json.loads(path.with_suffix(".json").read_text())
    dataset = record["data"]["name"]
    size = 28 if dataset == "fashion_mnist" else 32
    tokenizer = {key: record["sizes"][key] for key in ("downsample", "vocabulary")}
    config = with_tokenizer(size, dataset, name="vq_small", **tokenizer)
    assert tokenizer_identity(config)["sha256"] == record["weights"]["sha256"]
    assert path.stat().st_size <= 12e6
    assert record["heldout"]["usage"] > 0.9
    assert record["heldout"]["n"] == 10_000
    assert not re.search(r"\"\.{0,2}/", path.with_suffix(".json").read_text()), (
        "a path of the machine that made it"
    )
    tokenizer = load_tokenizer(config, CPU)
    # A bright thing before a dark ground, which is neither a smooth photograph nor far from a garment.
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    images[:, 4:-4, 8:-8] = 180
    error = (tokenizer.decode(tokenizer.encode(images)).float() - images.float()).square().mean()
    assert error < 15**2


def test_cifar10_profile_fits_the_shipped_weights():
    config = load_run(Path("cifar10"))
    assert load_tokenizer(config, CPU).vocabulary == config.tokenizer.vocabulary and config.grid == (8, 8)


def test_to_uint8_agrees_with_both_conventions_in_use():
    """Truncating 127.5x + 128 and rounding (x + 1)/2·255 are one rule; truncating the latter is not.

    They differ only for values exactly between two levels.
    """
    x = torch.linspace(-1.1, 1.1, 100_003).repeat(3, 1)[None, :, None]
    ours = to_uint8(x).permute(0, 3, 1, 2)
    assert torch.equal(ours, (127.5 * x + 128).clamp(0, 255).to(torch.uint8))
    between = (((x + 1) * 127.5) % 1 - 0.5).abs() < 1e-3
    rounded = ((x.clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)
    assert torch.equal(ours[~between], rounded[~between]) and between.float().mean() < 0.01
    cut_off = ((x.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    assert (ours != cut_off).float().mean() > 0.4
    levels = torch.arange(256, dtype=torch.float32).expand(1, 3, 1, 256)
    assert torch.equal(to_uint8(levels / 127.5 - 1).permute(0, 3, 1, 2), levels.to(torch.uint8))
