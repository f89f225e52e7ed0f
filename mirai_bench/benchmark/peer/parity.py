"""How far do this code and the official code differ, given the same weights and inputs?

    python -m mirai_bench.benchmark parity --peer ../Mirai

Both run in float32, without dropout and without dropped labels. The fields are those of the preset
`official: true` (config/official.py). The official losses are -cos where ours are 1 - cos: the
constant is added before comparing.

Letters: B images, T tokens, D width, K heads.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirai_bench.benchmark.peer.checkout import MiraiCode, load_peer
from mirai_bench.benchmark.peer.decoding import compare_sampling
from mirai_bench.benchmark.peer.pair import ParityOptions, ParityPair, Row, difference, largest
from mirai_bench.checkpoint.official import split_projectors, to_official
from mirai_bench.data.batch import Batch
from mirai_bench.foresight.encoders.pixels import PixelEncoder
from mirai_bench.foresight.level import InternalLevel
from mirai_bench.foresight.loss import cosine_loss
from mirai_bench.tracking import provenance
from mirai_bench.train.objective import Objective
from mirai_bench.train.optim import build_optimizer, clone_as_ema, update_ema
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json, write_text
from mirai_bench.utils.text_table import markdown_table

log = logging.getLogger(__name__)

EMA_DECAY = 0.9  # with the official 0.9999, one step moves less than float32 can hold
HEADER = ["quantity", "largest absolute difference", "relative to the largest value", ""]


# ---- what is compared


def compare_forward(pair: ParityPair) -> list[Row]:
    """Compares logits and tapped states of teacher forcing with plain LlamaGen's."""
    tokens = pair.tokens
    labels = pair.labels
    peer = pair.theirs(pair.peer.gpt, pair.model)
    tapped: list[Tensor] = []
    block = peer.layers[pair.layer - 1]
    block.register_forward_hook(lambda module, inputs, output: tapped.append(output))
    with torch.no_grad():
        ours = pair.model(tokens, labels, tap=pair.layer)
        logits = peer(tokens[:, :-1], labels, targets=tokens)[0]
    depth = f"after block {pair.layer} of {pair.e.model.depth}"
    return [
        difference("logits", ours.logits, logits),
        difference("tapped hidden state", ours.hidden, tapped[0], depth),
    ]


def compare_heads(pair: ParityPair, mirai: MiraiCode) -> list[Row]:
    """Compares the losses of the heads: of Mirai-E with its EMA teacher, then of Mirai-I."""
    tokens = pair.tokens
    labels = pair.labels
    teacher = pair.theirs(mirai.models, pair.ema, pair.level(pair.e)).eval()
    with torch.no_grad():
        states = pair.ema.states(tokens, labels, pair.layer)
        official = teacher.forward_ema(idx=tokens[:, :-1], cond_idx=labels)
    rows = [difference("EMA teacher's state (E)", states, official)]  # (B, T, D)
    for kind, config, features in (("E", pair.e, official), ("I", pair.i, pair.features)):
        level = pair.level(config)
        peer = pair.theirs(mirai.models, pair.model, level)
        with torch.no_grad():
            hidden = pair.model(tokens, labels, tap=pair.layer).hidden
            ours = level.projector(hidden)  # (K, B, T, D)
            projected = peer(tokens[:, :-1], labels, targets=tokens)[1]  # K times (B, T, D)
            losses = cosine_loss(ours, features, level.index, level.valid)
            theirs = [loss + 1 for loss in mirai.head_losses[kind]([features], projected)]
        if kind == "E":
            rows.append(largest("projected states", zip(ours, projected, strict=True)))
        for head, (loss, expected) in enumerate(zip(losses, theirs, strict=True)):
            note = f"1 - cos = {expected.item():.6f}"
            rows.append(difference(f"loss of head {head} ({kind})", loss, expected, note))
    return rows


