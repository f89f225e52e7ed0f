"""Evaluation: its number depends on neither batch size nor processes, and is torch-fidelity's."""

import json
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from mirai_bench.data.codes import images_of, open_codes
from mirai_bench.data.images.image_sets import NpzImages, NpzWriter
from mirai_bench.evaluate import evaluation, measure
from mirai_bench.evaluate.__main__ import command
from mirai_bench.evaluate.evaluation import Evaluator, check_evaluation
from mirai_bench.evaluate.extractors import EXTRACTORS, FeatureCollector, open_extractor
from mirai_bench.evaluate.measure import FEWEST, SampledImages, StoredImages, Unit, round_robin
from mirai_bench.evaluate.metrics import Gaussian
from mirai_bench.evaluate.references import Reference, open_reference
from mirai_bench.model.transformer import build_model
from mirai_bench.utils.cli import run
from mirai_bench.utils.distributed import Ranks
from mirai_bench.utils.errors import UserError
from tests.support.features import ImageTensors

CPU = torch.device("cpu")


def some_digits(config, split):
    return np.concatenate([batch for batch, _ in images_of(config, split)])


def model_of(config, seed=0):
    """Not trained, but unlike the zero-initialised head it prefers some codes."""
    model = build_model(config).requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return model


def test_what_an_evaluation_says(make_config):
    config = make_config()
    result = Evaluator(config, CPU).evaluate_model(model_of(config))
    names = (
        "FD-digits KID-digits MIND-digits precision recall density coverage copies class_accuracy heldout_ntp"
    )
    assert list(result.metrics) == names.split()
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert set(result.provenance) == {"protocol", "protocol_digest", "extractor", "reference"}
    assert result.provenance["protocol_digest"] == config.evaluation.protocol.digest()
    assert result.provenance["reference"]["name"] == "digits/train"
    assert result.provenance["reference"]["n"] == 1500
    assert result.provenance["extractor"]["sha256"].startswith("sha256:")
    assert result.grid.dtype == np.uint8 and result.grid.shape == (340, 340, 3)
    json.dumps([result.metrics, result.provenance])


@pytest.mark.parametrize("batch_size", [1000, 7])
def test_the_batch_size_changes_no_number(make_config, batch_size):
    config = make_config(evaluation={"protocol": {"num_samples": 30}})
    expected = Evaluator(config, CPU).evaluate_model(model_of(config), batch_size=64)
    found = Evaluator(config, CPU).evaluate_model(model_of(config), batch_size=batch_size)
    assert found.metrics == expected.metrics and (found.grid == expected.grid).all()


def test_real_digits_score_best(make_config):
    """Held-out images against the training split: what a perfect model would get."""
    config = make_config()
    extractor = open_extractor(config, "digits", CPU)
    reference = open_reference(config, "train", extractor)
    real = FeatureCollector(297, extractor.entry, CPU)
    real.add(extractor(some_digits(config, "heldout")))
    found = measure.compare(real, reference, CPU)
    noise = Evaluator(config, CPU).evaluate_model(model_of(config)).metrics
    assert found["FD-digits"] < noise["FD-digits"] / 20
    assert found["precision"] > 0.85
    assert found["coverage"] > 0.5


