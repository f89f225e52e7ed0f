"""What buys power: known answers come back from made-up records, and real runs are evaluated again."""

import json
import math

import numpy as np
import power
import pytest
from again import read
from power import HAS, command, report, run, variants

from mirai_bench.results.stats import seeds_needed
from mirai_bench.utils.errors import UserError
from tests.support.small_run import finished_pair


def cell(arm, seed, values, last, other, *, metric="FD-digits", axis="injection_level"):
    """A line: values along the training, the last one with 2 and 4 times the samples, and redrawn."""
    again = []
    for times, value in zip((1, 2, 4), (values[-1], *last), strict=True):
        again.append({"times": times, "other": False, "seconds": 2.0 * times, "metrics": {metric: value}})
    again.append({"times": 1, "other": True, "seconds": 2.0, "metrics": {metric: other}})
    return {
        "kind": "cell",
        "axis": axis,
        "profile": "digits",
        "baseline": "baseline",
        "arm": arm,
        "seed": seed,
        "fingerprint": f"{arm}-{seed}",
        "metric": metric,
        "device": "a CPU",
        "epochs": float(len(values)),
        "train_seconds": 30.0,
        "threads": 2,
        "along": [{"epoch": e + 1.0, "metrics": {metric: value}} for e, value in enumerate(values)],
        "again": again,
    }


def test_values_and_costs_of_one_cell_by_hand():
    found = variants(cell("arm", 0, [9.0, 8.0, 4.0, 6.0, 1.0, 1.0, 8.0], [7.0, 5.0], 3.0), in_log=True)
    assert next(iter(found)) == "7 evaluations"
    assert found["7 evaluations"] == pytest.approx((8.0, 60 + 7 * 2))
    assert found["7 evaluations, mean of the last 3"].value == pytest.approx(2.0)
    assert found["4 evaluations"] == pytest.approx((8.0, 60 + 4 * 2))
    assert found["4 evaluations, mean of the last 2"].value == pytest.approx(math.sqrt(8.0))
    assert found["4 evaluations, mean of the last 3"].value == pytest.approx((8 * 4) ** (1 / 3))
    assert found["7 evaluations, the last with 2x the samples"] == (7.0, 60 + 6 * 2 + 4)
    assert found["4 evaluations, the last with 4x the samples"] == (5.0, 60 + 3 * 2 + 8)
    assert found["7 evaluations, each with 4x the samples"] == (5.0, 60 + 7 * 8)
    assert found["7 evaluations, no common random numbers"] == (3.0, 60 + 7 * 2)
    baseline = variants(cell("baseline", 0, [9.0, 8.0], [7.0, 5.0], 3.0), in_log=False)
    assert baseline["2 evaluations, no common random numbers"].value == 8.0
    assert baseline["2 evaluations, mean of the last 2"].value == 8.5


def made_up(seeds, noise=0.2, shared=0.5):
    """Arms and baseline share a seed's luck. Each evaluation has its own noise, but for the draw,
    which both share, and which is `noise` too; more samples halve its variance."""
    rng = np.random.default_rng(0)
    cells = []
    for seed in range(seeds):
        luck, draw = shared * rng.standard_normal(), noise * rng.standard_normal(3)
        for arm in ("baseline", "one", "two"):
            along = luck + draw[0] + noise * rng.standard_normal(3)
            last = luck + draw[1:] + noise / np.sqrt([2, 4]) * rng.standard_normal(2)
            other = along[-1] - draw[0] + noise * rng.standard_normal()
            cells.append(cell(arm, seed, list(np.exp(along)), list(np.exp(last)), math.exp(other)))
    return cells


def rows_of(text):
    lines = [line for line in text.splitlines() if " evaluations" in line and line.startswith("| ")]
    return {row[0]: row[1:] for row in ([part.strip() for part in line.split("|")[1:-1]] for line in lines)}


