import json
import subprocess
import sys

import pytest
import yaml

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.load import SWEEPS, build_run, load_run, merge, parse_sets, read_profile
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.utils.errors import UserError

AXES = ["injection_level", "foresight_layout", "foresight_source"]


def digits(**sections):
    return build_run(merge(read_profile("digits"), sections), "test")


@pytest.mark.parametrize("axis", AXES)
def test_shipped_sweeps_are_whole(axis):
    sweep = load_sweep(SWEEPS / f"{axis}.yaml")
    assert sweep.axis == axis and sweep.baseline in sweep.arms
    assert len(sweep.arms) >= 5 and len(sweep.cells) == 3 * len(sweep.arms)
    assert len({cell.fingerprint for cell in sweep.cells}) == len(sweep.cells)


def test_every_value_of_every_axis_has_an_arm():
    from mirai_bench.foresight.layout import LAYOUTS
    from mirai_bench.foresight.level import LEVELS
    from mirai_bench.foresight.source import SOURCES

    arms = [cell.config.foresight for axis in AXES for cell in load_sweep(SWEEPS / f"{axis}.yaml").cells]
    assert {arm.level for arm in arms} == set(LEVELS)
    assert {arm.layout for arm in arms if arm.level != "none"} == set(LAYOUTS)
    assert {arm.source for arm in arms if arm.level == "internal"} == set(SOURCES)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"foresight": {"layr": 2}}, "Did you mean 'layer'"),
        ({"trian": {}}, "Did you mean 'train'"),
        ({"train": {"lr": "fast"}}, "train.lr is 'fast'"),
        ({"train": {"epochs": 0}}, "train.epochs is 0"),
        ({"train": {"lr": float("nan")}}, "train.lr is nan"),
        ({"model": {"size": "M"}}, "model.size is 'M', which is not one of nano"),
        ({"model": {"width": 66}}, "66 with 4 heads"),
        ({"model": {"kv_heads": 3}}, "kv_heads is 3, which does not divide model.heads = 4"),
        (
            {"foresight": {"level": "internal", "layer": 4}},
            "layer 4 is outside the model, which has 3 blocks: write 1 to 3",
        ),
        ({"foresight": {"level": "internal", "layer": "13/12"}}, "layer '13/12' is outside the model"),
        ({"foresight": {"level": "internal", "layer": "x"}}, "foresight.layer"),
        (
            {"foresight": {"level": "internal", "k": 65}},
            "k is 65, but the token grid has 8x8 = 64 cells: write k: 64 or less",
        ),
        ({"foresight": {"level": "output", "k": 1}}, "write k: 2 or more"),
        (
            {"foresight": {"level": "internal", "class_token": True, "pairing": "predicting"}},
            "write pairing: consumed",
        ),
        (
            {"foresight": {"level": "internal", "class_token": True, "source": "encoder"}},
            "source: encoder has no class-token state",
        ),
        (
            {"foresight": {"level": "internal", "source": "frozen", "teacher": "no/such"}},
            "teacher is 'no/such', which does not exist",
        ),
        ({"foresight": {"encoder": {"context": {"block_causal": 0}}}}, "block_causal"),
        ({"data": {"image_size": 9}, "tokenizer": {"downsample": 2}}, "image_size is 9, not a multiple"),
        ({"evaluation": {"at": [4, 2]}}, "write increasing epochs"),
        ({"evaluation": {"at": [2, 99]}}, "ends at epoch 99, after train.epochs"),
        ({"evaluation": {"protocol": "digts"}}, "Did you mean 'digits'"),
        ({"train": {"batch_size": 7}, "machine": {"micro_batches": 2}}, "batch_size is 7"),
        ({"machine": {"workers": 4, "gpus": 2}}, "write gpus: 4, or 0 on CPUs"),
    ],
)
def test_a_wrong_config_says_what_to_write(sections, message):
    with pytest.raises(UserError) as error:
        digits(**sections)
    assert message in str(error.value)


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


