"""Sampling: KV-cached decoding with classifier-free guidance. An image depends on (seed, its index) alone, whatever batch it is in.

    python -m mirai_bench.sample RUN --num 64 --grid out.png

Letters: B batch, T tokens, V codes, D width.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_latest
from .cli import progress, run, say
from .compose import load_run
from .config import RunConfig
from .errors import UserError
from .model import ARModel, Place, build_model
from .protocol import Protocol
from .tokenizer import Tokenizer, load_tokenizer

STRETCHES = 4  # recorded steps of a sampler on a GPU


def uniforms(seed: int, index: int, count: int) -> np.ndarray:
    """(count) float64 in [0, 1): image `index`'s own stream, one number a token, after one for its class."""
    return np.random.Generator(np.random.Philox(key=[seed, index])).random(count)


def classes_of(protocol: Protocol, indices: Sequence[int], classes: int) -> Tensor:
    """(B,) long: index mod classes, or the image's own uniform draw."""
    if protocol.class_rule == "balanced":
        return torch.tensor([index % classes for index in indices])
    return torch.tensor([int(uniforms(protocol.seed, index, 1)[0] * classes) for index in indices])


def guide(logits: Tensor, scale: float) -> Tensor:
    """(2B, V) conditional then unconditional → (B, V): uncond + s·(cond - uncond)."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for all but the top_k codes (0: all), then for all but the smallest set of codes whose probability reaches top_p."""
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # the first code is never outside
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """logits (B, V), uniform (B,) → codes (B,) by inverting the cumulative distribution, in float64 so that a batch cannot tip a draw."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    codes = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    last = (logits > -torch.inf).long().cumsum(-1).argmax(-1)  # rounding must not step past the last allowed code
    return torch.minimum(codes, last)


class Sampler:
    """`batch` images at a time from one model under one protocol. On a GPU the decoding step, drawing included, is recorded once for each
    stretch of positions and then replayed: the host launches one graph a token and waits for nothing."""

    @torch.inference_mode()
    def __init__(self, model: ARModel, protocol: Protocol, batch: int) -> None:
        weight = model.tok_embeddings.weight
        self.model, self.protocol, self.batch, self.device = model, protocol, batch, weight.device
        self.guided = protocol.cfg_scale != 1
        rows = 2 * batch if self.guided else batch
        self.cache = model.new_cache(rows)
        self.x = weight.new_zeros(rows, weight.shape[1])  # embeddings that the next step consumes
        self.uniform = torch.zeros(batch, model.tokens, dtype=torch.float64, device=self.device)
        self.codes = torch.zeros(batch, model.tokens, dtype=torch.long, device=self.device)
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)  # of the recorded step
        self.recorded = self._record() if self.device.type == "cuda" else None

    @torch.inference_mode()
    def __call__(self, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """labels (batch,) of images `indices` → codes (batch, T), on the model's device."""
        draws = np.stack([uniforms(self.protocol.seed, index, 1 + self.model.tokens)[1:] for index in indices])
        self.uniform.copy_(torch.from_numpy(draws))
        classes = torch.cat([labels, torch.full_like(labels, self.model.classes)]) if self.guided else labels
        self.x.copy_(self.model.cls_embedding.embedding_table(classes.to(self.device)))
        if self.recorded is None:
            for position in range(self.model.tokens):
                self.step(Place(position, position + 1))
        else:
            self.position.zero_()
            for graph, count in self.recorded:
                for _ in range(count):
                    graph.replay()
        return self.codes.clone()

    def step(self, place: Place) -> None:
        """One token of every image, at `place`."""
        p = self.protocol
        logits = self.model.decode(self.x, place, self.cache).float()
        logits = guide(logits, p.cfg_scale) if self.guided else logits
        codes = draw(restrict(logits / p.temperature, p.top_k, p.top_p), place.read(self.uniform, 1)[:, 0])
        place.write(self.codes, 1, codes[:, None])
        self.x.copy_(self.model.tok_embeddings(codes.repeat(2) if self.guided else codes))

    def next_step(self, length: int) -> None:
        """The step at `position` and on to the next one: what is recorded for the positions below `length`."""
        self.step(Place(self.position, length))
        self.position.add_(1)

    def _record(self) -> list[tuple[torch.cuda.CUDAGraph, int]]:
        """A graph for each stretch, and how often it is replayed."""
        recorded, start, side = [], 0, torch.cuda.Stream(self.device)
        for end in stretches(self.model.tokens):
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):  # once outside the recording: libraries choose kernels and allocate on their first call
                self.next_step(end)
            torch.cuda.current_stream(self.device).wait_stream(side)
            self.position.zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=recorded[0][0].pool() if recorded else None):
                self.next_step(end)
            recorded.append((graph, end - start))
            start = end
        return recorded