def register_with_torch_fidelity(name, extractor):
    """Makes an extractor known to torch-fidelity, so that its whole pipeline can run through it."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor

    class Registered(FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)
            self.network = extractor.network

        def forward(self, images):
            features = self.network(images)
            return tuple(features[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list():
            return extractor.entry.features

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "pool"

        @staticmethod
        def can_be_compiled():
            return False

    register_feature_extractor(name, Registered)


def test_metrics_are_those_of_torch_fidelity_on_the_same_images(make_config):
    """Its whole pipeline, from a Dataset through the registered extractor, against ours."""
    from torch_fidelity import calculate_metrics

    config = make_config()
    extractor = open_extractor(config, "digits", CPU)
    register_with_torch_fidelity("digits-for-the-oracle", extractor)
    ours = some_digits(config, "heldout")
    oracle = calculate_metrics(
        input1=ImageTensors(ours),
        input2=ImageTensors(some_digits(config, "train")),
        feature_extractor="digits-for-the-oracle",
        cuda=False,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=20,
        kid_subset_size=297,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    collected = FeatureCollector(len(ours), extractor.entry, CPU)
    for start in range(0, len(ours), 100):
        collected.add(extractor(ours[start : start + 100]))
    found = measure.compare(collected, open_reference(config, "train", extractor), CPU)
    assert found["FD-digits"] == pytest.approx(oracle["frechet_inception_distance"], rel=1e-5)
    assert found["KID-digits"] == pytest.approx(oracle["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)
    assert found["precision"] == pytest.approx(oracle["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(oracle["recall"], abs=1e-6)


def test_heldout_loss_is_the_mean_over_tokens_without_dropout(make_config):
    config = make_config()
    model = model_of(config)
    tokens, labels = open_codes(config, "heldout", CPU).all()
    log_p = model(tokens, labels).logits.double().log_softmax(-1)
    expected = -log_p.gather(-1, tokens[..., None]).mean().item()
    evaluator = Evaluator(config, CPU)
    assert evaluator.heldout_ntp(model) == pytest.approx(expected, rel=1e-6)
    # A zero head knows nothing.
    assert evaluator.heldout_ntp(build_model(config)) == pytest.approx(math.log(17), rel=1e-6)


def test_what_evaluations_share_is_opened_once(make_config, monkeypatch):
    config = make_config()
    evaluator = Evaluator(config, CPU)
    first = evaluator.evaluate_model(model_of(config))
    for name in ("open_extractor", "open_reference", "load_tokenizer", "open_codes"):
        monkeypatch.delattr(evaluation, name)
    assert evaluator.evaluate_model(model_of(config)).metrics == first.metrics


def test_ranks_take_turns_and_rank_0_has_all_in_order():
    assert list(round_robin(5, lambda number: number * 10, Ranks())) == [0, 10, 20, 30, 40]


def test_the_time_of_sampling_is_that_of_rank_0(make_config, monkeypatch):
    """With the sum over ranks, what is left for the rest of an evaluation was less than nothing."""
    config = make_config()
    evaluator = Evaluator(config, CPU)

    def units(source, meter, *others):
        for number in range(4):
            images, labels = source.read(range(number * 25, number * 25 + 25))
            yield Unit(images, labels, 25, meter.look(images, images), 1.0 if number % 2 else 0.25)

    monkeypatch.setattr(measure, "units", units)
    source = SampledImages(model_of(config), evaluator.tokenizer, evaluator.protocol, 0, None)
    found = measure.measure(source, evaluator.extractor, evaluator.reference, ranks=Ranks(0, 2, None))
    assert found.sample_seconds == 0.5


def test_one_and_two_processes_give_the_same_images_and_number(trained_run, tmp_path):
    """600 samples are two units of work; the second run also has another batch size."""
    common = [str(trained_run), "--device", "cpu", "--set", "evaluation.protocol.num_samples=600", "--npz"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    torchrun = [*launcher, "-m", "mirai_bench.evaluate"]
    two = subprocess.run(
        [*torchrun, *common, str(tmp_path / "two.npz"), "--batch-size", "130"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert two.returncode == 0, two.stderr
    (line,) = (line for line in two.stdout.splitlines() if line.startswith("{"))
    record = tmp_path / "one.jsonl"
    assert run(command, [*common, str(tmp_path / "one.npz"), "--record", str(record)]) == 0
    one = json.loads(record.read_text())
    assert one["metrics"] == json.loads(line)["metrics"]
    assert one["protocol"]["num_samples"] == 600
    with np.load(tmp_path / "one.npz") as ours, np.load(tmp_path / "two.npz") as theirs:
        assert (ours["arr_0"] == theirs["arr_0"]).all()
        assert (ours["arr_1"] == theirs["arr_1"]).all()
        assert len(ours["arr_0"]) == 600


class Projection:
    """Stands for an opened extractor of EXTRACTORS[name]: three fixed sums of an image."""

    def __init__(self, name):
        self.name = name
        self.entry = EXTRACTORS[name]
        self.device = CPU

    def __call__(self, batch):
        return {
            "pool": batch.reshape(len(batch), -1)[:, :3].astype(np.float32),
            "spatial": batch[:, 0, :4, 0].astype(np.float32),
        }


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = {}
    side = 32
    pool = Gaussian(np.zeros(3), np.eye(3))
    reference = Reference("r", "sha256:", 9, pool, Gaussian(np.zeros(4), np.eye(4)))
    for n in (2000, 6000):
        writer = NpzWriter(tmp_path / f"{n}.npz", n)
        rng = np.random.default_rng(0)
        for _ in range(n // 500):
            writer.add(rng.integers(0, 256, (500, side, side, 3), dtype=np.uint8), None)
        writer.close()
        tracemalloc.start()
        measured = measure.measure(
            StoredImages(NpzImages(tmp_path / f"{n}.npz")), Projection("inception_2015"), reference
        )
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert set(measured.metrics) == {"FID", "sFID"} and measured.metrics["FID"] > 0
    images = 4000 * side * side * 3
    features = 4000 * 3 * 8
    assert peaks[6000] - peaks[2000] < features + images / 20


def test_too_few_images_are_refused():
    source = type("Nine", (), {"__len__": lambda self: FEWEST - 1})()
    with pytest.raises(UserError, match="needs 10 images or more, found 9"):
        measure.measure(source, Projection("digits"), None)


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_and_its_images_give_the_same_numbers(trained_run, make_config, tmp_path, capsys):
    npz = tmp_path / "samples.npz"
    folder = tmp_path / "png"
    journal = [json.loads(line) for line in (trained_run / "journal.jsonl").read_text().splitlines()]
    trained = next(line for line in reversed(journal) if line["kind"] == "evaluation")
    device = ["--device", "cpu"]
    assert run(command, [str(trained_run), "--npz", str(npz), "--extrapolate", *device]) == 0
    (of_run,) = lines_of(capsys)
    assert of_run["metrics"].pop("FD-digits-infinity") < of_run["metrics"]["FD-digits"]
    assert of_run["metrics"] == trained["metrics"]
    keys = (
        "fingerprint seed epoch step protocol extractor reference parameters train_flops git versions config"
    )
    for key in keys.split():
        assert of_run[key] == trained[key], key
    folder.mkdir()
    with np.load(npz) as arrays:
        for number, image in enumerate(arrays["arr_0"]):
            Image.fromarray(image).save(folder / f"{number:06d}.png")
    runs = ["--set", f"machine.runs={trained_run.parent}"]
    for images, missing in ((npz, {"heldout_ntp"}), (folder, {"heldout_ntp", "class_accuracy"})):
        assert run(command, [str(images), "--protocol", "digits", *runs, *device]) == 0
        (found,) = lines_of(capsys)
        assert found["metrics"] == {
            key: value for key, value in trained["metrics"].items() if key not in missing
        }
        assert found["source"]["n"] == found["protocol"]["num_samples"] == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--protocol", "digts"], "Did you mean 'digits'"),
        (["RUN", "--set", "model.depth=4"], "only fields of evaluation and machine"),
        (["RUN", "--set", "evaluation.protocol.extractor=inceptoin"], "Did you mean 'inception'"),
        (["RUN", "--set", "evaluation.protocol.reference=nowhere.npz"], "'nowhere.npz', which is not there"),
        (["RUN", "--set", "evaluation.protocol.num_samples=5"], "10 images or more, found 5"),
        (["RUN", "--batch-size", "0"], "--batch-size is 0"),
        (["RUN", "--config", "digits"], "is a run and has its own"),
        (["RUN", "--npz", "samples.zip"], "ends in .npz"),
        (["nowhere", "--protocol", "digits"], "There is no 'nowhere'"),
        (["FOLDER"], "name a --protocol"),
        (["compare", "RUN", "injection/baseline"], "There is no 'injection/baseline'"),
    ],
)
def test_bad_requests_end_in_one_message(trained_run, tmp_path, capsys, arguments, message):
    names = {"RUN": str(trained_run), "FOLDER": str(tmp_path)}
    device = [] if arguments[0] == "compare" else ["--device", "cpu"]
    assert run(command, [names.get(word, word) for word in arguments] + device) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"extractor": "dinov3"}, "Unknown extractor 'dinov3'"),
        ({"reference": "nowhere"}, "which is not there"),
        ({"extractor": "inception_2015"}, "needs fid_inception.pt"),
    ],
)
def test_a_config_that_cannot_be_evaluated_is_known_before_training(
    make_config, monkeypatch, protocol, message
):
    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    check_evaluation(make_config())
    with pytest.raises(UserError, match=message):
        check_evaluation(make_config(evaluation={"protocol": protocol}))


def test_a_run_that_was_moved_writes_nothing_where_it_once_was(make_config, tmp_path, capsys):
    from tests.support.small_run import train

    config = make_config(machine={"runs": str(tmp_path / "old")})
    train(config, config.run_path)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "old").touch()  # a place that cannot be written any more
    moved = tmp_path / "new" / config.run_path.name
    assert run(command, [str(moved), "--device", "cpu"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_weights_of_an_extractor_that_are_none_are_a_message(trained_run, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"hello")
    assert run(command, [str(trained_run), "--weights", str(tmp_path / name), "--device", "cpu"]) == 2
    assert name in capsys.readouterr().err
