"""A cell that fails: its folder says why, and only what may go better is tried again."""

import pytest

from mirai_bench.sweep.cell import lasting_errors_stay_here, train_cell
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train.trainer import Trainer


@pytest.fixture
def config(make_config, tmp_path):
    return make_config(machine={"runs": str(tmp_path)})


@pytest.mark.parametrize(
    ("error", "final"), [(IndexError("a slip"), True), (OSError("storage is away"), False)]
)
def test_a_failure_is_in_the_folder_with_its_traceback_and_its_last_frame(
    config, tmp_path, monkeypatch, error, final
):
    def step(self, number):
        raise error

    monkeypatch.setattr(Trainer, "step", step)
    folder = RunFolder(config.run_path)
    with pytest.raises(type(error)):  # the ranks of a group must all end
        train_cell(config, tmp_path / "stop")
    failure = folder.failure()
    assert failure.final is final
    assert failure.reason.startswith(f"{type(error).__name__}: {error} (test_cell.py, line ")
    assert "Traceback (most recent call last)" in folder.log_file.read_text()
    assert "raise error" in folder.log_file.read_text()


def test_only_what_may_go_better_leaves_a_trial(config, tmp_path, monkeypatch):
    folder = RunFolder(config.run_path)
    for error, stays in ((IndexError("a slip"), True), (OSError("storage is away"), False)):
        monkeypatch.setattr(Trainer, "step", lambda self, number, error=error: (_ for _ in ()).throw(error))
        left = None
        try:
            with lasting_errors_stay_here(folder):
                train_cell(config, tmp_path / "stop")
        except OSError as found:
            left = found
        assert (left is None) is stays
