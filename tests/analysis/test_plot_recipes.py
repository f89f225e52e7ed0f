"""Two recipes stand side by side, or one message says why they cannot."""

import json
import math

import plot_recipes
import pytest

from mirai_bench.utils.errors import UserError
from tests.support.paths import RECORDS

RECIPE = {"lr": 1e-3, "lr_warmup": 0.0, "epochs": 12}


@pytest.fixture
def records(tmp_path):
    """Returns a function that writes the fixture with its lines changed, and returns the script's words."""

    def write(change=lambda line: line, recipe=RECIPE):
        lines = [json.loads(line) for line in RECORDS.read_text().splitlines()]
        for line in lines:
            if line["kind"] == "run" and recipe:
                line["config"]["train"] = recipe
        changed = [found for line in lines if (found := change(line)) is not None]
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        return [str(path), str(path), "--out", str(tmp_path / "out")]

    return write


def without_baseline(line):
    return None if line.get("arm") == "baseline" else line


def with_nan(line):
    if line.get("arm") == "baseline" and "metrics" in line:
        line["metrics"]["FD-digits"] = math.nan
    return line


def only_baseline(line):
    if line["kind"] == "sweep":
        cells = [cell for cell in line["cells"] if cell["arm"] == "baseline"]
        return line | {"arms": ["baseline"], "cells": cells}
    return line if line["arm"] == "baseline" else None


def only_plan(line):
    return line if line["kind"] == "sweep" else None


@pytest.mark.parametrize(
    ("change", "recipe", "message"),
    [
        (without_baseline, RECIPE, "its baseline baseline has no finite FD-digits at the last evaluation"),
        (with_nan, RECIPE, "its baseline baseline has no finite FD-digits at the last evaluation"),
        (only_baseline, RECIPE, "has records of baseline only"),
        (only_plan, RECIPE, "has no evaluation yet"),
        (lambda line: line, None, "do not say train.epochs, train.lr, train.lr_warmup"),
    ],
)
def test_what_cannot_be_compared_is_an_error_in_one_message(records, change, recipe, message):
    with pytest.raises(UserError, match=message):
        plot_recipes.command(records(change, recipe))


def test_the_axis_is_no_path(records, tmp_path):
    def with_a_path(line):
        return line | {"axis": "../../x y/%s"}

    assert plot_recipes.command(records(with_a_path)) == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".pdf", ".png", ".svg"]
    assert all(path.name.startswith("recipes_.._.._x_y__s") for path in (tmp_path / "out").iterdir())
