"""Checkpoint files of LlamaGen and Mirai: names and shapes, strictness, the round trip."""

import json
import re

import pytest
import torch

from mirai_bench.checkpoint.__main__ import command
from mirai_bench.checkpoint.official import (
    EMA_KEYS,
    export_official,
    import_official,
    read_official,
    split_projectors,
    to_official,
)
from mirai_bench.checkpoint.store import load_latest, load_weights, unwrap
from mirai_bench.config.load import build_run, read_profile
from mirai_bench.config.model_config import ModelConfig
from mirai_bench.foresight.projector import Projector
from mirai_bench.model.transformer import ARModel, build_model
from mirai_bench.sample.sampler import load_for_sampling
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.errors import UserError
from tests.support.paths import FIXTURES
from tests.support.small_run import new_trainer

# Names and shapes of Mirai's GPT-B with three heads; without `projectors.` they are LlamaGen's
# c2i_B_256.pt.
MIRAI_B = json.loads((FIXTURES / "mirai_b_keys.json").read_text())
E_FIELDS = {"level": "internal", "k": 3, "projector": {"hidden": 24}}


def shrunk(config):
    """A state dict with Mirai's names, of random numbers. The fixture's sizes become the config's."""
    width, hidden = config.model.width, config.foresight.projector.hidden
    ffn = build_model(config).layers[0].feed_forward.w1.weight.shape[0]
    sizes = {
        768: width,
        2304: 3 * width,
        2048: ffn,
        16384: config.tokenizer.vocabulary,
        1001: config.data.classes + 1,
    }
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in MIRAI_B.items():
        layer = re.match(r"layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= config.model.depth:
            continue
        own = sizes | {2048: hidden} if name.startswith("projectors.") else sizes
        state[name] = torch.randn([own[size] for size in shape], generator=generator)
    return state


@pytest.fixture
def config(make_config):
    return make_config(foresight=E_FIELDS)


@pytest.fixture
def official_file(config, tmp_path):
    state = shrunk(config)
    ema = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "ema": ema, "steps": 5004}, tmp_path / "mirai.pt")
    return tmp_path / "mirai.pt"


def test_our_b_has_the_official_names_and_shapes():
    with torch.device("meta"):
        model = ARModel(ModelConfig(size="B"), 16384, 1000, (16, 16))
        projector = Projector(
            build_run(read_profile("imagenet256_b"), "test").foresight.projector, 3, 768, 768
        )
    ours = dict(model.state_dict()) | {
        f"foresight.projector.{name}": tensor for name, tensor in projector.state_dict().items()
    }
    assert {name: list(tensor.shape) for name, tensor in to_official(ours).items()} == MIRAI_B


def test_round_trip_of_names_values_and_logits(config, official_file, tmp_path):
    state = torch.load(official_file, weights_only=True)["model"]
    import_official(official_file, config, RunFolder(tmp_path / "run"))
    checkpoint = load_latest(RunFolder(tmp_path / "run"))
    assert checkpoint.state["step"] == 5004
    exported = export_official(RunFolder(tmp_path / "run"), tmp_path / "out.pt")
    again = torch.load(tmp_path / "out.pt", weights_only=True)
    assert again["model"].keys() == state.keys() == exported["model"].keys() and again["steps"] == 5004
    assert all(torch.equal(again["model"][name], state[name]) for name in state)
    tokens, labels = torch.randint(17, (2, 64)), torch.tensor([3, 10])
    before, after = build_model(config), build_model(config)
    before.load_state_dict(split_projectors(state)[0])
    after.load_state_dict(load_weights(tmp_path / "out.pt"))
    assert torch.equal(before(tokens, labels).logits, after(tokens, labels).logits)
    _, sampled, _, step = load_for_sampling(RunFolder(tmp_path / "run"), "ema", torch.device("cpu"))
    assert step == 5004 and torch.equal(sampled.norm.weight, state["norm.weight"] + 1)


def test_projectors_map_head_by_head(config):
    """Mirai's k-th Sequential(Linear, SiLU, Linear, SiLU, Linear) and our stack are one function."""
    state = shrunk(config)
    _, stacks = split_projectors(state)
    projector = Projector(config.foresight.projector, 3, 32, 32)
    projector.load_state_dict(stacks)
    hidden = torch.randn(2, 5, 32)
    for head, ours in enumerate(projector(hidden)):
        x = hidden
        for layer in (0, 2, 4):
            x = torch.nn.functional.silu(x) if layer else x
            x = torch.nn.functional.linear(
                x, state[f"projectors.{head}.{layer}.weight"], state[f"projectors.{head}.{layer}.bias"]
            )
        torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-3)


def test_a_shared_trunk_is_written_into_each_head(make_config):
    config = make_config(foresight=E_FIELDS | {"projector": {"hidden": 24, "shared_trunk": True}})
    projector = Projector(config.foresight.projector, 3, 32, 32)
    projector.init_weights(torch.Generator().manual_seed(0))
    official = to_official(
        {f"foresight.projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    )
    assert official.keys() == {name for name in MIRAI_B if name.startswith("projectors.")}
    assert torch.equal(official["projectors.2.0.weight"], official["projectors.0.0.weight"])
    assert not torch.equal(official["projectors.2.4.weight"], official["projectors.0.4.weight"])


@pytest.mark.parametrize("container", ["model", "module", "state_dict", None])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "_fsdp_wrapped_module.",
    ],
)
def test_wrappers_and_computed_buffers_are_taken_off(container, prefix):
    state = {"norm.weight": torch.ones(2)}
    wrapped = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    wrapped |= {"n_averaged": torch.tensor(7)}
    wrapped |= {"freqs_cis": torch.zeros(3), "layers.0.attention.kv_cache.k_cache": torch.zeros(3)}
    assert unwrap({container: wrapped, "steps": 3} if container else wrapped).keys() == state.keys()


