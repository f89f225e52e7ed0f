"""The command, its records, and the weights that it finds."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mirai_bench.checkpoint.official import export_official, import_official
from mirai_bench.config.foresight import EncoderConfig
from mirai_bench.diagnose.__main__ import command
from mirai_bench.diagnose.records import journal_of
from mirai_bench.diagnose.registry import DIAGNOSTICS
from mirai_bench.diagnose.scope import Scope
from mirai_bench.diagnose.subject import Subject
from mirai_bench.foresight import SourceContext, build_foresight
from mirai_bench.tracking import mlflow_store
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.train.objective import Objective
from mirai_bench.utils.errors import UserError
from tests.diagnose.conftest import subject_of
from tests.support.synthetic import shared_store


@pytest.fixture(autouse=True)
def store(tmp_path_factory, monkeypatch):
    """A store of MLflow, which the command sends to."""
    uri = shared_store(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow_store.connect(uri)


@pytest.fixture
def folder(mirai_e):
    found = RunFolder(mirai_e.run_path)
    found.diagnosis_file.unlink(missing_ok=True)
    return found


def lines(folder):
    return list(journal_of(folder).lines("diagnosis"))


def test_kept_and_newest_weights_are_measured_once_with_provenance(folder, mirai_e):
    words = [str(folder), "--only", "spatial", "--device", "cpu"]
    assert command(words) == 0
    first = lines(folder)
    assert [(line["diagnostic"], line["epoch"]) for line in first] == [("spatial", 1), ("spatial", 2)]
    assert first[0]["values"] != first[1]["values"]
    for line in first:
        assert line["fingerprint"] == mirai_e.fingerprint()
        assert {"device", "git", "versions", "scope", "seconds", "seed", "profile"} <= line.keys()
    assert command(words) == 0
    assert lines(folder) == first  # nothing was missing


def test_findings_are_sent_to_mlflow_with_the_run(folder, store):
    for _ in range(2):
        assert command([str(folder), "--only", "spatial", "--device", "cpu"]) == 0
    (run,) = store.search_runs(
        [mlflow_store.experiment_id(store, "")], f"tags.fingerprint = '{folder.path.name}'"
    )
    sent = [
        (point.step, point.value)
        for point in store.get_metric_history(run.info.run_id, "diagnose/spatial/lds")
    ]
    assert sorted(sent) == [(line["step"], line["values"]["lds"]) for line in lines(folder)]
    assert "eval/epoch" in run.data.metrics, "so is what was not sent before"


@pytest.mark.parametrize(
    ("uri", "said"), [("http://127.0.0.1:9", "is away"), ("file:./mlruns", "nothing is sent to MLflow")]
)
def test_a_store_that_is_away_costs_one_warning(folder, monkeypatch, capsys, uri, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(mlflow_store, "_away", set())
    assert command([str(folder), "--only", "spatial", "--device", "cpu"]) == 0
    assert len(lines(folder)) == 2
    assert capsys.readouterr().err.count(said) == 1


def test_epochs_are_chosen(folder, capfd):
    assert command([str(folder), "--only", "spatial", "--at", "2"]) == 0
    assert [line["epoch"] for line in lines(folder)] == [2]
    with pytest.raises(UserError, match=r"--at 3: .* has weights of epoch 1, 2"):
        command([str(folder), "--at", "3"])


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_an_official_checkpoint_is_looked_at(mirai_e, tmp_path, capfd, weights):
    """Mirai's holds the trained weights with the heads. LlamaGen's has no heads: the objective is gone."""
    export_official(RunFolder(mirai_e.run_path), tmp_path / "official.pt", weights)
    config = mirai_e.with_machine(runs=tmp_path)
    folder = RunFolder(config.run_path)
    import_official(tmp_path / "official.pt", config, folder)
    assert command([str(folder), "--only", "spatial", "gradients", "absorption", "--device", "cpu"]) == 0
    found = {line["diagnostic"]: line["values"] for line in lines(folder)}
    spatial = DIAGNOSTICS["spatial"].measure(subject_of(mirai_e, Scope())).values
    assert found["spatial"] == pytest.approx(spatial)
    if weights == "raw":
        assert found.keys() == {"spatial", "gradients", "absorption"}
    else:
        assert found.keys() == {"spatial"}
        said = "gradients left out 1 times: its checkpoint has no heads of the training loss, such as "
        assert said in capfd.readouterr().err


def test_probes_are_fitted_to_crops_of_the_centre_like_those_that_test_them():
    """Held-out images are cropped at the centre, which is the fifth of ten crops."""
    codes = SimpleNamespace(num_images=4, device="cpu", images=lambda index, view: (index.tolist(), view))
    for views, centre in (("ten_crop", 4), ("flip", 0), ("center", 0)):
        subject = SimpleNamespace(codes=codes, config=SimpleNamespace(data=SimpleNamespace(views=views)))
        assert Subject.training(subject, 2) == ([0, 2], centre)


def test_a_half_written_line_is_measured_again(folder):
    words = [str(folder), "--only", "spatial", "--at", "2"]
    command(words)
    whole = folder.diagnosis_file.read_text()
    folder.diagnosis_file.write_text(whole[: len(whole) // 2])
    command(words)
    (line,) = lines(folder)
    assert line["values"] == json.loads(whole)["values"]


def test_a_wrong_name_and_a_wrong_place_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match="spatial"):
        command([str(folder), "--only", "spatail"])
    with pytest.raises(UserError, match="not a run folder"):
        command([str(tmp_path)])
    with pytest.raises(UserError, match="is a run"):
        command([str(folder), "--seeds", "1"])


def test_the_objective_is_that_of_the_training_step(subject):
    student = subject.snapshot.student
    objective = subject.objective
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, student[name.removeprefix("model.")])
    for name, tensor in subject.model.named_parameters():
        assert torch.equal(tensor, subject.snapshot.ema[name])


def test_states_are_those_of_the_model(subject, mirai_e):
    again = subject_of(mirai_e)
    states = list(subject.layers(subject.heldout))
    assert len(states) == subject.depth + 1
    for layer, of_layer in enumerate(states):
        assert torch.equal(subject.states(layer, subject.heldout), of_layer)
    expected = again.model.states(again.heldout.tokens, again.heldout.labels, subject.depth)
    assert torch.allclose(states[-1], expected, atol=1e-5)
    null = subject.states(subject.depth, subject.heldout, null_class=True)
    assert not torch.equal(null, states[-1])


def with_encoder(subject, **fields):
    """The subject, as if an image encoder had been its teacher."""
    changes = {"source": "encoder", "k": 1, "encoder": EncoderConfig(**fields)}
    foresight = subject.config.foresight.model_copy(update=changes)
    return replace(subject, config=subject.config.model_copy(update={"foresight": foresight}))


def test_a_source_that_reads_pixels_reads_those_of_the_heldout_images(subject, tmp_path):
    timm = pytest.importorskip("timm", reason="needs the optional extra: pip install -e '.[encoders]'")
    network = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=128)
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    other = with_encoder(subject, name="timm:test_vit", weights=tmp_path / "tiny.safetensors")
    context = SourceContext(other.config, subject.model, subject.codes, lambda: subject.model, subject.device)
    other.objective = Objective(subject.objective.model, build_foresight(context))
    images = other.heldout_codes.images(torch.arange(3))
    of_heldout = other.heldout_objective.foresight.source(images, images.labels)
    source = other.objective.foresight.source
    pixels = other.heldout_codes.pixels(images.index, images.view)
    assert torch.allclose(of_heldout, source.encoder.features(pixels), atol=1e-5)
    # The objective of training still reads the pixels of the training images.
    assert not torch.allclose(of_heldout, source(images, images.labels), atol=1e-5)
    for name, parameter in other.heldout_objective.named_parameters():
        assert parameter is other.objective.get_parameter(name)
    # A source of states needs no pixels.
    assert subject.heldout_objective is subject.objective
