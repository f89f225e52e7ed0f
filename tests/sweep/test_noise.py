"""The command `sweep noise`: its trainings, its records, and its tables."""

import json
from pathlib import Path

import pytest

from mirai_bench.results.noise import SOURCES, TOGETHER
from mirai_bench.sweep import noise
from mirai_bench.sweep.__main__ import command
from mirai_bench.sweep.driver import Options, Report
from mirai_bench.sweep.noise import Panel
from mirai_bench.sweep.plan import folder_of
from mirai_bench.utils.errors import UserError
from tests.support.small_run import train

REPORTS = Path(__file__).parents[2] / "reports"
SMALL = (
    "model.depth=2",
    "model.width=32",
    "model.heads=2",
    "train.epochs=1",
    "train.batch_size=256",
    "evaluation.at=[0.5,1]",
    "evaluation.protocol={base: digits, num_samples: 50}",
    "machine.device=cpu",
)


def test_members_vary_one_source_each_and_share_the_first_training():
    panel = Panel("digits", 3, 2, 10, SMALL)
    configs = {(source, number): config for source, number, config in panel.members}
    assert len(configs) == 12 and len(panel.plan().sweep.cells) == 3 + 3 * 2
    assert len({configs[source, 0].fingerprint() for source in (TOGETHER, *SOURCES)}) == 1
    for source in SOURCES:
        config = configs[source, 2]
        seeds = {name: config.seed_of(name) for name in (*SOURCES, "sampling")}
        assert seeds == dict.fromkeys((*SOURCES, "sampling"), 10) | {source: 12}
    assert configs[TOGETHER, 2].seed_of("sampling") == 12


def test_a_panel_from_its_trainings_to_its_tables(tmp_path, monkeypatch, capsys):
    def train_here(plan, options):
        for cell in plan.sweep.cells:
            train(cell.config, cell.run_path)
        return Report()

    monkeypatch.setattr(noise, "run_sweep", train_here)
    panel = Panel("digits", 2, 2, 10, (*SMALL, f"machine.runs={tmp_path / 'runs'}"))
    assert noise.run_panel(panel, Options(), tmp_path / "reports") == 0
    lines = [
        json.loads(line) for line in (tmp_path / "reports/data/noise_digits.jsonl").read_text().splitlines()
    ]
    assert lines[0]["kind"] == "panel" and lines[0]["protocol"]["num_samples"] == 50
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert len(evaluations) == 4 * 2 * 2
    # A sampling seed changes the samples and not the held-out loss; the run's own seed is one of them.
    first, second = (line["metrics"] for line in evaluations[:2])
    assert first["heldout_ntp"] == second["heldout_ntp"] and first["FD-digits"] != second["FD-digits"]
    cell = panel.plan().sweep.cells[0]
    assert first == list(folder_of(cell).journal.lines("evaluation"))[-1]["metrics"]
    assert sum(line["kind"] == "trajectory" for line in lines) == 2 * 2
    text = (tmp_path / "reports/noise_digits.md").read_text()
    assert text == capsys.readouterr().out and "| FD-digits |" in text and "order of the data" in text
    # Two trainings tell how large the noise is, and not what causes more of it.
    sources = text.partition("## Where it comes from")[2]
    assert "| metric | all together | initial weights |" in sources and "%" not in sources
    # A panel that lacks a source says so, and has the rest.
    lacking = noise.report([line for line in lines if line.get("source") != "dropout"])
    rows = [line for line in lacking.splitlines() if line.startswith("| FD-digits |")]
    assert rows[0] in text and rows[1].endswith("| — |")


def test_a_panel_of_ten_trainings_tells_what_causes_which_share():
    lines = [json.loads(line) for line in (REPORTS / "data/noise_digits.jsonl").read_text().splitlines()]
    assert noise.report(lines) == (REPORTS / "noise_digits.md").read_text()
    assert "| FD-digits | 105% | 96% | 89% |" in noise.report(lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--trainings", "1"], "--trainings is 1: a standard deviation needs 2"),
        (["digits", "--trainings", "99999999"], "--trainings is 99999999: write 1,000 or fewer"),
        (["digits", "--samplings", "1001"], "--samplings is 1001: write 1,000 or fewer"),
        ([], "one profile at a time, found 0: write for instance digits"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(UserError, match=message):
        command(["noise", *words])


def test_a_dry_run_shows_the_trainings_and_starts_none(tmp_path, capsys):
    words = ["digits", "--trainings", "2", "--dry-run", "--set", f"machine.runs={tmp_path / 'runs'}"]
    assert command(["noise", *words]) == 0
    assert "5 cells, 5 to run" in capsys.readouterr().out and not (tmp_path / "runs").exists()
