"""The scripts in analysis/ draw and write what the committed records say.

After a wanted change of the golden texts this writes them again; read the difference before
committing it:

    PYTHONPATH=analysis python -m tests.analysis.test_scripts
"""

import os
import subprocess
import sys
from dataclasses import replace

import claims
import common
import convergence
import fd_targets
import fid_table
import numpy as np
import plot_convergence
import pytest
import report
import sample_grid
import speedup
import yaml
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imsave

from mirai_bench.results.cost import AXES
from mirai_bench.results.frozen import read_jsonl
from mirai_bench.results.paper import read_paper
from mirai_bench.results.stats import paired
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.ship import ship, start_sweep
from mirai_bench.utils import cli
from mirai_bench.utils.errors import UserError
from tests.support.paths import FIXTURES, RECORDS, ROOT
from tests.support.synthetic import injection_level, shared_store, write_plan, write_run

SCRIPTS = {
    "fid_table": fid_table,
    "plot_convergence": plot_convergence,
    "claims": claims,
    "sample_grid": sample_grid,
    "fd_targets": fd_targets,
    "report": report,
}
CLAIMS = yaml.safe_load((ROOT / "reports" / "claims.yaml").read_text())["claims"]


@pytest.fixture(scope="session")
def main_job(tmp_path_factory):
    """Returns the runs of a whole sweep, as a folder and as a plan."""
    runs = tmp_path_factory.mktemp("analysis") / "runs"
    sweep = injection_level(seeds=[20, 21])
    plan = write_plan(runs, sweep)
    for cell in sweep.cells:
        gain = 1 if "2d" in cell.arm else 0

        def metrics(epoch, shift=0.1 * cell.seed - gain):
            return {"FD-digits": 20 / epoch + shift, "recall": 0.5}

        write_run(runs, cell.config, metrics)
    return runs, plan


# ---- speed-up


def test_speedup_in_flops_is_missing_where_a_cost_is_not_known(frozen):
    """The training FLOPs of an arm are None if it uses an encoder of unknown size."""
    for record in frozen.records:
        if record["arm"] == "internal-2d":
            record["train_flops"] = None
    assert str(speedup.speedup(frozen, "internal-2d", "FD-digits", "flops", "final")) == "—"
    assert str(speedup.speedup(frozen, "internal-2d", "FD-digits", "epochs", "final")).startswith("1.60×")
    (line,) = [
        line for line in speedup.speedup_table(frozen, "FD-digits").splitlines() if "internal-2d |" in line
    ]
    assert [cell.strip() == "—" for cell in line.split(" | ")] == [
        False,
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    points = convergence.tidy(frozen, "FD-digits", "flops")
    assert set(points["arm"]) == {"baseline", "output-1d", "odd_name<&>#1%|"}
    figure = convergence.draw(frozen, "FD-digits", "flops", "minmax", "auto")
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata())]) == 3


def test_a_figure_against_costs_of_which_none_is_known_has_no_line(frozen):
    for record in frozen.records:
        record["train_flops"] = None
    figure = convergence.draw(frozen, "FD-digits", "flops", "minmax", "auto")
    assert not [line for line in figure.axes[0].lines if len(line.get_xdata())]


def test_speedup_without_seconds(frozen):
    assert "training time" in speedup.speedup_table(frozen, "FD-digits", timing=True)
    without = speedup.speedup_table(frozen, "FD-digits", timing=False)
    assert "training time" not in without
    assert "training FLOPs" in without


def test_golden_speedup(frozen):
    assert speedup.speedup_table(frozen, "FD-digits") == (FIXTURES / "speedup.md").read_text(encoding="utf-8")


# ---- figures


