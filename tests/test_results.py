"""Records, statistics and tables. The golden tables are made from tests/fixtures/records.jsonl; after a wanted change of their form:

python tests/test_results.py        # writes them anew; read the difference before committing it
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats as scipy_stats
from synthetic import injection_level, shared_store, write_plan, write_run

from mirai_bench.results.frame import lower_is_better, primary_metric, refuse_mixed_protocols, with_protocol
from mirai_bench.results.reading import fetch_grid, freeze, read_journals, read_jsonl, read_mlflow
from mirai_bench.results.stats import holm, paired, t_interval
from mirai_bench.results.table import build_table
from mirai_bench.results.writers import LATEX, WRITERS, latex_escape, markdown
from mirai_bench.tracking import ship as tracking
from mirai_bench.tracking.records import pack, unpack
from mirai_bench.utils.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
RECORDS = FIXTURES / "records.jsonl"


@pytest.fixture
def frozen():
    return read_jsonl([RECORDS])[0]


@pytest.fixture
def runs(tmp_path):
    """Two arms with three seeds, of which one failed and one has not begun."""
    sweep = injection_level(only=["baseline", "internal-2d"])
    write_plan(tmp_path / "runs", sweep)
    for cell in sweep.cells:
        state = {("internal-2d", 1): "failed", ("internal-2d", 2): None}.get((cell.arm, cell.seed), "done")
        if state:
            until = 4 if state == "failed" else 12
            write_run(
                tmp_path / "runs", cell.config, lambda epoch, s=cell.seed: {"FD-digits": 10 / epoch + s, "recall": 0.5}, until=until,
                status=state,
            )  # fmt: skip
    return tmp_path / "runs"


def test_the_same_records_from_journals_mlflow_and_frozen_files(
    runs, tmp_path, tmp_path_factory, monkeypatch
):
    (journals,) = read_journals(runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store(tmp_path_factory.getbasetemp()))
    plan = json.loads((runs / "sweeps" / "injection_level-digits.json").read_text())
    parent = tracking.start_sweep(plan)
    for cell in plan["cells"]:
        if (runs / cell["fingerprint"]).is_dir():
            tracking.ship(
                runs / cell["fingerprint"],
                parent=parent,
                axis=plan["axis"],
                arm=cell["arm"],
                seed=cell["seed"],
            )
    (mlflow,) = read_mlflow(axis="injection_level", profile="digits")
    assert read_mlflow(sweep=parent)[0].cells == mlflow.cells
    freeze(journals, tmp_path / "frozen.jsonl")
    (frozen,) = read_jsonl([tmp_path / "frozen.jsonl"])
    for other in (mlflow, frozen):
        pd.testing.assert_frame_equal(other.frame, journals.frame)
        assert (
            other.cells == journals.cells
            and other.arms == ["baseline", "internal-2d"]
            and other.baseline == "baseline"
        )
    assert [cell["status"] for cell in journals.cells] == [
        "done",
        "done",
        "done",
        "failed",
        "done",
        "pending",
    ]
    assert len(journals.frame) == 4 * 5 + 2
    row = journals.frame.query("arm == 'internal-2d' and seed == 1 and epoch == 4").iloc[0]
    assert (row["FD-digits"], row["train_flops"], row["autocast"], row["fingerprint"]) == (
        3.5,
        4e12,
        "fp32",
        plan["cells"][3]["fingerprint"],
    )
    assert markdown(build_table(mlflow)) == markdown(build_table(journals)) == markdown(build_table(frozen))
    for results in (journals, mlflow):
        assert fetch_grid(results, results.records[0], tmp_path).read_bytes().startswith(b"\x89PNG")
    assert fetch_grid(frozen, frozen.records[0], tmp_path) is None


def test_no_store_is_an_empty_list(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'absent.db'}")
    assert read_mlflow() == [] and not (tmp_path / "absent.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        read_mlflow()


def test_frame_has_a_row_for_each_evaluation_and_a_column_for_each_metric(frozen):
    assert frozen.frame.shape[0] == len(frozen.records) == 36
    assert {
        "axis",
        "arm",
        "seed",
        "epoch",
        "step",
        "train_flops",
        "train_seconds",
        "FD-digits",
        "recall",
    } <= set(frozen.frame)
    assert frozen.frame["recall"].isna().sum() == 1


@pytest.mark.parametrize("axis", ["../../x", "/etc/x", "a\0b", "..", "a/b"])
def test_names_of_report_files_are_no_paths(frozen, axis):
    name = replace(frozen, axis=axis, profile="../p").name
    assert Path(name).name == name and not name.startswith(".") and "\0" not in name


def test_later_evaluation_of_a_step_stands(frozen):
    line = {"kind": "evaluation", "step": 10, "epoch": 1.0, "protocol_digest": "a", "fingerprint": "f"}
    lines = [line | {"metrics": {"FID": value}} for value in (3.0, 2.0)]
    (record,) = unpack(pack(lines), arm="x", seed=0)
    assert record["metrics"] == {"FID": 2.0} and record["run"] == {"protocol_digest": "a", "fingerprint": "f"}
    other = unpack(pack([*lines, lines[0] | {"protocol_digest": "b"}]), arm="x", seed=0)
    assert [r["run"]["protocol_digest"] for r in other] == ["a", "b"], "another protocol is another record"


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
            record["run"] = changed.setdefault(
                id(run), run | {part: run[part] | fields, "protocol_digest": "other"}
            )
    for use in (refuse_mixed_protocols, build_table, lambda results: freeze(results, tmp_path / "x.jsonl")):
        with pytest.raises(UserError, match=message):
            use(frozen)
    chosen = with_protocol(frozen, "other")
    assert {record["arm"] for record in chosen.records} == {"internal-2d"} and "metrics" not in vars(frozen)
    with pytest.raises(UserError, match="Unknown protocol 'nothing'"):
        with_protocol(frozen, "nothing")


def test_protocols_name_may_differ(frozen):
    frozen.records[-1]["run"] = frozen.records[-1]["run"] | {
        "protocol": frozen.records[-1]["run"]["protocol"] | {"name": "alias"}
    }
    refuse_mixed_protocols(frozen)


@pytest.mark.parametrize("text", ["", "not json", '{"kind": "sweep"}', "[1, 2]"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match="not a file of frozen records"):
        read_jsonl([tmp_path / "x.jsonl"])
    with pytest.raises(UserError, match="no file"):
        read_jsonl([tmp_path / "absent.jsonl"])


def test_files_of_one_sweep_are_joined(frozen, tmp_path):
    """Seed 0 in one file, the others in the next: the same as all in one, whatever the order of the files."""

    def part(name, mine):
        cells = [cell if mine(cell["seed"]) else cell | {"status": "pending"} for cell in frozen.cells]
        records = [record for record in frozen.records if mine(record["seed"])]
        freeze(replace(frozen, cells=cells, records=records), tmp_path / name)
        return tmp_path / name

    paths = [part("first.jsonl", lambda seed: seed == 0), part("more.jsonl", lambda seed: seed != 0)]
    for files in (paths, paths[::-1]):
        (joined,) = read_jsonl(files)
        assert {(c["arm"], c["seed"]): c["status"] for c in joined.cells} == {
            (c["arm"], c["seed"]): c["status"] for c in frozen.cells
        }
        assert markdown(build_table(joined)) == markdown(build_table(frozen))
    with pytest.raises(UserError, match=r"an earlier file has records of baseline, seed 0, too"):
        read_jsonl([*paths, paths[0]])


def test_directions_and_primary_metric():
    assert (
        lower_is_better("FD-digits")
        and lower_is_better("FID")
        and lower_is_better("sFID")
        and not lower_is_better("recall")
    )
    assert (
        primary_metric(["recall", "FD-digits", "FID"]) == "FID"
        and primary_metric(["KID", "FD-DINOv2"]) == "FD-DINOv2"
    )
    with pytest.raises(UserError, match="Unknown metric"):
        lower_is_better("colour")
    with pytest.raises(UserError, match="no Fréchet distance"):
        primary_metric(["recall"])


def test_imports_neither_torch_nor_mlflow():
    code = "import sys; from mirai_bench import results, tables, stats, records, tracking; print({'torch', 'mlflow', 'ray'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


# ---- statistics


def test_t_interval_is_scipys():
    x = [5.0, 5.4, 5.2, 4.9]
    ours = t_interval(x)
    low, high = scipy_stats.t.interval(0.95, 3, loc=sum(x) / 4, scale=scipy_stats.sem(x))
    assert (ours.low, ours.high) == pytest.approx((low, high))
    assert t_interval([1.0, 2.0]).half == pytest.approx(12.7062 * 0.5, rel=1e-5)
    assert t_interval([]) is None and t_interval([math.nan, None]) is None
    assert t_interval([3.0]).n == 1 and math.isnan(t_interval([3.0]).half)


def test_paired_difference_by_hand_and_by_scipy():
    ours, theirs = {0: 4.5, 1: 4.8, 2: 4.7, 9: 0.0}, {2: 5.2, 1: 5.4, 0: 5.0}
    d = paired(ours, theirs)
    # -0.5, -0.6, -0.5: mean -1.6/3, s = 0.1/√3, half width 4.302653·s/√3 = 4.302653/30
    assert (d.n, d.mean, d.half) == (3, pytest.approx(-1.6 / 3), pytest.approx(4.302653 / 30, rel=1e-6))
    assert d.p == pytest.approx(scipy_stats.ttest_rel([4.5, 4.8, 4.7], [5.0, 5.4, 5.2]).pvalue)
    assert (
        paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0
        and paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0.0
    )
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True
    )
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


# ---- tables


@pytest.mark.parametrize("kind", WRITERS)
def test_golden_table(frozen, kind):
    assert WRITERS[kind](build_table(frozen)) == (FIXTURES / f"table.{kind}").read_text(encoding="utf-8")


def test_rows_keep_the_order_of_the_sweep_and_show_what_is_missing(frozen):
    table = build_table(frozen)
    assert [row.arm for row in table.rows] == frozen.arms
    text = markdown(table)
    assert "| pending | 0 of 3 | — | — | — |" in text and "output-1d seed 2 (failed)" in text
    change = table.rows[2].differences["FD-digits"]
    assert change.mean == pytest.approx(-1.6 / 3) and change.p == pytest.approx(2 * 0.00388350, rel=1e-4), (
        "Holm over two tests"
    )


def test_interrupted_sweep_gives_the_same_table_without_timing(frozen):
    slower = replace(
        frozen,
        records=[record | {"train_seconds": record["train_seconds"] * 1.7 + 1} for record in frozen.records],
    )
    for kind, write in WRITERS.items():
        assert write(build_table(frozen, timing=False)) == write(build_table(slower, timing=False)), kind
    assert markdown(build_table(frozen)) != markdown(build_table(slower))


def test_earlier_epoch_and_other_metric(frozen):
    table = build_table(frozen, metric="precision", epoch=4)
    assert table.metrics[0] == "precision" and table.rows[0].values["FD-digits"].mean == pytest.approx(7.2)
    with pytest.raises(UserError, match="no evaluation at epoch 5: there are 2, 4, 8, 12"):
        build_table(frozen, epoch=5)
    with pytest.raises(UserError, match="no evaluation yet"):
        build_table(replace(frozen, records=[]))


def test_papers_value_is_of_the_same_size_and_nearest_epoch(frozen):
    run = frozen.records[0]["run"]
    run |= {"config": {"model": {"size": "XL"}}}
    large = build_table(
        replace(frozen, profile="imagenet256_xl", records=[r | {"run": run} for r in frozen.records])
    )
    assert large.rows[0].paper["FD-digits"].value == 4.40 and large.rows[0].paper["FD-digits"].epochs == 20
    digits = build_table(read_jsonl([RECORDS])[0])
    assert (digits.rows[0].paper["FD-digits"].value, digits.rows[0].paper["FD-digits"].epochs) == (6.36, 80)


def test_latex_has_no_unescaped_special(frozen):
    assert all(latex_escape(c) != c for c in "&%$#_{}~^\\<>±−Δ—")
    text = WRITERS["tex"](build_table(frozen))
    for body, columns in zip(text.split(r"\midrule")[1:], (8, 4), strict=True):
        for line in body.split(r"\bottomrule")[0].strip().splitlines():
            assert line.replace(r"\&", "").count("&") == columns - 1 and line.endswith(r" \\")
    assert not set(text) - set(map(chr, range(128))), "plain ASCII: any LaTeX engine reads it"
    assert "[" not in text.replace("{[}", "") and LATEX["_"] == r"\_"


def test_html_escapes_arm_names(frozen):
    text = WRITERS["html"](build_table(replace(frozen, arms=["<script>alert(1)</script>", *frozen.arms])))
    assert "<script>" not in text and "&lt;script&gt;" in text


if __name__ == "__main__":
    for kind, write in WRITERS.items():
        (FIXTURES / f"table.{kind}").write_text(
            write(build_table(read_jsonl([RECORDS])[0])), encoding="utf-8"
        )
