"""The command `python -m mirai_bench.sweep`: run, status, search, schema."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mirai_bench.config.load import SWEEPS, parse_sets
from mirai_bench.config.sweep_file import find_sweep
from mirai_bench.sweep.commands import commands
from mirai_bench.sweep.estimate import concurrent_trials, measured_rate
from mirai_bench.sweep.overview import dry_run, status
from mirai_bench.sweep.pace import timed_rate
from mirai_bench.sweep.plan import Plan, folder_of, make_plan
from mirai_bench.utils.cli import Numbers, add_settings, run
from mirai_bench.utils.errors import UserError, unknown
from mirai_bench.utils.outputs import OUT, output_folder
from mirai_bench.utils.text_table import console_table

log = logging.getLogger("mirai_bench.sweep")

# What each action does. Without a word for the action, it is `run`.
ACTIONS = {
    "run": "Trains and evaluates every arm with every seed of a sweep file.",
    "status": "Shows the state of every cell of a sweep file, and how far it is.",
    "search": "Tunes an arm or several, as the file's `search:` says. Its runs are in no table of arms.",
    "noise": "Trains a profile's baseline several times, and shows how much its metrics vary and why.",
    "schema": "Writes the JSON schemas of sweep and profile files into sweeps/schema/.",
}
EPILOG = """examples:
  python -m mirai_bench.sweep sweeps/injection_level.yaml --dry-run   shows cells and their costs
  python -m mirai_bench.sweep sweeps/injection_level.yaml             trains what is missing
  python -m mirai_bench.sweep sweeps/injection_level.yaml --seeds 10 11 12 13
  python -m mirai_bench.sweep sweeps/foresight_source.yaml --only mirai-e-k3 --set foresight.k=9
  python -m mirai_bench.sweep sweeps/injection_level.yaml --profile cifar10 --address auto
  python -m mirai_bench.sweep sweeps/injection_level.yaml --commands | xargs -P 2 -I CELL sh -c CELL

