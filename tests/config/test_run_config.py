"""A run's configuration: what is refused, and what its fingerprint covers."""

import pytest

from mirai_bench.config.foresight import resolve_layer
from mirai_bench.config.load import build_run, load_run, merge, read_profile
from mirai_bench.config.run_config import SeedsConfig
from mirai_bench.utils.errors import UserError


def digits(**sections):
    return build_run(merge(read_profile("digits"), sections), "test")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"foresight": {"layr": 2}}, "Did you mean 'layer'"),
        ({"trian": {}}, "Did you mean 'train'"),
        ({"train": {"lr": "fast"}}, "train.lr is 'fast'"),
        ({"train": {"epochs": 0}}, "train.epochs is 0"),
        ({"train": {"lr": float("nan")}}, "train.lr is nan"),
        ({"model": {"size": "M"}}, "model.size is 'M', which is not one of nano"),
        ({"model": {"width": 66}}, "66 with 4 heads"),
        ({"model": {"kv_heads": 3}}, "kv_heads is 3, which does not divide model.heads = 4"),
        (
            {"foresight": {"level": "internal", "layer": 4}},
            "layer 4 is outside the model, which has 3 blocks: write 1 to 3",
        ),
        ({"foresight": {"level": "internal", "layer": "13/12"}}, "layer '13/12' is outside the model"),
        ({"foresight": {"level": "internal", "layer": "x"}}, "foresight.layer"),
        (
            {"foresight": {"level": "internal", "k": 65}},
            "k is 65, but the token grid has 8x8 = 64 cells: write k: 64 or less",
        ),
        (
            {"foresight": {"level": "internal", "k": 64, "own_cell": False}},
            "8x8 = 64 cells, and own_cell is false: write k: 63 or less",
        ),
        (
            {"foresight": {"level": "internal", "schedule": "two_steps", "second_step_at": 0.25}},
            "second_step_at is 0.25, before step_at: 0.5",
        ),
        (
            {"foresight": {"projector": {"kind": "conv", "shared_trunk": True}}},
            "shared_trunk is true with kind: conv",
        ),
        ({"foresight": {"encoder": {"layer": 2}}}, "encoder.layer is 2 with name: masked_tokens"),
        (
            {
                "foresight": {"level": "internal", "source": "shuffled"},
                "train": {"batch_size": 16},
                "machine": {"micro_batches": 16},
            },
            "a process has 1 of the 16 images at a time",
        ),
        ({"foresight": {"level": "output", "k": 1}}, "write k: 2 or more"),
        (
            {"foresight": {"level": "internal", "class_token": True, "pairing": "predicting"}},
            "write pairing: consumed",
        ),
        (
            {"foresight": {"level": "internal", "class_token": True, "source": "encoder"}},
            "source: encoder has no class-token state",
        ),
        (
            {"foresight": {"level": "internal", "source": "frozen", "teacher": "no/such"}},
            "teacher is 'no/such', which does not exist",
        ),
        ({"foresight": {"encoder": {"context": {"block_causal": 0}}}}, "block_causal"),
        ({"data": {"image_size": 9}, "tokenizer": {"downsample": 2}}, "image_size is 9, not a multiple"),
        ({"evaluation": {"at": [4, 2]}}, "write increasing epochs"),
        ({"evaluation": {"at": [2, 99]}}, "ends at epoch 99, after train.epochs"),
        ({"evaluation": {"protocol": "digts"}}, "Did you mean 'digits'"),
        ({"train": {"batch_size": 7}, "machine": {"micro_batches": 2}}, "batch_size is 7"),
        ({"machine": {"workers": 4, "gpus": 2}}, "write gpus: 4, or 0 on CPUs"),
        (
            {"foresight": {"encoder": {"weights": 3}}},
            "foresight.encoder.weights is 3: input is not a valid path",
        ),
        (
            {"foresight": {"encoder": {"weights": "random"}}},
            "weights is random with name: masked_tokens: write foresight.source: random instead",
        ),
        (
            {"foresight": {"encoder": {"name": "dinov2_b", "weights": "no/such"}}},
            "encoder.weights is 'no/such', which does not exist",
        ),
        (
            {"evaluation": {"at": [99]}, "train": {"batch_size": 7}, "machine": {"workers": 2}},
            "ends at epoch 99, after train.epochs",
        ),
    ],
)
def test_a_wrong_config_says_what_to_write(sections, message):
    with pytest.raises(UserError) as error:
        digits(**sections)
    assert message in str(error.value)


def fingerprint(change):
    return digits(**merge({"foresight": {"level": "internal"}}, change)).fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"machine": {"runs": "elsewhere", "threads": 2, "device": "cpu", "log_every": 1}},
        {"foresight": {"final_weight": 0.3}},
        {"foresight": {"teacher_seed": 5}},
        {"foresight": {"loss": "cosine", "pooled": False}},
        {"foresight": {"own_cell": True, "middle_weight": 0.3, "second_step_at": 0.9}},
        {"model": {"attention_dropout": 0}},
        {"foresight": {"projector": {"kind": "mlp"}, "encoder": {"layer": 3, "name": "mae_b"}}},
        {"data": {"crop_ranges": [1.05]}},
        {"profile": "other"},
    ],
)
def test_what_changes_no_number_is_not_in_the_fingerprint(change):
    assert fingerprint(change) == fingerprint({})


