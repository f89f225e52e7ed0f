"""Places that a command will write to. They are checked when its words are read, before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mirai_bench.utils.errors import UserError

OUT = "out"  # the folder for a user's tables and figures, which git ignores
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def output_file(*endings: str, makes_folder: bool = False) -> Callable[[str], Path]:
    """Returns the `type` of an option of argparse: the path of a file that can be written.

    Its name has one of `endings`, if there are any. Its folder is there or, with `makes_folder`, can be
    made. Raises UserError otherwise.
    """

    def check(text: str) -> Path:
        path = Path(text).expanduser()
        if endings and path.suffix.lower() not in endings:
            raise UserError(f"{text!r} cannot be written: write a name that ends in {' or '.join(endings)}")
        if path.is_dir():
            raise UserError(f"{text!r} cannot be written: it is a folder; write the name of a file")
        if makes_folder:
            output_folder(str(path.parent))
        elif not path.absolute().parent.is_dir():
            raise UserError(
                f"{text!r} cannot be written: there is no folder {str(path.parent)!r}; make it first"
            )
        there = path if path.exists() else path.absolute().parent
        if there.exists() and not os.access(there, os.W_OK):
            raise UserError(f"{text!r} cannot be written: you have no right to; write another place")
        return path

    return check


def output_folder(text: str) -> Path:
    """Is the `type` of an option of argparse: a folder that is there, or can be made.

    Raises UserError otherwise.
    """
    path = Path(text).expanduser()
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "you have no right to write there" if there.is_dir() else "it is no folder"
        raise UserError(f"{text!r} cannot be made a folder ({str(there)!r}: {reason}): write another place")
    return path
