"""What a command says while it works. It goes to stderr, because stdout carries results only.

Modules call `logging.getLogger(__name__)`. A command, or a worker process of one, calls `configure_logging` once.
"""

from __future__ import annotations

import logging
import os
import sys
import time


class _Formatter(logging.Formatter):
    """Shows the plain message on a terminal. Elsewhere, as in a log file, it adds the time and the rank."""

    def format(self, record: logging.LogRecord) -> str:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        message = f"{warning}{record.getMessage()}"
        if sys.stderr.isatty():
            return message
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        rank = f" [rank {os.environ.get('RANK', 0)}]" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        return f"{moment}{rank} {message}"


class _Handler(logging.Handler):
    """Writes to whatever sys.stderr is at that moment, because a trial redirects it to its run's log file."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def configure_logging() -> None:
    """Sends the messages of the project's loggers to stderr. Calling it again changes nothing."""
    logger = logging.getLogger("mirai_bench")
    if logger.handlers:
        return
    handler = _Handler()
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
