"""Errors for the user: one message that says what is wrong, what was found, and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 20  # in one message


class UserError(Exception):
    """An error of the user's making.

    A command that raises it prints its message and ends with exit code 2.
    """


def unknown(what: str, name: object, known: Iterable[object]) -> UserError:
    """Returns the error for an unknown name, for instance `unknown("field", "layr", fields)`.

    The message suggests the nearest known name and then lists the known names, at most 20 of them.
    """
    names = [str(item) for item in known]
    near = difflib.get_close_matches(str(name), names, n=1)  # none if nothing is similar
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(names[:MOST_NAMES])
    more = ", …" if len(names) > MOST_NAMES else ""
    return UserError(f"Unknown {what} {str(name)!r}.{hint} Known: {shown}{more}")