def only_biases(state):
    """As many tensors as three layers have, but all of them biases."""
    for name in list(state):
        if name.startswith("projectors."):
            bias = state.pop(name)
            head, layer = name.split(".")[1:3]
            state[f"projectors.{head}.{layer}.bias"] = bias
            state[f"projectors.{head}.{int(layer) + 6}.bias"] = bias
    for name in list(state):
        if name.startswith("projectors."):
            state[name] = torch.zeros(24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.weight"), r"lacks 1 tensors \(norm\.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), r"has 1 that the model has not \(extra"),
        (
            lambda state: state.update({"norm.weight": torch.zeros(5)}),
            r"norm\.weight is \(5,\), but the model's is \(32,\)",
        ),
        (lambda state: state.pop("projectors.1.2.bias"), "projectors are incomplete"),
        (
            lambda state: state.update({"projectors.0.1": torch.zeros(1)}),
            r"projectors\.0\.1, which is no layer",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("projectors.2")],
            r"weights\.0 is \(2, 32, 24\)",
        ),
        (only_biases, r"lacks 3 tensors \(weights\.0"),
    ],
)
def test_files_that_do_not_fit_are_refused(config, tmp_path, change, message):
    state = shrunk(config)
    change(state)
    torch.save({"model": state}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=message):
        read_official(tmp_path / "bad.pt", config)


def test_without_an_ema_the_weights_stand_for_it_and_projectors_may_be_left_out(
    make_config, config, tmp_path, capsys
):
    torch.save({"model": shrunk(config)}, tmp_path / "file.pt")
    import_official(tmp_path / "file.pt", make_config(), RunFolder(tmp_path / "run"))
    checkpoint = load_latest(RunFolder(tmp_path / "run"))
    assert checkpoint.tensors["ema"].keys() == checkpoint.tensors["model"].keys()
    assert "projectors are left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds a run already"):
        import_official(tmp_path / "file.pt", make_config(), RunFolder(tmp_path / "run"))


@pytest.mark.parametrize("key", [*EMA_KEYS, None])
def test_the_ema_is_found_under_the_names_of_other_trainers_or_its_absence_is_said(
    config, tmp_path, capsys, key
):
    state = shrunk(config)
    ema = {name: tensor + 1 for name, tensor in state.items()}
    content = {"model": state, "steps": 3} | ({key: {"state_dict": ema}} if key else {})
    torch.save(content, tmp_path / "file.pt")
    import_official(tmp_path / "file.pt", config, RunFolder(tmp_path / "run"))
    checkpoint = load_latest(RunFolder(tmp_path / "run"))
    expected = state["norm.weight"] + (1 if key else 0)
    assert torch.equal(checkpoint.tensors["ema"]["norm.weight"], expected)
    assert checkpoint.state["ema_key"] == key
    assert ("has no EMA" in capsys.readouterr().err) == (key is None)


@pytest.mark.parametrize("steps", [-1, 2.5, "3", None, 2**40, torch.tensor(3)])
def test_steps_that_are_no_number_are_refused(config, tmp_path, steps):
    torch.save({"model": shrunk(config), "steps": steps}, tmp_path / "file.pt")
    with pytest.raises(UserError, match="steps is"):
        read_official(tmp_path / "file.pt", config)


def test_a_trained_run_is_exported(trained_run, tmp_path, capsys):
    assert command(["export", str(trained_run), str(tmp_path / "out.pt"), "--weights", "ema"]) == 0
    content, checkpoint = (
        torch.load(tmp_path / "out.pt", weights_only=True),
        load_latest(RunFolder(trained_run)),
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.pt")
    assert all(
        torch.equal(content["model"][name], tensor) for name, tensor in checkpoint.tensors["ema"].items()
    )


def test_a_trained_projector_is_exported_and_read_back(make_config, tmp_path):
    from mirai_bench.checkpoint.store import save_checkpoint

    config = make_config(foresight={"level": "internal", "k": 3})
    trainer = new_trainer(config)
    trainer.step(0)
    save_checkpoint(RunFolder(tmp_path / "run"), 1, trainer.checkpoint({}), keep=1)
    export_official(RunFolder(tmp_path / "run"), tmp_path / "out.pt")
    import_official(tmp_path / "out.pt", config, RunFolder(tmp_path / "back"))
    model, again = (load_latest(RunFolder(tmp_path / name)).tensors["model"] for name in ("run", "back"))
    assert model.keys() == again.keys() and all(torch.equal(model[name], again[name]) for name in model)


@pytest.mark.parametrize("kind", ["transformer", "conv"])
def test_heads_that_no_official_file_has_are_left_out(kind, make_config, tmp_path):
    from mirai_bench.checkpoint.store import save_checkpoint

    config = make_config(foresight={"level": "internal", "k": 2, "projector": {"kind": kind}})
    trainer = new_trainer(config)
    trainer.step(0)
    save_checkpoint(RunFolder(tmp_path / "run"), 1, trainer.checkpoint({}), keep=1)
    content = export_official(RunFolder(tmp_path / "run"), tmp_path / "out.pt")
    assert content["model"].keys() == content["ema"].keys()
