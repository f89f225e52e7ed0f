"""How well a tokenizer reconstructs images, and the record beside its weights."""

import json
from pathlib import Path

import pytest
import torch

from mirai_bench.config.load import load_run
from mirai_bench.config.run_config import SHIPPED_TOKENIZERS
from mirai_bench.data.images.datasets import open_dataset
from mirai_bench.data.images.image_sets import open_images
from mirai_bench.data.tokenizers import load_tokenizer, vq_small
from mirai_bench.evaluate.extractors import open_extractor
from mirai_bench.evaluate.measure import StoredImages
from mirai_bench.evaluate.measure import measure as compare_images
from mirai_bench.evaluate.references import open_reference
from mirai_bench.tokenizer.__main__ import main
from mirai_bench.tokenizer.quality import measure, read_record, record_file
from mirai_bench.tokenizer.train import save_weights
from mirai_bench.utils import cli
from mirai_bench.utils.files import write_json
from mirai_bench.utils.hashing import file_sha256
from tests.support.assets import asset
from tests.support.small_tokenizer import small_config

CPU = torch.device("cpu")


@pytest.fixture
def weights_with_record(tmp_path):
    """A file of random weights, and the part of a record that says whose it is."""
    file = tmp_path / "weights" / "mine.safetensors"
    file.parent.mkdir()
    save_weights(vq_small.SmallVQ(4, 16, channels=8, blocks=1, width=4), file)
    write_json(
        record_file(file), {"weights": {"sha256": file_sha256(file)}, "heldout": {"n": 1}, "data": "kept"}
    )
    return file


def test_rfid_joins_the_record(weights_with_record, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(small_config(tmp_path).model_dump(mode="json")))
    arguments = ["measure", str(tmp_path / "run.json"), "--set", f"tokenizer.weights={weights_with_record}"]
    arguments += ["--reconstructions", str(tmp_path / "images.npz"), "--rfid", "--write-record"]
    assert main(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    record = read_record(record_file(weights_with_record))
    assert record["heldout"] == {key: shown[key] for key in record["heldout"]}
    assert record["data"] == "kept"
    rfid = record["heldout"]["rfid"]
    assert rfid["n"] == record["heldout"]["n"] == rfid["reference"]["n"] == 297
    assert rfid["extractor"]["name"] == "digits"
    config = small_config(tmp_path)
    extractor = open_extractor(config, "digits", CPU)
    reference = open_reference(config, "heldout", extractor)
    expected = compare_images(
        StoredImages(open_images(tmp_path / "images.npz")), extractor, reference
    ).metrics
    assert rfid["FD-digits"] == pytest.approx(expected["FD-digits"], rel=1e-4)
    assert rfid["FD-digits"] > 1


def test_a_record_is_only_written_to_where_it_belongs(weights_with_record, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(small_config(tmp_path).model_dump(mode="json")))
    arguments = [
        "measure",
        str(tmp_path / "run.json"),
        "--set",
        f"tokenizer.weights={weights_with_record}",
        "--write-record",
    ]
    for flags, message in (
        (["--rfid"], "write --reconstructions"),
        (["--set", "tokenizer={name: pixel, downsample: 1, weights: null}"], "which has no record"),
    ):
        assert cli.run(main, [*arguments, *flags]) == 2 and message in capsys.readouterr().err
    write_json(record_file(weights_with_record), {"weights": {"sha256": "sha256:of others"}})
    assert cli.run(main, arguments) == 2 and "of other weights" in capsys.readouterr().err
    weights_with_record.with_suffix(".json").unlink()
    assert cli.run(main, arguments) == 2 and "is not readable" in capsys.readouterr().err


def test_an_exact_tokenizer_measures_as_exact(make_config):
    config = make_config()
    measured = measure(load_tokenizer(config, CPU), open_dataset(config, "heldout"), 8, CPU)
    assert measured["psnr_db"] > 75 and measured["usage"] == 1.0 and measured["perplexity"] < 17


SHIPPED = sorted(SHIPPED_TOKENIZERS.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_measure_as_recorded(path):
    record = json.loads(path.with_suffix(".json").read_text())
    dataset = record["data"]["name"]
    settings = [
        f"machine.data={asset(f'{dataset}.npz')}",
        f"tokenizer.downsample={record['sizes']['downsample']}",
    ]
    config = load_run(Path(dataset), settings)
    tokenizer = load_tokenizer(config, CPU)
    assert tokenizer.identity["sha256"] == record["weights"]["sha256"]
    measured = measure(tokenizer, open_dataset(config, "heldout"), config.data.image_size, CPU)
    assert abs(measured["psnr_db"] - record["heldout"]["psnr_db"]) < 0.02
    assert abs(measured["usage"] - record["heldout"]["usage"]) < 0.002
