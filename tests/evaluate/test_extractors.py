"""The feature spaces: names, identities, shapes, and the Inception against torch-fidelity's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.evaluate import inception, networks
from mirai_bench.evaluate.digits_classifier import (
    DIGITS_WEIGHTS,
    load_classifier,
    train_classifier,
    weights_of,
)
from mirai_bench.evaluate.extractors import EXTRACTORS, entry_of, open_extractor
from mirai_bench.evaluate.inception import inception_layers, load_2015, load_compat, resize_as_tensorflow
from mirai_bench.evaluate.measure import StoredImages, measure
from mirai_bench.evaluate.networks import TORCHSCRIPT_FILES, Dinov2
from mirai_bench.evaluate.references import open_reference
from mirai_bench.utils import outside
from mirai_bench.utils.errors import UserError
from tests.support.assets import asset
from tests.support.features import ImageArray, ImageTensors
from tests.support.images import noise

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", EXTRACTORS)
def test_only_the_2015_inception_is_called_fid(name):
    entry = EXTRACTORS[name]
    assert entry.features[0] == "pool"
    assert (entry.frechet == "FID") == (entry.kernel == "KID") == name.startswith("inception")
    assert ("spatial" in entry.features) == name.startswith("inception")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_shipped_protocols_name_extractors_that_exist(name):
    assert PROTOCOLS[name]["extractor"] in (*EXTRACTORS, "none")


def test_an_unknown_extractor_gets_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'inception_2015'"):
        entry_of("inception2015")


# ---- the digits classifier


def accuracy(model, dataset):
    logits = model(torch.from_numpy(dataset.images).permute(0, 3, 1, 2))["logits"]
    return (logits.argmax(1) == torch.from_numpy(dataset.labels)).double().mean().item()


def test_training_the_digits_classifier_again_gives_the_shipped_file(make_config):
    config = make_config()
    train = open_dataset(config, "train")
    assert weights_of(train_classifier(train)) == DIGITS_WEIGHTS.read_bytes()
    record = json.loads(DIGITS_WEIGHTS.with_suffix(".json").read_bytes())
    found = accuracy(load_classifier(DIGITS_WEIGHTS), open_dataset(config, "heldout"))
    assert found >= 0.97 and found == pytest.approx(record["heldout"]["accuracy"], abs=1e-4)
    assert record["data"] == train.identity
    assert open_extractor(config, "digits", CPU).identity["sha256"] == record["weights"]["sha256"]


def test_features_do_not_depend_on_who_asks_with_how_many(make_config):
    extractor = open_extractor(make_config(), "digits", CPU)
    images = noise(600)
    whole = extractor(images)
    assert whole["pool"].shape == (600, 64) and whole["logits"].shape == (600, 10)
    assert (extractor(images[250:500])["pool"] == whole["pool"][250:500]).all()


def test_digits_are_for_digits(make_config):
    config = make_config()
    with pytest.raises(UserError, match="takes images of 8x8 pixels, found 16x16"):
        open_extractor(config, "digits", CPU)(noise(2, side=16))
    other = config.model_copy(update={"data": config.data.model_copy(update={"dataset": "cifar10"})})
    with pytest.raises(UserError, match=r"protocol.extractor is digits, but data.dataset is cifar10"):
        open_extractor(other, "digits", CPU)


# ---- where weights come from


@pytest.mark.parametrize("name", ["inception", "inception_2015"])
def test_a_file_that_is_not_the_2015_inception_is_refused(make_config, tmp_path, name):
    (tmp_path / "weights.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"weights.pt is not .*Inception.*its content is sha256:"):
        EXTRACTORS[name].locate(make_config(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="There is no file"):
        EXTRACTORS[name].locate(make_config(), tmp_path / "nowhere.pt")


def test_assets_are_looked_for_before_anything_is_fetched(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAI_BENCH_ASSETS", str(tmp_path))
    for name in (networks.COMPAT_FILE, "fid_inception.pt"):
        (tmp_path / name).write_bytes(b"wrong content, but found")
    for name, file in (("inception", networks.COMPAT_FILE), ("inception_2015", "fid_inception.pt")):
        with pytest.raises(UserError, match=f"{file} is not"):
            EXTRACTORS[name].locate(make_config(), None)


def test_a_failed_download_says_what_to_do(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(outside, "_copy", refuse)
    with pytest.raises(UserError, match=r"could not be fetched \(no network\).*--weights FILE"):
        EXTRACTORS["inception"].locate(make_config(), None)
    assert "downloading" in capsys.readouterr().err


# ---- the networks


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A file of random weights in torch-fidelity's form, whose norms are no identities."""
    torch.manual_seed(0)
    layers = inception_layers()
    for name, value in layers.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.8, 1.2)
        elif name.endswith(("bn.bias", "running_mean")):
            value.normal_(std=0.2)
    head = {"fc.weight": torch.randn(1008, 2048) / 50, "fc.bias": torch.ones(1008)}
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(dict(layers.state_dict()) | head, path)
    return path