def compare_encoder_input(pair: ParityPair, mirai: MiraiCode) -> list[Row]:
    """Compares the pixels that Mirai-I's DINOv2 gets: 224 of 256 pixels, normalised. Needs timm."""
    try:
        encoder = PixelEncoder("dinov2_b", (16, 16), pair.device, weights="random")
    except UserError as error:
        log.info(f"encoder input not compared: {error}")
        return []
    images = torch.randint(256, (2, 256, 256, 3), generator=pair.generator, dtype=torch.uint8)
    theirs = mirai.resize(images.permute(0, 3, 1, 2).float().to(pair.device) / 255)
    note = "256 → 224 pixels, bicubic, normalised"
    return [difference("encoder input (I)", encoder.prepare(images), theirs, note)]


def compare_step(pair: ParityPair) -> list[Row]:
    """Compares one optimizer step with clipping, and the EMA after it.

    The loss is that of Mirai-E, or plain next-token prediction for LlamaGen.
    """
    recipe = pair.e.train
    foresight = pair.e.foresight
    mirai = pair.peer.mirai
    level = None if mirai is None else pair.level(pair.e)
    # 1. The official gradients.
    peer = pair.theirs(pair.peer.models, pair.model, level)
    peer_optimizer = pair.peer.optimizer(peer, recipe.weight_decay, recipe.lr, recipe.betas)
    expected = _official_loss(pair, peer, mirai)
    expected.backward()
    peer_norm = nn.utils.clip_grad_norm_(peer.parameters(), recipe.clip)
    # 2. Ours.
    objective = Objective(copy.deepcopy(pair.model), level)
    optimizer = build_optimizer(recipe, objective.parameters())
    unused = torch.zeros_like(pair.labels)  # the index and the view of each image
    batch = Batch(pair.tokens, pair.labels, unused, unused)
    loss = objective(batch, pair.labels, torch.tensor(foresight.weight))[0]
    loss.backward()
    norm = nn.utils.clip_grad_norm_(objective.parameters(), recipe.clip)
    # 3. Both, before and after the step.
    # The official loss of each head is smaller by 1, and λ of them are summed over K heads.
    offset = 0.0 if level is None else foresight.weight * foresight.k
    what = "NTP" if level is None else "NTP + Σ λ·head"
    gradients = _pairs(objective, peer, lambda parameter: parameter.grad)
    rows = [
        difference("training loss", loss - offset, expected, what),
        difference("gradient norm", norm, peer_norm),
        largest("gradients, clipped", gradients, f"{len(gradients)} tensors"),
    ]
    peer_optimizer.step()
    optimizer.step()
    parameters = _pairs(objective, peer, lambda parameter: parameter)
    note = f"a step is {recipe.lr:g} at most"
    rows.append(largest("parameters after the step", parameters, note))
    rows.append(_compare_ema(pair, peer, level))
    return rows


def _official_loss(pair: ParityPair, peer: Any, mirai: MiraiCode | None) -> Tensor:
    """Returns what the official step minimises: NTP, and with Mirai-E Σ λ · head."""
    tokens = pair.tokens
    labels = pair.labels
    if mirai is None:
        return peer(tokens[:, :-1], labels, targets=tokens)[1]
    with torch.no_grad():
        features = pair.ema.states(tokens, labels, pair.layer)
    _, projected, ntp = peer(tokens[:, :-1], labels, targets=tokens)
    return ntp + pair.e.foresight.weight * sum(mirai.head_losses["E"]([features], projected))


def _pairs(
    objective: Objective, peer: nn.Module, value: Callable[[nn.Parameter], Any]
) -> list[tuple[Tensor, Tensor]]:
    """Returns a value of each parameter, itself or its gradient, with that of the official one."""
    parameters = objective.named_parameters()
    ours = {name.removeprefix("model."): value(parameter).detach() for name, parameter in parameters}
    theirs = dict(peer.named_parameters())
    return [(tensor, value(theirs[name])) for name, tensor in to_official(ours).items()]


