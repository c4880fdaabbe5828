"""Where edgebench keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$EDGEBENCH_CACHE``, else ``$XDG_CACHE_HOME/edgebench``, else ``~/.cache/edgebench``."""
    if own := os.environ.get("EDGEBENCH_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgebench"
