"""ForesightLoss in a trainer that knows nothing of this project."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirai_bench import ForesightLoss, UserError

SIDE = 4
TOKENS = SIDE * SIDE
CODES = 8
WIDTH = 32


class SomebodysBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, WIDTH // 2)).unbind(2)
        heads = [part.transpose(1, 2) for part in (q, k, v)]
        x = x + self.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class SomebodysGenerator(nn.Module):
    """LlamaGen's sequence: the class, and then every token but the last."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Embedding(3, WIDTH)
        self.tokens = nn.Embedding(CODES, WIDTH)
        self.positions = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(SomebodysBlock() for _ in range(3))
        self.head = nn.Linear(WIDTH, CODES)

    def forward(self, tokens, labels):
        x = torch.cat([self.classes(labels)[:, None], self.tokens(tokens[:, :-1])], 1) + self.positions
        streams = []
        for block in self.blocks:
            x = block(x)
            streams.append(x)
        return self.head(x), streams[1]


def batch(generator):
    """Stripes: a row of one code each, so that later cells can be foreseen."""
    rows = torch.randint(CODES, (16, SIDE), generator=generator)
    return rows.repeat_interleave(SIDE, 1), rows[:, 0] % 3


def train(steps, weight, seed=0, **options):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SomebodysGenerator()
    ema = copy.deepcopy(model).requires_grad_(False)
    foresight = ForesightLoss(width=WIDTH, grid=(SIDE, SIDE), projector_hidden=64, **options)
    optimizer = torch.optim.AdamW([*model.parameters(), *foresight.parameters()], lr=3e-3)
    losses = []
    for _ in range(steps):
        tokens, labels = batch(generator)
        logits, hidden = model(tokens, labels)
        features = ema(tokens, labels)[1]
        aligned = foresight(hidden, features)
        ntp = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        (ntp + weight * aligned).backward()
        optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
                average.lerp_(parameter, 0.05)
        losses.append((ntp.item(), aligned.item()))
    return model, losses


def test_it_trains_in_another_trainer_and_reaches_the_model():
    model, losses = train(60, weight=2.0)
    plain, without = train(60, weight=0.0)
    assert losses[0][1] != pytest.approx(1.0, abs=1e-3), "projectors of zeros would give exactly 1"
    assert losses[-1][1] < 0.5 * losses[0][1]
    assert losses[-1][0] < losses[0][0], "next-token prediction is learned beside it"
    assert losses[-1][1] < without[-1][1] - 0.1, "without a gradient it would stay where it is"
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)]
    assert any(changed)


def test_it_is_a_function_of_the_seed():
    hidden, features = torch.randn(2, 2, TOKENS, WIDTH)
    one, same, other = (ForesightLoss(WIDTH, (SIDE, SIDE), seed=seed)(hidden, features) for seed in (1, 1, 2))
    assert one == same != other


def test_the_gradient_reaches_the_states_and_never_the_features():
    hidden, features = (torch.randn(2, TOKENS, WIDTH, requires_grad=True) for _ in range(2))
    ForesightLoss(WIDTH, (SIDE, SIDE))(hidden, features).backward()
    assert hidden.grad.abs().sum() > 0 and features.grad is None


@pytest.mark.parametrize(
    "options",
    [
        {"explicit": False, "source_width": 5, "k": 1},
        {"layout": "raster_1d", "pairing": "predicting", "reduce": "sum"},
        {"projector": "conv", "own_cell": False, "k": 2},
        {"pooled": True, "loss": "smooth_l1", "target_norm": "z_score"},
    ],
)
def test_its_options_are_those_of_the_project(options):
    loss = ForesightLoss(WIDTH, (SIDE, SIDE), **options)
    features = torch.randn(2, TOKENS, options.get("source_width", WIDTH))
    assert loss(torch.randn(2, TOKENS, WIDTH), features).isfinite()


def test_it_equals_the_loss_of_a_run(make_config):
    """The same projectors and states give what the trainer of the project computes."""
    from mirai_bench.model.transformer import States
    from tests.support.objectives import assemble

    config, objective, _, images = assemble(make_config, {"level": "internal", "k": 3})
    level = objective.foresight
    reading = objective.regularizer.read(
        objective.model, objective.regularizer.prepare(images, None), images.labels, (level.tap,)
    )
    states = States(reading.streams[level.tap], reading.final)
    hidden = config.foresight.projector.hidden
    loss = ForesightLoss(config.model.width, config.grid, k=3, projector_hidden=hidden)
    loss.alignment.load_state_dict(level.state_dict())
    wanted = level(states, images, images.labels)
    assert torch.equal(loss(states.hidden, level.source(images, images.labels)), wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "grid2d"}, "Did you mean 'grid_2d'"),
        ({"k": 17}, "has 16 cells"),
        ({"explicit": False, "class_token": True}, "write class_token: false"),
        ({"k": "3"}, "k is '3': write a whole number, 1 or more"),
        ({"k": True}, "k is True"),
        ({"own_cell": False, "k": 16}, "has 16 cells"),
        ({"seed": None}, "seed is None: write a whole number, 0 or more"),
        ({"source_width": 0}, "source_width is 0"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError, match=words):
        ForesightLoss(WIDTH, (SIDE, SIDE), **options)


@pytest.mark.parametrize("width", [-1, 0, 8.5, "8", None])
def test_wrong_widths_are_named(width):
    with pytest.raises(UserError, match=f"width is {width!r}: write a whole number, 1 or more"):
        ForesightLoss(width, (SIDE, SIDE))


@pytest.mark.parametrize("grid", [4, (4,), (4, 4, 4), None, (4, 0), (4, "4")])
def test_wrong_grids_are_named(grid):
    with pytest.raises(UserError, match=r"ForesightLoss: grid(\[1\])? is "):
        ForesightLoss(WIDTH, grid)


def test_numbers_of_numpy_are_numbers():
    assert ForesightLoss(np.int64(WIDTH), np.array([SIDE, SIDE])).cells == TOKENS


@pytest.mark.parametrize(
    ("hidden", "features", "words"),
    [
        ((2, 16, WIDTH), (2, 17, WIDTH), r"features has the shape \(2, 17, 32\): write \(2, 16, 32\)"),
        ((4, 16, WIDTH), (1, 16, WIDTH), r"features has the shape \(1, 16, 32\): write \(4, 16, 32\)"),
        ((4, 16, WIDTH), (3, 16, WIDTH), r"features has the shape \(3, 16, 32\): write \(4, 16, 32\)"),
        ((4, 16, WIDTH), (4, 16, 8), r"features has the shape \(4, 16, 8\): write \(4, 16, 32\)"),
        ((4, 16, 8), (4, 16, WIDTH), r"hidden has the shape \(4, 16, 8\): write \(4, 16, 32\)"),
        ((16, WIDTH), (16, WIDTH), r"hidden has the shape \(16, 32\)"),
    ],
)
def test_other_shapes_are_refused(hidden, features, words):
    with pytest.raises(UserError, match=words):
        ForesightLoss(WIDTH, (SIDE, SIDE))(torch.randn(hidden), torch.randn(features))
