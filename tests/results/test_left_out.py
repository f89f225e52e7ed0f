"""What was left out of the data stands in the records of a run, and under the tables that use them."""

import json

import pytest
import torch
from PIL import Image

from mirai_bench.data.codes import open_codes
from mirai_bench.data.images.listing import renumbered
from mirai_bench.data.prepare import main as prepare
from mirai_bench.results.frozen import freeze, read_jsonl
from mirai_bench.results.left_out import BEGIN
from mirai_bench.results.table import build_table
from mirai_bench.tracking.records import pack, unpack
from mirai_bench.tracking.run_folder import RunFolder
from tests.support.images import folder_config, noise, write_config
from tests.support.paths import RECORDS
from tests.support.small_run import train


def notes_of(results):
    return [
        note for note in build_table(results).notes if note.startswith("Left out of the data, or changed")
    ]


@pytest.mark.parametrize(
    ("counts", "note"),
    [
        ({}, []),
        ({"all": {"*.tif": 6, "hidden": 1200}}, ["Left out of the data, or changed: 6 *.tif, 1,200 hidden."]),
        (
            {"all": {"hidden": 1}, "reference": 17},
            ["Left out of the data, or changed: 1 hidden, 17 images that the reference lacks."],
        ),
    ],
)
def test_the_counts_stand_under_the_table(frozen, counts, note, tmp_path):
    for record in frozen.records:
        if "all" in counts:
            record["run"]["left_out"] = counts["all"]
            record["run"]["reference"]["left_out"] = counts.get("reference", 0)
    assert notes_of(frozen) == note
    freeze(frozen, tmp_path / "records.jsonl")  # and are in the frozen records
    assert notes_of(read_jsonl([tmp_path / "records.jsonl"])[0]) == note


def test_arms_of_which_other_things_were_left_out_are_named(frozen):
    for record in frozen.records:
        if record["arm"] == frozen.baseline:
            record["run"] = record["run"] | {"left_out": {"*.gif": 2}}
    (note,) = notes_of(frozen)
    assert note.startswith(f"{BEGIN}: 2 *.gif ({frozen.baseline}); nothing (")


def test_committed_records_have_left_out_nothing():
    assert notes_of(read_jsonl([RECORDS])[0]) == []


def test_a_run_on_data_with_gaps_says_so_in_its_records(tmp_path):
    folder = tmp_path / "images"
    for name, count in (("ant", 4), ("bee", 4), ("cat", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(1, 16, seed=i)[0]).save(folder / name / f"{i}.png")
    (folder / "ant" / "x.tif").touch()
    (folder / "ant" / ".hidden.png").touch()
    (folder / "bee" / "broken.png").write_bytes(b"no image")
    config = folder_config(folder, tmp_path / "runs", views="center")
    assert prepare([write_config(config, tmp_path / "run.json")]) == 0
    codes = open_codes(config, "train", torch.device("cpu"))
    counts = {"*.tif": 1, "hidden": 1, "unreadable images": 1, "classes without an image": 1}
    assert codes.left_out == counts and codes.num_images == 8
    lines = [{"kind": "evaluation", "step": 1, "protocol_digest": "x", "left_out": codes.left_out}]
    (record,) = unpack(json.loads(json.dumps(line)) for line in pack(lines))
    assert record["run"]["left_out"] == counts


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["0", "1", "10", "2"], 2),
        (["1", "2"], 2),
        (["00", "01"], 0),
        (["0", "ant"], 0),
        (["ant"], 0),
        ([], 0),
    ],
)
def test_classes_of_another_number_than_their_folder_are_counted(names, count):
    assert renumbered(names) == count


def test_a_run_on_renumbered_classes_says_so(tmp_path):
    for name in ("1", "10", "2"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(noise(1, 16, seed=i)[0]).save(tmp_path / "images" / name / f"{i}.png")
    config = folder_config(tmp_path / "images", tmp_path / "runs", views="center")
    assert prepare([write_config(config, tmp_path / "run.json")]) == 0
    codes = open_codes(config, "train", torch.device("cpu"))
    assert codes.left_out == {"classes of another number than their folder": 2}  # 2 is class 2


def test_the_records_of_a_run_hold_the_counts(make_config, trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr("mirai_bench.data.codes.Codes.left_out", {"*.tif": 2})
    config = make_config(seed=5, machine={"runs": str(tmp_path)})
    (tmp_path / "cache").symlink_to(trained_run.parent / "cache")
    train(config, config.run_path)
    (record,) = RunFolder(config.run_path).journal.lines("evaluation")
    assert record["left_out"] == {"*.tif": 2}


def test_data_that_are_embedded_leave_out_nothing(make_config):
    assert open_codes(make_config(), "train", torch.device("cpu")).left_out == {}
