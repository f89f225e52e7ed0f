"""Every file that is read back, cut off, flipped or emptied at random places.

What is read is what was written, or an earlier whole version with a warning, or there is one message
(UserError). It is never a traceback, and never another number without a word.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mirai_bench.benchmark.report import read_rows
from mirai_bench.checkpoint.store import (
    Checkpoint,
    keep_weights,
    load_latest,
    load_weights,
    save_checkpoint,
)
from mirai_bench.data.codes import open_codes
from mirai_bench.data.images import listing
from mirai_bench.data.images.image_sets import NpzImages, NpzWriter, parts
from mirai_bench.data.images.listing import content_hash, file_digests, list_images
from mirai_bench.evaluate.extractors import open_extractor
from mirai_bench.evaluate.reference_images import split_images
from mirai_bench.evaluate.references import cached_reference, open_reference, write_reference
from mirai_bench.foresight.encoders import masked_tokens
from mirai_bench.foresight.encoders.feature_cache import write_features
from mirai_bench.results.frozen import freeze, read_jsonl
from mirai_bench.results.reading import read_journals
from mirai_bench.sample.sampler import load_for_sampling
from mirai_bench.sweep.plan import make_plan
from mirai_bench.tokenizer.train import Training
from mirai_bench.tracking import journal as journals
from mirai_bench.tracking.journal import Counts, Journal
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils import files
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.hashing import digest
from mirai_bench.utils.tensors import SHA256, content_sha256, write_torch
from tests.support.images import folder_config, noise, prepared
from tests.support.paths import RECORDS, ROOT
from tests.support.synthetic import evaluation_line, injection_level, train_line, write_plan

CPU = torch.device("cpu")
DAMAGES = ("flip", "cut", "empty")


class Kept(NamedTuple):
    """Files that are kept, and how they are read."""

    make: Callable[[Path], object]
    """Writes them into a folder."""
    read: Callable[[Path], Any]
    """Reads them, and returns what must stay the same."""
    files: tuple[str, ...] = ("**/*",)
    """Patterns of the files that are damaged."""
    others: Callable[[Any, Any], bool] = lambda found, whole: False
    """Whether what was read may differ from what was written. There must be a warning then."""


def damage(content: bytes, how: str, draw: random.Random) -> bytes:
    if how == "empty" or not content:
        return b""
    place = draw.randrange(len(content))
    if how == "cut":
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


# ---- what is kept


class Makers:
    """What the writers and readers below share."""

    def __init__(self, make_config, root: Path, shared_runs: Path) -> None:
        self.make_config = make_config
        self.shared_runs = shared_runs
        self.toys = root / "toys"
        for split in ("train", "val"):
            for name in ("ant", "bee", "cat"):
                (self.toys / split / name).mkdir(parents=True)
                for i, image in enumerate(noise(4, 16)):
                    from PIL import Image

                    Image.fromarray(image).save(self.toys / split / name / f"{i}.png")

    # checkpoints

    def checkpoints(self, folder):
        for step in (1, 2):
            tensors = {name: {"w": torch.full((40,), step / 7)} for name in ("model", "ema", "optimizer")}
            save_checkpoint(RunFolder(folder), step, Checkpoint(tensors, {"counter": step}), keep=2)

    def newest(self, folder):
        found = load_latest(RunFolder(folder))
        return None if found is None else (found.state["counter"], found.tensors["ema"]["w"].tolist())

    def kept_weights(self, folder):
        keep_weights(folder / "epoch_0001.safetensors", {"w": torch.arange(40) / 7})

    def weights(self, folder):
        return load_weights(folder / "epoch_0001.safetensors")["w"].tolist()

    # caches

    def config(self, folder, **sections):
        return self.make_config(machine={"runs": str(folder)}, **sections)

    def teacher_config(self, folder):
        return self.config(folder, foresight={"level": "internal", "source": "encoder"})

    def codes(self, folder):
        return open_codes(self.teacher_config(folder), "train", CPU)

    def teacher(self, folder):
        masked_tokens.load_or_train(self.teacher_config(folder), self.codes(folder), CPU)

    def taught(self, folder):
        model = masked_tokens.load_or_train(self.teacher_config(folder), self.codes(folder), CPU)
        return [parameter.tolist() for parameter in model.parameters()]

    def extractor(self):
        return open_extractor(self.make_config(), "digits", CPU, None)  # of the other tests

    def heldout(self):
        return split_images(self.make_config(), "heldout")

    def reference(self, folder):
        cached_reference(folder, self.heldout(), self.extractor())

    def moments(self, folder):
        found = cached_reference(folder, self.heldout(), self.extractor())
        return found.pool.mean.tolist(), found.features.tolist(), found.n

    def own_reference(self, folder):
        write_reference(folder / "heldout.npz", self.heldout(), self.extractor())

    def own_moments(self, folder):
        found = open_reference(self.make_config(), str(folder / "heldout.npz"), self.extractor())
        return found.pool.mean.tolist(), found.features.tolist(), found.n

    def begun_features(self, folder):
        self.features(folder, stop=3)

    def features(self, folder, stop=None):
        """Computes features, and is interrupted in the batch of this number."""

        class Encoder:
            name, grid, width, batches = "small", (1, 1), 4, 0

            def features(self, images):
                self.batches += 1
                if self.batches == stop:
                    raise KeyboardInterrupt
                return images.float().mean((1, 2, 3)).reshape(-1, 1, 1).expand(-1, 1, 4)

        try:
            write_features(Encoder(), self.codes(folder), folder)
        except KeyboardInterrupt:
            return None
        return np.load(folder / "features.npy").tolist()

    # codes

    def shards(self, folder):
        prepared(folder_config(self.toys, folder), folder, "--pixels")

    def read_codes(self, folder):
        codes = open_codes(folder_config(self.toys, folder), "train", CPU)
        tokens, labels = codes.all()
        return tokens.tolist(), labels.tolist(), codes.pixels.rows.tolist()

    def digests(self, folder):
        self.hashed(folder)

    def hashed(self, folder):
        root = self.toys / "train"
        found = list_images(root, ["ant", "bee"]).files
        return content_hash(root, found, file_digests(root, found, folder))

    # runs and sweeps

    def journal(self, folder):
        config = injection_level(only=["baseline"], seeds=[0]).cells[0].config
        journal = Journal(folder / "journal.jsonl")
        for step in range(1, 6):
            journal.append(train_line(step, 0.1 * step, 1e9 * step))
        journal.append(evaluation_line(config, 6, {"FD-digits": 3.25, "recall": 0.5}, 1.0, 1e9))

    def resumed(self, folder):
        journal = Journal(folder / "journal.jsonl")
        journal.rewind(6)
        journal.check(Counts(6, 1))
        return list(journal.lines())

    def run(self, folder):
        """A finished run, its plan, and the end of its journal in done.json."""
        sweep = injection_level(only=["baseline"], seeds=[0])
        config = sweep.cells[0].config
        run = RunFolder(folder / config.fingerprint())
        run.write_config(config.model_dump_json(indent=2))
        start = {"kind": "start", "time": 1.0, "step": 0, "epoch": 0.0, "config": config.for_record()}
        run.journal.append(start)
        for step in (10, 20):
            run.journal.append(evaluation_line(config, step, {"FD-digits": 30 / step}, 1.0, 1e9))
        run.mark_done(20, 1.0)
        plan = write_plan(folder, sweep)
        for path in (folder / "sweeps").glob("*.json"):
            path.unlink()
        files.write_json(folder / "sweeps" / "injection_level-digits.json", plan | {"sha256": digest(plan)})

    def table(self, folder):
        return [(results.cells, results.records) for results in read_journals(folder)]

    def planned(self, folder):
        plan = self.make_plan(folder)
        plan.write()

    def make_plan(self, folder):
        settings = [f"machine.runs={folder}"]
        file = ROOT / "sweeps" / "injection_level.yaml"
        return make_plan(file, seeds=[0], only=["baseline"], settings=settings)

    def kept_cells(self, folder):
        return [cell.fingerprint for cell in self.make_plan(folder).kept], self.make_plan(folder).content()

    def trained(self, folder):
        source = self.make_config().run_path
        shutil.copytree(source, folder / source.name)

    def sampled_from(self, folder):
        loaded = load_for_sampling(RunFolder(folder / self.make_config().run_path.name), "ema", CPU)
        return loaded.config.model_dump_json(exclude={"machine"}), loaded.step

    # images and other files

    def images(self, folder):
        writer = NpzWriter(folder / "x.npz", 20)
        writer.add(noise(20), np.arange(20) % 10)
        writer.close()

    def read_images(self, folder):
        images = NpzImages(folder / "x.npz")
        labels = images.labels
        return [part.tolist() for part in parts(images)], None if labels is None else labels.tolist()

    def frozen(self, folder):
        freeze(read_jsonl([RECORDS])[0], folder / "records.jsonl")

    def thawed(self, folder):
        (results,) = read_jsonl([folder / "records.jsonl"])
        return results.cells, results.records

    def measured(self, folder):
        files.write_json(
            folder / "train.json", {"rounds": 1, "machine": {"gpu": None, "cpu": "x"}, "rows": [{"a": 1}]}
        )

    def rows(self, folder):
        return read_rows(folder)

    def training(self, folder):
        state = {"model": {"w": torch.arange(40) / 7}, "done": 3, "seconds": 1.5}
        write_torch(folder / "state.pt", state | {SHA256: content_sha256(state)})

    def trained_on(self, folder):
        class Loads:
            def __getattr__(self, name):
                return lambda state: found.append(state["w"].tolist())

        found: list[Any] = []
        training = Training.__new__(Training)
        training.model = Loads()
        with suppress(AttributeError):  # the small state ends here
            training.load(folder / "state.pt")
        return found


def is_earlier(found, whole):
    """A checkpoint that was passed over."""
    return found is not None and found[0] < whole[0]


def lacks_lines(found, whole):
    return len(found) < len(whole) and all(line in whole for line in found)


def lacks_records(found, whole):
    """A plan or records that were left out, or a run that is not known to have ended."""
    records = [record for _, records in whole for record in records]
    return all(record in records for _, each in found for record in each)


def kinds(makers: Makers) -> dict[str, Kept]:
    m = makers
    return {
        "checkpoints": Kept(m.checkpoints, m.newest, ("checkpoints/step_00000002/*",), is_earlier),
        "kept EMA": Kept(m.kept_weights, m.weights),
        "teacher cache": Kept(m.teacher, m.taught, ("cache/*/*",)),
        "reference cache": Kept(m.reference, m.moments, ("cache/*/*",)),
        "reference file": Kept(m.own_reference, m.own_moments),
        "begun feature cache": Kept(m.begun_features, m.features, ("features.npy", "mark.json")),
        "codes": Kept(m.shards, m.read_codes, ("codes/*/train/**/*",)),
        "digests of images": Kept(m.digests, m.hashed, ("cache/*",)),
        "resumed journal": Kept(m.journal, m.resumed, others=lacks_lines),
        "run and plan": Kept(m.run, m.table, ("*/*.json*",), lacks_records),
        "plan of a sweep": Kept(m.planned, m.kept_cells, ("sweeps/*.json",)),
        "run for sampling": Kept(m.trained, m.sampled_from, ("*/config.json", "*/journal.jsonl")),
        "images": Kept(m.images, m.read_images),
        "measured speed": Kept(m.measured, m.rows),
        "state of a tokenizer": Kept(m.training, m.trained_on),
        "frozen records": Kept(m.frozen, m.thawed),
    }


NAMES = list(kinds(Makers.__new__(Makers)))
# Text that is under version control and may be edited: it has no checksum, and must only be no
# traceback.
WITHOUT_CHECKSUM = ("frozen records", "measured speed")


@pytest.fixture
def quickly_made(monkeypatch):
    """What a damaged cache is made again with: drawn, and not trained."""
    generator = torch.Generator()

    def drawn(module):
        module.init_weights(generator.manual_seed(0))
        return module

    monkeypatch.setattr(
        masked_tokens,
        "train_masked_tokens",
        lambda config, codes, device, seed: (drawn(masked_tokens.MaskedTokens(config)), 0.0),
    )


@pytest.mark.usefixtures("quickly_made")
@pytest.mark.parametrize(
    "number",
    [
        12,
        pytest.param(60, marks=pytest.mark.slow),  # 1 min
        pytest.param(600, marks=pytest.mark.nightly),  # 15 min
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_never_another_number_without_a_word(
    name, number, make_config, trained_run, shared_runs, tmp_path, capsys, figures, monkeypatch
):
    monkeypatch.setattr(listing, "WORTH_KEEPING", 1)
    monkeypatch.setattr(listing, "_places", lambda root, runs: (runs / "cache" / "digests",))
    monkeypatch.setattr("mirai_bench.foresight.encoders.feature_cache.BATCH_SIZE", 500)
    monkeypatch.setattr("mirai_bench.foresight.encoders.feature_cache.BATCHES_PER_MARK", 1)
    kept = kinds(Makers(make_config, tmp_path, shared_runs))[name]
    whole_folder = tmp_path / "whole"
    whole_folder.mkdir()
    kept.make(whole_folder)
    paths = sorted({path for pattern in kept.files for path in whole_folder.glob(pattern) if path.is_file()})
    paths = [path for path in paths if path.suffix != ".lock"]
    assert paths
    folder = tmp_path / "damaged"
    shutil.copytree(whole_folder, folder)
    whole = kept.read(folder)
    draw = random.Random(number)
    ends: Counter[str] = Counter()
    for turn in range(number):
        shutil.rmtree(folder)
        shutil.copytree(whole_folder, folder)
        files._checked.clear()  # as in another process
        journals._warned.clear()
        path = folder / paths[turn % len(paths)].relative_to(whole_folder)
        how = draw.choice(DAMAGES)
        path.write_bytes(damage(path.read_bytes(), how, draw))
        capsys.readouterr()
        try:
            found = kept.read(folder)
        except UserError as error:
            assert 0 < len(str(error)) < 2000
            ends["a message"] += 1
            continue
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if json.dumps(found) == json.dumps(whole):
            ends["the same"] += 1
        elif name not in WITHOUT_CHECKSUM:
            assert kept.others(found, whole), f"{how} {path}: {found} instead of {whole}"
            assert "warning" in said, f"{how} {path}: without a word"
            ends["a warning"] += 1
        else:
            ends["another text"] += 1
    figures(f"{name}, {number} damages of {len(paths)} files: {dict(ends)}")
