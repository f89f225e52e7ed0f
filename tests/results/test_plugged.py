"""A table says which of its arms are computed with code of somebody else."""

from mirai_bench.results.plugged import plugins_note


def test_arms_with_a_plug_in_are_named(frozen):
    assert plugins_note(frozen) is None
    record = next(record for record in frozen.records if record["arm"] == frozen.arms[1])
    config = record["run"]["config"] | {"plugins": {"my_layouts": "0123456789ab"}}
    record["run"] = record["run"] | {"config": config}
    assert plugins_note(frozen) == (
        "Plug-ins, which are not part of this project: my_layouts (0123456789ab) in " + frozen.arms[1] + "."
    )
