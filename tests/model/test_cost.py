"""Parameters, FLOPs and bytes are counted without building anything, and agree with what is built."""

import pytest
import torch

from mirai_bench.benchmark.workload import Shape, run_config
from mirai_bench.config.load import SWEEPS
from mirai_bench.data.images import vgg16
from mirai_bench.data.synthetic import random_codes
from mirai_bench.foresight.encoders.zoo import entry_of
from mirai_bench.model import cost
from mirai_bench.model.cost import num_parameters, teacher_flops
from mirai_bench.model.encoder_cost import VITS, encoder_flops, encoder_parameters
from mirai_bench.model.one_off import one_off_flops
from mirai_bench.regularizer.regularizer import Moment
from mirai_bench.sweep.estimate import cell_flops
from mirai_bench.sweep.plan import make_plan
from mirai_bench.train.memory import device_bytes, logit_bytes
from mirai_bench.train.optim import foresight_weight
from mirai_bench.utils.device import Hardware
from tests.support.small_run import new_trainer, saved

CPU = Hardware(torch.device("cpu"))
HALF = Hardware(torch.device("cpu"), "bf16")
AXES = [
    "injection_level",
    "foresight_layout",
    "foresight_source",
    "regularizer",
    "own_cell",
    "projection_head",
]
# The length of training that the known costs belong to.
RECIPE = ["train.epochs=10", "train.batch_size=8", "evaluation.at=[10]"]


def test_memory_counts_five_floats_a_parameter_and_shrinks_with_micro_batches(make_config):
    one, four = (make_config(machine={"micro_batches": n}) for n in (1, 4))
    generator, heads = num_parameters(one)
    assert device_bytes(one, CPU).fixed == 20 * generator + 16 * heads
    assert device_bytes(one, HALF).fixed == 22 * generator + 18 * heads
    # Except for the gradient of the output head and one chunk of its logits.
    assert device_bytes(one, CPU).activations == pytest.approx(
        4 * device_bytes(four, CPU).activations, rel=1e-2
    )


def kept_for_backward(config, trainer):
    """Returns the bytes of the tensors that autograd keeps of a forward pass, without weights."""
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
        batch, extra = trainer.regularizer.prepare(batch, Moment(0, 0, 0.0, 0, 1))
        penalty = torch.tensor(1.0) if trainer.regularizer.weight else None
        trainer.objective(batch, batch.labels, torch.tensor(1.0), extra, penalty)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    "regularizer",
    [
        {"name": "dispersive", "group": 4},
        {"name": "iar"},
        {"name": "rear", "hidden": 512},
        {"name": "mtar"},
        {"name": "mtar", "blocks": 0},
        {"name": "st-ar", "view": 0, "group": 4},
    ],
    ids=lambda variant: "-".join(map(str, variant.values())),
)
def test_activations_with_a_regularizer(make_config, regularizer):
    """In the forward pass, whose teacher keeps nothing."""
    config = make_config(
        regularizer=regularizer,
        data={"image_size": 16},
        model={"depth": 2, "width": 128, "heads": 4},
        train={"batch_size": 4},
    )
    passing = logit_bytes(config, 4 * 256, 4, "cpu")[1]
    counted = device_bytes(config, CPU).activations - passing
    trainer = new_trainer(config, codes=random_codes(config, torch.device("cpu")))
    assert counted == pytest.approx(kept_for_backward(config, trainer), rel=0.25)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["mlp", "transformer", "conv"])
def test_activations_of_projection_heads(make_config, kind, precision):
    config = make_config(
        foresight={"level": "internal", "k": 5, "projector": {"kind": kind, "hidden": 512}},
        data={"image_size": 8},
        model={"depth": 1, "width": 128, "heads": 4},
        train={"batch_size": 4, "precision": precision},
    )
    half = precision == "bf16"
    copies = 2 * sum(num_parameters(config)) if half else 0
    passing = logit_bytes(config, 4 * 64, 2 if half else 4, "cpu")[1]
    counted = device_bytes(config, HALF if half else CPU).activations + copies - passing
    trainer = new_trainer(config, codes=random_codes(config, torch.device("cpu")))
    assert counted == pytest.approx(kept_for_backward(config, trainer), rel=0.25)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", ["ntp", "mtp", "mirai-e-k1", "mirai-e-k9"])
