"""CIFAR-10 for real, on a CPU: codes of the shipped tokenizer, and 200 steps of every arm of the
three axes on a tiny model."""

import json

import numpy as np
import pytest
import torch

from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.data.prepare import main as prepare
from mirai_bench.data.tokenizers import load_tokenizer
from mirai_bench.tracking.journal import read_journal
from mirai_bench.train.__main__ import command as train
from mirai_bench.utils import cli
from tests.support.assets import asset
from tests.support.small_run import new_trainer

pytestmark = pytest.mark.slow

AXES = ("injection_level", "foresight_layout", "foresight_source")
STEPS, BATCH, IMAGES, HELDOUT = 200, 16, 400, 40
TINY = [
    "model={size: nano, depth: 3, width: 32, heads: 2}",
    "foresight.projector.hidden=32",
    f"train.epochs={STEPS * BATCH // IMAGES}",
    f"train.batch_size={BATCH}",
    "train.lr=0.004",
    f"evaluation.at=[{STEPS * BATCH // IMAGES}]",
    "evaluation.protocol={base: cifar10_10k, num_samples: 20, reference: heldout}",
    "machine.device=cpu",
]
MASKED_TOKENS = "foresight.encoder={name: masked_tokens, depth: 2, epochs: 2}"
PRETRAINED = "foresight.encoder={name: efficientnet_lite0, cache: true}"


def arms_of(axis):
    return load_sweep(SWEEPS / f"{axis}.yaml", profile="cifar10", seeds=[0]).cells


CELLS = {
    cell.fingerprint: (axis, cell.arm) for axis in reversed(AXES) for cell in arms_of(axis)
}  # an arm of two axes once
REAL_ENCODER = ["mirai-i-k1", "mirai-i-k3", "shuffled"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """--set values of a small CIFAR-10 whose codes are prepared: the first images of both splits."""
    folder = tmp_path_factory.mktemp("cifar10")
    with np.load(asset("cifar10.npz"), allow_pickle=False) as arrays:
        parts = {name: arrays[name][: HELDOUT if name.endswith("test") else IMAGES] for name in arrays.files}
    np.savez(folder / "cifar10.npz", **parts)
    places = [f"machine.runs={folder / 'runs'}", f"machine.data={folder / 'cifar10.npz'}"]
    places.append(f"data.subset={IMAGES}")
    assert cli.run(prepare, ["cifar10", *(part for place in places for part in ("--set", place))]) == 0
    return [*TINY, *places]


@pytest.fixture(scope="module")
def baseline(settings):
    """The baseline through the command, evaluation included: the frozen arms' teacher."""
    inception = asset("fid_inception.pt", "inception-2015-12-05.pt")
    options = [
        part for setting in (*settings, f"machine.assets={inception.parent}") for part in ("--set", setting)
    ]
    assert cli.run(train, ["cifar10", *options]) == 0
    return config_of("injection_level", "baseline", settings).run_path


def config_of(axis, arm, settings):
    (cell,) = load_sweep(
        SWEEPS / f"{axis}.yaml", profile="cifar10", seeds=[0], only=[arm], settings=settings
    ).cells
    return cell.config


def falls(values, by=0.0):
    """The mean of the last twenty is below the mean of the first twenty that are not zero."""
    values = [value for value in values if value]
    return np.isfinite(values).all() and np.mean(values[-20:]) < np.mean(values[:20]) - by


def check_training(config):
    trainer = new_trainer(config)
    assert trainer.total_steps == STEPS
    lines = [{name: float(value) for name, value in trainer.step(step).items()} for step in range(STEPS)]
    assert trainer.skipped == 0 and all(torch.isfinite(p).all() for p in trainer.objective.parameters())
    assert np.mean([line["ntp"] for line in lines[:5]]) == pytest.approx(np.log(1024), rel=0.05)
    assert falls([line["ntp"] for line in lines], by=0.1)
    assert config.foresight.level == "none" or falls([line["foresight"] for line in lines])


def test_codes_of_real_images_are_many_and_decode_to_them(settings):
    config = config_of("injection_level", "baseline", settings)
    trainer = new_trainer(config)
    tokens, labels = trainer.codes.all()
    assert tokens.shape == (IMAGES, 64) and len(tokens.unique()) > 900 and len(labels.unique()) == 10
    index = torch.arange(0, IMAGES, 4)
    originals = trainer.codes.pixels(index, torch.zeros_like(index)).float()
    decoded = load_tokenizer(config, trainer.device).decode(tokens[index]).float()
    psnr = 10 * torch.log10(255**2 / (decoded - originals).square().mean((1, 2, 3))).mean()
    assert 25 < psnr < 27  # 25.8 dB on the 10,000 test images


def test_the_command_trains_and_evaluates(baseline):
    lines = list(read_journal(baseline / "journal.jsonl"))
    (record,) = [line for line in lines if line["kind"] == "evaluation"]
    assert json.loads((baseline / "done.json").read_text())["step"] == STEPS == record["step"]
    assert record["extractor"]["name"] == "inception_2015" and record["reference"]["n"] == HELDOUT
    assert record["metrics"]["FID"] > 0 and 3 < record["metrics"]["heldout_ntp"] < np.log(1024)
    ntp = [line["ntp"] for line in lines if line["kind"] == "train"]
    assert ntp[-1] < ntp[0]


@pytest.mark.parametrize(("axis", "arm"), CELLS.values(), ids=["/".join(cell) for cell in CELLS.values()])
def test_every_arm_learns(axis, arm, settings, request):
    config = config_of(axis, arm, [*settings, MASKED_TOKENS])
    if config.foresight.source == "frozen":
        request.getfixturevalue("baseline")
    check_training(config)


@pytest.mark.parametrize("arm", REAL_ENCODER)
def test_mirai_i_learns_from_a_pretrained_encoder(arm, settings):
    pytest.importorskip("timm", reason="needs the optional extra: pip install -e '.[encoders]'")
    assets = asset("efficientnet_lite0.pth").parent
    config = config_of("foresight_source", arm, [*settings, PRETRAINED, f"machine.assets={assets}"])
    check_training(config)
    caches = [path for path in (config.machine.runs / "cache").glob("features-*") if path.is_dir()]
    assert len(caches) == 1  # all arms share it
