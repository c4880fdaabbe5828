"""
What a person or a machine reads of a run, one file per kind: ``SUFFIX`` and ``render(run) -> str``.

A rendering is pure: it reads no file of the run, asks no clock and opens no connection. Every cell that was
asked for is in it, measured or with the reason why not.
"""

from __future__ import annotations

from typing import Protocol

from harness.core.types import Run


class Report(Protocol):
    """The interface of a module in this folder."""

    SUFFIX: str  # of the file that the rendering is written to, with its dot

    def render(self, run: Run) -> str:
        """The whole rendering as text."""
