"""The command `python -m mirai_bench.sweep`: run, status, search, schema."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mirai_bench.config.load import SWEEPS
from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.estimate import Cost, cost_of, disk_used, measured_rate
from mirai_bench.sweep.plan import Plan, folder_of, make_plan
from mirai_bench.sweep.progress import duration
from mirai_bench.utils.cli import add_settings, run
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.text_table import console_table

log = logging.getLogger("mirai_bench.sweep")

UNKNOWN = "—"
STATES = ("done", "running", "failed", "pending")
EPILOG = """examples:
  python -m mirai_bench.sweep sweeps/injection_level.yaml                 trains what is missing; again: resumes
  python -m mirai_bench.sweep sweeps/injection_level.yaml --dry-run       cells, FLOPs, hours, disk; starts nothing
  python -m mirai_bench.sweep sweeps/injection_level.yaml --seeds 0 1 2 3 4
  python -m mirai_bench.sweep sweeps/foresight_source.yaml --only mirai-e-k3 --set foresight.weight=1.0
  python -m mirai_bench.sweep sweeps/injection_level.yaml --profile cifar10 --address auto

other commands (each has its own --help):
  python -m mirai_bench.sweep status sweeps/injection_level.yaml          shows how far the cells are
  python -m mirai_bench.sweep search my_sweep.yaml                        tunes an arm, as the file's `search:` says
  python -m mirai_bench.sweep schema                                      writes JSON schemas for editors"""


# ---- the command line


def _parser(action: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    prog = "python -m mirai_bench.sweep"
    return argparse.ArgumentParser(
        prog=prog if action == "run" else f"{prog} {action}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Adds the sweep file, and the options that choose among its cells."""
    parser.add_argument("files", nargs="*", metavar="FILE.yaml", help="the sweep file")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="ARM", help="only these arms of the file"
    )
    parser.add_argument(
        "--seeds", nargs="+", action="extend", type=int, default=[], metavar="N", help="these seeds instead"
    )
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="this profile instead of the file's: digits, cifar10, … or the path of a file",
    )
    add_settings(parser)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how trials are run."""
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="number of concurrent trials; by default as many as fit"
    )
    parser.add_argument(
        "--address",
        metavar="ADDR",
        help="join this Ray cluster (auto, HOST:PORT, ray://…) instead of starting Ray here; also RAY_ADDRESS",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="attempts after a lost worker or a broken device; default 2",
    )


def run_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sweep FILE.yaml`."""
    parser = _parser("run", "Trains and evaluates every arm with every seed of a sweep file.", EPILOG)
    _add_choices(parser)
    _add_ray(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the cells and what they will cost, start nothing"
    )
    return parser


def status_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sweep status FILE.yaml`."""
    parser = _parser("status", "Shows the state of every cell of a sweep file, and how far it is.")
    _add_choices(parser)
    return parser


def search_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sweep search FILE.yaml`."""
    parser = _parser(
        "search",
        "Tunes one arm, as the file's section `search:` says. The runs are in no table of arms.",
    )
    _add_choices(parser)
    _add_ray(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show what will be drawn and what it will cost, start nothing"
    )
    return parser


def schema_parser() -> argparse.ArgumentParser:
    """Returns the parser of `sweep schema`."""
    parser = _parser("schema", "Writes the JSON schemas of sweep and profile files into sweeps/schema/.")
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    return parser


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code. Without a word for the action, it is `run`."""
    action = "run"
    if argv and argv[0] in ACTIONS:
        action = argv[0]
        argv = argv[1:]
    parser, act = ACTIONS[action]
    return act(parser().parse_intermixed_args(argv))


def _file_of(args: argparse.Namespace) -> Path:
    if len(args.files) != 1:
        raise UserError(
            f"one sweep file at a time, found {len(args.files)}: write for instance {SWEEPS.name}/injection_level.yaml"
        )
    return Path(args.files[0])


def _plan_of(args: argparse.Namespace) -> Plan:
    return make_plan(
        _file_of(args), profile=args.profile, seeds=args.seeds, only=args.only, settings=args.settings
    )


def _check_ray(args: argparse.Namespace) -> None:
    if args.max_concurrent is not None and args.max_concurrent < 1:
        raise UserError(f"--max-concurrent is {args.max_concurrent}: write 1 or more")
    if args.retries < 0:
        raise UserError(f"--retries is {args.retries}: write 0 or more")


# ---- the actions


def run_action(args: argparse.Namespace) -> int:
    """Trains what is missing and prints the table. Returns 1 if a cell failed."""
    _file_of(args)
    _check_ray(args)
    plan = _plan_of(args)
    if args.dry_run:
        print(dry_run(plan, args.max_concurrent))
        return 0
    from mirai_bench.sweep.driver import Options, run_sweep

    report = run_sweep(plan, Options(args.max_concurrent, args.address, args.retries))
    log.info(report.line())
    show_table(plan)
    failed = [cell for cell in plan.sweep.cells if folder_of(cell).state == "failed"]
    for cell in failed:
        folder = folder_of(cell)
        log.info(f"failed: {cell.arm}, seed {cell.seed}: {folder.failure()} (log: {folder.log_file})")
    if failed:
        again = f"python -m mirai_bench.sweep {args.files[0]}"
        log.info(f"{len(failed)} cells failed; the same command tries them again: {again}")
    else:
        log.info("next:")
    log.info("  mlflow ui                                # every run: parameters, curves, sample grids")
    log.info(f"  python analysis/plot_convergence.py      # {plan.sweep.axis}: metric against epochs")
    return 1 if failed else 0


