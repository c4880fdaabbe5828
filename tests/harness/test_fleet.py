"""Several devices in one run: each goes on without the others, one machine is one machine, Ctrl-C twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from harness import measuring, pipeline, retrying, store
from harness.core.types import Device, Plan, Record
from harness.store import RunFolder
from harness.transports import local
from tests.harness import fakes
from tests.harness.boards import Board

PLAN = Plan(blocks=2, memory_blocks=1, warmup_iterations=1, warmup_time_s=0, min_iterations=3, min_time_s=0)
Measure = Callable[..., tuple[RunFolder, fakes.Lines]]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """One cell on each of some boards, by name."""
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.001)
    source = tmp_path / "m.onnx"
    source.write_bytes(b"a model")
    content = measuring.sha256_of(str(source))
    assert content is not None

    def record(name: str) -> Record:
        plain = fakes.record("fp32", PLAN)
        assert plain.artifact is not None
        made = replace(plain.artifact, path=str(source), check_path=str(source), check_min_sqnr_db=40.0)
        made = replace(made, sha256=content, check_sets=2)
        return replace(plain, cell=replace(plain.cell, device=name), artifact=made)

    def run(
        boards: Mapping[str, Board],
        hosts: Mapping[str, str] | None = None,
        *,
        emulated: bool = False,
    ) -> tuple[RunFolder, fakes.Lines]:
        def connect(device: Device) -> object:
            return boards[device.name].connect(device)

        monkeypatch.setattr(local, "connect", connect)
        monkeypatch.setattr("harness.taking_turns.address", lambda d: (hosts or {}).get(d.name, d.name))
        folder = store.create(tmp_path, "night")
        records = [record(name) for name in boards]
        info = replace(fakes.info(), plan=PLAN, cells=tuple(r.cell for r in records))
        folder.save_info(info)
        devices = [Device(name=name, transport="local", emulated=emulated) for name in boards]
        lines = fakes.Lines()
        try:
            pipeline._measure_all(records, devices, folder, lines, 0.0)
        finally:
            lines.said.append("over")
        return folder, lines

    return run


def statuses(folder: RunFolder) -> dict[str, str]:
    return {record.cell.device: record.status for record in folder.read().records}


def test_a_lost_device_does_not_stop_the_others(measure: Measure) -> None:
    boards = {name: Board(boot_id=name) for name in ("a", "b", "c")}
    boards["b"].dark_from = 1
    folder, lines = measure(boards)
    assert statuses(folder) == {"a": "measured", "b": "lost_device", "c": "measured"}
    assert sorted(text.split(";")[0] for text in lines.said[:-1]) == [
        "a: measured 1 of 1 cells",
        "b: measured 0 of 1 cells",
        "c: measured 1 of 1 cells",
    ]
    assert {event.stage for event in lines.events} == {"measure on a", "measure on b", "measure on c"}


@pytest.mark.parametrize("by", ["address", "boot id"])
def test_two_entries_of_one_machine_take_turns(measure: Measure, by: str) -> None:
    both = Board(boot_id="one", hold_s=0.02)
    hosts = {"a": "pi", "b": "pi"} if by == "address" else None
    folder, _ = measure({"a": both, "b": both}, hosts)
    assert statuses(folder) == {"a": "measured", "b": "measured"}
    assert both.most_in_use == 1
    if by == "address":
        first = both.did.index("close")
        assert "connect" not in both.did[1:first], "it is not even connected to meanwhile"


def test_emulated_devices_share_their_machine(measure: Measure) -> None:
    """Their times are ranked nowhere; two that wait for each other would wait for ever."""
    meet = threading.Barrier(2, timeout=20)

    class Meeting(Board):
        def connect(self, device: object) -> object:  # type: ignore[override]
            line = super().connect(device)
            plain = line.stream

            def stream(argv: list[str], **how: object) -> object:
                if not self.ran and "mode=probe" not in argv:
                    meet.wait()
                return plain(argv, **how)  # type: ignore[arg-type]

            line.stream = stream  # type: ignore[method-assign, assignment]
            return line

    folder, _ = measure({"a": Meeting(boot_id="one"), "b": Meeting(boot_id="one")}, emulated=True)
    assert statuses(folder) == {"a": "measured", "b": "measured"}


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_every_device_as_it_was_found(measure: Measure, tmp_path: Path, times: int) -> None:
    """Once: the blocks that run are kept. Twice: they are ended; the device is put back all the same."""
    boards = {name: Board(boot_id=name, hold_s=0.5 if times == 1 else 300) for name in ("a", "b")}
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        limit = time.monotonic() + 20
        while time.monotonic() < limit and not all(board.in_use for board in boards.values()):
            time.sleep(0.005)
        for _ in range(times):
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.1)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        measure(boards)
    presser.join()
    records = RunFolder(tmp_path / "night").read().records
    assert {r.status for r in records} <= {"interrupted"}
    assert [len(r.blocks) for r in records] == ([1, 1] if times == 1 else [0, 0])
    for board in boards.values():
        assert board.did[-3:] == ["settings restore", "lease release", "close"]
        assert board.did.count("connect") == times


def test_a_summary_counts_every_kind_of_end() -> None:
    failed = replace(fakes.record("int8"), status="timeout", reason="It was slow.")
    text = measuring.summary(Device(name="pi", transport="local"), [fakes.record("fp32"), failed, failed])
    assert text == ("pi: measured 0 of 3 cells; 1 interrupted: not measured yet; 2 timeout: It was slow.")