def test_figure_is_the_same_bytes_in_another_process_and_shows_the_records(frozen, tmp_path):
    words = ["--records", str(RECORDS), "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    script = str(ROOT / "analysis" / "plot_convergence.py")
    subprocess.run(
        [sys.executable, script, *words, str(tmp_path / "a")],
        check=True,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
    )
    assert plot_convergence.command([*words, str(tmp_path / "b")]) == 0
    for kind in ("svg", "pdf", "png"):
        first, second = ((tmp_path / folder / f"injection_level.{kind}").read_bytes() for folder in "ab")
        assert first == second, kind
        assert len(first) > 5000, kind
    axes = convergence.draw(frozen, "FD-digits", "epochs", "minmax", "linear").axes[0]
    lines = {line.get_color(): line for line in axes.lines}
    looks = common.look(frozen)
    for arm in ("baseline", "output-1d", "internal-2d"):
        mean = frozen.frame[frozen.frame.arm == arm].groupby("epoch")["FD-digits"].mean()
        line = lines[looks[arm][0]]
        assert np.array_equal(line.get_xdata(), mean.index)
        assert np.allclose(line.get_ydata(), mean.values)
    assert len(lines) == 4, "an arm without records has no line"


def band_at_the_end(results, arm, band):
    """Returns (low, high) of the band that the figure shows around an arm's last point."""
    axes = convergence.draw(results, "FD-digits", "epochs", band, "linear").axes[0]
    colours = [to_hex(collection.get_facecolor()[0]) for collection in axes.collections]
    corners = axes.collections[colours.index(common.look(results)[arm][0].lower())].get_paths()[0].vertices
    last = corners[corners[:, 0] == corners[:, 0].max(), 1]
    return last.min(), last.max()


def test_bands(frozen):
    assert np.allclose(band_at_the_end(frozen, "baseline", "minmax"), (5.0, 5.4))
    half = 4.302653 * 0.2 / 3**0.5
    assert np.allclose(band_at_the_end(frozen, "baseline", "t"), (5.2 - half, 5.2 + half))


def test_a_line_ends_where_most_seeds_are(frozen):
    begun = [r for r in frozen.records if (r["arm"], r["seed"]) != ("baseline", 1) or r["epoch"] <= 4]
    points = convergence.tidy(replace(frozen, records=begun), "FD-digits", "epochs")
    assert sorted(points[points.arm == "baseline"].x.unique()) == [2, 4]


def test_seeds_share_one_place_in_time(frozen):
    points = convergence.tidy(frozen, "FD-digits", "seconds")
    baseline = points[points.arm == "baseline"]
    assert baseline.groupby("x").seed.nunique().tolist() == [3] * baseline.x.nunique()


@pytest.mark.parametrize(
    ("least", "greatest", "ticks"),
    [(-50, 120, [-40, -20, 0, 25, 50, 100]), (-9.4, 4.8, [-8, -6, -4, -2, 0, 2, 4])],
)
def test_changes_have_round_ticks_whatever_their_size(least, greatest, ticks):
    axes = Figure().subplots()
    axes.set_xlim(*np.log1p(np.array([least, greatest]) / 100))
    common.percent_axis(axes)
    shown = [100 * np.expm1(x) for x in axes.get_xticks() if least < 100 * np.expm1(x) < greatest]
    assert shown == pytest.approx(ticks, abs=1e-9)


def test_papers_curve_is_dashed_only_under_its_own_profile(frozen):
    def dashed(results, metric="FID"):
        axes = convergence.draw(results, metric, "epochs", "minmax", "log").axes[0]
        return [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]

    for record in frozen.records:
        record["metrics"] = {"FID": record["metrics"]["FD-digits"]}
        record["run"]["config"]["model"]["size"] = "B"
    assert not dashed(frozen)
    lengths = sorted(len(line.get_xdata()) for line in dashed(replace(frozen, profile="imagenet256_b")))
    assert lengths == [1, 5, 6], "output-1d (one point), internal-2d (Mirai-E), baseline"


@pytest.mark.parametrize(
    "metric, x", [("recall", "epochs"), ("KID-digits", "flops"), ("FD-digits", "seconds")]
)
def test_other_metrics_and_axes(frozen, metric, x):
    figure = convergence.draw(frozen, metric, x, "t", "log")
    assert figure.get_supxlabel().startswith(AXES[x][1])
    assert figure.axes[0].get_ylabel().startswith(metric)
    assert figure.axes[0].get_yscale() == "log"


def test_figure_of_another_metric_has_another_name(tmp_path):
    words = ["--records", str(RECORDS), "--out", str(tmp_path), "--metric", "recall", "--x", "flops"]
    assert plot_convergence.command(words) == 0
    names = {f"injection_level_recall_flops.{kind}" for kind in ("svg", "pdf", "png")}
    assert {path.name for path in tmp_path.iterdir()} == names | {"injection_level_recall_speedup.md"}


def test_arms_have_colours_of_their_own(frozen):
    many = replace(frozen, arms=["baseline", *(f"arm-{i}" for i in range(12))])
    assert len({colour for colour, _ in common.look(many).values()}) == 13


def test_differences_are_those_of_the_table_and_filled_where_significant(frozen, monkeypatch):
    table = fid_table.build_table(frozen)
    rows = [row for row in table.rows if row.differences.get("FD-digits")]
    changes = {row.arm: row.differences["FD-digits"] for row in rows}
    assert changes
    for threshold in (0.0, 1.1):
        monkeypatch.setattr(fid_table, "SIGNIFICANT", threshold)
        axes = fid_table.draw_differences(frozen, table).axes[0]
        points = [container.lines[0] for container in axes.containers]
        assert [line.get_xdata()[0] for line in points] == [change.mean for change in changes.values()]
        filled = [line.get_markerfacecolor() != "white" for line in points]
        assert filled == [change.p < threshold for change in changes.values()]
        assert any(filled) == (threshold > 1)
    others = [arm for arm in frozen.arms if arm != "baseline"]
    assert [text.get_text() for text in axes.get_yticklabels()] == others
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the sweep's order, from above"


# ---- claims


def results_with(frozen, **finals):
    """Returns results with one evaluation per seed, from the values of each arm.

    Underscores in the names of the arms stand for hyphens.
    """
    costs = dict.fromkeys(("train_flops", "train_seconds", "sample_seconds", "evaluate_seconds"), 1.0)
    common = {"step": 10, "epoch": 1.0, "run": frozen.records[0]["run"]} | costs
    records = []
    for arm, values in finals.items():
        for seed, value in enumerate(values):
            own = {"arm": arm.replace("_", "-"), "seed": seed, "metrics": {"FD-x": value}}
            records.append(common | own)
    return replace(frozen, arms=[arm.replace("_", "-") for arm in finals], records=records)


def claim_of(*tests):
    return {"claim": "", "paper": "", "tests": list(tests)}


@pytest.mark.parametrize(
    "ours, verdict",
    [
        ([6.0, 6.1, 6.2], "supported"),
        ([4.0, 4.1, 4.2], "contradicted"),
        ([4.0, 6.1, 5.2], "undecided"),
        ([6.0], "undecided"),  # one seed never decides
        ([], "not run"),
    ],
)
def test_verdicts(frozen, ours, verdict):
    claim = {
        "claim": "it hurts",
        "paper": "",
        "tests": [{"axis": "injection_level", "better": "baseline", "than": "output-1d"}],
    }
    (row,) = claims.judge(claim, [results_with(frozen, baseline=[5.0, 5.15, 5.2], output_1d=ours)])
    assert row[3] == verdict


def test_a_claim_is_open_where_the_teacher_would_be_the_judge(frozen):
    results = results_with(frozen, baseline=[5.0, 5.15, 5.2], taught=[4.0, 4.1, 4.3])
    test = {"axis": "injection_level", "better": "taught", "than": "baseline"}
    assert claims.judge(claim_of(test), [results])[0][3] == "supported"
    run = frozen.records[0]["run"]
    foresight = {"level": "internal", "source": "encoder", "encoder": {"name": "dinov2_l"}}
    taught = run | {"config": run["config"] | {"foresight": foresight}}
    records = [
        record | {"run": (taught if record["arm"] == "taught" else run) | {"extractor": {"name": "dinov2"}}}
        for record in results.records
    ]
    (row,) = claims.judge(claim_of(test), [replace(results, records=records)])
    assert row[3] == "undecided" and "is of the teacher of taught" in row[4]


def test_a_claim_needs_all_its_comparisons(frozen):
    tests = [{"axis": "injection_level", "better": a, "than": b} for a, b in (("a", "b"), ("b", "c"))]
    claim = {"claim": "a > b > c", "paper": "", "tests": tests}

    def judged(**values):
        return claims.judge(claim, [results_with(frozen, **values)])[0][3]

    up = [5.0, 5.1, 5.25]
    low = [4.0, 4.15, 4.2]
    wide = [4.0, 6.1, 5.2]
    assert judged(a=low, b=up, c=[x + 1 + i / 50 for i, x in enumerate(up)]) == "supported"
    assert judged(a=low, b=up, c=wide) == "undecided"
    assert judged(a=low, b=up, c=low) == "contradicted"
    assert judged(a=low, b=up) == "undecided", "one comparison was not run"


def test_contradiction_is_corrected_for_the_number_of_comparisons(frozen):
    """The p of b - a is 0.03. This contradicts a claim of one comparison, but not one of two."""
    test = {"axis": "injection_level", "better": "a", "than": "b"}
    d = np.array([-0.9, 0.1, 0.8])  # s = 0.854
    values = results_with(frozen, baseline=[0.0] * 3, a=list(5 * np.exp(d + 2.7)), b=[5.0] * 3)
    shifted = {i: float(x) + 2.7 for i, x in enumerate(d)}
    assert paired(shifted, dict.fromkeys(range(3), 0.0)).p == pytest.approx(0.032, abs=0.002)
    assert claims.judge(claim_of(test), [values])[0][3] == "contradicted"
    assert claims.judge(claim_of(test, test), [values])[0][3] == "undecided"


def test_a_comparison_of_one_profile_is_not_made_in_another(frozen):
    test = {"axis": "injection_level", "better": "internal-2d", "than": "baseline"}
    assert claims.judge(claim_of(test | {"profile": "digits"}), [frozen])[0][3] == "supported"
    (row,) = claims.judge(claim_of(test | {"profile": "imagenet384_b"}), [frozen])
    assert row[3] == "not run" and "injection_level (imagenet384_b): internal-2d" in row[4]


def test_the_same_claim_in_another_sweep_has_a_row_and_a_verdict_of_its_own(frozen):
    up, low = [5.0, 5.1, 5.25], [4.0, 4.15, 4.2]
    here = results_with(frozen, a=low, b=up)
    elsewhere = replace(results_with(frozen, c=up, d=low), axis="real_images", profile="cifar10_cpu")
    also = [{"axis": "real_images", "better": "c", "than": "d"}]
    claim = claim_of({"axis": "injection_level", "better": "a", "than": "b"}) | {"also": also}
    rows = claims.judge(claim, [here, elsewhere])
    assert [row[2:4] for row in rows] == [["digits", "supported"], ["cifar10_cpu", "contradicted"]]
    (row,) = claims.judge(claim, [replace(here, axis="own_cell")])
    assert row[3:] == ["not run", "needs injection_level: a and b"]
    text = claims.report([claim], [here, elsewhere])
    assert "- digits: 1 supported.\n- cifar10_cpu: 1 contradicted.\n" in text


def test_speedup_and_sameness_claims(frozen):
    def row_of(arm="internal-2d", **test):
        (row,) = claims.judge(claim_of({"axis": "injection_level", "arm": arm} | test), [frozen])
        return row

    assert row_of(speedup=1.4)[3] == "supported"
    assert row_of(speedup=5)[3] == "contradicted"
    assert "in FLOPs" in row_of(speedup=5, cost="flops")[4]
    with pytest.raises(UserError, match="Did you mean 'flops'"):
        row_of(speedup=5, cost="flop")
    verdict, evidence = row_of(speedup=10)[3:]
    assert verdict == "cannot be decided by this profile"
    assert "could show 6× at most" in evidence, "evaluations at epochs 2 to 12"
    assert row_of(speedup=1.6)[3] == "undecided"
    assert row_of(same="parameters", within=0.0)[3] == "supported"
    assert row_of(same="sample_seconds", within=0.05)[3] == "supported"
    assert row_of(same="train_flops", within=0.05)[3] == "contradicted"
    never = row_of("output-1d", speedup=5)
    assert never[3] == "contradicted"
    assert "not reached" in never[4]


@pytest.mark.parametrize(
    "test, message",
    [
        ({"bettr": "a"}, "Unknown kind of comparison 'bettr'"),
        ({"axis": "x", "better": "a"}, "lacks than"),
        ({"axis": "x", "arm": "a", "speedup": 2, "x": 1}, "has x"),
    ],
)
def test_bad_claims_are_refused(test, message):
    with pytest.raises(UserError, match=message):
        claims.kind_of(test)


def test_shipped_claims_name_arms_that_a_sweep_has():
    for claim in CLAIMS:
        assert claim["paper"] and claim["tests"]
        for test in [*claim["tests"], *claim.get("also", [])]:
            claims.kind_of(test)
            path = ROOT / "sweeps" / f"{test['axis']}.yaml"
            if path.is_file():
                arms = yaml.safe_load(path.read_text())["arms"]
                named = [test[key] for key in ("better", "more", "than", "arm") if key in test]
                assert all(arm in arms or arm.startswith("mirai-e-frozen-k") for arm in named), test


def test_golden_claims(frozen):
    assert claims.report(CLAIMS, [frozen]) == (FIXTURES / "claims.md").read_text(encoding="utf-8")


# ---- scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_to_read_says_what_to_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.run(SCRIPTS[name].command, []) == 2
    captured = capsys.readouterr()
    assert common.MAIN_JOB in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (["--axis", "injection_levle"], "Did you mean 'injection_level'"),
        (["--metric", "FD"], "Unknown metric 'FD'"),
        (["--records", "absent.jsonl"], "no file"),
    ],
)
def test_bad_words(words, message, tmp_path):
    source = [] if "--records" in words else ["--records", str(RECORDS)]
    with pytest.raises(UserError, match=message):
        fid_table.command([*source, "--out", str(tmp_path), *words])