def stretches(tokens: int) -> list[int]:
    """Ends of the stretches of positions that read equally much of the cache: with four, 5/8 of it on average, where 1/2 is the least."""
    return sorted({-(-tokens * part // STRETCHES) for part in range(1, STRETCHES + 1)})


def sample_images(
    model: ARModel, tokenizer: Tokenizer, protocol: Protocol, indices: Sequence[int], *, batch_size: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """→ (uint8 images (B, h, w, 3), labels (B,)) in the order of `indices`."""
    sampler: Sampler | None = None
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        if sampler is None or sampler.batch != len(part):
            sampler = Sampler(model, protocol, len(part))
        labels = classes_of(protocol, part, model.classes)
        yield tokenizer.decode(sampler(labels, part)), labels


def load_for_sampling(run_dir: Path, weights: str, device: torch.device) -> tuple[RunConfig, ARModel, Tokenizer, int]:
    """The newest checkpoint of a run: `weights` is ema or raw. Returns also its step."""
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no config.json")
    config = load_run(run_dir / "config.json")
    checkpoint = load_latest(run_dir)
    if checkpoint is None:
        raise UserError(f"{run_dir} has no checkpoint yet")
    stored = checkpoint.tensors["ema" if weights == "ema" else "model"]
    model = build_model(config)
    model.load_state_dict({name: tensor for name, tensor in stored.items() if not name.startswith("foresight.")})
    return config, model.requires_grad_(False).to(device), load_tokenizer(config.tokenizer, device), checkpoint.state["step"]


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, h, w, 3) → one RGB image, row by row, a grey line around each; small images are enlarged, missing ones are black."""
    scale, line = max(1, 32 // images.shape[1]), 1
    images = images.repeat(scale, 1).repeat(scale, 2)
    rows = -(-len(images) // columns)
    cells = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    cells[: len(images)] = images
    cells = np.pad(cells, ((0, 0), (line, line), (line, line), (0, 0)), constant_values=96)
    h, w = cells.shape[1:3]
    return cells.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)


def command(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mirai_bench.sample",
        description="Samples images from the newest checkpoint of a run.",
        epilog="example: python -m mirai_bench.sample runs/a87d3a399400 --num 64 --grid out.png",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--num", type=int, default=64, help="number of images, of indices 0, 1, …")
    parser.add_argument("--grid", type=Path, help="PNG with all images, ten (or the number of classes, if fewer) a row")
    parser.add_argument("--npz", type=Path, help="uint8 images as arr_0, labels as arr_1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=256, help="speed and memory only")
    for name in ("seed", "top-k"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("cfg-scale", "temperature", "top-p"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--weights", choices=("ema", "raw"))
    args = parser.parse_args(argv)
    if args.num < 1 or args.batch_size < 1:
        raise UserError(f"--num is {args.num} and --batch-size {args.batch_size}: write 1 or more")
    if not (args.grid or args.npz):
        raise UserError("nothing to write: give --grid out.png or --npz out.npz")
    names = ("seed", "top_k", "cfg_scale", "temperature", "top_p", "weights")
    write_samples(args, {name: getattr(args, name) for name in names if getattr(args, name) is not None})


def write_samples(args: argparse.Namespace, changes: dict[str, object]) -> None:
    from PIL import Image

    from .compose import checked

    config, model, tokenizer, step = load_for_sampling(args.run, str(changes.get("weights", "ema")), torch.device(args.device))
    protocol = checked(Protocol, config.evaluation.protocol.model_dump() | changes, "sampling")
    batches = sample_images(model, tokenizer, protocol, range(args.num), batch_size=args.batch_size)
    parts = list(progress(batches, "sampling", total=-(-args.num // args.batch_size), unit="batches"))
    images = torch.cat([images for images, _ in parts]).cpu().numpy()
    if args.npz:
        np.savez(args.npz, arr_0=images, arr_1=torch.cat([labels for _, labels in parts]).numpy())
    if args.grid:
        Image.fromarray(image_grid(images, min(10, model.classes))).save(args.grid)
    say(f"{args.num} images from step {step} ({protocol.weights} weights, CFG {protocol.cfg_scale:g}, seed {protocol.seed})")
    print("\n".join(str(path) for path in (args.npz, args.grid) if path))


if __name__ == "__main__":
    sys.exit(run(command))