def status_action(args: argparse.Namespace) -> int:
    """Prints the state of every cell."""
    print(status(_plan_of(args)))
    return 0


def search_action(args: argparse.Namespace) -> int:
    """Tunes an arm and prints a row per drawn configuration. Returns 1 if nothing was measured."""
    _file_of(args)
    _check_ray(args)
    plan = _plan_of(args)
    from mirai_bench.sweep.driver import Options
    from mirai_bench.sweep.search import describe_search, run_search

    path = Path(args.files[0])
    if args.dry_run:
        print(describe_search(plan, path))
        return 0
    rows = run_search(plan, path, Options(args.max_concurrent, args.address, args.retries))
    lines = []
    for row in rows:
        values = [
            f"{value:.4g}" if isinstance(value, float) else str(value) for value in row["values"].values()
        ]
        epoch = UNKNOWN if row["epoch"] is None else f"{row['epoch']:g}"
        metric = UNKNOWN if row["metric"] is None else f"{row['metric']:.4f}"
        lines.append([*values, epoch, metric, row["fingerprint"] or UNKNOWN, row["state"]])
    print(console_table([*rows[0]["values"], "epoch", "metric", "fingerprint", "state"], lines))
    return 0 if any(row["metric"] is not None for row in rows) else 1


def schema_action(args: argparse.Namespace) -> int:
    """Writes the schemas and prints their paths."""
    if args.files:
        raise UserError(f"schema takes no file, found {args.files[0]!r}")
    from mirai_bench.config.json_schema import write_schemas

    for path in write_schemas(SWEEPS / "schema"):
        print(path)
    return 0


Action = tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]
ACTIONS: dict[str, Action] = {
    "run": (run_parser, run_action),
    "status": (status_parser, status_action),
    "search": (search_parser, search_action),
    "schema": (schema_parser, schema_action),
}


def show_table(plan: Plan) -> None:
    """Prints the table, or logs why the records do not belong in one. Prints nothing before the first evaluation."""
    from mirai_bench.results.reading import read_journals
    from mirai_bench.results.table import build_table
    from mirai_bench.results.writers import markdown

    for results in read_journals(plan.runs, plan.sweep.axis, plan.profile):
        if results.records:
            try:
                print(markdown(build_table(results)), flush=True)
            except UserError as error:
                log.info(f"no table: {error}")


# ---- what is shown without starting anything


def dry_run(plan: Plan, max_concurrent: int | None) -> str:
    """Returns a table of the cells with what they cost, and a summary of those that are missing."""
    rate = measured_rate(plan)
    costs: list[Cost] = []  # of the missing cells
    rows = []
    for cell in plan.sweep.cells:
        state = folder_of(cell).state
        cost = cost_of(cell, rate)
        if state != "done":
            costs.append(cost)
        disk = disk_used(cell) if state == "done" else cost.disk
        row = [cell.arm, str(cell.seed), cell.fingerprint, state]
        rows.append([*row, _flops(cost.flops), _hours(cost.seconds), _size(disk)])
    flops = sum(cost.flops or 0.0 for cost in costs)
    disk = sum(cost.disk for cost in costs)
    summary = (
        f"{len(rows)} cells, {len(costs)} to run: {_flops(flops)} FLOPs of training, {_size(disk)} of checkpoints"
    )
    if any(cost.flops is None for cost in costs):
        summary += ", without the cells whose FLOPs are not known"
    if rate and costs:
        seconds = sum(cost.seconds or 0.0 for cost in costs)
        fitting = (os.cpu_count() or 1) // plan.sweep.cells[0].config.machine.cpus
        at_a_time = min(max_concurrent or fitting or 1, len(costs))
        wall = _hours(seconds / at_a_time)
        summary += f", {_hours(seconds)} h of trials, about {wall} h with {at_a_time} at a time"
    elif costs:
        summary += "; hours are estimated once a run of this profile has finished here"
    header = ["arm", "seed", "fingerprint", "state", "FLOPs", "hours", "disk"]
    return f"{console_table(header, rows)}\n{summary}"


def status(plan: Plan) -> str:
    """Returns a table of the cells with their states, and how many there are of each."""
    rows = []
    for cell in plan.sweep.cells:
        state = folder_of(cell).state
        rows.append([cell.arm, str(cell.seed), cell.fingerprint, state, _detail(cell, state)])
    counts = Counter(row[3] for row in rows)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{console_table(['arm', 'seed', 'fingerprint', 'state', ''], rows)}\n{summary}"


def _detail(cell: Cell, state: str) -> str:
    """Returns what `status` says of a cell besides its state."""
    if state == "done":
        return ""
    if state == "failed":
        return str(folder_of(cell).failure())
    epochs = cell.config.train.epochs
    progress = folder_of(cell).progress(epochs)
    if state != "running" and not progress.epoch:
        return ""
    detail = f"epoch {progress.epoch:.1f} of {epochs}"
    if state == "running" and progress.seconds_left is not None:
        detail += f", {duration(progress.seconds_left)} left"
    return detail


def _flops(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2e}"


def _hours(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{seconds / 3600:.3g}"


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


if __name__ == "__main__":
    sys.exit(run(command))
