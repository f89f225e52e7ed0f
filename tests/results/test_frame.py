"""The frame of evaluations: its rows, its metrics, and the protocols that are never mixed in it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mirai_bench.results.frame import (
    is_distance,
    lower_is_better,
    primary_metric,
    refuse_mixed_protocols,
    value_of,
    with_protocol,
)
from mirai_bench.results.frozen import freeze
from mirai_bench.results.paper import papers_name
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import markdown
from mirai_bench.utils.errors import UserError


def test_frame_has_a_row_for_each_evaluation_and_a_column_for_each_metric(frozen):
    assert frozen.frame.shape[0] == len(frozen.records) == 36
    columns = "axis arm seed epoch step train_flops train_seconds FD-digits recall"
    assert set(columns.split()) <= set(frozen.frame)
    assert frozen.frame["recall"].isna().sum() == 1


@pytest.mark.parametrize("axis", ["../../x", "/etc/x", "a\0b", "..", "a/b"])
def test_names_of_report_files_are_no_paths(frozen, axis):
    name = replace(frozen, axis=axis, profile="../p").name
    assert Path(name).name == name
    assert not name.startswith(".")
    assert "\0" not in name


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"protocol": {"cfg_scale": 2.0}},
            r"protocol\.cfg_scale is 1\.0 for .*baseline, seed 0.* and 2\.0 for internal-2d, seed 0",
        ),
        ({"extractor": {"sha256": "sha256:other"}}, r"extractor\.sha256 is 'sha256:aa' .* 'sha256:other'"),
        ({"reference": {"n": 10_000}}, r"reference\.n is 1437 .* 10000"),
    ],
)
def test_protocols_are_never_mixed(frozen, change, message, tmp_path):
    ((part, fields),) = change.items()
    changed = {}
    for record in frozen.records:
        if record["arm"] == "internal-2d" and record["seed"] == 0:
            run = record["run"]
            other = run | {part: run[part] | fields, "protocol_digest": "other"}
            record["run"] = changed.setdefault(id(run), other)
    for use in (refuse_mixed_protocols, build_table, lambda results: freeze(results, tmp_path / "x.jsonl")):
        with pytest.raises(UserError, match=message):
            use(frozen)
    chosen = with_protocol(frozen, "other")
    assert {record["arm"] for record in chosen.records} == {"internal-2d"}
    assert "metrics" not in vars(frozen)
    with pytest.raises(UserError, match="Unknown protocol 'nothing'"):
        with_protocol(frozen, "nothing")


def test_protocols_name_may_differ(frozen):
    run = frozen.records[-1]["run"]
    frozen.records[-1]["run"] = run | {"protocol": run["protocol"] | {"name": "alias"}}
    refuse_mixed_protocols(frozen)


def test_directions_and_primary_metric():
    assert all(lower_is_better(name) for name in ("FD-digits", "FID", "sFID"))
    assert not lower_is_better("recall")
    assert primary_metric(["recall", "FD-digits", "FID"]) == "FID"
    assert primary_metric(["KID", "FD-DINOv2"]) == "FD-DINOv2"
    assert primary_metric(["recall", "heldout_ntp"]) == "heldout_ntp"
    assert primary_metric(["FD-cifar10-reconstructions", "FD-cifar10"]) == "FD-cifar10"
    assert lower_is_better("FID-reconstructions") and is_distance("FD-cifar10-reconstructions")
    assert [papers_name(name) for name in ("FD-cifar10", "FID-reconstructions")] == [
        "FID",
        "FID-reconstructions",
    ]
    with pytest.raises(UserError, match="Unknown metric"):
        lower_is_better("colour")
    with pytest.raises(UserError, match="no Fréchet distance"):
        primary_metric(["recall"])


def with_primary(results, name):
    """The same records from a profile that names the metric that decides."""
    runs = {}
    for record in results.records:
        run = record["run"]
        named = run | {"config": run["config"] | {"evaluation": {"primary": name}}}
        record["run"] = runs.setdefault(id(run), named)
    return results


def test_a_profile_names_the_metric_that_decides(frozen):
    assert frozen.primary == "FD-digits"
    named = with_primary(replace(frozen), "recall")
    assert named.primary == "recall"
    # The sweep decides, and not another one for which a run was trained.
    for primary, found in ((None, "FD-digits"), ("precision", "precision")):
        registered = {"now": {"primary": primary}}
        assert replace(with_primary(replace(frozen), "recall"), registered=registered).primary == found
    assert build_table(named).metrics[0] == "recall"
    assert build_table(named, metric="FD-digits").metrics[0] == "FD-digits"
    with pytest.raises(UserError, match=r"evaluation.primary is rule, .* choose one of FD-digits"):
        build_table(with_primary(replace(frozen), "rule"))


def test_records_without_a_frechet_distance_have_a_table(frozen):
    for record in frozen.records:
        record["metrics"] = {"rule": 0.5, "heldout_ntp": 0.6, "solved": 1.0}
        record["run"] = record["run"] | {"extractor": {"name": "none"}, "reference": {"name": "none"}}
    text = markdown(build_table(frozen))
    assert r"heldout\_ntp ↓" in text and "rule ↑" in text and "extractor none, reference none" in text
    assert "paper: " not in text
    assert "| rule ↑ |" in markdown(build_table(with_primary(replace(frozen), "rule")))


def with_tokens(results, sides):
    """The same records with a held-out loss of 0.5 nats, from images of these sides in turn."""
    for record, side in zip(results.records, sides * len(results.records), strict=False):
        config = record["run"]["config"] | {"data": {"image_size": 4 * side}, "tokenizer": {"downsample": 4}}
        record["metrics"] = record["metrics"] | {"heldout_ntp": 0.5}
        record["run"] = record["run"] | {"config": config}
    return results


def test_bits_per_image_are_derived_from_nats_per_token(frozen):
    assert value_of(frozen.records[0], "heldout_bits") is None, "the tokens are not known"
    assert "heldout_bits" not in frozen.choices and "heldout_bits" not in frozen.frame
    results = with_tokens(replace(frozen), [8])
    assert value_of(results.records[0], "heldout_bits") == pytest.approx(64 * 0.5 / math.log(2))
    assert "heldout_bits" not in results.metrics, "of equal token counts nats say the same"
    assert "heldout_bits" in results.choices
    assert build_table(results, metric="heldout_bits").metrics[0] == "heldout_bits"


def test_tables_of_unlike_token_counts_show_bits(frozen):
    results = with_tokens(frozen, [8, 16])
    assert results.metrics[-1] == "heldout_bits" == results.choices[-1]
    assert results.frame["heldout_bits"].nunique() == 2
    assert r"heldout\_bits ↓" in markdown(build_table(results))
