"""Evaluation lines are packed into records and unpacked again."""

from mirai_bench.tracking.records import pack, unpack


def test_later_evaluation_of_a_step_stands(frozen):
    line = {"kind": "evaluation", "step": 10, "epoch": 1.0, "protocol_digest": "a", "fingerprint": "f"}
    lines = [line | {"metrics": {"FID": value}} for value in (3.0, 2.0)]
    (record,) = unpack(pack(lines), arm="x", seed=0)
    assert record["metrics"] == {"FID": 2.0} and record["run"] == {"protocol_digest": "a", "fingerprint": "f"}
    other = unpack(pack([*lines, lines[0] | {"protocol_digest": "b"}]), arm="x", seed=0)
    assert [r["run"]["protocol_digest"] for r in other] == ["a", "b"], "another protocol is another record"
