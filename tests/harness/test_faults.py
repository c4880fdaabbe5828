"""Each fault of a device ends as a block that was run again or as a typed cell; nothing twice or lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import leasing, measuring, retrying, store
from harness.core.errors import DeviceError, DeviceRebooted, SupervisorError, TransientDeviceError
from harness.core.types import Device, Plan, Record
from harness.session import Conduct
from harness.transports import local
from tests.harness import fakes, streams
from tests.harness.boards import Board, Said, fails_from

PLAN = Plan(blocks=2, memory_blocks=1, warmup_iterations=1, warmup_time_s=0, min_iterations=3, min_time_s=0)
PI = Device(name="pi5", transport="local", settings={"governor": "performance"})
Run = Callable[..., list[Record]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Measure three cells on a board; again with the records that are stored, as --resume does."""
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(leasing, "ASK_AGAIN_S", 0.01)
    folder = store.create(tmp_path, "night")
    folder.save_info(replace(fakes.info(), plan=PLAN))
    source = tmp_path / "m.onnx"
    source.write_bytes(b"a model")

    def measure(board: Board, device: Device = PI, conduct: Conduct | None = None) -> list[Record]:
        monkeypatch.setattr(local, "connect", board.connect)
        records = list(folder.read().records) or [_on(source, fakes.record(n, PLAN)) for n in fakes.RECIPES]
        return measuring.measure(device, measuring.reopened(records), folder, fakes.Lines(), conduct)

    return measure


def _on(source: Path, record: Record) -> Record:
    assert record.artifact is not None
    content = measuring.sha256_of(str(source))
    assert content is not None
    made = replace(record.artifact, path=str(source), check_path=str(source), check_min_sqnr_db=40.0)
    return replace(record, artifact=replace(made, sha256=content, check_sets=2))


def whole(records: list[Record]) -> None:
    """Every cell is measured, with each of its blocks once."""
    assert [r.status for r in records] == ["measured"] * 3
    for record in records:
        found = Counter((block.kind, block.index) for block in record.blocks)
        assert found == {("latency", 0): 1, ("latency", 1): 1, ("memory", 0): 1}


def happened(records: list[Record]) -> list[tuple[str, str]]:
    return [(incident.kind, incident.block) for record in records for incident in record.incidents]


def test_a_session_mends_first_and_puts_back_at_the_end(run: Run) -> None:
    board = Board(settings={"governor": "ondemand"})
    records = run(board)
    whole(records)
    assert board.did[:9] == [
        "connect",
        "hello",
        "lease take",
        "settings restore",
        "sweep",
        "push .py",
        "push .pyz",
        "probe",
        "settings apply",
    ]
    assert board.did[-3:] == ["settings restore", "lease release", "close"]
    assert board.settings == {"governor": "ondemand"}
    assert {b.settings["governor"].observed for r in records for b in r.blocks} == {"performance"}
    assert happened(records) == []


def test_a_setting_that_is_not_taken_is_in_every_block_with_its_reason(run: Run) -> None:
    records = run(Board(settings={"governor": "ondemand"}, refuse={"governor": "it needs root"}))
    block = records[0].blocks[0]
    assert (block.settings["governor"].requested, block.settings["governor"].observed) == (
        "performance",
        "ondemand",
    )
    assert block.facts["settings_not_taken"] == {"governor": "it needs root"}


RUBBISH = Said(lines=["what?"], exit_code=0)
KILLED = Said(lines=streams.lines(streams.START), exit_code=-9)
HUNG = Said(lines=streams.lines(streams.START), exit_code=None, timed_out=True)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (RUBBISH, "retried"),
        (KILLED, "retried"),
        (HUNG, "retried"),
        (TransientDeviceError("The link was cut."), "reconnected"),
        (DeviceRebooted("It restarted."), "rebooted"),
    ],
)
def test_a_fault_that_passes_costs_one_block_and_is_told(
    run: Run, fault: Said | BaseException, kind: str
) -> None:
    board = Board(faults={4: fault}, settings={"governor": "ondemand"})
    records = run(board)
    whole(records)
    assert len(board.ran) == 10
    assert happened(records) == [(kind, "latency 2")]
    (text,) = [incident.text for record in records for incident in record.incidents]
    assert ("A later try reached it." in text) == (kind == "reconnected")
    was = f"1 earlier trouble was mended: 1 {kind}"
    assert measuring.summary(PI, records) == f"pi5: measured 3 of 3 cells; {was}"
    again = kind != "retried"
    assert board.did.count("lease take") == 1 + again
    assert board.did.count("settings apply") == 1 + again
    assert board.did.count("push .onnx") == 1 + again, "files are checked again on a device that was away"
    assert {b.settings["governor"].observed for r in records for b in r.blocks} == {"performance"}
    assert board.settings == {"governor": "ondemand"}


@pytest.mark.parametrize(
    ("fault", "status", "tries"),
    [(RUBBISH, "agent_failed", 2), (KILLED, "agent_failed", 3), (HUNG, "timeout", 2)],
)
def test_a_fault_that_stays_is_a_typed_cell_after_bounded_tries(
    run: Run, fault: Said, status: str, tries: int
) -> None:
    board = Board(faults=dict.fromkeys(range(tries), fault))
    records = run(board)
    assert sorted(r.status for r in records) == sorted([status, "measured", "measured"])
    failed = next(r for r in records if r.status == status)
    assert len(failed.incidents) == tries - 1
    assert "mended" not in measuring.summary(PI, records)
    assert len(board.ran) == tries + 6


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (DeviceError("The host key changed."), "lost_device"),
        (SupervisorError("no_space", "The device's disk is full."), "not_ready"),
    ],
)
def test_a_stable_fault_is_never_tried_again(run: Run, fault: DeviceError, status: str) -> None:
    board = Board(faults={4: fault})
    records = run(board)
    assert len(board.ran) == 5
    assert {r.status for r in records} == {status}
    assert all(fault.message in str(r.reason) for r in records)


