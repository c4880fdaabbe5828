"""Keep the exporters' known chatter off the user's terminal; everything else they say passes through."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: Lines on stderr that tell a user nothing: native logs of level INFO, and warnings about optional parts
#: of the libraries that are not for this machine or that only the libraries' authors can mend.
_CHATTER = re.compile(
    r"^\[cpuinfo_utils\.cpp:\d+\]"
    r"|^I\d{4} \d\d:|^I0000 00:00:|^INFO: "
    r"|^WARNING: All log messages before absl::InitializeLog"
    r"|^Failed to load \S*torchao\S*\.so"
    r"|is an Enum subclass and is now natively supported by torch\.compile"
    r"|torchvision is not installed\. Skipping torchvision::"
)
#: Python warnings of the same kind, by category and start of message.
_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (DeprecationWarning, ""),  # between libraries; Python hides them outside of tests, too
)


@contextlib.contextmanager
def exporters() -> Iterator[None]:
    """Run the block without the chatter of torchao, litert-torch, TensorFlow's converter and LiteRT."""
    before = os.environ.get("LITERT_TORCH_SHOW_PROGRESS")
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    try:
        with warnings.catch_warnings(), _filtered_stderr():
            for category, start in _WARNINGS:
                warnings.filterwarnings("ignore", message=start, category=category)
            yield
    finally:
        if before is None:
            del os.environ["LITERT_TORCH_SHOW_PROGRESS"]
        else:
            os.environ["LITERT_TORCH_SHOW_PROGRESS"] = before


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Hold back file descriptor 2 (native code writes there), then pass on what is not chatter."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held.read().decode("utf-8", "replace").splitlines(keepends=True):
                # What a failing exporter dumps (graphs, traces) is for --verbose: the error says it shortly.
                if failed:
                    logger.debug("%s", line.rstrip())
                elif not _CHATTER.search(line):
                    sys.stderr.write(line)
