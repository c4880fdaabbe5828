"""edgebench doctor: this machine really, and devices that are away, in use, lost or bare."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import cli, doctor, leasing, wheels
from harness.commands.doctor import show
from harness.core.errors import DeviceError, TransientDeviceError
from harness.core.types import Device
from harness.diagnosis import Line
from harness.doctor import Page, examine
from harness.session import Session
from harness.transports import local

NAMES = ["reachable", "host key", "clock", "in use", "model", "cpu", "isa", "memory", "system", "clocks"]
NAMES += ["temperature", "throttling", "disk", "load", "executorch", "onnxruntime", "litert", "noise"]


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def resolve(package: str, *_: Any, **__: Any) -> wheels.NoWheel:
        asked.append(package)
        return wheels.NoWheel(reason=f"no connection for {package}", final=package == "onnxruntime")

    monkeypatch.setattr(wheels, "resolve", resolve)
    return asked


@pytest.fixture
def here(tmp_path: Path) -> Device:
    return Device(name="here", transport="local", options={"workdir": str(tmp_path / "work")})


def by_name(page: Page) -> dict[str, Line]:
    return {line.name: line for line in page.lines}


def test_this_machine(here: Device) -> None:
    page = examine(here)
    found = by_name(page)
    assert set(NAMES) <= set(found)
    assert found["reachable"].level == found["in use"].level == "ok"
    assert "20 times" in found["noise"].text
    assert page.facts["fingerprint"]
    assert page.conditions["free_disk_bytes"] > 0


def test_it_leaves_the_device_free(here: Device) -> None:
    examine(here)
    transport = local.connect(here)
    owner = leasing.owner("another")
    transport.call("lease", action="take", owner=owner, period_s=1.0)
    transport.call("lease", action="release", owner=owner, period_s=1.0)
    transport.close()


def test_a_device_in_use_is_not_disturbed(here: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = local.connect(here)
    owner = {"user": "ann", "host": "desk", "pid": 7, "run": "night"}
    transport.call("lease", action="take", owner=owner, period_s=60.0)
    monkeypatch.setattr(doctor, "NOISE", "raise SystemExit('it ran')")
    page = examine(here)
    transport.call("lease", action="release", owner=owner, period_s=60.0)
    transport.close()
    found = by_name(page)
    assert found["in use"].level == "warn"
    assert "ann@desk" in found["in use"].text
    assert "disturb" in found["noise"].text


def test_a_device_that_is_away_still_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: Session) -> str:
        raise DeviceError("pi5.local does not answer.")

    monkeypatch.setattr(Session, "connect", away)
    options = {"host": "pi5.local", "user": "pi"}
    page = examine(Device(name="pi5", transport="ssh", options=options))
    (line,) = page.lines
    assert not page.fit
    assert (line.name, line.level, line.text) == ("reachable", "bad", "pi5.local does not answer.")
    assert line.todo.endswith("Try: ssh pi@pi5.local")


def test_a_device_that_is_lost_meanwhile_keeps_what_was_found(
    here: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise TransientDeviceError("here was lost.", hint="Try again.")

    monkeypatch.setattr(Session, "prepare", lost)
    page = examine(here)
    assert by_name(page)["reachable"].level == "ok"
    assert page.lines[-1] == Line(name="device", level="bad", text="here was lost.", todo="Try again.")


def test_a_bare_python_is_told_what_it_could_have(
    here: Device, tmp_path: Path, nothing_is_fetched: list[str]
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    device = Device(name="bare", transport="local", options={**here.options, "python": str(bare)})
    found = by_name(examine(device))
    assert nothing_is_fetched == ["executorch", "onnxruntime", "ai-edge-litert", "tflite-runtime"]
    assert found["onnxruntime"].text == "cannot be had: no connection for onnxruntime"
    assert found["litert"].todo == "edgebench provision bare"
    assert {found[name].level for name in ("executorch", "onnxruntime", "litert")} == {"bad"}


def test_work_that_fails_there_is_a_line(here: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NOISE", "raise SystemExit('no memory left')")
    last = examine(here).lines[-1]
    assert last.level == "bad"
    assert "no memory left" in last.text


PAGE = Page(
    device="pi5",
    transport="ssh",
    lines=(
        Line(name="model", level="ok", text="a board"),
        Line(name="disk", level="warn", text="500 MiB free", todo="Make room."),
        Line(name="throttling", level="bad", text="now: throttled", todo="Let it cool."),
    ),
)


def test_the_page_reads_as_well_without_colours() -> None:
    out = io.StringIO()
    show(PAGE, Console(file=out, width=80))
    text = out.getvalue()
    assert "\x1b" not in text
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "pi5 (ssh): 1 ok, 1 warn, 1 bad"
    assert lines[1].split() == ["ok", "model", "a", "board"]
    assert "bad   throttling  now: throttled" in lines
    assert lines[3].strip() == "→ Make room."


def test_what_a_device_says_does_not_steer_the_terminal() -> None:
    out = io.StringIO()
    line = Line(name="model", level="ok", text="a\x1b[2Jboard [bold]x[/bold]\nbad  all is lost")
    show(Page(device="pi5", transport="ssh", lines=(line,)), Console(file=out, width=80))
    assert "\x1b" not in out.getvalue()
    assert "[bold]x[/bold] bad  all is lost" in out.getvalue()


def test_a_terminal_gets_colours() -> None:
    out = io.StringIO()
    show(PAGE, Console(file=out, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[1;31mbad" in out.getvalue()


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def examined(device: Device) -> Page:
        seen.append(device.name)
        lines = PAGE.lines if device.name == "b" else PAGE.lines[:2]
        return Page(device=device.name, transport="local", lines=lines)

    monkeypatch.setattr("harness.commands.doctor.examine", examined)
    fleet = tmp_path / "devices.yaml"
    entry = "{transport: local, tags: [lab]}"
    fleet.write_text(f"devices:\n  a: {entry}\n  b: {entry}\n  c: {{transport: local}}\n")
    assert cli.run(["doctor", "a", "c", "--fleet", str(fleet)]) == 0
    assert cli.run(["doctor", "lab", "--json", "--fleet", str(fleet)]) == 2
    assert sorted(seen) == ["a", "a", "b", "c"]
    out = capsys.readouterr().out
    pages = json.loads(out[out.index("[\n") :])
    assert [(page["device"], page["fit"]) for page in pages] == [("a", True), ("b", False)]
    assert pages[1]["lines"][2]["todo"] == "Let it cool."
    assert cli.run(["doctor", "nobody", "--fleet", str(fleet)]) == 4
