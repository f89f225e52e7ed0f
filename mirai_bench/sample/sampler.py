"""Sampling, one token at a time: an image is a function of (seed, index) and the weights.

Letters: B images, T tokens, V codes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirai_bench.checkpoint.store import HEADS, load_latest
from mirai_bench.config.load import load_run
from mirai_bench.config.protocol import Protocol
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.tokenizers import Tokenizer, load_tokenizer
from mirai_bench.model.cache import DevicePosition, HostPosition
from mirai_bench.model.transformer import ARModel, build_model
from mirai_bench.sample.draws import draw, draw_classes, guide, restrict, uniforms
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.compiler import compiled
from mirai_bench.utils.device import is_out_of_memory
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.tensors import check_fits

log = logging.getLogger(__name__)

# Recorded decoding steps of a sampler on a GPU. More of them would read less of the cache, but each
# takes time to record.
NUM_STRETCHES = 4
# Compiled decoding steps that a process may have. Torch's own limit is eight, two samplers.
MOST_COMPILED = 2**16


class Sampler:
    """Samples up to `batch` images at a time from one model under one protocol.

    On a GPU the decoding step, with the drawing of the token, is recorded once for each stretch of
    positions and then replayed: the host launches one CUDA graph per token and waits for nothing.
    What is recorded can be compiled first, which makes a step faster and takes a minute at first.
    """

    @torch.inference_mode()
    def __init__(
        self, model: ARModel, protocol: Protocol, batch: int, run_seed: int = 0, compile: bool = False
    ) -> None:
        """`run_seed` is the run's `seeds.sampling`.

        `compile` says whether what a GPU records is compiled. On a CPU it changes nothing.
        """
        weight = model.tok_embeddings.weight
        self.model = model
        self.protocol = protocol
        self.batch = batch
        self.run_seed = run_seed
        self.device = weight.device
        self.guided = protocol.cfg_scale != 1
        rows = 2 * batch if self.guided else batch
        self.cache = model.new_cache(rows)
        # A recorded step reads and writes the same memory at each replay, so all of it is here.
        self.x = weight.new_zeros(rows, weight.shape[1])  # (rows, D): what the next step consumes
        self.uniform = torch.zeros(batch, model.tokens, dtype=torch.float64, device=self.device)
        self.codes = torch.zeros(batch, model.tokens, dtype=torch.long, device=self.device)
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)  # of the recorded step
        self.recorded: list[tuple[torch.cuda.CUDAGraph, int]] | None = None
        if self.device.type == "cuda":
            self.recorded = self._record(self.compiled_step if compile else self.next_step)

    @torch.inference_mode()
    def __call__(self, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """Returns the codes (B, T), on the model's device, of images with these labels (B,)."""
        # 1. The inputs: the class token, and a number per token after the one for the class. The
        #    rows beyond the images sample, too, and nobody reads them.
        count = len(indices)
        seeds = (self.protocol.seed, self.run_seed)
        draws = [uniforms(*seeds, index, 1 + self.model.tokens)[1:] for index in indices]
        self.uniform[:count].copy_(torch.from_numpy(np.stack(draws)))
        labels = F.pad(labels, (0, self.batch - count))
        if self.guided:  # the second half sees the null class
            labels = torch.cat([labels, torch.full_like(labels, self.model.classes)])
        self.x.copy_(self.model.cls_embedding.embedding_table(labels.to(self.device)))
        # 2. A step per token, which overwrites the cache of the last images.
        if self.recorded is None:
            for position in range(self.model.tokens):
                self.step(HostPosition(position))
        else:
            self.position.zero_()
            for graph, times in self.recorded:
                for _ in range(times):
                    graph.replay()
        return self.codes[:count].clone()  # the next call overwrites them

    def step(self, position: HostPosition | DevicePosition) -> None:
        """Draws one token of every image, at `position`."""
        protocol = self.protocol
        logits = self.model.decode(self.x, position, self.cache).float()  # (rows, V)
        if self.guided:
            logits = guide(logits, protocol.cfg_scale)  # (B, V)
        allowed = restrict(logits / protocol.temperature, protocol.top_k, protocol.top_p)
        codes = draw(allowed, position.read(self.uniform, 1)[:, 0])  # (B,)
        position.write(self.codes, 1, codes[:, None])
        self.x.copy_(self.model.tok_embeddings(codes.repeat(2) if self.guided else codes))

    def next_step(self, length: int) -> None:
        """Draws the token at `self.position` and moves on.

        This is what is recorded for the positions below `length`.
        """
        self.step(DevicePosition(self.position, length))
        self.position.add_(1)

    def compiled_step(self, length: int) -> None:
        """Does what `next_step` does, in fewer kernels. Its first call compiles it.

        Samplers that differ in their weights only share what is compiled.
        """
        # Torch counts what it compiles of a function, here a step for each stretch of each sampler.
        limits = {"recompile_limit": MOST_COMPILED, "accumulated_recompile_limit": MOST_COMPILED}
        with torch._dynamo.config.patch(limits):
            compiled(self.next_step, dynamic=False, fullgraph=True)(length)

    def _record(self, step: Callable[[int], None]) -> list[tuple[torch.cuda.CUDAGraph, int]]:
        """Returns a CUDA graph of `step` for each stretch of positions, and how often it is replayed."""
        recorded: list[tuple[torch.cuda.CUDAGraph, int]] = []
        start = 0
        # The model's device need not be the current one. By itself, `torch.cuda.graph` records on a
        # stream of the device that this process first recorded on.
        with torch.cuda.device(self.device):
            side = recording_stream(self.device)
            for end in stretches(self.model.tokens):
                # 1. Not recorded: on their first call, libraries choose kernels and allocate, and
                #    the compiler compiles.
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    step(end)
                torch.cuda.current_stream().wait_stream(side)
                self.position.zero_()
                # 2. The recorded one. The graphs run one after the other, so they share their
                #    memory.
                graph = torch.cuda.CUDAGraph()
                pool = recorded[0][0].pool() if recorded else None
                with torch.cuda.graph(graph, pool=pool, stream=side):
                    step(end)
                recorded.append((graph, end - start))
                start = end
        return recorded


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream on which steps are recorded on a device.

    All samplers share it, because cuBLAS allocates a workspace per stream and never frees it.
    """
    return torch.cuda.Stream(device)


def stretches(tokens: int) -> list[int]:
    """Returns the ends of equally long stretches of positions.

    Each step of a stretch reads as much of the cache as its last one. With four stretches that is
    5/8 of the cache on average, and 1/2 is the least possible.
    """
    return sorted({-(-tokens * part // NUM_STRETCHES) for part in range(1, NUM_STRETCHES + 1)})


def equal_parts(count: int, most: int) -> int:
    """Returns the size of the fewest parts, `most` or smaller, that `count` images split into equally.

    Only the last part may be smaller, by less than the number of parts.
    """
    return -(-count // -(-count // most))


def to_sample(model: ARModel, protocol: Protocol) -> ARModel:
    """Returns the model in the protocol's precision: itself, or a copy in bfloat16."""
    if protocol.precision == "fp32":
        return model
    return copy.deepcopy(model).to(torch.bfloat16)