def test_at_the_output_the_own_cell_is_that_of_next_token_prediction():
    fields = {"level": "output", "k": 3}
    prints = {fingerprint({"foresight": fields | {"own_cell": own}}) for own in (True, False)}
    assert len(prints) == 1


def test_what_changes_a_number_is_in_the_fingerprint():
    changes = [
        {},
        {"seed": 1},
        {"train": {"lr": 1e-4}},
        {"foresight": {"k": 2}},
        {"foresight": {"pooled": True}},
        {"foresight": {"own_cell": False}},
        {"foresight": {"schedule": "two_steps"}},
        {"foresight": {"schedule": "two_steps", "middle_weight": 1.5}},
        {"foresight": {"schedule": "two_steps", "second_step_at": 0.9}},
        {"foresight": {"projector": {"kind": "transformer"}}},
        {"foresight": {"projector": {"kind": "conv"}}},
        {"foresight": {"projector": {"layers": 1}}},
        {"foresight": {"source": "encoder", "encoder": {"name": "mae_b"}}},
        {"foresight": {"source": "encoder", "encoder": {"name": "mae_b", "layer": "8/12"}}},
        {"model": {"attention_dropout": 0.1}},
        {"foresight": {"loss": "smooth_l1"}},
        {"foresight": {"target_norm": "z_score"}},
        {"foresight": {"pairing": "predicting"}},
        {"evaluation": {"protocol": {"base": "digits", "num_samples": 50}}},
        {"foresight": {"source": "random"}},
    ]
    assert len({fingerprint(change) for change in changes}) == len(changes)


# Of the shipped profiles, without foresight. They change with NUMERICS and with the tokenizer's weights
# that ship only: a new field that has no effect on a run is left out of its fingerprint.
FINGERPRINTS = {
    "cifar10": "ca4ada583656",
    "digits": "4fcbeef2b357",
    "digits_deep": "7ab668e033c1",
    "imagenet256_b": "ab1956aa85ed",
    "imagenet256_l": "727dc3ff32fb",
    "imagenet256_xl": "75a2512e12c8",
    "imagenet384_b": "0877d8ad2ad2",
}


@pytest.mark.parametrize("profile", FINGERPRINTS)
def test_fingerprints_of_shipped_profiles_do_not_change(profile):
    assert load_run(profile).fingerprint() == FINGERPRINTS[profile]


def test_seeds_of_single_sources():
    """What counts is the seed that each source has, and not how the file says it."""
    assert (
        digits(seed=3).fingerprint() == digits(seeds=dict.fromkeys(SeedsConfig.model_fields, 3)).fingerprint()
    )
    prints = {digits(seed=3, seeds={source: 4}).fingerprint() for source in SeedsConfig.model_fields}
    assert len(prints | {digits(seed=3).fingerprint(), digits(seed=4).fingerprint()}) == 6
    assert digits(seed=3, seeds={"order": 4}).seed_of("order") == 4


@pytest.mark.parametrize("primary", ["heldout_ntp", "recall"])
def test_the_metric_that_decides_changes_no_number(primary):
    assert digits(evaluation={"primary": primary}).fingerprint() == digits().fingerprint()


def test_fingerprint_of_a_file_is_its_content(tmp_path):
    prints = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        prints.append(
            digits(
                foresight={"level": "internal", "source": "frozen", "teacher": str(tmp_path / name)}
            ).fingerprint()
        )
    assert prints[0] == prints[1] != prints[2]


def test_a_file_may_have_the_name_of_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {"level": "internal", "source": "frozen", "teacher": "random"}
    prints = set()
    for content in (b"1", b"2"):
        (tmp_path / "random").write_bytes(content)
        prints.add(digits(foresight=fields).fingerprint())
    assert len(prints) == 2


def test_random_weights_of_an_encoder_are_a_word_and_not_a_file():
    encoder = {"name": "dinov2_b", "weights": "random"}
    config = digits(foresight={"level": "internal", "source": "encoder", "encoder": encoder})
    assert config.identity()["foresight"]["encoder"]["weights"] == "random"


def test_none_is_one_experiment_whatever_its_other_fields():
    assert (
        digits(foresight={"level": "none", "k": 9, "source": "encoder"}).fingerprint()
        == digits().fingerprint()
    )


@pytest.mark.parametrize(
    ("layer", "depth", "index"),
    [("8/12", 12, 8), ("8/12", 24, 16), ("8/12", 36, 24), ("8/12", 3, 2), (3, 3, 3), ("1/12", 3, 1)],
)
def test_layers_are_one_based_and_fractions_scale(layer, depth, index):
    assert resolve_layer(layer, depth) == index
