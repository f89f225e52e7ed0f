"""A batch is a function of (seed, step), and codes of another configuration are refused."""

import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from mirai_bench.config.load import build_run, merge
from mirai_bench.data.codes import Codes, images_of, open_codes
from mirai_bench.data.pixels import Pixels
from mirai_bench.data.prepare import main as prepare
from mirai_bench.data.shards import ShardedArray, codes_folder
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.utils.errors import UserError
from tests.support.images import folder_config, prepared, run_config, write_config

CPU = torch.device("cpu")


def test_digits_codes_are_the_grey_levels():
    config = run_config()
    codes = open_codes(config, "heldout", CPU)
    tokens, labels = codes.all()
    assert tokens.shape == (297, 64)
    assert labels.shape == (297,)
    assert (tokens.min(), tokens.max()) == (0, 16)
    pictures = np.concatenate([batch for batch, _ in images_of(config, "heldout")])
    tokenizer = load_tokenizer(config, CPU)
    assert torch.equal(tokenizer.decode(tokens), torch.from_numpy(pictures))


def test_batch_is_a_pure_function_of_seed_and_step(digits):
    def ask(step, seed=0, rank=0, world=1):
        return digits.batch(seed=seed, step=step, rank=rank, world=world, batch_size=32)

    first = ask(50)
    for step in (3, 200, 7):
        ask(step)
    again = ask(50)
    for field in ("tokens", "labels", "index", "view"):
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert getattr(first, field).dtype == torch.long
    assert torch.equal(first.labels, digits.labels[first.index])
    assert not torch.equal(first.index, ask(50, seed=1).index)
    for world in (2, 4, 32):
        parts = [ask(50, rank=rank, world=world) for rank in range(world)]
        assert torch.equal(torch.cat([part.tokens for part in parts]), first.tokens)
        assert torch.equal(torch.cat([part.view for part in parts]), first.view)


def test_an_epoch_sees_each_image_at_most_once(digits):
    per_epoch = digits.steps_per_epoch(64)
    assert per_epoch == 1500 // 64
    epochs = [
        torch.cat(
            [
                digits.batch(seed=0, step=e * per_epoch + s, rank=0, world=1, batch_size=64).index
                for s in range(per_epoch)
            ]
        )
        for e in range(2)
    ]
    assert all(len(epoch.unique()) == per_epoch * 64 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_the_view_depends_on_seed_epoch_and_image_alone(digits):
    def views(batch_size):
        seen = {}
        for step in range(digits.steps_per_epoch(batch_size)):
            batch = digits.batch(seed=3, step=step, rank=0, world=1, batch_size=batch_size)
            seen |= dict(zip(batch.index.tolist(), batch.view.tolist(), strict=True))
        return seen

    small = views(30)
    assert small == views(500)
    assert len(small) == 1500
    assert 600 < sum(small.values()) < 900


def test_streamed_codes_equal_resident_codes():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 65536, (n, 3, 4)).astype(np.uint16) for n in (5, 1, 7)]
    parts[0][0, 0, 0] = 65535
    labels = np.arange(13)
    pixels = Pixels(lambda: None, labels, run_config().data, CPU)
    resident, streamed = (
        Codes(ShardedArray(parts), labels, pixels, {}, CPU, resident=kept) for kept in (True, False)
    )
    for step in (0, 1, 2, 9, 10, 4):
        asked = {"seed": 1, "step": step, "rank": 1, "world": 2, "batch_size": 6}
        a = resident.batch(**asked)
        b = streamed.batch(**asked)
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.view, b.view)
    tokens, _ = resident.all()
    assert torch.equal(tokens, streamed.all()[0])
    assert tokens.max() <= 65535
    assert tokens[0, 0] == 65535


def test_a_batch_larger_than_the_data_is_refused(digits):
    with pytest.raises(UserError, match=r"batch_size is 2000.*1500"):
        digits.steps_per_epoch(2000)


DIFFERENCES = {
    "crop": ({"data": {"crop_ranges": [1.25]}}, "crop is 'ten_crop"),
    "views": ({"data": {"views": "flip"}}, "crop is"),
    "grid": ({"data": {"image_size": 24}}, "image_size is 16, but the config asks for 24"),
    "vocabulary": ({"tokenizer": {"vocabulary": 33}}, "vocabulary is 17, but the config asks for 33"),
    "name": ({"data": {"name": "others"}}, "data is 'toys', but the config asks for 'others'"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_codes_of_another_config_are_refused_by_name(images, tmp_path, name):
    over, message = DIFFERENCES[name]
    config = folder_config(images, tmp_path)
    prepared(config, tmp_path)
    codes = {"machine": {"codes": str(codes_folder(config))}}
    fields = merge(config.model_dump(mode="json"), merge(over, codes))
    with pytest.raises(UserError, match=message):
        open_codes(build_run(fields, "test"), "train", CPU)
    with pytest.raises(UserError, match=message):
        prepare([write_config(build_run(fields, "test"), tmp_path / "other.json")])


@pytest.mark.parametrize("field", ["runs", "codes"])
def test_the_command_of_the_hint_prepares_the_codes_where_they_are_looked_for(images, tmp_path, field):
    elsewhere = {"machine": {"data": str(images), field: str(tmp_path / "a folder")}}
    config = build_run(merge(folder_config(images, tmp_path).model_dump(mode="json"), elsewhere), "test")
    with pytest.raises(UserError, match=r"not prepared in .*: run python") as error:
        open_codes(config, "train", CPU)
    words = shlex.split(str(error.value).partition("mirai_bench.data.prepare")[2])
    assert words[0] == "CONFIG"
    # What the user has: the same file, but for what was given on the command line.
    file = write_config(folder_config(images, tmp_path), tmp_path / "mine.json")
    prepare([file, *words[1:]])
    assert open_codes(config, "train", CPU).labels.shape == (21,)


def test_pixels_of_other_images_are_refused(images, damaged):
    config = folder_config(images, damaged)
    prepared(config, damaged)
    fields = merge(
        config.model_dump(mode="json"),
        {"machine": {"data": str(damaged / "three"), "codes": str(codes_folder(config))}},
    )
    for name in ("ant", "bee", "cat"):
        (damaged / "three" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(damaged / "three" / name / "x.png")
    other = open_codes(build_run(fields, "test"), "train", CPU)
    with pytest.raises(UserError, match="sha256"):
        other.pixels(torch.tensor([0]), torch.tensor([0]))


def test_a_damaged_shard_is_named(images, tmp_path):
    config = folder_config(images, tmp_path)
    prepared(config, tmp_path)
    (codes_folder(config) / "train" / "shards" / "00002.npy").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        open_codes(config, "train", CPU)
