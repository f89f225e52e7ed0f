"""Errors for the user: one message that says what is wrong, the value found, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 20


class UserError(Exception):
    """An error of the user's making. A command that raises it prints its message and ends with exit code 2."""


def unknown(what: str, name: object, known: Iterable[object]) -> UserError:
    """Returns the error for a name that is not known, for instance `unknown("arm", "mira-e", arms)`.

    The message suggests the nearest known name and then lists the known names, at most 20 of them.
    """
    names = [str(item) for item in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = ", …" if len(names) > MOST_NAMES else ""
    return UserError(f"Unknown {what} {str(name)!r}.{hint} Known: {', '.join(names[:MOST_NAMES])}{more}")