def test_activations_are_what_a_forward_pass_keeps(arm, precision):
    config = run_config(Shape(2, 256, 8, 1024, 4), arm, precision).with_machine(device="cpu")
    half = precision == "bf16"
    copies = 2 * sum(num_parameters(config)) if half else 0
    passing = logit_bytes(config, 4 * 64, 2 if half else 4, "cpu")[1]
    counted = device_bytes(config, HALF if half else CPU).activations + copies - passing
    trainer = new_trainer(config, codes=random_codes(config, torch.device("cpu")))
    assert counted == pytest.approx(kept_for_backward(config, trainer), rel=0.2)


def test_the_known_cost_of_a_teacher(here):
    """A step of mirai-i-k1 costs 1.40 of the baseline's, and 4.35 with its teacher."""
    plan = make_plan(SWEEPS / "foresight_source.yaml", profile="digits", seeds=[0], settings=RECIPE)
    configs = {cell.arm: cell.config for cell in plan.sweep.cells}
    images = cost.num_images(configs["baseline"])
    baseline = cell_flops(configs["baseline"])

    def with_and_without(arm):
        own = cell_flops(configs[arm])
        return own / baseline, (own + one_off_flops(configs[arm], images)) / baseline

    assert with_and_without("mirai-i-k1") == pytest.approx((1.40, 4.35), abs=0.01)
    # Of a frozen baseline the whole training counts.
    without, with_teacher = with_and_without("mirai-e-frozen-k1")
    assert with_teacher == pytest.approx(without + 1)
    # The controls have the teachers of what they control; Mirai-E and random weights have none.
    of = {arm: one_off_flops(config, images) for arm, config in configs.items()}
    assert of["block-causal-1"] == of["shuffled"] == of["mirai-i-k3"] == of["mirai-i-k1"]
    assert of["baseline"] == of["mirai-e-k3"] == of["random"] == of["shuffled-e"] == 0


def test_the_counted_training_of_the_teacher_equals_torchs_counter(make_config):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from mirai_bench.foresight.encoders.masked_tokens import train_masked_tokens

    config = make_config(foresight={"level": "internal", "source": "encoder", "encoder": {"epochs": 1}})
    codes = random_codes(config, torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        train_masked_tokens(config, codes, torch.device("cpu"), 0)
    counted = one_off_flops(config, codes.num_images)
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)


