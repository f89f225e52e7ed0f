"""The noise of an evaluation is that computed by hand, and is recovered from made-up records."""

import json

import numpy as np
import pytest
from evaluation_noise import command, deviations, read, report, run

from mirai_bench.utils.errors import UserError


def records(groups: dict[int, list[float]]) -> list[dict]:
    found = []
    for seed, values in groups.items():
        for number, value in enumerate(values):
            record = {
                "seed": seed,
                "epoch": 10.0,
                "profile": "digits",
                "metrics": {"FD-digits": value},
                "config": {"foresight": {"level": "none"}},
                "protocol": {"name": "digits", "seed": number, "num_samples": 1000},
                "extractor": {"name": "digits", "sha256": "sha256:aa"},
                "reference": {"name": "digits/train", "sha256": "sha256:bb", "n": 1500},
            }
            found.append(record)
    return found


def test_deviations_by_hand():
    noise, spread = deviations(records({0: [1.0, 3.0], 1: [5.0, 7.0]}), "FD-digits")
    assert noise == pytest.approx(2**0.5)
    assert spread == pytest.approx((8 + 0.5 * 2) ** 0.5)  # group means 2 and 6 have variance 8


def test_deviations_recover_what_was_put_in():
    rng = np.random.default_rng(0)
    groups = {seed: list(10 + 3 * rng.standard_normal() + rng.standard_normal(20)) for seed in range(400)}
    noise, spread = deviations(records(groups), "FD-digits")
    assert noise == pytest.approx(1, rel=0.05)
    assert spread == pytest.approx(10**0.5, rel=0.1)


@pytest.mark.parametrize("groups", [{0: [1.0, 2.0]}, {0: [1.0], 1: [2.0]}, {0: [1.0, 2.0], 1: [2.0]}])
def test_too_few_or_uneven_evaluations_are_refused(groups):
    with pytest.raises(UserError, match="two training seeds or more"):
        report(records(groups))


@pytest.mark.parametrize("field", [{"epoch": 5.0}, {"extractor": {"name": "dinov2"}}])
def test_records_of_two_kinds_are_refused(tmp_path, field):
    lines = records({0: [1.0, 2.0], 1: [3.0, 4.0]})
    lines[0] |= field
    path = tmp_path / "noise.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="2 kinds"):
        read(path)
    assert run(command, [str(tmp_path / "absent.jsonl")]) == 2


def test_command_prints_and_writes_the_table(tmp_path, capsys):
    path = tmp_path / "noise.jsonl"
    path.write_text("\n".join(map(json.dumps, records({0: [1.0, 3.0], 1: [5.0, 7.0]}))))
    assert run(command, [str(path), "--out", str(tmp_path / "noise.md")]) == 0
    assert "| FD-digits | 4 | 1.4 | 3 | 0.47 |" in capsys.readouterr().out
    assert "2 sampling seeds each" in (tmp_path / "noise.md").read_text()
