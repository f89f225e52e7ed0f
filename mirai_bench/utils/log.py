"""What a command says while it works. It goes to stderr, because stdout carries results only.

Modules call `logging.getLogger(__name__)`. A command, or a worker process of one, calls
`configure_logging` once.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import unicodedata


def printable(text: str) -> str:
    """Returns the text as a terminal may be given it.

    Names of files may hold control characters, which would command the terminal, and bytes that are
    no UTF-8.
    """
    is_odd = {character: unicodedata.category(character) in ("Cc", "Cs") for character in set(text) - {"\n"}}
    return "".join(ascii(c)[1:-1] if is_odd.get(c) else c for c in text)


class _Handler(logging.Handler):
    """Shows the plain message on a terminal, and the time and the rank with it elsewhere."""

    def format(self, record: logging.LogRecord) -> str:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        message = printable(f"{warning}{record.getMessage()}")
        if sys.stderr.isatty():
            return message
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        # torchrun and Ray Train set these variables.
        alone = os.environ.get("WORLD_SIZE", "1") in ("", "1")
        rank = "" if alone else f" [rank {os.environ.get('RANK', 0)}]"
        return f"{moment}{rank} {message}"

    def emit(self, record: logging.LogRecord) -> None:
        # To whatever sys.stderr is at that moment, because it may be redirected to a log file.
        print(self.format(record), file=sys.stderr, flush=True)


def configure_logging() -> None:
    """Sends the messages of the project's loggers to stderr. Calling it again changes nothing."""
    logger = logging.getLogger("mirai_bench")
    if logger.handlers:
        return
    logger.addHandler(_Handler())
    logger.setLevel(logging.INFO)
    # A library that configures the root logger would otherwise show every message twice.
    logger.propagate = False
