"""The cache of a frozen encoder's features: what it holds, and when it is made again."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mirai_bench.config.load import build_run, merge, read_profile
from mirai_bench.data.codes import Codes, open_codes
from mirai_bench.data.pixels import Pixels
from mirai_bench.data.shards import ShardedArray
from mirai_bench.foresight.context import SourceContext
from mirai_bench.foresight.encoders import feature_cache
from mirai_bench.foresight.encoders.build import build_encoder
from mirai_bench.foresight.encoders.feature_cache import cached_features
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.utils.errors import UserError
from tests.support.small_run import new_trainer

pytest.importorskip("timm", reason="needs the optional extra: pip install -e '.[encoders]'")


CPU = torch.device("cpu")


@pytest.fixture
def digits_config(make_config, tmp_path):
    """The digits profile with a tiny image encoder, whose random weights lie in a file."""
    import timm

    network = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=128)
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    encoder = {"name": "timm:test_vit", "weights": str(tmp_path / "tiny.safetensors")}
    return lambda **fields: make_config(
        foresight={"level": "internal", "source": "encoder", "k": 1, "encoder": encoder | fields},
        machine={"runs": str(tmp_path / "runs")},
    )


@pytest.fixture
def few_codes(make_config):
    """The first 40 digits."""
    config = make_config()
    codes = open_codes(config, "train", CPU)
    pixels = Pixels(lambda: codes.pixels.dataset, np.arange(40), config.data, CPU)
    tokens = codes.all()[0][:40, None].numpy().astype(np.uint16)
    return Codes(ShardedArray([tokens]), codes.labels[:40].numpy(), pixels, codes.manifest, CPU)


def built(config, codes):
    """The encoder that the config names, which needs neither EMA nor teacher."""
    return build_encoder(SourceContext(config, None, codes, None, CPU))


def test_the_cache_holds_what_the_encoder_gives(digits_config, few_codes):
    live, stored = digits_config(), digits_config(cache=True)
    assert live.fingerprint() != stored.fingerprint()  # half precision changes numbers
    encoder, cache = built(live, few_codes), built(stored, few_codes)
    batch = few_codes.batch(seed=1, step=1, rank=0, world=1, batch_size=16)
    assert cache.stored.shape == (40, 1, 64, encoder.width) and cache.stored.dtype == np.float16
    assert isinstance(cache.stored, np.memmap) and cache.width == encoder.width
    torch.testing.assert_close(
        cache(batch, batch.labels), encoder(batch, batch.labels).half().float(), rtol=0, atol=2e-3
    )


def test_an_encoder_may_hand_over_features_in_any_layout(digits_config, few_codes, monkeypatch, tmp_path):
    """Such as a view of (B, C, h, w), which is what a convolutional network gives on a GPU."""
    config = digits_config()
    encoder = PixelEncoder("timm:test_vit", config.grid, CPU, weights=config.foresight.encoder.weights)
    features = PixelEncoder.features
    found = []
    for name in ("rows", "view"):
        (tmp_path / name).mkdir()
        feature_cache.write_features(encoder, few_codes, tmp_path / name)
        found.append(np.load(tmp_path / name / "features.npy"))
        other = lambda self, images: features(self, images).mT.contiguous().mT  # noqa: E731
        monkeypatch.setattr(PixelEncoder, "features", other)
    assert np.array_equal(*found)


def test_the_cache_is_made_once_and_again_for_another_encoder(digits_config, few_codes, monkeypatch):
    config = digits_config(cache=True)
    made = lambda: {path.name for path in (config.machine.runs / "cache").glob("features-*") if path.is_dir()}  # noqa: E731
    built(config, few_codes)
    assert len(made()) == 1
    monkeypatch.setattr(feature_cache, "write_features", lambda *_: pytest.fail("made twice"))
    built(config, few_codes)
    monkeypatch.undo()
    cached_features(PixelEncoder("timm:test_vit", config.grid, CPU, weights="random"), config, few_codes, CPU)
    built(digits_config(cache=True, context={"block_causal": 8}), few_codes)
    assert len(made()) == 3


def interrupted(config, codes, monkeypatch, after):
    """Builds the cache, which is interrupted after some batches of eight views."""
    features = PixelEncoder.features
    calls = []

    def until_interrupted(self, images):
        calls.append(len(images))
        if len(calls) > after + 1:  # the first call only looks at the shape
            raise KeyboardInterrupt
        return features(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(PixelEncoder, "features", until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            built(config, codes)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_cache_goes_on_where_it_stopped(digits_config, few_codes, monkeypatch, damaged):
    monkeypatch.setattr(feature_cache, "BATCH_SIZE", 8)
    monkeypatch.setattr(feature_cache, "BATCHES_PER_MARK", 2)
    config = digits_config(cache=True)
    interrupted(config, few_codes, monkeypatch, after=3)
    cache = config.machine.runs / "cache"
    (partial,) = cache.glob("features-*.partial")
    assert not [path for path in cache.iterdir() if path.is_dir() and path != partial], "nothing is finished"
    if damaged:
        (partial / "features.npy").write_bytes(b"cut off")
    else:
        (partial / feature_cache.MARK).read_text()
    views = []
    features = PixelEncoder.features
    counted = lambda self, images: views.append(len(images)) or features(self, images)  # noqa: E731
    monkeypatch.setattr(PixelEncoder, "features", counted)
    source = built(config, few_codes)
    # 40 views, of which 16 were marked as written; one more call looks at the shape.
    assert sum(views[1:]) == (40 if damaged else 24)
    whole = PixelEncoder("timm:test_vit", config.grid, CPU, weights=config.foresight.encoder.weights)
    parts = torch.arange(40).split(8)
    expected = [whole.features(few_codes.pixels(part, 0 * part)).half().numpy() for part in parts]
    assert np.array_equal(source.stored[:, 0], np.concatenate(expected))
    (made,) = [path for path in cache.glob("features-*") if path.is_dir()]
    assert {path.name for path in made.iterdir()} == {"features.npy", "record.json", "sha256.json"}
    assert source.one_off_seconds > 0


def test_a_run_trains_on_cached_features(digits_config, few_codes, monkeypatch):
    from mirai_bench.train import trainer

    monkeypatch.setattr(trainer, "open_codes", lambda *_: few_codes)
    work = new_trainer(digits_config(cache=True))
    losses = [float(work.step(step)["foresight"]) for step in range(6)]
    assert 0 < losses[-1] < losses[0]


def test_the_built_in_teacher_needs_no_cache():
    fields = merge(read_profile("digits"), {"foresight": {"encoder": {"cache": True}}})
    with pytest.raises(UserError, match="write cache: false"):
        build_run(fields, "test")
