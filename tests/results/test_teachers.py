"""No arm is judged in the feature space of its own teacher."""

import math
from dataclasses import replace

import pytest

from mirai_bench.evaluate.extractors import EXTRACTORS
from mirai_bench.evaluate.networks import DINOV2_MODEL
from mirai_bench.foresight.encoders.zoo import PIXEL_ENTRIES
from mirai_bench.results.looks import BETTER, decide
from mirai_bench.results.table import build_table
from mirai_bench.results.teachers import SAME_NETWORK, TEACHER, shared_teacher_note, taught_by_judge
from mirai_bench.results.writers import markdown

METRIC = "FD-DINOv2"
LEARNED = {"level": "internal", "source": "encoder", "encoder": {"name": "dinov2_l", "weights": None}}
ARMS = {
    "baseline": {"level": "none"},
    "taught": LEARNED,
    "shuffled": LEARNED | {"source": "shuffled", "shuffled_of": "encoder"},
    "small": LEARNED | {"encoder": {"name": "dinov2_s", "weights": None}},
    "random": LEARNED | {"encoder": {"name": "dinov2_l", "weights": "random"}},
    "ema": LEARNED | {"source": "ema"},
    "output": LEARNED | {"level": "output"},
}
JUDGED = ["small", "random", "ema", "output"]


@pytest.fixture
def results(frozen):
    """Six seeds of each arm, all of them a little better than the baseline by both metrics."""
    base = frozen.records[0]
    records, cells = [], []
    for number, (arm, foresight) in enumerate(ARMS.items()):
        run = base["run"] | {"extractor": {"name": "dinov2"}}
        run |= {"config": run["config"] | {"foresight": foresight}}
        for seed in range(10, 16):
            noise = 0.01 * math.sin(seed + number)
            loss = 2 - 0.1 * (number > 0) + noise
            metrics = {METRIC: 100 * loss, "KID-DINOv2": loss, "heldout_ntp": loss}
            cells.append({"arm": arm, "seed": seed, "fingerprint": "0" * 12, "status": "done"})
            records.append(base | {"arm": arm, "seed": seed, "metrics": metrics, "run": run})
    plan = {"primary": None, "looks": [6], "smallest_effect": None, "families": {}, "exclusions": []}
    plan |= {"seeds": list(range(10, 16)), "arms": list(ARMS), "hash": "abc"}
    both = {"first": plan, "now": plan}
    return replace(frozen, arms=list(ARMS), cells=cells, records=records, registered=both)


def test_the_named_networks_are_the_same_ones():
    assert SAME_NETWORK.keys() <= EXTRACTORS.keys()
    assert SAME_NETWORK["dinov2"] == ("dinov2_l", f"timm:{DINOV2_MODEL}")
    assert PIXEL_ENTRIES["dinov2_l"].timm == DINOV2_MODEL


def test_a_teacher_that_all_seeds_share_is_named(results):
    own = {"level": "internal", "source": "encoder", "encoder": {"name": "masked_tokens"}}
    trained = {
        "taught": own,
        "shuffled": own | {"source": "shuffled", "teacher_seed": 3},
        "small": {"level": "internal", "source": "frozen"},
        "random": own | {"encoder": {"name": "masked_tokens", "weights": "here.safetensors"}},
    }
    assert shared_teacher_note(results) is None
    records = []
    for record in results.records:
        config = record["run"]["config"]
        foresight = trained.get(record["arm"], config["foresight"])
        records.append(record | {"run": record["run"] | {"config": config | {"foresight": foresight}}})
    note = shared_teacher_note(replace(results, records=records))
    assert "foresight.teacher_seed: taught (seed 0), shuffled (seed 3), small (seed 0). What" in note


def test_a_metric_of_features_does_not_judge_whom_its_network_taught(results):
    for metric in (METRIC, "KID-DINOv2", "precision"):
        assert taught_by_judge(results, metric) == {"taught", "shuffled"}
    for metric in ("heldout_ntp", "heldout_bits", "solved", "train_flops"):
        assert taught_by_judge(results, metric) == set()
    runs = [record["run"] | {"extractor": {"name": "inception"}} for record in results.records]
    records = [record | {"run": run} for record, run in zip(results.records, runs, strict=True)]
    assert taught_by_judge(replace(results, records=records), METRIC) == set()


def test_the_verdict_is_given_to_the_others_and_by_other_metrics(results):
    decisions = decide(results, results.last_step, METRIC)
    assert {arm: verdict.word for arm, verdict in decisions.verdicts.items()} == dict.fromkeys(JUDGED, BETTER)
    by_arm = {row.arm: row for row in build_table(results).rows}
    assert [by_arm[arm].verdict for arm in ("taught", "shuffled")] == [TEACHER, TEACHER]
    change = by_arm["taught"].differences
    assert change[METRIC].mean < 0 and math.isnan(change[METRIC].p) and math.isnan(change["KID-DINOv2"].p)
    assert change["heldout_ntp"].p < 0.05
    assert all(by_arm[arm].verdict == BETTER for arm in JUDGED)
    text = markdown(build_table(results))
    assert "Not judged by FD-DINOv2: taught, shuffled" in text and "Holm-corrected over the family" in text
    other = build_table(results, metric="heldout_ntp")
    assert all(row.verdict is None for row in other.rows)
    assert "Not judged" not in markdown(other)


def test_without_looks_the_arm_is_not_tested_either(results):
    table = build_table(replace(results, registered={}))
    by_arm = {row.arm: row for row in table.rows}
    assert by_arm["taught"].verdict == TEACHER and by_arm["small"].verdict is None
    assert math.isnan(by_arm["taught"].differences[METRIC].p)
    assert "over 4 arms" in table.notes[0]
