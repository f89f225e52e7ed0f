"""Errors for the user: one message that says what is wrong, the value found, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Ends a command with its message and exit code 2, without a traceback."""


def unknown(what: str, name: object, known: Iterable[object]) -> UserError:
    """`unknown("arm", "mira-e", arms)`: names the nearest known name, then all of them (at most 20)."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"Unknown {what} {str(name)!r}.{hint} Known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
    )