def test_unreadable_files_are_user_errors(tmp_path):
    for content in (
        b"\xff\xfe\x00",
        b"a: [1",
        b"- 1",
        b"",
        b"a: &x [*x]",
        b"? [1, 2]\n: 3",
        b"!!python/object:os.system {}",
    ):
        path = tmp_path / "bad.yaml"
        path.write_bytes(content)
        with pytest.raises(UserError):
            load_sweep(path)


def test_fingerprint_covers_what_changes_a_number_and_nothing_else(tmp_path):
    base = digits(foresight={"level": "internal"})
    same = [{"machine": {"runs": "elsewhere", "threads": 2, "device": "cpu", "log_every": 1}}, {"foresight": {"final_weight": 0.3}},
            {"foresight": {"teacher_seed": 5}}, {"data": {"crop_ranges": [1.05]}}, {"profile": "other"}]  # fmt: skip
    other = [{"seed": 1}, {"train": {"lr": 1e-4}}, {"foresight": {"k": 2}}, {"foresight": {"pairing": "predicting"}},
             {"evaluation": {"protocol": {"base": "digits", "num_samples": 50}}}, {"foresight": {"source": "random"}}]  # fmt: skip
    fingerprints = {
        digits(**merge({"foresight": {"level": "internal"}}, change)).fingerprint() for change in other
    }
    assert len(fingerprints | {base.fingerprint()}) == len(other) + 1
    for change in same:
        assert (
            digits(**merge({"foresight": {"level": "internal"}}, change)).fingerprint() == base.fingerprint()
        )


def test_fingerprint_of_a_file_is_its_content(tmp_path):
    prints = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        prints.append(
            digits(
                foresight={"level": "internal", "source": "frozen", "teacher": str(tmp_path / name)}
            ).fingerprint()
        )
    assert prints[0] == prints[1] != prints[2]


def test_none_is_one_experiment_whatever_its_other_fields():
    assert (
        digits(foresight={"level": "none", "k": 9, "source": "encoder"}).fingerprint()
        == digits().fingerprint()
    )


def test_resolved_config_reads_back(tmp_path):
    config = digits(foresight={"level": "internal", "encoder": {"context": {"block_causal": 8}}})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_run(tmp_path / "config.json") == config


def test_set_reads_yaml_and_names_its_form():
    assert parse_sets(["train.lr=1e-3", "data.views=flip", "train.betas=[0.9, 0.99]"]) == {
        "train": {"lr": "1e-3", "betas": [0.9, 0.99]},
        "data": {"views": "flip"},
    }
    with pytest.raises(UserError, match=r"write section\.field=value"):
        parse_sets(["train.lr"])


@pytest.mark.parametrize(
    ("layer", "depth", "index"),
    [("8/12", 12, 8), ("8/12", 24, 16), ("8/12", 36, 24), ("8/12", 3, 2), (3, 3, 3), ("1/12", 3, 1)],
)
def test_layers_are_one_based_and_fractions_scale(layer, depth, index):
    assert resolve_layer(layer, depth) == index


def test_a_wrong_config_exits_with_2_and_no_traceback(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"profile": "digits", "train": {"epoch": 3}}))
    done = subprocess.run(
        [sys.executable, "-m", "mirai_bench.train", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "Did you mean 'epochs'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("room", "absent"),
    [
        ("config", ["torch", "ray", "mlflow"]), ("compose", ["torch", "ray", "mlflow"]), ("results", ["torch", "ray"]),
        ("model", ["mirai_bench.foresight"]), ("sample", ["mirai_bench.foresight", "ray", "mlflow"]),
        ("train", ["ray", "mlflow", "torch_fidelity", "torchvision"]), ("evaluate", ["torch_fidelity", "ray", "mlflow"]),
    ],
)  # fmt: skip
def test_a_room_imports_nothing_that_it_does_not_need(room, absent):
    code = (
        f"import sys, json, mirai_bench.{room}; print(json.dumps([m for m in {absent} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
