"""Sampling: KV-cached decoding with classifier-free guidance. An image depends on (seed, its index) alone, whatever batch it is in.

    python -m mirai_bench.sample RUN --num 64 --grid out.png

Letters: B batch, T tokens, V codes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mirai_bench.checkpoint.store import load_latest
from mirai_bench.config.load import load_run
from mirai_bench.config.protocol import Protocol
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.tokenizers import Tokenizer, load_tokenizer
from mirai_bench.model.transformer import ARModel, Place, build_model
from mirai_bench.sample.draws import classes_of, draw, guide, restrict, uniforms
from mirai_bench.utils.errors import UserError

STRETCHES = 4  # recorded steps of a sampler on a GPU


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
        draws = np.stack(
            [uniforms(self.protocol.seed, index, 1 + self.model.tokens)[1:] for index in indices]
        )
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
            with torch.cuda.stream(
                side
            ):  # once outside the recording: libraries choose kernels and allocate on their first call
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


def load_for_sampling(
    run_dir: Path, weights: str, device: torch.device
) -> tuple[RunConfig, ARModel, Tokenizer, int]:
    """The newest checkpoint of a run: `weights` is ema or raw. Returns also its step."""
    if not (run_dir / "config.json").is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no config.json")
    config = load_run(run_dir / "config.json")
    checkpoint = load_latest(run_dir)
    if checkpoint is None:
        raise UserError(f"{run_dir} has no checkpoint yet")
    stored = checkpoint.tensors["ema" if weights == "ema" else "model"]
    model = build_model(config)
    model.load_state_dict(
        {name: tensor for name, tensor in stored.items() if not name.startswith("foresight.")}
    )
    return (
        config,
        model.requires_grad_(False).to(device),
        load_tokenizer(config.tokenizer, device),
        checkpoint.state["step"],
    )
