"""Signals that ask a process to come to an end, such as SIGTERM before a preemption."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signals(react: Callable[[], None], *signals: signal.Signals) -> Iterator[None]:
    """Calls `react()` on each of these signals while the block runs, and not what they did before.

    What they did before is restored at the end. Outside of the main thread nothing is changed,
    because signals belong to whoever owns that thread, and Python lets nobody else set them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: react()) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
