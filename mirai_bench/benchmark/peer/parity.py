"""The same weights and inputs through this code and through the official code: how far do they differ?

    python -m mirai_bench.benchmark parity --peer ../Mirai

In float32 without dropout and without dropped labels; the fields are those of the preset `official: true` (presets.py). The official
losses are -cos where ours are 1 - cos: the constant is added before comparing. Letters: B batch, T tokens, D width, K heads.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirai_bench.benchmark.peer.checkout import load_peer
from mirai_bench.benchmark.peer.decoding import compare_sampling
from mirai_bench.benchmark.peer.pair import Given, Row, Setup, difference, largest
from mirai_bench.checkpoint.official import State, split_projectors, to_official
from mirai_bench.config.run_config import MODEL_SIZES
from mirai_bench.foresight.level import InternalLevel
from mirai_bench.foresight.loss import cosine_loss
from mirai_bench.tracking import provenance
from mirai_bench.train.optim import build_optimizer, clone_as_ema, update_ema
from mirai_bench.train.trainer import Objective
from mirai_bench.utils.cli import say
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_atomic

EMA_DECAY = 0.9  # with the official 0.9999 one step moves less than float32 can hold


TOLERANCE = (
    1e-4  # relative: float32 through a dozen blocks leaves 1e-5, a wrong pairing or offset 1e-3 or more
)


def compare_forward(setup: Setup) -> list[Row]:
    """Logits and tapped state of teacher forcing, with plain LlamaGen."""
    peer, seen = setup.theirs(setup.peer.gpt, setup.model), {}
    peer.layers[setup.layer - 1].register_forward_hook(
        lambda module, inputs, output: seen.update(hidden=output)
    )
    tokens, labels = setup.batch.tokens, setup.batch.labels
    with torch.no_grad():
        ours, logits = (
            setup.model(tokens, labels, tap=setup.layer),
            peer(tokens[:, :-1], labels, targets=tokens)[0],
        )
    depth = f"after block {setup.layer} of {setup.e.model.depth}"
    return [
        difference("logits", ours.logits, logits),
        difference("tapped hidden state", ours.hidden, seen["hidden"], depth),
    ]


def compare_heads(setup: Setup) -> list[Row]:
    """Each head's loss by the official functions: Mirai-E with its EMA teacher, Mirai-I with given encoder features."""
    tokens, labels, rows = setup.batch.tokens, setup.batch.labels, []
    teacher_level = setup.level(setup.e, Given(setup.encoder_features))
    teacher = setup.theirs(setup.peer.mirai, setup.ema, teacher_level).eval()
    with torch.no_grad():
        states = setup.ema.states(tokens, labels, setup.layer)
        official = teacher.forward_ema(idx=tokens[:, :-1], cond_idx=labels)
    rows.append(difference("EMA teacher's state (E)", states, official))
    for kind, config, features in (("E", setup.e, official), ("I", setup.i, setup.encoder_features)):
        level = setup.level(config, Given(features))
        peer = setup.theirs(setup.peer.mirai, setup.model, level)
        with torch.no_grad():
            hidden = setup.model(tokens, labels, tap=setup.layer).hidden
            ours = level.projector(hidden)
            projected = peer(tokens[:, :-1], labels, targets=tokens)[1]
            losses = cosine_loss(ours, features, level.index, level.valid)
            theirs = [loss + 1 for loss in setup.peer.head_losses[kind]([features], projected)]
        if kind == "E":
            rows.append(largest("projected states", zip(ours, projected, strict=True)))
        for head, (loss, expected) in enumerate(zip(losses, theirs, strict=True)):
            rows.append(
                difference(
                    f"loss of head {head} ({kind})", loss, expected, f"1 - cos = {expected.item():.6f}"
                )
            )
    return rows


