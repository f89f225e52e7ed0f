"""What a run will take, from steps and images that are timed here."""

import pytest

from mirai_bench.config.load import load_run
from mirai_bench.config.sweep_file import Cell
from mirai_bench.model.cost import num_steps, training_flops
from mirai_bench.sweep import __main__ as sweep
from mirai_bench.sweep import pace
from mirai_bench.utils.errors import UserError

SMALL = (
    "model.depth=1",
    "model.width=16",
    "model.heads=1",
    "train.epochs=2",
    "evaluation.at=[1,2]",
    "evaluation.protocol={base: exact, num_samples: 50}",
    "machine.device=cpu",
)


def test_a_run_takes_its_steps_and_its_evaluations(monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    monkeypatch.setattr(pace, "IMAGES", 10)
    clock = iter(range(100))  # one second passes from one look at the clock to the next
    monkeypatch.setattr(pace.time, "perf_counter", lambda: float(next(clock)))
    # The loop looks at the clock from its fifth step on: 5 steps in 2 looks. 10 images in 1.
    assert pace.run_seconds(load_run("digits", SMALL), 100) == pytest.approx(100 * 2 / 5 + 2 * 50 * 1 / 10)


def test_a_teacher_is_left_out_and_counted_by_its_flops(monkeypatch, tmp_path):
    """Trained on random codes it would be kept, and real runs would use it."""
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    monkeypatch.setattr(pace, "IMAGES", 10)
    clock = iter(range(100))
    monkeypatch.setattr(pace.time, "perf_counter", lambda: float(next(clock)))
    teacher = ("foresight={level: internal, source: encoder}", f"machine.runs={tmp_path}")
    config = load_run("digits", (*SMALL, *teacher))
    share = training_flops(config, 100, 100) / training_flops(load_run("digits", SMALL), 100, 100)
    assert pace.run_seconds(config, 100) == pytest.approx(share * 100 * 2 / 5 + 2 * 50 * 1 / 10) and share > 1
    assert not list(tmp_path.rglob("masked_tokens*"))


def test_what_is_not_known_is_named(tmp_path):
    folder = ("data={dataset: folder, name: own, image_size: 8}", f"machine.runs={tmp_path}")
    with pytest.raises(UserError, match="how many steps an epoch of digits has is not known"):
        pace.timed_rate(Cell("baseline", load_run("digits", (*SMALL, *folder))), 1)
    encoder = "foresight={level: internal, source: encoder, encoder: {name: 'timm:vit_tiny_patch16_224'}}"
    with pytest.raises(UserError, match="the FLOPs of mirai-i, the first arm, are not known"):
        pace.timed_rate(Cell("mirai-i", load_run("digits", (*SMALL, encoder))), 1)


def test_the_rate_is_that_of_all_processes_at_once(monkeypatch):
    config = load_run("digits", SMALL)
    steps = num_steps(config)

    class Pool:
        def __init__(self, processes, context):
            self.processes = processes

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, function, configs, numbers):
            assert function is pace.run_seconds and configs == [config] * self.processes
            assert numbers == [steps] * self.processes
            return [10.0, 30.0][: self.processes]

    monkeypatch.setattr(pace, "ProcessPoolExecutor", Pool)
    flops = training_flops(config, steps, steps)
    assert pace.timed_rate(Cell("baseline", config), 2) == pytest.approx(flops / 20)
    on_gpu = Cell("baseline", config.with_machine(gpus=0.5))
    assert on_gpu.config.machine.gpus == 0.5
    monkeypatch.setattr(pace, "run_seconds", None)
    monkeypatch.setattr(Pool, "map", lambda self, *lists: [10.0] * self.processes)
    assert pace.timed_rate(on_gpu, 2) == pytest.approx(flops / 10)


def test_timed_hours_are_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sweep, "timed_rate", lambda cell, processes: 1e12 if processes == 3 else None)
    words = ["--dry-run", "--max-concurrent", "3", "--set", f"machine.runs={tmp_path}"]
    assert sweep.command(["sweeps/injection_level.yaml", *words, "--time"]) == 0
    assert "h of trials" in capsys.readouterr().out
    assert sweep.command(["sweeps/injection_level.yaml", *words]) == 0
    assert "with --time" in capsys.readouterr().out


def test_time_belongs_to_a_dry_run():
    with pytest.raises(UserError, match="--time times what --dry-run shows"):
        sweep.command(["sweeps/injection_level.yaml", "--time"])