other commands (each has its own --help):
  python -m mirai_bench.sweep status sweeps/injection_level.yaml      shows how far the cells are
  python -m mirai_bench.sweep search my_sweep.yaml                    tunes an arm
  python -m mirai_bench.sweep noise digits                            how much the metrics vary
  python -m mirai_bench.sweep schema                                  writes schemas for editors"""


# ---- the command line


def parser(action: str = "run") -> argparse.ArgumentParser:
    """Returns the parser of an action's own words."""
    prog = "python -m mirai_bench.sweep"
    result = argparse.ArgumentParser(
        prog=prog if action == "run" else f"{prog} {action}",
        description=ACTIONS[action],
        epilog=EPILOG if action == "run" else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    # Any number of files is parsed, so that `command` can say what is wrong with it.
    what = argparse.SUPPRESS if action == "schema" else "the sweep file"
    if action == "noise":
        what = "the profile: a name, or a file"
    add("files", nargs="*", metavar="PROFILE" if action == "noise" else "FILE.yaml", help=what)
    if action == "schema":
        return result
    if action == "noise":
        _add_panel(add)
        add_settings(result)
        _add_trials(add)
        _add_time(add)
        return result
    # 1. What chooses among the cells of the file. An option given twice adds to its list.
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add("--only", metavar="ARM", help="only these arms of the file", **several)
    seeds: dict[str, Any] = several | {"action": Numbers}
    add("--seeds", metavar="N", help="these seeds instead of the file's", **seeds)
    add("--profile", metavar="NAME", help="this profile instead of the file's: a name, or a file")
    add_settings(result)
    if action == "status":
        return result
    # 2. How the trials are run.
    _add_trials(add)
    if action == "run":
        _add_time(add)
        frozen = "frozen records (reports/data/*.jsonl): a cell that has ended there is not trained again"
        add("--records", type=Path, metavar="FILE", help=frozen, **several)
        further = "go on to the next of the file's looks, with the arms that have no verdict yet"
        add("--until-decided", action="store_true", help=further)
        single = "print a command of `train` for each missing cell, for a job array or xargs; start nothing"
        add("--commands", action="store_true", help=single)
        why = "afterwards, look into the weights of the finished cells: why does an arm help?"
        add("--diagnose", action="store_true", help=why)
    return result


def _add_time(add: Callable[..., Any]) -> None:
    timing = "with --dry-run: time some steps here first, for the hours"
    add("--time", action="store_true", help=timing)


def _add_panel(add: Callable[..., Any]) -> None:
    add("--trainings", type=int, default=10, metavar="N", help="of each source; default 10")
    add("--samplings", type=int, default=5, metavar="N", help="evaluations of each; default 5")
    add("--first-seed", type=int, default=10, metavar="N", help="of the trainings; default 10")
    add("--out", type=output_folder, default=OUT, help=f"folder of the tables; default {OUT}")


def _add_trials(add: Callable[..., Any]) -> None:
    add("--dry-run", action="store_true", help="show what will be run and its cost, start nothing")
    add("--max-concurrent", type=int, metavar="N", help="concurrent trials; default as many as fit")
    where = "join this Ray cluster (auto, HOST:PORT, ray://…), as RAY_ADDRESS does; default none"
    add("--address", metavar="ADDR", help=where)
    attempts = "attempts after a lost worker or a broken device; default 2"
    add("--retries", type=int, default=2, metavar="N", help=attempts)


def command(argv: list[str]) -> int:
    """Runs the command and returns its exit code."""
    # 1. The words.
    action = argv[0] if argv and argv[0] in ACTIONS else "run"
    words = argv[1:] if argv[:1] == [action] else argv
    args = parser(action).parse_intermixed_args(words)
    args.words = argv  # for the command that goes on
    if action == "schema":
        from mirai_bench.config.json_schema import write_schemas

        if args.files:
            raise UserError(f"schema takes no file, found {args.files[0]!r}")
        # Those of an installed package stay as they are.
        folder = Path("schema") if SWEEPS.parent.name == "shipped" else SWEEPS / "schema"
        print(*write_schemas(folder), sep="\n")
        return 0
    refuse_misspelt(args, action)
    if action == "noise":
        return measure_noise(args)
    # 2. What starts nothing.
    path = find_sweep(args.files[0])
    choices = {"profile": args.profile, "seeds": args.seeds, "only": args.only}
    plan = make_plan(path, settings=args.settings, **choices)
    for reason in plan.sweep.left_out.values():
        log.info(f"left out: {reason}")
    if action == "status":
        print(status(plan))
        return 0
    # 3. What needs Ray, which takes a second to import.
    return search(plan, path, args) if action == "search" else run_looks(plan, path, args)


def refuse_misspelt(args: argparse.Namespace, action: str) -> None:
    """Raises UserError for words that do not belong together, or values out of range."""
    parse_sets(args.settings)  # for its UserError: `--set a b` leaves b among the files
    if len(args.files) > 1 and get_close_matches(args.files[0], ACTIONS):
        raise unknown("action", args.files[0], ACTIONS)
    if len(args.files) != 1:
        what = "profile" if action == "noise" else "sweep file"
        example = "digits" if action == "noise" else f"{SWEEPS.name}/injection_level.yaml"
        raise UserError(f"one {what} at a time, found {len(args.files)}: write for instance {example}")
    for name, least in (("max_concurrent", 1), ("retries", 0)):
        value = getattr(args, name, None)  # `status` has neither
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}: write {least} or more")
    if getattr(args, "time", False) and not args.dry_run:
        raise UserError("--time times what --dry-run shows: write both")


# ---- the actions


def run_looks(plan: Plan, path: Path, args: argparse.Namespace) -> int:
    """Trains up to the first look, or until all arms are decided. Returns 1 if a cell failed."""
    from mirai_bench.results.frozen import read_jsonl
    from mirai_bench.sweep.looks import can_show, next_look
    from mirai_bench.sweep.recorded import recorded_cells, restore, with_registered

    # 1. What was registered before, and what is only shown.
    if args.until_decided and not plan.sweep.registered["looks"]:
        raise UserError(f"--until-decided: {path} plans no looks: write looks: [6, 12, 24] or the like")
    known = read_jsonl(args.records)
    plan = with_registered(plan, known)
    if args.dry_run:
        print(dry_run(plan, rate_of(plan, args), args.max_concurrent, set(recorded_cells(plan, known))))
        print(can_show(plan))
        return 0
    if args.commands:
        if known:
            log.info(f"{restore(plan, known)} cells are taken from records")
        print("\n".join(commands(plan)))
        return 0
    # 2. The looks.
    looking: Plan | None = plan
    code = 0
    while looking is not None and code == 0:
        if known:
            log.info(f"{restore(looking, known)} cells are taken from records")
        code = train(looking, args)
        choices = {"profile": args.profile, "only": args.only, "settings": args.settings}
        looking = next_look(looking, path, **choices) if args.until_decided and code == 0 else None
    return code


