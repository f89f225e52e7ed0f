"""The ladder: what an arm changes on each rung, with one name for what is the same arm."""

import csv
import math
from copy import deepcopy
from dataclasses import replace

import ladder
import numpy as np
import pytest
import rungs
from matplotlib.colors import to_hex
from rungs import SINGLE, by_arm, identity, joined, papers_points, points_of

from mirai_bench.config.foresight import ForesightConfig
from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.results.stats import paired
from mirai_bench.utils.errors import UserError
from tests.support.paths import RECORDS, ROOT

DATA = ROOT / "reports" / "data"
BASELINE = [4.0, 5.0, 4.4, 4.7, 5.2, 4.1]
GAINS = [0.8, 0.82, 0.79, 0.81, 0.8, 0.78]


def name_of(sweep, arm, profile=None):
    (cell,) = load_sweep(SWEEPS / f"{sweep}.yaml", profile=profile, seeds=[0], only=[arm]).cells
    return rungs.NAMES.get(identity(cell.config.foresight))


@pytest.fixture
def sweep_on(frozen):
    """Makes a sweep of `baseline` and `internal-2d` with these values on a rung."""
    last = frozen.records[-1]
    cells = load_sweep(SWEEPS / "injection_level.yaml", seeds=[0]).cells
    configs = {cell.arm: cell.config.model_dump(mode="json") for cell in cells}

    def make(profile, parameters, values, looks=(), axis="injection_level", **metrics):
        records = []
        for arm, own in values.items():
            for seed, value in enumerate(own):
                config = deepcopy(configs[arm])
                config["data"]["dataset"] = profile.removesuffix("_cpu")
                run = last["run"] | {"config": config, "parameters": parameters}
                run["fingerprint"] = f"{profile} {arm} {seed}"
                all_metrics = {"FD-x": value} | {name: known[arm][seed] for name, known in metrics.items()}
                records.append(last | {"arm": arm, "seed": seed, "run": run, "metrics": all_metrics})
        cells = []
        for record in records:
            own = {key: record[key] for key in ("arm", "seed")}
            cells.append(own | {"fingerprint": record["run"]["fingerprint"], "status": "done"})
        plan = {"looks": list(looks), "arms": list(values), "families": {}, "smallest_effect": None}
        plan |= {"primary": None, "hash": "x", "seeds": list(range(24)), "exclusions": []}
        fields = {"axis": axis, "profile": profile, "arms": list(values), "cells": cells, "records": records}
        return replace(frozen, **fields, registered={"first": plan, "now": plan} if looks else {})

    return make


def two_arms(gains=GAINS):
    return {"baseline": BASELINE, "internal-2d": [b * g for b, g in zip(BASELINE, gains, strict=True)]}


def test_an_arm_is_recognised_by_what_it_is():
    assert name_of("injection_level", "internal-2d") == "Mirai-E"
    for sweep, arm in (("foresight_source", "mirai-e-k3"), ("real_images", "internal-2d")):
        assert name_of(sweep, arm) == "Mirai-E"
    assert name_of("injection_level", "internal-2d", "imagenet256_xl") == "Mirai-E"
    assert name_of("alignment_layer", "layer-8") == "Mirai-E"
    assert name_of("alignment_layer", "layer-4") is None
    # The same name in a sweep is another arm where the profile has another kind of encoder.
    assert name_of("foresight_source", "mirai-i-k1") == "Mirai-I, trained on the codes"
    assert name_of("real_images", "masked-tokens") == "Mirai-I, trained on the codes"
    assert name_of("foresight_source", "mirai-i-k1", "imagenet256_b") == "Mirai-I, pretrained encoder"
    assert name_of("real_images", "vgg16") == name_of("real_images", "efficientnet")
    assert name_of("real_images", "vgg16") == "Mirai-I, pretrained encoder"
    assert name_of("foresight_source", "shuffled") != name_of("real_images", "vgg16-shuffled")
    untrained = {"level": "internal", "source": "encoder", "k": 1}
    untrained["encoder"] = {"name": "dinov2_b", "weights": "random"}
    assert identity(ForesightConfig(**untrained)) not in rungs.NAMES
    assert len(rungs.NAMES) == len(rungs.ARMS)


def test_the_papers_points_are_single_runs_at_the_last_common_epoch():
    points = {(point.arm, point.profile): point for point in joined(papers_points())}
    assert len(points) == 4 + 3 * 2, "four arms of B alone, and Mirai-E and Mirai-I in three sizes"
    mirai = points["Mirai-E", "LlamaGen-B"]
    assert (mirai.change.mean, mirai.epochs) == (pytest.approx(math.log(4.49 / 5.34)), 300)
    assert mirai.sweeps == ("injection_level/internal-2d", "foresight_source/mirai-e-k3")
    assert mirai.parameters == 110_888_448
    assert points["Mirai-I, pretrained encoder", "LlamaGen-XL"].parameters == 774_699_520
    raster = points["multi-token prediction, raster", "LlamaGen-B"]
    assert (raster.change.mean, raster.epochs) == (pytest.approx(math.log(7.28 / 6.36)), 80)
    assert raster.flops < mirai.flops
    assert all(math.isnan(point.change.half) and point.verdict == SINGLE for point in points.values())