class ImageSampler:
    """Samples images, `batch_size` at a time, from one model under one protocol.

    The batch size changes speed and memory only. Where memory runs out it is halved. One Sampler
    serves all batches, until `release`.
    """

    def __init__(
        self,
        model: ARModel,
        tokenizer: Tokenizer,
        protocol: Protocol,
        run_seed: int,
        batch_size: int,
    ) -> None:
        """`run_seed` is the run's `seeds.sampling`."""
        self.model = model
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.run_seed = run_seed
        self.batch_size = batch_size
        self.on_gpu = model.tok_embeddings.weight.is_cuda
        self.sampler: Sampler | None = None

    def __call__(self, indices: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (uint8 images (B, h, w, 3), labels (B,)) in the order of `indices`."""
        start = 0
        while start < len(indices):
            part = indices[start : start + self.batch_size]
            made = self._sample(part)
            if made is not None:
                yield made
                start += len(part)

    def release(self) -> None:
        """Frees the memory of the sampler. The next batch makes another one."""
        self.sampler = None
        if self.on_gpu:
            torch.cuda.empty_cache()  # for the other processes on this GPU

    def _sample(self, part: range) -> tuple[Tensor, Tensor] | None:
        """Returns images and labels, or None if memory ran out. Then the batch size is halved.

        Raises the error if the batch was of one image.
        """
        labels = draw_classes(self.protocol, self.run_seed, part, self.model.classes)
        # Sampling a few images that nobody wants is faster than recording CUDA graphs again.
        size = self.batch_size if self.on_gpu else len(part)
        try:
            if self.sampler is None or self.sampler.batch != size:
                self.sampler = None  # before the next one takes memory
                self.sampler = Sampler(self.model, self.protocol, size, self.run_seed)
            return self.tokenizer.decode(self.sampler(labels, part)), labels
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Out here the error is gone, and with it the tensors that its traceback held.
        self.batch_size = -(-size // 2)
        log.warning(f"out of memory while sampling {size} images at a time: going on with {self.batch_size}")
        self.release()
        return None


class LoadedRun(NamedTuple):
    """A run that is ready to be sampled."""

    config: RunConfig
    model: ARModel
    tokenizer: Tokenizer
    step: int
    """The step of the checkpoint."""


def load_for_sampling(folder: RunFolder, weights: str, device: torch.device) -> LoadedRun:
    """Loads the newest checkpoint of a run. `weights` is ema or raw.

    Raises UserError if the folder holds no run, or the run has no checkpoint.
    """
    folder.check()
    config = load_run(folder.config_file)
    folder.check_config()
    checkpoint = load_latest(folder)
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint yet")
    stored = checkpoint.tensors["ema" if weights == "ema" else "model"]
    model = build_model(config)
    names = [name for name in stored if not name.startswith(HEADS)]  # heads are for training only
    kept = {name: stored[name] for name in names}
    check_fits(model, kept, str(folder))
    model.load_state_dict(kept)
    if weights == "ema" and checkpoint.state.get("ema_key", "ema") is None:
        log.warning(f"{folder} was imported from a file without an EMA: its trained weights stand for it")
    model.requires_grad_(False).to(device)
    tokenizer = load_tokenizer(config, device)
    return LoadedRun(config, model, tokenizer, checkpoint.state["step"])