def test_table_freezes_the_records_that_rebuild_it(tmp_path, capsys):
    assert fid_table.command(["--records", str(RECORDS), "--out", str(tmp_path), "--freeze"]) == 0
    assert capsys.readouterr().out == (tmp_path / "injection_level.md").read_text() + "\n"
    frozen = tmp_path / "data" / "injection_level_digits.jsonl"
    assert fid_table.command(["--records", str(frozen), "--out", str(tmp_path / "again")]) == 0
    for kind in ("md", "csv", "tex", "html"):
        name = f"injection_level.{kind}"
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_every_script_reads_mlflow_and_run_folders(main_job, tmp_path, tmp_path_factory, monkeypatch, capsys):
    runs, plan = main_job
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store(tmp_path_factory.getbasetemp()))
    monkeypatch.chdir(tmp_path)
    # The committed target of the digits is none of the profile `analysis`.
    monkeypatch.setattr(plot_convergence, "read_target", lambda results, metric: None)
    mine = plan | {"profile": "analysis"}
    parent = start_sweep(mine)
    for cell in plan["cells"]:
        folder = RunFolder(runs / cell["fingerprint"])
        ship(folder, parent=parent, axis=plan["axis"], arm=cell["arm"], seed=cell["seed"])
    for name, script in SCRIPTS.items():
        capsys.readouterr()
        assert script.command(["--profile", "analysis"]) == 0, name
        from_mlflow = capsys.readouterr().out.replace("_analysis", "").replace("analysis", "digits")
        assert script.command(["--runs", str(runs)]) == 0, name
        assert from_mlflow == capsys.readouterr().out, name
    written = {path.name for path in (tmp_path / "out").glob("injection_level*")}
    written = {name for name in written if "analysis" not in name}
    figures = ("svg", "pdf", "png")
    expected = {f"injection_level.{kind}" for kind in ("md", "csv", "tex", "html", *figures)}
    expected |= {f"injection_level_differences.{kind}" for kind in figures}
    others = ("speedup.md", "samples.png", "report.html")
    assert written == expected | {f"injection_level_{other}" for other in others}


