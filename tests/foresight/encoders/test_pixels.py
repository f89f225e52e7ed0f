"""Image encoders as teachers: shapes, matching grids, context masks and weight files.

The weights are random, so nothing is downloaded.
"""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from mirai_bench.data.images import vgg16
from mirai_bench.data.images.colors import IMAGENET
from mirai_bench.foresight.encoders.build import block_causal_mask
from mirai_bench.foresight.encoders.pixels import PixelEncoder, stage_for, with_prefix
from mirai_bench.foresight.encoders.zoo import PIXEL_ENTRIES, create_network
from mirai_bench.model.encoder_cost import encoder_flops, encoder_parameters
from mirai_bench.utils.errors import UserError
from tests.support.assets import asset
from tests.support.image_encoders import make_shallow

pytest.importorskip("timm", reason="needs the optional extra: pip install -e '.[encoders]'")


CPU = torch.device("cpu")
WIDTHS = {"s": 384, "b": 768, "l": 1024}


def random_images(count, size, seed=0):
    return torch.randint(
        256, (count, size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def nudge(model):
    """Random tables and norms, so that a test sees what they do (several are initialised to zero or one)."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("pixels", [256, 384])
@pytest.mark.parametrize("name", PIXEL_ENTRIES)
def test_every_entry_has_one_feature_a_token(name, pixels):
    """At full depth on the meta device: shapes without arithmetic."""
    grid, meta = pixels // 16, torch.device("meta")
    with meta:
        encoder = PixelEncoder(name, (grid, grid), meta, weights="random")
        features = encoder.features(torch.empty(2, pixels, pixels, 3, dtype=torch.uint8))
    assert (
        features.shape == (2, grid * grid, encoder.width)
        and features.dtype == torch.float32
        and not features.requires_grad
    )
    assert not any(p.requires_grad for p in encoder.model.parameters()) and not encoder.model.training
    if encoder.entry.patch:
        assert encoder.size == grid * encoder.entry.patch
        assert (
            encoder.size == {14: {256: 224, 384: 336}, 16: {256: 256, 384: 384}}[encoder.entry.patch][pixels]
        )
        assert encoder.width == WIDTHS[name.split("_")[1]]
    else:
        expected = {"efficientnet_lite0": (pixels, 112), "vgg16_relu3_3": (4 * grid, 256)}
        assert (encoder.size, encoder.width) == expected[name]
    with meta, FlopCounterMode(display=False) as counted:
        encoder.features(torch.empty(1, pixels, pixels, 3, dtype=torch.uint8))
    assert encoder_flops(name, grid) == pytest.approx(counted.get_total_flops(), rel=1e-4)


@pytest.mark.parametrize("name", ["mae_b", "mae_l", "dinov3_s"])
def test_features_of_an_earlier_block(name):
    """The later blocks are not there, so they cost nothing; the grid of 4x4 keeps the test short."""
    meta = torch.device("meta")
    with meta:
        encoder = PixelEncoder(name, (4, 4), meta, weights="random", layer="8/12")
    blocks = len(encoder.model.blocks)
    assert blocks == {"mae_b": 8, "mae_l": 16, "dinov3_s": 8}[name]
    with meta, FlopCounterMode(display=False) as counted:
        encoder.features(torch.empty(1, 64, 64, 3, dtype=torch.uint8))
    assert encoder_flops(name, 4, "8/12") == pytest.approx(counted.get_total_flops(), rel=1e-4)
    there = sum(parameter.numel() for parameter in encoder.model.parameters())
    assert encoder_parameters(name, "8/12") == pytest.approx(there, rel=0.05)


def test_features_of_a_block_are_before_the_final_norm(monkeypatch):
    make_shallow(monkeypatch, 3)
    encoder = PixelEncoder("mae_b", (4, 4), CPU, weights="random", layer=2)
    nudge(encoder.model)
    whole = create_network(PIXEL_ENTRIES["mae_b"], 64, "random")
    whole.load_state_dict(encoder.model.state_dict(), strict=False)
    images = random_images(2, 64)
    (expected,) = whole.forward_intermediates(
        encoder.prepare(images), indices=[1], norm=False, intermediates_only=True, output_fmt="NLC"
    )
    torch.testing.assert_close(encoder.features(images), expected)


def test_a_block_that_is_not_there_is_refused(monkeypatch):
    make_shallow(monkeypatch, 1)
    with pytest.raises(UserError, match=r"encoder\.layer of mae_b: layer 9 is outside"):
        PixelEncoder("mae_b", (4, 4), CPU, weights="random", layer=9)
    with pytest.raises(UserError, match="convolutional: choose a ViT"):
        PixelEncoder("efficientnet_lite0", (8, 8), CPU, weights="random", layer=9)


def test_features_are_the_patch_tokens_after_the_final_norm(monkeypatch):
    make_shallow(monkeypatch, 1)
    encoder = PixelEncoder("dinov2_s_reg", (4, 4), CPU, weights="random")
    images = random_images(2, 56)
    states = encoder.model.forward_features(encoder.prepare(images))
    assert encoder.model.num_prefix_tokens == 5 and states.shape == (2, 5 + 16, 384)
    assert torch.equal(encoder.features(images), states[:, 5:])


@pytest.mark.parametrize("name", ["dinov2_s", "dinov3_s"])
def test_a_feature_stands_at_its_own_cell(name, monkeypatch):
    """Changing the pixels of one cell changes its own feature most."""
    make_shallow(monkeypatch, 1)
    encoder = PixelEncoder(name, (16, 16), CPU, weights="random")
    images = random_images(1, 256)
    other = images.clone()
    other[:, 5 * 16 : 6 * 16, 9 * 16 : 10 * 16] = 255 - other[:, 5 * 16 : 6 * 16, 9 * 16 : 10 * 16]
    change = (encoder.features(images) - encoder.features(other)).norm(dim=-1)[0]
    assert change.argmax() == 5 * 16 + 9


@pytest.mark.parametrize("name", ["dinov2_s_reg", "dinov3_s", "clip_b"])
def test_block_causal_features_do_not_see_later_blocks(name, monkeypatch):
    """Pixels of a later block change nothing before it, though two blocks of class and register
    tokens could carry them."""
    patch = PIXEL_ENTRIES[name].patch
    images = random_images(1, 8 * patch)  # no resizing: the cut is exact
    other = images.clone()
    row, column = divmod(44, 8)
    other[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 0
    make_shallow(monkeypatch, 2)
    encoder = PixelEncoder(name, (8, 8), CPU, weights="random", cells=block_causal_mask(64, 8, CPU))
    nudge(encoder.model)
    assert encoder.mask.equal(with_prefix(block_causal_mask(64, 8, CPU), encoder.model.num_prefix_tokens))
    for block in (1, 8, 24, None):
        encoder.mask = block and with_prefix(
            block_causal_mask(64, block, CPU), encoder.model.num_prefix_tokens
        )
        change = (encoder.features(images) - encoder.features(other)).abs().amax((0, 2))
        first = 0 if block is None else 44 // block * block
        assert (change[:first] == 0).all() and (change[first:] > 0).all(), block


def test_a_convolutional_encoder_refuses_a_cut_context():
    with pytest.raises(UserError, match="no attention to mask"):
        PixelEncoder("efficientnet_lite0", (8, 8), CPU, weights="random", cells=block_causal_mask(64, 8, CPU))


@pytest.mark.parametrize(("grid", "size"), [(4, 128), (8, 256), (16, 256), (24, 384), (32, 256)])
def test_a_convolutional_stage_is_the_deepest_that_fits(grid, size):
    reductions = [2, 4, 8, 16, 32]
    assert stage_for(PIXEL_ENTRIES["efficientnet_lite0"], grid, reductions) == (
        reductions.index(size // grid),
        size,
    )


def test_a_grid_that_fits_no_stage_is_refused():
    for grid in (2, 256):
        with pytest.raises(UserError, match=f"no stage for a {grid}x{grid} token grid"):
            PixelEncoder("efficientnet_lite0", (grid, grid), CPU, weights="random")


@pytest.mark.parametrize(("name", "grid"), [("timm:vit_tiny_patch16_224", 12), ("timm:resnet18", 4)])
def test_any_timm_model_with_a_spatial_output(name, grid):
    encoder = PixelEncoder(name, (grid, grid), CPU, weights="random")
    assert encoder.features(random_images(1, 32)).shape == (1, grid * grid, encoder.width)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vgg16_relu3_3"])
def test_random_weights_are_those_of_their_seed(name):
    """A run that resumes has the teacher that it began with, and its own generator goes on."""

    def weights(seed):
        return list(PixelEncoder(name, (8, 8), CPU, weights="random", seed=seed).model.parameters())

    torch.manual_seed(5)
    first = weights(3)
    after = torch.rand(1)
    again, other = weights(3), weights(4)
    torch.manual_seed(5)
    assert after == torch.rand(1), "the generator of the run was used"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_names_and_outputs_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        PixelEncoder("timm:resnet_18", (8, 8), CPU, weights="random")
    with pytest.raises(UserError, match="does not give 64 cells"):
        PixelEncoder("timm:mixer_s32_224", (8, 8), CPU, weights="random")


def test_preprocessing_by_hand(monkeypatch):
    make_shallow(monkeypatch, 1)
    encoder = PixelEncoder("dinov2_s", (1, 1), CPU, weights="random")
    white = encoder.prepare(torch.full((1, 14, 14, 3), 255, dtype=torch.uint8))
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    np.testing.assert_allclose(white[0, :, 3, 5].numpy(), expected, rtol=1e-6)
    assert encoder.prepare(random_images(1, 32)).shape == (1, 3, 14, 14)


def test_the_position_table_is_resampled_when_a_file_is_read(tmp_path, monkeypatch):
    make_shallow(monkeypatch, 1)
    large = create_network(PIXEL_ENTRIES["dinov2_s"], 518, "random")
    nudge(large)
    save_file(large.state_dict(), tmp_path / "weights.safetensors")
    encoder = PixelEncoder("dinov2_s", (16, 16), CPU, weights=tmp_path / "weights.safetensors")
    assert encoder.model.pos_embed.shape == (1, 257, 384) and large.pos_embed.shape == (1, 37 * 37 + 1, 384)
    assert torch.equal(encoder.model.pos_embed[:, 0], large.pos_embed[:, 0])
    assert torch.equal(encoder.model.blocks[0].attn.qkv.weight, large.blocks[0].attn.qkv.weight)


def test_weight_files_are_read_whole_or_refused(tmp_path, monkeypatch):
    make_shallow(monkeypatch, 1)
    network = create_network(PIXEL_ENTRIES["mae_b"], 224, "random")
    state = network.state_dict()
    torch.save(
        {"model": state | {"decoder_embed.weight": torch.zeros(3)}}, tmp_path / "mae.pth"
    )  # as its authors publish it
    encoder = PixelEncoder("mae_b", (14, 14), CPU, weights=tmp_path / "mae.pth")
    assert all(torch.equal(encoder.model.state_dict()[name], tensor) for name, tensor in state.items())
    lacking = {name: tensor for name, tensor in state.items() if name != "norm.weight"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(
        UserError, match=r"is not a weight file of vit_base_patch16_224: it lacks 1 tensors \(norm\.weight"
    ):
        PixelEncoder("mae_b", (14, 14), CPU, weights=tmp_path / "lacking.safetensors")
    with pytest.raises(UserError, match=r"is not a weight file of"):
        PixelEncoder("dinov2_s", (16, 16), CPU, weights=tmp_path / "mae.pth")


def vgg_state(layers):
    """Random weights by the names of torchvision's VGG16 .features."""
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            layer.to_empty(device="cpu").reset_parameters()
    return layers.state_dict()


@pytest.mark.parametrize(("pixels", "grid"), [(32, 8), (28, 7)])
def test_vgg16_sees_small_images_at_their_own_size(tmp_path, pixels, grid):
    layers = vgg16.build_layers()
    state = vgg_state(layers)
    torch.save(state | {"28.weight": torch.zeros(3)}, tmp_path / "all.pt")  # a later layer, not read
    torch.save(state, tmp_path / "first.pt")
    images = random_images(2, pixels)
    found = []
    for file in ("all.pt", "first.pt"):
        encoder = PixelEncoder("vgg16_relu3_3", (grid, grid), CPU, weights=tmp_path / file)
        assert (encoder.size, encoder.width) == (pixels, 256)
        found.append(encoder.features(images))
    x = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in IMAGENET)
    expected = layers((x - mean) / std).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(*found)
    with pytest.raises(UserError, match=r"torchvision's VGG16 \.features"):
        torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pt")
        PixelEncoder("vgg16_relu3_3", (grid, grid), CPU, weights=tmp_path / "other.pt")
    with pytest.raises(UserError, match="no attention to mask"):
        PixelEncoder("vgg16_relu3_3", (grid, grid), CPU, weights="random", cells=torch.ones(grid**2, grid**2))


def test_lite0_sees_28_pixels_on_7x7_cells():
    encoder = PixelEncoder("efficientnet_lite0", (7, 7), CPU, weights="random")
    grey = random_images(2, 28)[..., :1].expand(-1, -1, -1, 3)
    assert encoder.size == 224 and encoder.features(grey).shape == (2, 49, 320)


@pytest.mark.slow
def test_real_vgg16_features_stand_at_their_own_cells():
    folder = asset("vgg16_features.pt").parent
    encoder = PixelEncoder("vgg16_relu3_3", (8, 8), CPU, assets=folder)
    image = random_images(1, 32)
    other = image.clone()
    other[:, 20:24, 8:12] = 255 - other[:, 20:24, 8:12]
    change = (encoder.features(image) - encoder.features(other)).norm(dim=-1)[0]
    assert change.argmax() == 5 * 8 + 2


@pytest.mark.slow
def test_real_lite0_features_know_more_than_random_ones():
    """Nearest class mean on CIFAR-10, per image over cells."""
    folder = asset("efficientnet_lite0.pth").parent
    with np.load(asset("cifar10.npz")) as arrays:
        images, labels = (
            torch.from_numpy(arrays["x_train"][:400]),
            torch.from_numpy(arrays["y_train"][:400].reshape(-1)).long(),
        )
    scores = []
    for weights in (None, "random"):
        encoder = PixelEncoder("efficientnet_lite0", (8, 8), CPU, weights=weights, assets=folder)
        assert (encoder.size, encoder.width) == (256, 320)
        pooled = torch.cat([encoder.features(part).mean(1) for part in images.split(50)])
        means = torch.stack([pooled[:300][labels[:300] == label].mean(0) for label in range(10)])
        scores.append((torch.cdist(pooled[300:], means).argmin(1) == labels[300:]).float().mean().item())
    assert scores[0] > 0.55 and scores[0] > scores[1] + 0.2
    encoder, image = PixelEncoder("efficientnet_lite0", (16, 16), CPU, assets=folder), random_images(1, 256)
    other = image.clone()
    other[:, 80:96, 144:160] = 255 - other[:, 80:96, 144:160]
    change = (encoder.features(image) - encoder.features(other)).norm(dim=-1)[0]
    assert change.argmax() == 5 * 16 + 9  # a feature stands at its own cell


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[encoders\]'"):
        PixelEncoder("dinov2_b", (16, 16), CPU, weights="random")