def test_what_was_put_in_comes_back():
    rows = rows_of(report(made_up(1500)))
    noise = 0.2 * math.sqrt(2)  # of a difference of two evaluations
    expected = {
        "3 evaluations": noise,
        "3 evaluations, mean of the last 2": noise / math.sqrt(2),
        "3 evaluations, mean of the last 3": noise / math.sqrt(3),
        "2 evaluations, mean of the last 2": noise / math.sqrt(2),
        "3 evaluations, each with 2x the samples": noise / math.sqrt(2),
        "3 evaluations, the last with 4x the samples": noise / 2,
        "3 evaluations, no common random numbers": 0.2 * 2,
    }
    for name, deviation in expected.items():
        _, shown, seconds, seeds, minutes = rows[name]
        found, low, high = (float(part.strip("\\[],")) for part in shown.split())
        assert found == pytest.approx(deviation, rel=0.05) and low < found < high < 1.1 * low
        needed = seeds_needed(math.log(1 / 0.85), found, 0.05)
        assert int(seeds) == pytest.approx(needed, abs=1)  # what is shown is rounded
        assert float(minutes) == pytest.approx(int(seeds) * float(seconds) / 60, rel=0.01)


def test_seeds_for_a_noise_of_a_quarter():
    """(1.96 + 0.84)² (0.25 / 0.1625)² = 18.6 for the normal distribution, and 1.96² / 2 more for t."""
    assert seeds_needed(math.log(1 / 0.85), 0.25, 0.05) == 21


def test_another_metric_is_compared_by_its_difference():
    cells = []
    for seed, shift in enumerate((0.0, 0.2)):
        for arm, value in (("baseline", 1.0), ("arm", 1.1 + shift)):
            cells.append(cell(arm, seed, [value], [value, value], value, metric="heldout_ntp"))
    text = report(cells)
    assert "s of the paired difference" in text
    # One degree of freedom: s · 1/√χ², with the quantiles 5.02 and 0.00098.
    assert rows_of(text)["1 evaluations"][1] == r"0.141 \[0.063, 4.5]"


def test_lengths_of_training_stand_apart():
    short = made_up(3)
    longer = [line | {"epochs": 20.0} for line in made_up(3)]
    assert report(short + longer).count("## injection_level, ") == 2


def test_one_seed_is_refused():
    with pytest.raises(UserError, match="no arm has two seeds in common with baseline"):
        report(made_up(1))


@pytest.mark.parametrize("text", ["", "{", '{"kind": "sweep"}', "[1]"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "records.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="records of this script"):
        read(path, HAS)
    assert run(command, ["--records", str(path), "--out", str(tmp_path)]) == 2


def test_a_finished_sweep_is_measured_once(make_config, tmp_path, shared_runs, monkeypatch, capsys):
    runs = finished_pair(make_config, tmp_path, shared_runs)
    words = ["--runs", str(runs), "--out", str(tmp_path / "reports")]
    assert run(command, words) == 0
    file = tmp_path / "reports" / "data" / "power_digits.jsonl"
    lines = read(file, HAS)
    for line in lines:
        own, twice, _, other = [found["metrics"]["FD-digits"] for found in line["again"]]
        assert own == line["along"][-1]["metrics"]["FD-digits"]
        assert len({own, twice, other}) == 3 and all(found["seconds"] > 0 for found in line["again"])
    assert len(lines) == 4 and "1 evaluations, each with 4x the samples" in capsys.readouterr().out
    before = file.read_text()
    monkeypatch.setattr(power, "evaluate_again", None)  # would fail
    assert run(command, words) == 0 and file.read_text() == before
    text = (tmp_path / "reports" / "power_digits.md").read_text()
    assert run(command, ["--records", str(file), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "power_digits.md").read_text() == text
    # Which sweep was looked for, and which there are.
    capsys.readouterr()
    assert run(command, ["--runs", str(runs), "--axis", "other", "--out", str(tmp_path)]) == 2
    asked = "no finished run of --profile digits (the default) and --axis other"
    error = capsys.readouterr().err
    assert asked in error and "there are runs of small (digits)" in error
    assert run(command, ["--runs", str(runs), "--profile", "other", "--out", str(tmp_path)]) == 2
    assert "no finished run of --profile other that has weights" in capsys.readouterr().err


def test_tables_are_named_after_what_the_lines_say(tmp_path):
    lines = [line | {"profile": "wide/12"} for line in made_up(3)]
    lines += [line | {"axis": "other"} for line in lines]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--records", str(path), "--out", str(tmp_path / "out")]
    assert run(command, [*words, "--axis", "other"]) == 0
    (written,) = (tmp_path / "out").iterdir()
    assert written.name == "power_wide_12.md" and "injection_level" not in written.read_text()
    assert run(command, [*words, "--profile", "digits"]) == 2
