"""Evaluations without an extractor: the held-out loss, and what the planted data set measures."""

import json
import math

import numpy as np
import pytest
import torch

from mirai_bench.config.load import load_run
from mirai_bench.data.codes import open_codes
from mirai_bench.data.images.staircase import floor, make_codes, make_images
from mirai_bench.evaluate.__main__ import command
from mirai_bench.evaluate.evaluation import Evaluator, check_evaluation
from mirai_bench.evaluate.exact import metrics_of_heldout, open_rule
from mirai_bench.evaluate.measure import measure
from mirai_bench.model.transformer import Output, build_model
from mirai_bench.results.frame import lower_is_better
from mirai_bench.sweep.job import preflight
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from tests.support.small_run import train

CPU = torch.device("cpu")
SMALL = ["data.staircase.images=320", "train.epochs=1", "evaluation.at=[1]", "machine.device=cpu"]
SMALL += ["evaluation.protocol.num_samples=40"]


def staircase(*settings):
    return load_run("staircase", [*SMALL, *settings])


class Knowing(torch.nn.Module):
    """A model that is told everything but the cells `blind`, where it knows the two codes only."""

    def __init__(self, blind):
        super().__init__()
        self.blind = blind

    def forward(self, tokens, labels):
        logits = torch.full((*tokens.shape, 50), -40.0)
        logits.scatter_(2, tokens[..., None], 0.0)
        for cell in self.blind:
            logits[:, cell, 2 * cell : 2 * cell + 2] = 0.0
        return Output(logits, None, None)


def exact_metrics(config, blind):
    evaluator = Evaluator(config, CPU)
    nats, accuracy = evaluator.heldout_cells(Knowing(blind))
    return evaluator.rule.of_heldout(nats, accuracy)


def test_a_model_that_cannot_foresee_is_at_chance_in_the_decisive_cell_only():
    found = exact_metrics(staircase(), range(23))
    share = (make_codes(staircase().data.staircase, "heldout")[:, 22] == 44).mean()
    assert found == {
        "heldout_excess": pytest.approx(math.log(2) / 25, abs=1e-6),
        "decisive_nats": pytest.approx(math.log(2)),
        "decisive_accuracy": share,  # of two equal logits the first is taken
        "solved": 0.0,
        "nats_23": pytest.approx(0, abs=1e-6),
        "accuracy_23": 1.0,
        "nats_24": pytest.approx(0, abs=1e-6),
        "accuracy_24": 1.0,
    }


def test_a_model_that_knows_the_rule_is_at_the_floor():
    config = staircase("data.staircase.parities=4")
    found = exact_metrics(config, range(21))
    assert found["heldout_excess"] == pytest.approx(0, abs=1e-6)
    assert found["solved"] == found["decisive_accuracy"] == 1.0
    assert {f"nats_{cell}" for cell in (22, 23, 24)} <= found.keys()
    ntp = Evaluator(config, CPU).heldout_ntp(Knowing(range(21)))
    assert ntp == pytest.approx(floor(config.data.staircase))


def test_cells_average_to_the_held_out_loss():
    config = staircase()
    model = build_model(config).requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    evaluator = Evaluator(config, CPU)
    nats, accuracy = evaluator.heldout_cells(model)
    assert nats.mean().item() == pytest.approx(evaluator.heldout_ntp(model), rel=1e-6)
    tokens, labels = open_codes(config, "heldout", CPU).all()
    right = (model(tokens, labels).logits.argmax(-1) == tokens).double().mean(0)
    assert torch.equal(accuracy, right)


class Images:
    """Images in memory, as an image source without classes."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, rows):
        return self.images[rows.start : rows.stop], None


def test_the_share_of_images_that_obey_the_rule(monkeypatch):
    config = staircase()
    codes = make_codes(config.data.staircase, "heldout")[:100].copy()
    codes[:30, 23] ^= 1  # break a parity of the first thirty
    codes[20:40, 1] = 49  # a code of another cell in twenty, of which ten are broken already
    source = Images(make_images(codes))
    rule = open_rule(config, CPU)
    for unit in (500, 7):
        monkeypatch.setattr("mirai_bench.evaluate.measure.UNIT", unit)
        assert measure(source, None, None, rule=rule).metrics == {"rule": 0.6}
    with pytest.raises(UserError, match="have 25 pixels, found 8x8"):
        measure(Images(np.zeros((10, 8, 8, 3), np.uint8)), None, None, rule=rule)


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory):
    """A finished small run on the planted data set."""
    config = staircase("foresight.level=output", f"machine.runs={tmp_path_factory.mktemp('runs')}")
    train(config, config.run_path)
    return config.run_path


METRICS = "rule heldout_ntp heldout_excess decisive_nats decisive_accuracy solved"
METRICS = [*METRICS.split(), "nats_23", "accuracy_23", "nats_24", "accuracy_24"]


def test_a_run_without_an_extractor(planted_run):
    lines = [json.loads(line) for line in (planted_run / "journal.jsonl").read_text().splitlines()]
    (record,) = [line for line in lines if line["kind"] == "evaluation"]
    assert list(record["metrics"]) == METRICS
    assert record["extractor"] == record["reference"] == {"name": "none"}
    assert all(math.isfinite(value) for value in record["metrics"].values())
    assert [lower_is_better(name) for name in METRICS] == [
        name.startswith(("heldout", "decisive_nats", "nats")) for name in METRICS
    ]
    assert not (planted_run.parent / "cache").exists(), "neither a classifier nor a reference is made"


def test_a_run_and_its_images_give_the_same_rule(planted_run, tmp_path, capsys):
    npz = str(tmp_path / "samples.npz")
    assert run(command, [str(planted_run), "--npz", npz, "--device", "cpu"]) == 0
    of_run = json.loads(capsys.readouterr().out)["metrics"]
    assert run(command, [npz, "--protocol", "exact", "--config", "staircase", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["metrics"] == {"rule": of_run["rule"]}
    assert "against" not in err


def test_other_data_have_their_held_out_loss(make_config):
    config = make_config(evaluation={"protocol": "exact"})
    model = build_model(config).requires_grad_(False)
    found = Evaluator(config, CPU).evaluate_model(model)
    assert found.metrics == {"heldout_ntp": pytest.approx(math.log(17), rel=1e-6)}


def test_the_check_before_a_sweep_needs_no_extractor(tmp_path):
    config = staircase(f"machine.runs={tmp_path}")
    assert preflight([config.model_dump(mode="json")]) == []
    check_evaluation(config)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_measures_nothing_is_refused(make_config, tmp_path):
    config = make_config(
        data={"dataset": "folder", "name": "x"},
        evaluation={"protocol": "exact"},
        machine={"codes": str(tmp_path)},
    )
    with pytest.raises(UserError, match="extractor is none, and the data has no held-out split"):
        check_evaluation(config)
    images = Images(np.zeros((10, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="images alone have no held-out loss"):
        Evaluator(make_config(evaluation={"protocol": "exact"}), CPU).evaluate(images)


def test_a_metric_that_decides_is_a_known_one():
    check_evaluation(staircase("evaluation.primary=decisive_nats"))
    with pytest.raises(UserError, match=r"primary is FID, which is not measured here: write one of h"):
        check_evaluation(staircase("evaluation.primary=FID"))
    found = exact_metrics(staircase(), range(23)).keys()
    assert found == set(metrics_of_heldout(staircase().data.staircase))
    with pytest.raises(UserError, match=r"Unknown metric .* 'colour'"):
        check_evaluation(staircase("evaluation.primary=colour"))