def test_stored_features_cost_a_forward_pass_of_every_view(make_config, tmp_path):
    def cost_of(views=1, **encoder):
        foresight = {"level": "internal", "source": "encoder", "encoder": encoder}
        data = {"views": "ten_crop", "crop_ranges": [1.1] * (views // 10)} if views > 1 else {}
        return one_off_flops(make_config(foresight=foresight, data=data), 100)

    forward = encoder_flops("dinov2_b", 8)
    assert cost_of(name="dinov2_b", cache=True) == 100 * forward
    assert cost_of(name="dinov2_b", cache=True, views=20) == 100 * 20 * forward
    assert cost_of(name="dinov2_b") == 0, "its training is not known here"
    assert cost_of(name="timm:test_vit", cache=True) is None
    weights = tmp_path / "file.safetensors"
    weights.write_bytes(b"")
    assert cost_of(weights=str(weights)) == 0
    foresight = {"level": "internal", "source": "encoder", "encoder": {"name": "dinov2_b", "cache": True}}
    assert one_off_flops(make_config(foresight=foresight), None) is None


@pytest.mark.parametrize("axis", AXES)
def test_parameters_are_those_built(axis, here, monkeypatch):
    from mirai_bench.foresight.context import SourceContext
    from mirai_bench.foresight.level import LEVELS
    from mirai_bench.foresight.source import SOURCES
    from mirai_bench.model.transformer import build_model
    from mirai_bench.regularizer.registry import build_regularizer

    for cell in make_plan(SWEEPS / f"{axis}.yaml", seeds=[0]).sweep.cells:
        config = cell.config
        generator, heads = cost.num_parameters(config)
        assert generator == sum(p.numel() for p in build_model(config).parameters())
        level = LEVELS[config.foresight.level]
        context = SourceContext(config, None, None, None, CPU.device)
        built = list(build_regularizer(context).parameters())
        if level is not None:
            source = type("Source", (), {"width": config.model.width, "one_off_seconds": 0.0})
            monkeypatch.setitem(SOURCES, config.foresight.source, lambda context, source=source: source)
            built += level(context).parameters()
        assert heads == sum(p.numel() for p in built)


def test_foresight_that_stops_costs_nothing_afterwards(make_config):
    fields = {"level": "internal", "warmup": 0.1, "schedule": "step", "step_at": 0.625}
    whole = make_config(foresight=fields)
    stopped = make_config(foresight=fields | {"final_weight": 0})
    plain = make_config()

    def flops(config, steps):
        return cost.training_flops(config, steps, 1000)

    assert flops(stopped, 50) == flops(plain, 50)
    assert flops(stopped, 625) == flops(whole, 625) > flops(plain, 625)
    assert flops(stopped, 1000) - flops(stopped, 625) == pytest.approx(flops(plain, 375))


@pytest.mark.parametrize(
    "schedule",
    [
        {"weight": 0},
        {"weight": 0, "schedule": "step", "step_at": 0.25},
        {"schedule": "two_steps", "middle_weight": 0, "step_at": 0.25, "second_step_at": 0.5},
        {"schedule": "two_steps", "warmup": 0.3, "step_at": 0.25, "second_step_at": 0.5, "final_weight": 0},
        {"schedule": "cosine", "final_weight": 0, "warmup": 0.1},
    ],
)
def test_foresight_costs_something_where_its_weight_is_not_0(make_config, schedule):
    config = make_config(foresight={"level": "internal"} | schedule)
    active = sum(foresight_weight(config.foresight, step / 1000) != 0 for step in range(1000))
    per_step = config.train.batch_size * (cost.step_flops(config) - cost.step_flops(make_config()))
    plain = cost.training_flops(make_config(), 1000, 1000)
    assert cost.training_flops(config, 1000, 1000) == pytest.approx(plain + active * per_step)


def test_training_on_patches_costs_less(make_config):
    """A quarter of the tokens: less than a quarter of each block, whose attention grows with their square."""
    plain = make_config()
    patches = make_config(regularizer={"name": "npp", "share": 0.5})
    half = cost.training_flops(plain, 500, 1000)
    early = cost.training_flops(patches, 500, 1000)
    assert 0.2 * half < early < 0.25 * half
    assert cost.training_flops(patches, 1000, 1000) == pytest.approx(early + half)


def test_disk_and_flops_of_a_real_run(trained_run, make_config, monkeypatch):
    from mirai_bench.data.images.datasets import open_dataset
    from mirai_bench.tracking.journal import read_journal

    config = make_config()
    size = sum(path.stat().st_size for path in saved(trained_run)[-1].iterdir())
    assert cost.checkpoint_bytes(config) == pytest.approx(size, rel=0.05)
    assert cost.num_images(config) == len(open_dataset(config, "train"))
    (record,) = [line for line in read_journal(trained_run / "journal.jsonl") if line["kind"] == "evaluation"]
    assert cell_flops(config) == pytest.approx(record["train_flops"])


@pytest.mark.parametrize("name", [*VITS, "efficientnet_lite0"])
def test_image_encoders_are_counted_as_timm_builds_them(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(entry_of(name).timm, pretrained=False, num_classes=0)
    there = sum(p.numel() for p in model.parameters())
    assert encoder_parameters(name) == pytest.approx(there, rel=0.05)


def test_the_first_layers_of_vgg16_are_counted():
    layers = vgg16.build_layers()
    assert encoder_parameters("vgg16_relu3_3") == sum(p.numel() for p in layers.parameters())


def test_a_cached_teacher_costs_nothing_and_a_live_one_is_counted(make_config):
    fields = {"level": "internal", "source": "encoder", "encoder": {"name": "efficientnet_lite0"}}
    live, cached = (
        make_config(foresight=fields),
        make_config(foresight=fields | {"encoder": {"name": "efficientnet_lite0", "cache": True}}),
    )
    assert teacher_flops(live) == pytest.approx(950_431_744, rel=1e-4) and teacher_flops(cached) == 0
