"""Progress: plain lines where there is no terminal, never flooded and never silent."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness import progress
from harness.core.types import Progress


def test_a_stage_is_printed_when_it_starts_and_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at one moment of a stopped clock, so nothing in between is due."""
    monkeypatch.setattr("harness.progress.time.monotonic", lambda: 100.0)
    out = io.StringIO()
    lines = progress._Lines(Console(file=out, width=200))
    for done in range(31):
        lines(Progress(stage="train", done=done, total=30))
    assert [line.split("] ")[1] for line in out.getvalue().splitlines()] == ["train 0/30", "train 30/30"]


def test_a_slow_stage_is_printed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("harness.progress.time.monotonic", lambda: 100.0)
    lines = progress._Lines(Console(file=out, width=200))
    for now in (100.0, 104.0, 112.0):
        monkeypatch.setattr("harness.progress.time.monotonic", lambda now=now: now)
        lines(Progress(stage="train", done=int(now), total=300))
    assert [line.split("] ")[1] for line in out.getvalue().splitlines()] == ["train 100/300", "train 112/300"]


def test_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    lines = progress._Lines(Console(file=out, width=200))
    lines(Progress(stage="export", done=0, total=3))
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.0)

    class Once:
        asked = 0

        def wait(self, timeout: float) -> bool:
            self.asked += 1
            return self.asked > 1

    lines._beat(Once())  # type: ignore[arg-type]
    assert out.getvalue().splitlines()[-1].endswith("export ...")


def test_brackets_in_names_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reporter() as show:
        show.say("[red]a[/red]")
    assert "[red]a[/red]" in capsys.readouterr().err
