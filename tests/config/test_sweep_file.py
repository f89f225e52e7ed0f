"""Sweep files: the shipped ones are complete, and wrong ones say what to write."""

from typing import get_args

import pytest
import yaml

from mirai_bench.config.load import SWEEPS, load_run
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.utils.errors import UserError

AXES = [
    "injection_level",
    "foresight_layout",
    "foresight_source",
    "foresight_warmup",
    "foresight_weight",
    "alignment_layer",
    "own_cell",
    "projection_head",
    "teacher_horizon",
    "teacher_seed",
    "encoder",
    "regularizer",
]


@pytest.mark.parametrize("axis", AXES)
def test_shipped_sweeps_are_whole(axis):
    sweep = load_sweep(SWEEPS / f"{axis}.yaml")
    assert sweep.axis == axis and sweep.baseline in sweep.arms
    assert len(sweep.arms) >= 4 and len(sweep.cells) == 3 * len(sweep.arms)
    assert len({cell.fingerprint for cell in sweep.cells}) == len(sweep.cells)


def test_every_value_of_every_axis_has_an_arm():
    from mirai_bench.config.foresight import ForesightConfig
    from mirai_bench.foresight.layout import LAYOUTS
    from mirai_bench.foresight.level import LEVELS
    from mirai_bench.foresight.projector import PROJECTORS
    from mirai_bench.foresight.source import SOURCES
    from mirai_bench.regularizer.registry import REGULARIZERS

    cells = [cell for axis in AXES for cell in load_sweep(SWEEPS / f"{axis}.yaml").cells]
    assert {cell.config.regularizer.name for cell in cells} == set(REGULARIZERS)
    arms = [cell.config.foresight for cell in cells]
    assert {arm.level for arm in arms} == set(LEVELS)
    assert {arm.layout for arm in arms if arm.level != "none"} == set(LAYOUTS)
    internal = [arm for arm in arms if arm.level == "internal"]
    assert {arm.source for arm in internal} == set(SOURCES)
    assert {arm.projector.kind for arm in internal} == set(PROJECTORS)
    assert {arm.own_cell for arm in internal} == {True, False}
    schedules = get_args(ForesightConfig.model_fields["schedule"].annotation)
    assert {arm.schedule for arm in internal} == set(schedules)


@pytest.mark.parametrize("profile", ["digits", "imagenet256_b", "imagenet384_b"])
@pytest.mark.parametrize("axis", AXES)
def test_sweeps_are_planned_at_every_scale(axis, profile):
    assert load_sweep(SWEEPS / f"{axis}.yaml", profile=profile, seeds=[0]).cells


def test_profiles_of_the_paper_say_what_its_text_says():
    runs = [load_run(f"imagenet{name}") for name in ("256_b", "256_l", "256_xl", "384_b")]
    assert [run.evaluation.protocol.cfg_scale for run in runs] == [2.0, 1.75, 1.75, 2.0]
    encoders = [run.foresight.encoder.name for run in runs]
    assert encoders == ["dinov2_b", "dinov2_l", "dinov2_l", "dinov2_b"]
    assert [run.train.lr_schedule for run in runs] == ["constant", "constant", "cosine", "constant"]
    small, *_, large = runs
    assert (large.grid, large.evaluation.protocol.resize) == ((24, 24), 256)
    assert (large.train, large.model) == (small.train, small.model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {level: none}\n  a: {level: output}", "'a' is written twice"),
        (
            "baseline: {level: none}\n  twin: {level: none, k: 7}",
            "'baseline' and 'twin' (seed 0) are the same experiment",
        ),
        ("other: {level: none}", "baseline is 'baseline', which is not an arm"),
        ("../up: {level: none}", "arms"),
        ("baseline: {levle: none}", "Did you mean 'level'"),
    ],
)
def test_a_wrong_sweep_says_what_to_write(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"axis: test\nquestion: what\nseeds: [0]\narms:\n  {text}\n")
    with pytest.raises(UserError) as error:
        load_sweep(path)
    assert message in str(error.value)


# ---- regularizers


def test_no_arm_has_foresight_beside_a_regularizer():
    for cell in load_sweep(SWEEPS / "regularizer.yaml", profile="imagenet256_b", seeds=[0]).cells:
        assert cell.config.regularizer.name == "none" or cell.config.foresight.level == "none"