def test_grids_stand_side_by_side(main_job, frozen, tmp_path, monkeypatch):
    runs, _ = main_job
    (results,) = common.load(common.parser("x", "", "").parse_args(["--runs", str(runs)]))
    figure = sample_grid.draw(results, sample_grid.chosen(results, None), [20, 21], tmp_path)
    assert len(figure.axes) == 2 * 5
    assert all(len(axes.images) == 1 for axes in figure.axes)
    assert [axes.get_title() for axes in figure.axes[:5]] == results.arms
    monkeypatch.setattr(sample_grid, "MOST_COLUMNS", 3)
    wrapped = sample_grid.draw(results, sample_grid.chosen(results, None), [20, 21], tmp_path).axes
    assert len(wrapped) == 2 * 5, "the places of no arm are empty"
    titled = [axes for axes in wrapped if axes.get_title()]
    assert [axes.get_title() for axes in titled] == results.arms
    assert [axes.get_subplotspec().rowspan.start for axes in titled] == [0, 0, 0, 2, 2]
    earlier = sample_grid.chosen(results, 4.2)
    assert {record["epoch"] for record in earlier.values()} == {4.0}
    (runs / results.cells[0]["fingerprint"] / earlier["baseline", 20]["grid"]).unlink()
    assert len(sample_grid.draw(results, earlier, [20], tmp_path).axes[0].images) == 0
    with pytest.raises(UserError, match="no sample grids are at hand"):
        sample_grid.draw(frozen, sample_grid.chosen(frozen, None), [0], tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit):
        SCRIPTS[name].command(["--help"])
    assert f"example: python analysis/{name}.py" in " ".join(capsys.readouterr().out.split())