def rate_of(plan: Plan, args: argparse.Namespace) -> float | None:
    """Returns the FLOPs per second of a run here, timed now or from finished runs, or None."""
    if args.time:
        return timed_rate(plan.sweep.cells[0], concurrent_trials(plan, args.max_concurrent))
    return measured_rate(plan)


def train(plan: Plan, args: argparse.Namespace) -> int:
    """Trains what is missing and prints the table. Returns 1 if a cell failed, or there is no table."""
    from mirai_bench.sweep.driver import Options, run_sweep
    from mirai_bench.tracking.mlflow_store import ui_command

    # 1. Train. stdout gets the table, and stderr everything else.
    report = run_sweep(plan, Options(args.max_concurrent, args.address, args.retries))
    log.info(report.line())
    is_shown = show_table(plan)
    if args.diagnose:
        from mirai_bench.sweep.diagnosing import diagnose_finished

        diagnose_finished(plan)
    # 2. What failed, and what to do next.
    failed = [cell for cell in plan.sweep.cells if folder_of(cell).state == "failed"]
    for cell in failed:
        folder = folder_of(cell)
        reason = f"{folder.reason()} (log: {folder.log_file})"
        log.info(f"failed: {cell.arm}, seed {cell.seed}: {reason}")
    again = f"the same command tries them again: python -m mirai_bench.sweep {shlex.join(args.words)}"
    log.info(f"{len(failed)} cells failed; {again}" if failed else "next:")
    log.info(f"  {ui_command()}   # every run: parameters, curves, grids")
    log.info(f"  mirai-bench plot   # {plan.sweep.axis}: metric against epochs")
    if args.diagnose:
        log.info(f"  python analysis/diagnose.py --runs {plan.runs}   # why: one figure for each diagnostic")
    return 1 if failed or not is_shown else 0


def search(plan: Plan, path: Path, args: argparse.Namespace) -> int:
    """Tunes each arm that the file says. Returns 1 if nothing was measured of one of them."""
    from mirai_bench.sweep.driver import Options
    from mirai_bench.utils.home import ensure_home

    ensure_home(plan.runs)
    from mirai_bench.sweep.search import describe_search, plan_searches, run_search  # which imports Ray

    searches = plan_searches(plan, path)
    if args.dry_run:
        print("\n---\n".join(map(describe_search, searches)))
        return 0
    options = Options(args.max_concurrent, args.address, args.retries)
    found = [show_search(one.arm, run_search(one, plan, options)) for one in searches]
    return 0 if all(found) else 1


def show_search(arm: str, rows: list[dict[str, Any]]) -> bool:
    """Prints a row per drawn configuration, and the best one. Returns whether there is one."""
    from mirai_bench.sweep.search_table import best_of, in_words, in_yaml, table_of

    print(console_table(*table_of(rows)))
    best = best_of(rows)
    if best is None:
        return False
    log.info(f"the best configuration of {arm}: {in_words(best['values'], '--set ')}")
    log.info(f"  as YAML: {in_yaml(best['values'])}")
    return True


def measure_noise(args: argparse.Namespace) -> int:
    """Trains and evaluates a noise panel and prints its tables. Returns 1 if a training failed."""
    from mirai_bench.sweep.driver import Options
    from mirai_bench.sweep.noise import Panel, run_panel

    for name in ("trainings", "samplings"):
        value = getattr(args, name)
        if value < 2:
            raise UserError(f"--{name} is {value}: a standard deviation needs 2 or more")
    numbers = (args.trainings, args.samplings, args.first_seed)
    panel = Panel(args.files[0], *numbers, tuple(args.settings))
    if args.dry_run:
        plan = panel.plan()
        print(dry_run(plan, rate_of(plan, args), args.max_concurrent))
        return 0
    return run_panel(panel, Options(args.max_concurrent, args.address, args.retries), args.out)


def show_table(plan: Plan) -> bool:
    """Prints the table, or logs why the records do not belong in one, and returns False then.

    Prints nothing before the first evaluation.
    """
    from mirai_bench.results.reading import read_journals
    from mirai_bench.results.table import build_table
    from mirai_bench.results.terminal import for_stdout
    from mirai_bench.results.writers import document

    for results in read_journals(plan.runs, plan.sweep.axis, plan.profile):
        if results.records:
            try:
                print(for_stdout(document(build_table(results))), flush=True)
            except UserError as error:
                log.info(f"no table: {error}")
                return False
    return True


if __name__ == "__main__":
    sys.exit(run(command))
