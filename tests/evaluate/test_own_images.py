"""From a folder of class/image to a record, offline: splits, tokenizer, extractor, protocol, profile."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mirai_bench.config.load import load_run
from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.data.codes import has_heldout_codes, open_codes
from mirai_bench.data.images.datasets import has_heldout_images, open_dataset
from mirai_bench.data.images.listing import is_held_out
from mirai_bench.data.prepare import main as prepare
from mirai_bench.data.shards import codes_folder
from mirai_bench.evaluate.evaluation import Evaluator
from mirai_bench.evaluate.extractors import EXTRACTORS, open_extractor
from mirai_bench.evaluate.own_classifier import SIDE, recipe_for, shrunk
from mirai_bench.sweep.init import command as init
from mirai_bench.sweep.own_profile import power_of_two
from mirai_bench.tokenizer.__main__ import main as tokenizer
from mirai_bench.tracking.journal import read_journal
from mirai_bench.train.__main__ import command as train
from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import UserError
from tests.support.images import folder_config

CPU = torch.device("cpu")
COUNT = 60  # images of each class


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Three classes of 60 images of 20 pixels, whose colour says the class."""
    root = tmp_path_factory.mktemp("own") / "my shapes"
    rng = np.random.default_rng(0)
    for label, name in enumerate(("discs", "squares", "stripes")):
        (root / name).mkdir(parents=True)
        for i in range(COUNT):
            pixels = rng.integers(0, 60, (20, 20, 3)) + 180 * (np.arange(3) == label)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def config_of(root, runs, share=0.2, **data):
    return folder_config(root, runs, views="center", heldout_share=share, **data)


# ---- splits


def test_a_share_is_held_out_by_content(shapes, tmp_path):
    config = config_of(shapes, tmp_path)
    parts = [open_dataset(config, split) for split in ("train", "heldout")]
    assert has_heldout_images(config)
    files = [set(part.files) for part in parts]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 3 * COUNT
    assert 0.1 < len(parts[1]) / (3 * COUNT) < 0.3
    assert parts[0].sha256 != parts[1].sha256
    # Another name and another folder change no image's side.
    moved = tmp_path / "moved" / "discs"
    moved.mkdir(parents=True)
    for other in ("squares", "stripes"):
        (moved.parent / other).mkdir()
    original = Path(next(file for file in parts[1].files if "discs" in file))
    (moved / "new name.png").write_bytes(original.read_bytes())
    again = open_dataset(config_of(moved.parent, tmp_path / "runs"), "heldout")
    assert [file.rpartition("/")[2] for file in again.files] == ["new name.png"]


def test_the_share_is_one_of_all_hashes():
    hashes = [f"{number:016x}" + 48 * "0" for number in range(0, 16**16, 16**16 // 1000)]
    assert sum(is_held_out(sha256, 0.25) for sha256 in hashes) == pytest.approx(250, abs=1)
    held = {sha256 for sha256 in hashes if is_held_out(sha256, 0.1)}
    assert held < {sha256 for sha256 in hashes if is_held_out(sha256, 0.2)}, (
        "a larger share holds the smaller"
    )


def test_the_share_belongs_to_the_experiment_and_only_where_it_is_used(shapes, tmp_path):
    with_share, other = (config_of(shapes, tmp_path, share=share) for share in (0.2, 0.3))
    without = config_of(shapes, tmp_path, share=None)
    assert len({config.fingerprint() for config in (with_share, other, without)}) == 3
    assert "heldout_share" not in without.identity()["data"]


def test_the_manifest_states_the_share(shapes, tmp_path, capsys):
    config = config_of(shapes, tmp_path / "runs")
    assert (
        prepare_config(config, tmp_path) == 0
        and (codes_folder(config) / "heldout" / "manifest.json").is_file()
    )
    manifest = json.loads((codes_folder(config) / "train" / "manifest.json").read_text())
    assert manifest["heldout_share"] == 0.2 and has_heldout_codes(config)
    heldout = open_codes(config, "heldout", CPU)
    assert heldout.num_images + manifest["num_images"] == 3 * COUNT


def prepare_config(config, folder):
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    return prepare([str(folder / "config.json")])


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("digits", "whose held-out images are fixed"), ("folder", "has a folder val of its own")],
)
def test_a_share_of_data_that_have_a_split_is_refused(dataset, words, shapes, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "discs").symlink_to(shapes / "discs")
    with pytest.raises(UserError, match=words):
        open_dataset(config_of(tmp_path, tmp_path, dataset=dataset, classes=1), "train")


