"""analysis/diagnose.py and the claims about why, on run folders with chosen diagnoses."""

import csv
import json

import claims
import diagnose
import numpy as np
import pictures
import pytest
from correlation import arms_of
from diagnosis_table import plus_minus, with_interval

from mirai_bench.results.diagnoses import read_diagnosed
from mirai_bench.results.frozen import first_kind
from mirai_bench.results.stats import Estimate
from mirai_bench.utils import cli
from tests.support.diagnosed import diagnosis_line, write_diagnoses
from tests.support.paths import RECORDS
from tests.support.synthetic import injection_level, write_plan, write_run

ARMS = ["baseline", "output-1d", "output-2d", "internal-1d", "internal-2d"]
FILES = {f"diagnose_injection_level_spatial.{kind}" for kind in ("svg", "pdf", "png")}
FILES |= {f"diagnose_injection_level_FD-digits.{kind}" for kind in ("svg", "pdf", "png")}
FILES |= {f"diagnose_injection_level_heldout_ntp.{kind}" for kind in ("svg", "pdf", "png")}
FILES |= {f"diagnose_injection_level.{kind}" for kind in ("md", "csv", "tex", "html")}
FILES |= {f"diagnose_injection_level_correlation.{kind}" for kind in ("md", "csv", "tex", "html")}


@pytest.fixture
def runs(tmp_path):
    """Smoothness rises by 0.1 from arm to arm, and the logarithm of the distance falls by 0.1."""
    runs = tmp_path / "runs"
    sweep = injection_level(seeds=[0, 1, 2])
    write_plan(runs, sweep)
    for cell in sweep.cells:
        number = ARMS.index(cell.arm)
        wobble = 0.01 * ((number * cell.seed) % 3)
        distance = float(np.exp(1 + 0.1 * cell.seed - 0.1 * number + wobble))
        metrics = {"FD-digits": distance, "heldout_ntp": 2 - 0.01 * number + wobble}
        write_run(runs, cell.config, lambda epoch, metrics=metrics: metrics)
        values = {"lds": 0.3 + 0.1 * number + 0.05 * cell.seed + wobble, "rank": 9.0}
        values |= {f"lds@{layer}": values["lds"] * layer for layer in range(3)}
        write_diagnoses(runs, cell.config, [diagnosis_line(cell.config, "spatial", values)])
    return runs


