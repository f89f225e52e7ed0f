"""`mirai-bench COMMAND …` is `python -m mirai_bench.COMMAND …`; only the command's own module is imported."""

from __future__ import annotations

import runpy
import sys

from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import unknown

COMMANDS = {
    "sweep": "trains and evaluates every arm with every seed of a sweep file; --dry-run, status",
    "train": "trains one run",
    "sample": "samples images from a run",
    "evaluate": "evaluates a run or a folder of images under a protocol",
    "data.prepare": "images to codes, once",
    "tokenizer": "trains the small VQ",
    "tracking": "sends runs to MLflow that it does not have",
    "benchmark": "throughput, memory and utilisation, beside a peer's",
}


SHORT = {"prepare": "data.prepare"}


def command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: mirai-bench COMMAND …        (mirai-bench COMMAND --help says more)\n")
        print("\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()))
        print("\nexample: mirai-bench sweep sweeps/injection_level.yaml --dry-run")
        return 0
    name = SHORT.get(argv[0], argv[0])
    if name not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    sys.argv = [f"mirai-bench {argv[0]}", *argv[1:]]
    runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
    return 0


def main() -> int:
    return run(command)


if __name__ == "__main__":
    sys.exit(main())
