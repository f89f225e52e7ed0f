"""What `run_sweep` and `read_results` refuse, before anything is trained."""

import pytest

from mirai_bench import UserError, read_results, run_sweep
from mirai_bench.sweep import driver
from tests.support.paths import RECORDS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_concurrent": 0}, "max_concurrent is 0: input should be greater than or equal to 1"),
        ({"max_concurrent": "2"}, "max_concurrent is '2': input should be a valid integer"),
        ({"retries": -1}, "retries is -1"),
        ({"profile": 5}, "run_sweep: profile is 5: input is not a valid path"),
        ({"profile": "digit"}, "Did you mean 'digits'"),
        ({"seeds": 5}, "seeds is 5"),
        ({"only": "baseline"}, "only is 'baseline'"),
        ({"settings": 5}, "settings is 5"),
        ({"plugins": "mine"}, "plugins is 'mine'"),
        ({"address": 5}, "address is 5"),
    ],
)
def test_wrong_arguments_of_a_sweep(options, words, monkeypatch):
    monkeypatch.setattr(driver, "run_sweep", None)
    with pytest.raises(UserError, match=words):
        run_sweep("injection_level", **options)


def test_arguments_reach_the_sweep(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(driver, "run_sweep", lambda plan, options: started.append((plan, options)))
    settings = {"machine.runs": str(tmp_path)}
    run_sweep("injection_level", seeds=range(2), only=["baseline"], max_concurrent=3, settings=settings)
    ((plan, options),) = started
    assert [(cell.arm, cell.seed) for cell in plan.sweep.cells] == [("baseline", 0), ("baseline", 1)]
    assert (options.max_concurrent, options.retries, plan.runs) == (3, 2, tmp_path)


@pytest.mark.parametrize("what", [None, 5, [5]])
def test_what_holds_no_results(what):
    with pytest.raises(UserError, match="write what run_sweep returned"):
        read_results(what)


def test_files_may_come_from_any_iterable():
    assert len(read_results(iter([RECORDS]))) == len(read_results(str(RECORDS)))
