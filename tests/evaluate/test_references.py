"""Reference statistics: every kind of file in use is read, and a wrong kind is refused by name."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mirai_bench.data.images.image_sets import npz_arrays
from mirai_bench.evaluate import reference_images, references
from mirai_bench.evaluate.__main__ import command
from mirai_bench.evaluate.extractors import EXTRACTORS, FeatureCollector, open_extractor
from mirai_bench.evaluate.reference_images import ReferenceImages
from mirai_bench.evaluate.references import open_reference, write_reference
from mirai_bench.utils.errors import UserError
from tests.support.features import gaussian_of
from tests.support.images import noise

NOISE = {"name": "noise", "sha256": "sha256:x"}


class Projection:
    """Stands for an opened extractor: random projections, the same in every process."""

    def __init__(self, name, sha256="sha256:stub"):
        self.name = name
        self.entry = EXTRACTORS[name]
        self.device = torch.device("cpu")
        self.identity = {"name": name, "sha256": sha256}
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        x = batch.reshape(len(batch), -1)[:, :64] / 255
        widths = {"pool": 6, "spatial": 9, "logits": 10}
        return {
            name: x @ np.random.default_rng(widths[name]).normal(size=(64, widths[name]))
            for name in self.entry.features
        }


@pytest.mark.parametrize("name", EXTRACTORS)
def test_our_own_file_comes_back(make_config, tmp_path, name):
    images = noise(120)
    extractor = Projection(name)
    path = tmp_path / "ours.npz"
    batches = iter(np.split(images, 3))
    manifest = write_reference(path, ReferenceImages(batches, 120, NOISE), extractor)
    assert list(tmp_path.iterdir()) == [path]
    assert manifest["n"] == 120 and manifest["extractor"] == extractor.identity
    found = open_reference(make_config(), str(path), extractor)
    features = extractor(images)
    assert found.identity == NOISE | {"n": 120}
    for part, name in ((found.pool, "pool"), (found.spatial, "spatial")):
        if name in features:
            np.testing.assert_allclose(part.mean, gaussian_of(features[name]).mean)
            np.testing.assert_allclose(part.cov, gaussian_of(features[name]).cov)
    np.testing.assert_allclose(found.features, features["pool"], rtol=1e-6)


def test_our_own_file_of_another_extractor_is_refused(make_config, tmp_path):
    path = tmp_path / "ours.npz"
    write_reference(path, ReferenceImages([noise(12)], 12, NOISE), Projection("digits"))
    for other in (Projection("dinov2"), Projection("digits", "sha256:other weights")):
        with pytest.raises(UserError, match="was made with extractor"):
            open_reference(make_config(), str(path), other)


def test_images_are_seen_once_and_kept(make_config, tmp_path):
    """A folder and an .npz of the same images, and the same again from the cache."""
    images = noise(40, seed=1)
    extractor = Projection("dinov2")
    np.savez(tmp_path / "images.npz", arr_0=images)
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    for number, image in enumerate(images):
        place = "deeper" if number >= 20 else "."
        Image.fromarray(image).save(tmp_path / "folder" / place / f"{number:03d}.png")
    first = open_reference(make_config(), str(tmp_path / "images.npz"), extractor)
    calls = extractor.calls
    again = open_reference(make_config(), str(tmp_path / "images.npz"), extractor)
    assert extractor.calls == calls and (again.pool.cov == first.pool.cov).all()
    folder = open_reference(make_config(), str(tmp_path / "folder"), extractor)
    np.testing.assert_allclose(folder.pool.cov, first.pool.cov)
    assert folder.n == first.n == 40 and folder.sha256 != first.sha256


def inception_statistics(**more):
    """Of the right shape; float16 keeps the file small."""
    return {"mu": np.zeros(2048, np.float16), "sigma": np.eye(2048, dtype=np.float16)} | more


def test_files_of_edm_and_adm(make_config, tmp_path):
    config = make_config()
    extractor = Projection("inception_2015")
    spatial = {"mu_s": np.ones(2023, np.float16), "sigma_s": np.eye(2023, dtype=np.float16)}
    np.savez(tmp_path / "edm.npz", **inception_statistics())
    np.savez(tmp_path / "adm.npz", arr_0=noise(30), **inception_statistics(**spatial))
    edm, adm = (open_reference(config, str(tmp_path / f"{name}.npz"), extractor) for name in ("edm", "adm"))
    assert edm.spatial is None and edm.features is None and edm.n is None
    assert adm.spatial.mean.dtype == np.float64
    assert adm.spatial.mean[0] == 1
    assert adm.pool.cov.shape == (2048, 2048)
    np.testing.assert_allclose(adm.features, extractor(noise(30))["pool"], rtol=1e-6)
    for other in ("digits", "dinov2"):
        message = f"edm.npz holds statistics of Inception features, but protocol.extractor is {other}"
        with pytest.raises(UserError, match=message):
            open_reference(config, str(tmp_path / "edm.npz"), Projection(other))


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


WRONG = {
    "stats.pkl": (b"\x80\x04", "pickles are not read"),
    "text.npz": (b"not a zip file", "not an .npz file"),
    "cifar10.npz": (
        _npz(x_train=noise(3), y_train=np.zeros(3)),
        "it holds x_train, y_train; expected images",
    ),
    "floats.npz": (_npz(arr_0=np.zeros((4, 8, 8, 3))), "expected arr_0, uint8"),
    "latents.npz": (_npz(arr_0=np.zeros((4, 8, 8, 4), np.uint8)), "expected arr_0, uint8"),
    "other_width.npz": (_npz(mu=np.zeros(768), sigma=np.eye(768)), "mu is float64 (768,), expected"),
    "integers.npz": (
        _npz(mu=np.zeros(2048, int), sigma=np.zeros((2, 2))),
        "not statistics of the 2015 Inception",
    ),
    "objects.npz": (_npz(arr_0=np.array([{}], dtype=object)), "cannot be read safely|can be read safely"),
    "empty.npz": (_npz(), "it holds nothing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_the_wrong_kind_is_refused_by_name(make_config, tmp_path, name):
    content, message = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        open_reference(make_config(), str(tmp_path / name), Projection("inception_2015"))
    assert name in str(refused.value) and any(part in str(refused.value) for part in message.split("|"))


def test_a_reference_is_looked_for_among_the_assets(tmp_path, monkeypatch):
    np.savez(tmp_path / "images.npz", arr_0=noise(20))
    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    with pytest.raises(UserError, match=r"'images.npz', which is not there"):
        references.find_reference(None, "images.npz")
    monkeypatch.setenv("MIRAI_BENCH_ASSETS", str(tmp_path))
    assert references.find_reference(None, "images.npz") == tmp_path / "images.npz"
    monkeypatch.delenv("MIRAI_BENCH_ASSETS")
    assert references.find_reference(tmp_path, "images.npz").is_file()


def test_few_of_many_features_are_kept_evenly():
    extractor = Projection("dinov2")
    images = noise(100)
    collected = FeatureCollector(100, extractor.entry, extractor.device, keep=7)
    for part in np.split(images, [13, 14, 60]):
        collected.add(extractor(part))
    np.testing.assert_allclose(collected.kept, extractor(images)["pool"][np.arange(7) * 100 // 7])
    expected = gaussian_of(extractor(images)["pool"]).cov
    np.testing.assert_allclose(collected.moments["pool"].gaussian().cov, expected)


def test_all_features_of_a_training_split_are_kept(make_config, monkeypatch):
    """The other metrics see as many as before, evenly spaced."""
    config = make_config(machine={"runs": str(make_config().machine.runs / "kept")})
    for module in (references, reference_images):
        monkeypatch.setattr(module, "FEATURES_KEPT", 100)
    extractor = open_extractor(config, "digits", torch.device("cpu"))
    found = open_reference(config, "train", extractor)
    assert found.copies.training.shape[0] == 1500 and found.features.shape[0] == 100
    np.testing.assert_array_equal(found.features, found.copies.training[::15])
    monkeypatch.setattr(reference_images, "TRAINING_KEPT", 1000)
    monkeypatch.setattr(references, "RECIPE", 0)
    assert open_reference(config, "train", extractor).copies is None


def test_reference_command(make_config, tmp_path, capsys):
    out = tmp_path / "heldout.npz"
    runs = make_config().machine.runs
    options = ["--extractor", "digits", "--set", f"machine.runs={runs}", "--device", "cpu"]
    assert command(["reference", "heldout", str(out), *options]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["name"] == "digits/heldout" and manifest["n"] == 297
    assert npz_arrays(out)["mu"][0] == (64,)


@pytest.mark.parametrize("name", ["mu", "sigma", "mu_s", "sigma_s"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused_by_name(make_config, tmp_path, name, value):
    """Before any sample is drawn: scipy's error would come after the last."""
    arrays = {key: np.zeros(shape, np.float32) for key, shape in references.INCEPTION_SHAPES.items()}
    arrays[name].flat[7] = value
    np.savez(tmp_path / "fp16.npz", **arrays)
    with pytest.raises(UserError, match=rf"fp16\.npz: .*{name}.* is not finite"):
        open_reference(make_config(), str(tmp_path / "fp16.npz"), Projection("inception_2015"))


def test_samples_of_another_resolution_are_said(make_config, tmp_path, capsys):
    extractor = Projection("digits")
    write_reference(tmp_path / "x.npz", ReferenceImages([noise(12)], 12, NOISE), extractor)
    found = open_reference(make_config(), str(tmp_path / "x.npz"), extractor)
    found.say_other_size(8)
    assert "pixels" not in capsys.readouterr().err
    found.say_other_size(32)
    assert "samples of 32 pixels are compared with" in capsys.readouterr().err
    assert found.identity == NOISE | {"n": 12}, "records stay as they were"
