"""Tokenizers: one contract for every entry, LlamaGen's VQ-16 by its published key list, and the training of vq_small."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from assets import asset
from safetensors.torch import save_file

from mirai_bench.config.load import build_run, load_run
from mirai_bench.config.run_config import Tokenizer
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.images.image_sets import open_images
from mirai_bench.data.tokenizers import TOKENIZERS, load_tokenizer, tokenizer_identity, vq16, vq_small
from mirai_bench.data.tokenizers.convert import from_uint8, to_uint8
from mirai_bench.evaluate.extractors import open_extractor
from mirai_bench.evaluate.measure import Stored
from mirai_bench.evaluate.measure import measure as compare_images
from mirai_bench.evaluate.references import open_reference
from mirai_bench.tokenizer.__main__ import main
from mirai_bench.tokenizer.perceptual import CONVOLUTIONS, Perceptual
from mirai_bench.tokenizer.quality import measure
from mirai_bench.tokenizer.train import Codebook, Recipe, Training, save_weights, summary, write_record
from mirai_bench.utils import cli
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import file_sha256

CPU = torch.device("cpu")
KEYS = json.loads((Path(__file__).parent / "fixtures" / "vq16_keys.json").read_text())
SIZES = {
    "pixel": (1, 17, 8),
    "vq_small": (4, 64, 32),
    "vq16": (16, 16384, 32),
}  # down-sampling, codes, pixels a side


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
        config = Tokenizer(name=name, downsample=downsample, vocabulary=vocabulary, weights=weights[name])
        if name not in held:
            held[name] = load_tokenizer(config, CPU)
        return held[name], config

    return get


# --- every entry


@pytest.mark.parametrize("name", TOKENIZERS)
def test_contract(tokenizers, name):
    tokenizer, config = tokenizers(name)
    downsample, vocabulary, side = SIZES[name]
    images = torch.randint(
        0, 256, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    codes = tokenizer.encode(images)
    assert codes.shape == (3, (side // downsample) ** 2) and codes.dtype == torch.long
    assert (
        codes.min() >= 0
        and codes.max() < vocabulary == tokenizer.vocabulary
        and tokenizer.downsample == downsample
    )
    assert torch.equal(tokenizer.encode(images), codes)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8
    assert torch.equal(tokenizer.decode(codes), decoded)
    assert (
        tokenizer.identity == tokenizer_identity(config) and {"name", "sha256"} <= tokenizer.identity.keys()
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_codes_are_in_raster_order(tokenizers, name):
    """Changing the last code changes pixels at the bottom right, and leaves the top left as it was where the decoder is local."""
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
        load_tokenizer(Tokenizer(name="pixel", downsample=2), CPU)
    with pytest.raises(UserError, match="256 grey levels"):
        load_tokenizer(Tokenizer(name="pixel", vocabulary=300), CPU)
    with pytest.raises(UserError, match=r"vq_ds16_c2i\.pt"):
        load_tokenizer(Tokenizer(name="vq16", downsample=16, vocabulary=16384), CPU)
    with pytest.raises(UserError, match="downsample: 16"):
        load_tokenizer(Tokenizer(name="vq16", downsample=8, vocabulary=16384), CPU)


def test_uint8_conversion_is_exact_and_rounds():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 128, 255]


def test_pixel_is_exact_on_its_levels():
    tokenizer = load_tokenizer(Tokenizer(), CPU)
    codes = torch.arange(17).repeat(4)[:64].view(1, 64)
    assert torch.equal(tokenizer.encode(tokenizer.decode(codes)), codes)


# --- VQ-16


def test_vq16_has_the_published_names_and_shapes():
    with torch.device("meta"):
        ours = {key: list(value.shape) for key, value in vq16.VQ16Model().state_dict().items()}
    assert ours == {key: shape for key, shape in KEYS.items() if key != vq16.UNUSED}
    assert sum(np.prod(shape) for key, shape in KEYS.items() if key != vq16.UNUSED) == 71_883_403


def test_vq16_reads_the_official_layout_and_a_bare_state_dict(official, weights, tmp_path):
    model = vq16.read_model(weights["vq16"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, official[key])
    assert torch.allclose(model.quantize.codebook().norm(dim=1), torch.ones(16384))
    torch.save(official, tmp_path / "bare.pt")
    assert torch.equal(
        vq16.read_model(tmp_path / "bare.pt").encoder.conv_in.weight, official["encoder.conv_in.weight"]
    )


def test_vq16_codes_survive_a_round_trip(tokenizers):
    """Random weights decode to noise; the codes of the codebook's own vectors must come back."""
    model = tokenizers("vq16")[0].model
    codes = torch.arange(0, 16384, 37)
    assert torch.equal(model.quantize.nearest(model.quantize.codebook()[codes] * 3.0), codes)


