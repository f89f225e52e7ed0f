from pathlib import Path

import pytest
import torch
import yaml

from mirai_bench.benchmark.workload import Shape, run_config
from mirai_bench.config.load import load_run
from mirai_bench.data.synthetic import random_codes
from mirai_bench.model.cost import device_bytes, logit_bytes, num_parameters, step_flops
from mirai_bench.train import dry_run
from mirai_bench.train import run as train
from mirai_bench.train.dry_run import describe, measured_step
from mirai_bench.train.trainer import Trainer


def facts_of(config, measure=False):
    return list(yaml.safe_load_all(describe(config, measure)))


def test_the_papers_profile_in_numbers():
    config = load_run(
        Path("imagenet256_b"), ["foresight.level=internal", "foresight.k=3", "machine.device=cpu"]
    )
    resolved, facts = facts_of(config)
    assert resolved["model"]["depth"] == 12 and resolved["train"]["batch_size"] == 256
    assert facts["parameters"].startswith(
        "110,888,448 of the generator, 22,0"
    )  # the official heads: 3 x 7.34M
    assert facts["tokens per step"] == "65,536" and facts["steps"] == "400,320"
    assert facts["codes on disk"] == "6.56 GB"
    assert float(facts["FLOPs per image and training step"]) == pytest.approx(
        150e9 * 1.42, rel=0.06
    )  # counted by hand: +42 % over 150 GFLOP


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


def test_memory_counts_five_floats_a_parameter_and_shrinks_with_micro_batches(make_config):
    one, four = (make_config(machine={"micro_batches": n}) for n in (1, 4))
    generator, heads = num_parameters(one)
    assert device_bytes(one, False).fixed == 20 * generator + 16 * heads
    assert device_bytes(one, True).fixed == 22 * generator + 18 * heads
    # but for the head's gradient and one part of its logits
    assert device_bytes(one, False).activations == pytest.approx(
        4 * device_bytes(four, False).activations, rel=1e-2
    )


def kept_for_backward(config):
    """Bytes of the tensors that autograd keeps of a forward pass, weights apart."""
    trainer = Trainer(config, codes=random_codes(config, torch.device("cpu")))
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.objective.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor  # held, so that no other takes its address
        return tensor

    batch = trainer.codes.batch(seed=0, step=0, rank=0, world=1, batch_size=config.train.batch_size)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"),
    ):
        trainer.objective(batch, batch.labels, torch.tensor(1.0))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", ["ntp", "mtp", "mirai-e-k1", "mirai-e-k9"])
def test_activations_are_what_a_forward_pass_keeps(arm, precision):
    config = run_config(Shape(2, 256, 8, 1024, 4), arm, precision, torch.device("cpu"), threads=1)
    half = precision == "bf16"
    copies = 2 * sum(num_parameters(config)) if half else 0
    passing = logit_bytes(config, 4 * 64, 2 if half else 4)[1]
    counted = device_bytes(config, half).activations + copies - passing
    assert counted == pytest.approx(kept_for_backward(config), rel=0.2)


def test_a_step_is_measured_and_the_command_prints_two_documents(make_config, tmp_path, capsys):
    seconds, images, share = measured_step(make_config(foresight={"level": "internal"}))
    assert seconds > 0 and images == 8 and share == 1
    path = tmp_path / "config.json"
    path.write_text(make_config().model_dump_json())
    assert train.run(train.command, [str(path), "--dry-run", "--measure"]) == 0
    resolved, facts = yaml.safe_load_all(capsys.readouterr().out)
    assert resolved["profile"] == "digits" and "for 8 images on" in facts["measured step"]


def test_what_the_measured_step_leaves_out_is_added_by_its_flops(make_config, monkeypatch):
    """Mirai-I's encoder is not loaded for it. 1,500 images: 93 steps of 16."""
    config = make_config(foresight={"level": "internal", "source": "encoder"}, train={"epochs": 1000})
    share = step_flops(config) / step_flops(make_config())
    assert measured_step(config).flops_share == pytest.approx(share) and share > 1
    monkeypatch.setattr(dry_run, "measured_step", lambda config: dry_run.MeasuredStep(0.5, 8, 2.0))
    _, facts = facts_of(config, True)
    assert "2.00 times the FLOPs" in facts["measured step"]
    assert facts["training time"].startswith(f"about {1000 * 93 * 2 * 0.5 * 2 / 3600:.2f} hours on 1 ")


def test_a_step_is_measured_at_the_size_of_one_process(make_config):
    assert measured_step(make_config(machine={"workers": 2, "micro_batches": 2})).images == 4  # of 16
