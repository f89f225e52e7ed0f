"""What every command shares: how it ends, its common options, and how it shows progress.

stdout carries results. Everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

from tqdm import tqdm

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.log import configure_logging, printable
from mirai_bench.utils.plugins import import_plugin

T = TypeVar("T")
log = logging.getLogger(__name__)

MOST_SHOWN = 4_000  # characters of an error
# What the system says of a disk that is full or may only be read, and of missing rights.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
SECONDS_PER_LINE = 30  # between two lines of progress where stderr is not a terminal


def run(command: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Runs `command(argv)` and returns its exit code.

    A UserError becomes one message on stderr and exit code 2, and so does a disk that is full or may
    not be written. Ctrl-C becomes exit code 130.
    """
    # What a terminal's encoding lacks is replaced: no result is lost for an arrow.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    configure_logging()
    try:
        return command(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `… | head`, has closed it
        sys.stderr.close()  # or Python would report it there at its exit
        return 0
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = error.filename or "a file"
        return _refuse(f"{where}: {error.strerror}. What was written before is whole")


def _refuse(message: str) -> int:
    """Prints an error and returns the exit code for it."""
    shown = message if len(message) <= MOST_SHOWN else f"{message[:MOST_SHOWN]}…"
    print(f"error: {printable(shown)}", file=sys.stderr)
    return 2


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument CONFIG, which names the configuration of a run, and `--set`."""
    help = "a run file (YAML), a run's config.json, or the name of a profile such as digits"
    parser.add_argument("config", metavar="CONFIG", help=help)
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser, example: str = "train.epochs=5") -> None:
    """Adds `--set`, which overrides fields of the configuration, and `--import`.

    The values of `--set` are collected in `settings`.
    """
    help = f"override a field of the configuration, such as {example}; may be given several times"
    parser.add_argument(
        "--set",
        action="append",
        default=[],  # so that `settings` is a list without the option, too
        metavar="SECTION.FIELD=VALUE",
        dest="settings",
        help=help,
    )
    add_import(parser)


class Numbers(argparse.Action):
    """Collects whole numbers, which may be separated by spaces or commas, over all uses of an option."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Is called by argparse with the words of one use. Exits if one is no number, or if there is none."""
        words = [part for word in values for part in word.split(",") if part]
        try:
            numbers = [int(word) for word in words]
        except ValueError:
            numbers = []
        if not numbers:
            parser.error(f"argument {option_string}: write whole numbers, found {' '.join(values)!r}")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *numbers])


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds `--import`, which imports a plug-in while the command line is read, before anything else is."""
    help = "import a plug-in first, a module or a .py file of your own; may be given several times"
    parser.add_argument(
        "--import",
        action="append",
        type=import_plugin,
        default=[],
        metavar="MODULE",
        dest="plugins",
        help=help,
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, which `utils.device.resolve_device` reads."""
    help = "auto (a GPU if one is visible), cpu, cuda or cuda:N; default auto"
    parser.add_argument("--device", default="auto", help=help)


def progress(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    weigh: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Yields the items and shows how many are done: by a bar, or by a line every 30 seconds.

    `initial` and `total` are counted in units; `weigh(item)` is the number of units of an item.
    """
    # 1. A terminal: a bar that renews itself.
    if sys.stderr.isatty():
        shown: dict[str, Any] = {"desc": what, "total": total, "unit": unit, "initial": initial}
        with tqdm(**shown, dynamic_ncols=True, leave=False) as bar:
            for item in items:
                yield item
                bar.update(weigh(item))  # after the `yield`: the caller is then done with the item
        return
    # 2. A file: a line now and then.
    start = monotonic()
    last = start
    done = 0
    for item in items:
        yield item
        done += weigh(item)
        now = monotonic()
        if now - last >= SECONDS_PER_LINE:
            last = now
            # Without the `initial` units, which an earlier process did.
            rate = done / (now - start)
            of_total = f"/{total}" if total else ""
            left = f", {(total - initial - done) / rate:.0f} s left" if total and rate else ""
            log.info(f"{what}: {initial + done}{of_total} {unit}, {rate:.1f} {unit}/s{left}")
