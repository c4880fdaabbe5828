"""Where edgebench keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from harness.core.errors import UsageError


def cache_dir() -> Path:
    """``$EDGEBENCH_CACHE``, else ``$XDG_CACHE_HOME/edgebench``, else ``~/.cache/edgebench``."""
    own, base = os.environ.get("EDGEBENCH_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "edgebench"
        return folder.expanduser().absolute()
    except RuntimeError as error:  # no HOME, and no such user
        raise UsageError(
            "There is no home folder to keep a cache in.", hint="Set EDGEBENCH_CACHE to a folder."
        ) from error
