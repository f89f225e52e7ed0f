"""Errors for the user: one message that says what is wrong, what was found, and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 20  # in one message
MOST_CHARACTERS = 80  # of a name in a message
MOST_SUGGESTED = 4


class UserError(Exception):
    """An error of the user's making.

    A command that raises it prints its message and ends with exit code 2.
    """


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns the text, or its beginning if it has more than so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def unknown(what: str, name: object, known: Iterable[object]) -> UserError:
    """Returns the error for an unknown name, for instance `unknown("field", "layr", fields)`.

    The message suggests the names that begin with it, or else the nearest one, and then lists the known
    names, at most 20 of them.
    """
    names = [shortened(str(item)) for item in known]
    name = shortened(str(name))
    begun = [each for each in names if name and each.startswith(name)]
    near = begun[:MOST_SUGGESTED] or difflib.get_close_matches(name, names, n=1)  # none if nothing is similar
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    shown = ", ".join(names[:MOST_NAMES])
    more = ", …" if len(names) > MOST_NAMES else ""
    return UserError(f"Unknown {what} {name!r}.{hint} Known: {shown}{more}")