@torch.inference_mode()
def test_the_inception_is_torch_fidelitys(random_inception):
    """Its own forward pass on the same file, without norms that are folded; 7 · 17 · 17 = 2,023 spatial
    numbers in the order height, width, channel, as ADM flattens them."""
    from torch_fidelity import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    path = str(random_inception)
    theirs = FeatureExtractorInceptionV3("oracle", names, feature_extractor_weights_path=path)
    mixed_6 = []
    theirs.Mixed_6d.register_forward_hook(lambda module, inputs, output: mixed_6.append(output))
    images = torch.from_numpy(noise(2, side=40)[:, :32]).permute(0, 3, 1, 2)
    pool, logits = theirs(images)
    found = load_compat(random_inception)(images)
    assert list(found) == ["spatial", "pool", "logits"]
    for name, value in (("pool", pool), ("logits", logits)):
        assert (found[name] - value).norm() < 1e-5 * value.norm()
    expected = mixed_6[0][:, :7].permute(0, 2, 3, 1).reshape(2, 2023)
    assert (found["spatial"] - expected).norm() < 1e-5 * expected.norm()
    assert expected.std() > 0


@torch.inference_mode()
def test_parts_of_a_batch_are_the_batch(random_inception, monkeypatch):
    network = load_compat(random_inception)
    images = torch.from_numpy(noise(3, side=32)).permute(0, 3, 1, 2)
    whole = network(images)
    monkeypatch.setattr(inception, "CPU_BATCH", 2)
    for name, value in network(images).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (400, 300), (7, 512)])
def test_images_are_resized_as_tensorflow_does(size):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = torch.randint(
        0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    theirs = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    assert torch.equal(resize_as_tensorflow(images, 299), theirs)


def test_dinov2_reads_a_file_of_its_model_and_no_other(tmp_path):
    timm = pytest.importorskip("timm", reason="needs timm (pip install 'mirai-bench[encoders]')")
    from safetensors.torch import save_file

    small = "vit_small_patch14_dinov2"
    torch.manual_seed(0)
    # Its positions are those of 518 pixels, as published.
    state = timm.create_model(small, pretrained=False, num_classes=0).state_dict()
    save_file(state, tmp_path / "small.safetensors")
    features = Dinov2(tmp_path / "small.safetensors", small).eval()(
        torch.from_numpy(noise(2, side=32)).permute(0, 3, 1, 2)
    )
    assert features["pool"].shape == (2, 384) and features["pool"].isfinite().all()
    save_file(
        {name: tensor for name, tensor in state.items() if "norm" not in name}, tmp_path / "part.safetensors"
    )
    with pytest.raises(UserError, match="is not the weight file of"):
        Dinov2(tmp_path / "part.safetensors", small)


# ---- with the real files


def torch_fidelitys_network(weights: Path) -> torch.nn.Module:
    """Returns its own implementation of the network, with the TorchScript file's weights."""
    from torch_fidelity import FeatureExtractorInceptionV3

    script = torch.jit.load(str(weights), map_location="cpu")
    script = (script.net if hasattr(script, "net") else script).layers.state_dict()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "load", lambda *_, **__: {})
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=""
        )
    theirs = {
        name: value
        for name, value in network.state_dict().items()
        if "num_batches" not in name and not name.startswith("fc.")
    }
    layers = [name.removesuffix(".conv.weight") for name in theirs if name.endswith(".conv.weight")]
    ours = [name.removesuffix(".weight") for name in script if name.endswith(".weight")]
    assert len(layers) == len(ours) == 94
    for layer, name in zip(layers, ours, strict=True):
        values = (script[f"{name}.{part}"] for part in ("weight", "beta", "mean", "var"))
        for part, value in zip(
            ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"), values, strict=True
        ):
            theirs[f"{layer}.{part}"].copy_(value)
        theirs[f"{layer}.bn.weight"].fill_(1)
    return network.eval()


@pytest.mark.slow
@torch.inference_mode()
def test_the_torchscript_inception_is_torch_fidelitys():
    network = torch_fidelitys_network(asset(*TORCHSCRIPT_FILES))
    mixed_6 = []
    network.Mixed_6d.register_forward_hook(lambda module, inputs, output: mixed_6.append(output))
    images = torch.from_numpy(noise(4, side=48)).permute(0, 3, 1, 2)
    ours = load_2015(asset(*TORCHSCRIPT_FILES))(images)
    (theirs,) = network(images)
    spatial = mixed_6[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    assert (ours["pool"] - theirs).norm() < 1e-5 * theirs.norm()
    assert (ours["spatial"] - spatial).norm() < 1e-5 * spatial.norm()


@pytest.mark.slow
def test_fid_of_cifar10_train_and_test(make_config, monkeypatch):
    """2,000 training against 2,000 test images, by ours and by the whole of torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.utils import get_featuresdict_from_dataset

    weights = asset(*TORCHSCRIPT_FILES)
    with np.load(asset("cifar10.npz"), allow_pickle=False) as arrays:
        train = arrays["x_train"][:2000]
        test = arrays["x_test"][:2000]
    config: RunConfig = make_config(machine={"assets": str(weights.parent)})
    folder = config.machine.runs
    np.savez(folder / "train.npz", arr_0=train)
    extractor = open_extractor(config, "inception_2015", CPU)
    reference = open_reference(config, str(folder / "train.npz"), extractor)
    ours = measure(StoredImages(ImageArray(test)), extractor, reference).metrics
    network = torch_fidelitys_network(weights)
    theirs = []
    for images in (test, train):
        dataset = ImageTensors(images)
        features = get_featuresdict_from_dataset(dataset, network, 64, False, True, False)["2048"]
        theirs.append(fid_features_to_statistics(features.double()))
    expected = fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]
    assert ours["FID"] == pytest.approx(expected, rel=0.02)
    assert expected == pytest.approx(25.3, rel=0.03)
    assert ours["sFID"] > 0
    assert ours["KID"] < 0.005
    assert ours["precision"] > 0.5
    assert ours["recall"] > 0.5
    assert "IS" not in ours
