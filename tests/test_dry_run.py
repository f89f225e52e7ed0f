from pathlib import Path

import pytest
import yaml

from mirai_bench import train
from mirai_bench.compose import load_run
from mirai_bench.dry_run import describe, device_bytes, measured_step
from mirai_bench.sweep.estimate import num_parameters


def facts_of(config, measure=False):
    return list(yaml.safe_load_all(describe(config, measure)))


def test_the_papers_profile_in_numbers():
    config = load_run(Path("imagenet256_b"), ["foresight.level=internal", "foresight.k=3", "machine.device=cpu"])
    resolved, facts = facts_of(config)
    assert resolved["model"]["depth"] == 12 and resolved["train"]["batch_size"] == 256
    assert facts["parameters"].startswith("110,888,448 of the generator, 22,0")  # the official heads: 3 x 7.34M
    assert facts["tokens per step"] == "65,536" and facts["steps"] == "400,320"
    assert facts["codes on disk"] == "6.56 GB"
    assert float(facts["FLOPs per image and training step"]) == pytest.approx(
        150e9 * 1.42, rel=0.06
    )  # counted by hand: +42 % over 150 GFLOP


def test_memory_counts_five_floats_a_parameter_and_shrinks_with_micro_batches(make_config):
    one, four = (make_config(machine={"micro_batches": n}) for n in (1, 4))
    generator, heads = num_parameters(one)
    assert device_bytes(one, False)[0] == 20 * generator + 16 * heads
    assert device_bytes(one, False)[1] == pytest.approx(
        4 * device_bytes(four, False)[1], rel=1e-2
    )  # but for the head's gradient and one part of its logits


def test_a_step_is_measured_and_the_command_prints_two_documents(make_config, tmp_path, capsys):
    seconds, images = measured_step(make_config(foresight={"level": "internal"}))
    assert seconds > 0 and images == 8
    path = tmp_path / "config.json"
    path.write_text(make_config().model_dump_json())
    assert train.run(train.command, [str(path), "--dry-run", "--measure"]) == 0
    resolved, facts = yaml.safe_load_all(capsys.readouterr().out)
    assert resolved["profile"] == "digits" and "for 8 images on" in facts["measured step"]