def test_a_point_is_what_the_table_of_its_sweep_says(sweep_on):
    values = two_arms()
    expected = paired(*(dict(enumerate(values[arm])) for arm in ("internal-2d", "baseline")), in_log=True)
    (point,) = points_of(sweep_on("digits", 150_000, values), "images")
    assert (point.arm, point.data, point.parameters) == ("Mirai-E", "digits", 150_000)
    assert (point.change.mean, point.change.low) == pytest.approx((expected.mean, expected.low))
    assert (point.verdict, point.confidence) == ("—", 0.95)
    # A look has its own level, and a pilot none.
    (point,) = points_of(sweep_on("digits", 150_000, values, looks=(3, 6)), "images")
    assert point.verdict.startswith("better")
    assert 0.95 < point.confidence < 1
    assert point.change.low < expected.low
    (point,) = points_of(sweep_on("cifar10_cpu", 10**6, values, looks=(12, 24)), "images")
    assert (point.verdict, point.confidence, point.data) == ("pilot", 0.95, "CIFAR-10")


def test_the_distance_to_reconstructions_is_taken_where_there_is_one(sweep_on):
    other = {"FD-x-reconstructions": two_arms([0.5, 0.52, 0.5, 0.48, 0.5, 0.5])}
    lossy = sweep_on("cifar10_cpu", 10**6, two_arms(), looks=(3, 6), **other)
    (point,) = points_of(lossy, "reconstructions")
    assert point.metric == "FD-x-reconstructions"
    assert math.exp(point.change.mean) == pytest.approx(0.5, abs=0.01)
    assert point.verdict == "—", "verdicts are by the primary metric"
    assert points_of(lossy, "images")[0].metric == "FD-x"
    assert points_of(sweep_on("digits", 150_000, two_arms()), "reconstructions")[0].metric == "FD-x"


def test_shared_runs_are_one_point_and_others_two(sweep_on):
    few = {arm: values[:3] for arm, values in two_arms().items()}
    once = points_of(sweep_on("digits", 150_000, few, axis="a"), "images")
    more = points_of(sweep_on("digits", 150_000, two_arms(), axis="b"), "images")
    (point,) = joined(once + more)
    assert (point.change.n, point.sweeps) == (6, ("b/internal-2d", "a/internal-2d"))
    assert not by_arm([point]), "one rung is no ladder"
    apart = [replace(once[0], fingerprints=frozenset(["another"])), *more]
    assert len(joined(apart)) == 2
    assert not by_arm(apart), "two sweeps of one rung are no ladder either"


def test_figure_has_a_panel_for_each_arm_on_two_rungs(sweep_on):
    points = points_of(sweep_on("digits", 150_000, two_arms(), looks=(3, 6)), "images")
    points += points_of(sweep_on("fashion_mnist", 936_448, two_arms(), looks=(12, 24)), "images")
    points += points_of(sweep_on("cifar10_cpu", 1_067_520, two_arms(), looks=(12, 24)), "images")
    points = joined(points + papers_points())
    figure = ladder.draw(points)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Mirai-E", "Mirai-I, pretrained encoder"]
    lines = [container.lines for container in figure.axes[0].containers]
    assert [line[0].get_marker() for line in lines] == ["o"] * 3 + ["x"] * 3
    bars = [len(line[2][0].get_segments()) if line[2] else 0 for line in lines]
    assert bars == [1, 1, 1, 0, 0, 0], "single runs have no interval"
    faces = [line[0].get_markerfacecolor() for line in lines[:3]]
    assert to_hex(faces[0]) == lines[0][0].get_color().lower(), "a verdict is filled"
    assert faces[1:] == ["white"] * 2, "a pilot is open"
    places = np.log10([line[0].get_xdata()[0] for line in lines])
    assert np.diff(places).min() >= ladder.APART - 1e-9
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["digits", "Fashion-MNIST", "CIFAR-10", "ImageNet (paper)"]


def test_report_says_what_shows_no_trend(sweep_on):
    points = points_of(sweep_on("digits", 150_000, two_arms()), "images")
    points += points_of(sweep_on("cifar10_cpu", 1_067_520, two_arms()), "images")
    text = ladder.report(joined(points))
    assert "Two rungs show no trend: Mirai-E.\n" in text
    assert "| Mirai-E | CIFAR-10 | 1.07M |" in text
    everything = ladder.report(joined(points + papers_points()))
    assert "Two rungs show no trend" not in everything
    assert "On one rung only, and not drawn: multi-token prediction, raster;" in everything
    assert (
        "| Mirai-E | ImageNet (paper) | 111M | 8.4e+19 | 300 | FID | 1 | −15.9 % | — | single run |"
        in everything
    )


def test_script_draws_committed_records(tmp_path, capsys):
    names = ("injection_level_digits", "foresight_source_digits", "real_images_cifar10_cpu")
    words = ["--records", *(str(DATA / f"{name}.jsonl") for name in names), "--out", str(tmp_path)]
    assert ladder.command(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"ladder.{kind}" for kind in ("svg", "pdf", "png", "md", "csv")
    }
    text = (tmp_path / "ladder.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text + "\n"
    with open(tmp_path / "ladder.csv", encoding="utf-8", newline="") as file:
        rows = {(row["arm"], row["profile"]): row for row in csv.DictReader(file)}
    mirai = rows["Mirai-E", "digits"]
    assert (mirai["n"], mirai["verdict"]) == ("12", "better (look 1)")
    assert float(mirai["difference"]) == pytest.approx(-0.271, abs=5e-4)  # reports/injection_level.md
    assert rows["Mirai-E", "LlamaGen-L"]["difference_low"] == "—"


def test_default_records_are_frozen_sweeps():
    names = {path.stem for path in ladder.frozen_sweeps()}
    assert {"injection_level_digits", "real_images_cifar10_cpu"} <= names
    assert not {name for name in names if name.startswith(("noise", "power", "search"))}


def test_records_without_a_ladder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "papers_points", list)
    with pytest.raises(UserError, match="no arm is on two rungs"):
        ladder.command(["--records", str(RECORDS), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        ladder.command(["--help"])
    assert "example: python analysis/ladder.py" in " ".join(capsys.readouterr().out.split())
