"""The preset `official: true` and its sweep."""

import pytest

from mirai_bench.config.load import SWEEPS, build_run, load_run, read_profile
from mirai_bench.config.official import OFFICIAL, expand_official
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.utils.errors import UserError


def test_it_is_laid_over_the_profile_and_under_the_fields_beside_it():
    e = build_run(read_profile("imagenet256_b"), "test", {"foresight": {"official": True, "k": 9}}).foresight
    assert (e.level, e.source, e.layout, e.reduce, e.class_token, e.share_label_drop) == (
        "internal",
        "ema",
        "grid_2d_flat",
        "sum",
        True,
        False,
    )
    assert e.k == 9 and e.schedule == "step" and e.projector.hidden == 2048
    i = build_run(
        read_profile("digits"),
        "test",
        {"foresight": {"official": True, "source": "encoder", "projector": {"layers": 2}}},
    ).foresight
    assert (i.source, i.k, i.pairing, i.class_token, i.projector.layers, i.projector.hidden) == (
        "encoder",
        1,
        "consumed",
        False,
        2,
        64,
    )


def test_a_run_file_may_hold_it_and_the_run_holds_only_its_fields(tmp_path):
    (tmp_path / "run.yaml").write_text("profile: imagenet256_b\nforesight: {official: true, k: 1}\n")
    config = load_run(tmp_path / "run.yaml")
    assert (
        config.foresight.layout == "grid_2d_flat"
        and config.foresight.k == 1
        and config.foresight.schedule == "step"
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_run(tmp_path / "config.json").fingerprint() == config.fingerprint()


@pytest.mark.parametrize("fields", [{"official": "yes"}, {"official": True, "source": "random"}])
def test_another_value_or_source_is_refused(fields):
    with pytest.raises(UserError, match=r"foresight\.official is"):
        expand_official(fields)


def test_false_is_nothing():
    assert expand_official({"official": False, "k": 2}) == {"k": 2} and set(OFFICIAL) == {"ema", "encoder"}


def test_each_arm_of_the_sweep_differs_from_the_preset_in_what_it_names():
    arms = {cell.arm: cell.config.foresight for cell in load_sweep(SWEEPS / "official.yaml").cells}
    whole = arms["official-e"].model_dump()
    for arm, field in {
        "2d": "layout",
        "mean": "reduce",
        "patches": "class_token",
        "drop": "share_label_drop",
    }.items():
        other = arms[f"official-e-{arm}"].model_dump()
        assert {key for key in whole if whole[key] != other[key]} == {field}
        assert other[field] == arms["paper-e"].model_dump()[field]