def test_a_file_without_a_command_says_so():
    files = sorted((ROOT / "analysis").glob("*.py"))
    assert all('if __name__ == "__main__":' in path.read_text(encoding="utf-8") for path in files)
    words = [sys.executable, str(ROOT / "analysis" / "ticks.py"), "--help"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert answer.returncode != 0 and "docs/commands/analysis.md" in answer.stderr


def test_paper_values_are_marked():
    rows = []
    for axis in ("injection_level", "foresight_layout", "foresight_source"):
        for size in ("B", "L", "XL"):
            rows += read_paper(axis, size)
    assert len(rows) > 80
    assert {row["mark"] for row in rows} <= {"L-html", "L-img", "L-vec", "L-px"}
    assert all(row["source"] for row in rows)


if __name__ == "__main__":
    found = read_jsonl([RECORDS])
    table = speedup.speedup_table(found[0], "FD-digits")
    (FIXTURES / "speedup.md").write_text(table, encoding="utf-8")
    (FIXTURES / "claims.md").write_text(claims.report(CLAIMS, found), encoding="utf-8")


# ---- sweeps and words that nobody expects


def one_sweep(runs, *arms, question=None):
    sweep = injection_level(only=arms, seeds=[0, 1])
    sweep = sweep if question is None else replace(sweep, question=question)
    write_plan(runs, sweep)
    for cell in sweep.cells:
        path = write_run(runs, cell.config, lambda epoch: {"FD-digits": 20 / epoch + 1, "recall": 0.5})
        for grid in (path / "samples").glob("*.png"):
            imsave(grid, np.zeros((8, 8, 3)))
    return runs


@pytest.mark.parametrize("name", ["fid_table", "plot_convergence", "sample_grid"])
def test_a_sweep_without_its_baseline_is_shown(name, tmp_path):
    runs = one_sweep(tmp_path / "runs", "internal-2d")
    assert cli.run(SCRIPTS[name].command, ["--runs", str(runs), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "question", ["Does $\\foo$ help?", "Worth $100 or $200_?", "$", "$$", "a_b^c {", "100 %"]
)
@pytest.mark.parametrize("name", ["fid_table", "plot_convergence"])
def test_a_question_is_text_and_no_formula(name, question, tmp_path):
    runs = one_sweep(tmp_path / "runs", "baseline", "internal-2d", question=question)
    assert cli.run(SCRIPTS[name].command, ["--runs", str(runs), "--out", str(tmp_path / "out")]) == 0
