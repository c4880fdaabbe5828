"""Progress events to the terminal: bars where there is one, plain lines elsewhere, never a long silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.table import Column

from harness.core.types import Progress

#: Without a terminal: a stage that moves is printed at most this often, and silence is never longer.
EVERY_S = 10.0
HEARTBEAT_S = 20.0


class Reporter(Protocol):
    """Takes progress events and lines for the person who waits; everything goes to standard error."""

    def __call__(self, event: Progress) -> None:
        """Show that work has moved."""

    def say(self, text: str) -> None:
        """Show one line that stays."""


@contextmanager
def reporter() -> Iterator[Reporter]:
    """The reporter that fits standard error: bars on a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with _bars(console) as bars:
            yield _Terminal(bars)
    else:
        lines = _Lines(console)
        with lines.heartbeat():
            yield lines


def _bars(console: Console) -> Bars:
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16, table_column=Column(min_width=16)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn(
            "{task.fields[note]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=console,
        transient=True,
        expand=True,
    )


class _Terminal:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Progress) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=event.total, note="")
        task = self._tasks[event.stage]
        self._bars.update(task, completed=event.done, total=event.total, note=event.note)
        if event.total is not None and event.done >= event.total:
            self._bars.remove_task(self._tasks.pop(event.stage))
            self.say(_line(event))

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._spoke = self._start
        self._last: dict[str, float] = {}
        self._newest = "starting"
        self._lock = threading.Lock()

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        self._newest = event.stage
        finished = event.total is not None and event.done >= event.total
        if finished or now - self._last.get(event.stage, -EVERY_S) >= EVERY_S:
            self._last[event.stage] = now
            self.say(_line(event))

    def say(self, text: str) -> None:
        with self._lock:
            self._spoke = time.monotonic()
            minutes, seconds = divmod(int(self._spoke - self._start), 60)
            self._console.print(f"[{minutes:02d}:{seconds:02d}] {text}", markup=False, soft_wrap=True)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            if time.monotonic() - self._spoke >= HEARTBEAT_S:
                self.say(f"{self._newest} ...")


def _line(event: Progress) -> str:
    of = f" {event.done}/{event.total}" if event.total not in (None, 1) else ""
    note = f"  {event.note}" if event.note else ""
    return f"{event.stage}{of}{note}"