def test_a_share_of_train_is_held_out_if_there_is_no_val(shapes, tmp_path):
    (tmp_path / "train").symlink_to(shapes)
    for split in ("train", "heldout"):
        nested = open_dataset(config_of(tmp_path, tmp_path), split)
        assert nested.identity == open_dataset(config_of(shapes, tmp_path), split).identity
    # A val without class folders is none, as everywhere.
    (tmp_path / "val").mkdir()
    assert len(open_dataset(config_of(tmp_path, tmp_path), "heldout"))


def test_without_a_share_the_message_names_it(shapes, tmp_path):
    with pytest.raises(UserError, match=r"or data\.heldout_share: 0\.1"):
        open_dataset(config_of(shapes, tmp_path, share=None), "heldout")


# ---- extractor and protocols


def with_protocol(config, **protocol):
    changed = config.evaluation.protocol.model_copy(update={"extractor": "own", **protocol})
    evaluation = config.evaluation.model_copy(update={"protocol": changed})
    return config.model_copy(update={"evaluation": evaluation})


@pytest.fixture(scope="module")
def own(shapes, tmp_path_factory):
    return with_protocol(config_of(shapes, tmp_path_factory.mktemp("runs")), num_samples=100)


def test_the_extractor_is_trained_once_and_its_hash_is_its_identity(own, monkeypatch):
    file = EXTRACTORS["own"].locate(own, None)
    record = json.loads(file.with_suffix(".json").read_text())
    assert record["heldout"]["accuracy"] > 0.9, "colours are told apart"
    monkeypatch.setattr("mirai_bench.evaluate.own_classifier.train_and_record", None)  # it is there
    extractor = open_extractor(own, "own", CPU)
    assert extractor.identity == {"name": "own", "sha256": record["weights"]["sha256"]}
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
    assert extractor(images)["pool"].shape == (3, 128) and extractor(images)["logits"].shape == (3, 3)


def test_training_it_leaves_random_numbers_as_they_were(shapes, tmp_path):
    config = with_protocol(config_of(shapes, tmp_path, share=0.3))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    EXTRACTORS["own"].locate(config, None)
    assert torch.equal(torch.rand(3), expected)


def test_no_more_samples_than_the_reference_has_images(own):
    n = len(open_dataset(own, "train"))
    assert n > 100
    few = Evaluator(own, CPU)
    assert few.reference.n == n
    with pytest.raises(UserError, match=rf"num_samples is 500, but the reference toys/train has {n} images"):
        _ = Evaluator(with_protocol(own, num_samples=500), CPU).reference


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": "digits", "classes": 10, "heldout_share": None}, "write extractor: digits"),
        ({"classes": 1}, "one class only"),
    ],
)
def test_where_it_cannot_be_used(fields, words, own):
    config = own.model_copy(update={"data": own.data.model_copy(update=fields)})
    with pytest.raises(UserError, match=words):
        EXTRACTORS["own"].locate(config, None)


def test_large_images_are_shrunk_and_small_ones_are_not():
    large = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    assert shrunk(large).shape == (2, 3, SIDE, SIDE) and shrunk(large).dtype == torch.uint8
    small = large[..., :20, :20]
    assert shrunk(small) is small
    even = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    assert (shrunk(even) == 200).all()


@pytest.mark.parametrize("images", [10, 160, 5_000, 1_000_000])
def test_recipes_fit_the_number_of_images(images, own):
    recipe = recipe_for(own.data, images)
    assert 6 <= recipe.epochs <= 60 and 16 <= recipe.batch_size <= 128 and not recipe.mirror


def test_protocols_of_own_images():
    sizes = [fields["num_samples"] for name, fields in PROTOCOLS.items() if name.startswith("own_")]
    assert sizes == sorted(sizes) and PROTOCOLS["none"]["extractor"] == "none"


# ---- the profile, and the whole way


def test_powers_of_two():
    assert [power_of_two(number) for number in (0, 1, 2, 3, 8, 9, 1000)] == [1, 1, 2, 2, 8, 8, 512]


