"""The list of image encoders agrees with timm, and the weight file of EfficientNet-lite0 is found
and renamed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mirai_bench.data.images import vgg16
from mirai_bench.foresight.encoders.build import ENCODERS
from mirai_bench.foresight.encoders.zoo import (
    LITE0_STAGES,
    PIXEL_ENTRIES,
    entry_of,
    find_weights,
    official_lite0,
)
from mirai_bench.utils.errors import UserError

pytest.importorskip("timm", reason="needs the optional extra: pip install -e '.[encoders]'")


@pytest.mark.parametrize("name", PIXEL_ENTRIES)
def test_the_entrys_facts_are_timms(name):
    entry, found = PIXEL_ENTRIES[name], entry_of(f"timm:{PIXEL_ENTRIES[name].timm}")
    assert (entry.timm, entry.patch, entry.trained_size, entry.interpolation) == (
        found.timm, found.patch, found.trained_size, found.interpolation,
    )  # fmt: skip
    assert entry.mean_std == found.mean_std


def test_encoders_and_entries_are_one_list():
    assert set(ENCODERS) == {"masked_tokens", *PIXEL_ENTRIES}


def foreign_lite0(state):
    """timm's state dict under the names of PyPI's package, written down apart from the mapping under test."""
    names = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    starts = np.cumsum([0, *LITE0_STAGES])
    foreign = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            flat = starts[int(parts[1])] + int(parts[2])
            order = (
                ["conv_dw", "bn1", "conv_pw", "bn2"]
                if flat == 0
                else ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            )
            theirs = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            theirs = theirs if flat == 0 else ["_expand_conv", "_bn0", *theirs]
            foreign[f"_blocks.{flat}.{theirs[order.index(parts[3])]}.{parts[4]}"] = tensor
        else:
            foreign[f"{names[parts[0]]}.{parts[1]}"] = tensor
    return foreign


def test_lite0_reads_the_other_packages_names():
    import timm

    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    renamed = official_lite0(foreign_lite0(state))
    assert renamed.keys() == state.keys() and all(torch.equal(renamed[name], state[name]) for name in state)
    assert official_lite0(state) is state


def test_lite0s_file_is_looked_for_and_checked(tmp_path):
    entry = PIXEL_ENTRIES["efficientnet_lite0"]
    for assets in (None, tmp_path):
        with pytest.raises(UserError, match="are not found"):
            find_weights("efficientnet_lite0", entry, None, assets)
    (tmp_path / entry.file).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the file"):
        find_weights("efficientnet_lite0", entry, None, tmp_path)
    assert find_weights("efficientnet_lite0", entry, tmp_path / "mine.pth", None) == tmp_path / "mine.pth"


def test_vgg16s_file_is_known_by_its_tensors(tmp_path, monkeypatch):
    entry = PIXEL_ENTRIES["vgg16_relu3_3"]
    state = {name: torch.ones(value.shape) for name, value in vgg16.build_layers().state_dict().items()}
    torch.save(state, tmp_path / entry.file)
    with pytest.raises(UserError, match="is not the file that vgg16_relu3_3 means"):
        find_weights("vgg16_relu3_3", entry, None, tmp_path)
    known = replace(entry, sha256=vgg16.weights_sha256(state))
    assert find_weights("vgg16_relu3_3", known, None, tmp_path) == tmp_path / entry.file
    (tmp_path / entry.file).write_bytes(b"something else")
    with pytest.raises(UserError, match="was not read"):
        find_weights("vgg16_relu3_3", entry, None, tmp_path)
