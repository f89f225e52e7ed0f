"""The home and the name of a user who has none."""

from __future__ import annotations

import getpass
import os
from pathlib import Path


def ensure_home(folder: Path) -> None:
    """Gives a user without a name and a home what Ray and MLflow ask for when they are imported.

    A container that is started with any number as its user has neither.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(folder.absolute())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