def official_loss(setup: Setup, peer: nn.Module, weight: float, features: Tensor) -> Tensor:
    """What the official training step minimises: NTP + Σ coefficient · head (Mirai-E), or NTP alone."""
    tokens, labels = setup.batch.tokens, setup.batch.labels
    if setup.peer.mirai is None:
        return peer(tokens[:, :-1], labels, targets=tokens)[1]
    _, projected, ntp = peer(tokens[:, :-1], labels, targets=tokens)
    return ntp + weight * sum(setup.peer.head_losses["E"]([features], projected))


def our_tensors(objective: Objective, of: Callable[[Tensor], Tensor]) -> State:
    """A tensor of each of our parameters (itself, its gradient), under the official names."""
    named = {name.removeprefix("model."): of(p).detach() for name, p in objective.named_parameters()}
    return to_official(named)


def their_tensors(peer: nn.Module, of: Callable[[Tensor], Tensor]) -> State:
    return {name: of(p).detach() for name, p in peer.named_parameters()}


def paired(ours: State, theirs: State) -> list[tuple[Tensor, Tensor]]:
    return [(tensor, theirs[name]) for name, tensor in ours.items()]


def compare_step(setup: Setup) -> list[Row]:
    """One optimizer step, clipped, and the EMA after it: Mirai-E's loss, or plain next-token prediction for LlamaGen."""
    c, f = setup.e.train, setup.e.foresight
    with torch.no_grad():
        features = setup.ema.states(setup.batch.tokens, setup.batch.labels, setup.layer)
    level = setup.level(setup.e, Given(features)) if setup.peer.mirai else None
    peer = setup.theirs(setup.peer.mirai or setup.peer.gpt, setup.model, level)
    optimizer = setup.peer.optimizer(peer, c.weight_decay, c.lr, c.betas)
    expected = official_loss(setup, peer, f.weight, features)
    expected.backward()
    peer_norm = nn.utils.clip_grad_norm_(peer.parameters(), c.clip)

    objective = Objective(copy.deepcopy(setup.model), level)
    ours = build_optimizer(c, objective.parameters())
    loss = objective(setup.batch, setup.batch.labels, torch.tensor(f.weight))[0]
    loss.backward()
    norm = nn.utils.clip_grad_norm_(objective.parameters(), c.clip)
    offset = f.weight * f.k if level else 0.0
    rows = [
        difference("training loss", loss - offset, expected, "NTP + Σ λ·head" if level else "NTP"),
        difference("gradient norm", norm, peer_norm),
    ]
    gradients = paired(our_tensors(objective, gradient), their_tensors(peer, gradient))
    rows.append(largest("gradients, clipped", gradients, f"{len(gradients)} tensors"))
    optimizer.step()
    ours.step()
    after = paired(our_tensors(objective, itself), their_tensors(peer, itself))
    rows.append(largest("parameters after the step", after, f"a step is {c.lr:g} at most"))
    return [*rows, compare_ema(setup, peer, level)]


def compare_ema(setup: Setup, peer: nn.Module, level: InternalLevel | None) -> Row:
    """How far each EMA moves from the same start towards the peer's stepped weights."""
    ours, theirs = clone_as_ema(setup.ema), setup.theirs(setup.peer.mirai or setup.peer.gpt, setup.ema, level)
    start, stepped = dict(setup.ema.named_parameters()), copy.deepcopy(setup.model)
    stepped.load_state_dict(split_projectors(dict(peer.named_parameters()))[0])
    setup.peer.update_ema(theirs, peer, decay=EMA_DECAY)
    update_ema(ours, stepped, EMA_DECAY)
    moved = dict(theirs.named_parameters())
    pairs = [(p - start[name], moved[name] - start[name]) for name, p in ours.named_parameters()]
    return largest("EMA's movement after the step", pairs, f"decay {EMA_DECAY}")


def itself(parameter: Tensor) -> Tensor:
    return parameter


def gradient(parameter: Tensor) -> Tensor:
    return parameter.grad


