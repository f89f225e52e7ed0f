"""The command `mirai-bench COMMAND …`, which is `python -m mirai_bench.COMMAND …`.

Only the command's own modules are imported.
"""

from __future__ import annotations

import runpy
import sys

from mirai_bench.utils.cli import run
from mirai_bench.utils.errors import unknown

# What --help says of each command. It is the module of its name in mirai_bench.
COMMANDS = {
    "sweep": "trains and evaluates all arms of a sweep file with all seeds; status, search, schema",
    "train": "trains one run",
    "sample": "samples images from a run",
    "diagnose": "looks into the weights of finished runs: why does an arm help?",
    "evaluate": "evaluates a run or a folder of images under a protocol; compare, reference",
    "data.prepare": "turns images into codes, once",
    "tokenizer": "trains and measures the small VQ tokenizer",
    "tracking": "sends runs to MLflow that it does not have",
    "checkpoint": "imports and exports official LlamaGen and Mirai checkpoints",
    "benchmark": "measures throughput, memory and utilisation, also of a peer's code",
}
# Short names of commands that lie in a room of others.
ALIASES = {"prepare": "data.prepare"}


def command(argv: list[str]) -> int:
    """Runs the command that the first word names, with the other words as its arguments."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name = ALIASES.get(argv[0], argv[0])
    if name not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    # As if the module were the script: its parser reads sys.argv, and its `__name__` is "__main__".
    sys.argv = [f"mirai-bench {argv[0]}", *argv[1:]]
    runpy.run_module(f"mirai_bench.{name}", run_name="__main__", alter_sys=True)
    return 0  # only if the command does not end the process itself


def usage() -> str:
    """Returns the text of --help."""
    width = max(map(len, COMMANDS))
    lines = ["usage: mirai-bench COMMAND …        (mirai-bench COMMAND --help says more)", ""]
    lines += [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    lines += ["", "example: mirai-bench sweep sweeps/injection_level.yaml --dry-run"]
    return "\n".join(lines)


def main() -> int:
    """Runs the command line of this process."""
    return run(command)


if __name__ == "__main__":
    sys.exit(main())