def write_images(folder, count):
    """Writes images of 16 pixels, no two of which are alike."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")


def split_of(profile):
    """Returns the numbers of images to train on and held out, as the command `tokenizer` finds them."""
    config = load_run(profile, ["tokenizer.weights=null"])
    return [len(open_dataset(config, split)) for split in ("train", "heldout")]


def test_a_folder_with_train_alone_gets_a_share(shapes, here):
    (here / "images").mkdir()
    (here / "images" / "train").symlink_to(shapes)
    assert init(["profile", "mine.yaml", "--images", "images"]) == 0
    assert load_run("mine.yaml", ["tokenizer.weights=null"]).data.heldout_share == 0.1
    training, heldout = split_of("mine.yaml")
    assert training + heldout == 3 * COUNT and heldout
    assert f"classes, {training} images to train on" in (here / "mine.yaml").read_text()


def test_a_folder_with_val_gets_none(here):
    write_images(here / "images" / "train" / "a", 9)
    write_images(here / "images" / "val" / "a", 2)
    assert init(["profile", "mine.yaml", "--images", "images"]) == 0
    assert "heldout_share" not in (here / "mine.yaml").read_text() and split_of("mine.yaml") == [9, 2]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("img #1 a: b", "img_1_a_b"),
        ("2024", "2024"),
        ("it's $HOME \U0001f600", "it_s_HOME_"),
        ("null", "null"),
    ],
)
def test_names_that_yaml_or_a_shell_would_read_otherwise(folder, name, here, capsys):
    write_images(here / folder / "a", 60)
    assert init(["profile", f"{folder}/mine.yaml", "--images", folder]) == 0
    printed = capsys.readouterr().out.splitlines()
    written = (here / folder / "mine.yaml").read_text()
    for line in printed:
        assert f"{folder}/mine.yaml" in shlex.split(line) and f"#   {line}\n" in written
    weights = shlex.split(printed[0])[-1]
    (here / weights).touch()
    config = load_run(f"{folder}/mine.yaml")
    assert config.machine.data == here / folder and config.tokenizer.weights == Path(weights)
    assert config.data.name == name


@pytest.mark.parametrize(
    ("file", "words"),
    [("my #1.yaml", "write my_1.yaml"), ("no\nline/x.yaml", "rename what has a control character")],
)
def test_files_that_the_commands_could_not_read(file, words, shapes, here, capsys):
    (here / "no\nline").mkdir()
    assert run(init, ["profile", file, "--images", str(shapes)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (3, 1), (1, 7), (1, 8)])
def test_too_few_images(classes, count, here, capsys):
    for number in range(classes):
        write_images(here / "images" / "abc"[number], count)
    assert run(init, ["profile", "x.yaml", "--images", "images"]) == 2
    error = capsys.readouterr().err
    assert "images to train on: add some, 8 are needed" in error or "leaves none" in error
    assert not (here / "x.yaml").exists()


def test_init_writes_a_profile_that_fits_the_folder(shapes, here, capsys):
    assert init(["profile", "mine.yaml", "--images", str(shapes)]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in commands] == ["tokenizer", "prepare", "sweep"]
    (here / "mine_tokenizer.safetensors").touch()
    config = load_run("mine.yaml")
    assert (config.data.image_size, config.data.classes, config.data.heldout_share) == (16, 3, 0.1)
    assert config.data.name == "my_shapes" and config.machine.data == shapes
    assert config.evaluation.protocol.name == "own_100" and config.grid == (8, 8)
    assert yaml.safe_load((here / "mine.yaml").read_text())["machine"]["data"] == str(shapes)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["profile", "x.yaml", "--images", "nowhere"], "there is no such folder"),
        (["profile", "x.yaml", "--images", "."], "has no class folders for the train split"),
        (["sweep", "x.yaml", "--images", "."], "write init profile x.yaml"),
    ],
)
def test_folders_that_fit_no_profile(argv, words, here, capsys):
    assert run(init, argv) == 2
    assert words in capsys.readouterr().err


def test_evaluations_on_the_way_may_be_left_out(make_config):
    assert make_config(evaluation={"at": [], "protocol": "none"}).evaluation.at == ()


@pytest.mark.slow  # trains a tokenizer, a classifier and a run
def test_from_a_folder_to_a_record_without_a_network(shapes, here, capsys):
    init(["profile", "mine.yaml", "--images", str(shapes)])
    small = ["--epochs", "4", "--channels", "8", "--blocks", "1", "--batch-size", "16"]
    out = "mine_tokenizer.safetensors"
    assert run(tokenizer, ["train", "mine.yaml", "--vgg", "none", *small, "--out", out]) == 0
    record = json.loads((here / out).with_suffix(".json").read_text())
    assert record["perceptual_weights"] == "none" and record["training"]["perceptual"] == 0
    assert run(prepare, ["mine.yaml"]) == 0
    settings = ["train.epochs=2", "evaluation.at=[]", "model.size=nano"]
    assert run(train, ["mine.yaml", *(word for each in settings for word in ("--set", each))]) == 0
    (journal,) = (here / "runs").glob("*/journal.jsonl")
    (evaluation,) = (line for line in read_journal(journal) if line["kind"] == "evaluation")
    assert {"FD-own", "KID-own", "class_accuracy", "heldout_ntp"} <= evaluation["metrics"].keys()
    assert (
        evaluation["extractor"]["sha256"].startswith("sha256:")
        and evaluation["protocol"]["name"] == "own_100"
    )


def test_the_command_of_a_template_can_be_pasted(here, capsys):
    assert init(["sweep", "my sweep.yaml"]) == 0
    assert capsys.readouterr().out == "mirai-bench sweep 'my sweep.yaml' --dry-run\n"
