"""Weight files that cannot be read are one message, whatever is wrong with them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mirai_bench.checkpoint.official import read_official
from mirai_bench.data.images import vgg16
from mirai_bench.data.tokenizers import vq16, vq_small
from mirai_bench.evaluate.image_classifier import load_image_classifier
from mirai_bench.evaluate.networks import Dinov2
from mirai_bench.foresight.encoders.zoo import load_file_into
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import SHA256, content_sha256, load_into, read_tensors, write_safetensors
from tests.support.images import run_config


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x80\x02."])
@pytest.mark.parametrize(
    ("name", "message"),
    [("w.pt", "it needs pickle to run code, or is damaged"), ("w.safetensors", "is not a safetensors file")],
)
def test_a_damaged_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / name)


def test_an_error_without_a_message_is_refused_as_well(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise EOFError

    monkeypatch.setattr(torch, "load", fails)
    (tmp_path / "w.pth").touch()
    with pytest.raises(UserError, match="was not read"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"lacks 2 tensors \(bias, …\)"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "x": torch.ones(1)}, r"has 1 that .*\(x, …\)"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"weight is \(3, 2\)"),
        ({"x" * 9999: torch.ones(1)}, "lacks 2 tensors"),
    ],
)
def test_weights_of_another_network_are_refused_in_a_short_message(tmp_path, state, message):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message) as refused:
        load_into(torch.nn.Linear(3, 2), tmp_path / "w.safetensors")
    assert len(str(refused.value)) < 600


# ---- files of others: one message for a wrong one, whoever opens it


def vq_small_file(path, **sizes):
    usual = {"downsample": 4, "vocabulary": 16}
    save_file({"w": torch.ones(1)}, path, metadata={"sizes": json.dumps(usual | sizes)})


OPENERS = {
    "vq16": vq16.read_model,
    "vgg16": vgg16.read_weights,
    "image classifier": load_image_classifier,
    "timm": lambda path: load_file_into(timm_model(), path),
    "DINOv2": lambda path: Dinov2(path, "test_vit"),
    "official checkpoint": lambda path: read_official(path, run_config()),
    "run": lambda path: load_into(torch.nn.Linear(3, 2), path),
}
WRONG = {
    "nothing": {},
    "another network": {"layer.weight": torch.ones(2)},
    "no tensors": {"model": {"w": 3}, "output.bias": "x"},
    "a number for a tensor": {"output.bias": torch.ones(()), "0.weight": 1, "weight": torch.ones(2, 3)},
    "long names": {"x" * 9999: torch.ones(1)},
}


def timm_model():
    timm = pytest.importorskip("timm")
    return timm.create_model("test_vit", pretrained=False, num_classes=0)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("opener", OPENERS)
def test_a_wrong_file_of_weights_is_one_message_that_names_it(tmp_path, opener, wrong):
    if opener == "DINOv2":
        pytest.importorskip("timm")
    path = tmp_path / "w.pt"
    torch.save(WRONG[wrong], path)
    with pytest.raises(UserError, match=r"w\.pt") as refused:
        OPENERS[opener](path)
    assert len(str(refused.value)) < 800


@pytest.mark.parametrize(
    "sizes", [{"vocabulary": 10**12}, {"blocks": 10**9}, {"channels": -8}, {"x": 1}, {"blocks": "2"}]
)
def test_sizes_that_a_tokenizer_of_others_only_claims_take_no_memory(tmp_path, sizes):
    vq_small_file(tmp_path / "w.safetensors", **sizes)
    with pytest.raises(UserError, match=r"w\.safetensors is not a weight file"):
        vq_small.read_model(tmp_path / "w.safetensors")


def test_tensors_with_a_checksum_that_differ_are_refused(tmp_path):
    tensors = {"w": torch.arange(6.0), "v": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "w.safetensors"
    write_safetensors(path, tensors, {SHA256: content_sha256(tensors)})
    assert read_tensors(path).keys() == tensors.keys()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_tensors(path)


def test_a_checksum_sees_values_types_and_names():
    same = content_sha256({"a": [torch.ones(2), 1.5], "b": None})
    assert same == content_sha256({"b": None, "a": (torch.ones(2), 1.5)})
    others = [
        {"a": [torch.ones(2), 1.25], "b": None},
        {"a": [torch.ones(2).half(), 1.5], "b": None},
        {"a": [torch.zeros(2), 1.5], "b": None},
        {"c": [torch.ones(2), 1.5], "b": None},
    ]
    assert same not in map(content_sha256, others)
