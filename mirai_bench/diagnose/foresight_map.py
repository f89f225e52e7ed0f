"""The foresight map: which cells of the image, past and future, can be read off the state of a cell?

For every offset (Δr, Δc) a linear probe reads the token at (r+Δr, c+Δc) off the state at cell (r, c), the
one that has just consumed it. Another one reads it off what that state has consumed: the class, and the
tokens of a window. Held-out bits that the first one gains over the second are foresight: the state has
worked out what is to come.

Letters: N images, T tokens, C = T - 1 cells, O offsets, D width, V codes, G groups of codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from mirai_bench.data.batch import Batch
from mirai_bench.data.tokenizers import load_tokenizer, tokenizer_identity
from mirai_bench.diagnose.diagnostic import Finding
from mirai_bench.diagnose.probes import BITS, Examples, fit_probes, losses, standardised
from mirai_bench.diagnose.subject import NotMeasurable, Subject
from mirai_bench.model.transformer import Grid
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import cached, write_json
from mirai_bench.utils.hashing import digest

MOST_CODES = 64  # more codes than these are merged into groups
GROUPS = 32
WINDOW = 3  # the most that the window reaches: a larger one has more inputs than the images can tell apart
MOST_EXAMPLES = 100_000  # of a probe, over all cells. On larger grids each image gives some of its cells.
PAST_SHARE = 4  # every fourth image is enough for past tokens, where differences are large
VERSION = 1  # is raised when the probes of visible tokens come out differently: they are cached

HEADLINE = {
    "future": "bits by which the middle layer's states know a future token better than the visible tokens "
    "do, on average over the offsets",
    "below": "the same bits about the token one row below",
}

Offset = tuple[int, int]  # rows down, columns to the right


def measure(subject: Subject) -> Finding:
    """Reads tokens off the states, layer by layer.

    detail: `offsets` [[Δr, Δc], …]; `base` [offset], held-out bits of the probe of visible tokens, 0 for a
    token that is among them; `state` [layer, offset], those of the probe of the state; `bits`
    [layer, offset], what is gained, base - state; `next_by_cell` and `below_by_cell` [layer, cell], what
    is gained about the token to the right and the one below of each cell, null where there is none;
    `codes` V, and `classes`, the number of groups that they were merged into, or V.
    """
    grid = subject.grid
    offsets = offsets_within(subject.scope.reach, grid)
    future = torch.tensor([is_future(offset) for offset in offsets])
    groups, vectors = code_groups(subject)
    classes = int(groups.max()) + 1
    # 1. Bits are summed over the images at each cell, (C, O), until they are shown.
    base = torch.zeros(grid[0] * grid[1] - 1, len(offsets))
    base[:, future] = cached_token_bits(subject, groups, vectors)
    counts = cells_at(offsets, grid)[1] * len(subject.heldout.tokens)  # (C, O)
    of_tokens = (groups[subject.fit.tokens], groups[subject.heldout.tokens])  # (N, T) each
    all_states = zip(subject.layers(subject.fit), subject.layers(subject.heldout), strict=True)
    values: dict[str, float] = {"classes": classes}
    detail: dict[str, Any] = {"offsets": [list(offset) for offset in offsets]}
    detail |= {"base": (base.sum(0) / counts.sum(0)).tolist()}
    detail |= {"codes": subject.config.tokenizer.vocabulary, "classes": classes}
    detail |= {"state": [], "bits": [], "next_by_cell": [], "below_by_cell": []}
    # 2. What the states of each layer know.
    for layer, (fit, heldout) in enumerate(all_states):
        state = state_bits(fit, heldout, of_tokens, classes, offsets, grid).cpu()
        gained = (base - state).sum(0) / counts.sum(0)  # (O,)
        detail["state"].append((state.sum(0) / counts.sum(0)).tolist())
        detail["bits"].append(gained.tolist())
        values[f"future@{layer}"] = gained[future].mean().item()
        values[f"past@{layer}"] = gained[~future].mean().item()
        for name, offset in (("next", (0, 1)), ("below", (1, 0))):
            which = offsets.index(offset)
            values[f"{name}@{layer}"] = gained[which].item()
            by_cell = (base - state)[:, which] / counts[:, which]  # NaN where there is no such cell
            shown = [None if math.isnan(bits) else bits for bits in by_cell.tolist()]
            detail[f"{name}_by_cell"].append(shown)
    values |= {name: values[f"{name}@{subject.middle}"] for name in HEADLINE}
    return Finding(values, detail)


# ---- offsets


def offsets_within(reach: int, grid: Grid) -> list[Offset]:
    """Returns the offsets of at most `reach` rows and columns that some cell has, in raster order."""
    steps = range(-reach, reach + 1)
    offsets = [(down, right) for down in steps for right in steps]
    found = cells_at(offsets, grid)[1].any(0).tolist()
    return [offset for offset, there in zip(offsets, found, strict=True) if there]


def is_future(offset: Offset) -> bool:
    """Tells whether the cell at this offset comes later in raster order."""
    return offset > (0, 0)


def cells_at(offsets: Sequence[Offset], grid: Grid) -> tuple[Tensor, Tensor]:
    """Returns the cell (C, O) at each offset of each cell, 0 where there is none, and whether there is."""
    height, width = grid
    cells = torch.arange(height * width - 1)[:, None]  # no state has consumed the last one
    down, right = torch.tensor(offsets).T  # (O,) each
    row = cells // width + down
    column = cells % width + right
    valid = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return torch.where(valid, row * width + column, 0), valid


def chosen_images(images: int, cells: int, device: torch.device) -> Tensor:
    """Returns which images each cell is looked at in, (C, n): all of them, unless these are too many."""
    every = -(-images * cells // MOST_EXAMPLES)
    first = -torch.arange(cells, device=device)[:, None] % every
    return first + every * torch.arange(images // every, device=device)


def examples_of(
    features: Tensor, images: Tensor, classes: Tensor, offsets: Sequence[Offset], grid: Grid
) -> Examples:
    """Returns the examples of probes at these offsets.

    features is (C, n, D), images (C, n) the image of each of them, and classes (N, T) those of the tokens.
    """
    index, valid = cells_at(offsets, grid)
    index, valid = index.to(classes.device), valid.to(classes.device)
    return Examples(features, classes[images[..., None], index[:, None]], valid)


# ---- states


def state_bits(
    fit: Tensor,
    heldout: Tensor,
    of_tokens: tuple[Tensor, Tensor],
    num_classes: int,
    offsets: Sequence[Offset],
    grid: Grid,
) -> Tensor:
    """Returns the held-out bits (C, O), summed over images, of probes of the states (N, T, D) of a layer.

    `of_tokens` are the classes (N, T) of the tokens of the same images, to fit to and held out.
    """
    fit_classes, heldout_classes = of_tokens
    images = chosen_images(len(fit), fit.shape[1] - 1, fit.device)
    everywhere = all_images(heldout)
    # State s has just consumed cell s-1.
    at_cells = fit[:, 1:].transpose(0, 1).gather(1, images[..., None].expand(-1, -1, fit.shape[-1]))
    features, heldout_features = standardised(at_cells, heldout[:, 1:].transpose(0, 1), each=True)
    found = torch.zeros(len(images), len(offsets), device=fit.device)
    future = torch.tensor([is_future(offset) for offset in offsets])
    for which, share in ((future, 1), (~future, PAST_SHARE)):
        some = [offset for offset, chosen in zip(offsets, which, strict=True) if chosen]
        examples = examples_of(features[:, ::share], images[:, ::share], fit_classes, some, grid)
        rest = examples_of(heldout_features, everywhere, heldout_classes, some, grid)
        found[:, which] = losses(rest, fit_probes(examples, num_classes)) * BITS
    return found


def all_images(of: Tensor) -> Tensor:
    """Returns the images (C, N) of states or tokens (N, T, …) at every cell."""
    return torch.arange(len(of), device=of.device).expand(of.shape[1] - 1, -1)


# ---- visible tokens


def token_bits(
    fit: Batch, heldout: Batch, groups: Tensor, vectors: Tensor, reach: int, grid: Grid, num_labels: int
) -> Tensor:
    """Returns the held-out bits (C, O), summed over images, of probes of what each state has consumed.

    O are the future offsets within `reach`.
    """
    offsets = [offset for offset in offsets_within(reach, grid) if is_future(offset)]
    images = chosen_images(len(fit.tokens), fit.tokens.shape[1] - 1, fit.tokens.device)
    everywhere = all_images(heldout.tokens)
    inputs = (groups, vectors, min(reach, WINDOW), grid, num_labels)
    features, heldout_features = standardised(
        visible(fit, images, *inputs), visible(heldout, everywhere, *inputs), each=False
    )
    examples = examples_of(features, images, groups[fit.tokens], offsets, grid)
    rest = examples_of(heldout_features, everywhere, groups[heldout.tokens], offsets, grid)
    return losses(rest, fit_probes(examples, int(groups.max()) + 1)) * BITS


def visible(
    batch: Batch, images: Tensor, groups: Tensor, vectors: Tensor, reach: int, grid: Grid, num_labels: int
) -> Tensor:
    """Returns what the states at cells have consumed, as features (C, n, …) of the images (C, n).

    These are the one-hot class and, for each cell of the window that is not in the future, the one-hot
    group of its token and the token's vector. Outside of the grid they are zero.
    """
    offsets = [offset for offset in offsets_within(reach, grid) if not is_future(offset)]
    index, valid = cells_at(offsets, grid)  # (C, O)
    index, valid = index.to(images.device), valid.to(images.device)
    tokens = batch.tokens[images[..., None], index[:, None]]  # (C, n, O)
    there = valid[:, None, :, None].float().expand(*tokens.shape, 1)
    num_groups = int(groups.max()) + 1
    one_hot = there.new_zeros(*tokens.shape, num_groups).scatter_(3, groups[tokens][..., None], there)
    of_class = F.one_hot(batch.labels, num_labels).float()[images]
    parts = [of_class, one_hot.flatten(2), (vectors[tokens] * there).flatten(2)]
    return torch.cat(parts, -1)


def cached_token_bits(subject: Subject, groups: Tensor, vectors: Tensor) -> Tensor:
    """Returns `token_bits` of the images of a subject, which are computed once for all runs on them."""
    config = subject.config
    reach = subject.scope.reach

    def build(folder: Path) -> None:
        batches = (subject.fit, subject.heldout)
        found = token_bits(*batches, groups, vectors, reach, subject.grid, config.data.classes)
        write_json(folder / "bits.json", found.tolist())

    what = [VERSION, subject.scope.model_dump(mode="json"), config.data.model_dump(mode="json")]
    what += [tokenizer_identity(config), subject.codes.manifest["dataset"]]
    folder = cached(config.machine.runs / "cache" / f"visible-{digest(what)}", build)
    return torch.tensor(json.loads((folder / "bits.json").read_bytes()))


# ---- codes


def code_groups(subject: Subject) -> tuple[Tensor, Tensor]:
    """Returns the group (V,) of each code, and what a probe sees of it besides, (V, Z).

    Of few codes each is a group of its own, and there is nothing else to see. Of many, the codebook's
    vectors are clustered, weighted by how often the codes are used, and the vectors are seen.
    """
    vocabulary = subject.config.tokenizer.vocabulary
    if vocabulary <= MOST_CODES:
        codes = torch.arange(vocabulary, device=subject.device)
        return codes, torch.zeros(vocabulary, 0, device=subject.device)
    try:
        codebook = load_tokenizer(subject.config, subject.device).codebook.cpu()
    except UserError as error:
        raise NotMeasurable(f"its many codes cannot be merged into groups: {error}") from None
    uses = 1 + subject.fit.tokens.flatten().bincount(minlength=vocabulary).cpu()
    means = KMeans(GROUPS, n_init=1, random_state=0).fit(codebook.double(), sample_weight=uses.double())
    groups = torch.from_numpy(means.labels_).long()
    vectors = (codebook - codebook.mean(0)) / codebook.std()
    return groups.to(subject.device), vectors.to(subject.device)
