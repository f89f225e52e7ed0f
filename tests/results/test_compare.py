"""`evaluate compare A B` pairs records by seed, and refuses those of two protocols."""

import json

import pytest

from mirai_bench.evaluate.__main__ import command
from mirai_bench.results.compare import differences, last_common_epoch, records_of, refuse_difference
from mirai_bench.results.frozen import freeze
from mirai_bench.results.reading import read_journals
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from tests.support.synthetic import injection_level, write_plan, write_run


def record(seed, epoch, value, **protocol):
    return {
        "seed": seed,
        "epoch": epoch,
        "metrics": {"FD-digits": value, "recall": 0.5},
        "protocol": {"name": "p", "num_samples": 100} | protocol,
        "extractor": {"name": "digits"},
        "reference": {"n": 9},
    }


def test_differences_are_paired_by_seed():
    """B - A is -1, -2 and -3. By hand: mean -2, deviation 1, half width 4.3027/√3, t = -2√3, p = 0.0742."""
    a = [record(seed, 4, 10.0 * seed) for seed in (1, 2, 3)]
    b = [record(seed, 4, 10.0 * seed - seed) for seed in (1, 2, 3, 4)]
    row = differences(a, b)[0]
    assert row == ("FD-digits", "3", "20", "18", "-2", "± 2.484", "0.0742")
    assert differences(a[:1], b)[0] == ("FD-digits", "1", "10", "9", "-1", "—", "—")


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), None, "0.5", [1]])
def test_a_metric_is_compared_where_both_sides_are_finite(odd):
    a = [record(seed, 4, 10.0 * seed) for seed in (1, 2)]
    b = [record(seed, 4, 10.0 * seed - 1) for seed in (1, 2)]
    b[1]["metrics"]["FD-digits"] = odd
    for one in b:
        one["metrics"]["recall"] = odd
    rows = {row[0]: row[1:] for row in differences(a, b)}
    assert rows["FD-digits"][:4] == ("1", "10", "9", "-1")
    assert rows["recall"] == ("0", *["—"] * 5)


def test_the_last_epoch_that_both_reached_is_compared():
    a = [record(0, 1, 1), record(0, 2, 1), record(1, 1, 1), record(1, 2, 1)]
    assert last_common_epoch(a, a[:3]) == 1
    assert last_common_epoch(a, a) == 2
    with pytest.raises(UserError, match="nothing to pair"):
        last_common_epoch(a, [record(7, 1, 1)])


@pytest.mark.parametrize(("section", "field"), [("train", "lr"), ("model", "width"), ("foresight", "weight")])
def test_records_of_two_configurations_are_not_averaged(tmp_path, section, field, capsys):
    lines = []
    for seed, value in enumerate((1.0, 1.0, 2.0)):
        config = {"seed": seed, section: {field: value}, "machine": {"threads": seed + 1}}
        own = {"kind": "evaluation", "protocol_digest": "x", "config": config}
        lines.append(json.dumps(record(seed, 4, 10.0) | own) + "\n")
    (tmp_path / "mixed.jsonl").write_text("".join(lines))
    (tmp_path / "one.jsonl").write_text("".join(lines[:2]))
    one, mixed = str(tmp_path / "one.jsonl"), str(tmp_path / "mixed.jsonl")
    assert run(command, ["compare", one, one]) == 0
    for words in ([one, mixed], [mixed, one]):
        assert run(command, ["compare", *words]) == 2
        assert f"{section}.{field} is 1.0 with seed 0 and 2.0 with seed 2" in capsys.readouterr().err


def test_records_of_two_protocols_are_refused_by_field():
    with pytest.raises(UserError, match=r"protocol.num_samples is 100 in one and 200 in another"):
        refuse_difference([record(0, 1, 1), record(1, 1, 1, num_samples=200)])
    refuse_difference([record(0, 1, 1), record(1, 1, 1, name="another name")])


def test_compare_prints_a_table(tmp_path, capsys):
    for name, shift in (("a", 0), ("b", 1)):
        rows = [record(seed, 4, seed + shift) | {"kind": "evaluation"} for seed in range(3)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(command, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    head, first, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["metric", "n", "A", "B", "B", "-", "A", "95%", "interval", "p"]
    assert first.split() == ["FD-digits", "3", "1", "2", "+1", "±", "0", "0"]


def test_arms_of_a_sweep_are_compared(tmp_path):
    sweep = injection_level(seeds=[0, 1], only=["baseline", "output-1d"])
    write_plan(tmp_path, sweep)
    for cell in sweep.cells:
        gain = 0.5 if cell.arm == "output-1d" else 0.0

        def metrics(epoch, shift=cell.seed - gain):
            return {"FD-digits": 10 / epoch + shift}

        write_run(tmp_path, cell.config, metrics)
    a = records_of("injection_level/baseline", tmp_path)
    b = records_of("injection_level/output-1d", tmp_path)
    refuse_difference([*a, *b])
    epoch = last_common_epoch(a, b)
    last = [[record for record in side if record["epoch"] == epoch] for side in (a, b)]
    assert differences(*last)[0][:5] == ("FD-digits", "2", "1.3333", "0.83333", "-0.5")
    freeze(read_journals(tmp_path)[0], tmp_path / "frozen.jsonl")
    frozen = records_of(f"{tmp_path}/frozen.jsonl/output-1d", tmp_path)
    assert differences(last[0], [record for record in frozen if record["epoch"] == 12]) == differences(*last)
    with pytest.raises(UserError, match="Did you mean 'baseline'"):
        records_of("injection_level/basline", tmp_path)


@pytest.mark.parametrize("content", ["[1]\n", "not JSON\n", '{"kind": "evaluation", "metrics": {}}\n', ""])
def test_a_file_that_holds_no_records_is_refused(tmp_path, content):
    (tmp_path / "records.jsonl").write_text(content)
    with pytest.raises(UserError, match="records"):
        records_of(str(tmp_path / "records.jsonl"), tmp_path)