DAMAGES = {
    "missing": r"not LlamaGen's VQ-16.*decoder\.conv_out\.bias",
    "extra": r"decoder\.more",
    "shape": "size mismatch",
    "other": "no state dict",
    "pickle": "cannot be read",
    "text": "cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_vq16_refuses_other_files_by_reason(official, tmp_path, damage):
    state = {key: value[:1] if value.ndim > 2 else value for key, value in official.items()}  # quick to write
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


# --- vq_small


def test_vq_small_refuses_another_size(weights, tmp_path):
    with pytest.raises(UserError, match=r"vocabulary is 65, but vq_small\.safetensors has 64"):
        load_tokenizer(
            Tokenizer(name="vq_small", downsample=4, vocabulary=65, weights=weights["vq_small"]), CPU
        )
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a weight file"):
        load_tokenizer(
            Tokenizer(name="vq_small", downsample=4, vocabulary=64, weights=tmp_path / "x.safetensors"), CPU
        )
    with pytest.raises(UserError, match="No vq_small weights ship for down-sampling 8"):
        load_tokenizer(Tokenizer(name="vq_small", downsample=8, vocabulary=64), CPU)


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


def test_codebook_follows_its_rows_and_dead_codes_are_reborn():
    model = vq_small.SmallVQ(4, 4, channels=8, blocks=1, width=2)
    codebook, generator = Codebook(model, Recipe()), torch.Generator().manual_seed(0)
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
    path, widths = tmp_path_factory.mktemp("vgg") / "vgg.pt", (64, 64, 128, 128, 256, 256, 256)
    generator, state, before = torch.Generator().manual_seed(0), {}, 3
    for layer, width in zip(CONVOLUTIONS, widths, strict=True):
        state[f"{layer}.weight"] = (
            torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        )
        state[f"{layer}.bias"], before = torch.zeros(width), width
    torch.save(state, path)
    return path


def test_perceptual_distance(vgg):
    distance, images = Perceptual(vgg), torch.rand(2, 3, 16, 16) * 2 - 1
    assert distance(images, images) == 0
    near, far = (
        distance((images + amount * torch.randn_like(images)).clamp(-1, 1), images) for amount in (0.05, 0.5)
    )
    assert 0 < near < far <= 2


def small_config(runs: Path):
    return build_run(
        {
            "data": {"image_size": 8},
            "tokenizer": {"name": "vq_small", "downsample": 4, "vocabulary": 16},
            "model": {"size": "nano"},
            "train": {"epochs": 1, "batch_size": 8},
            "evaluation": {"at": [1], "protocol": "digits"},
            "machine": {"runs": str(runs)},
        },
        "test",
    )


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
    assert (
        record["heldout"]["n"] == 297
        and record["heldout"]["usage"] > 0.9
        and record["heldout"]["psnr_db"] > 11
    )
    assert (
        record["training"]["seed"] == 0
        and record["training"]["seconds"] >= 0
        and "no GPU" in record["hardware"]
    )
    with np.load(tmp_path / "images.npz") as arrays:
        assert (
            arrays["arr_0"].shape == (297, 8, 8, 3)
            and arrays["arr_0"].dtype == np.uint8
            and arrays["arr_1"].shape == (297,)
        )
    tokenizer = load_tokenizer(
        Tokenizer(name="vq_small", downsample=4, vocabulary=16, weights=Path(shown["file"])), CPU
    )
    assert tokenizer.identity["sha256"] == record["weights"]["sha256"]
    assert measure(tokenizer, open_dataset(config, "heldout"), 8, CPU) == record["heldout"]
    assert main(["measure", str(tmp_path / "run.json"), "--set", f"tokenizer.weights={shown['file']}"]) == 0
    assert json.loads(capsys.readouterr().out) == tokenizer.identity | record["heldout"]


@pytest.fixture
def weights_with_record(tmp_path):
    """A file of random weights, and the part of a record that says whose it is."""
    file = tmp_path / "weights" / "mine.safetensors"
    file.parent.mkdir()
    save_weights(vq_small.SmallVQ(4, 16, channels=8, blocks=1, width=4), file)
    write_record(file, {"weights": {"sha256": file_sha256(file)}, "heldout": {"n": 1}, "data": "kept"})
    return file


def test_rfid_joins_the_record(weights_with_record, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(small_config(tmp_path).model_dump(mode="json")))
    arguments = ["measure", str(tmp_path / "run.json"), "--set", f"tokenizer.weights={weights_with_record}"]
    arguments += ["--reconstructions", str(tmp_path / "images.npz"), "--rfid", "--write-record"]
    assert main(arguments) == 0
    shown, record = json.loads(capsys.readouterr().out), summary(weights_with_record)
    assert record["heldout"] == {key: shown[key] for key in record["heldout"]} and record["data"] == "kept"
    rfid = record["heldout"]["rfid"]
    assert (
        rfid["n"] == record["heldout"]["n"] == rfid["reference"]["n"] == 297
        and rfid["extractor"]["name"] == "digits"
    )
    config = small_config(tmp_path)
    extractor = open_extractor(config, "digits", CPU)
    reference = open_reference(config, "heldout", extractor)
    expected = compare_images(Stored(open_images(tmp_path / "images.npz")), extractor, reference).metrics
    assert rfid["FD-digits"] == pytest.approx(expected["FD-digits"], rel=1e-4) and rfid["FD-digits"] > 1


def test_a_record_is_only_written_to_where_it_belongs(weights_with_record, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(small_config(tmp_path).model_dump(mode="json")))
    arguments = [
        "measure",
        str(tmp_path / "run.json"),
        "--set",
        f"tokenizer.weights={weights_with_record}",
        "--write-record",
    ]
    for flags, message in (
        (["--rfid"], "write --reconstructions"),
        (["--set", "tokenizer={name: pixel, downsample: 1, weights: null}"], "which has no record"),
    ):
        assert cli.run(main, [*arguments, *flags]) == 2 and message in capsys.readouterr().err
    write_record(weights_with_record, {"weights": {"sha256": "sha256:of others"}})
    assert cli.run(main, arguments) == 2 and "of other weights" in capsys.readouterr().err
    weights_with_record.with_suffix(".json").unlink()
    assert cli.run(main, arguments) == 2 and "is not the record" in capsys.readouterr().err


def test_an_exact_tokenizer_measures_as_exact(make_config):
    config = make_config()
    measured = measure(load_tokenizer(config.tokenizer, CPU), open_dataset(config, "heldout"), 8, CPU)
    assert measured["psnr_db"] > 75 and measured["usage"] == 1.0 and measured["perplexity"] < 17


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


# --- the weights that ship


SHIPPED = sorted(vq_small.SHIPPED.glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_are_those_of_their_record(path):
    record = json.loads(path.with_suffix(".json").read_text())
    config = Tokenizer(
        name="vq_small", downsample=record["sizes"]["downsample"], vocabulary=record["sizes"]["vocabulary"]
    )
    assert tokenizer_identity(config)["sha256"] == record["weights"]["sha256"] and path.stat().st_size <= 12e6
    assert record["heldout"]["usage"] > 0.9 and record["heldout"]["n"] == 10_000
    assert not re.search(r"\"\.{0,2}/", path.with_suffix(".json").read_text()), (
        "a path of the machine that made it"
    )
    tokenizer = load_tokenizer(config, CPU)
    gradient = torch.linspace(20, 230, 32).to(torch.uint8).view(1, 1, 32, 1).expand(2, 32, 32, 3).contiguous()
    error = (tokenizer.decode(tokenizer.encode(gradient)).float() - gradient.float()).square().mean()
    assert error < 15**2


def test_cifar10_profile_fits_the_shipped_weights():
    config = load_run(Path("cifar10"))
    assert load_tokenizer(
        config.tokenizer, CPU
    ).vocabulary == config.tokenizer.vocabulary and config.grid == (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_measure_as_recorded(path):
    record = json.loads(path.with_suffix(".json").read_text())
    settings = [
        f"machine.data={asset('cifar10.npz')}",
        f"tokenizer.downsample={record['sizes']['downsample']}",
    ]
    config = load_run(Path("cifar10"), settings)
    tokenizer = load_tokenizer(config.tokenizer, CPU)
    assert tokenizer.identity["sha256"] == record["weights"]["sha256"]
    measured = measure(tokenizer, open_dataset(config, "heldout"), 32, CPU)
    assert abs(measured["psnr_db"] - record["heldout"]["psnr_db"]) < 0.02
    assert abs(measured["usage"] - record["heldout"]["usage"]) < 0.002
