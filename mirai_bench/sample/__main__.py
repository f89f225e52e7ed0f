"""The command `python -m mirai_bench.sample`: samples images from a run."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from mirai_bench.tracking.named_runs import run_path
from mirai_bench.utils.cli import add_device, add_import, progress, run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.outputs import IMAGES, output_file

log = logging.getLogger("mirai_bench.sample")  # __name__ is "__main__" here

# Options that override a field of the run's own protocol, and what --help says of them.
PROTOCOL_OPTIONS: dict[str, tuple[type, str]] = {
    "seed": (int, "seed of the samples"),
    "cfg_scale": (float, "scale of classifier-free guidance; 1 is no guidance"),
    "temperature": (float, "divisor of the logits"),
    "top_k": (int, "draw from this many most probable codes; 0 means all"),
    "top_p": (float, "draw from the most probable codes that have this probability together"),
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.sample",
        description="Samples images from the newest checkpoint of a run. Options that are left out "
        "are those of the run's own evaluation protocol.",
        epilog="example: python -m mirai_bench.sample runs/a87d3a399400 --num 64 --grid out.png",
    )
    add = result.add_argument
    add("run", type=run_path, metavar="RUN", help="the folder of a run, or AXIS/ARM/SEED of a sweep")
    add("--num", type=int, default=64, help="number of images, with indices 0, 1, …; default 64")
    add(
        "--grid",
        type=output_file(*IMAGES),
        help="write a picture, ten images (or fewer, if fewer classes) per row",
    )
    add("--npz", type=output_file(".npz"), help="write uint8 images as arr_0 and their labels as arr_1")
    add_device(result)
    add_import(result)
    add("--batch-size", type=int, default=256, help="images at a time, for speed only; default 256")
    for name, (kind, help) in PROTOCOL_OPTIONS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help=help)
    add("--weights", choices=("ema", "raw"), help="the EMA, or the weights of the last step")
    return result


def command(argv: list[str]) -> None:
    """Runs the command. Prints the paths of what it wrote."""
    args = parser().parse_args(argv)
    if args.num < 1 or args.batch_size < 1:
        raise UserError(f"--num is {args.num} and --batch-size {args.batch_size}: write 1 or more")
    if not (args.grid or args.npz):
        raise UserError("nothing to write: give --grid out.png or --npz out.npz")
    given = {name: getattr(args, name) for name in (*PROTOCOL_OPTIONS, "weights")}
    # Only what is given: 0 is a value, too.
    write_samples(args, {name: value for name, value in given.items() if value is not None})


def write_samples(args: argparse.Namespace, changes: dict[str, Any]) -> None:
    """Samples with the run's protocol under `changes`, and writes what the options ask for."""
    # Imported here, so that --help needs no torch.
    import numpy as np
    import torch

    from mirai_bench.config.checking import checked
    from mirai_bench.config.protocol import Protocol
    from mirai_bench.data.images.grid import image_grid, write_image
    from mirai_bench.sample.sampler import ImageSampler, equal_parts, load_for_sampling, to_sample
    from mirai_bench.tracking.run_folder import RunFolder
    from mirai_bench.utils.device import resolve_device
    from mirai_bench.utils.files import atomic

    # 1. The run, and its protocol under the options.
    device = resolve_device(args.device)
    weights = changes.get("weights", "ema")
    config, model, tokenizer, step = load_for_sampling(RunFolder(args.run), weights, device)
    torch.set_num_threads(config.machine.threads)
    protocol = checked(Protocol, config.evaluation.protocol.model_dump() | changes, "sampling")
    # 2. All images, in the order of their indices.
    size = equal_parts(args.num, args.batch_size)
    run_seed = config.seed_of("sampling")
    sampler = ImageSampler(to_sample(model, protocol), tokenizer, protocol, run_seed, size)
    batches = sampler(range(args.num))
    parts = list(progress(batches, "sampling", args.num, "images", weigh=lambda batch: len(batch[1])))
    images = torch.cat([images for images, _ in parts]).cpu().numpy()  # uint8 (n, h, w, 3)
    labels = torch.cat([labels for _, labels in parts]).numpy()  # (n,)
    # 3. The files.
    if args.npz:
        with atomic(args.npz) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=images, arr_1=labels)
    if args.grid:
        columns = min(10, model.classes)  # of ten classes or fewer, one per column
        write_image(args.grid, image_grid(images, columns))
    how = f"{protocol.weights} weights, CFG {protocol.cfg_scale:g}, seed {protocol.seed}"
    log.info(f"{args.num} images from step {step} ({how})")
    for path in filter(None, (args.npz, args.grid)):
        print(path)


if __name__ == "__main__":
    sys.exit(run(command))