def test_the_rivals_stand_beside_the_arms_of_the_other_sweeps():
    """So that these are trained once. Mirai-E differs in λ, which was searched for as long as theirs."""
    others = arms_of("foresight_source")
    rivals = arms_of("regularizer")
    for arm in ("baseline", "mirai-i-k1"):
        assert rivals[arm] == others[arm]
    assert rivals["mirai-e-k3"] == others["mirai-e-k3"] | {"weight": 0.5}


@pytest.mark.parametrize("profile", ["cifar10_cpu", "imagenet256_b", "imagenet256_l", "imagenet256_xl"])
def test_real_images_carry_every_rival(profile):
    sweep = load_sweep(SWEEPS / "regularizer.yaml", profile=profile, seeds=[0])
    assert sweep.left_out == {} and {"st-ar", "npp"} <= set(sweep.arms)


def test_an_arm_has_one_regularizer_not_two_mixed(tmp_path):
    """That of the profile is replaced, and not merged with that of the arm."""
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((SWEEPS / "profiles/digits.yaml").read_text()) | {"regularizer": REAR})
    )
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"axis: test\nquestion: what\nseeds: [0]\nprofile: {tmp_path / 'own.yaml'}\narms:\n"
        "  baseline: {level: none}\n  other: {level: none, regularizer: {name: iar}}\n"
    )
    baseline, other = (cell.config.regularizer for cell in load_sweep(path).cells)
    assert (baseline.name, baseline.noise_until) == ("rear", 0.5) and other.name == "iar"
    tuned = load_sweep(path, only=["other"], settings=["regularizer.weight=0.3"]).cells[0].config
    assert tuned.regularizer.weight == 0.3


REAR = {"name": "rear", "noise_until": 0.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("{name: raer}", "Unknown regularizer 'raer'. Did you mean 'rear'?"),
        ("{weight: 1.0}", "regularizer.name is missing: write which regularizer is meant"),
        ("{name: iar, wieght: 1.0}", "Unknown field 'wieght'. Did you mean 'weight'?"),
        ("{name: rear, weight: -1}", "regularizer.weight is -1"),
        ("{name: rear, deep: 4}", "layer 4 is outside the model, which has 3 blocks"),
        ("3", "regularizer is 3"),
    ],
)
def test_a_wrong_regularizer_says_what_to_write(tmp_path, fields, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "axis: test\nquestion: what\nseeds: [0]\nprofile: digits\narms:\n"
        f"  baseline: {{level: none}}\n  rival: {{level: none, regularizer: {fields}}}\n"
    )
    with pytest.raises(UserError) as error:
        load_sweep(path)
    assert message in str(error.value) and "arm rival" in str(error.value)


# ---- the controls


def arms_of(name):
    return yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())["arms"]


def test_an_arm_of_the_controls_is_what_it_is_in_the_other_sweeps():
    controls = arms_of("controls")
    others = arms_of("injection_level") | arms_of("foresight_source")
    shared = controls.keys() & others.keys()
    assert {"output-1d", "internal-2d", "mirai-e-k1", "mirai-e-frozen-k1", "shuffled-e"} <= shared
    assert {arm: controls[arm] for arm in shared} == {arm: others[arm] for arm in shared}


def test_profiles_of_the_planted_task_differ_in_what_they_say():
    first = load_run("staircase")
    changes = {
        "staircase_lr4e-3": ["train.lr=4e-3"],
        "staircase4": ["data.staircase.parities=4"],
        "staircase5": ["data.staircase.parities=5", "train.lr=4e-3"],
    }
    for profile, settings in changes.items():
        assert load_run(profile).fingerprint() == load_run("staircase", settings).fingerprint(), profile
    null = load_run("staircase_cut")
    assert null.data.staircase.cut and null.evaluation.primary == first.evaluation.primary == "rule"
    assert null.evaluation.protocol == first.evaluation.protocol


def test_all_profiles_of_the_planted_task_take_all_arms_of_the_controls():
    for profile in ("staircase", "staircase_lr4e-3", "staircase5", "staircase_cut"):
        assert len(load_sweep(SWEEPS / "controls.yaml", profile=profile, seeds=[0]).cells) == 12
    assert load_sweep(SWEEPS / "controls_reach.yaml").cells[0].config.data.staircase.parities == 4
