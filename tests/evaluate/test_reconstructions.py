"""The distance to the reference as the tokenizer decodes it: once, cached, and never by accident."""

import numpy as np
import pytest
import torch

from mirai_bench.config.load import build_run
from mirai_bench.data.codes import images_of, open_codes
from mirai_bench.data.images.crops import all_views, base_sizes, center_view
from mirai_bench.data.tokenizers import vq_small
from mirai_bench.evaluate import reconstructions
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.evaluate.extractors import FeatureCollector
from mirai_bench.evaluate.measure import compare
from mirai_bench.model.transformer import build_model
from mirai_bench.tokenizer.train import save_weights
from tests.support.features import gaussian_of
from tests.support.images import noise, run_config

CPU = torch.device("cpu")
NAME = "FD-digits-reconstructions"


@pytest.fixture(scope="module")
def lossy(make_config, tmp_path_factory):
    """Digits of 4x4 codes of an untrained tokenizer, which loses much."""
    path = tmp_path_factory.mktemp("weights") / "vq_small.safetensors"
    torch.manual_seed(0)
    model = vq_small.SmallVQ(2, 64, channels=8, blocks=1, width=4)
    model.codebook.normal_(0, 0.3)
    save_weights(model, path)
    tokenizer = {"name": "vq_small", "downsample": 2, "vocabulary": 64, "weights": str(path)}
    return make_config(tokenizer=tokenizer, evaluation={"protocol": {"base": "digits", "num_samples": 20}})


def test_the_view_that_is_decoded_is_the_centre():
    config = run_config({"data": {"image_size": 8, "views": "ten_crop", "crop_ranges": [1.5, 1.25]}})
    bases = [torch.from_numpy(noise(2, side)) for side in base_sizes(config.data)]
    views = all_views(bases, config.data)
    assert torch.equal(views[:, center_view(config.data)], bases[0][:, 2:10, 2:10])
    assert center_view(run_config().data) == 0


def test_samples_that_are_reconstructions_are_0_away(lossy):
    evaluator = Evaluator(lossy, CPU)
    codes = open_codes(lossy, "train", CPU).all()[0]
    decoded = evaluator.tokenizer.decode(codes).numpy()
    samples = FeatureCollector(len(decoded), evaluator.extractor.entry, CPU)
    samples.add(evaluator.extractor(decoded))
    found = compare(samples, evaluator.with_reconstructions, CPU)
    assert found[NAME] == pytest.approx(0, abs=1e-6 * found["FD-digits"])
    assert found["FD-digits"] > 1, "the tokenizer's own error"
    expected = gaussian_of(evaluator.extractor(decoded)["pool"])
    np.testing.assert_allclose(evaluator.with_reconstructions.reconstructions.cov, expected.cov, atol=1e-9)


def test_the_metric_stands_beside_the_distance_to_images(lossy):
    model = build_model(lossy).requires_grad_(False)
    metrics = Evaluator(lossy, CPU).evaluate_model(model).metrics
    assert list(metrics)[:2] == ["FD-digits", NAME]
    assert metrics[NAME] != metrics["FD-digits"]


def test_the_split_is_decoded_once(lossy, monkeypatch):
    first = Evaluator(lossy, CPU).with_reconstructions
    monkeypatch.delattr(vq_small.VQSmall, "decode")
    again = Evaluator(lossy, CPU).with_reconstructions
    np.testing.assert_array_equal(first.reconstructions.cov, again.reconstructions.cov)


def test_images_alone_have_no_tokenizer(lossy):
    evaluator = Evaluator(lossy, CPU)
    images = noise(20)

    class Images:
        def __len__(self):
            return len(images)

        def read(self, rows):
            return images[rows.start : rows.stop], None

    assert NAME not in evaluator.evaluate(Images()).metrics


def test_where_there_is_nothing_to_add(lossy, make_config, tmp_path, monkeypatch):
    exact = make_config()
    pictures = np.concatenate([batch for batch, _ in images_of(exact, "heldout")])
    np.savez(tmp_path / "images.npz", arr_0=pictures)
    fields = lossy.model_dump(mode="json")
    fields["evaluation"]["protocol"]["reference"] = str(tmp_path / "images.npz")
    for config in (exact, build_run(fields, "test")):
        assert Evaluator(config, CPU).with_reconstructions.reconstructions is None
    monkeypatch.setattr(reconstructions, "MOST_IMAGES", 1000)
    assert Evaluator(lossy, CPU).with_reconstructions.reconstructions is None
