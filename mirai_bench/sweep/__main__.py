"""The command line of sweeps: run, --dry-run, status, schema."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mirai_bench.config.load import SWEEPS
from mirai_bench.sweep.estimate import cost_of, disk_used, measured_rate
from mirai_bench.sweep.plan import Plan, make_plan, run_dir_of
from mirai_bench.sweep.progress import duration
from mirai_bench.tracking.run_folder import failure_of, progress_of, state_of
from mirai_bench.utils.cli import run, say
from mirai_bench.utils.errors import UserError

EPILOG = """examples:
  python -m mirai_bench.sweep sweeps/injection_level.yaml                 trains what is missing; again: goes on where it stopped
  python -m mirai_bench.sweep sweeps/injection_level.yaml --dry-run       cells, FLOPs, hours, disk; nothing is started
  python -m mirai_bench.sweep sweeps/injection_level.yaml --seeds 0 1 2 3 4
  python -m mirai_bench.sweep sweeps/foresight_source.yaml --only mirai-e-k3 --set foresight.weight=1.0
  python -m mirai_bench.sweep sweeps/injection_level.yaml --profile cifar10 --address auto
  python -m mirai_bench.sweep status sweeps/injection_level.yaml
  python -m mirai_bench.sweep search my_sweep.yaml                        tunes an arm, as the file's `search:` says; apart from the table
  python -m mirai_bench.sweep schema                                      JSON schemas for editors, into sweeps/schema/"""


ACTIONS = ("status", "search", "schema")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m mirai_bench.sweep",
        usage="%(prog)s [status | search] FILE.yaml [options] | schema",
        description="Trains and evaluates every arm with every seed of a sweep file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add(
        "words",
        nargs="+",
        metavar="FILE.yaml",
        help="the sweep file; `status FILE.yaml` shows its cells; `schema` writes JSON schemas",
    )
    add("--dry-run", action="store_true", help="show the cells and what they will cost, start nothing")
    add("--only", nargs="+", action="extend", default=[], metavar="ARM", help="these arms alone")
    add(
        "--seeds", nargs="+", action="extend", type=int, default=[], metavar="N", help="instead of the file's"
    )
    add("--profile", metavar="NAME", help="instead of the file's: digits, cifar10, … or the path of a file")
    add(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        dest="settings",
        help="a field of every cell, such as train.epochs=5",
    )
    add("--max-concurrent", type=int, metavar="N", help="trials at a time; by default as many as fit")
    add(
        "--address",
        metavar="ADDR",
        help="join this Ray cluster (auto, HOST:PORT, ray://…) instead of starting Ray here; also RAY_ADDRESS",
    )
    add(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="attempts after a lost worker or a broken device (default 2)",
    )
    return top


def command(argv: list[str]) -> int:
    args = parser().parse_intermixed_args(argv)
    action = args.words[0] if args.words[0] in ACTIONS else None
    files = args.words[1:] if action else args.words
    if action == "schema":
        return write_schemas(files)
    if len(files) != 1:
        raise UserError(
            f"one sweep file at a time, found {len(files)}: write for instance {SWEEPS.name}/injection_level.yaml"
        )
    for name, value, least in (("--max-concurrent", args.max_concurrent, 1), ("--retries", args.retries, 0)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}: write {least} or more")
    choices = {"profile": args.profile, "seeds": args.seeds, "only": args.only, "settings": args.settings}
    plan = make_plan(Path(files[0]), **choices)
    if action == "status":
        print(status(plan))
        return 0
    if action == "search":
        return search(plan, args, Path(files[0]))
    if args.dry_run:
        print(dry_run(plan, args.max_concurrent))
        return 0
    return train(plan, args, files[0])


def train(plan: Plan, args: argparse.Namespace, file: str) -> int:
    from mirai_bench.sweep.driver import Options, run_sweep

    report = run_sweep(plan, Options(args.max_concurrent, args.address, args.retries))
    say(report.line())
    show_table(plan)
    failed = [cell for cell in plan.sweep.cells if state_of(run_dir_of(cell)) == "failed"]
    for cell in failed:
        say(
            f"failed: {cell.arm}, seed {cell.seed}: {failure_of(run_dir_of(cell))} (log: {run_dir_of(cell) / 'log.txt'})"
        )
    again = f"python -m mirai_bench.sweep {file}"
    say(f"{len(failed)} cells failed; the same command tries them again: {again}" if failed else "next:")
    say("  mlflow ui                                # every run: parameters, curves, sample grids")
    say(f"  python analysis/plot_convergence.py      # {plan.sweep.axis}: metric against epochs")
    return 1 if failed else 0


def search(plan: Plan, args: argparse.Namespace, path: Path) -> int:
    from mirai_bench.sweep.driver import Options
    from mirai_bench.sweep.search import run_search

    rows = run_search(plan, path, Options(args.max_concurrent, args.address, args.retries))
    names = list(rows[0]["values"])
    texts = [
        [
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row["values"].values()),
            "—" if row["epoch"] is None else f"{row['epoch']:g}",
            "—" if row["metric"] is None else f"{row['metric']:.4f}",
            row["fingerprint"] or "—",
            row["state"],
        ]
        for row in rows
    ]
    print(table([*names, "epoch", "metric", "fingerprint", "state"], texts))
    return 0 if any(row["metric"] is not None for row in rows) else 1


def show_table(plan: Plan) -> None:
    """On stdout; nothing where no cell has been evaluated yet, and a note where the records do not belong in one table."""
    from mirai_bench.results.reading import read_journals
    from mirai_bench.results.table import build_table
    from mirai_bench.results.writers import markdown

    for results in read_journals(plan.runs, plan.sweep.axis, plan.profile):
        if results.records:
            try:
                print(markdown(build_table(results)), flush=True)
            except UserError as error:
                say(f"no table: {error}")


# ---- what is shown without starting anything


def dry_run(plan: Plan, max_concurrent: int | None) -> str:
    rate = measured_rate(plan)
    rows, total_flops, total_seconds, total_disk, missing = [], 0.0, 0.0, 0, 0
    for cell in plan.sweep.cells:
        state, cost = state_of(run_dir_of(cell)), cost_of(cell, rate)
        if state != "done":
            missing += 1
            total_flops += cost.flops or 0.0
            total_seconds += cost.seconds or 0.0
            total_disk += cost.disk
        disk = disk_used(cell) if state == "done" else cost.disk
        rows.append(
            [
                cell.arm,
                str(cell.seed),
                cell.fingerprint,
                state,
                flops(cost.flops),
                hours(cost.seconds),
                size(disk),
            ]
        )
    machine = plan.sweep.cells[0].config.machine
    at_a_time = min(max_concurrent or (os.cpu_count() or 1) // machine.cpus or 1, max(1, missing))
    summary = f"{len(rows)} cells, {missing} to run: {flops(total_flops)} FLOPs of training, {size(total_disk)} of checkpoints"
    if rate and missing:
        summary += f", {hours(total_seconds)} h of trials, about {hours(total_seconds / at_a_time)} h with {at_a_time} at a time"
    elif missing:
        summary += "; hours are estimated once a run of this profile has finished here"
    return table(["arm", "seed", "fingerprint", "state", "FLOPs", "hours", "disk"], rows) + f"\n{summary}"


def status(plan: Plan) -> str:
    rows = []
    for cell in plan.sweep.cells:
        run_dir = run_dir_of(cell)
        state = state_of(run_dir)
        detail = ""
        if state == "failed":
            detail = failure_of(run_dir)
        elif state != "done":
            progress = progress_of(run_dir, cell.config)
            detail = (
                f"epoch {progress.epoch:.1f} of {cell.config.train.epochs}"
                if progress.epoch or state == "running"
                else ""
            )
            if state == "running" and progress.seconds_left is not None:
                detail += f", {duration(progress.seconds_left)} left"
        rows.append([cell.arm, str(cell.seed), cell.fingerprint, state, detail])
    counts = {
        state: sum(row[3] == state for row in rows) for state in ("done", "running", "failed", "pending")
    }
    return (
        table(["arm", "seed", "fingerprint", "state", ""], rows)
        + "\n"
        + ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)


def flops(value: float | None) -> str:
    return "—" if value is None else f"{value:.2e}"


def hours(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds / 3600:.3g}"


def size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def write_schemas(extra: list[str]) -> int:
    from mirai_bench.config.json_schema import write

    if extra:
        raise UserError(f"schema takes no file, found {extra[0]!r}")
    for path in write(SWEEPS / "schema"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
