"""Blocks are interleaved, each is stored when it ends, and one cell's failure is only its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import measuring, store
from harness.core.errors import CellError, DeviceError, UsageError
from harness.core.types import Block, Device, Job, Plan, Record, Runtime
from tests.harness import fakes

LOCAL = Device(name="local", transport="local")
Measure = Callable[[Callable[[Job, int], Block]], tuple[list[Record], fakes.FakeSession]]


@pytest.fixture
def folder(tmp_path: Path) -> store.RunFolder:
    made = store.create(tmp_path, "night")
    made.save_info(fakes.info())
    return made


@pytest.fixture
def measure(folder: store.RunFolder, monkeypatch: pytest.MonkeyPatch) -> Measure:
    def run(act: Callable[[Job, int], Block]) -> tuple[list[Record], fakes.FakeSession]:
        session = fakes.FakeSession(LOCAL, act)
        monkeypatch.setattr(measuring, "open_session", fakes.opener(session))
        records = list(folder.read().records) or [fakes.record(name) for name in fakes.RECIPES]
        return measuring.measure(LOCAL, measuring.reopened(records), folder, fakes.Lines()), session

    return run


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 3), st.integers(0, 99))
def test_every_cell_runs_once_per_round(cells: int, blocks: int, memory: int, seed: int) -> None:
    plan = Plan(blocks=blocks, memory_blocks=memory, order_seed=seed)
    slots = measuring.schedule(cells, plan)
    assert slots == measuring.schedule(cells, plan), "the order follows from the seed"
    timed = [slot for slot in slots if slot.kind == "latency"]
    assert slots[: len(timed)] == timed, "memory blocks come after all timed ones"
    assert len(slots) == len(set(slots)) == cells * (blocks + memory)
    for index in range(0, blocks - 1, 2):
        there = [slot.record for slot in timed if slot.index == index]
        back = [slot.record for slot in timed if slot.index == index + 1]
        assert sorted(there) == list(range(cells))
        assert back == there[::-1], "A B C, then C B A"


def test_all_blocks_make_a_measured_record(measure: Measure, folder: store.RunFolder) -> None:
    records, session = measure(fakes.block)
    assert [r.status for r in records] == ["measured"] * 3
    assert {r.reason for r in records} == {None}
    assert Counter(kind for _, kind, _ in session.ran) == {"latency": 12, "memory": 6}
    assert folder.read().records == tuple(records)
    assert all(r.runtime and r.device == {"model": "a fake"} for r in records)


def test_a_failing_cell_keeps_its_blocks_and_the_others_go_on(measure: Measure) -> None:
    def act(job: Job, index: int) -> Block:
        if "int8" in job.model and index == 2:
            raise CellError("wrong_output", "3 dB where 60 dB were expected.")
        return fakes.block(job, index)

    records, session = measure(act)
    assert [r.status for r in records] == ["measured", "wrong_output", "measured"]
    assert records[1].reason == "3 dB where 60 dB were expected."
    assert len(records[1].blocks) == 2, "what was measured before it failed is kept"
    assert Counter(name for name, _, _ in session.ran)["int8"] == 3, "a failed cell is not run again"


def test_an_interrupt_loses_no_block_and_resume_repeats_none(
    measure: Measure, folder: store.RunFolder
) -> None:
    seen = 0

    def act(job: Job, index: int) -> Block:
        nonlocal seen
        seen += 1
        if seen == 8:
            raise KeyboardInterrupt
        return fakes.block(job, index)

    with pytest.raises(KeyboardInterrupt):
        measure(act)
    stored = folder.read().records
    assert sum(len(r.blocks) for r in stored) == 7
    assert {r.status for r in stored} == {"interrupted"}
    done = {(r.cell.recipe, b.kind, b.index) for r in stored for b in r.blocks}
    records, session = measure(fakes.block)
    assert [r.status for r in records] == ["measured"] * 3
    assert len(session.ran) == 18 - 7
    assert not done & set(session.ran)


def test_a_lost_device_is_a_reason_and_resume_goes_on(measure: Measure, folder: store.RunFolder) -> None:
    def act(job: Job, index: int) -> Block:
        if index == 1:
            raise DeviceError("local does not answer.", hint="Check the cable.")
        return fakes.block(job, index)

    records, _ = measure(act)
    assert [(r.status, r.reason) for r in records] == [
        ("lost_device", "local does not answer. Check the cable.")
    ] * 3
    assert [len(r.blocks) for r in records] == [1, 1, 1]
    again, session = measure(fakes.block)
    assert [r.status for r in again] == ["measured"] * 3
    assert len(session.ran) == 18 - 3


def test_blocks_of_another_runtime_are_never_added_to(measure: Measure, folder: store.RunFolder) -> None:
    """A record that goes on must go on with the device and the runtime that it has."""
    cut = replace(fakes.record("int8"), blocks=(fakes.block(fakes.JOB, 0),), device={"model": "a fake"})
    older = Runtime(name="onnx", version="0.9", engine="native")
    folder.save(replace(cut, runtime=older))
    with pytest.raises(UsageError, match=r"int8.*was begun with another runtime: .*0\.9.*, now "):
        measure(fakes.block)


def test_a_device_that_never_answers_gives_every_cell_its_reason(
    folder: store.RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def closed(device: Device, _conduct: object) -> Iterator[None]:
        yield from _off(device)

    monkeypatch.setattr(measuring, "open_session", closed)
    records = [fakes.record(name) for name in fakes.RECIPES]
    assert {r.reason for r in measuring.measure(LOCAL, records, folder, fakes.Lines())} == {"local is off."}
    assert len(folder.read().records) == 3


def _off(device: Device) -> Iterator[None]:
    raise DeviceError(f"{device.name} is off.")
