"""What every command shares: how it ends, and how it shows progress. stdout carries results; everything else goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

from mirai_bench.utils.errors import UserError

T = TypeVar("T")


def run(command: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Runs `command(argv)`; a UserError becomes one message on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        return command(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… | head`
        sys.stderr.close()
        return 0


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def progress(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    weigh: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """A bar on a terminal; elsewhere a plain line every 30 s. `weigh`: how many units an item is."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, total=total, unit=unit, initial=initial, dynamic_ncols=True, leave=False) as bar:
            for item in items:
                yield item
                bar.update(weigh(item))
        return
    start = last = monotonic()
    done = 0
    for item in items:
        yield item
        done += weigh(item)
        now = monotonic()
        if now - last >= 30:
            last, rate = now, done / (now - start)
            left = f", {(total - initial - done) / rate:.0f} s left" if total else ""
            say(f"{what}: {initial + done}{f'/{total}' if total else ''} {unit}, {rate:.1f} {unit}/s{left}")
