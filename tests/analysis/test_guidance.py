"""Guidance: the scale of an arm is chosen on samples of its own, by all its runs together."""

import json
import math

import guidance
import pytest
from again import read
from guidance import HAS, best_scale, command, report, rows, run

from tests.support.paths import ROOT
from tests.support.small_run import finished_pair


def line(arm, seed, tried, at, metric="FD-digits"):
    """A line with the values at each scale that was tried, and those on the protocol's samples."""
    return {
        "kind": "cell",
        "axis": "injection_level",
        "profile": "digits",
        "baseline": "baseline",
        "arm": arm,
        "seed": seed,
        "fingerprint": f"{arm}-{seed}",
        "metric": metric,
        "device": "a CPU",
        HAS: {
            scale: {metric: value} for scale, value in zip(("1.0", "1.25", "1.5", "2.0"), tried, strict=True)
        },
        "at": {scale: {metric: value} for scale, value in at.items()},
    }


LINES = [
    line("baseline", 10, [4, 2, 3, 5], {"1.0": 4.0, "1.25": 2.0}),
    line("baseline", 11, [4, 3, 2.5, 5], {"1.0": 4.0, "1.25": 2.0}),
    line("arm", 10, [1, 2, 3, 4], {"1.0": 2.0}),
    line("arm", 11, [1, 2, 3, 4], {"1.0": 2.0}),
]


def test_the_scale_is_chosen_by_the_geometric_mean_of_all_seeds():
    # √(2·3) < √(3·2.5), although seed 11 alone would choose 1.5.
    assert best_scale(LINES, "baseline") == 1.25
    assert best_scale(LINES, "arm") == 1.0
    accuracy = [line("a", 0, [0.1, 0.2, 0.9, 0.3], {}, metric="class_accuracy")]
    assert best_scale(accuracy, "a") == 1.5  # more is better


def test_each_arm_is_compared_at_its_own_best_scale():
    baseline, arm = rows(LINES)
    assert (baseline.arm, baseline.best, baseline.plain.mean, baseline.guided.mean) == (
        "baseline",
        1.25,
        4,
        2,
    )
    assert baseline.plain_change is None
    # Half of the baseline's without guidance, and the same with it.
    assert arm.plain_change.mean == pytest.approx(math.log(0.5))
    assert arm.guided_change.mean == pytest.approx(0)
    text = report(LINES)
    assert "| baseline | 2 | 4.00 ± 0.00 | — | 1.25 | 2.00 ± 0.00 |" in text
    assert "−50.0 %" in text and "+0.0 %" in text


def records(tmp_path, *changes):
    """Writes the lines once with each of these changes, and returns the words that read them."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(each | change) + "\n" for change in changes for each in LINES))
    return ["--records", str(path), "--out", str(tmp_path / "out")]


def test_files_are_named_after_what_the_lines_say(tmp_path):
    words = records(tmp_path, {"profile": "cifar10_cpu"}, {"profile": "cifar10_cpu", "axis": "real/images"})
    assert run(command, [*words, "--axis", "real/images"]) == 0
    out = tmp_path / "out"
    assert "injection_level" not in (out / "guidance_cifar10_cpu.md").read_text()
    figures = {f"guidance_real_images_cifar10_cpu.{kind}" for kind in ("svg", "pdf", "png")}
    assert {path.name for path in out.iterdir()} == figures | {"guidance_cifar10_cpu.md"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--axis", "injection_levl"], "Unknown axis 'injection_levl'. Did you mean 'injection_level'"),
        (["--profile", "cifar10"], "Unknown profile 'cifar10'. Known: digits, wide"),
        ([], "has lines of digits, wide: choose one with --profile"),
    ],
)
def test_lines_that_are_not_there_are_refused(words, message, tmp_path, capsys):
    given = records(tmp_path, {}, {"profile": "wide"})
    assert run(command, [*given, *words]) == 2
    assert message in capsys.readouterr().err
    assert run(command, [*given, "--profile", "wide"]) == 0
    assert (tmp_path / "out" / "guidance_wide.md").is_file()


def test_a_finished_sweep_is_measured_once_and_its_own_evaluation_is_not_repeated(
    make_config, tmp_path, shared_runs, monkeypatch, capsys
):
    runs = finished_pair(make_config, tmp_path, shared_runs)
    monkeypatch.setattr(guidance, "TRIED_ON", 30)
    words = ["--runs", str(runs), "--out", str(tmp_path / "reports")]
    assert run(command, words) == 0
    file = tmp_path / "reports" / "data" / "guidance_digits.jsonl"
    lines = read(file, HAS)
    assert len(lines) == 4
    for found in lines:
        tried = [found[HAS][scale]["FD-digits"] for scale in found[HAS]]
        assert len(set(tried)) == 4
        assert found["at"].keys() == {"1.0", str(best_scale(lines, found["arm"]))}
        # The run's last evaluation is at CFG 1, on the protocol's samples and not those of the choice.
        assert found["at"]["1.0"]["FD-digits"] not in tried
    journals = [json.loads(text) for path in runs.glob("*/journal.jsonl") for text in path.open()]
    recorded = {entry["metrics"]["FD-digits"] for entry in journals if entry["kind"] == "evaluation"}
    assert {found["at"]["1.0"]["FD-digits"] for found in lines} == recorded
    before = file.read_text()
    monkeypatch.setattr(guidance, "FinalWeights", None)  # would fail
    assert run(command, words) == 0 and file.read_text() == before
    assert "best CFG" in capsys.readouterr().out
    assert (tmp_path / "reports" / "guidance_small_digits.png").is_file()
    assert run(command, ["--records", str(file), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "guidance_digits.md").read_text() == (
        tmp_path / "reports" / "guidance_digits.md"
    ).read_text()


def test_the_committed_table_is_rebuilt_byte_for_byte(tmp_path):
    records = ROOT / "reports" / "data" / "guidance_digits.jsonl"
    assert run(command, ["--records", str(records), "--out", str(tmp_path)]) == 0
    for name in ("guidance_digits.md", "guidance_injection_level_digits.svg"):
        assert (tmp_path / name).read_bytes() == (ROOT / "reports" / name).read_bytes()