def test_a_device_that_is_lost_for_good_keeps_its_blocks_and_resume_goes_on(run: Run) -> None:
    board = Board(faults=fails_from(4, lambda: TransientDeviceError("The link was cut.")))
    records = run(board)
    assert {r.status for r in records} == {"lost_device"}
    assert sum(len(r.blocks) for r in records) == 4
    assert len(board.ran) == 4 + retrying.TRIES
    assert len(happened(records)) == retrying.TRIES - 1
    healthy = Board()
    whole(run(healthy))
    assert len(healthy.ran) == 5, "what was measured is not measured again"


def test_a_device_that_went_dark_is_not_waited_for_at_the_end(run: Run) -> None:
    """Its own supervisor puts settings back."""
    said: list[str] = []
    board = Board(dark_from=4)
    records = run(board, conduct=Conduct(say=said.append))
    assert {r.status for r in records} == {"lost_device"}
    assert sum(len(r.blocks) for r in records) == 4
    assert board.did[board.did.index("settings apply") :].count("settings restore") == 0
    assert [kind for kind, _ in happened(records)] == ["lost"] * (retrying.TRIES - 1)
    board.dark, board.dark_from = False, 10**9
    again = run(board)
    whole(again)
    assert happened(again) == happened(records), "that it was lost then stays true"
    assert "mended" not in measuring.summary(PI, records) + measuring.summary(PI, again)


def test_a_held_device_says_who_has_it(run: Run) -> None:
    board = Board(holder={"user": "ann", "host": "desk", "pid": 7, "run": "night"})
    records = run(board)
    assert {r.status for r in records} == {"not_ready"}
    assert "pi5 is in use by ann@desk (pid 7, run night) for another 41 s." in str(records[0].reason)
    assert board.did == ["connect", "hello", "lease take", "close"], "nothing of the other's is touched"


def test_a_held_device_can_be_waited_for(run: Run) -> None:
    said: list[str] = []
    board = Board(holder={"user": "ann", "host": "desk"}, holder_leaves_after=3)
    whole(run(board, conduct=Conduct(wait_s=60, say=said.append)))
    assert board.did.count("lease take") == 4
    assert len(said) == 1
    assert "in use by ann@desk" in said[0]


def test_waiting_can_be_stopped(run: Run) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    board = Board(holder={"user": "ann", "host": "desk"})
    with pytest.raises(KeyboardInterrupt):
        run(board, conduct=Conduct(wait_s=60, check=stop))
    assert board.did[-1] == "close"


def test_ctrl_c_puts_everything_back(run: Run) -> None:
    board = Board(faults={4: KeyboardInterrupt()}, settings={"governor": "ondemand"})
    with pytest.raises(KeyboardInterrupt):
        run(board)
    assert board.did[-3:] == ["settings restore", "lease release", "close"]
    assert board.settings == {"governor": "ondemand"}


def test_a_device_that_somebody_else_took_meanwhile_is_not_ready(run: Run) -> None:
    held = SupervisorError("held", "Held.", facts={"owner": {"user": "ann", "host": "desk"}, "left_s": 9})
    records = run(Board(faults=fails_from(6, lambda: held)))
    assert sum(len(r.blocks) for r in records) == 6
    assert {r.status for r in records} == {"not_ready"}
    assert "pi5 is in use by ann@desk (pid ?, run ?) for another 9 s." in str(records[0].reason)


def test_a_healed_link_is_an_incident(run: Run) -> None:
    records = run(Board(incidents=["The link was away for 3 s."]))
    whole(records)
    (incident,) = [i for r in records for i in r.incidents]
    assert (incident.kind, incident.block, incident.text) == (
        "reconnected",
        "latency 1",
        "The link was away for 3 s.",
    )


def test_a_device_that_comes_back_as_another_is_lost(run: Run) -> None:
    board = Board(faults={4: DeviceRebooted("It restarted.")})
    plain = board.reboot

    def reboot() -> DeviceRebooted:
        board.facts[1] = board.facts[1] | {"value": "another board"}
        return plain()

    board.reboot = reboot  # type: ignore[method-assign]
    records = run(board)
    assert {r.status for r in records} == {"lost_device"}
    assert "its model was a board, now it is another board" in str(records[0].reason)


def test_affinity_goes_to_every_process(run: Run) -> None:
    board = Board()
    records = run(board, replace(PI, settings={"affinity": "0-1,3"}))
    assert set(board.cpus) == {(0, 1, 3)}
    taken = {(s.requested, s.observed) for r in records for b in r.blocks if (s := b.settings["affinity"])}
    assert taken == {("0-1,3", "0-1")}


def test_an_emulated_device_is_marked_in_every_record(run: Run) -> None:
    assert {r.device.get("emulated") for r in run(Board(), replace(PI, emulated=True))} == {True}
    assert all(r.device["emulated"] for r in run(Board(), replace(PI, emulated=True)))