def compare_encoder_input(setup: Setup) -> list[Row]:
    """Mirai-I's pixels: 256 → 224 and normalised, for DINOv2. Needs timm."""
    from mirai_bench.foresight.encoders.pixels import PixelEncoder

    try:
        encoder = PixelEncoder("dinov2_b", (16, 16), setup.device, pretrained=False, depth=1)
    except UserError as error:
        say(f"encoder input not compared: {error}")
        return []
    images = torch.randint(256, (2, 256, 256, 3), generator=setup.generator, dtype=torch.uint8)
    theirs = setup.peer.resize(images.permute(0, 3, 1, 2).float().to(setup.device) / 255)
    return [
        difference(
            "encoder input (I)", encoder.prepare(images), theirs, "256 → 224 pixels, bicubic, normalised"
        )
    ]


def compare(args: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """→ (what was compared, the rows)."""
    peer = load_peer(args.peer)
    setup = Setup(args, peer)
    rows = compare_forward(setup)
    if peer.mirai is not None:
        rows += compare_heads(setup) + compare_encoder_input(setup)
    rows += compare_step(setup)
    if peer.generate is None:
        say(f"this checkout of {peer.name} has no generate.py: its model is driven by an equal loop")
    rows += compare_sampling(setup, args.cfg_scale)
    facts = {
        "peer": peer.name, "peer_commit": peer.commit, "generate_py": peer.generate is not None, "git": provenance.git_state(),
        "versions": provenance.versions(), "device": setup.device.type, "precision": "fp32",
        "model": {"size": args.size, "parameters": sum(p.numel() for p in setup.model.parameters()), "grid": list(setup.model.grid)},
        "vocabulary": args.vocabulary, "classes": args.classes, "images": args.images, "heads": args.k, "seed": args.seed,
    }  # fmt: skip
    return facts, rows


def table(facts: dict[str, Any], rows: list[Row]) -> str:
    """Markdown."""
    head = (
        f"{facts['peer']} at {facts['peer_commit'][:12] if facts['peer_commit'] else 'an unknown commit'}, {facts['model']['size']} "
        f"({facts['model']['parameters']:,} parameters, {facts['model']['grid'][0]}x{facts['model']['grid'][1]} tokens, "
        f"{facts['vocabulary']} codes), {facts['images']} images, {facts['heads']} heads, float32 on {facts['device']}"
    )
    lines = [
        "| quantity | largest absolute difference | relative to the largest value | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.quantity} | {row.absolute:.2e} | {row.relative:.2e} | {row.note} |" for row in rows]
    return "\n".join([head, "", *lines, ""])


def command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.benchmark parity",
        description="Compares this code with a checkout of LlamaGen or Mirai on the same weights and inputs. "
        "Runs code of the checkout. Exit code 1 where a relative difference is above the tolerance.",
        epilog="example: python -m mirai_bench.benchmark parity --peer ../Mirai --size nano --grid 8 --out reports/benchmarks",
    )
    parser.add_argument("--peer", type=Path, required=True, help="folder of the checkout")
    parser.add_argument("--size", choices=list(MODEL_SIZES), default="B")
    parser.add_argument(
        "--grid", type=int, default=16, help="tokens a side; the official offsets of Mirai are those of 16"
    )
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--k", type=int, default=9, help="foresight heads")
    parser.add_argument("--cfg-scale", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--out", type=Path, help="folder for parity_<peer>.json and .md")
    args = parser.parse_args(argv)
    facts, rows = compare(args)
    print(table(facts, rows), end="")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"parity_{facts['peer'].lower()}"
        write_atomic(
            stem.with_suffix(".json"),
            json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n",
        )
        write_atomic(stem.with_suffix(".md"), table(facts, rows))
    apart = [row.quantity for row in rows if row.relative > args.tolerance]
    if apart:
        say(f"apart by more than {args.tolerance:g}: {', '.join(apart)}")
    return 1 if apart else 0
