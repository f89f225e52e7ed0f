"""Profiles of real images that a CPU trains: from the pixels to a few steps of every arm of the sweep."""

import numpy as np
import pytest

from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import load_sweep
from mirai_bench.data.prepare import main as prepare
from mirai_bench.tracking.journal import read_journal
from mirai_bench.train.__main__ import command as train
from mirai_bench.utils import cli
from tests.support.assets import asset

pytestmark = pytest.mark.slow

FILES = {"cifar10_cpu": "cifar10.npz", "fashion_mnist": "fashion_mnist.npz"}
VGG16, EFFICIENTNET = "vgg16_features.pt", "efficientnet_lite0.pth"
SWEEP = SWEEPS / "real_images.yaml"
ARMS = list(dict.fromkeys(cell.arm for cell in load_sweep(SWEEP).cells))
TEACHERS = {"efficientnet": EFFICIENTNET} | {arm: VGG16 for arm in ARMS if arm.startswith("vgg16")}
IMAGES, HELDOUT, BATCH, STEPS = 48, 8, 16, 3
FEW = [
    f"data.subset={IMAGES}",
    "train.epochs=1",
    f"train.batch_size={BATCH}",
    "evaluation={at: [1], protocol: none}",
    "machine={device: cpu, log_every: 1}",
]


@pytest.fixture(scope="module", params=FILES)
def prepared(request, tmp_path_factory):
    """A profile, and settings under which the first images of both splits are its prepared data."""
    profile = request.param
    folder = tmp_path_factory.mktemp(profile)
    with np.load(asset(FILES[profile]), allow_pickle=False) as arrays:
        parts = {name: arrays[name][: HELDOUT if name.endswith("test") else IMAGES] for name in arrays.files}
    np.savez(folder / FILES[profile], **parts)
    places = [f"machine.runs={folder / 'runs'}", f"machine.data={folder / FILES[profile]}"]
    words = [word for setting in (*FEW[:1], *places) for word in ("--set", setting)]
    assert cli.run(prepare, [profile, *words]) == 0
    return profile, [*FEW, *places]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_a_few_steps(prepared, arm):
    profile, settings = prepared
    if arm in TEACHERS:
        settings = [*settings, f"machine.assets={asset(TEACHERS[arm]).parent}"]
    (cell,) = load_sweep(SWEEP, profile=profile, seeds=[0], only=[arm], settings=settings).cells
    folder = cell.config.run_path
    file = folder.parent / f"{arm}.json"
    file.write_text(cell.config.model_dump_json())
    assert cli.run(train, [str(file)]) == 0
    lines = list(read_journal(folder / "journal.jsonl"))
    losses = [line for line in lines if line["kind"] == "train"]
    assert len(losses) == STEPS and all(np.isfinite(line["loss"]) for line in losses)
    assert (losses[-1]["foresight"] > 0) == (arm != "baseline")
    (evaluation,) = [line for line in lines if line["kind"] == "evaluation"]
    # After three steps the model knows next to nothing: the codes are about equally likely.
    assert 0.7 < evaluation["metrics"]["heldout_ntp"] / np.log(cell.config.tokenizer.vocabulary) < 1.1