def _compare_ema(pair: ParityPair, peer: nn.Module, level: InternalLevel | None) -> Row:
    """Compares how far each EMA moves from the same start towards the peer's new weights."""
    ours = clone_as_ema(pair.ema)
    theirs = pair.theirs(pair.peer.models, pair.ema, level)
    # Our EMA follows the official weights, so that only the EMA itself can differ.
    stepped = copy.deepcopy(pair.model)
    stepped.load_state_dict(split_projectors(dict(peer.named_parameters()))[0])
    pair.peer.update_ema(theirs, peer, decay=EMA_DECAY)
    update_ema(ours, stepped, EMA_DECAY)
    moved = dict(theirs.named_parameters())
    start = dict(pair.ema.named_parameters())
    pairs = [(p - start[name], moved[name] - start[name]) for name, p in ours.named_parameters()]
    return largest("EMA's movement after the step", pairs, f"decay {EMA_DECAY}")


# ---- the command


def compare(peer_path: Path, options: ParityOptions) -> tuple[dict[str, Any], list[Row]]:
    """Returns what was compared, and how far each quantity differs.

    Raises UserError if the folder is not a checkout of LlamaGen or Mirai.
    """
    peer = load_peer(peer_path)
    pair = ParityPair(options, peer)
    rows = compare_forward(pair)
    if peer.mirai is not None:
        rows += compare_heads(pair, peer.mirai)
        rows += compare_encoder_input(pair, peer.mirai)
    rows += compare_step(pair)
    if peer.generate is None:
        log.info(f"{peer.name} has no generate.py: its model is driven by an equal loop")
    rows += compare_sampling(pair, options.cfg_scale)
    facts: dict[str, Any] = {"peer": peer.name, "peer_commit": peer.commit}
    facts["generate_py"] = peer.generate is not None
    facts |= {"git": provenance.git_state(), "versions": provenance.versions()}
    facts |= {"device": options.device.type, "precision": "fp32"}
    parameters = sum(parameter.numel() for parameter in pair.model.parameters())
    facts["model"] = {"size": options.size, "parameters": parameters, "grid": list(pair.model.grid)}
    facts |= {"vocabulary": options.vocabulary, "classes": options.classes}
    facts |= {"images": options.images, "heads": options.k, "seed": options.seed}
    return facts, rows


def report(facts: dict[str, Any], rows: list[Row]) -> str:
    """Returns the comparison in Markdown."""
    model = facts["model"]
    height, width = model["grid"]
    commit = facts["peer_commit"]
    head = (
        f"{facts['peer']} at {commit[:12] if commit else 'an unknown commit'}, {model['size']} "
        f"({model['parameters']:,} parameters, {height}x{width} tokens, {facts['vocabulary']} "
        f"codes), {facts['images']} images, {facts['heads']} heads, float32 on {facts['device']}"
    )
    lines = [[row.quantity, f"{row.absolute:.2e}", f"{row.relative:.2e}", row.note] for row in rows]
    return f"{head}\n\n{markdown_table(HEADER, lines, align='---')}"


def differing(rows: list[Row], tolerance: float) -> list[str]:
    """Returns the quantities whose relative difference is above the tolerance, or NaN."""
    return [row.quantity for row in rows if not row.relative <= tolerance]


def run_parity(peer_path: Path, options: ParityOptions, tolerance: float, out: Path | None) -> bool:
    """Prints the comparison, writes it to the folder `out`, and tells whether both codes agree."""
    facts, rows = compare(peer_path, options)
    text = report(facts, rows)
    print(text, end="")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        stem = f"parity_{facts['peer'].lower()}"
        write_json(out / f"{stem}.json", facts | {"rows": [asdict(row) for row in rows]})
        write_text(out / f"{stem}.md", text)
    apart = differing(rows, tolerance)
    if apart:
        log.info(f"apart by more than {tolerance:g}: {', '.join(apart)}")
    return not apart
