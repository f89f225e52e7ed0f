"""The command `python -m mirai_bench.checkpoint`: files of LlamaGen and Mirai, in and out."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mirai_bench.config.load import load_run
from mirai_bench.tracking.named_runs import run_path
from mirai_bench.tracking.run_folder import RunFolder
from mirai_bench.utils.cli import add_config, add_import, run
from mirai_bench.utils.outputs import output_file, output_folder

log = logging.getLogger("mirai_bench.checkpoint")  # __name__ is "__main__" here

# Of --help, line by line.
EPILOG = """examples:
  python -m mirai_bench.checkpoint import c2i_B_256.pt imagenet256_b imported/c2i_B_256
  python -m mirai_bench.checkpoint export runs/0123456789ab out.pt --weights ema"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m mirai_bench.checkpoint",
        description="Reads and writes the checkpoint files of LlamaGen and Mirai.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = result.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="make a run's newest checkpoint an official file")
    named = "the folder of a run, or AXIS/ARM/SEED of a sweep"
    export.add_argument("run", type=run_path, metavar="RUN", help=named)
    export.add_argument("out", type=output_file(), metavar="OUT.pt", help="the file to write")
    help = "the weights that stand under `model` (ema: without projectors); default raw"
    export.add_argument("--weights", choices=("raw", "ema"), default="raw", help=help)
    add_import(export)
    imports = actions.add_parser("import", help="make a run of an official file, to evaluate it")
    imports.add_argument("file", type=Path, metavar="FILE.pt", help="an official file")
    add_config(imports)  # CONFIG stands between the file and the folder
    imports.add_argument("out", type=output_folder, metavar="OUT", help="the folder of the new run")
    return result


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Prints the path of what it wrote."""
    args = parser().parse_args(argv)
    # Imported here, so that --help needs no torch.
    from mirai_bench.checkpoint.official import export_official, import_official

    if args.action == "import":
        print(import_official(args.file, load_run(args.config, args.settings), RunFolder(args.out)))
        return 0
    content = export_official(RunFolder(args.run), args.out, args.weights)
    sizes = f"{len(content['model'])} tensors under `model`, {len(content['ema'])} under `ema`"
    log.info(f"step {content['steps']}: {sizes}")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
