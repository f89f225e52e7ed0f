"""`--dry-run`: the paper's profiles in numbers, and the measured step."""

from pathlib import Path

import pytest
import torch
import yaml

from mirai_bench.config.load import load_run
from mirai_bench.model.cost import step_flops
from mirai_bench.train import dry_run
from mirai_bench.train.__main__ import command
from mirai_bench.train.dry_run import describe, measured_step
from mirai_bench.train.trainer import resolve_hardware
from mirai_bench.utils.cli import run
from mirai_bench.utils.device import Hardware

CPU = Hardware(torch.device("cpu"))


def facts_of(config, measure=False):
    return list(yaml.safe_load_all(describe(config, resolve_hardware(config), measure)))


def test_the_papers_profile_in_numbers():
    config = load_run(
        Path("imagenet256_b"), ["foresight.level=internal", "foresight.k=3", "machine.device=cpu"]
    )
    resolved, facts = facts_of(config)
    assert resolved["model"]["depth"] == 12 and resolved["train"]["batch_size"] == 256
    assert facts["parameters"].startswith(
        "110,888,448 of the generator, 22,0"
    )  # the official heads: 3 x 7.34M
    assert facts["tokens per step"] == 65_536 and facts["steps"] == 400_320
    assert facts["codes on disk"] == "6.56 GB"
    flops, unit = facts["FLOPs per image and training step"].split()
    assert unit == "GFLOP" and float(flops) == pytest.approx(150 * 1.42, rel=0.06), "by hand: +42 % over 150"


@pytest.mark.parametrize(
    ("size", "parameters"), [("b", 110_888_448), ("l", 342_910_976), ("xl", 774_699_520)]
)
def test_the_papers_sizes(size, parameters):
    """111M, 343M and 775M in LlamaGen's table."""
    resolved, facts = facts_of(load_run(Path(f"imagenet256_{size}"), ["machine.device=cpu"]))
    assert (
        facts["parameters"].startswith(f"{parameters:,} of the generator")
        and resolved["machine"]["workers"] == 8
    )
    assert "6.56 GB of codes" in facts["device memory"]


def test_a_step_is_measured_and_the_command_prints_two_documents(make_config, tmp_path, capsys):
    seconds, images, share = measured_step(make_config(foresight={"level": "internal"}), CPU)
    assert seconds > 0 and images == 8 and share == 1
    path = tmp_path / "config.json"
    path.write_text(make_config().model_dump_json())
    assert run(command, [str(path), "--dry-run", "--measure"]) == 0
    resolved, facts = yaml.safe_load_all(capsys.readouterr().out)
    assert resolved["profile"] == "digits" and "for 8 images on" in facts["measured step"]


def test_what_the_measured_step_leaves_out_is_added_by_its_flops(make_config, monkeypatch):
    """The encoder of Mirai-I is not loaded for it. 1,500 images are 93 steps of 16."""
    config = make_config(foresight={"level": "internal", "source": "encoder"}, train={"epochs": 1000})
    share = step_flops(config) / step_flops(make_config())
    assert measured_step(config, CPU).flops_share == pytest.approx(share) and share > 1
    monkeypatch.setattr(dry_run, "measured_step", lambda config, hardware: dry_run.MeasuredStep(0.5, 8, 2.0))
    _, facts = facts_of(config, True)
    assert "2.00 times the FLOPs" in facts["measured step"]
    assert facts["training time"].startswith(f"about {1000 * 93 * 2 * 0.5 * 2 / 3600:.2f} hours on 1 ")


def test_a_step_is_measured_at_the_size_of_one_process(make_config):
    assert measured_step(make_config(machine={"workers": 2, "micro_batches": 2}), CPU).images == 4  # of 16