def test_figures_tables_and_records_are_the_same_from_runs_and_from_a_file(runs, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    assert diagnose.command(["--runs", str(runs), "--out", str(out), "--freeze"]) == 0
    frozen = out / "data" / "diagnose_injection_level_digits.jsonl"
    assert {path.name for path in out.iterdir() if path.is_file()} == FILES
    words = ["--records", str(frozen), "--out", str(again), "--freeze"]
    assert diagnose.command(words) == 0
    for name in [*FILES, "data/diagnose_injection_level_digits.jsonl"]:
        assert (out / name).read_bytes() == (again / name).read_bytes(), name
    text = capsys.readouterr().out
    assert "weights of epoch 12; heldout_images 40" in text.replace("\\_", "_")
    assert "are the states" in text.lower() and "cosine of neighbouring states" in text


def test_the_table_has_means_and_paired_differences(runs, tmp_path):
    diagnose.command(["--runs", str(runs), "--out", str(tmp_path)])
    with open(tmp_path / "diagnose_injection_level.csv") as file:
        rows = {(row["value"], row["arm"]): row for row in csv.DictReader(file)}
    assert len(rows) == 10
    row = rows["lds", "internal-1d"]
    assert (row["n"], row["n_paired"]) == ("3", "3")
    assert float(row["difference"]) == pytest.approx(0.3)
    assert rows["lds", "baseline"]["difference"] == "—"


def test_what_rises_with_the_gain_is_correlated_with_it(runs, tmp_path):
    diagnose.command(["--runs", str(runs), "--out", str(tmp_path)])
    with open(tmp_path / "diagnose_injection_level_correlation.csv") as file:
        rows = {(row["value"], row["metric"]): row for row in csv.DictReader(file)}
    assert rows.keys() == {
        (value, metric) for value in ("lds", "rank") for metric in ("FD-digits", "heldout_ntp")
    }
    row = rows["lds", "FD-digits"]
    assert float(row["pearson"]) < -0.98
    assert (row["arms"], row["seeds"], row["spearman"]) == ("4", "3", "-1")
    assert float(row["p"]) == pytest.approx(2 / 24, rel=1e-4)
    assert rows["rank", "FD-digits"]["pearson"] == "—", "it is the same for all arms"
    text = (tmp_path / "diagnose_injection_level_correlation.md").read_text()
    assert "4 arms cannot have a p below 0.042" in text and "output-1d, output-2d, internal-1d" in text


def test_some_diagnostics_are_drawn_alone(runs, tmp_path):
    for cell in injection_level(seeds=[0, 1, 2]).cells:
        write_diagnoses(runs, cell.config, [diagnosis_line(cell.config, "other", {"a": float(cell.seed)})])
    assert diagnose.command(["--runs", str(runs), "--only", "other", "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "diagnose_injection_level_other.svg" in names, "one that is not known here, arm by arm"
    assert not any("spatial" in name for name in names)


def test_runs_that_two_sweeps_share_are_one_arm(runs):
    plan = json.loads((runs / "sweeps" / "injection_level-digits.json").read_text())
    names = {"internal-2d": "mirai-e-k3", "output-2d": "internal-1d"}  # the last one is another arm
    kept = ["baseline", *names]
    cells = [
        cell | {"arm": names.get(cell["arm"], cell["arm"])} for cell in plan["cells"] if cell["arm"] in kept
    ]
    other = plan | {"axis": "other", "arms": ["baseline", *names.values()], "cells": cells}
    (runs / "sweeps" / "other-digits.json").write_text(json.dumps(other))
    sweeps = read_diagnosed(runs)
    assert [sweep.results.axis for sweep in sweeps] == ["injection_level", "other"]
    assert [arm.name for arm in arms_of(sweeps)] == ARMS[1:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "nowhere"], "python -m mirai_bench.diagnose"),
        (["--records", str(RECORDS)], "is not a file of frozen records"),
    ],
)
def test_nothing_to_read_is_one_message(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(diagnose.command, [*words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--axis", "injection_levle"], "Did you mean 'injection_level'"),
        (["--only", "spatail"], "Did you mean 'spatial'"),
    ],
)
def test_misspelt_words_are_refused(runs, tmp_path, capsys, words, message):
    assert cli.run(diagnose.command, ["--runs", str(runs), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_detail_of_another_form_is_one_message(runs, tmp_path, capsys):
    sweep = injection_level(seeds=[0])
    for cell in sweep.cells:
        line = diagnosis_line(cell.config, "pictures", {"colours": 0.5}, {"coordinates": "none"})
        write_diagnoses(runs, cell.config, [line])
    assert cli.run(diagnose.command, ["--runs", str(runs), "--out", str(tmp_path / "out")]) == 2
    assert "diagnoses of pictures cannot be drawn" in capsys.readouterr().err


def estimate(mean, half=float("nan")):
    return Estimate(3, mean, half)


def test_numbers_have_as_many_decimals_as_their_interval_is_worth():
    assert plus_minus(estimate(0.123456, 0.0123)) == "0.123 ± 0.012"
    assert plus_minus(estimate(123.456, 12.3)) == "123 ± 12"
    assert plus_minus(estimate(-0.0123)) == "−0.0123"
    assert with_interval(estimate(0.2, 0.05)) == "+0.200 [+0.150, +0.250]"
    assert with_interval(None) == "—"


# ---- pictures


def write_pictures(runs, config, generator):
    """Writes the pictures of two images, of random states."""
    detail = {"coordinates": generator.normal(size=(2, 8, 4)).tolist(), "labels": [3, 4]}
    detail |= {"directions": np.eye(4, 6).tolist(), "mean": [0.0] * 6, "images": [0, 1]}
    write_diagnoses(runs, config, [diagnosis_line(config, "pictures", {"colours": 0.5}, detail)])


def test_a_frozen_file_keeps_the_pictures_that_are_drawn(runs, tmp_path):
    sweep = injection_level(seeds=[0, 1, 2])
    generator = np.random.default_rng(0)
    for cell in sweep.cells:
        if (cell.arm, cell.seed) == ("output-1d", 0):
            continue  # so that seed 1 is the first that all arms have
        write_pictures(runs, cell.config, generator)
    out, again = tmp_path / "out", tmp_path / "again"
    diagnose.command(["--runs", str(runs), "--out", str(out), "--freeze"])
    frozen = out / "data" / "diagnose_injection_level_digits.jsonl"
    lines = [json.loads(line) for line in frozen.read_text().splitlines()]
    kept = [bool(line["detail"]) for line in lines if line.get("diagnostic") == "pictures"]
    assert (len(kept), sum(kept)) == (14, 5)
    diagnose.command(["--records", str(frozen), "--out", str(again)])
    name = "diagnose_injection_level_pictures.png"
    assert (out / name).read_bytes() == (again / name).read_bytes()


def test_arms_without_a_seed_of_the_others_do_not_keep_them_from_being_drawn(runs, tmp_path):
    sweep = injection_level(seeds=[0, 1])
    generator = np.random.default_rng(0)
    for cell in sweep.cells:
        if cell.seed == (1 if cell.arm == "output-1d" else 0):
            write_pictures(runs, cell.config, generator)
    assert diagnose.command(["--runs", str(runs), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "diagnose_injection_level_pictures.png").is_file()


def test_colours_are_fitted_to_all_arms_together():
    generator = np.random.default_rng(0)
    states = {"a": generator.normal(size=(2, 15, 6)), "b": 3 * generator.normal(size=(2, 15, 6))}
    found = pictures.colours(states)
    assert all(own.shape == (2, 15, 3) and own.min() >= 0 and own.max() <= 1 for own in found.values())
    assert found["b"].std() > 2 * found["a"].std(), "one scale for both"
    image = pictures.on_grid(found["a"][0], 4, 4)
    assert image.shape == (4, 4, 3) and (image[3, 3] == 1).all() and (image[0, 0] == found["a"][0, 0]).all()


# ---- claims about why


def claim_of(*tests):
    return {"claim": "", "paper": "", "tests": [{"axis": "injection_level"} | test for test in tests]}


def smoother(more, than, value="lds"):
    return {"diagnosed": f"spatial/{value}", "more": more, "than": than}


def judged(runs, *tests, diagnosed=True):
    sweeps = read_diagnosed(runs)
    results = [sweep.results for sweep in sweeps]
    (row,) = claims.judge(claim_of(*tests), results, sweeps if diagnosed else [])
    return row[2:]


def test_a_claim_is_judged_by_diagnoses(runs):
    profile, verdict, evidence = judged(runs, smoother("internal-2d", "baseline"))
    assert (profile, verdict) == ("digits", "supported")
    assert evidence.startswith("spatial lds: internal-2d minus baseline +0.4") and evidence.endswith("n 3")
    assert judged(runs, smoother("baseline", "internal-2d"))[1] == "contradicted"
    assert judged(runs, smoother("internal-2d", "baseline", "rank"))[1] == "undecided", "all are alike"


def test_a_claim_that_was_not_measured_says_so(runs):
    test = smoother("internal-2d", "baseline")
    assert judged(runs, test, diagnosed=False)[1:] == [
        "not measured",
        "not measured: injection_level: internal-2d and baseline (spatial lds)",
    ]
    other = {"diagnosed": "gradients/cos", "more": "internal-2d", "than": "baseline"}
    assert judged(runs, other)[1] == "not measured"
    profile, verdict, evidence = judged(runs, test, other)
    assert verdict == "undecided" and evidence.endswith(
        "not measured: injection_level: internal-2d and baseline (gradients cos)"
    )
    profile, verdict, evidence = judged(runs, smoother("internal-3d", "baseline"))
    assert (profile, verdict) == ("—", "not run")


def test_a_pilot_decides_nothing_about_why(runs):
    plan = runs / "sweeps" / "injection_level-digits.json"
    decides = {"primary": None, "looks": [6], "smallest_effect": None, "families": {}, "exclusions": []}
    decides |= {"arms": ["baseline", "internal-2d"], "seeds": list(range(6)), "hash": "abc"}
    registered = {"first": decides, "now": decides}
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"registered": registered}))
    verdict, evidence = judged(runs, smoother("internal-2d", "baseline"))[1:]
    assert verdict == "undecided" and "a pilot" in evidence


def test_claims_are_judged_from_files_of_all_kinds(runs, tmp_path, capsys):
    diagnose.command(["--runs", str(runs), "--out", str(tmp_path), "--freeze"])
    frozen = tmp_path / "data" / "diagnose_injection_level_digits.jsonl"
    panel = tmp_path / "panel.jsonl"
    panel.write_text(json.dumps({"kind": "panel"}) + "\n")
    words = ["--records", str(RECORDS), str(frozen), str(panel), "--out", str(tmp_path / "claims")]
    capsys.readouterr()
    assert claims.command(words) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "smooth in two dimensions" in line]
    assert "supported" in line and "spatial lds: internal-2d minus internal-1d" in line
    assert first_kind(frozen) == "diagnoses"
