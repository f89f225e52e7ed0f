"""A block that reacts to signals: each time, until it ends, and in the main thread only."""

import signal
import threading

from mirai_bench.utils.signals import on_signals


def test_signals_are_answered_while_the_block_runs_and_then_as_before():
    before = signal.getsignal(signal.SIGTERM)
    calls = []
    with on_signals(lambda: calls.append("asked"), signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert calls == ["asked"] * 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    try:
        with on_signals(lambda: None, signal.SIGINT):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with on_signals(lambda: None, signal.SIGTERM):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
