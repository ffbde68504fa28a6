"""Where downloads and builds are cached."""

from __future__ import annotations

import os
from pathlib import Path

from symrnn.files.errors import UserError


def cache_folder(variable: str, name: str = "") -> Path:
    """The folder that an environment variable names, else `name` inside ~/.cache/symrnn.

    It need not exist. Raises UserError if the variable is not set and there is no home, as in a
    container that runs as a user without an entry.
    """
    given = os.environ.get(variable)
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache" / "symrnn" / name
    except RuntimeError:
        raise UserError(
            f"there is no home folder to cache files in; another can be given in ${variable}"
        ) from None
