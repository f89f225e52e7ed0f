"""A job checks all cells before training, and refuses nodes that do not share its folder."""

import pytest

from mirai_bench.config.load import merge
from mirai_bench.sweep.job import Job, last_line, preflight
from mirai_bench.utils.errors import UserError


def test_the_check_before_training(make_config):
    """Problems that show only once torch and the data are loaded give one message each."""
    good = make_config().model_dump(mode="json")
    assert preflight([good]) == []
    wrong = [
        merge(good, {"train": {"batch_size": 5000}}),
        merge(good, {"evaluation": {"protocol": {"reference": "nowhere.npz"}}}),
    ]
    images, reference = preflight([good, *wrong, *wrong])
    assert "batch_size is 5000, but there are 1500 images" in images
    assert "protocol.reference is 'nowhere.npz', which is not there" in reference


def test_the_check_looks_for_an_encoders_weights_among_the_assets(make_config, tmp_path, monkeypatch):
    from mirai_bench.foresight.encoders import zoo

    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    lite = {"level": "internal", "source": "encoder", "encoder": {"name": "efficientnet_lite0"}}
    config = make_config(foresight=lite, machine={"assets": str(tmp_path)})
    baseline = config.model_copy(update={"foresight": config.foresight.model_copy(update={"level": "none"})})
    assert preflight([baseline.model_dump(mode="json")]) == [], "it has no use for the encoder"
    (missing,) = preflight([each.model_dump(mode="json") for each in (baseline, config)])
    assert "foresight.encoder.name is efficientnet_lite0" in missing and str(tmp_path) in missing
    entry = zoo.entry_of("efficientnet_lite0")
    (tmp_path / entry.file).write_bytes(b"another file")
    (other,) = preflight([config.model_dump(mode="json")])
    assert "is not the file that efficientnet_lite0 means" in other
    monkeypatch.setattr(zoo, "file_sha256", lambda path: entry.sha256)
    assert preflight([config.model_dump(mode="json")]) == []


def test_a_node_with_another_folder_of_runs_is_refused(tmp_path):
    (tmp_path / "sweeps").mkdir()
    first, second = (Job.beside([], tmp_path / "sweeps", "small-small") for _ in range(2))
    first.begin()
    assert first.accepted()
    second.begin()
    assert second.accepted() and len(list((tmp_path / "sweeps").glob("*.seen-*"))) == 1
    with pytest.raises(
        UserError, match=r"is not the same folder on all nodes .* write machine.runs: a folder on storage"
    ):
        first.accepted()


def test_the_reason_is_the_last_line_of_an_error():
    assert (
        last_line(RuntimeError("Traceback …\n\nThe actor died unexpectedly\n"))
        == "The actor died unexpectedly"
    )
    assert last_line(MemoryError()) == "MemoryError", "it has no message"
