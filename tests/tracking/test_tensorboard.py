"""Event files of TensorBoard hold what the journal holds, and are written anew each time."""

import struct

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from mirai_bench.tracking.__main__ import command
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.tracking.tensorboard import FILE, export
from mirai_bench.utils.errors import UserError
from tests.support.synthetic import injection_level, plan_of, write_run


def read(path):
    """Reads the events of a file as the format says: a length, its checksum, the bytes, their checksum."""
    data = path.read_bytes()
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        content = data[at + 12 : at + 12 + length]
        for found, of in ((at + 8, data[at : at + 8]), (at + 12 + length, content)):
            masked = crc32c(of)
            masked = ((masked >> 15 | masked << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack_from("<I", data, found) == (masked,)
        yield Event.FromString(content)
        at += 16 + length


@pytest.fixture
def run(tmp_path):
    sweep = injection_level(only=["baseline"], seeds=[3])
    folder = write_run(tmp_path / "runs", sweep.cells[0].config, lambda epoch: {"FD-digits": 9.0 - epoch})
    return RunFolder(folder), sweep


def test_curves_are_those_of_the_journal(run, tmp_path):
    folder, _ = run
    (path,) = export(folder, tmp_path / "events")
    assert path == tmp_path / "events" / folder.path.name / FILE
    first, *events = read(path)
    assert first.file_version == "brain.Event:2"
    found = {}
    for event in events:
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    lines = [line for line in folder.journal.lines() if line["kind"] == "evaluation"]
    assert found["eval/FD-digits"] == [(line["step"], line["metrics"]["FD-digits"]) for line in lines]
    assert found["eval/epoch"] == [(line["step"], line["epoch"]) for line in lines]
    before = path.read_bytes()
    assert export(folder, tmp_path / "events") == [path] and path.read_bytes() == before


def test_runs_of_a_sweep_lie_under_its_name(run, tmp_path, capsys, monkeypatch):
    folder, sweep = run
    monkeypatch.setattr("mirai_bench.tracking.replay.plans_of", lambda found: [plan_of(sweep)])
    assert command(["tensorboard", str(folder.path), "--out", str(tmp_path / "events")]) == 0
    path = tmp_path / "events" / "injection_level" / "digits" / "baseline-s3" / FILE
    assert capsys.readouterr().out == f"{path}\n" and path.is_file()


def test_runs_of_two_profiles_do_not_overwrite_each_other(run, tmp_path, monkeypatch):
    folder, sweep = run
    paths = []
    for profile in ("digits", "cifar10"):
        plan = plan_of(sweep, profile)
        monkeypatch.setattr("mirai_bench.tracking.replay.plans_of", lambda found, plan=plan: [plan])
        paths += export(folder, tmp_path / "events")
    assert len(set(paths)) == 2


def test_samples_are_images(trained_run, tmp_path):
    (path,) = export(RunFolder(trained_run), tmp_path)
    images = [value for event in read(path) for value in event.summary.value if value.tag == "samples"]
    assert images and all(value.image.encoded_image_string.startswith(b"\x89PNG") for value in images)


def test_replay_takes_no_folder(run, tmp_path):
    with pytest.raises(UserError, match="leave it out of replay"):
        command(["replay", str(run[0].path), "--out", str(tmp_path)])
